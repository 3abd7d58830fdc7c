"""The engine against plain graphs: every route, every cut, every kind of loss, to 1e-12 in float64."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rlalign import (
    Batch,
    Component,
    ComponentError,
    Example,
    Loss,
    Nucleus,
    Options,
    Outputs,
    Reward,
    RLAlignError,
    Rollout,
    Run,
    hookimpl,
    logged_rollout,
)
from rlalign.config.registry import Registry, installed
from rlalign.config.validate import check
from rlalign.learning import batching, heads
from rlalign.running.members import implements
from rlalign.testing import Bench, LinearValue, Logits, plain_gradient
from rlalign.world.ranks import here

# -- losses of every kind --------------------------------------------------------------------------------


class Plain(Component):
    """A policy gradient: what other losses are added to."""

    needs: tuple[str, ...] = ("logprobs",)
    trains: tuple[str, ...] = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gain_N = batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)
        return Loss(-batch.mean_over_responses(gain_N), {"gain": batch.mean_over_responses(gain_N)})


class EntropyBonus(Component):
    needs = ("logprobs", "entropy")
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        entropy = batch.mean_over_tokens(now.entropy_NT)
        gain = batch.mean_over_tokens(batch.advantage_NT * now.logprobs_NT)
        return Loss(-gain - 0.3 * entropy, {"entropy": entropy})


class Clipped(Component):
    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        ratio_NT = (now.logprobs_NT - batch.old_logprobs_NT).exp()
        gain_NT = torch.minimum(ratio_NT * batch.advantage_NT, ratio_NT.clamp(0.9, 1.1) * batch.advantage_NT)
        clipped_NT = ((ratio_NT - 1).abs() > 0.1).to(ratio_NT.dtype)
        return Loss(-batch.mean_over_tokens(gain_NT), {"clipped": batch.mean_over_tokens(clipped_NT)})


class KLLoss(Component):
    needs = ("full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    models = {"reference": "frozen"}
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        x_NT = now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"]
        kl = batch.mean_over_tokens(torch.expm1(-x_NT) + x_NT)
        return Loss(
            kl + batch.mean_over_responses(batch.sum_over_chosen(x_NT * batch.advantage_NT)), {"kl": kl}
        )


class ValueLoss(Component):
    """A policy gradient on r − V(s), and the squared error of V: both read the value."""

    needs = ("logprobs", "values", "value.state_values")
    trains = ("policy", "value")
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        before_NT = batch.rollout.columns["value.state_values"][:, :-1]
        gain = batch.mean_over_tokens((batch.advantage_NT - before_NT) * now.logprobs_NT)
        error = batch.mean_over_tokens((now.values_NT - batch.advantage_NT) ** 2)
        return Loss(0.5 * error - gain, {"error": error})


class ValueOnly(Component):
    needs = ("values",)
    trains = ("value",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens((now.values_NT - batch.advantage_NT) ** 2))


class Pairs(Component):
    """All pairs of a group, as in CoPG: needs the whole group at once."""

    needs = ("logprobs", "full_logprobs", "reference.full_logprobs")
    trains = ("policy",)
    models = {"reference": "frozen"}
    unit = "group"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rows_GK, real_GK = batch.rollout.groups()
        ref_NT = batch.rollout.columns["reference.full_logprobs"]
        r_GK = batch.reward.total_N[rows_GK]
        x_GK = batch.sum_over_chosen(now.full_logprobs_NT - ref_NT + now.logprobs_NT)[rows_GK]
        gap_GKK = (r_GK[:, :, None] - r_GK[:, None]) - 0.5 * (x_GK[:, :, None] - x_GK[:, None])
        pair_GKK = (real_GK[:, :, None] & real_GK[:, None]).to(gap_GKK.dtype)
        share_G = (pair_GKK * gap_GKK**2).sum((1, 2)) / pair_GKK.sum((1, 2))
        return Loss(batch.mean_over_groups(share_G))


class Coupled(Component):
    """All rows of the step meet in one logarithm: no piece can be evaluated alone."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "step"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        total_N = batch.sum_over_chosen(now.logprobs_NT)
        return Loss(-(batch.reward.total_N * (total_N / 9).softmax(0)).sum() + (total_N / 9).logsumexp(0))


def short(batch: Batch) -> Tensor:
    return batch.rollout.length_N <= 4


def early(batch: Batch) -> Tensor:
    return (torch.arange(batch.rollout.steps) < 2).expand(batch.rollout.mask_NT.shape)


def spread_out(batch: Batch) -> Tensor:
    """Groups whose first response earned less than a number that some groups reach and others do not."""
    rows_GK, _ = batch.rollout.groups()
    return batch.reward.total_N[rows_GK[:, 0]] < 1.5


class Where(Component):
    """Denominators that count a part of the step, of which a piece may hold everything or nothing."""

    needs = ("logprobs", "entropy")
    trains = ("policy",)
    unit = "group"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rows_GK, real_GK = batch.rollout.groups()
        total_N = batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)
        best_G = torch.where(real_GK, total_N[rows_GK], -torch.inf).amax(1)
        informative = batch.mean_over_groups(best_G, spread_out)
        few = batch.mean_over_responses(total_N, short)
        first = batch.mean_over_tokens(now.entropy_NT, early)
        of_short = batch.mean_over_tokens(now.logprobs_NT, short)
        return Loss(informative - few - first + of_short, {"informative": informative, "few": few})


class Whitened(Component):
    """Statistics of the whole step enter every piece's loss."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        everything = batch.step.reward.total_N
        white_N = (batch.reward.total_N - everything.mean()) / everything.std()
        return Loss(-batch.mean_over_responses(white_N * batch.sum_over_chosen(now.logprobs_NT)))


class Constrained(Plain):
    """Sampling narrowed by a lagging copy, as in NLPO."""

    models = {"mask": "lagging"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.constraint = Nucleus("mask", top_p=0.7, min_keep=2)


class PromptValue(LinearValue):
    """One value a response, read from a number a prompt."""

    class Config(Options):
        trunk: str | None = Field(None, description="unused")

    per_prompt = True

    def setup(self, policy: Any) -> None:
        self.weight = torch.nn.Parameter(
            torch.linspace(-1, 1, policy.config.prompts, dtype=policy.free.dtype)
        )

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        return self.weight[torch.cat(list(rollout.inputs))[rollout.group_N]]


class DropSome(Component):
    """One group goes whole, and of the others one row each where there are more."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        group_N = batch.rollout.group_N
        keep = group_N != 1
        for g in range(2, len(batch.rollout.examples)):
            rows = (group_N == g).nonzero()[:, 0]
            if len(rows) > 1:
                keep[rows[0]] = False
        return batch.take(keep).as_step()


class Spread(Component):
    """Rewards that differ from response to response and do not hang on the text alone."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Any:
        from rlalign import Score

        return Score(torch.tensor([math.sin(3.0 * len(t) + sum(map(ord, t))) + 1 for t in rollout.texts]))


COMPONENTS: dict[str, type[Any]] = {
    "plain": Plain,
    "entropy-bonus": EntropyBonus,
    "clipped": Clipped,
    "kl-loss": KLLoss,
    "value-loss": ValueLoss,
    "value-only": ValueOnly,
    "pairs": Pairs,
    "coupled": Coupled,
    "where": Where,
    "whitened": Whitened,
    "constrained": Constrained,
    "prompt-value": PromptValue,
    "drop-some": DropSome,
    "spread": Spread,
}
TRUNKS: dict[str, Any] = {
    "own": {},
    "shared": {"models": {"value": {"linear-value": {"trunk": "policy"}}}},
    "on-reference": {"models": {"value": {"linear-value": {"trunk": "reference"}}}},
    "of-prompt": {"models": {"value": "prompt-value"}},
}
LOSSES: dict[str, dict[str, Any]] = {
    name: {"algorithm": name}
    for name in ("plain", "entropy-bonus", "clipped", "kl-loss", "pairs", "coupled", "where", "whitened", "constrained")
}  # fmt: skip
LOSSES |= {f"value-loss-{trunk}": {"algorithm": "value-loss", **models} for trunk, models in TRUNKS.items()}
LOSSES |= {f"value-only-{trunk}": {"algorithm": "value-only", **models} for trunk, models in TRUNKS.items()}
LOSSES["value-loss-on-reference"]["algorithm"] = ["value-loss", {"kl-loss": {}, "weight": 0.1}]
LOSSES["value-only-on-reference"]["algorithm"] = ["value-only", {"kl-loss": {}, "weight": 0.1}]
LOSSES["value-only-with-policy"] = {"algorithm": ["value-only", "plain"], **TRUNKS["shared"]}
LOSSES["weighted-sum"] = {
    "algorithm": [
        {"clipped": {}, "weight": 0.7},
        {"entropy-bonus": {}, "weight": -1.9},
        {"pairs": {}, "weight": 0.2},
    ]
}
LOSSES["step-and-values"] = {"algorithm": ["value-loss", {"coupled": {}, "weight": 2.0}], **TRUNKS["shared"]}
LOSSES["step-and-prompt"] = {
    "algorithm": ["value-loss", {"coupled": {}, "weight": 2.0}],
    **TRUNKS["of-prompt"],
}

_SAMPLED = {"samples": 3, "max_new_tokens": 6}
DATA: dict[str, dict[str, Any]] = {
    "logged": {"responses": "logged"},
    "tempered": {"generation": {**_SAMPLED, "temperature": 0.6, "min_new_tokens": 2}},
    "top-p": {"generation": {**_SAMPLED, "temperature": 1.4, "top_p": 0.7, "min_new_tokens": 1}},
    "top-k": {"generation": {**_SAMPLED, "top_k": 3}},
    "mixed": {"responses": {"mix": {"logged": 1, "sampled": 3}}, "generation": {"temperature": 0.8, "top_p": 0.8}},
    "filtered": {"responses": "logged", "drop": True},
    "one-step": {"generation": {"samples": 4, "max_new_tokens": 1}},
}  # fmt: skip


def pipeline(loss: Mapping[str, Any], data: Mapping[str, Any], hidden: int | None = 5) -> dict[str, Any]:
    data = dict(data)
    algorithm = loss["algorithm"]
    if data.pop("drop", False):
        algorithm = [*(algorithm if isinstance(algorithm, list) else [algorithm]), "drop-some"]
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": hidden}},
        "rewards": ["spread"],
        "responses": "sampled",
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64"},
        **loss,
        "algorithm": algorithm,
        **data,
    }


# -- a second, slow implementation ------------------------------------------------------------------------


def kept_tokens(logits_V: Tensor, how: Any, t: int, end: int, mask_V: Tensor | None) -> list[int]:
    """What may be sampled, by sorting a list."""
    order = sorted(range(len(logits_V)), key=lambda v: -float(logits_V[v]))
    if mask_V is not None:
        best = (mask_V / 1.0).softmax(0)
        taken, held = 0.0, []
        for v in sorted(range(len(mask_V)), key=lambda v: -float(mask_V[v])):
            if taken < 0.7 or len(held) < 2:
                held.append(v)
            taken += float(best[v])
        order = [v for v in order if v in held or v == end]
    if t < how.min_new_tokens:
        order = [v for v in order if v != end]
    if how.top_k:
        order = order[: how.top_k]
    if how.top_p < 1:
        z = torch.stack([logits_V[v] for v in order]).softmax(0)
        reached, kept = 0.0, []
        for v, p in zip(order, z.tolist(), strict=True):
            if reached < how.top_p:
                kept.append(v)
            reached += p
        order = kept
    return order


class ByHand:
    """Log-probs, full log-probs, entropies and values of a batch: a loop over rows and steps.

    What the sampler had to choose from is worked out when this is made, from the weights of that moment.
    """

    def __init__(self, bench: Bench, rollout: Rollout) -> None:
        self.bench, self.rollout = bench, rollout
        policy = bench.run.models.policy
        assert isinstance(policy, Logits)
        self.policy, self.end = policy, policy.config.vocabulary - 1
        mask = bench.run.models.get("mask")
        self.allowed: dict[tuple[int, int], list[int]] = {}
        with torch.no_grad():
            for i, t in self.places():
                how = rollout.settings[int(rollout.setting_N[i])]
                logged = "score" in rollout.columns and not bool(rollout.columns["score"][i].isnan())
                masked = mask is not None and not logged
                of_mask = self.logits(i, t, mask) if masked else None  # type: ignore[arg-type]
                self.allowed[i, t] = kept_tokens(
                    self.logits(i, t, policy) / how.temperature, how, t, self.end, of_mask
                )

    def places(self) -> list[tuple[int, int]]:
        mask = self.rollout.mask_NT.tolist()
        return [(i, t) for i, row in enumerate(mask) for t, chosen in enumerate(row) if chosen]

    def feature(self, i: int, t: int, policy: Logits) -> Tensor:
        prompt = int(self.rollout.examples[int(self.rollout.group_N[i])].prompt)  # type: ignore[arg-type]
        slot = int(self.rollout.columns["slot"][i]) % policy.config.responses
        free = policy.free[prompt * policy.config.responses + slot, t]
        return free if policy.config.hidden is None else (free @ policy.mixing).tanh()

    def logits(self, i: int, t: int, policy: Logits) -> Tensor:
        h = self.feature(i, t, policy)
        return h if policy.config.hidden is None else policy.output @ h

    def value(self, i: int, t: int) -> Tensor:
        value = self.bench.run.models["value"]
        prompt = int(self.rollout.examples[int(self.rollout.group_N[i])].prompt)  # type: ignore[arg-type]
        if isinstance(value, PromptValue):
            return value.weight[prompt]
        if isinstance(value, LinearValue):
            return self.feature(i, t, self.bench.run.models[str(value.trunk)]) @ value.weight  # type: ignore[arg-type]
        slot = int(self.rollout.columns["slot"][i]) % self.policy.config.responses
        return value.free[prompt * self.policy.config.responses + slot, t]  # type: ignore[no-any-return]

    def outputs(self) -> dict[str, Tensor]:
        zero = self.policy.free.new_zeros(())
        names = ("logprobs_NT", "full_logprobs_NT", "entropy_NT", "values_NT")
        grids = {name: [[zero] * self.rollout.steps for _ in range(len(self.rollout))] for name in names}
        for i, t in self.places():
            how = self.rollout.settings[int(self.rollout.setting_N[i])]
            z = self.logits(i, t, self.policy) / how.temperature
            y = int(self.rollout.actions_NT[i, t])
            kept = self.allowed[i, t]
            p = z[kept].exp() / z[kept].exp().sum()
            grids["logprobs_NT"][i][t] = p[kept.index(y)].log()
            grids["full_logprobs_NT"][i][t] = z[y] - z.exp().sum().log()
            grids["entropy_NT"][i][t] = -(p * p.log()).sum()
            if self.bench.engine.wants_values:
                grids["values_NT"][i][t] = self.value(i, t)
        return {name: torch.stack([torch.stack(row) for row in grid]) for name, grid in grids.items()}

    def gradient(self, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
        self.bench.engine.clear_gradients()
        loss, metrics = self.bench.phase.losses(replace(batch, whole=None), Outputs(**self.outputs()))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = self.bench._gradients()
        self.bench.engine.clear_gradients()
        return {name: float(x.detach()) for name, x in {"loss": loss, **metrics}.items()}, gradients


def nudge(bench: Bench) -> None:
    """Move the trained weights, so that ratios are not 1 and the reference is another model."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in bench.engine.trains:
            for parameter in bench.engine.models[name].parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def assert_same(
    found: tuple[dict[str, float], dict[str, Tensor]],
    expected: tuple[dict[str, float], dict[str, Tensor]],
    where: str,
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-12), where
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = float(gradient.abs().max().clamp_min(1.0))
        assert float((found[1][name] - gradient).abs().max()) <= 1e-12 * scale, f"{name}: {where}"


WHOLE = 10**9
CUTS: list[tuple[str | None, int, int]] = [
    ("A", WHOLE, WHOLE), ("A", WHOLE, 21), ("A", 32, 21), ("B", WHOLE, 5), ("B", 32, 7), ("T", WHOLE, 5), ("T", 32, 4),
    ("T", 1, 3), (None, WHOLE, WHOLE), (None, 32, 8), (None, 1, 1), (None, 7, WHOLE),
]  # fmt: skip


def check_cuts(bench: Bench, batch: Batch, expected: tuple[dict[str, float], dict[str, Tensor]]) -> None:
    for route, budget, chunk in CUTS:
        found = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert_same(found, expected, f"route {route}, budget {budget}, head chunk {chunk}")


# -- every loss, every kind of data, every route ------------------------------------------------------------


EACH = [
    *((loss, "logged") for loss in LOSSES),
    *((loss, data) for loss in ("weighted-sum", "value-loss-shared") for data in DATA if data != "logged"),
]
"""Each loss and each kind of data; the slow tests put each with each."""
REST = [
    pytest.param(loss, data, marks=pytest.mark.slow)
    for loss in LOSSES
    for data in DATA
    if (loss, data) not in EACH
]


@pytest.mark.parametrize("loss, data", [*EACH, *REST])
def test_every_route_and_cut_equals_the_plain_graph_and_a_loop_over_tokens(
    loss: str, data: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES[loss], DATA[data]), COMPONENTS)
    batch = bench.batch()
    by_hand = ByHand(bench, batch.rollout)
    nudge(bench)
    expected = plain_gradient(bench, batch)
    assert any(float(g.abs().max()) > 1e-3 for g in expected[1].values())
    assert_same(by_hand.gradient(batch), expected, "the loop over tokens")
    check_cuts(bench, batch, expected)


def test_the_data_holds_what_it_should(tmp_path: Path) -> None:
    """Groups of 1 to 5, responses of 1 to T, a group gone, truncated steps, several settings."""
    logged = Bench(tmp_path, pipeline(LOSSES["where"], DATA["logged"]), COMPONENTS).batch()
    counts = torch.bincount(logged.rollout.group_N)
    assert sorted(counts.tolist()) == [1, 2, 3, 3, 4, 5]
    assert int(logged.rollout.length_N.min()) <= 2
    assert int(logged.rollout.length_N.max()) == logged.rollout.steps
    assert 0 < int(spread_out(logged).sum()) < len(counts)
    assert 0 < int(short(logged).sum()) < len(logged)
    filtered = Bench(tmp_path, pipeline(LOSSES["where"], DATA["filtered"]), COMPONENTS).batch()
    assert len(filtered.rollout.examples) == 5
    mixed = Bench(tmp_path, pipeline(LOSSES["where"], DATA["mixed"]), COMPONENTS).batch()
    assert len(mixed.rollout.settings) == 2
    assert mixed.rollout.allowed is not None


def test_losses_are_weighted_and_added(tmp_path: Path) -> None:
    """Neither the plain graph nor the loop over tokens adds losses up itself; this does."""
    parts = LOSSES["weighted-sum"]["algorithm"]

    def gradient(algorithm: Any) -> tuple[dict[str, float], Tensor]:
        bench = Bench(tmp_path, pipeline({"algorithm": algorithm}, DATA["logged"]), COMPONENTS)
        batch = bench.batch()
        nudge(bench)
        metrics, gradients = bench.gradient(batch)
        return metrics, gradients["policy/free"]

    metrics, together = gradient(parts)
    loss, total = 0.0, torch.zeros_like(together)
    for part in parts:
        (name, weight) = (next(key for key in part if key != "weight"), part["weight"])
        alone, one = gradient(name)
        assert metrics[f"{name}/loss"] == pytest.approx(alone["loss"], rel=1e-12)
        loss, total = loss + weight * alone["loss"], total + weight * one
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(together, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("source", ["logged", "sampled"])
def test_a_loss_of_one_source_counts_and_reads_its_rows_only(
    source: str, hidden: int | None, tmp_path: Path
) -> None:
    algorithm = [
        {"where": {}, "source": source, "weight": 0.5},
        {"pairs": {}},
        {"plain": {}, "source": "sampled"},
    ]
    bench = Bench(tmp_path, pipeline({"algorithm": algorithm}, DATA["mixed"], hidden), COMPONENTS)
    batch = bench.batch()
    by_hand = ByHand(bench, batch.rollout)
    nudge(bench)
    expected = plain_gradient(bench, batch)
    assert_same(by_hand.gradient(batch), expected, "the loop over tokens")
    check_cuts(bench, batch, expected)


def test_a_piece_without_rows_of_its_source_adds_nothing(tmp_path: Path) -> None:
    algorithm = [{"where": {}, "source": "logged"}]
    bench = Bench(tmp_path, pipeline({"algorithm": algorithm}, DATA["mixed"]), COMPONENTS)
    batch = bench.batch()
    kept = torch.tensor(
        [
            s == "sampled" or g < 2
            for s, g in zip(batch.rollout.columns["source"], batch.rollout.group_N.tolist(), strict=True)
        ]
    )
    batch = batch.take(kept).as_step()
    check_cuts(bench, batch, plain_gradient(bench, batch))


def test_a_denominator_of_one_source_is_counted_once_a_step(tmp_path: Path) -> None:
    counted = []

    def counting(batch: Batch) -> Tensor:
        counted.append(len(batch))
        return short(batch)

    class Counts(Plain):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            return Loss(batch.mean_over_tokens(now.logprobs_NT, counting))

    say = pipeline({"algorithm": [{"counts": {}, "source": "sampled"}]}, DATA["mixed"])
    bench = Bench(tmp_path, say, {**COMPONENTS, "counts": Counts})
    batch = bench.batch()
    bench.gradient(batch, budget=1)
    assert counted.count(batch.rollout.columns["source"].count("sampled")) == 1


@pytest.mark.parametrize("source", [None, "logged"])
def test_a_rollout_in_a_column_is_scored_once_a_step(source: str | None, tmp_path: Path) -> None:
    """Of a whole step and of the step of one source alike, however many pieces there are."""

    class Elsewhere(Plain):
        @hookimpl
        def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
            return Batch.of(rollout, reward, reward.total_N, elsewhere=replace(rollout))

        @hookimpl
        def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
            other = batch.step.columns["elsewhere"]
            level = run.score("policy", other, ["full_logprobs"]).full_logprobs_NT[other.mask_NT].mean()
            return Loss(batch.mean_over_tokens((now.logprobs_NT - level) ** 2))

    say = pipeline(
        {"algorithm": [{"elsewhere": {}, **({"source": source} if source else {})}]}, DATA["mixed"]
    )
    bench = Bench(tmp_path, say, {**COMPONENTS, "elsewhere": Elsewhere})
    batch, scored = bench.batch(), []
    score = bench.engine._score
    bench.engine._score = lambda model, *rest: (scored.append(model), score(model, *rest))[1]  # type: ignore[method-assign]
    whole, pieces = (bench.gradient(batch, budget=budget) for budget in (10**9, 1))
    assert pieces[0] == pytest.approx(whole[0], rel=1e-12)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(pieces[1][name], gradient, rtol=0, atol=1e-12)
    assert scored == ["policy"]


def test_rejecting_every_entry_of_a_mean_is_no_division_by_zero(tmp_path: Path) -> None:
    class Nothing(Plain):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            total_N = batch.sum_over_chosen(now.logprobs_NT)
            return Loss(batch.mean_over_responses(total_N, lambda b: torch.zeros(len(b), dtype=torch.bool)))

    bench = Bench(
        tmp_path, pipeline({"algorithm": "nothing"}, DATA["logged"]), {**COMPONENTS, "nothing": Nothing}
    )
    metrics, gradients = bench.gradient(bench.batch(), budget=32)
    assert metrics["loss"] == 0
    assert all(float(g.abs().max()) == 0 for g in gradients.values())


ROOT = Path(__file__).resolve().parents[3]
OURS = {tomllib.loads(p.read_text())["project"]["name"] for p in ROOT.glob("plugins/*/*/pyproject.toml")}


def _algorithms() -> list[str]:
    """The repository's own components with a loss, whatever else is installed."""
    registry = Registry()
    names = [f"{offer.distribution}:{offer.name}" for offer in installed() if offer.distribution in OURS]
    return [name for name in names if implements_loss(registry.load(name).cls)]


def implements_loss(cls: type[Any]) -> bool:
    return hasattr(getattr(cls, "loss", None), "rlalign_impl")


@pytest.mark.parametrize("name", _algorithms())
def test_every_algorithm_of_the_repository(name: str, tmp_path: Path) -> None:
    cls = Registry().load(name).cls
    missing: list[str] = []
    config = check(cls.Config, {}, tmp_path, lambda keys, said: missing.append(said))
    if config is None:
        pytest.skip(
            f"`{name}` must be told something ({', '.join(missing)}); its own tests inherit ComponentTests"
        )
    made = cls(config)
    assert implements(made, "loss") == "plain"
    say: dict[str, Any] = {
        "task": {"numbers": {"logged": [2, 3, 4, 2, 5, 3]}},
        "policy": {"logits": {"hidden": 5}},
        "rewards": ["spread"],
        "algorithm": name,
        "generation": {"samples": max(4, made.min_samples), "max_new_tokens": 6, "temperature": 0.8},
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64"},
    }
    try:
        bench = Bench(tmp_path, say, COMPONENTS)
        batch = bench.batch()
    except ComponentError as error:
        wants = {
            "put a phase with": "a phase before it",
            "here the policy is a": "another policy",
            "take a task that is an environment": "episodes",
        }
        found = [what for said, what in wants.items() if said in str(error)]
        if not found:
            raise
        pytest.skip(f"`{name}` wants {found[0]}; its own tests inherit ComponentTests")
    by_hand = ByHand(bench, batch.rollout) if bench.phase.plan.trains == ("policy",) else None
    nudge(bench)
    expected = plain_gradient(bench, batch)
    if by_hand is not None:
        assert_same(by_hand.gradient(batch), expected, "the loop over tokens")
    check_cuts(bench, batch, expected)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["A", "B", "T", None]), st.integers(1, 80), st.integers(1, 40), st.randoms(use_true_random=False)
)  # fmt: skip
def test_any_cut_of_any_rows_in_any_order(route: Any, budget: int, chunk: int, random: Any) -> None:
    bench = shared_bench()
    batch = bench.batches[0]
    count = random.randint(1, len(batch))
    rows = torch.tensor(random.sample(range(len(batch)), count))
    step = batch.take(rows).as_step()
    expected = plain_gradient(bench, step)
    found = bench.gradient(step, route=route, budget=budget, head_chunk=chunk)
    assert_same(found, expected, f"route {route}, budget {budget}, head chunk {chunk}, rows {rows.tolist()}")


_SHARED: list[Any] = []


def shared_bench() -> Any:
    if not _SHARED:
        import tempfile

        loss = {**LOSSES["weighted-sum"], "models": TRUNKS["shared"]["models"]}
        loss["algorithm"] = [*loss["algorithm"], {"value-loss": {}, "weight": 0.4}]
        bench: Any = Bench(Path(tempfile.mkdtemp()), pipeline(loss, DATA["mixed"]), COMPONENTS)
        bench.batches = [bench.batch()]
        nudge(bench)
        _SHARED.append(bench)
    return _SHARED[0]


@pytest.mark.parametrize("route", ["A", "B", "T"])
def test_the_order_of_rows_within_a_group_is_kept(route: str, tmp_path: Path) -> None:
    """A ranking or a pair may say by its order which response is the better one."""

    class FirstAgainstRest(Plain):
        unit = "group"

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            rows_GK, real_GK = batch.rollout.groups()
            total_GK = torch.where(real_GK, batch.sum_over_chosen(now.logprobs_NT)[rows_GK], -torch.inf)
            return Loss(batch.mean_over_groups(total_GK.logsumexp(1) - total_GK[:, 0]))

    say = pipeline({"algorithm": "first"}, DATA["logged"])
    bench = Bench(tmp_path, say, {**COMPONENTS, "first": FirstAgainstRest})
    batch = bench.batch()
    expected = plain_gradient(bench, batch)
    for budget in (WHOLE, 20, 1):
        found = bench.gradient(batch, route=route, budget=budget, head_chunk=WHOLE if route == "A" else 4)
        assert_same(found, expected, f"budget {budget}")


@pytest.mark.parametrize("loss", ["clipped", "pairs", "weighted-sum", "value-loss-shared", "where"])
def test_one_batch_of_sixty_four_equals_sixteen_of_four_equals_rows(loss: str, tmp_path: Path) -> None:
    """64 responses in one forward, in 16 of 4 each, and one by one."""
    say = pipeline(LOSSES[loss], {"generation": {"samples": 4, "max_new_tokens": 6, "min_new_tokens": 6}})
    say["task"] = {"numbers": {"size": 16}}
    say["train"]["prompts"] = 16
    bench = Bench(tmp_path, say, COMPONENTS)
    batch = bench.batch()
    nudge(bench)
    assert len(batch) == 64
    expected = plain_gradient(bench, batch)
    for budget, forwards in ((64 * 7, 1), (4 * 7, 16), (7, 64)):
        before = bench.engine.forwards
        found = bench.gradient(batch, budget=budget)
        assert_same(found, expected, f"budget {budget}")
        again = 2 if budget == 7 and bench.engine.unit == "group" else 1
        assert bench.engine.forwards - before == forwards * again


# -- how often the trunk runs, and what stays in memory ------------------------------------------------------


@pytest.mark.parametrize("loss", ["plain", "weighted-sum", "value-loss-shared", "value-only-with-policy"])
@pytest.mark.parametrize("route, times", [("A", 1), ("B", 1), ("T", 2)])
def test_the_trunk_runs_once_a_micro_batch(loss: str, route: str, times: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES[loss], DATA["logged"]), COMPONENTS)
    batch = bench.batch()
    policy = bench.run.models.policy
    ran = []
    features = policy.features
    policy.features = lambda *args, **kwargs: ran.append(1) or features(*args, **kwargs)  # type: ignore
    before = bench.engine.forwards
    bench.gradient(batch, route=route, budget=40, head_chunk=21 if route == "A" else 4)
    pieces = batching.micro_batches(batch.rollout, 40, bench.engine.unit)
    if route == "T":
        cut = [batching.micro_batches(batch.rollout.take(torch.tensor(piece.rows)), 40) for piece in pieces]
        pieces = [one for pieces_of in cut for one in pieces_of]
    assert len(pieces) > 2
    assert bench.engine.forwards - before == len(ran) == times * len(pieces)


def test_a_value_with_its_own_trunk_leaves_the_policy_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES["value-only-own"], DATA["logged"]), COMPONENTS)
    bench.gradient(bench.batch())
    assert bench.engine.forwards == 0


V = 23


class Watch(TorchDispatchMode):
    """Remembers every [·,V] tensor that is made, by its storage."""

    def __init__(self, spared: tuple[int, ...]) -> None:
        super().__init__()
        self.spared = spared
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and x.ndim > 1 and x.shape[-1] == V and x.shape[0] not in self.spared:
                self.made.append((StorageWeakRef(x.untyped_storage()), x.numel() // V))
        return out

    def alive(self) -> int:
        """Rows of the largest of them that is still there."""
        return max((rows for ref, rows in self.made if not ref.expired()), default=0)

    def largest(self) -> int:
        """Rows of the largest that there ever was."""
        return max(rows for _, rows in self.made)


class AnyHead(Logits):
    """The same policy, whose head does not say that it is one matrix."""

    def head_matrix(self) -> None:
        return None


@pytest.mark.thin(2)
@pytest.mark.parametrize("data", ["logged", "top-p"])
@pytest.mark.parametrize("loss", ["plain", "entropy-bonus", "weighted-sum", "value-loss-shared", "coupled"])
@pytest.mark.parametrize("policy", ["logits", "any-head"])
@pytest.mark.parametrize("route", ["A", "B", "T"])
def test_no_logits_outlive_their_chunk(route: str, policy: str, loss: str, data: str, tmp_path: Path) -> None:
    """Nothing as wide as the vocabulary has more rows than a chunk, or is left when the next chunk begins."""
    say = pipeline(LOSSES[loss], DATA[data])
    say["policy"] = {policy: {"hidden": 5, "vocabulary": V}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "any-head": AnyHead})
    batch = bench.batch()
    now = bench.run.models.policy
    begins, left = now.head_matrix, []
    chunk = 21 if route == "A" and loss != "coupled" else 4
    with Watch(spared=(5,)) as watch:  # the head's own weight and its gradient are [5,V]

        def watched() -> Tensor | None:
            left.append(watch.alive())
            return begins()

        now.head_matrix = watched  # type: ignore[method-assign]
        bench.gradient(batch, route=route, budget=64, head_chunk=chunk)
    assert len(left) > 4
    assert max(left) == 0
    assert 0 < watch.largest() <= chunk


@pytest.mark.parametrize("data", ["logged", "top-p"])
@pytest.mark.parametrize(
    "want",
    [
        ("logprobs",),
        ("full_logprobs",),
        ("entropy",),
        ("logprobs", "entropy"),
        ("logprobs", "full_logprobs"),
    ],
)
def test_heads_in_place_give_what_autograd_gives(want: Any, data: str, tmp_path: Path) -> None:
    """Outputs and gradients, also where only some of them have a cotangent."""
    say = pipeline(LOSSES["plain"], DATA[data])
    say["policy"] = {"logits": {"hidden": 5, "vocabulary": V}}
    bench = Bench(tmp_path, say, COMPONENTS)
    rollout, policy = bench.batch().rollout, bench.run.models.policy
    row_M, step_M = rollout.chosen
    generator = torch.Generator().manual_seed(0)
    cotangents = {name: torch.randn(len(row_M), generator=generator, dtype=torch.float64) for name in want}
    matrix = policy.head_matrix()
    assert matrix is not None
    found = []
    for ours in (True, False):
        policy.zero_grad()
        h_MC = policy.features(rollout).detach().requires_grad_()
        steps = policy, h_MC, rollout, (row_M, step_M), want
        if ours:
            head = heads.opened(*steps, learns=True, autocast=nullcontext)
            both = want == ("logprobs", "full_logprobs") and data == "top-p"
            assert isinstance(head, heads.ByAutograd) == both
        else:
            head = heads.ByAutograd(*steps, True, nullcontext)
        dh_MC = head.backward(cotangents)
        assert dh_MC is not None and matrix.grad is not None
        found.append({**head.outputs, "h": dh_MC, "matrix": matrix.grad.clone()})
    assert found[0].keys() == found[1].keys() == {*want, "h", "matrix"}
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=0, atol=1e-13)


def test_prompts_computed_once_count_once() -> None:
    """Two prompts of 10 tokens with three responses each of 2, 3 and 4 tokens."""
    rollout = logged_rollout(
        [Example(str(i), "", responses=("", "", "")) for i in range(2)],
        [torch.zeros(10, dtype=torch.long)] * 2,
        [([0] * length, True) for length in (2, 3, 4) * 2],
        like=torch.zeros(1),
    )
    (apart,), (once,) = (batching.micro_batches(rollout, 100, once=o) for o in (False, True))
    assert (apart.cost, once.cost) == (6 * 14, 2 * 10 + 6 * 4)
    assert [b.rows for b in batching.micro_batches(rollout, 44, once=True)] == [[0, 1, 2, 3, 4, 5]]
    assert [b.rows for b in batching.micro_batches(rollout, 43, once=True)] == [[0, 1, 2], [3, 4, 5]]
    assert [b.cost for b in batching.micro_batches(rollout, 14, once=True)] == [14, 14, 13, 13, 12, 12]


def responses_of(lengths: list[list[int]], prompt: int) -> Rollout:
    """Responses of these lengths, a list a group."""
    return logged_rollout(
        [Example(str(i), "", responses=("",) * len(group)) for i, group in enumerate(lengths)],
        [torch.zeros(prompt, dtype=torch.long)] * len(lengths),
        [([0] * length, True) for group in lengths for length in group],
        like=torch.zeros(1),
    )


@pytest.mark.parametrize("once", (False, True))
@pytest.mark.parametrize("unit", ("response", "group", "step"))
def test_micro_batches_are_sorted_by_length_where_that_spares_much_padding(unit: str, once: bool) -> None:
    """Groups of long and of short responses, 1,120 tokens, 2,800 padded: as two passes, unless all belong together."""
    rollout = responses_of([[100, 100], [10, 8, 9, 10]] * 4 + [[9] * 4], prompt=1)
    cuts = batching.micro_batches(rollout, 10**6, unit, once=once)
    assert sorted(row for block in cuts for row in block.rows) == list(range(len(rollout)))
    assert len(cuts) == (1 if unit == "step" else 2)
    assert sum(block.padding for block in cuts) < (10**4 if unit == "step" else 60)
    few = responses_of([[30, 20], [10, 8]], prompt=1)
    assert len(batching.micro_batches(few, 10**6, unit, once=once)) == 1


# -- out of memory -----------------------------------------------------------------------------------------


class Small(Logits):
    """A policy on a machine with little memory."""

    limit: int = 10**9
    tries: int = 0

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        if int(rollout.mask_NT.sum()) > self.limit:
            Small.tries += 1
            raise torch.OutOfMemoryError("no memory left")
        return super().features(rollout, last)


@pytest.mark.parametrize("limit", [60, 25, 7])
@pytest.mark.parametrize("loss", ["plain", "weighted-sum", "value-loss-shared", "coupled", "step-and-prompt"])
def test_out_of_memory_the_budget_is_halved_and_the_gradient_is_the_same(
    loss: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = pipeline(LOSSES[loss], DATA["logged"])
    say["policy"] = {"small": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "small": Small})
    batch = bench.batch()
    nudge(bench)
    expected = plain_gradient(bench, batch)
    before = bench.phase.state()
    monkeypatch.setattr(Small, "limit", limit)
    monkeypatch.setattr(Small, "tries", 0)
    found = bench.gradient(batch)
    assert_same(found, expected, f"at most {limit} tokens")
    state = bench.phase.state()
    assert Small.tries > 0
    assert state["budget"] == before["budget"] // 2**Small.tries
    assert state["head_chunk"] == max(16, before["head_chunk"] // 2**Small.tries)
    assert_same(bench.gradient(batch), expected, "again, at the budget that was found")


def test_a_process_that_works_on_its_share_cuts_as_the_others_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out where a loss or a reward asks for scores: the others know nothing of it."""
    say = pipeline(LOSSES["plain"], DATA["logged"])
    say["policy"] = {"small": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "small": Small})
    rollout, engine = bench.batch().rollout, bench.phase.engine
    expected, held = engine.score("policy", rollout, ("logprobs",)), (engine.budget, engine.head_chunk)
    monkeypatch.setattr(Small, "limit", 7)
    monkeypatch.setattr(here(), "apart", True)
    found = engine.score("policy", rollout, ("logprobs",))
    torch.testing.assert_close(found.logprobs_NT, expected.logprobs_NT)
    assert (engine.budget, engine.head_chunk) == held
    monkeypatch.setattr(here(), "apart", False)
    engine.score("policy", rollout, ("logprobs",))
    assert engine.budget < held[0]


class BackwardRunsOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: int) -> Tensor:
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if len(grads[0]) > ctx.limit:
            raise torch.OutOfMemoryError("no memory left")
        return grads[0], None


def test_memory_that_runs_out_in_a_later_backward_leaves_no_half_gradient(tmp_path: Path) -> None:
    """The first micro-batches have added to `.grad` already when one fails: they must not count twice."""

    class Late(Logits):
        calls = 0

        def features(self, rollout: Rollout, last: bool = False) -> Tensor:
            Late.calls += 1
            return BackwardRunsOut.apply(super().features(rollout, last), 14 if Late.calls >= 3 else 10**9)

    say = pipeline(LOSSES["weighted-sum"], DATA["logged"])
    say["policy"] = {"late": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "late": Late})
    batch = bench.batch()
    nudge(bench)
    Late.calls = -(10**6)
    expected = plain_gradient(bench, batch)
    bench.engine.budget, Late.calls = 60, 0
    assert_same(bench.gradient(batch), expected, "out of memory in the backward of the third")
    assert bench.engine.budget == 15


def test_scoring_out_of_memory_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = pipeline(LOSSES["value-loss-shared"], DATA["logged"])
    say["policy"] = {"small": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "small": Small})
    rollout = bench.batch().rollout
    want = ("logprobs", "full_logprobs", "entropy")
    whole, values = (
        bench.engine.score("policy", rollout, want),
        bench.engine.score("value", rollout, ["values"]),
    )
    monkeypatch.setattr(Small, "limit", 20)
    for found, expected in (
        (bench.engine.score("policy", rollout, want), whole),
        (bench.engine.score("value", rollout, ["values"]), values),
    ):
        for name, x in expected.items().items():
            torch.testing.assert_close(found.items()[name], x, rtol=0, atol=1e-14)
    assert bench.phase.state()["budget"] < 16384


@pytest.mark.parametrize("loss", ["plain", "coupled"])
def test_a_single_row_too_large_is_a_readable_error(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = pipeline(LOSSES[loss], DATA["logged"])
    say["policy"] = {"small": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "small": Small})
    batch = bench.batch()
    monkeypatch.setattr(Small, "limit", 3)
    with pytest.raises(RLAlignError, match=r"out of memory on one response of 8 tokens; shorten"):
        bench.gradient(batch)


def test_a_small_head_chunk_is_not_raised_by_running_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = pipeline(LOSSES["plain"], DATA["logged"])
    say["policy"] = {"small": {"hidden": 5}}
    bench = Bench(tmp_path, say, {**COMPONENTS, "small": Small})
    batch = bench.batch()
    bench.engine.head_chunk = 4
    monkeypatch.setattr(Small, "limit", 25)
    bench.engine.step(batch, bench.phase.losses)
    assert bench.engine.head_chunk <= 4


# -- scoring -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 40, WHOLE])
@pytest.mark.parametrize("data", DATA)
def test_scores_equal_the_loop_over_tokens_at_any_budget(data: str, budget: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES["value-loss-shared"], DATA[data]), COMPONENTS)
    rollout = bench.batch().rollout
    by_hand = ByHand(bench, rollout).outputs()
    bench.engine.budget, bench.engine.head_chunk = budget, 6
    found = bench.engine.score("policy", rollout, ("logprobs", "full_logprobs", "entropy"))
    for name, x in found.items().items():
        torch.testing.assert_close(x, by_hand[name].detach(), rtol=0, atol=1e-12)
    values = bench.engine.score("value", rollout, ["values", "state_values"])
    values_NT1 = values.state_values_NT1
    torch.testing.assert_close(values.values_NT, by_hand["values_NT"].detach())
    assert torch.equal(values_NT1[:, :-1][rollout.mask_NT], values.values_NT[rollout.mask_NT])
    for i, length in enumerate(rollout.length_N.tolist()):
        last = 0.0 if rollout.finished_N[i] else float(after_the_end(bench, rollout, i))
        assert float(values_NT1[i, length]) == pytest.approx(last, abs=1e-12)
        assert float(values_NT1[i, length + 1 :].abs().sum()) == 0


def after_the_end(bench: Bench, rollout: Rollout, i: int) -> Tensor:
    with torch.no_grad():
        return ByHand(bench, rollout).value(i, int(rollout.length_N[i]))


def test_scoring_nothing_gives_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES["value-loss-shared"], DATA["logged"]), COMPONENTS)
    rollout = bench.batch().rollout
    empty = rollout.take(torch.zeros(len(rollout), dtype=torch.bool))
    found = bench.engine.score("policy", empty, ("logprobs", "entropy"))
    assert found.logprobs_NT.shape == found.entropy_NT.shape == (0, rollout.steps)
    values = bench.engine.score("value", empty, ["values", "state_values"])
    assert values.values_NT.shape == (0, rollout.steps)
    assert values.state_values_NT1.shape == (0, rollout.steps + 1)


def test_scores_carry_no_graph_and_are_computed_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES["kl-loss"], DATA["logged"]), COMPONENTS)
    rollout = bench.batch().rollout
    before = bench.engine.forwards
    first = bench.run.score("policy", rollout, ["logprobs"])
    assert not first.logprobs_NT.requires_grad
    again = bench.run.score("policy", rollout, ["logprobs"])
    assert again.logprobs_NT.equal(first.logprobs_NT)
    assert bench.engine.forwards == before + 1
    bench.run.models.policy.version += 1
    bench.run.score("policy", rollout, ["logprobs"])
    assert bench.engine.forwards == before + 2


def test_models_are_a_mapping(tmp_path: Path) -> None:
    models = Bench(tmp_path, pipeline(LOSSES["plain"], DATA["logged"]), COMPONENTS).run.models
    assert "policy" in models and "value" not in models
    assert models.get("value") is None
    with pytest.raises(RLAlignError, match=r"^there is no model `value`; a component that reads one"):
        models["value"]


# -- leaves ----------------------------------------------------------------------------------------------------


def test_a_loss_sees_leaves_and_leaks_no_graph(tmp_path: Path) -> None:
    seen: list[Outputs] = []

    class Keeps(EntropyBonus):
        @hookimpl
        def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
            seen.append(now)
            return super().loss(batch, now)

    bench = Bench(tmp_path, pipeline({"algorithm": "keeps"}, DATA["logged"]), {**COMPONENTS, "keeps": Keeps})
    for route in ("A", "B", "T"):
        bench.gradient(bench.batch(), route=route, budget=40, head_chunk=12)
    assert all(x.is_leaf and x.requires_grad for now in seen for x in now.items().values())
    assert all("values_NT" not in now and "full_logprobs_NT" not in now for now in seen)
    with pytest.raises(AttributeError, match="declares `values` in its `needs`"):
        _ = seen[0].values_NT


def test_a_loss_may_have_nothing_to_say_of_a_piece(tmp_path: Path) -> None:
    class Sometimes(Plain):
        unit = "group"

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss | None:
            return None if len(batch) < 3 else super().loss(batch, now)

    bench = Bench(
        tmp_path, pipeline({"algorithm": "sometimes"}, DATA["logged"]), {**COMPONENTS, "sometimes": Sometimes}
    )
    batch = bench.batch()
    large = torch.bincount(batch.rollout.group_N)[batch.rollout.group_N] >= 3
    expected = plain_gradient(bench, replace(batch.take(large), whole=None))
    assert float(expected[1]["policy/free"].abs().max()) > 0
    share = int(large.sum()) / len(batch)
    for route, budget, chunk in (("A", 1, WHOLE), ("B", 1, 4), ("T", 1, 4)):
        metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert metrics["loss"] == pytest.approx(share * expected[0]["loss"], rel=1e-12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, share * expected[1][name], rtol=0, atol=1e-12)


def test_frozen_models_get_no_gradient(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(LOSSES["value-loss-on-reference"], DATA["logged"]), COMPONENTS)
    bench.engine.step(bench.batch(), bench.phase.losses)
    assert all(p.grad is None for p in bench.run.models["reference"].parameters())
    bench = Bench(tmp_path, pipeline(LOSSES["value-only-shared"], DATA["logged"]), COMPONENTS)
    for route in ("A", "B", "T"):
        bench.engine.route = route  # type: ignore[assignment]
        bench.engine.step(bench.batch(), bench.phase.losses)
        assert all(p.grad is None for p in bench.run.models.policy.parameters())
        assert all(p.grad is not None for p in bench.run.models["value"].parameters())


@pytest.mark.parametrize("silent, other", [("policy", "value"), ("value", "policy")])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_model_of_which_no_loss_says_anything_has_no_gradient(
    silent: str, other: str, cut: bool, tmp_path: Path
) -> None:
    """Zeros would be one to an optimiser that decays weights. `cut`: passes are made as by ranks together."""

    class OfOne(ValueLoss):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            return Loss(batch.mean_over_tokens(now.values_NT if other == "value" else now.logprobs_NT))

    said = {**LOSSES["value-loss-on-reference"], "algorithm": "of-one"}
    bench = Bench(tmp_path, pipeline(said, DATA["logged"]), {**COMPONENTS, "of-one": OfOne})
    bench.engine._cut = cut
    for route, budget, chunk in (("A", WHOLE, WHOLE), ("A", 40, 21), ("B", 40, 12), ("T", 40, 12)):
        bench.engine.route, bench.engine.budget, bench.engine.head_chunk = route, budget, chunk  # type: ignore
        bench.engine.step(bench.batch(), bench.phase.losses)
        assert all(p.grad is None for p in bench.run.models[silent].parameters()), route
        assert all(p.grad is not None for p in bench.run.models[other].parameters()), route


def test_bfloat16_runs_near_float32(tmp_path: Path) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        say = pipeline(LOSSES["weighted-sum"], DATA["logged"])
        say["train"] = {**say["train"], "dtype": dtype}
        bench = Bench(tmp_path, say, COMPONENTS)
        batch = bench.batch()
        for route, budget in (("A", 64), ("B", 64), ("T", 40)):
            _, found[f"{dtype}/{route}"] = bench.gradient(batch, route=route, budget=budget, head_chunk=21)
    for key, gradients in found.items():
        for name, gradient in gradients.items():
            assert gradient.dtype == torch.float32
            exact = found["float32/A"][name]
            torch.testing.assert_close(
                gradient, exact, rtol=0, atol=0.03 * float(exact.abs().max()), msg=f"{key} {name}"
            )
