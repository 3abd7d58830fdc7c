"""One iteration's learning: optimiser steps, and what an `update` hook may ask for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, ComponentError, Learner, Loss, Outputs, Run, hookimpl
from rlalign.data.settings import Schedule
from rlalign.learning.learner import GradientLearner, mean_of
from rlalign.learning.optimiser import factor
from rlalign.running.updating import update
from rlalign.testing import Bench, PolicyAndValue, PolicyGradient, run, session


class Gain(PolicyGradient):
    """Remembers which rows each step held."""

    stop_at: int | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.steps: list[list[str]] = []
        self.ready: list[Mapping[str, float]] = []

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        self.steps.append([batch.step.rollout.examples[g].id for g in batch.step.rollout.group_N.tolist()])
        return super().loss(batch, now)

    @hookimpl
    def step_ready(self, metrics: Mapping[str, float]) -> bool:
        self.ready.append(metrics)
        return self.stop_at is None or len(self.ready) < self.stop_at


class StopsAtThird(Gain):
    stop_at = 3


class NotANumber(Gain):
    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens(now.logprobs_NT * math.nan))


class BadGradient(Gain):
    """A finite loss whose gradient is not."""

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens((now.logprobs_NT * 0).sqrt()))


UPDATE_ONLY = ["loss", "gradient", "split", "accumulate", "parameters", "assign", "learn", "respond"]
COMPONENTS: dict[str, type[Any]] = {
    "gain": Gain,
    "stops": StopsAtThird,
    "not-a-number": NotANumber,
    "bad-gradient": BadGradient,
    "by-value": PolicyAndValue,
}


def pipeline(algorithm: Any = "gain", *, hidden: int | None = 5, **more: Any) -> dict[str, Any]:
    train = {"iterations": 1, "prompts": 6, "dtype": "float64", "lr": 0.01, **more.pop("train", {})}
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": hidden}},
        "rewards": ["token-sum"],
        "responses": "logged",
        "algorithm": algorithm,
        "train": train,
        **more,
    }


def bench(folder: Path, *args: Any, **kwargs: Any) -> Bench:
    return Bench(folder, pipeline(*args, **kwargs), COMPONENTS)


def learner(of: Bench) -> GradientLearner:
    assert of.phase.learner is not None
    return of.phase.learner


def flat(of: Bench, gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].reshape(-1) for name in learner(of).optimiser.parameters])


# -- what an `update` hook may ask for -----------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["gain", "by-value"])
def test_the_gradient_is_that_of_the_loss(algorithm: str, tmp_path: Path) -> None:
    b = bench(tmp_path, algorithm)
    batch = b.batch()
    learner(b)
    gradient = b.learner.gradient(batch)
    torch.testing.assert_close(gradient, flat(b, b.gradient(batch)[1]), rtol=0, atol=0)
    start, generator = b.learner.parameters(), torch.Generator().manual_seed(0)
    for _ in range(3):
        way = torch.randn(len(start), generator=generator, dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            b.learner.assign(start + sign * 1e-5 * way)
            sides.append(b.learner.loss(batch))
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float(gradient @ way), rel=1e-6)
    b.learner.assign(start)
    assert torch.equal(b.learner.gradient(batch), gradient)


def test_the_gradient_of_a_piece_is_that_of_a_step_of_its_own(tmp_path: Path) -> None:
    b = bench(tmp_path)
    batch, _ = b.batch(), learner(b)
    piece = batch.take(torch.tensor([0, 5, 2]))
    assert torch.equal(b.learner.gradient(piece), b.learner.gradient(piece.as_step()))
    assert b.learner.loss(piece) == b.learner.loss(piece.as_step())


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("route", ["A", "B", "T"])
def test_a_loss_leaves_no_gradient_behind(route: Any, hidden: int | None, tmp_path: Path) -> None:
    b = bench(tmp_path, hidden=hidden)
    batch, _ = b.batch(), learner(b)
    b.engine.route, b.engine.budget = route, 40
    expected = b.gradient(batch)[0]["loss"]
    assert b.learner.loss(batch) == pytest.approx(expected, rel=1e-12)
    assert all(p.grad is None for p in b.run.models.policy.parameters())
    b.learner.gradient(batch)
    assert all(p.grad is None for p in b.run.models.policy.parameters())


def test_a_hook_inside_a_step_cannot_take_its_gradient_away(tmp_path: Path) -> None:
    """`gradient` and `loss` clear `.grad`, so in `step_ready` they would leave an empty step."""

    class Peeks(Gain):
        @hookimpl
        def update(self, batch: Batch, learner: Learner) -> dict[str, float]:
            self.kept = learner
            return learner.learn(batch)

        @hookimpl
        def step_ready(self) -> bool:
            self.kept.parameters()
            return True

    with pytest.raises(ComponentError, match=r"the learner .* by other hooks while it learns"):
        run(tmp_path, pipeline("peeks"), {"peeks": Peeks})


def test_parameters_and_assign_are_inverse_and_count_as_a_change(tmp_path: Path) -> None:
    b = bench(tmp_path, "by-value")
    learner(b)
    vector = b.learner.parameters()
    names = [f"{m}/{k}" for m in ("policy", "value") for k, _ in b.run.models[m].named_parameters()]
    assert len(vector) == sum(p.numel() for m in ("policy", "value") for p in b.run.models[m].parameters())
    assert list(learner(b).optimiser.parameters) == names
    versions = [b.run.models[m].version for m in ("policy", "value")]
    b.learner.assign(vector * 2 + 1)
    assert torch.equal(b.learner.parameters(), vector * 2 + 1)
    assert [b.run.models[m].version for m in ("policy", "value")] == [v + 1 for v in versions]
    vector.zero_()
    assert float(b.learner.parameters().abs().max()) > 0  # a copy, not a view
    with pytest.raises((RuntimeError, ValueError)):
        b.learner.assign(vector[:-1])


@pytest.mark.parametrize("what", UPDATE_ONLY)
def test_a_learner_is_over_when_its_hook_returns(what: str, tmp_path: Path) -> None:
    class Keeps(Gain):
        @hookimpl
        def update(self, learner: Learner) -> dict[str, float]:
            self.kept = learner
            return {}

        @hookimpl
        def iteration_done(self) -> None:
            arguments = {"accumulate": 2, "parameters": 0}.get(what, 1)
            getattr(self.kept, what)(*[None] * arguments)

    with pytest.raises(ComponentError, match=r"`keeps` .*: the learner .* once the hook has returned"):
        run(tmp_path, pipeline("keeps"), {"keeps": Keeps})


def test_a_value_is_asked_again_once_the_policy_has_moved_whose_states_it_reads(tmp_path: Path) -> None:
    pipeline = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 5}},
        "models": {"value": {"linear-value": {"trunk": "policy"}}},
        "rewards": ["token-sum"],
        "algorithm": "both",
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 1, "prompts": 4, "lr": 0.1},
    }
    b = Bench(tmp_path, pipeline, {"both": PolicyAndValue})
    b.iterate()  # which moves the value away from 0
    batch = b.batch()
    before = b.run.score("value", batch.rollout, ["state_values"]).state_values_NT1
    b.learner.learn(batch, only=["policy"])
    after = b.run.score("value", batch.rollout, ["state_values"]).state_values_NT1
    fresh = batch.rollout.take(torch.arange(len(batch)))
    assert torch.equal(after, b.run.score("value", fresh, ["state_values"]).state_values_NT1)
    assert not torch.equal(after, before)


def test_what_no_model_says_is_not_asked_for(tmp_path: Path) -> None:
    b = bench(tmp_path)
    rollout = b.batch().rollout
    for want in (["logits"], ["logprobs", "logits"]):
        with pytest.raises(
            ComponentError, match=r"run.score: no model says `logits` .*; there are `logprobs`, "
        ):
            b.run.score("policy", rollout, want)


def test_a_scored_rollout_is_scored_again_after_assign(tmp_path: Path) -> None:
    b = bench(tmp_path)
    batch, _ = b.batch(), learner(b)
    before = b.run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT
    b.learner.assign(b.learner.parameters() * 1.5)
    assert not torch.equal(b.run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT, before)


def test_each_trial_has_uniforms_of_its_own(tmp_path: Path) -> None:
    b = bench(tmp_path, generation={"samples": 2, "max_new_tokens": 7})
    examples, _ = b.batch().rollout.examples, learner(b)
    (one, reward), (two, _) = (b.learner.respond(examples) for _ in range(2))
    assert one.texts != two.texts
    assert len(one) == len(two) == len(reward.total_N) == 12
    assert all(tuple(rollout.examples) == tuple(examples) for rollout in (one, two))


def test_an_update_that_does_nothing_leaves_the_weights(tmp_path: Path) -> None:
    class Idle(Gain):
        @hookimpl
        def update(self) -> dict[str, float]:
            return {}

    started = session(tmp_path, pipeline("idle"), {"idle": Idle})
    before = {k: v.clone() for k, v in started.models.policy.state_dict().items()}
    started.run()
    assert all(torch.equal(v, before[k].double()) for k, v in started.models.policy.state_dict().items())


# -- vectors by name, sums over parts ----------------------------------------------------------------------------


def test_a_vector_splits_into_named_parameters(tmp_path: Path) -> None:
    b = bench(tmp_path, "by-value")
    named = learner(b).optimiser.parameters
    pieces = b.learner.split(b.learner.parameters())
    assert list(pieces) == list(named)
    assert all(torch.equal(piece, named[name]) for name, piece in pieces.items())
    assert {name.partition("/")[0] for name in pieces} == {"policy", "value"}


@pytest.mark.parametrize("budget, chunk", [(10**9, 10**9), (9, 4), (1, 1)])
def test_a_sum_over_parts_and_its_gradient(budget: int, chunk: int, tmp_path: Path) -> None:
    """Every response and every chosen step is met once, however the rollout is cut."""
    b = bench(tmp_path, hidden=3)
    batch, policy = b.batch(), b.run.models.policy
    learner(b)
    b.engine.budget, b.engine.head_chunk = budget, chunk
    sizes: list[int] = []

    def compute(part: Any, chunks: Any) -> float:
        h_MC, total = policy.features(part), 0.0
        for at in chunks:
            assert len(at) <= chunk
            loss = (policy.head(h_MC[at]) ** 2).sum()
            loss.backward(retain_graph=True)
            total += float(loss.detach())
        assert torch.equal(torch.cat(chunks), torch.arange(len(h_MC)))
        sizes.append(len(h_MC))
        return total

    total, gradient = b.learner.accumulate(batch.rollout, compute)
    assert sum(sizes) == int(batch.rollout.mask_NT.sum())
    whole = (policy.head(policy.features(batch.rollout)) ** 2).sum()
    assert total == pytest.approx(float(whole.detach()), rel=1e-12)
    parameters = list(learner(b).optimiser.parameters.values())
    expected = torch.autograd.grad(whole, parameters, allow_unused=True)
    found = b.learner.split(gradient).values()
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in parameters)


def test_a_sum_starts_over_where_memory_ran_out(tmp_path: Path) -> None:
    b = bench(tmp_path)
    batch = b.batch()
    learner(b)
    met: list[int] = []

    def compute(part: Any, chunks: Any) -> float:
        met.append(len(part))
        if len(met) == 1:
            raise torch.OutOfMemoryError("a full card")
        return float(len(part))

    before = b.engine.budget
    total, gradient = b.learner.accumulate(batch.rollout, compute)
    assert total == len(batch)
    assert not gradient.any()
    assert b.engine.budget == before // 2


# -- the loop's learning inside an update ----------------------------------------------------------------------


class Again(PolicyAndValue):
    """The loop's own update, some times over, of all that trains or of some of it."""

    times, only = 1, None

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        for _ in range(self.times):
            found = learner.learn(batch, self.only)
        return found


def weights_after(folder: Path, name: str, cls: type[Any], **train: Any) -> dict[str, Tensor]:
    train = {"iterations": 2, "minibatches": 3, "epochs": 2, **train}
    _, started = run(folder, pipeline(name, train=train), {name: cls}, name=name)
    return {f"{m}/{k}": v for m in ("policy", "value") for k, v in started.models[m].state_dict().items()}


def test_to_learn_inside_an_update_is_what_the_loop_does(tmp_path: Path) -> None:
    plain, asked = (
        weights_after(tmp_path, n, cls) for n, cls in (("plain", PolicyAndValue), ("asked", Again))
    )
    assert all(torch.equal(asked[key], weight) for key, weight in plain.items())


def test_to_learn_twice_is_more_epochs(tmp_path: Path) -> None:
    """Minibatches are dealt anew each time."""

    class Twice(Again):
        times = 2

    twice = weights_after(tmp_path, "twice", Twice)
    longer = weights_after(tmp_path, "longer", Again, epochs=4)
    assert all(torch.equal(twice[key], weight) for key, weight in longer.items())


@pytest.mark.parametrize("minibatches", [1, 3])
def test_what_else_trains_stays_to_the_bit(minibatches: int, tmp_path: Path) -> None:
    """Whatever the losses say of it, and the decay of weights."""

    class OnlyValue(Again):
        only = ["value"]

    b = Bench(
        tmp_path,
        pipeline("only", train={"weight_decay": 0.5, "minibatches": minibatches}),
        {"only": OnlyValue},
    )
    batch = b.batch()
    before = {m: {k: v.clone() for k, v in b.run.models[m].state_dict().items()} for m in ("policy", "value")}
    update(b.phase, batch)
    after = {m: b.run.models[m].state_dict() for m in ("policy", "value")}
    assert all(torch.equal(after["policy"][k], v) for k, v in before["policy"].items())
    assert not any(torch.equal(after["value"][k], v) for k, v in before["value"].items())
    assert b.engine.trains == ("policy", "value")
    assert all(p.grad is None for m in b.run.models.values() for p in m.parameters())


def test_no_gradient_stays_where_some_learnt_first(tmp_path: Path) -> None:
    class ValueFirst(Again):
        @hookimpl
        def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
            learner.learn(batch, ["value"])
            return learner.learn(batch)

    b = Bench(tmp_path, pipeline("value-first"), {"value-first": ValueFirst})
    update(b.phase, b.batch())
    assert all(p.grad is None for m in b.run.models.values() for p in m.parameters())


def test_only_what_trains_can_learn(tmp_path: Path) -> None:
    class Reference(Again):
        only = ["reference"]

    with pytest.raises(ComponentError, match="`reference` does not train here"):
        run(tmp_path, pipeline("again"), {"again": Reference})


# -- epochs and minibatches ---------------------------------------------------------------------------------


def learned(folder: Path, algorithm: str = "gain", **train: Any) -> tuple[Any, dict[str, float]]:
    finished, started = run(folder, pipeline(algorithm, train=train), COMPONENTS)
    (component,) = [c for c in started.builder.built.values() if isinstance(c, Gain)]
    return component, dict(finished.metrics)


@pytest.mark.parametrize(
    "train, sizes",
    [
        ({"minibatches": 1}, [6]),
        ({"minibatches": 2}, [3, 3]),
        ({"minibatches": 4}, [2, 2, 1, 1]),
        ({"minibatch": 4}, [4, 2]),
        ({"minibatches": 3, "epochs": 2}, [2, 2, 2, 2, 2, 2]),
    ],
)
def test_minibatches_hold_whole_groups_each_once_an_epoch(
    train: dict[str, Any], sizes: list[int], tmp_path: Path
) -> None:
    component, metrics = learned(tmp_path, **train)
    logged = {str(i): count for i, count in enumerate((1, 3, 4, 2, 5, 3))}
    steps = component.steps
    steps = [s for i, s in enumerate(steps) if i == 0 or s is not steps[i - 1]]
    assert [len(set(step)) for step in steps] == sizes
    for step in steps:
        assert all(step.count(name) == logged[name] for name in step)
    epochs = train.get("epochs", 1)
    for e in range(epochs):
        part = steps[e * len(steps) // epochs : (e + 1) * len(steps) // epochs]
        assert sorted(name for step in part for name in set(step)) == sorted(logged)
    assert metrics["optimiser_steps"] == len(sizes)
    if epochs == 2:
        assert [set(s) for s in steps[:3]] != [set(s) for s in steps[3:]]


def test_empty_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    component, metrics = learned(tmp_path, prompts=3, minibatches=5)
    assert metrics["optimiser_steps"] == 3
    assert metrics["empty_steps"] == 2
    assert len(component.ready) == 3


def test_a_dropped_step_ends_the_update_and_moves_nothing(tmp_path: Path) -> None:
    component, metrics = learned(tmp_path, "stops", minibatches=6, epochs=2)
    assert len(component.ready) == 3
    assert metrics["optimiser_steps"] == 2
    assert metrics["dropped_steps"] == 1


def test_the_first_step_dropped_leaves_the_weights(tmp_path: Path) -> None:
    class Never(Gain):
        stop_at = 1

    started = session(tmp_path, pipeline("never"), {"never": Never})
    before = {k: v.clone() for k, v in started.models.policy.state_dict().items()}
    started.run()
    assert all(torch.equal(v, before[k].double()) for k, v in started.models.policy.state_dict().items())
    assert started.models.policy.version == 0
    assert started.step == 0


def test_means_are_over_the_steps_that_have_a_metric() -> None:
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
    assert mean_of([]) == {}


@pytest.mark.parametrize(
    "algorithm, said",
    [("not-a-number", "the loss of `not-a-number` is nan"), ("bad-gradient", "the gradient of")],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(
    algorithm: str, said: str, tmp_path: Path
) -> None:
    started = session(tmp_path, pipeline(algorithm), COMPONENTS)
    with pytest.raises(ComponentError, match=said) as caught:
        started.run()
    assert algorithm in str(caught.value)
    assert "a lower `train.lr` (it is " in str(caught.value) and "`kl` reward" in str(caught.value)
    assert "the batch is in" in str(caught.value)
    assert (started.dir.path / "bad-batch" / "batch.safetensors").exists()


# -- the optimiser --------------------------------------------------------------------------------------------


def test_schedules() -> None:
    def at(progress: float, **schedule: Any) -> float:
        return factor(Schedule(**schedule), progress)

    assert [at(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [at(p, shape="linear") for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert at(0.75, shape="linear", floor=0.2) == pytest.approx(0.4)
    assert [at(p, shape="cosine") for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert at(1, shape="cosine", floor=0.1) == pytest.approx(0.1)
    for shape in ("constant", "linear", "cosine"):
        assert at(0.05, shape=shape, warmup=0.1) == pytest.approx(0.5)
        assert at(0.1, shape=shape, warmup=0.1) == pytest.approx(1)
        values = [at(p / 100, shape=shape, warmup=0.2, floor=0.1) for p in range(101)]
        assert all(0 <= v <= 1 for v in values)
        assert values[:21] == sorted(values[:21])
        assert values[20:] == sorted(values[20:], reverse=True)
        assert values[-1] == pytest.approx(1 if shape == "constant" else 0.1)


def test_a_schedule_is_a_function_of_the_phases_progress(tmp_path: Path) -> None:
    rates: list[float] = []

    class Notes(Gain):
        @hookimpl
        def iteration_done(self, run: Run, metrics: Mapping[str, float]) -> None:
            rates.append(metrics["lr"])

    train = {"iterations": 4, "minibatches": 2, "lr": 1.0, "schedule": {"shape": "linear"}}
    run(tmp_path, pipeline("notes", train=train), {"notes": Notes})
    steps = [1 - (i + share) / 4 for i in range(4) for share in (0, 0.5)]
    assert rates == pytest.approx([(steps[2 * i] + steps[2 * i + 1]) / 2 for i in range(4)])


def test_each_model_has_its_own_rate(tmp_path: Path) -> None:
    b = bench(tmp_path, "by-value", train={"lr": 0.5, "lrs": {"value": 0.0}, "clip": None})
    batch, own = b.batch(), learner(b)
    _, norm = own.gradient_step(batch)
    before = [b.run.models[m].state_dict() for m in ("policy", "value")]
    before = [{k: v.clone() for k, v in s.items()} for s in before]
    own.optimiser.step(0.0, norm)
    after = [b.run.models[m].state_dict() for m in ("policy", "value")]
    assert any(not torch.equal(before[0][k], v) for k, v in after[0].items())
    assert all(torch.equal(before[1][k], v) for k, v in after[1].items())


@pytest.mark.parametrize("clip", [None, 1e-3, 1e6])
def test_clipping_is_of_the_whole_norm(clip: float | None, tmp_path: Path) -> None:
    b = bench(tmp_path, "by-value", train={"clip": clip})
    batch, own = b.batch(), learner(b)
    gradient = b.learner.gradient(batch)
    _, norm = own.gradient_step(batch)
    own.optimiser.step(0.0, norm)
    assert float(norm) == pytest.approx(float(gradient.norm()), rel=1e-12)
    left = torch.cat([p.grad.reshape(-1) for p in own.optimiser.parameters.values() if p.grad is not None])
    scale = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
    torch.testing.assert_close(left, gradient * scale, rtol=1e-12, atol=0)
    if clip == 1e-3:
        assert float(left.norm()) <= 1e-3


def test_a_step_is_adamw_as_written_by_hand(tmp_path: Path) -> None:
    train = {"clip": None, "lr": 0.03, "weight_decay": 0.1, "betas": [0.8, 0.95], "eps": 1e-6}
    b = bench(tmp_path, train=train)
    batch, own = b.batch(), learner(b)
    m = {k: torch.zeros_like(p) for k, p in own.optimiser.parameters.items()}
    v = {k: torch.zeros_like(p) for k, p in own.optimiser.parameters.items()}
    for t in (1, 2, 3):
        _, norm = own.gradient_step(batch)
        expected = {}
        for k, p in own.optimiser.parameters.items():
            assert p.grad is not None
            m[k] = 0.8 * m[k] + 0.2 * p.grad
            v[k] = 0.95 * v[k] + 0.05 * p.grad**2
            step = (m[k] / (1 - 0.8**t)) / ((v[k] / (1 - 0.95**t)).sqrt() + 1e-6)
            expected[k] = p.detach() * (1 - 0.03 * 0.1 * (p.ndim > 1)) - 0.03 * step
        own.optimiser.step(0.0, norm)
        for k, p in own.optimiser.parameters.items():
            torch.testing.assert_close(p.detach(), expected[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_in_lower_precision(dtype: str, tmp_path: Path) -> None:
    say = pipeline("gain", responses="sampled", generation={"samples": 4, "max_new_tokens": 3})
    say["train"] = {"iterations": 40, "prompts": 6, "dtype": dtype, "lr": 0.1, "minibatches": 2}
    say["evaluate"] = {"use": ["token-sum"], "split": "val", "every": 1000}
    started = session(tmp_path, say, COMPONENTS)
    started.run()
    assert all(p.dtype == torch.float32 for p in started.models.policy.parameters())
    lines = (started.dir.path / "metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(x)["reward/token-sum"] for x in lines if "reward/token-sum" in json.loads(x)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
