"""toy-questions: what is asked, what answers it, and answers that are somebody else's."""

from __future__ import annotations

import pytest

from rlalign import ComponentError
from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyQuestions
from rlalign_plugin_toy_tasks.questions import ANSWERS, Person, overlap, questions

TABLE = {"table": {"actions": [*ANSWERS.words, "end"], "end": "end", "steps": 9, "state": "previous"}}
WORLD = {"task": {"toy-questions": {"size": 8, "held_out": 8}}, "policy": TABLE}


@pytest.mark.parametrize(
    "answer, question, text, expected",
    [
        (["kitchen"], "where is anna ?", "", 0.0),
        (["kitchen"], "where is anna ?", "in the kitchen .", 1.0),
        (
            ["kitchen"],
            "where is anna ?",
            "anna is in the kitchen .",
            1.0,
        ),  # words of the question do not count
        (["kitchen"], "where is anna ?", "ben is in the kitchen .", 2 / 3),
        (["kitchen"], "where is anna ?", "in the garden .", 0.0),
        (["anna", "ben"], "who is in the garden ?", "anna .", 2 / 3),
        (["anna", "ben"], "who is in the garden ?", "ben and anna are in the garden .", 1.0),
        (["anna", "ben"], "who is in the garden ?", "anna and anna .", 2 / 3),
        (["lamp"], "what does ben have ?", "the lamp and the key .", 2 / 3),
    ],
)
def test_overlap(answer, question, text, expected):
    assert overlap(answer, question, text) == pytest.approx(expected)


def test_how_many_people_there_can_be():
    """With more there would not be things for all, and with one nobody to mistake them for."""
    assert len(ToyQuestions(ToyQuestions.Config(size=300, people=(5, 5))).examples("train")) == 300
    for people in ((1, 2), (2, 6)):
        with pytest.raises(ValueError, match="equal to"):
            ToyQuestions.Config(people=people)


def test_all_that_can_be_asked():
    anna = Person("anna", "garden", ("lamp", "key"))
    people = [anna, Person("ben", "forest", ("hat",)), Person("emma", "garden", ("drum",))]
    assert {
        q.text: [q.answered(q.answer, form) for form in (0, 1)] for q in questions(people, anna, "key")
    } == {
        "where is anna ?": ["in the garden .", "anna is in the garden ."],
        "where is the key ?": ["in the garden .", "the key is in the garden ."],
        "who has the key ?": ["anna .", "anna has the key ."],
        "what does anna have ?": ["the lamp and the key .", "anna has the lamp and the key ."],
        "who is in the garden ?": ["anna and emma .", "anna and emma are in the garden ."],
    }
    assert [q.others for q in questions(people, anna, "key")] == [
        ("forest",),
        ("forest",),
        ("ben", "emma"),
        ("hat", "drum"),
        ("ben",),
    ]


def test_examples():
    examples = ToyQuestions(ToyQuestions.Config(size=300, people=(2, 3))).examples("train")
    for example in examples:
        question, answer = example.meta["question"], example.meta["answer"]
        assert str(example.prompt).startswith(question)
        said = str(example.prompt)[len(question) :].split(" . ")
        assert {len(said) % 2, len(said) // 2} <= {0, 2, 3}  # where everyone is, and what they have
        assert set(answer) <= set(" ".join(said).split())
        assert example.scores == tuple(overlap(answer, question, r) for r in example.responses)
        assert [overlap(answer, question, r) for r in example.meta["references"]] == [1, 1]
        assert all(map(ANSWERS.accepts, [*example.responses, *example.meta["references"]]))
    assert {len(e.meta["answer"]) for e in examples} == {1, 2}
    scores = [s for e in examples for s in e.scores]
    assert 0.6 < sum(scores) / len(scores) < 0.85


def test_a_careful_writer_answers_without_fault():
    examples = ToyQuestions(ToyQuestions.Config(size=40, forgets=0.0, mistakes=0.0)).examples("train")
    assert {s for e in examples for s in e.scores} == {1.0}


class TestAnswer(ComponentTests):
    component = "toy-answer"
    pipeline = {**WORLD, "rewards": ["length", "toy-answer"]}


class TestGrammaticalAnswer(ComponentTests):
    component = "toy-answer"
    options = {"grammatical": True}
    pipeline = {**WORLD, "rewards": [{"toy-answer": {"grammatical": True}}]}


LOGGED = {
    **WORLD,
    "rewards": ["toy-answer", "toy-grammar", "logged"],
    "algorithm": "reinforce",
    "responses": "logged",
    "train": {"iterations": 1, "prompts": 8},
}


def test_logged_responses_earn_what_they_are_stored_with(tmp_path):
    finished, _ = run(tmp_path, LOGGED)
    assert finished.metrics["reward/toy-answer"] == pytest.approx(finished.metrics["reward/logged"])
    assert finished.metrics["reward/toy-grammar"] == 1


def test_the_reward_says_which_task_it_goes_with(tmp_path):
    other = {"task": "toy-numbers", "policy": {"table": {"actions": 3}}, "responses": "sampled"}
    with pytest.raises(ComponentError, match=r"has no answer .*`toy-answer` goes with `task: toy-questions`"):
        run(tmp_path, {**LOGGED, **other, "rewards": ["toy-answer"]})


class TestToyQuestions(TaskTests):
    component = "toy-questions"
    options = {"size": 40, "held_out": 20}
    any_split = True
    other_options = {"seed": 1}
