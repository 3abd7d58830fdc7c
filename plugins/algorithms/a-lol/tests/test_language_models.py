"""What holds of the losses holds of them on language models: a random GPT-2 and a random T5."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from rlalign import Example, Options, Rollout, Task
from rlalign.testing import Bench

from .conftest import GivenValue

REWARDS = (0.9, 0.1, 0.7, 0.4, 0.6, 1.0)
VALUES = (0.3, 0.5, 0.45, 0.2, 0.8, 0.35)
"""Two of six earn less."""


class ById(GivenValue):
    """V of example i is the i-th number, whatever its prompt reads like."""

    def values(self, rollout: Rollout, features: Any = None, last: bool = False) -> Tensor:
        return self.given[[int(e.id) for e in rollout.examples]][rollout.group_N]


class Worded(Task):
    """Prompts of 1 to 6 words with a response of 1 to 4 each; the first has its end, others are cut."""

    class Config(Options):
        """Options of `worded`."""

        rewards: tuple[float, ...] = Field(REWARDS, description="of the responses")
        only: int | None = Field(None, description="this example alone")
        longest: int = Field(4, description="words of a response at most")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        found = []
        for g, reward in enumerate(self.config.rewards):
            prompt = " ".join(f"w{(3 * i + g) % 20}" for i in range(g + 1))
            words = [f"w{(7 * i + 5 * g) % 20}" for i in range(min(1 + g % 4, self.config.longest))]
            found.append(
                Example(str(g), prompt, (" ".join(words),), (reward,), finished=(g == 0 and len(words) > 1,))
            )
        return found if self.config.only is None else [found[self.config.only]]


@pytest.fixture(scope="module", params=["causal-lm", "seq2seq-lm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    testing = pytest.importorskip("rlalign_plugin_hf.testing")
    return {request.param: {"path": str(testing.tiny_model(tmp_path_factory.mktemp("tiny"), request.param))}}


Given = Mapping[str, Any]
NOTHING: Given = {}


class Phases:
    """Phases of one model, with the policy where the reference is or a seeded step away."""

    def __init__(self, model: Mapping[str, Any], folder: Path) -> None:
        self.model, self.folder = model, folder
        self.away = 0.0

    def bench(
        self,
        method: str,
        *,
        task: Given = NOTHING,
        values: Any = VALUES,
        train: Given = NOTHING,
        **options: Any,
    ) -> Bench:
        scored = method != "sft"
        if scored:
            options = {"draw": "uniform", "pool": "all", **options}
        pipeline = {
            "task": {"worded": task},
            "policy": self.model,
            "responses": "logged",
            "rewards": ["logged"] if scored else [],
            "algorithm": {method: options},
            "models": {"value": {"by-id": {"values": values}}} if method == "a-lol" else {},
            "train": {"iterations": 1, "prompts": len(REWARDS), "dtype": "float64", **train},
        }
        made = Bench(self.folder, pipeline, {"worded": Worded, "by-id": ById})
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made.run.models.policy.parameters():
                parameter += self.away * torch.randn(parameter.shape, generator=generator)
        made.run.models.policy.version += 1
        return made

    def __call__(self, method: str = "a-lol", **options: Any) -> tuple[float, dict[str, Tensor]]:
        """(loss, gradient) of the same rows."""
        made = self.bench(method, **options)
        metrics, gradients = made.gradient(made.batch(1 if "only" in options.get("task", {}) else None))
        return metrics["loss"], gradients


@pytest.fixture
def here(model: dict[str, Any], tmp_path: Path) -> Phases:
    return Phases(model, tmp_path)


@pytest.fixture
def moved(here: Phases) -> Phases:
    here.away = 0.05
    return here


def same(
    one: tuple[float, Mapping[str, Tensor]], other: tuple[float, Mapping[str, Tensor]], near: float = 1e-9
) -> None:
    assert one[0] == pytest.approx(other[0], rel=near, abs=near)
    size = max(float(g.abs().max()) for g in other[1].values())
    for key, gradient in other[1].items():
        torch.testing.assert_close(one[1][key], gradient, rtol=0, atol=near * max(size, 1e-12))


@pytest.mark.parametrize("clip", [None, 0.0, 0.2, 0.9])
def test_at_the_reference_all_forms_are_one(here: Phases, clip: float | None) -> None:
    free = here(form="ref-free")
    near = 1e-5  # the reference was read in another batch, and attention rounds to float32
    same(here(clip=clip), free, near)
    same(here(form="seq", clip=clip), free, near)
    same(here("r-lol", clip=clip), here("r-lol", form="ref-free"), near)


def test_the_kl_form_weighs_the_gain_less_beta(here: Phases) -> None:
    ones = {"rewards": [1.0] * 6}
    free, kl, cloned = (
        here(form="ref-free"),
        here(form="kl", beta=0.3),
        here("r-lol", form="ref-free", task=ones),
    )
    assert kl[0] == pytest.approx(free[0], rel=1e-5)
    less = {key: g - 0.3 * cloned[1][key] for key, g in free[1].items()}
    same((free[0], kl[1]), (free[0], less), 1e-6)


def test_where_forms_meet(moved: Phases) -> None:
    free = moved(form="ref-free")
    same(moved(form="kl", beta=0.0), free)
    same(moved(form="seq", clip=0.0), free)
    same(moved(clip=0.0), free)
    same(moved(values=[0.0] * 6), moved("r-lol"))
    short = {"longest": 1}
    same(moved(form="seq", task=short), moved(task=short))
    with pytest.raises(AssertionError):
        same(moved(form="seq"), moved())
    ones = {"rewards": [1.0] * 6}
    same(moved("r-lol", form="ref-free", task=ones), moved("sft", mean="sums", task=ones))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_row_by_row_the_gradient_is_the_clipped_ratio_times_the_free_one(
    moved: Phases, clip: float | None
) -> None:
    bounds = set()
    for row in range(6):
        if REWARDS[row] < VALUES[row]:
            continue
        task = {"only": row}
        made = moved.bench("a-lol", clip=clip, task=task)
        batch = made.batch(1)
        now = made.run.score("policy", batch.rollout, ["full_logprobs"]).full_logprobs_NT
        ahead_N = batch.sum_over_chosen(now - batch.rollout.columns["reference.full_logprobs"])
        ratio = math.exp(float(ahead_N))
        weight = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
        bounds.add((weight > ratio) - (weight < ratio))
        _, full = made.gradient(batch)
        loss, free = moved(form="ref-free", task=task)
        same((loss, full), (loss, {key: weight * g for key, g in free.items()}), 1e-6)
    assert bounds == ({0} if clip is None else {-1, 1} | bounds), "clipped from above and from below"


def test_what_earns_less_than_expected_learns_nothing(moved: Phases) -> None:
    for form in ("full", "ref-free", "seq"):
        loss, gradients = moved(form=form, values=[1.0] * 6)
        assert loss == 0
        assert not any(bool(g.any()) for g in gradients.values())
    _, pushed = moved(form="kl", beta=0.2, values=[1.0] * 6)
    _, cloned = moved("r-lol", form="ref-free", task={"rewards": [1.0] * 6})
    same((0.0, pushed), (0.0, {key: -0.2 * g for key, g in cloned.items()}), 1e-6)


def test_the_kl_form_falls_and_falls(here: Phases) -> None:
    made = here.bench("a-lol", form="kl", values=[1.0] * 6, train={"iterations": 60, "lr": 0.03})
    found = [made.iterate() for _ in range(60)]
    losses = [metrics["loss"] for metrics in found]
    assert losses[0] == pytest.approx(0, abs=1e-4)
    assert losses[20] > losses[40] > losses[59]
    assert losses[59] < -5


@pytest.mark.parametrize("form", ["full", "seq", "kl", "ref-free"])
def test_neighbours_and_padding_change_nothing(moved: Phases, form: str) -> None:
    """Each response alone, whose prompt then needs no padding; and in a batch with all that is longer."""
    together = moved(form=form)
    alone = [moved(form=form, task={"only": row}) for row in range(6)]
    mean = {key: sum(g[key] for _, g in alone) / 6 for key in together[1]}
    same((sum(loss for loss, _ in alone) / 6, mean), together, 1e-5)  # type: ignore[arg-type]


def test_drawn_in_proportion_to_the_advantage(here: Phases) -> None:
    made = here.bench("a-lol", draw="priority")
    gains = [max(0.0, r - v) for r, v in zip(REWARDS, VALUES, strict=True)]
    found = Counter(int(e.id) for e in made.phase.draw.next(20_000))
    assert set(found) == {row for row, gain in enumerate(gains) if gain}
    expected = {row: 20_000 * gains[row] / sum(gains) for row in found}
    chi2 = sum((found[row] - n) ** 2 / n for row, n in expected.items())
    assert chi2 < 16.3  # of three degrees of freedom, exceeded once in a thousand seeds
