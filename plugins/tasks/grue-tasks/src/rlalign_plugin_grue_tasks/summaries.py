"""NarrativeQA without its books: of the published files, in which each row repeats one, only the summaries are read."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign_plugin_dataset.tables import extra

HUB, REVISION = "deepmind/narrativeqa", "2e643e7363944af1c33a652d1c87320d0871c4e4"
FOLDER = "data/narrative-qa"
SPLITS = ("train", "validation", "test")
READ = ("document.id", "document.summary.text", "question.text")
"""Columns of the published files, beside the texts of `answers`."""
QAPS, SUMMARIES = "qaps.csv", "third_party/wikipedia/summaries.csv"
SOURCE = "source.txt"
OFFLINE = (
    "Without a network: run this command on a machine that has one and copy the folder that it writes; or `--from` "
    f"a folder that holds the hub's data/*.parquet, or the authors' {QAPS} and {SUMMARIES} "
    "(github.com/deepmind/narrativeqa)"
)


@dataclass(frozen=True)
class Part:
    """One published file: which split its rows belong to, and how they are read."""

    split: str
    name: str
    read: Callable[[], list[dict[str, Any]]]


def needed(paths: list[str]) -> list[str]:
    """Of a file's columns those that are read: no book, no list of tokens."""
    return [p for p in paths if p in READ or (p.startswith("answers.") and p.endswith(".text"))]


def of_parquet(file: Any, name: str) -> list[dict[str, Any]]:
    """The rows of a published file, a path or an open one; only the bytes of what is needed are read."""
    parquet = extra("pyarrow.parquet", "parquet", f"{name} is Parquet")
    with parquet.ParquetFile(file) as opened:
        schema = opened.schema
        columns = needed([schema.column(i).path for i in range(len(schema))])
        if not {*READ} <= {*columns} or len(columns) == len(READ):
            raise ConfigError(f"{name}: expected the columns {', '.join(READ)} and answers.….text")
        rows = opened.read(columns=columns).to_pylist()
    return [
        {
            "document_id": row["document"]["id"],
            "summary": row["document"]["summary"]["text"],
            "question": row["question"]["text"],
            "answers": [answer["text"] for answer in row["answers"]],
        }
        for row in rows
    ]


def on_the_hub(hub: str, revision: str) -> list[Part]:
    """The files of the hub, of which pieces are asked for."""
    library = extra("huggingface_hub", "hub", f"{hub} is a data set on the hub")
    files = library.HfFileSystem()
    place = f"datasets/{hub}@{revision}/data"
    try:
        names = sorted(files.glob(f"{place}/*.parquet"))
    except Exception as error:
        raise ConfigError(f"{hub}: cannot be read: {_told(error)}\n{OFFLINE}") from error
    if not names:
        raise ConfigError(f"{hub}: there are no files {place}/*.parquet\n{OFFLINE}")

    def read(name: str) -> list[dict[str, Any]]:
        try:
            with files.open(name, "rb", cache_type="none") as file:
                return of_parquet(file, name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{name}: {_told(error)}; the same command goes on from here\n{OFFLINE}"
            ) from error

    return [Part(_split(name), Path(name).name, partial(read, name)) for name in names]


def in_a_folder(folder: Path) -> list[Part]:
    """The same files in a folder, or the authors' own."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    if (folder / QAPS).is_file():
        return [Part(split, f"{split}.parquet", partial(of_authors, folder, split)) for split in SPLITS]
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigError(f"{folder}: holds neither Parquet files nor {QAPS}")
    twice = next((one for one, other in pairwise(sorted(f.name for f in files)) if one == other), None)
    if twice is not None:
        raise ConfigError(f"{folder}: holds several files `{twice}`; name the folder that has one of each")
    return [Part(_split(f.name), f.name, partial(of_parquet, f, f.name)) for f in files]


def of_authors(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split, from the two tables of the authors' repository."""
    place = folder / SUMMARIES if (folder / SUMMARIES).is_file() else folder / Path(SUMMARIES).name
    if not place.is_file():
        raise ConfigError(f"{folder}: {QAPS} is there, and {SUMMARIES} is not")
    summaries = {row["document_id"]: row["summary"] for row in _csv(place)}
    theirs = {"validation": "valid"}.get(split, split)
    rows = [row for row in _csv(folder / QAPS) if row["set"] == theirs]
    lost = next((row for row in rows if row["document_id"] not in summaries), None)
    if lost is not None:
        raise ConfigError(
            f"{place}: no summary of the document {lost['document_id']}, which {QAPS} asks about"
        )
    return [
        {
            "document_id": row["document_id"],
            "summary": summaries[row["document_id"]],
            "question": row["question"],
            "answers": [row["answer1"], row["answer2"]],
        }
        for row in rows
    ]


def fetch(parts: list[Part], source: str, to: Path, tell: Callable[[str], None]) -> dict[str, int]:
    """Write the summaries, file by file; the folder is there when all of it is. Questions of each split.

    What an earlier call has written is not read again.
    """
    if to.exists():
        raise ConfigError(f"{to}: is there already; remove it, or name another folder by `--to`")
    parquet = extra("pyarrow.parquet", "parquet", "the summaries are written as Parquet")
    arrow = extra("pyarrow", "parquet", "the summaries are written as Parquet")
    work = to.with_name(f".{to.name}.fetching")
    _same_source(work, source)
    counts = dict.fromkeys(SPLITS, 0)
    for number, part in enumerate(parts, 1):
        done = work / part.name
        if not done.is_file():
            part_way = done.with_suffix(".part")
            parquet.write_table(arrow.Table.from_pylist(part.read()), part_way, compression="zstd")
            os.replace(part_way, done)
        found = parquet.read_metadata(done).num_rows
        counts[part.split] += found
        tell(f"{number} of {len(parts)}: {part.name}, {found:,} questions")
    os.replace(work, to)
    return counts


def _same_source(work: Path, source: str) -> None:
    """Begin, or go on with what was begun from the same place."""
    told = work / SOURCE
    if work.is_dir() and not (told.is_file() and told.read_text("utf-8") == source):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    told.write_text(source, "utf-8")


def _split(name: str) -> str:
    stem = Path(name).name
    found = next((split for split in SPLITS if stem.startswith(split)), None)
    if found is None:
        raise ConfigError(f"{name}: its name begins with none of {', '.join(SPLITS)}")
    return found


def _csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**24)
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
