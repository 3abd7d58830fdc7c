"""Checkpoints: everything a resumed run must know, in a folder that is there whole or not at all.

    checkpoints/00000012/
        models/<name>.safetensors      weights
        models/<name>/shard-…          what of them is cut over several processes: each one's pieces (records.shards)
        optimiser/shard-…              the same of the optimiser
        optimiser.safetensors          tensors of the other parts (no file where a part has none)
        components.safetensors
        state.json                     everything that is no tensor: where the run stands, and its draws
        manifest.json                  size and SHA-256 of each file, and a checksum of its own

A checkpoint is written under a temporary name, forced to the disk, and then renamed: a killed writer
leaves a `.tmp-…` folder that the next one clears. An old one is renamed to `.old-…` before it is deleted,
because a deletion that is killed half-way would leave a folder that looks like a checkpoint.

Here is the form; `running.checkpointing` says what a run puts into it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from rlalign import nested
from rlalign.errors import CheckpointError, RLAlignError, describe_error
from rlalign.records.files import StrPath, read_bytes, read_json
from rlalign.records.manifest import FORMAT, checksum_of, damage, fingerprint, read_manifest, read_or_empty
from rlalign.records.rundir import sync
from rlalign.records.sums import Saved, SavedShape
from rlalign.records.tensors import load_tensors, save_tensors, split_state

PARTS = ("optimiser", "components", "loop")

_OURS = re.compile(r"(\.tmp-|\.old-)?([0-9]{8,18})")


class _State(BaseModel):
    optimiser: Any
    components: Any
    loop: Any
    logs: dict[str, SavedShape]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as it was read."""

    index: int
    path: Path
    models: Mapping[str, tuple[int, dict[str, Tensor]]]
    """Version and weights of each model, by name."""
    optimiser: Any
    components: Any
    loop: Any
    logs: Mapping[str, Saved]


def write(
    folder: StrPath,
    index: int,
    *,
    models: Mapping[str, tuple[int, Mapping[str, Tensor] | None]],
    optimiser: Any,
    components: Any,
    loop: Any,
    logs: Mapping[str, Saved],
    last: int,
    best: int | None = None,
    previous: int | None = None,
    go_on: Callable[[], None] = lambda: None,
    pieces: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """Write checkpoint `index` into the folder `checkpoints`, and keep the `last` ones and the best of each of them.

    `best` is the checkpoint of the best evaluation so far, if there is one; it may be this one.

    `previous` is the checkpoint this run wrote, or was resumed from, last. A model of the same name and
    version there is linked instead of written again, so frozen models cost nothing, and of those that `unchanged`
    names no weights need be given (None); a file that turns out to hold what another of this checkpoint or of that
    one holds becomes a link to it. Checkpoints from `index` on belong to a course the run has left (it was resumed
    from an earlier one), and are deleted.

    `pieces` are files that lie there already, since `begin`: those of tensors that are cut over several processes.

    `go_on` is called before each file, and before the checkpoint gets its name; what it raises gives the checkpoint up.
    """
    assert previous is None or previous < index, f"checkpoint {index} after {previous}"
    folder = Path(folder)
    path = _path(folder, index)
    parts = {"optimiser": optimiser, "components": components, "loop": loop}
    split = {name: split_state(state, name) for name, state in parts.items()}
    state = {name: tree for name, (_, tree) in split.items()}
    temporary, made = folder / f".tmp-{path.name}", False
    try:
        if pieces is None:
            begin(folder, index)
        made = True
        before = {} if previous is None else read_or_empty(_path(folder, previous))
        files: dict[str, dict[str, Any]] = {**(pieces or {})}
        stored = {
            about["sha256"]: _path(folder, before["index"]) / file
            for file, about in before.get("files", {}).items()
            if file.startswith("models/") and file.count("/") == 1
        }
        for name, (version, weights) in models.items():
            go_on()
            file = _file_of(name)
            if _is_there(folder, before, name, version):
                for each in _files_of(name, before):
                    (temporary / each).parent.mkdir(exist_ok=True)
                    _link(_path(folder, before["index"]) / each, temporary / each)
                    files[each] = before["files"][each]
            elif weights is None:
                raise OSError(ENOENT, f"the file {file} of the one before is gone")
            else:
                save_tensors(temporary / file, weights)
                files[file] = fingerprint(temporary / file)
                _store_once(temporary / file, files[file], stored)
        for name, (tensors, _) in split.items():
            if tensors:
                go_on()
                file = f"{name}.safetensors"
                save_tensors(temporary / file, tensors)
                files[file] = fingerprint(temporary / file)
        (temporary / "state.json").write_text(json.dumps({**state, "logs": dict(logs)}))
        files["state.json"] = fingerprint(temporary / "state.json")
        versions = {name: version for name, (version, _) in models.items()}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "index": index,
            "best": best,
            "models": versions,
            "files": files,
        }
        manifest["checksum"] = checksum_of(manifest)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        folders = {str(parent) for file in files for parent in Path(file).parents}
        for written in (*files, "manifest.json", *sorted(folders, reverse=True)):
            sync(temporary / written)
        go_on()
        os.rename(temporary, path)
        sync(folder)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error
    finally:
        if made:
            shutil.rmtree(temporary, ignore_errors=True)
    kept = find(folder)[-last:]
    bests = {best_of(folder, i) for i in kept}
    for old in find(folder):
        if old not in kept and old not in bests:
            _discard(_path(folder, old))
    return path


def begin(folder: Path, index: int) -> None:
    """Make the folder that becomes checkpoint `index`."""
    folder.mkdir(exist_ok=True)
    settle(folder, index - 1)
    (folder / f".tmp-{_path(folder, index).name}" / "models").mkdir(parents=True)


@contextmanager
def writing(folder: Path, index: int) -> Iterator[Path]:
    """The folder that becomes a checkpoint, while several processes write into it."""
    path = _path(folder, index)
    try:
        yield folder / f".tmp-{path.name}"
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error


def give_up(folder: Path, index: int) -> None:
    """Delete what was written of checkpoint `index`: on a full disk it is room that somebody needs."""
    shutil.rmtree(folder / f".tmp-{_path(folder, index).name}", ignore_errors=True)


def unchanged(folder: StrPath, previous: int | None, versions: Mapping[str, int]) -> set[str]:
    """The models that a checkpoint after `previous` need not write, as that one has them at the same version."""
    before = {} if previous is None else read_or_empty(_path(Path(folder), previous))
    return {name for name, version in versions.items() if _is_there(Path(folder), before, name, version)}


def find(folder: StrPath) -> list[int]:
    """The checkpoints in a folder, oldest first."""
    return sorted(index for kind, index, _ in _found(Path(folder)) if kind is None)


def best_of(folder: StrPath, index: int) -> int | None:
    """The checkpoint of the best evaluation so far, as it was at `index`."""
    best: int | None = read_or_empty(_path(Path(folder), index)).get("best")
    return best


def settle(folder: StrPath, index: int) -> None:
    """Make `index` the last checkpoint: later ones, and what killed writers left, are deleted."""
    folder = Path(folder)
    for kind, _, left in list(_found(folder)):
        if kind is not None:
            shutil.rmtree(left)
    for later in [i for i in find(folder) if i > index]:
        _discard(_path(folder, later))


def _found(folder: Path) -> Iterator[tuple[str | None, int, Path]]:
    """The real folders in it whose names this module gives: (`.tmp-`, `.old-` or None, checkpoint, path)."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        named = _OURS.fullmatch(entry.name)
        if (
            named
            and _path(folder, int(named[2])).name == named[2]
            and not entry.is_symlink()
            and entry.is_dir()
        ):
            yield named[1], int(named[2]), entry


def read(folder: StrPath, index: int) -> Checkpoint:
    """Read a checkpoint, having compared every file with its manifest."""
    folder = Path(folder)
    path = _path(folder, index)
    wrong = damage(path)
    if wrong is not None:
        raise CheckpointError(f"{wrong}\n{_remedy(folder, index)}")
    manifest = read_manifest(path)
    state = read_json(path / "state.json", _State)

    def load(file: str) -> dict[str, Tensor]:
        return load_tensors(path / file) if file in manifest["files"] else {}

    with fitting(path):
        models = {name: (version, load(_file_of(name))) for name, version in manifest["models"].items()}
        parts = {name: nested.join(load(f"{name}.safetensors"), state[name]) for name in PARTS}
    return Checkpoint(index, path, models, **parts, logs=state["logs"])


def loop_of(folder: StrPath, index: int) -> Any:
    """Where the run stood, of a checkpoint whose weights are not read."""
    path = _path(Path(folder), index)
    file = path / "loop.safetensors"
    return nested.join(
        load_tensors(file) if file.exists() else {}, read_json(path / "state.json", _State)["loop"]
    )


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """What a checkpoint holds is taken up here: whatever goes wrong, it does not fit this run."""
    try:
        yield
    except (RLAlignError, OSError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: does not fit this run ({describe_error(error)}): it was edited, or written by other components. "
            "Put the run back from a copy, or start it again."
        ) from error


def log_sums(folder: StrPath, index: int) -> dict[str, Saved]:
    """The logs as they were at a checkpoint, without reading its models."""
    path = _path(Path(folder), index)
    manifest, file = read_manifest(path), path / "state.json"
    read_bytes(file)
    if fingerprint(file) != manifest["files"]["state.json"]:
        raise CheckpointError(f"{file}: is not what was written: it was edited.")
    sums: dict[str, Saved] = read_json(file, _State)["logs"]
    return sums


def whole_before(folder: StrPath, index: int) -> int | None:
    """The newest checkpoint before `index` that is whole."""
    earlier = (i for i in reversed(find(folder)) if i < index)
    return next((i for i in earlier if damage(_path(Path(folder), i)) is None), None)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:08d}"


def _file_of(model: str) -> str:
    return f"models/{model}.safetensors"


def _files_of(model: str, manifest: Mapping[str, Any]) -> list[str]:
    """Its file, and those of its pieces."""
    return [
        file for file in manifest["files"] if file == _file_of(model) or file.startswith(f"models/{model}/")
    ]


def _is_there(folder: Path, manifest: Mapping[str, Any], name: str, version: int) -> bool:
    """Whether an earlier checkpoint has this model as it is now, by its version."""
    if not manifest or manifest["models"].get(name) != version:
        return False
    there = _path(folder, manifest["index"])
    return all(
        (there / file).is_file() and (there / file).stat().st_size == manifest["files"][file]["size"]
        for file in _files_of(name, manifest)
    )


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, to)


def _store_once(file: Path, found: Mapping[str, Any], stored: dict[str, Path]) -> None:
    """Let a file that holds what another does be a link to that one; `stored` are files by their SHA-256."""
    same = stored.setdefault(found["sha256"], file)
    if same == file or not same.is_file() or same.stat().st_size != found["size"]:
        return
    with suppress(
        OSError
    ):  # no hard links on this file system, or no more of them: it stays a file of its own
        os.link(same, file.with_suffix(".same"))
        os.replace(file.with_suffix(".same"), file)


def _discard(path: Path) -> None:
    aside = path.with_name(f".old-{path.name}")
    os.rename(path, aside)
    sync(path.parent)
    shutil.rmtree(aside)


def _remedy(folder: Path, index: int) -> str:
    earlier = whole_before(folder, index)
    if earlier is None:
        return "No earlier checkpoint is whole: start the run again, or put the file back."
    return (
        f"The checkpoint {earlier:08d} before it is whole: "
        f"go on from there with `rlalign run --resume {folder.parent} --previous`."
    )


def _unwritten(path: Path, error: Exception) -> RLAlignError:
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    kept = find(path.parent)
    intact = f"The one before it, {kept[-1]:08d}, is intact" if kept else "There is no earlier one"
    return RLAlignError(
        f"{path}: the checkpoint could not be written: {getattr(error, 'strerror', None) or error} "
        f"({free / 2**20:,.1f} MiB were free). {intact}: fix this and go on with "
        f"`rlalign run --resume {path.parent.parent}`."
    )
