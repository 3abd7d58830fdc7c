"""Components that do what they must not, each in one way: what `tests/test_bad_input.py` puts in a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, Field

from rlalign import Batch, Component, Example, Loss, Options, Score, Task, hookimpl
from rlalign.testing import PolicyGradient


class Algorithm(PolicyGradient):
    """For others to spoil."""


# -- rewards ----------------------------------------------------------------------------------------


class Reward(Component):
    """Gives whatever `answer` makes of the right answer."""

    def answer(self, right: torch.Tensor) -> Any:
        return Score(right)

    @hookimpl
    def reward(self, rollout):
        return self.answer(torch.arange(len(rollout)).float())


class Raises(Reward):
    def answer(self, right):
        raise KeyError("toxicity")


class NaN(Reward):
    def answer(self, right):
        right[1] = torch.nan
        return Score(right)


class OneTooFew(Reward):
    def answer(self, right):
        return Score(right[1:])


class AList(Reward):
    def answer(self, right):
        return Score(right.tolist())


class NoScore(Reward):
    def answer(self, right):
        return right


class Nothing(Reward):
    def answer(self, right):
        return None


class OtherName(Reward):
    def answer(self, right):
        return Score(right, name="other")


class BadMetric(Reward):
    def answer(self, right):
        return Score(right, metrics={"odd": right[1:]})


class BreaksInit(Reward):
    def __init__(self, config):
        super().__init__(config)
        raise ValueError("no such size")


class BreaksSetup(Reward):
    def setup(self, run):
        open("/nowhere/weights.bin").close()


class AssignsToRun(Reward):
    @hookimpl
    def phase_started(self, run):
        run.beta = 1.0


class AsksForAGradient(Reward):
    @hookimpl
    def iteration_done(self, run):
        run.parameters()


class NeedsTheUnknown(Reward):
    needs = ("reference.perplexity",)


class NeedsAnUnknownModel(Reward):
    needs = ("judge.logprobs",)


class NeedsValuesOfAPolicy(Reward):
    needs = ("policy.values",)


class LaggingReference(Reward):
    models = {"reference": "lagging"}


class Misspelt(Reward):
    @hookimpl
    def iteration_dome(self, run):
        pass


class TooManyArguments(Component):
    @hookimpl
    def reward(self, rollout, tokenizer):
        return None


class Unmarked(Reward):
    def reward(self, rollout):
        return Score(torch.zeros(len(rollout)))


class Renames(Component):
    """A wrapper that forgets a score."""

    @hookimpl(wrapper=True)
    def reward(self):
        scores = yield
        return scores[1:]


class ReturnsOne(Component):
    @hookimpl(wrapper=True)
    def reward(self):
        scores = yield
        return scores[0]


# -- algorithms -------------------------------------------------------------------------------------


class NaNLoss(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss(now.logprobs_NT.sum() * torch.nan)


class VectorLoss(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss(now.logprobs_NT.sum(1))


class TensorLoss(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return now.logprobs_NT.sum()


class NoGraph(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss(now.logprobs_NT.detach().sum())


class NoLoss(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        pass


class FloatMetric(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss(now.logprobs_NT.sum(), {"kl": 0.5})


class InfiniteGradient(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss((now.logprobs_NT * 0).sum().sqrt())


class UndeclaredEntropy(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss(now.entropy_NT.sum())


class UndeclaredOld(Algorithm):
    @hookimpl
    def loss(self, batch, now):
        return Loss((now.logprobs_NT - batch.old_logprobs_NT).sum())


class TrainsNothing(Algorithm):
    trains = ()


class TrainsTheReference(Algorithm):
    trains = ("policy", "reference")


class AdvantageATensor(Algorithm):
    @hookimpl
    def advantage(self, rollout, reward):
        return reward.total_N


class AdvantageTooLong(Algorithm):
    @hookimpl
    def advantage(self, rollout, reward):
        return Batch(rollout, reward, torch.zeros(len(rollout) + 1, rollout.steps))


class AdvantageNaN(Algorithm):
    @hookimpl
    def advantage(self, rollout, reward):
        return Batch.of(rollout, reward, reward.total_N / 0.0 * 0.0)


class AdvantageRaises(Algorithm):
    @hookimpl
    def advantage(self, rollout, reward):
        return Batch.of(rollout, reward, torch.zeros(3, 3))


class AdvantageBadColumn(Algorithm):
    @hookimpl
    def advantage(self, rollout, reward):
        return Batch.of(rollout, reward, reward.total_N, weight=torch.ones(2))


class StepReadyNumber(Algorithm):
    @hookimpl
    def step_ready(self, metrics):
        return 0.0


class UpdateANumber(Algorithm):
    @hookimpl
    def update(self, run, batch, learner):
        return 1.0


class UpdateText(Algorithm):
    @hookimpl
    def update(self, run, batch, learner):
        return {"state": "fine"}


class WritesToTheReference(Algorithm):
    models = {"reference": "frozen"}

    @hookimpl
    def iteration_done(self, run):
        with torch.no_grad():
            next(run.models["reference"].parameters()).add_(1.0)


class Samples(Algorithm):
    @hookimpl
    def rollout(self, run, examples):
        return None


class ScoresToo(Algorithm):
    @hookimpl
    def reward(self, rollout):
        return Score(torch.zeros(len(rollout)))


class CouplesTheGroup(Algorithm):
    """Claims that a response is enough; the loss is the variance over the group."""

    @hookimpl
    def loss(self, batch, now):
        return Loss(batch.sum_over_chosen(now.logprobs_NT).var(unbiased=False))


class WrapsLoss(Algorithm):
    @hookimpl(wrapper=True)
    def loss(self, batch, now):
        return (yield)


# -- evaluation -------------------------------------------------------------------------------------


class MeasuresText(Component):
    @hookimpl
    def evaluate(self, rollout):
        return {"verdict": "good"}


class MeasuresANumber(Component):
    @hookimpl
    def evaluate(self, rollout):
        return 3.0


# -- tasks, policies, modules -----------------------------------------------------------------------


class Data(Task):
    """Bandit-like data with any number of examples per split."""

    class Config(Options):
        train: int = Field(8, description="examples of `train`")
        val: int = Field(8, description="examples of `val`")

    def examples(self, split):
        return [Example(f"{split}-{i}", "") for i in range(getattr(self.config, split))]


class RaisingData(Task):
    def examples(self, split):
        raise FileNotFoundError(2, "No such file or directory", "/data/prompts.jsonl")


class DictData(Task):
    def examples(self, split):
        return [{"prompt": "hello"}]


class RaisingPostprocess(Data):
    def postprocess(self, text):
        raise ValueError("no closing tag")


class NoConfig(Reward):
    Config = None


class LooseConfig(Reward):
    class Config(BaseModel):
        pass


class NotAComponent:
    pass
