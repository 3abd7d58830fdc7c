"""toy-dialogue: what a reply does and talks about, and a writer whose mind strays."""

from __future__ import annotations

import random

import pytest

from rlalign import ComponentError
from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyDialogue
from rlalign_plugin_toy_tasks.dialogue import INTENTS, REPLIES, TOPIC_OF, TOPICS, fit, intent

TABLE = {"table": {"actions": [*REPLIES.words, "end"], "end": "end", "steps": 16, "state": "previous"}}
WORLD = {"task": {"toy-dialogue": {"size": 8, "held_out": 8}}, "policy": TABLE}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("i saw the band yesterday .", "inform"),
        ("well , friends told me about the cake .", "inform"),
        ("did you visit the museum ?", "question"),
        ("oh , who told you about the race ?", "question"),
        ("please tell me about the song .", "directive"),
        ("check the report with me .", "directive"),
        ("i will check the report next week .", "commissive"),
        ("yes , i promise to find the train and the ticket .", "commissive"),
        ("", None),
        ("the band", None),
        ("the band was great . the song was great .", None),
        ("the band were great .", None),
    ],
)
def test_intent(text, expected):
    assert intent(text) == expected
    assert REPLIES.accepts(text) == (expected is not None)


@pytest.mark.parametrize(
    "wanted, topic, text, expected",
    [
        ("inform", "music", "the band was great .", 1.0),
        ("question", "music", "the band was great .", 0.5),
        ("inform", "food", "the band was great .", 0.5),
        ("question", "food", "the band was great .", 0.0),
        ("inform", "food", "the band and the soup were nice .", 0.75),
        ("inform", "music", "the band band was great .", 0.0),
    ],
)
def test_fit(wanted, topic, text, expected):
    assert fit(wanted, topic, text) == expected


def test_every_reply_has_one_intent_and_every_noun_one_topic():
    assert len(TOPIC_OF) == sum(map(len, TOPICS.values()))
    rng = random.Random(0)
    for name, grammar in INTENTS.items():
        for _ in range(200):
            text = grammar.sample(rng)
            assert [other for other, g in INTENTS.items() if g.accepts(text)] == [name]
    assert REPLIES.derivations() == sum(grammar.derivations() for grammar in INTENTS.values())


def test_examples():
    examples = ToyDialogue(ToyDialogue.Config(size=300)).examples("train")
    for example in examples:
        wanted, topic = example.meta["intent"], example.meta["topic"]
        said, _, asked = str(example.prompt).partition(" [ ")
        assert asked == f"{wanted} ]"
        assert fit(intent(said) or "", topic, said) == 1
        assert example.scores == tuple(fit(wanted, topic, r) for r in example.responses)
        assert all(fit(wanted, topic, r) == 1 for r in example.meta["references"])
    scores = [s for e in examples for s in e.scores]
    assert 0.4 < sum(scores) / len(scores) < 0.6


def test_a_writer_whose_mind_is_on_it_is_always_right():
    examples = ToyDialogue(ToyDialogue.Config(size=40, strays=0.0)).examples("train")
    assert {s for e in examples for s in e.scores} == {1.0}


class TestIntent(ComponentTests):
    component = "toy-intent"
    pipeline = {**WORLD, "rewards": ["length", "toy-intent"]}


LOGGED = {
    **WORLD,
    "rewards": ["toy-intent", "toy-grammar", "logged"],
    "algorithm": "reinforce",
    "responses": "logged",
    "train": {"iterations": 1, "prompts": 8},
}


def test_logged_responses_earn_what_they_are_stored_with(tmp_path):
    finished, _ = run(tmp_path, LOGGED)
    assert finished.metrics["reward/toy-intent"] == pytest.approx(finished.metrics["reward/logged"])
    assert finished.metrics["reward/toy-grammar"] == 1


def test_the_reward_says_which_task_it_goes_with(tmp_path):
    other = {"task": "toy-numbers", "policy": {"table": {"actions": 3}}, "responses": "sampled"}
    with pytest.raises(ComponentError, match=r"has no intent .*`toy-intent` goes with `task: toy-dialogue`"):
        run(tmp_path, {**LOGGED, **other, "rewards": ["toy-intent"]})


class TestToyDialogue(TaskTests):
    component = "toy-dialogue"
    options = {"size": 40, "held_out": 20}
    shared = ("prompts",)
    any_split = True
    other_options = {"seed": 1}
