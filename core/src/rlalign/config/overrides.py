"""What changes a file's tree before it is checked: the command line's `key=value`, then `${…}`."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlalign.config import places
from rlalign.config.places import Keys, Tree, dotted, found
from rlalign.errors import ConfigError

META = ("weight", "as", "source")
"""What an entry may say beside its component and the component's options."""
MERGED = ("train", "generation", "evaluate", "models")
"""Sections that a phase inherits key by key."""
REPLACED = ("task", "rewards", "responses", "algorithm")
"""Sections that a phase inherits whole or not at all."""
RIVALS = {
    "iterations": "passes",
    "passes": "iterations",
    "minibatches": "minibatch",
    "minibatch": "minibatches",
}
"""`train` holds one of each pair: the one said last displaces the other."""


def override(tree: Tree, text: str, said: str = "command line") -> Keys:
    """Set what `key=value` names and give its path; ConfigError when the key leads nowhere."""
    place = f"{said} ({text})"
    key, equals, value = text.partition("=")
    segments = re.findall(r"[^.\[\]\s]+", key)
    if not equals or not segments:
        raise ConfigError(f"{place}: expected key=value, for instance train.lr=1e-5")
    parsed = places.value(value, place)
    try:
        keys = _locate(tree.data, segments)
    except _Nowhere as error:
        raise ConfigError(f"{place}: {error}") from None
    tree.put(keys, parsed, place)
    in_train = keys[:-1] == ("train",) or (keys[0] == "phases" and keys[2:-1] == ("train",))
    rival = RIVALS.get(str(keys[-1])) if in_train and parsed is not None else None
    if rival is not None:
        tree.at(keys[:-1]).pop(rival, None)
    return keys


def shadowed(data: dict[str, Any], keys: Keys) -> bool:
    """Whether every phase says something else about a top-level key, so that it means nothing."""
    phases = data.get("phases")
    if not isinstance(phases, list) or keys[0] not in (*MERGED, *REPLACED):
        return False
    section = str(keys[0])
    own = [phase for phase in phases if isinstance(phase, dict) and section in phase]
    if len(own) < len(phases):
        return False
    if section in REPLACED:
        return True
    whole = data[section] if isinstance(data[section], dict) else {}
    names = [str(keys[1])] if len(keys) > 1 else list(whole)
    return bool(names) and all(_says(phase[section], name) for phase in own for name in names)


def short(component: str) -> str:
    """A component's own name: `nlpo` of `some-distribution:nlpo`."""
    return component.rpartition(":")[2]


def _says(section: Any, name: str) -> bool:
    if not isinstance(section, dict):
        return True
    return name in section or section.get(RIVALS.get(name)) is not None


class _Nowhere(Exception):
    pass


def _locate(data: dict[str, Any], segments: list[str]) -> Keys:
    """The path that dotted names mean; entries and phases go by name as well as by index."""
    if segments[0] != "phases" or len(segments) == 1:
        return _section(data, segments)
    phases = data.get("phases")
    if not isinstance(phases, list):
        raise _Nowhere("the pipeline has no `phases`")
    index = _index(phases, segments[1], "phases", _phase_names)
    if len(segments) == 2:
        return ("phases", index)
    return ("phases", index, *_section(phases[index], segments[2:]))


def _section(holder: Any, segments: list[str]) -> Keys:
    """A path within the top level or within one phase."""
    head, *rest = segments
    if not isinstance(holder, dict):
        raise _Nowhere(f"there is no `{head}` in {found(holder)}")
    if not rest:
        return (head,)
    if head in (*REPLACED, "policy"):
        return (head, *_entries(holder, head, rest))
    section = holder.get(head)
    if isinstance(section, dict) and len(rest) > 1:
        if head == "evaluate" and rest[0] == "use":
            return (head, "use", *_entries(section, "use", rest[1:]))
        if head == "models" and section.get(rest[0]) is not None:
            return (head, rest[0], *_entry(section, rest[0], rest[1:]))
    return (head, *_plain(section, rest))


def _entries(holder: dict[str, Any], key: str, segments: list[str]) -> Keys:
    entries = holder.get(key)
    if entries is None:
        raise _Nowhere(f"there is no `{key}` here to change; where it is inherited, change the original")
    if not isinstance(entries, list):
        return _entry(holder, key, segments)
    index = _index(entries, segments[0], key, _names)
    return (index, *_entry(entries, index, segments[1:]))


def _entry(holder: Any, key: str | int, segments: list[str]) -> Keys:
    """A path within one entry: its `weight`, `as` or `source`, else an option of its component."""
    if not segments:
        return ()
    if isinstance(holder[key], str):
        _no_interpolation(holder[key])
        holder[key] = {holder[key]: {}}  # `kl` can hold no options, `{kl: {}}` can
    entry = holder[key]
    component = next((k for k in entry if k not in META), None) if isinstance(entry, dict) else None
    if component is None or segments[0] in META or segments[0] in ("from", "with", "of"):
        return _plain(entry, segments)
    if segments[0] in (component, *_names(entry)):
        segments = segments[1:]
    return (component, *_plain(entry[component], segments))


def _plain(node: Any, segments: list[str]) -> Keys:
    keys: list[str | int] = []
    for segment in segments:
        if isinstance(node, list):
            index = _index(node, segment, dotted(tuple(keys)) or "the list", lambda part: ())
            keys.append(index)
            node = node[index]
        elif node is None or isinstance(node, dict):
            keys.append(segment)
            node = node.get(segment) if node else None
        else:
            _no_interpolation(node)
            raise _Nowhere(f"there is no `{segment}` in {found(node)}")
    return tuple(keys)


def _index(entries: list[Any], segment: str, what: str, names: Callable[[Any], tuple[Any, ...]]) -> int:
    if segment.isdecimal():
        if int(segment) < len(entries):
            return int(segment)
        raise _Nowhere(f"`{what}` has {len(entries)} entries, counted from 0; there is no {segment}")
    named = [[name for name in names(entry) if isinstance(name, str) and name] for entry in entries]
    matches = [index for index, own in enumerate(named) if segment in own]
    if len(matches) == 1:
        return matches[0]
    known = list(dict.fromkeys(name for own in named for name in own))
    if matches:
        raise _Nowhere(f"`{what}` has several entries named `{segment}`; say which by its index")
    close = get_close_matches(segment, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise _Nowhere(f"`{what}` has no entry named `{segment}`{hint} (entries: {', '.join(known)})")


def _phase_names(phase: Any) -> tuple[Any, ...]:
    return (phase.get("name"),) if isinstance(phase, dict) else ()


def _names(entry: Any) -> tuple[str, ...]:
    """What an entry answers to: its `as`, else its component."""
    if isinstance(entry, str):
        return (entry, short(entry))
    if not isinstance(entry, dict):
        return ()
    component = next((key for key in entry if key not in META), "")
    return (entry["as"],) if isinstance(entry.get("as"), str) else (component, short(component))


def _no_interpolation(node: Any) -> None:
    if isinstance(node, str) and "${" in node:
        raise _Nowhere(f"{node!r} stands here; change what it refers to, or replace it whole")


def interpolate(tree: Tree) -> list[tuple[Keys, str]]:
    """Replace every `${…}` by what it stands for; gives what went wrong, and where."""
    leaves = [keys for keys, text in _leaves(tree.data) if "${" in text]
    problems = []
    for keys in leaves:
        try:
            OmegaConf.create([tree.at(keys)])
        except OmegaConfBaseException as error:
            problems.append((keys, f"{tree.at(keys)!r} is no valid interpolation: {_first(error)}"))
    if problems:
        return problems
    config = OmegaConf.create(tree.data)
    for keys in leaves:
        try:
            resolved = _select(config, keys)
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append((keys, f"{tree.at(keys)!r} cannot be resolved: {_first(error)}"))
        else:
            tree.interpolated[keys] = tree.at(keys)
            tree.at(keys[:-1])[keys[-1]] = resolved
    return problems


def _leaves(node: Any, keys: Keys = ()) -> list[tuple[Keys, str]]:
    if isinstance(node, str):
        return [(keys, node)]
    parts = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    return [leaf for key, part in parts for leaf in _leaves(part, (*keys, key))]


def _select(config: Any, keys: Keys) -> Any:
    for key in keys:
        config = config[key]
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0]
