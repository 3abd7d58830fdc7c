"""Turns a pipeline file into types, and checks everything before a model loads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlalign.config import inherit, places
from rlalign.config.file import File
from rlalign.config.overrides import alternative, interpolate, override, shadowed
from rlalign.config.pipeline import (
    MERGED_SECTIONS,
    REPLACED_SECTIONS,
    Phase,
    Pipeline,
    PipelineSettings,
    without_observers,
)
from rlalign.config.places import Keys
from rlalign.config.registry import Registry
from rlalign.config.validate import check
from rlalign.config.words import did_you_mean, found, unknown
from rlalign.config.written_out import refuse_written_out
from rlalign.data import limits
from rlalign.errors import ConfigError

MOST_SHOWN = 20
"""Problems listed at once."""


def load_pipeline(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    seed: int | None = None,
    registry: Registry | None = None,
    text: str | Mapping[str, Any] | None = None,
    said: str = "command line",
    observers: bool = True,
) -> Pipeline:
    """The pipeline in a file, or in `text` as if the file held it, after `key=value` overrides.

    `text` may be the data itself, which has no lines; `said` is where overrides come from, for messages. Without
    `observers` what the file says of them is left unread.

    Everything is checked; one ConfigError lists all that is wrong.
    """
    path = Path(path)
    if isinstance(text, Mapping):
        tree = places.Tree(dict(text), {(): str(path)})
    else:
        tree = places.read(pipeline_text(path) if text is None else text, str(path))
    if not observers:
        tree.data = without_observers(tree.data)
    folder, registry = path.absolute().parent, registry or Registry(trust=True)
    changed: list[tuple[str, Keys]] = []
    values: dict[Keys, str] = {}
    for one in overrides:
        try:
            keys = override(tree, one, said)
            changed.append((one, keys))
            if tree.at(keys) is not None:
                values[keys] = one
                if (other := values.get(alternative(keys) or ())) is not None:
                    raise ConfigError(
                        f"{said} ({one}): `{other}` says the same in another way; leave one of them out"
                    )
        except ConfigError as error:
            tree.problems.append(str(error))
    if seed is not None:
        tree.put(("seed",), seed, f"command line (--seed {seed})")
    refuse_written_out(tree)
    interpolate(tree, trust=registry.trust)
    places.Size().add_all(str(path), tree.data)
    for one, keys in changed:
        if shadowed(tree.data, keys):
            hint = f"say phases.NAME.{one}"
            tree.report(keys, f"every phase says this for itself, so nothing would change; {hint}")
    if "torch" not in sys.modules:  # components import it, which takes seconds: a misspelt key need not wait
        _pipeline(File(tree, folder, registry, unread=True), path.stem)
        if tree.problems:
            raise error_of(tree.problems)
    pipeline = _pipeline(File(tree, folder, registry), path.stem)
    if pipeline is None or tree.problems:
        raise error_of(tree.problems)
    return pipeline


def pipeline_text(path: Path) -> str:
    """What a pipeline file holds; ConfigError where that is no text, or too much."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the pipeline file")
    if path.exists() and not path.is_file():
        raise ConfigError(
            f"{path}: is no regular file but a pipe or a device; write the pipeline to a file first"
        )
    try:
        with path.open("rb") as file:
            read = file.read(limits.PIPELINE_BYTES + 1)
        if len(read) > limits.PIPELINE_BYTES:
            raise ConfigError(
                f"{path}: is longer than {limits.in_words(limits.PIPELINE_BYTES)}, which no pipeline is; "
                "what is large belongs in a data file"
            )
        return read.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        hint = did_you_mean(str(path), map(str, path.parent.glob("*.y*ml")))
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def error_of(problems: list[str]) -> ConfigError:
    """One error for all that is wrong with a file."""
    problems = list(dict.fromkeys(problems))  # phases that inherit a fault repeat it
    if len(problems) > MOST_SHOWN:
        problems[MOST_SHOWN:] = [f"… and {len(problems) - MOST_SHOWN} more"]
    return ConfigError("\n".join(problems))


def _pipeline(file: File, stem: str) -> Pipeline | None:
    data = file.tree.data
    known = ("policy", "phases", *REPLACED_SECTIONS, *MERGED_SECTIONS, *PipelineSettings.model_fields)
    for key in data:
        if key not in known:
            file.report((key,), unknown("key", key, known))
    said = {key: data[key] for key in PipelineSettings.model_fields if data.get(key) is not None}
    top, beside = check(PipelineSettings, said, file.folder, file.report), file.folder
    if top is not None and top.folder is not None:
        file.folder = top.folder

    policy = None
    if (keys := file.find((), "policy")) is None:
        file.report((), "`policy` is missing: the model to train, for instance `policy: table`")
    else:
        policy = file.item(keys, "policy")
    for key in REPLACED_SECTIONS:  # checked even where every phase replaces it
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
        **{**dict(top), "folder": file.folder},
        stem=stem,
        policy=policy,
        phases=sound,
        resolved=_written(file, top.seed, beside),
        environment=tuple(sorted(file.tree.variables)),
        places={key: file.tree.place((key,)) for key in said},
    )


def _written(file: File, seed: int, beside: Path) -> dict[str, Any]:
    """The tree as the run's folder keeps it: seed and folder are said even where the file left them out."""
    said: dict[str, Any] = file.tree.written()
    if ("seed",) not in file.tree.private:
        said["seed"] = seed
    if ("folder",) not in file.tree.private:
        said["folder"] = str(file.folder)
    elif not Path(file.tree.data["folder"]).expanduser().is_absolute():
        said["folder"] = places.Expression(f"{places.escape(str(beside))}/{said['folder']}")
    return said


def _scopes(file: File) -> list[Keys]:
    """The path of each phase; a file without `phases` is one phase itself."""
    if "phases" not in file.tree.data:
        return [()]
    listed = file.tree.data["phases"]
    if not isinstance(listed, list) or not listed:
        file.report(("phases",), f"expected a list of phases, found {found(listed)}")
        return []
    if len(listed) > limits.PHASES:
        file.report(("phases",), f"holds {len(listed):,} phases, more than {limits.PHASES:,}")
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
    known = ("name", *REPLACED_SECTIONS, *MERGED_SECTIONS)
    for key in file.tree.at(scope):
        if key == "policy":
            reason = "a phase cannot name another policy: every phase goes on training the one at the top"
            file.report((*scope, key), reason)
        elif key in PipelineSettings.model_fields:
            file.report((*scope, key), "is said once, at the top of the file, not in a phase")
        elif key not in known:
            file.report((*scope, key), unknown("key", key, known))
