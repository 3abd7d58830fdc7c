"""Which tables make up a split: files by their names, a folder's layout, or a dataset on the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from glob import escape
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

from rlalign import ConfigError
from rlalign_plugin_dataset.limits import MOST_FILES
from rlalign_plugin_dataset.lines import side_by_side
from rlalign_plugin_dataset.opening import ENDINGS, PACKED, SHEETS, TEXT, is_data, no_table, open_file
from rlalign_plugin_dataset.remote import Remote, looked_up, plain, unreached
from rlalign_plugin_dataset.tables import Encoding, Hub, Table, ending, extra, is_packed, stem

Sources = dict[str, list[Table]]
P = TypeVar("P", bound=PurePath)

_ALIASES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_KNOWN = {"train", "val", "test", *_ALIASES}
_SHARD = re.compile(r"-\d+-of-\d+$")
SPLIT = "{split}"
"""In names of files: what stands there is the split."""
_NO_DATA = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json")


def canonical(split: str) -> str:
    """`validation`, `valid` and `dev` are `val`."""
    return _ALIASES.get(split, split)


def pick(split: str, known: Mapping[str, Any]) -> str | None:
    """The name under which a split is there."""
    if split in known:
        return split
    return next((name for name in known if canonical(name) == canonical(split)), None)


def local(
    path: Path,
    named: Mapping[str, Sequence[str]],
    delimiter: str | None = None,
    encoding: Encoding = "utf-8",
    *,
    ignore: Collection[str] = (),
) -> Sources:
    """The tables of a file or folder by split; `named` says which files a split is made of, `ignore` which are none."""
    if not path.exists():
        close = _near(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: there is no such file or folder{close}")
    if not path.is_file() and not path.is_dir():
        raise ConfigError(
            f"{path}: is a pipe or a device, neither a file nor a folder; write the data to a file first"
        )
    if path.is_file():
        return {
            split: [open_file(file, _relative(file, path.parent), delimiter, encoding) for file in files]
            for split, files in _beside(path, named).items()
        }
    if any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        if named:
            raise ConfigError(
                f"{path} was written by `save_to_disk` and has its own splits; leave out `splits`"
            )
        library = extra("datasets", "hub", f"{path} was written by the `datasets` library")
        return _of_library(library.load_from_disk(str(path)), path.name)
    chosen = {split: _matching(path, patterns) for split, patterns in named.items()}
    chosen = chosen or _layout(path, within(path), ignore)
    return {
        split: [open_file(file, _relative(file, path), delimiter, encoding) for file in files]
        for split, files in chosen.items()
    }


def remote(
    url: str,
    named: Mapping[str, Sequence[str]],
    delimiter: str | None = None,
    encoding: Encoding = "utf-8",
) -> Sources:
    """The tables of a file or folder at an address, by split, named as on this machine."""
    if url.startswith("file://"):
        return local(Path(url.removeprefix("file://")), named, delimiter, encoding)
    url = url.rstrip("/")
    fs, path, there = looked_up(extra("fsspec", "remote", f"{url} is an address"), url)
    folder = path if there is not None else _folder_of(path)
    home = url if there is not None else _folder_of(url)

    def matching(patterns: Sequence[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            _require_within(Path(home), pattern, "splits")
            name = f"{folder}/{pattern}"
            matches = sorted(fs.glob(name)) if set(pattern) & set("*?[") else [name] * fs.isfile(name)
            if not matches:
                raise ConfigError(f"{plain(home)}: no file `{pattern}`")
            found += [str(match) for match in matches if str(match) not in found]
        return found

    try:
        chosen = {split: matching(patterns) for split, patterns in named.items()}
    except OSError as error:
        raise unreached(home, error) from error
    if there is None and not any(path in files for files in chosen.values()):
        chosen = {"train": [path], **chosen}
    elif not chosen:
        layout = _layout(PurePosixPath(folder), set(there or ()), ())
        chosen = {split: [str(file) for file in files] for split, files in layout.items()}

    def table(file: str) -> Table:
        name = file.removeprefix(f"{folder}/")
        shown = plain(f"{home}/{name}").removeprefix(f"{plain(home)}/")
        return open_file(Remote(fs, file, f"{home}/{name}"), shown, delimiter, encoding)

    return {split: [table(file) for file in files] for split, files in chosen.items()}


def _folder_of(address: str) -> str:
    """What a file lies in. What is asked of a web server beside the name may hold a `/` too."""
    end = len(address)
    if address.lower().startswith(("http://", "https://")):
        end = len(address.partition("?")[0])
    return address[: address.rindex("/", 0, end)] if "/" in address[:end] else ""


def hub(
    name: str,
    subset: str | None,
    revision: str | None,
    named: Mapping[str, Sequence[str]],
    *,
    folder: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Sources:
    """The splits of a dataset on the hub, or in the cache the `datasets` library keeps of it.

    `folder` is the folder of it to read. `files` are its files by split: what must be said of a dataset that
    is described by a script, which `datasets` no longer runs.
    """
    library = extra("datasets", "hub", f"`hub: {name}` is a dataset on the hub")
    readers = getattr(getattr(library, "packaged_modules", None), "_PACKAGED_DATASETS_MODULES", ())
    if name in readers:  # one of the library's own, which would read the files of this machine
        raise ConfigError(f"hub: {name}: is no dataset on the hub but a reader of local files; give `path`")
    try:
        if files is None:
            how = {} if folder is None else {"data_dir": folder}
            found = library.load_dataset(name, name=subset, revision=revision, **how)
        else:
            home = f"hf://datasets/{name}" + (f"@{revision}" if revision else "")
            reader = "parquet" if all(f.endswith(".parquet") for f in files.values()) else "json"
            found = library.load_dataset(reader, data_files={s: f"{home}/{f}" for s, f in files.items()})
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(f"hub: {name}: cannot be loaded: {type(error).__name__}: {said}") from error
    sources = _of_library(found, name if folder is None else f"{name}/{folder}")
    return _made_up_of(sources, named, f"hub: {name}") if named else sources


def lines(
    folder: Path, files: Mapping[str, str], named: Mapping[str, Sequence[str]], encoding: Encoding = "utf-8"
) -> Sources:
    """The splits of files of one text a line that stand side by side: `files` says which hold each column.

    `{split}` in their names stands for the split; without it there is one, `train`.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: `lines` names files in a folder, and this is none")
    for file in files.values():
        _require_within(folder, file, "lines")
    found = {
        name: side_by_side(folder, {c: f.replace(SPLIT, name) for c, f in files.items()}, encoding)
        for name in _names(folder, files)
    }
    if named:
        return _made_up_of({name: [table] for name, table in found.items()}, named, str(folder))
    sources: Sources = {}
    for name, table in found.items():
        sources.setdefault(_word(name) or name, []).append(table)
    return sources


def _names(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What `{split}` stands for: all for which every column has its file."""
    first = next(iter(files.values()))
    before, mark, after = first.partition(SPLIT)
    names = ["train"]
    if mark:
        matches = islice(folder.glob(f"{escape(before)}*{escape(after)}"), MOST_FILES)
        parts = sorted(_relative(match, folder) for match in matches if match.is_file())
        names = [part.removeprefix(before).removesuffix(after) for part in parts]
    if not names:
        raise ConfigError(f"{folder}: holds no file `{first}`")
    for name in names:
        for pattern in files.values():
            if not (folder / pattern.replace(SPLIT, name)).is_file():
                raise ConfigError(f"{folder}: holds no file `{pattern.replace(SPLIT, name)}`")
    return names


def _made_up_of(sources: Sources, named: Mapping[str, Sequence[str]], where: str) -> Sources:
    """Splits made up of others."""
    missing = [s for wanted in named.values() for s in wanted if pick(s, sources) is None]
    if missing:
        near = _near(missing[0], sources)
        raise ConfigError(f"{where}: has no split `{missing[0]}`{near} (splits: {', '.join(sources)})")
    return {
        split: [t for s in wanted for t in sources[str(pick(s, sources))]] for split, wanted in named.items()
    }


def _of_library(found: Any, name: str) -> Sources:
    if not hasattr(found, "keys"):
        found = {str(getattr(found, "split", None) or "train"): found}
    return {split: [Hub(found[split], f"{name}/{split}")] for split in found}


def _beside(path: Path, named: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """The file is `train`, and other splits are files beside it; or it is a split that `named` says it is."""
    found = {split: _matching(path.parent, patterns) for split, patterns in named.items()}
    if any(path in files for files in found.values()):
        return found
    if "train" in found:
        raise ConfigError(
            f"{path}: `path` is a file and `splits` says that `train` is another; leave `train` out of `splits`, "
            f"or say `path: {path.parent}`"
        )
    return {"train": [path], **found}


SHOWN = 12
"""Files that a message names."""


def _layout(folder: P, there: set[P], ignore: Collection[str]) -> dict[str, list[P]]:
    """Split → files, from file names and folders: `train.jsonl`, `test-00000-of-00002.parquet`, `val/a.csv`."""
    files = sorted(
        p
        for p in there
        if is_data(p)
        and (not isinstance(p, Path) or p.is_file())
        and not (is_packed(p) and p.with_suffix("") in there)  # `gunzip -k` leaves both
        and not _NO_DATA.fullmatch(p.name)
        and p.name not in ignore
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not files:
        other = next((p for p in sorted(there) if ending(p) in (*PACKED, *SHEETS, TEXT)), None)
        hint = f"; {_relative(other, folder)}: {no_table(_relative(other, folder))}" if other else ""
        raise ConfigError(f"{folder}: holds no data files ({', '.join(ENDINGS)}){hint}")
    splits: dict[str, list[P]] = {}
    for file in files:
        splits.setdefault(_split_of(file, folder), []).append(file)
    if len(splits) == 1 and not set(splits) & {"train", "val", "test"}:
        splits = {"train": files}
    for split, parts in splits.items():
        formats = sorted({ending(p) for p in parts})
        if len(formats) > 1:
            raise ConfigError(
                f"{folder}: `{split}` is there as {' and as '.join(formats)}; say which, for instance "
                f"`splits: {{{split}: {_relative(parts[0], folder)}}}`"
            )
    return splits


def within(folder: Path) -> set[Path]:
    """All that a folder and its folders hold, if it is not too much."""
    there = set(islice(folder.rglob("*"), MOST_FILES + 1))
    if len(there) > MOST_FILES:
        raise ConfigError(
            f"{folder}: holds more than {MOST_FILES:,} files; name the folder of the data alone"
        )
    return there


def _split_of(file: PurePath, folder: PurePath) -> str:
    name = _SHARD.sub("", stem(file))
    parts = file.relative_to(folder).parts[:-1]
    return next((word for part in (name, *reversed(parts)) if (word := _word(part))), name)


def _word(name: str) -> str | None:
    """The split that a name speaks of: `my_test`, `devset`."""
    words = (word.removesuffix("set") for word in re.split(r"[-_. ]", name.lower()))
    return next((canonical(word) for word in words if word in _KNOWN), None)


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        _require_within(folder, pattern, "splits")
        matches = sorted(p for p in folder.glob(pattern) if p.is_file())
        if not matches:
            beside = islice(folder.rglob("*") if "/" in pattern else folder.iterdir(), MOST_FILES)
            there = sorted(_relative(p, folder) for p in beside if is_data(p))
            listed = ", ".join(there[:SHOWN]) + (", …" if len(there) > SHOWN else "")
            raise ConfigError(
                f"{folder}: no file `{pattern}`{_near(pattern, there)} (there are: {listed or 'none'})"
            )
        files += [p for p in matches if p not in files]
    return files


def _require_within(folder: Path, name: str, option: str) -> None:
    if Path(name).is_absolute():
        raise ConfigError(f"{option}: {name}: give the name within {folder}")


def _relative(file: PurePath, folder: PurePath) -> str:
    return file.relative_to(folder).as_posix()


def _near(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean `{close[0]}`?" if close else ""
