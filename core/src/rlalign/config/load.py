"""Turns a pipeline file into types, and checks everything before a model loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field

from rlalign.config import inherit, places
from rlalign.config.entries import File
from rlalign.config.overrides import MERGED, REPLACED, interpolate, override, shadowed
from rlalign.config.pipeline import Phase, Pipeline
from rlalign.config.places import Keys, found
from rlalign.config.registry import Registry
from rlalign.config.validate import check, unknown
from rlalign.data.settings import Natural, Options, Positive, Save
from rlalign.errors import ConfigError

SHOWN = 20
"""Problems listed at once."""


class Top(Options):
    """What is said once for the whole pipeline, beside `policy` and `phases`."""

    repeat: Positive = Field(1, description="passes over the list of phases")
    seed: Natural = Field(0, description="what every random number follows from")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    deterministic: bool = Field(False, description="only operations that give the same bits each time")
    checkpoints: Save = Field(Save(), description="how often a commit point is written")
    folder: Path | None = Field(
        None,
        description="where relative paths and own modules are looked for; null: beside the file",
    )


def load_pipeline(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    seed: int | None = None,
    registry: Registry | None = None,
    text: str | Mapping[str, Any] | None = None,
    said: str = "command line",
) -> Pipeline:
    """The pipeline in a file, or in `text` as if the file held it, after `key=value` overrides.

    `text` may be the data itself, which has no lines; `said` is where overrides come from, for messages.

    Everything is checked; one ConfigError lists all that is wrong.
    """
    path = Path(path)
    if isinstance(text, Mapping):
        tree = places.Tree(dict(text), {(): str(path)})
    else:
        tree = places.read(_text(path) if text is None else text, str(path))
    file = File(tree, path.absolute().parent, registry or Registry())
    changed: list[tuple[str, Keys]] = []
    for one in overrides:
        try:
            changed.append((one, override(tree, one, said)))
        except ConfigError as error:
            file.problems.append(str(error))
    if seed is not None:
        tree.put(("seed",), seed, f"command line (--seed {seed})")
    unresolved = interpolate(tree)
    for keys, problem in unresolved:
        file.report(keys, problem)
    if unresolved:
        raise _error(file)
    for one, keys in changed:
        if shadowed(tree.data, keys):
            hint = f"say phases.NAME.{one}"
            file.report(keys, f"every phase says this for itself, so nothing would change; {hint}")
    pipeline = _pipeline(file, path.stem)
    if pipeline is None or file.problems:
        raise _error(file)
    return pipeline


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the pipeline file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _error(file: File) -> ConfigError:
    problems = list(dict.fromkeys(file.problems))  # phases that inherit a fault repeat it
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"… and {len(problems) - SHOWN} more"]
    return ConfigError("\n".join(problems))


def _pipeline(file: File, stem: str) -> Pipeline | None:
    data = file.tree.data
    known = ("policy", "phases", *REPLACED, *MERGED, *Top.model_fields)
    for key in data:
        if key not in known:
            file.report((key,), unknown("key", key, known))
    said = {key: data[key] for key in Top.model_fields if data.get(key) is not None}
    top = check(Top, said, file.folder, file.report)
    if top is not None and top.folder is not None:
        file.folder = top.folder

    policy = None
    if (keys := file.find((), "policy")) is None:
        file.report((), "`policy` is missing: the model to train, for instance `policy: table`")
    else:
        policy = file.item(keys, "policy")
    for key in REPLACED:  # checked even where every phase replaces it
        if (keys := file.find((), key)) is not None and not inherit.is_origin(data[key]):
            file.items(keys, key)
    read: list[Phase | None] = []
    names: list[str] = []
    for scope in _scopes(file):
        read.append(inherit.read(file, scope, names))  # adds its name
    sound = tuple(phase for phase in read if phase is not None)
    if top is None or policy is None or len(sound) < len(read):
        return None
    return Pipeline(
        stem=stem,
        policy=policy,
        phases=sound,
        repeat=top.repeat,
        seed=top.seed,
        device=top.device,
        deterministic=top.deterministic,
        checkpoints=top.checkpoints,
        resolved={**data, "seed": top.seed, "folder": str(file.folder)},
    )


def _scopes(file: File) -> list[Keys]:
    """The path of each phase; a file without `phases` is one phase itself."""
    if "phases" not in file.tree.data:
        return [()]
    listed = file.tree.data["phases"]
    if not isinstance(listed, list) or not listed:
        file.report(("phases",), f"expected a list of phases, found {found(listed)}")
        return []
    scopes: list[Keys] = []
    for index, phase in enumerate(listed):
        if isinstance(phase, dict):
            _check_keys(file, ("phases", index))
            scopes.append(("phases", index))
        else:
            file.report(("phases", index), f"expected a mapping, found {found(phase)}")
    return scopes


def _check_keys(file: File, scope: Keys) -> None:
    known = ("name", *REPLACED, *MERGED)
    for key in file.tree.at(scope):
        if key == "policy":
            reason = "a phase cannot name another policy: every phase goes on training the one at the top"
            file.report((*scope, key), reason)
        elif key in Top.model_fields:
            file.report((*scope, key), "is said once, at the top of the file, not in a phase")
        elif key not in known:
            file.report((*scope, key), unknown("key", key, known))
