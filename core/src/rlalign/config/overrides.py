"""What changes a file's tree before it is checked: the command line's `key=value`, then `${…}`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from rlalign.config import places
from rlalign.config.pipeline import ALTERNATIVES, ITEM_KEYS, MERGED_SECTIONS, REPLACED_SECTIONS, short
from rlalign.config.places import Keys, Tree
from rlalign.config.words import did_you_mean, found
from rlalign.data import limits
from rlalign.errors import ConfigError, hide
from rlalign.interface.code import ADD_TRUST

SHOWN = 200
"""Characters of an override that messages show."""


def override(tree: Tree, text: str, said: str = "command line") -> Keys:
    """Set what `key=value` names and give its path; ConfigError when the key leads nowhere."""
    place = f"{said} ({text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'})"
    key, equals, value = text.partition("=")
    segments = re.findall(r"[^.\[\]\s]+", key)
    if len(segments) > limits.PIPELINE_DEPTH or len(key) > limits.KEY_CHARACTERS:
        raise ConfigError(f"{place}: a key that long leads nowhere; check it")
    if not equals or not segments:
        raise ConfigError(f"{place}: expected key=value, for instance train.lr=1e-5")
    parsed = places.value(value, place)
    try:
        keys = _locate(tree.data, segments)
    except _Nowhere as error:
        raise ConfigError(f"{place}: {error}") from None
    tree.put(keys, parsed, place)
    other = alternative(keys)
    if other is not None and parsed is not None:
        tree.at(other[:-1]).pop(other[-1], None)
    return keys


def alternative(keys: Keys) -> Keys | None:
    """The key that one in `train` displaces."""
    in_train = keys[:-1] == ("train",) or (keys[0] == "phases" and keys[2:-1] == ("train",))
    other = ALTERNATIVES.get(str(keys[-1])) if in_train else None
    return None if other is None else (*keys[:-1], other)


def shadowed(data: dict[str, Any], keys: Keys) -> bool:
    """Whether every phase says something else about a top-level key, so that it means nothing."""
    phases = data.get("phases")
    if not isinstance(phases, list) or keys[0] not in (*MERGED_SECTIONS, *REPLACED_SECTIONS):
        return False
    section = str(keys[0])
    own = [phase for phase in phases if isinstance(phase, dict) and section in phase]
    if len(own) < len(phases):
        return False
    if section in REPLACED_SECTIONS:
        return True
    whole = data[section] if isinstance(data[section], dict) else {}
    names = [str(keys[1])] if len(keys) > 1 else list(whole)
    return bool(names) and all(_says(phase[section], name) for phase in own for name in names)


def _says(section: Any, name: str) -> bool:
    if not isinstance(section, dict):
        return True
    return name in section or section.get(ALTERNATIVES.get(name)) is not None


class _Nowhere(Exception):
    pass


def _locate(data: dict[str, Any], segments: list[str]) -> Keys:
    """The path that dotted names mean; items and phases go by name as well as by index."""
    keys: Keys = ()
    for segment in segments:
        holder: Any = None
        node: Any = data
        for key in keys:
            holder, node = node, node.get(key) if isinstance(node, dict) else node and node[key]
        keys = (*keys, *_step(holder, node, keys, segment))
    return keys


def _step(holder: Any, node: Any, keys: Keys, segment: str) -> Keys:
    """Where `segment` leads from `keys`, at which `holder` holds `node`."""
    if keys == ("phases",) and not isinstance(node, list):
        raise _Nowhere("the pipeline has no `phases`")
    named = _names_components(keys)
    if node is None and named and "models" not in keys:
        raise _Nowhere(f"there is no `{keys[-1]}` here to change; where it is inherited, change the original")
    if isinstance(node, list):
        names = _phase_names if keys == ("phases",) else _names if named else _no_names
        return (_index(node, segment, str(keys[-1]), names),)
    if isinstance(node, str) and "${" in node:
        raise _Nowhere(f"{node!r} stands here; change what it refers to, or replace it whole")
    if isinstance(node, str) and named:
        node = holder[keys[-1]] = {node: {}}  # `kl` can hold no options, `{kl: {}}` can
    if node is not None and not isinstance(node, dict):
        raise _Nowhere(f"there is no `{segment}` in {found(node)}")
    component = next((key for key in node if key not in ITEM_KEYS), None) if node and named else None
    if (
        component in (None, "from", "with", "of", "dtype") or segment in ITEM_KEYS
    ):  # no component, or beside it
        return (segment,)
    return (component,) if segment in (component, *_names(node)) else (component, segment)


def _watches(keys: Keys) -> bool:
    """Whether a path leads into `observers`, on which no number depends."""
    return keys[0] == "observers" or (keys[0] == "phases" and keys[2:3] == ("observers",))


def _names_components(keys: Keys) -> bool:
    """Whether an item, or a list of items, stands at this path."""
    within = keys[2:] if keys[:1] == ("phases",) else keys
    if within and isinstance(within[-1], int):
        within = within[:-1]
    if len(within) == 1:
        return within[0] in ("policy", *REPLACED_SECTIONS)
    return within == ("evaluate", "use") or (len(within) == 2 and within[0] == "models")


def _index(items: list[Any], segment: str, what: str, names: Callable[[Any], tuple[Any, ...]]) -> int:
    if segment.isdecimal():
        if int(segment) < len(items):
            return int(segment)
        raise _Nowhere(f"`{what}` has {len(items)} items, counted from 0; there is no {segment}")
    named = [[name for name in names(item) if isinstance(name, str) and name] for item in items]
    matches = [index for index, own in enumerate(named) if segment in own]
    if len(matches) == 1:
        return matches[0]
    known = list(dict.fromkeys(name for own in named for name in own))
    if matches:
        raise _Nowhere(f"`{what}` has several items named `{segment}`; say which by its index")
    hint = did_you_mean(segment, known)
    raise _Nowhere(f"`{what}` has no item named `{segment}`{hint} (items: {', '.join(known)})")


def _phase_names(phase: Any) -> tuple[Any, ...]:
    return (phase.get("name"),) if isinstance(phase, dict) else ()


def _no_names(part: Any) -> tuple[Any, ...]:
    return ()


def _names(item: Any) -> tuple[str, ...]:
    """What an item answers to: its `as`, else its component."""
    if isinstance(item, str):
        return (item, short(item))
    if not isinstance(item, dict):
        return ()
    component = next((key for key in item if key not in ITEM_KEYS), "")
    return (item["as"],) if isinstance(item.get("as"), str) else (component, short(component))


@dataclass
class _Reader:
    """Whoever resolves an interpolation, and the variables of the environment that it read."""

    trusted: bool
    read: set[str]


_reader: ContextVar[_Reader | None] = ContextVar("reader", default=None)


def _variable(key: str, *default: Any) -> Any:
    """`${oc.env:KEY}`: it is noted which variables a pipeline reads, and messages hide what they hold."""
    reader = _reader.get()
    if reader is not None:
        if not reader.trusted:
            raise ValueError(f"it asks for your environment; {ADD_TRUST}")
        reader.read.add(key)
        hide(os.environ.get(key, ""), f"${{oc.env:{key}}}")
    return oc.env(key, *default)


# Before 2.4 a function of the same name is another one.
_register: Any = OmegaConf.register_resolver
if "replace" not in inspect.signature(_register).parameters:
    _register = OmegaConf.register_new_resolver


def interpolate(tree: Tree, *, trust: bool = True) -> None:
    """Replace every `${…}` by what it stands for; those that stand for nothing are reported.

    Without `trust` nothing is told of the environment.
    """
    _register("oc.env", _variable, replace=True)
    leaves = [keys for keys, text in places.texts(tree.data) if "${" in text]
    if leaves:
        _interpolate(tree, leaves, _Budget(), trust)


def _interpolate(tree: Tree, leaves: list[Keys], budget: _Budget, trust: bool) -> None:
    for keys in leaves:
        try:
            budget.spend(tree, keys, OmegaConf.create, [tree.at(keys)])
        except (OmegaConfBaseException, RecursionError) as error:
            text = f"{tree.at(keys)!r} is no valid interpolation: {_first(error)}"
            tree.report(keys, text, unreadable=True)
            tree.at(keys[:-1])[keys[-1]] = "???"  # a value that is missing, says OmegaConf
    config = OmegaConf.create(tree.data)
    for keys in leaves:
        if keys in tree.unreadable:
            continue
        reader = _Reader(trust, set())
        before = _reader.set(reader)
        try:
            resolved = budget.spend(tree, keys, _select, config, keys)
        except (OmegaConfBaseException, RecursionError) as error:
            why = _first(error)
            if reader.read and "not found" not in why:  # it may quote what it could not read
                why = f"what the environment holds does not read ({', '.join(sorted(reader.read))})"
            tree.report(keys, f"{tree.at(keys)!r} cannot be resolved: {why}", unreadable=True)
        else:
            tree.interpolated[keys] = tree.at(keys)
            tree.at(keys[:-1])[keys[-1]] = resolved
            if reader.read:
                if not _watches(keys):
                    tree.variables |= reader.read
                tree.private.add(keys)
                if keys[-1] == "as" or keys[2:] == ("name",) or keys == ("name",):
                    tree.report(keys, "a name is written into every log, so the environment cannot give it")
                if "oc.decode" in tree.interpolated[keys]:
                    for _, text in places.texts(resolved):
                        hide(text, tree.interpolated[keys])
        finally:
            _reader.reset(before)


class _TooMuch(BaseException):
    """No `Exception`: OmegaConf would say something else of it."""


class _Budget:
    """What the interpolations of a file may take: each can double what another stands for.

    Whatever OmegaConf's grammar allows, it takes function calls, and text grows by functions that return it.
    """

    def __init__(self) -> None:
        self.steps = self.text = self.most = 0

    def spend(self, tree: Tree, keys: Keys, work: Callable[..., Any], *given: Any) -> Any:
        """What `work` returns, or a ConfigError that names the interpolation at `keys`."""
        self.most = min(self.steps + limits.INTERPOLATION_STEPS, limits.INTERPOLATIONS_STEPS)
        before = sys.getprofile()
        sys.setprofile(self._watch)
        try:
            return work(*given)
        except BaseException:
            if not self._spent():
                raise
            raise ConfigError(  # whatever OmegaConf, interrupted, says of it
                f"{tree.place(keys)}: {places.dotted(keys)}: its `${{…}}` stand for too much: what they refer to is "
                "too long, or refers to others too often; write it out, or put it into a data file"
            ) from None
        finally:
            sys.setprofile(before)

    def _spent(self) -> bool:
        return self.steps > self.most or self.text > limits.INTERPOLATION_TEXT

    def _watch(self, frame: Any, event: str, returned: Any) -> None:
        if event == "call":
            self.steps += 1
        elif event == "return" and isinstance(returned, str):
            self.text += len(returned)
        if self._spent():
            raise _TooMuch


def _select(config: Any, keys: Keys) -> Any:
    for key in keys:
        config = config[key]
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0]
