"""What is told of a task's rows: what they hold, how long they are, what a limit takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlalign import Example
from rlalign.config.load import load_pipeline
from rlalign.interface.policy import Reading
from rlalign.running.data_told import Lengths, fields_of, look
from rlalign.running.display import NoDisplay
from rlalign.running.histogram import LINES, bins, drawn
from rlalign.running.workspace import Workspace
from rlalign.testing import registry
from rlalign.testing.logits import Logits


def test_bins_are_round_and_hold_all() -> None:
    lengths = [*range(3, 61), *range(20, 40), 500]
    found = bins(lengths)
    assert sum(one.count for one in found) == len(lengths)
    assert len(found) <= LINES + 1
    assert [(one.low, one.high) for one in found[:2]] == [(0, 9), (10, 19)]
    assert (found[-1].high, found[-1].count) == (500, 1), "a long tail has one line"


def test_no_bin_lies_on_both_sides_of_a_limit() -> None:
    found = bins(list(range(100)), limit=33)
    assert [one.beyond for one in found] == [one.low > 33 for one in found]
    assert sum(one.count for one in found if one.beyond) == 66
    assert not any(one.beyond for one in bins([1, 2, 3], limit=10))


def test_a_picture_has_bars_in_proportion() -> None:
    lines = list(drawn(bins([1] * 10 + [2] * 5, limit=1), "cut"))
    assert lines[0].endswith("█ 10 (67%)")
    assert lines[1].endswith(" 5 (33%)  cut")
    assert lines[0].count("█") == 2 * lines[1].count("█")


def test_what_is_beyond_a_limit_is_counted_and_said() -> None:
    lines = list(Lengths("prompts", [5, 6, 90], 10, "`max_prompt_tokens: 10`", "left out").lines())
    assert lines[0] == "tokens of prompts: 5 to 90, median 6 (at most 10)"
    assert lines[-1] == "! 1 of 3 prompts (33%) are longer than `max_prompt_tokens: 10`: left out"
    assert list(Lengths("prompts", [4, 4]).lines()) == ["tokens of prompts: 4 each"]


def test_fields_of_rows_are_told_with_how_many_have_them() -> None:
    rows = [
        Example("0", "hello", responses=("a", "b"), meta={"references": ["x"], "label": 3}),
        Example("1", "there", meta={"references": ["y"]}),
    ]
    assert fields_of(rows) == {
        "prompt": "text: 'hello'",
        "responses": "2 each, in 1 of 2 rows",
        "meta.references": "list of 1: 'x'",
        "meta.label": "int: 3, in 1 of 2 rows",
    }
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert fields_of([Example("0", chat)])["prompt"] == "chat of 2: system, user"


class Reads(Logits):
    """Says how it reads; a token a character of its prompts, one a word of responses."""

    def reading(self, examples: Sequence[Example], sampled: bool) -> Reading:
        return Reading([len(str(e.prompt)) for e in examples], 3, "a limit", "cut", "<s> " + "line\n" * 40)

    def lengths(self, examples: Sequence[Example]) -> Sequence[tuple[int, Sequence[int]]]:
        return [(1, [len(text.split()) for text in e.responses]) for e in examples]


def test_a_look_shows_the_prompt_and_lengths_of_references() -> None:
    known = registry({"reads": Reads})
    text = (
        '{"task": "numbers", "policy": "reads", "rewards": ["token-sum"], "responses": "sampled",'
        ' "algorithm": "collect", "train": {"iterations": 1}, "generation": {"max_new_tokens": 2}}'
    )
    loaded = load_pipeline(Path("p.yaml"), registry=known, text=text)
    space = Workspace(loaded, known, NoDisplay())
    rows = [Example(str(i), "1234"[: i + 1], meta={"references": "a b c"}) for i in range(4)]
    found = look(space.models.opened(), space.plans[0], rows, more=True)
    lines = list(found.lines())
    assert lines[0] == "numbers: 4 or more rows of `train`"
    shown = [line for line in lines if line.startswith("  │")]
    assert shown[0] == "  │ <s> line" and "  │ …" in shown and len(shown) == 13
    assert "! 1 of 4 prompts (25%) are longer than a limit: cut" in lines
    assert (
        lines[-1]
        == "! 4 of 4 references (100%) are longer than `max_new_tokens: 2`: no response can be as long"
    )
    tokens = found.facts()["tokens"]
    assert (tokens["prompts"]["over"], tokens["references"]["most"]) == (1, 3)
