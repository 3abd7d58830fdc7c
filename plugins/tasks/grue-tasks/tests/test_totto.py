"""ToTTo: highlighted cells with their headers, written out twice, as its authors' baseline and RL4LMs have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.totto import ToTTo

# Row spans are not looked at: `Games` of the second row counts as the first column, that of `Season`. Every header cell
# above is a header of the column, such as `Lunde`, and every one to the left one of the row.
GOALS = (
    "<table> "
    "<cell> 2001 <col_header> Season </col_header> <col_header> Games </col_header> </cell> "
    "<cell> 12 <col_header> League </col_header> <col_header> Goals </col_header> "
    "<row_header> 2001 </row_header> </cell> "
    "</table>"
)
RIVER = (
    "<table> "
    "<cell> Orra <col_header> River </col_header> <col_header> Lunde </col_header> </cell> "
    "<cell> 120 <col_header> Length (km) </col_header> <row_header> Orra </row_header> </cell> "
    "</table>"
)
ALBUM = (
    "<table> "
    "<row> <cell> Album </cell> <cell> Year <row_header> Album </row_header> </cell> </row> "
    "<row> <highlighted_cell> First Light <col_header> Album </col_header> </highlighted_cell> "
    "<cell> 1987 <col_header> Year </col_header> </cell> </row> "
    "<row> <cell> Tides <col_header> Album </col_header> </cell> "
    "<cell> 1990 <col_header> Year </col_header> </cell> </row> "
    "</table>"
)


def made(**options: object) -> ToTTo:
    return ToTTo(ToTTo.Config(**({"sample": True} | options)))  # type: ignore[arg-type]


def test_the_subtable_stands_twice_the_second_time_with_titles():
    train = made(bad_rows="error").examples("train")
    titles = "<page_title> Erik Berg </page_title> <section_title> Career </section_title> "
    assert train[0].prompt == GOALS + titles + GOALS
    assert train[0].references == ("In 2001 Erik Berg scored 12 goals in the league.",)
    # An empty title is left out.
    assert train[2].prompt == RIVER + "<page_title> Rivers of Norland </page_title> " + RIVER


def test_all_references_and_what_parent_reads():
    example = made().examples("val")[1]
    assert example.references == (
        "In 2003 Lena Falk was the mother in Salt.",
        "Lena Falk played the mother in Salt (2003).",
        "Salt, of 2003, has Lena Falk as the mother.",
    )
    meta = example.meta
    assert meta["overlap_subset"] is False and meta["highlighted_cells"] == [[3, 0], [3, 1], [3, 2]]
    assert (meta["table_page_title"], meta["table_section_title"]) == ("Lena Falk", "Films")
    assert meta["table"][1][0] == {"value": "1999", "is_header": False, "column_span": 1, "row_span": 2}


def test_all_of_the_table():
    example = made(table="fulltable").examples("val")[2]
    titles = "<page_title> The Lanterns </page_title> <section_title> Albums </section_title> "
    assert example.prompt == ALBUM + titles + ALBUM


def test_the_test_split_is_blind():
    for example in made().examples("test"):
        assert example.references == () == example.responses
        assert "evaluate on `val`" in example.without_references and "table" in example.meta


def test_chat_writes_the_table_once():
    (message,) = made(style="chat").examples("train")[2].prompt
    assert message == {
        "role": "user",
        "content": "Say in one sentence what the highlighted cells of this table say:\n\n"
        f"<page_title> Rivers of Norland </page_title> {RIVER}",
    }


def test_the_hubs_layouts(tmp_path: Path):
    """An object of lists, or a list of objects; `overlap_subset` as text; an empty sentence where there is none."""
    rows = _rows("totto_dev_data.jsonl")
    (tmp_path / "a").mkdir()
    columns = []
    for row in rows:
        said = {"final_sentence": [one["final_sentence"] for one in row["sentence_annotations"]]}
        columns.append({**row, "sentence_annotations": said, "overlap_subset": str(row["overlap_subset"])})
    (tmp_path / "a" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in columns))
    blind = {**rows[0], "sentence_annotations": {"final_sentence": [""]}}
    (tmp_path / "a" / "test.jsonl").write_text(json.dumps(blind) + "\n")
    task, published = made(sample=False, path=tmp_path / "a"), made()
    assert [e.references for e in task.examples("val")] == [e.references for e in published.examples("val")]
    assert [e.meta["overlap_subset"] for e in task.examples("val")] == [True, False, False]
    assert task.examples("test")[0].references == ()


@pytest.mark.parametrize(
    "change, told",
    [
        (
            {"highlighted_cells": [[9, 0]]},
            "`table` or `highlighted_cells` is not as ToTTo has it: IndexError",
        ),
        ({"highlighted_cells": []}, "`highlighted_cells` holds no pairs of row and column"),
        ({"highlighted_cells": [["a", 0]]}, "`highlighted_cells` holds no pairs of row and column"),
        ({"highlighted_cells": [[-1, 0]]}, "`highlighted_cells` holds no pairs of row and column"),
        ({"sentence_annotations": ["A."]}, "holds something without `final_sentence`"),
        ({"sentence_annotations": 3}, "holds something without `final_sentence`"),
        ({"sentence_annotations": {"final_sentence": "A."}}, "`final_sentence` is no list of texts"),
        ({"sentence_annotations": [{"final_sentence": 3}]}, "`final_sentence` is no list of texts"),
        ({"table": "none"}, "`table` is text, expected a list"),
        ({"table": [[{"value": "a"}]]}, "is not as ToTTo has it: KeyError: 'column_span'"),
        ({"sentence_annotations": []}, "no reference"),
        ({"table_page_title": 3}, "`table_page_title` is no text"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, change, told):
    row = {**_rows("totto_train_data.jsonl")[0], **change}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=told):
        made(sample=False, path=tmp_path).examples("train")


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ToTTo.samples / name).read_text().splitlines()]
