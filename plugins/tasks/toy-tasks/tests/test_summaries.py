"""toy-summaries: what facts a summary holds, and a writer who loses and mixes up some."""

from __future__ import annotations

import random

import pytest

from rlalign import ComponentError
from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToySummaries
from rlalign_plugin_toy_tasks.summaries import NEEDED, STORIES, SUMMARIES, agreement, facts, write

PEOPLE = {c[0] for c in SUMMARIES.choices["WHO"]}
KEY = {"WHO": "anna", "DID": "sold", "THING": "hat", "PLACE": "market", "DAY": "monday", "FELT": "proud"}
TABLE = {"table": {"actions": [*SUMMARIES.words, "end"], "end": "end", "steps": 14, "state": "previous"}}
WORLD = {"task": {"toy-summaries": {"size": 8, "held_out": 8}}, "policy": TABLE}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", 0.0),
        ("on monday anna sold a hat in the market and felt proud .", 1.0),
        ("anna sold a hat in the market and felt proud on monday .", 1.0),
        ("anna sold a hat .", 3 / 6),
        ("ben sold a hat .", 2 / 7),  # one fact made up, and "who" left out
        ("anna sold a hat on friday .", 3 / 7),
        ("anna anna anna sold a hat .", 3 / 6),  # said twice is said once
        ("anna ben sold a hat .", 3 / 7),
    ],
)
def test_agreement(text, expected):
    assert agreement(KEY, text) == pytest.approx(expected)


def test_every_choice_of_facts_can_be_written_and_read():
    rng = random.Random(0)
    for kept in ((), ("PLACE",), ("DAY",), ("FELT",), ("DAY", "PLACE"), ("DAY", "FELT", "PLACE")):
        told = {kind: KEY[kind] for kind in (*NEEDED, *kept)}
        for _ in range(20):
            text = write(told, rng)
            assert SUMMARIES.accepts(text)
            assert facts(text) == set(told.items())


def test_examples():
    examples = ToySummaries(ToySummaries.Config(size=300)).examples("train")
    for example in examples:
        key, story = example.meta["facts"], str(example.prompt)
        assert STORIES.accepts(story)
        assert set(key.values()) <= set(story.split())
        assert story.split().count(key["WHO"]) == 3  # and somebody else once
        assert len(PEOPLE & set(story.split())) == 2
        assert example.scores == tuple(agreement(key, r) for r in example.responses)
        assert all(agreement(key, r) == 1 for r in example.meta["references"])
        assert all(map(SUMMARIES.accepts, [*example.responses, *example.meta["references"]]))
    scores = [s for e in examples for s in e.scores]
    assert 0.55 < sum(scores) / len(scores) < 0.75


def test_a_careful_writer_sums_up_without_fault():
    examples = ToySummaries(ToySummaries.Config(size=40, forgets=0.0, mistakes=0.0)).examples("train")
    assert {s for e in examples for s in e.scores} == {1.0}


class TestFacts(ComponentTests):
    component = "toy-facts"
    pipeline = {**WORLD, "rewards": ["length", "toy-facts"]}


LOGGED = {
    **WORLD,
    "rewards": ["toy-facts", "toy-grammar", "logged"],
    "algorithm": "reinforce",
    "responses": "logged",
    "train": {"iterations": 1, "prompts": 8},
}


def test_logged_responses_earn_what_they_are_stored_with(tmp_path):
    finished, _ = run(tmp_path, LOGGED)
    assert finished.metrics["reward/toy-facts"] == pytest.approx(finished.metrics["reward/logged"])
    assert finished.metrics["reward/toy-grammar"] == 1


def test_the_reward_says_which_task_it_goes_with(tmp_path):
    other = {"task": "toy-numbers", "policy": {"table": {"actions": 3}}, "responses": "sampled"}
    with pytest.raises(ComponentError, match=r"has no facts .*`toy-facts` goes with `task: toy-summaries`"):
        run(tmp_path, {**LOGGED, **other, "rewards": ["toy-facts"]})


class TestToySummaries(TaskTests):
    component = "toy-summaries"
    options = {"size": 40, "held_out": 20}
    any_split = True
    other_options = {"seed": 1}
