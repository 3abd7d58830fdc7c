"""Which kind of table a file is, by its ending and its first bytes; and what to do with one that is none."""

from __future__ import annotations

import csv
from pathlib import Path

from rlalign import ConfigError
from rlalign_plugin_dataset.csv_files import Csv
from rlalign_plugin_dataset.json_files import JsonLines, JsonList
from rlalign_plugin_dataset.limits import LONGEST_ROW
from rlalign_plugin_dataset.parquet_files import Parquet
from rlalign_plugin_dataset.tables import BOM, File

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd", ".zip": "unzip"}
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
POINTER = b"version https://git-lfs"
DELIMITERS = ",;\t"


def open_file(path: Path, name: str, delimiter: str | None) -> File:
    """The table in a file; its ending says what it is."""
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        raise ConfigError(f"{name}: {no_table(name)}")
    with path.open("rb") as file:
        begin = file.read(4096)
    if begin.startswith(POINTER):
        raise ConfigError(f"{name}: this is a pointer of Git LFS and not the data: `git lfs pull` fetches it")
    if suffix != ".parquet" and begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(
            f"{name}: UTF-16, and UTF-8 is read: `iconv -f UTF-16 -t UTF-8 {name} > NEW` makes one"
        )
    if suffix in (".csv", ".tsv"):
        return Csv(path, name, delimiter or ("\t" if suffix == ".tsv" else _delimiter(path)))
    if suffix == ".parquet":
        return Parquet(path, name)
    return (JsonList if begin.removeprefix(BOM).lstrip()[:1] == b"[" else JsonLines)(path, name)


def no_table(name: str) -> str:
    """What to do with a file of another kind."""
    suffix = Path(name).suffix.lower()
    if suffix in PACKED:
        return f"packed files are not read; `{PACKED[suffix]} {name}` unpacks it"
    if suffix in SHEETS:
        return "a spreadsheet is not read; save it as `CSV UTF-8`"
    if suffix == ".txt":
        return 'text has no rows: write JSON lines, {"prompt": "…"}; the README of `dataset` shows how'
    what = f"`{suffix}` files hold" if suffix else "a file without an ending holds"
    return f"cannot tell what {what}; there are {', '.join(ENDINGS)}"


def _delimiter(path: Path) -> str:
    """What parts the header into most columns; the comma, if others do no better."""
    with path.open("rb") as file:
        header = file.readline(LONGEST_ROW).removeprefix(BOM).decode("utf-8", "replace")
    try:
        return max(DELIMITERS, key=lambda by: len(next(csv.reader([header], delimiter=by), [])))
    except csv.Error:
        return ","
