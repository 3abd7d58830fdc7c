"""PARENT against a second, plain implementation, numbers by hand, and ToTTo's own layout."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rlalign import ComponentError, Example, logged_rollout
from rlalign_plugin_text_metrics.parent import (
    ParentMetric,
    Table,
    common,
    mentioned,
    parent,
    references_of,
    table_of,
)


def rollout_of(*examples: Example):
    actions = [([1], True) for example in examples for _ in example.responses]
    return logged_rollout(examples, [torch.ones(1)] * len(examples), actions, like=torch.zeros(1))


def plainly(text, references, known, wanted, weight=None):
    """The formulas one after the other, on texts whose tokens are parted by spaces."""
    tokens = text.split()
    words = {word for value in known for word in value.split()}

    def grams(sequence, n):
        return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]

    def entailed(gram):
        return len([token for token in gram if token in words]) / len(gram)

    def subsequence(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + subsequence(a[:-1], b[:-1])
        return max(subsequence(a[:-1], b), subsequence(a, b[:-1]))

    def shares(sequence):
        return [subsequence(value.split(), sequence) / len(value.split()) for value in wanted]

    best = (0.0, 0.0, -1.0)
    for reference in references:
        theirs = reference.split()
        precisions, recalls = [], []
        for n in (1, 2, 3, 4):
            mine, right = grams(tokens, n), grams(theirs, n)
            credit = 0.0
            for gram in set(mine):
                p = min(1, right.count(gram) / mine.count(gram))
                credit += mine.count(gram) * (p + (1 - p) * entailed(gram))
            precisions.append(credit / len(mine) if mine else 0.0)
            total = sum(entailed(gram) for gram in right)
            found = sum(
                right.count(gram) * entailed(gram) * min(1, mine.count(gram) / right.count(gram))
                for gram in set(right)
            )
            recalls.append(found / total if total else 1.0)
        precisions[1:] = [p or 1e-5 for p in precisions[1:]]
        recalls[1:] = [r or 1e-5 for r in recalls[1:]]
        precision = math.prod(precisions) ** 0.25
        recall = math.prod(recalls) ** 0.25 or 1e-5
        table = sum(shares(tokens)) / len(wanted) or 1e-5
        lam = 1 - sum(shares(theirs)) / len(wanted) if weight is None else weight
        both = recall ** (1 - lam) * table**lam
        f = 2 * precision * both / (precision + both + 1e-8)
        if f > best[2]:
            best = (precision, both, f)
    return best


def test_by_hand():
    table = Table(("Ann Lee", "Rome"), ("Ann Lee", "Rome"))
    text, reference = "Ann Lee lives in Rome", "Ann Lee is from Rome"
    # precision: 3/5, 2/4, (4/3)/3, 1/2; recall of the reference: 1, 1/2, 0, 0; all of the table is there
    precision = (3 / 5 * 1 / 2 * 4 / 9 * 1 / 2) ** 0.25
    recall = (1 / 2 * 1e-5 * 1e-5) ** 0.25
    found = parent(text, [reference], table)
    assert found == pytest.approx((0.508133, 0.00265915, 0.00529061), rel=1e-5)
    assert found == pytest.approx((precision, recall, 2 * precision * recall / (precision + recall + 1e-8)))
    half = parent(text, [reference], table, 0.5)
    assert half.recall == pytest.approx(0.0515669, rel=1e-5)
    assert parent(text, [reference], table, 1.0).recall == 1


def test_a_second_implementation_agrees():
    rng = random.Random(0)
    words = ["ann", "bo", "lee", "rome", "oslo", "is", "in", "the", "a", "from", "lives"]

    def some(least, most):
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    seen = set()
    for _ in range(300):
        known = tuple(some(1, 3) for _ in range(rng.randint(1, 4)))
        wanted = known[: rng.randint(1, len(known))]
        text, references = some(0, 7), [some(0, 7) for _ in range(rng.randint(1, 3))]
        weight = rng.choice([None, 0.0, 0.5, 1.0])
        found = parent(text, references, Table(known, wanted), weight)
        expected = plainly(text, references, known, wanted, weight)
        assert found.f == pytest.approx(expected[2], abs=1e-12)
        seen.add(round(found.f, 6))
    assert len(seen) > 150


def test_common_subsequences():
    assert common(list("abcd"), list("bxdac")) == 2
    assert common(list("aba"), list("aaba")) == 3
    assert common([], ["a"]) == common(["a"], []) == 0
    assert mentioned(("a b", "c", " "), ["a", "c"]) == 0.75
    assert mentioned((), ["a"]) == 1


TOTTO = {
    "table": [
        [{"value": "Year", "is_header": True}, {"value": "Role", "is_header": True}],
        [{"value": "2015", "is_header": False}, {"value": "Pete | Joe", "is_header": False}],
        [{"value": " ", "is_header": False}],
    ],
    "highlighted_cells": [[1, 0], [1, 1], [2, 0]],
    "table_page_title": "Ann Lee",
    "table_section_title": "",
    "table_section_text": "An actor.",
    "overlap_subset": "True",
}


def test_the_layout_of_totto():
    annotations = [{"final_sentence": "Ann was Pete."}, {"final_sentence": "Ann Lee was Pete in 2015."}]
    for said in (annotations, {"final_sentence": [each["final_sentence"] for each in annotations]}):
        example = Example(id="x", prompt="", meta={**TOTTO, "sentence_annotations": said})
        table = table_of(example, "parent")
        assert table.known == ("Year", "Role", "2015", "Pete - Joe", "Ann Lee", "An actor.")
        assert table.wanted == ("2015", "Pete - Joe", "Ann Lee")
        assert references_of(example, "parent") == ("Ann was Pete.", "Ann Lee was Pete in 2015.")


def test_the_plain_layout():
    pairs = [("name", "Ann"), ("age", 30)]
    assert table_of(Example(id="x", prompt="", meta={"table": pairs}), "parent") == Table(
        ("Ann", "30"), ("Ann", "30")
    )
    meta = {"table": pairs, "highlighted": pairs[:1]}
    assert table_of(Example(id="x", prompt="", meta=meta), "parent").wanted == ("Ann",)


def test_what_is_missing_is_named():
    metric = ParentMetric(ParentMetric.Config())
    metric.name = "parent"
    bare = Example(id="e7", prompt="", meta={"references": ["x"], "rows": 3})
    with pytest.raises(
        ComponentError, match=r"`parent` .* example `e7` .* no `table` \(it holds: references, rows\)"
    ):
        metric.values(["x"], [bare])
    with pytest.raises(ComponentError, match=r"example `e8` has none: `references` is missing"):
        metric.values(["x"], [Example(id="e8", prompt="", meta={"table": [("a", "b")]})])
    for odd in (3, [3], ["ab c"], [[{"no": 1}]]):
        with pytest.raises(
            ComponentError, match=r"table of example `e9` is neither .* nor the columns of ToTTo"
        ):
            metric.values(["x"], [Example(id="e9", prompt="", meta={"table": odd, "references": ["x"]})])


def test_filling_up():
    """`<null>` is a reference as others are: with it, what only the table says is good too."""
    example = Example(
        id="x", prompt="", meta={"table": [("a", "Ann Lee")], "references": ["Lee and Ann Lee of Oslo"]}
    )
    filled, bare = (
        ParentMetric(ParentMetric.Config(fill=fill)).values(["Ann Lee"], [example])[0]
        for fill in (True, False)
    )
    assert filled == pytest.approx(
        parent("Ann Lee", ["Lee and Ann Lee of Oslo", "<null>"], table_of(example, "p")).f
    )
    assert filled > bare


def test_subsets_and_parts():
    def example(name, text, **meta):
        table = [("name", "Ann Lee"), ("town", "Rome")]
        return Example(
            name, "", responses=(text,), meta={"table": table, "references": ["Ann Lee of Rome"], **meta}
        )

    rollout = rollout_of(
        example("a", "Ann Lee of Rome", overlap_subset=True),
        example("b", "nothing", overlap_subset="False"),
        example("c", "Ann of Rome", overlap_subset="True"),
        example("d", "Lee"),
    )
    metric = ParentMetric(ParentMetric.Config())
    score = metric.reward(rollout)
    found = metric.evaluate(rollout)
    assert score.value[0] == pytest.approx(1, abs=1e-6) and score.value[1] == 0
    assert found["overlap/f"] == pytest.approx(float(score.value[[0, 2]].mean()))
    assert found["overlap/recall"] == pytest.approx(float(score.metrics["recall"][[0, 2]].mean()))
    assert found["non-overlap/precision"] == float(score.metrics["precision"][1])
    assert set(found) == {
        f"{s}/{w}" for s in ("overlap", "non-overlap") for w in ("precision", "recall", "f")
    }
    assert metric.evaluate(rollout_of(example("d", "Lee"))) == {}
