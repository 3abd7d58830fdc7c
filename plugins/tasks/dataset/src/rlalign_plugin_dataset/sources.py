"""Which tables make up a split: files by their names, a folder's layout, or a dataset on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign_plugin_dataset.tables import ENDINGS, Hub, Table, extra, open_file

Sources = dict[str, list[Table]]

_ALIASES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_KNOWN = {"train", "val", "test", *_ALIASES}
_SHARD = re.compile(r"-\d+-of-\d+$")
_NO_DATA = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json")


def canonical(split: str) -> str:
    """`validation`, `valid` and `dev` are `val`."""
    return _ALIASES.get(split, split)


def pick(split: str, known: Mapping[str, Any]) -> str | None:
    """The name under which a split is there."""
    if split in known:
        return split
    return next((name for name in known if canonical(name) == canonical(split)), None)


def local(path: Path, named: Mapping[str, Sequence[str]], delimiter: str | None) -> Sources:
    """The tables of a file or folder by split; `named` says which files a split is made of."""
    if not path.exists():
        close = _near(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: there is no such file or folder{close}")
    if path.is_file():
        if named:
            raise ConfigError(
                f"{path} is a file: `splits` takes shares of it (`train: 0.9`), or give `path` the folder"
            )
        return {"train": [open_file(path, path.name, delimiter)]}
    if any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        if named:
            raise ConfigError(
                f"{path} was written by `save_to_disk` and has its own splits; leave out `splits`"
            )
        library = extra("datasets", "hub", f"{path} was written by the `datasets` library")
        return _of_library(library.load_from_disk(str(path)), path.name)
    chosen = {split: _matching(path, patterns) for split, patterns in named.items()} or _layout(path)
    return {
        split: [open_file(file, _relative(file, path), delimiter) for file in files]
        for split, files in chosen.items()
    }


def hub(name: str, subset: str | None, revision: str | None, named: Mapping[str, Sequence[str]]) -> Sources:
    """The splits of a dataset on the hub, or in the cache the `datasets` library keeps of it."""
    library = extra("datasets", "hub", f"`hub: {name}` is a dataset on the hub")
    try:
        found = library.load_dataset(name, name=subset, revision=revision)
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(f"hub: {name}: cannot be loaded: {type(error).__name__}: {said}") from error
    sources = _of_library(found, name)
    if not named:
        return sources
    missing = [s for wanted in named.values() for s in wanted if pick(s, sources) is None]
    if missing:
        raise ConfigError(
            f"hub: {name}: has no split `{missing[0]}`{_near(missing[0], sources)} (splits: {', '.join(sources)})"
        )
    return {
        split: [t for s in wanted for t in sources[str(pick(s, sources))]] for split, wanted in named.items()
    }


def _of_library(found: Any, name: str) -> Sources:
    if not hasattr(found, "keys"):
        found = {str(getattr(found, "split", None) or "train"): found}
    return {split: [Hub(found[split], f"{name}/{split}")] for split in found}


def _layout(folder: Path) -> dict[str, list[Path]]:
    """Split → files, from file names and folders: `train.jsonl`, `test-00000-of-00002.parquet`, `val/a.csv`."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in ENDINGS
        and p.is_file()
        and not _NO_DATA.fullmatch(p.name)
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not files:
        raise ConfigError(f"{folder}: holds no data files ({', '.join(ENDINGS)})")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, folder), []).append(file)
    if len(splits) == 1 and not set(splits) & {"train", "val", "test"}:
        splits = {"train": files}
    for split, parts in splits.items():
        formats = sorted({p.suffix for p in parts})
        if len(formats) > 1:
            raise ConfigError(
                f"{folder}: `{split}` is there as {' and as '.join(formats)}; say which, for instance "
                f"`splits: {{{split}: {_relative(parts[0], folder)}}}`"
            )
    return splits


def _split_of(file: Path, folder: Path) -> str:
    stem = _SHARD.sub("", file.stem)
    parts = file.relative_to(folder).parts[:-1]
    for part in (stem, *reversed(parts)):
        for word in re.split(r"[-_. ]", part.lower()):
            if word in _KNOWN:
                return canonical(word)
    return stem


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        if Path(pattern).is_absolute():
            raise ConfigError(f"splits: {pattern}: give the name within {folder}")
        matches = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not matches:
            there = [_relative(p, folder) for p in sorted(folder.rglob("*")) if p.suffix.lower() in ENDINGS]
            raise ConfigError(
                f"{folder}: no file `{pattern}`{_near(pattern, there)} (there are: {', '.join(there) or 'none'})"
            )
        files += [p for p in matches if p not in files]
    return files


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _near(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean `{close[0]}`?" if close else ""
