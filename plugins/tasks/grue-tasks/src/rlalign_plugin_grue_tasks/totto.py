"""Highlighted cells of a table in a sentence: ToTTo (Parikh et al. 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset.cells import list_of
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

CHAT = "Say in one sentence what the highlighted cells of this table say:\n\n{text}"
TITLES = {"page_title": "table_page_title", "section_title": "table_section_title"}
"""A tag, and the column that is written in it."""


class ToTTo(GrueTask):
    """A table of Wikipedia's with some cells highlighted, and a sentence that says what they hold."""

    paper = "Ankur P. Parikh et al., ToTTo: A Controlled Table-To-Text Generation Dataset, 2020"

    class Config(CompatOptions):
        """Options of `totto`."""

        max_prompt_tokens: int | None = prompt_tokens(512)
        table: Literal["subtable", "fulltable"] = Field(
            "subtable", description="what is written out: the highlighted cells, or all, those marked"
        )

    config: Config
    samples = SAMPLES / "totto"
    published = Published(
        "GEM/totto",
        exported={
            "train": "totto/train/*.parquet",
            "val": "totto/validation/*.parquet",
            "test": "totto/test/*.parquet",
        },
        elsewhere="The authors' totto_train_data.jsonl, totto_dev_data.jsonl and unlabeled_totto_test_data.jsonl do as "
        "well.",
    )
    licence = "CC BY-SA 3.0"
    warm_start = "rajkumarrrk/t5-base-fine-tuned-on-totto"
    sizes = {"train": 120_761, "val": 7_700, "test": 7_700}
    side = "left"
    blind = {
        "test": "ToTTo's sentences of `test` are not published; evaluate on `val`, or have its authors score responses"
    }
    defaults = {"generation": {"min_new_tokens": 10, "max_new_tokens": 50}}
    generation = {"beams": 5, "min_new_tokens": 10, "max_new_tokens": 50}
    metrics = (
        "meteor",
        "parent",
        "rouge",
        {"sacrebleu": {"lowercase": True}},
        {"bert-score": {"path": "FacebookAI/roberta-large"}},
        "diversity",
    )

    def reader(self, split: str, table: Table) -> Tables:
        return Tables(table.name, self, split)


class Tables(GrueReader):
    """One table per row, in the authors' layout or in one of the hub's."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        table, marked = list_of(row, "table"), _marked(row)
        titles = {tag: _title(row, column) for tag, column in TITLES.items()}
        try:
            grid = grid_of(table)
            if self.config.table == "subtable":
                cells = "".join(written(grid, i, j) for i, j in marked)
            else:
                cells = written_out(grid, marked)
        except (KeyError, IndexError, TypeError) as error:
            raise BadRow(
                f"`table` or `highlighted_cells` is not as ToTTo has it: {type(error).__name__}: {error}"
            ) from None
        plain = f"<table> {cells}</table>"
        titled = "".join(f"<{tag}> {title} </{tag}> " for tag, title in titles.items() if title) + plain
        prompt = self.prompt(titled, before="" if self.config.style == "chat" else plain, chat=CHAT)
        return [self.example(place, prompt, _sentences(row), **_about(row, table, marked))]


class Cell(NamedTuple):
    """A cell, and the columns that it stands in: `begin` is its first, `end` the first that is no longer its own."""

    value: str
    is_header: bool
    begin: int
    end: int


Grid = Sequence[Sequence[Cell]]


def grid_of(table: Sequence[Sequence[Mapping[str, Any]]]) -> Grid:
    """A table's cells. Columns are counted row by row: that a cell may span rows is not looked at."""
    grid = []
    for row in table:
        ends = list(accumulate(cell["column_span"] for cell in row))
        begins = [0, *ends]
        places = zip(row, begins, ends, strict=False)
        grid.append([Cell(cell["value"], cell["is_header"], begin, end) for cell, begin, end in places])
    return grid


def written(grid: Grid, i: int, j: int, tag: str = "cell") -> str:
    """A cell, the headers that stand above any of its columns, and the headers to its left."""
    cell = grid[i][j]
    above = [
        each
        for row in grid[:i]
        for each in row
        if each.is_header and each.begin < cell.end and each.end > cell.begin
    ]
    left = [each for each in grid[i][:j] if each.is_header]
    parts = [f"<{tag}>", cell.value]
    parts += [f"<col_header> {header.value} </col_header>" for header in above]
    parts += [f"<row_header> {header.value} </row_header>" for header in left]
    return " ".join([*parts, f"</{tag}> "])


def written_out(grid: Grid, marked: Collection[tuple[int, int]]) -> str:
    """All cells, row by row, those marked by another tag."""
    rows = []
    for i, row in enumerate(grid):
        tags = ("highlighted_cell" if (i, j) in marked else "cell" for j in range(len(row)))
        rows.append(f"<row> {''.join(written(grid, i, j, tag) for j, tag in enumerate(tags))}</row> ")
    return "".join(rows)


def _marked(row: Row) -> list[tuple[int, int]]:
    found = [tuple(place) if isinstance(place, list) else () for place in list_of(row, "highlighted_cells")]
    whole = all(isinstance(number, int) and number >= 0 for place in found for number in place)
    if not found or not whole or not all(len(place) == 2 for place in found):
        raise BadRow("`highlighted_cells` holds no pairs of row and column")
    return [(i, j) for i, j in found]


def _title(row: Row, column: str) -> str:
    found = row.get(column) or ""
    if not isinstance(found, str):
        raise BadRow(f"`{column}` is no text")
    return found


def _sentences(row: Row) -> list[str]:
    """The authors list objects, a hub's layout has an object of lists; where nothing is said it is empty."""
    said = row.get("sentence_annotations") or []
    try:
        found = said.get("final_sentence") if isinstance(said, dict) else [o["final_sentence"] for o in said]
    except (KeyError, TypeError):
        raise BadRow("`sentence_annotations` holds something without `final_sentence`") from None
    if not isinstance(found or [], list) or not all(isinstance(text, str | None) for text in found or []):
        raise BadRow("`final_sentence` is no list of texts")
    return [text for text in found or [] if text and text.strip()]


def _about(row: Row, table: Sequence[Any], marked: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What `parent` reads."""
    about: dict[str, Any] = {"table": table, "highlighted_cells": [list(place) for place in marked]}
    for column in (*TITLES.values(), "table_section_text"):
        about[column] = row.get(column) or ""
    if row.get("overlap_subset") is not None:
        about["overlap_subset"] = str(row["overlap_subset"]).lower() == "true"
    return about
