"""toy-keywords: coverage, and a writer who forgets and one who does not."""

from __future__ import annotations

import random

import pytest

from rlalign import ComponentError
from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyKeywords, coverage
from rlalign_plugin_toy_tasks.keywords import CONTENT, KEYWORDS, write

TABLE = {"table": {"actions": [*KEYWORDS.words, "end"], "end": "end", "steps": 9, "state": "previous"}}
WORLD = {"task": {"toy-keywords": {"size": 8, "held_out": 8}}, "policy": TABLE}


@pytest.mark.parametrize(
    "keywords, text, expected",
    [
        (["hat"], "", 0.0),
        (["hat", "old"], "the old hat", 1.0),
        (["hat", "old"], "old old", 0.5),
        (["hat", "old", "red"], "a hatter in red", 1 / 3),  # words, not parts of words
    ],
)
def test_coverage(keywords, text, expected):
    assert coverage(keywords, text) == pytest.approx(expected)


def test_written_sentences_hold_every_keyword():
    rng = random.Random(0)
    for _ in range(300):
        sentence = KEYWORDS.sample(rng).split()
        keywords = [word for word in dict.fromkeys(sentence) if word in CONTENT][:4]
        text = write(keywords, rng)
        assert KEYWORDS.accepts(text) and coverage(keywords, text) == 1


def test_words_have_one_kind_and_articles_fit():
    kinds = [(c[0], s) for s, choices in KEYWORDS.lexicon.items() for c in choices]
    assert len(dict(kinds)) == len(kinds)
    for word, kind in kinds:
        if kind[-2:] in ("_C", "_V"):
            assert (word[0] in "aeiou") == kind.endswith("_V"), word


def test_examples():
    task = ToyKeywords(ToyKeywords.Config(size=300, held_out=40, responses=2, references=3))
    train, val = task.examples("train"), task.examples("val")
    assert [len(train), len(val)] == [300, 40]
    assert {len(e.meta["keywords"]) for e in train} == {2, 3, 4}
    assert [e.prompt for e in val] != [e.prompt for e in train[:40]]
    assert [(e.prompt, e.responses) for e in train] == [
        (e.prompt, e.responses) for e in task.examples("train")
    ]
    for example in train:
        keywords = example.meta["keywords"]
        assert str(example.prompt).split() == keywords
        assert example.scores == tuple(coverage(keywords, r) for r in example.responses)
        assert all(coverage(keywords, r) == 1 for r in example.meta["references"])
        assert all(map(KEYWORDS.accepts, [*example.responses, *example.meta["references"]]))
    scores = [s for e in train for s in e.scores]
    assert 0.55 < sum(scores) / len(scores) < 0.75  # 0.6 remembered, and some by chance


def test_a_careful_writer_forgets_nothing():
    examples = ToyKeywords(ToyKeywords.Config(size=50, forgets=0.0, keywords=(3, 3))).examples("train")
    assert {s for e in examples for s in e.scores} == {1.0}
    assert {len(e.meta["keywords"]) for e in examples} == {3}


class TestCoverage(ComponentTests):
    component = "toy-coverage"
    pipeline = {**WORLD, "rewards": ["length", "toy-coverage"]}


class TestGrammaticalCoverage(ComponentTests):
    component = "toy-coverage"
    options = {"grammatical": True}
    pipeline = {**WORLD, "rewards": [{"toy-coverage": {"grammatical": True}}]}


LOGGED = {
    **WORLD,
    "policy": {"table": {**TABLE["table"], "steps": 24}},
    "rewards": ["toy-coverage", "toy-grammar", "logged"],
    "algorithm": "reinforce",
    "responses": "logged",
    "train": {"iterations": 1, "prompts": 8},
}


def test_logged_responses_earn_what_they_are_stored_with(tmp_path):
    finished, _ = run(tmp_path, LOGGED)
    assert finished.metrics["reward/toy-coverage"] == pytest.approx(finished.metrics["reward/logged"])
    assert finished.metrics["reward/toy-grammar"] == 1


def test_coverage_says_which_task_it_goes_with(tmp_path):
    other = {"task": "toy-numbers", "policy": {"table": {"actions": 3}}, "responses": "sampled"}
    with pytest.raises(ComponentError, match="goes with `task: toy-keywords`"):
        run(tmp_path, {**LOGGED, **other, "rewards": ["toy-coverage"]})


class TestToyKeywords(TaskTests):
    component = "toy-keywords"
    options = {"size": 40, "held_out": 20}
    shared = ("prompts",)  # of two keywords there are not many
    any_split = True
    other_options = {"seed": 1}
