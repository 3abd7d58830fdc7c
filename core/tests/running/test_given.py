"""Texts that are there already are measured as sampled ones are, without a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rlalign
from rlalign import Component, ConfigError, Example, RLAlignError, Score, Task, hookimpl

TEXTS = {"a": ("one", ""), "b": ("ünï", "four 四", "x"), "c": ()}


class Texts(Task):
    """Three prompts, of which one has no response."""

    def examples(self, split):
        if split != "train":
            return [Example("none", "nothing", meta={"answer": "some", "source": "web"})]
        return [Example(name, name, responses=given) for name, given in TEXTS.items()]


class Seen(Component):
    """The number of characters; and all texts that it was asked for."""

    @hookimpl
    def reward(self, rollout):
        assert all(text in TEXTS[e.prompt] for text, e in zip(rollout.texts, rollout.answered, strict=True))
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))

    @hookimpl
    def evaluate(self, rollout):
        return {"all": float(len("".join(rollout.texts)))}


def opened(**more):
    return rlalign.open(**{"task": {Texts: None}, "use": [Seen], **more})


def test_every_response_is_measured_and_no_token_is_counted():
    row = opened().evaluate(logged=True)
    assert row["eval/responses"] == 5 and row["eval/Seen"] == 13 / 5 and row["eval/Seen/all"] == 13
    assert not {"eval/tokens", "eval/length"} & set(row)


class Scored(Texts):
    """The same with stored scores, but for one that the second of them lacks."""

    def examples(self, split):
        a, b, c = super().examples("train")
        return [replace(a, scores=(1.0, 4.0)), b if split == "val" else replace(b, scores=(0.5, 2, 2)), c]


def test_stored_scores_are_what_the_reward_logged_says():
    row = opened(task={Scored: None}, use=[Seen, "logged"]).evaluate(logged=True)
    assert row["eval/logged"] == 9.5 / 5 and row["eval/Seen"] == 13 / 5


def test_a_response_without_a_stored_score_is_told():
    with pytest.raises(RLAlignError, match="example `b` has responses without a stored score"):
        opened(task={Scored: None}, use=["logged"], split="val").evaluate(logged=True)


def test_only_the_first_examples_where_so_many_are_asked_for():
    assert opened(examples=1).evaluate(logged=True)["eval/responses"] == 2


def test_a_split_without_responses_is_refused():
    with pytest.raises(RLAlignError, match="`val` has a logged response") as caught:
        opened(split="val").evaluate(logged=True)
    assert "`responses: COLUMN`" in str(caught.value)
    assert str(caught.value).endswith("(the first example has beside its prompt: answer, source)")


@pytest.mark.parametrize("ask", [lambda it: it.evaluate(), lambda it: it.sample(["a"])])
def test_there_is_no_model_to_answer(ask):
    with pytest.raises(ConfigError, match="no model is opened, only texts that are given"):
        ask(opened())


def test_a_reward_of_the_model_is_refused():
    with pytest.raises(ConfigError, match="no model is opened"):
        opened(use=["kl"]).evaluate(logged=True)
