"""Components that are not the same on every process, each in one way."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import Field

from rlalign import (
    Batch,
    Component,
    Example,
    LazyExamples,
    Learner,
    Loss,
    Options,
    Outputs,
    Policy,
    Response,
    Rollout,
    Run,
    Sampler,
    Sampling,
    Score,
    Task,
    hookimpl,
    sample,
    sampled_rollout,
)

FIRST = os.environ.get("RANK", "0") == "0"


class Process(Component):
    """Weighs by what is another number in each process."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        return replace(batch, advantage_NT=batch.advantage_NT * (1 + os.getpid() % 1000))


class Takes(Component):
    """Takes its time."""

    class Config(Options):
        """Options."""

        seconds: float = Field(1.0, description="how long")

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        time.sleep(self.config.seconds)
        return Score(torch.zeros(len(rollout)))


class Kept(Component):
    """Its state is another one on each process."""

    @hookimpl
    def iteration_done(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"process": os.getpid()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Half(Component):
    """Leaves out the last group, on one process."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch if FIRST else batch.take(batch.rollout.group_N < batch.rollout.group_N.max()).as_step()


class Fails(Component):
    """Raises on one process, in the second iteration."""

    @hookimpl(wrapper=True)
    def advantage(self, run: Any) -> Generator[None, Batch, Batch]:
        batch = yield
        if not FIRST and run.iteration == 1:
            raise ValueError("only here")
        return batch


class Stumbles(Component):
    """A loss that raises on one process, in the second iteration, while the others are in the middle of a pass."""

    needs = ("logprobs",)
    trains = ("policy",)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        if not FIRST and run.iteration == 1:
            raise ValueError("only here")
        return Loss(batch.mean_over_tokens(now.logprobs_NT))


class Asks(Component):
    """A loss that asks for scores in the middle of a pass, and did not when the step began."""

    needs = ("logprobs",)
    trains = ("policy",)

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        scored_NT = run.score("policy", batch.step.rollout, ["logprobs"]).logprobs_NT
        return Loss(batch.mean_over_tokens(now.logprobs_NT) * scored_NT.mean())


class RunsOutAdding(Component):
    """An `update` that adds up gradients over the responses, for which memory runs out once, on one process."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens(now.logprobs_NT))

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> dict[str, float]:
        out = [not FIRST and run.iteration == 1]

        def push(part: Rollout, chunks: Sequence[torch.Tensor]) -> float:
            if out.pop() if out else False:
                raise torch.OutOfMemoryError("none is left")
            features_MC = run.models.policy.features(part)
            features_MC.square().sum().backward()
            return float(features_MC.detach().sum())

        total, gradient = learner.accumulate(batch.rollout, push)
        learner.assign(learner.parameters() - 1e-6 * gradient)
        return {"sum": total, "norm": float(gradient.norm())}


class RunsOut(Component):
    """A loss for which memory runs out once, where a step has begun."""

    needs = ("logprobs",)
    trains = ("policy",)
    asked = 0

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        self.asked += 1
        if self.asked == 2:
            raise torch.OutOfMemoryError("a full card")
        return Loss(batch.mean_over_tokens(now.logprobs_NT))


class Fussy(Component):
    """A reward that cannot score the last prompts, which another process is asked for than the first."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if not FIRST:
            raise ValueError("not these")
        return Score(torch.zeros(len(rollout)))


class Nothing(Component):
    """No response is left to learn from, every second time."""

    @hookimpl(wrapper=True)
    def advantage(self, run: Any) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch.take(batch.rollout.group_N < 0).as_step() if run.iteration % 2 else batch


class Whole(Component):
    """A loss that wants the step in one piece, and asks the run for scores meanwhile."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "step"

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        known_NT = run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT
        return Loss(batch.mean_over_tokens((now.logprobs_NT - known_NT) ** 2 + now.logprobs_NT))


class Again(Whole):
    """An `update` hook that asks for what a loss has asked for, of the same responses, before it learns."""

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> dict[str, float]:
        before = learner.loss(batch)
        known_NT = run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT
        return {**learner.learn(batch), "before": before, "known": float(known_NT.sum())}


class Drifts(Component):
    """Writes other weights on each process."""

    trains = ("policy",)

    @hookimpl
    def update(self, batch: Batch, learner: Learner) -> dict[str, float]:
        learner.assign(learner.parameters() + os.getpid() % 1000)
        return {}


class Elsewhere(Sampler):
    """A copy of the policy, which samples by seeds; only the first process asks it."""

    concurrent = True

    def take(self, policy: Policy) -> None:
        assert FIRST
        self.copy = policy.copy("frozen")

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        made = [[torch.Generator().manual_seed(seed) for seed in row] for row in seeds]
        drawn = [[torch.rand(how.max_new_tokens, generator=one) for one in row] for row in made]
        found = sample(self.copy, examples, how, torch.stack([torch.stack(row) for row in drawn]))
        return sampled_rollout(
            policy,
            examples,
            how,
            [
                Response(tokens, logprobs, ended)
                for tokens, logprobs, ended in zip(
                    found.actions_NT.tolist(),
                    found.logprobs_NT.tolist(),
                    found.finished_N.tolist(),
                    strict=True,
                )
            ],
        )


class Known(Task):
    """Prompts of which it is known beforehand what they are, as large data's are."""

    def examples(self, split: str) -> Sequence[Example]:
        return Listed()


class Listed(LazyExamples):
    row_keys = numpy.random.default_rng(0).integers(0, 2**64 - 1, 64, dtype=numpy.uint64)
    response_counts = numpy.zeros(64, dtype=numpy.int32)

    def __len__(self) -> int:
        return 64

    def example(self, index: int) -> Example:
        return Example(str(index), "", meta={"payouts": [2.5, 2.0, 1.0 + index % 3]})


class Counts(Component):
    """A reward that counts how often it was asked; only the first process asks it."""

    by_one = True
    asked = 0

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        assert FIRST
        self.asked += 1
        return Score(rollout.actions_NT[:, 0].double().exp() * self.asked)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


class Present(Component):
    """Which action was chosen; answers once there are two of its processes, and each says that it is there."""

    class Config(Options):
        """Options."""

        folder: Path = Field(description="where they say so, by the number of the run's processes")

    config: Config

    def setup(self, run: Run) -> None:
        self.said = self.config.folder / os.environ.get("WORLD_SIZE", "1")
        self.said.mkdir(parents=True, exist_ok=True)
        (self.said / str(os.getpid())).touch()

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        while len([*self.said.iterdir()]) < 2:
            time.sleep(0.1)
        return Score(rollout.actions_NT[:, 0].double())


class Tells(Component):
    """A reward that says more where a certain example is among those it is asked of."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        first_N = torch.tensor([rollout.examples[g].id == "train-7" for g in rollout.group_N.tolist()])
        value_N = rollout.actions_NT[:, 0].double()
        return Score(value_N, metrics={"more": value_N.where(first_N, torch.nan)} if first_N.any() else {})


class Apart(Component):
    """A reward that hardly any two responses share."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        actions_NT = torch.where(rollout.mask_NT, rollout.actions_NT + 1, 0)
        places = torch.arange(1, rollout.steps + 1) ** 2
        return Score((actions_NT * places % 9973).sum(1).double() / 9973)


class Unlucky(Component):
    """A reward that fails at one example."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if any(example.id == "train-7" for example in rollout.examples):
            raise ValueError("not this one")
        return Score(rollout.actions_NT[:, 0].double())
