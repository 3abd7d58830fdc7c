"""Which kind of table a file is, by its ending and its first bytes; and what to do with one that is none."""

from __future__ import annotations

import csv
from pathlib import Path, PurePath

from rlalign import ConfigError
from rlalign_plugin_dataset.csv_files import Csv
from rlalign_plugin_dataset.json_files import JsonLines, JsonList
from rlalign_plugin_dataset.limits import LONGEST_ROW
from rlalign_plugin_dataset.lines import Lines
from rlalign_plugin_dataset.parquet_files import Parquet
from rlalign_plugin_dataset.remote import Remote
from rlalign_plugin_dataset.tables import BOM, Encoding, File, ending, is_packed, opened

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Of files that are data wherever they lie."""
TEXT = ".txt"
PACKED = {".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd", ".zip": "unzip"}
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
POINTER = b"version https://git-lfs"
DELIMITERS = ",;\t"


def open_file(
    path: Path | Remote, name: str, delimiter: str | None = None, encoding: Encoding = "utf-8"
) -> File:
    """The table in a file; its ending says what it is."""
    suffix = ending(path)
    if not is_data(path) and suffix != TEXT:
        raise ConfigError(f"{name}: {no_table(name)}")
    with opened(path, name) as file:
        begin = file.read(4096)
    if begin.startswith(POINTER):
        raise ConfigError(f"{name}: this is a pointer of Git LFS and not the data: `git lfs pull` fetches it")
    if suffix != ".parquet" and begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(
            f"{name}: UTF-16, and UTF-8 is read: `iconv -f UTF-16 -t UTF-8 {name} > NEW` makes one"
        )
    if suffix in (".csv", ".tsv"):
        by = delimiter or ("\t" if suffix == ".tsv" else _delimiter(path, name, encoding))
        return Csv(path, name, by, encoding=encoding)
    if suffix == ".parquet":
        return Parquet(path, name)
    if suffix == TEXT:
        return Lines(path, name, encoding)
    is_list = begin.removeprefix(BOM).lstrip()[:1] == b"["
    return (JsonList if is_list else JsonLines)(path, name, encoding)


def is_data(path: PurePath | Remote) -> bool:
    """Whether a file's name says that it holds rows."""
    return ending(path) in ENDINGS and not (ending(path) == ".parquet" and is_packed(path))


def no_table(name: str) -> str:
    """What to do with a file of another kind."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in PACKED:
        return f"packed files but `.gz` are not read; `{PACKED[suffix]} {name}` unpacks it"
    if suffix in SHEETS:
        return "a spreadsheet is not read; save it as `CSV UTF-8`"
    if ending(path) == TEXT:
        return (
            f"a folder's texts are read, a row a line, where they are named: `splits: {{train: {name}}}`, or `lines`; "
            "the README of `dataset` shows how, and what to do with one text a file"
        )
    if is_packed(path) and ending(path) == ".parquet":
        return f"Parquet is packed within; `gunzip -k {name}` unpacks it"
    what = f"`{suffix}` files hold" if suffix else "a file without an ending holds"
    return f"cannot tell what {what}; there are {', '.join((*ENDINGS, TEXT))}, all but Parquet also with .gz"


def _delimiter(path: Path | Remote, name: str, encoding: Encoding) -> str:
    """What parts the header into most columns; the comma, if others do no better."""
    with opened(path, name) as file:
        header = file.readline(LONGEST_ROW).removeprefix(BOM).decode(encoding, "replace")
    try:
        return max(DELIMITERS, key=lambda by: len(next(csv.reader([header], delimiter=by), [])))
    except csv.Error:
        return ","
