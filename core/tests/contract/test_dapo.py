"""DAPO's dynamic sampling: a filter, and `train.refill`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from rlalign import Batch, Component, Score, hookimpl
from rlalign.testing.bench import Silence

from .conftest import Runs, component, metrics
from .methods import Watch, same


class Sparse(Component):
    """1 for a response that begins with 4: often all or none of a group."""

    @hookimpl
    def reward(self, rollout: Any) -> Score:
        return Score((rollout.actions_NT[:, 0] == 4).float())


class Never(Component):
    """Keeps no group of the first iteration."""

    @hookimpl(wrapper=True)
    def advantage(self, run: Any) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch.take(batch.rollout.group_N < (0 if run.iteration == 0 else 10**6)).as_step()


PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 40, "prompts": 3}},
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 3, "vocabulary": 6, "scale": 0.3}},
    "rewards": ["sparse"],
    "algorithm": [
        "policy-gradient",
        {"watch": {}, "as": "before"},
        "informative",
        {"watch": {}, "as": "after"},
    ],
    "generation": {"samples": 3, "max_new_tokens": 3},
    "train": {"iterations": 1, "prompts": 8, "refill": 3, "lr": 0.0},
}


def test_rounds_are_joined_and_cut(runs: Runs) -> None:
    session = runs(PIPELINE, sparse=Sparse)
    (line,) = metrics(session)
    before, after = component(session, "before").batches, component(session, "after").batches
    rounds = int(line["refills"]) + 1
    assert 2 <= rounds == len(before) == len(after) <= 4
    assert sum(len(b.rollout.examples) for b in after[:-1]) < 8 <= sum(len(b.rollout.examples) for b in after)
    assert line["groups"] == 8
    assert line["responses"] == 24 * rounds  # everything that was sampled is counted

    # The rounds' tokens are those of one draw as large as all of them.
    bigger = {**PIPELINE, "train": {**PIPELINE["train"], "refill": 0, "prompts": 8 * rounds}}
    (whole,) = component(runs(bigger, sparse=Sparse), "before").batches
    assert [t for b in before for t in b.rollout.texts] == list(whole.rollout.texts)
    assert [e.id for b in before for e in b.rollout.examples] == [e.id for e in whole.rollout.examples]


def test_the_step_is_the_joined_batch(runs: Runs) -> None:
    """Learning on a refilled iteration is learning on its first eight informative groups."""
    learning = {**PIPELINE, "train": {**PIPELINE["train"], "lr": 0.1}}
    refilled = runs(learning, sparse=Sparse)
    rounds = len(component(refilled, "before").batches)

    class First(Watch):
        @hookimpl(wrapper=True)
        def advantage(self) -> Generator[None, Batch, Batch]:
            batch = yield
            return batch.take(batch.rollout.group_N < 8).as_step()

    algorithm = [*PIPELINE["algorithm"][:3], "first"]
    train = {**learning["train"], "refill": 0, "prompts": 8 * rounds}
    whole = runs({**learning, "algorithm": algorithm, "train": train}, sparse=Sparse, first=First)
    assert same(refilled.models["policy"].state_dict(), whole.models["policy"].state_dict())


def test_it_goes_on_with_what_there_is_and_says_so(runs: Runs) -> None:
    session = runs({**PIPELINE, "train": {**PIPELINE["train"], "refill": 1, "prompts": 20}}, sparse=Sparse)
    (line,) = metrics(session)
    assert 0 < line["groups"] < 20 and line["refills"] == 1
    assert line["optimiser_steps"] == 1
    assert isinstance(session.display, Silence)
    assert any("of 20 groups after 1 refills" in note for note in session.display.notes)


def test_an_empty_step_is_skipped_and_counted(runs: Runs) -> None:
    algorithm = ["policy-gradient", "never", "watch"]
    train = {**PIPELINE["train"], "refill": 0, "iterations": 2, "lr": 0.1}
    session = runs({**PIPELINE, "algorithm": algorithm, "train": train}, sparse=Sparse, never=Never)
    first, second = metrics(session)
    assert first["empty_steps"] == 1 and first["groups"] == 0 and first["step"] == 0
    assert second["empty_steps"] == 0 and second["step"] == 1
    watch = component(session, "watch")
    assert same(watch.started[0]["policy"], watch.done[0]["policy"])
    assert not same(watch.done[0]["policy"], watch.done[1]["policy"])
    assert torch.is_tensor(watch.done[0]["policy"]["free"])
    assert any("no responses left" in note for note in session.display.notes)
