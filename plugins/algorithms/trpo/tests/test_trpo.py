"""TRPO: the step by dense matrices, what the line search promises, what moves and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlalign import Batch, Component, ComponentError, Learner, Loss, Outputs, Run, hookimpl
from rlalign.data.statistics import standardised
from rlalign.records import logs
from rlalign.running.updating import update
from rlalign.testing import Bench, ComponentTests, session
from rlalign_plugin_trpo import TRPO, conjugate_gradient, fisher_product, step_length, surrogate


class TestTRPO(ComponentTests):
    component = "trpo"
    options = {"passes": 2, "sub_sampling": 3, "cg_steps": 5}


def say(options: Mapping[str, Any] = {}, algorithm: str = "trpo", **more: Any) -> dict[str, Any]:
    """A network of 11 words and 3 steps; prompts `0` to `5`."""
    train = {"iterations": 1, "prompts": 6, "dtype": "float64", "lr": 0.01, **more.pop("train", {})}
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 5, "steps": 4}},
        "rewards": ["token-sum"],
        "algorithm": {algorithm: {"passes": 1, **options}},
        "generation": {"samples": 4, "max_new_tokens": 3},
        "train": train,
        **more,
    }


def updated(bench: Bench) -> tuple[Batch, Tensor, Tensor, dict[str, float]]:
    """(batch, parameters before, after, metrics) of one update."""
    batch, learner = bench.batch(), bench.phase.learner
    assert learner is not None
    start = learner.parameters()
    metrics = update(bench.phase, batch)
    return batch, start, learner.parameters(), {k.removeprefix("trpo/"): v for k, v in metrics.items()}


def policy_size(bench: Bench) -> int:
    return sum(p.numel() for p in bench.run.models.policy.parameters())


# -- the parts --------------------------------------------------------------------------------------------


def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_unknowns() -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = half @ half.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    calls: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return matrix @ v

    x, residual = conjugate_gradient(product, b, 50, 1e-20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-12)
    assert len(calls) <= 7
    assert float(residual @ residual) < 1e-20
    x, residual = conjugate_gradient(product, b, 3, 0.0)
    torch.testing.assert_close(residual, b - matrix @ x, rtol=0, atol=1e-12)
    assert not conjugate_gradient(product, 0 * b, 3, 0.0)[0].any()


def test_the_surrogate_by_hand() -> None:
    ratio, advantage = torch.tensor([[2.0, 0.5]]), torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(
        surrogate(ratio.log(), torch.zeros(1, 2), advantage), torch.tensor([[6.0, -2.0]])
    )
    assert step_length(0.02, 4.0) == 0.1


# -- the step -----------------------------------------------------------------------------------------------


def test_the_step_is_the_natural_gradient_of_a_bandit(tmp_path: Path) -> None:
    """F = (diag p − pp')/τ², g = mean A(e − p)/τ; the length is that of KL δ in the quadratic model."""
    options, tau = {"delta": 0.02, "damping": 0.01}, 0.7
    bandit = say(options, policy={"table": {"actions": 5}}, generation={"samples": 40, "temperature": tau})
    bench = Bench(tmp_path, bandit)
    start = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bench.run.models.policy.load_state_dict({"table": start})
    batch, before, after, metrics = updated(bench)
    p = (start[0] / tau).softmax(0)
    matrix = (p.diag() - p[:, None] * p) / tau**2 + 0.01 * torch.eye(5)
    reward_N = batch.reward.total_N
    advantage_N = (reward_N - reward_N.mean()) / reward_N.std(correction=0)
    g = (advantage_N[:, None] * (one_hot(batch.rollout.actions_NT[:, 0], 5) - p)).mean(0) / tau
    x = torch.linalg.solve(matrix, g)
    step = math.sqrt(2 * 0.02 / float(x @ matrix @ x)) * 0.8 ** (metrics["tries"] - 1) * x
    torch.testing.assert_close((after - before)[:5], step, rtol=1e-9, atol=1e-9)
    assert metrics["step_norm"] == pytest.approx(float(step.norm()), rel=1e-9)
    assert metrics["cg_residual"] < 1e-5


@pytest.mark.parametrize("every", [1, 3])
def test_the_direction_solves_the_system_of_every_so_many_th_response(every: int, tmp_path: Path) -> None:
    small = {"table": {"actions": 5, "steps": 3, "state": "step"}}
    options = {"sub_sampling": every, "cg_steps": 60, "cg_tolerance": 1e-24}
    bench = Bench(tmp_path, say(options, policy=small))
    batch = bench.batch()
    whole = batch.advantage_NT
    white = Batch(
        batch.rollout, batch.reward, standardised(whole, batch.rollout.mask_NT), batch.columns, batch.old
    )
    g, start = -bench.learner.gradient(white), bench.learner.parameters()
    seen = batch.take(torch.arange(len(batch)) % every == 0)
    matrix = torch.stack(
        [fisher_product(bench.run, bench.learner, seen, e) for e in torch.eye(len(g), dtype=g.dtype)], 1
    )
    x = torch.linalg.solve(matrix + 0.1 * torch.eye(len(g)), g)
    update(bench.phase, batch)
    assert bench.phase.learner is not None
    moved = (bench.phase.learner.parameters() - start)[: policy_size(bench)]
    x = x[: policy_size(bench)]
    assert float(torch.nn.functional.cosine_similarity(moved, x, dim=0)) == pytest.approx(1, abs=1e-9)


POLICIES: dict[str, Any] = {
    "table": {"table": {"actions": 8, "steps": 3, "state": "previous"}},
    "logits": {"logits": {"hidden": 5, "steps": 4}},
}


@pytest.mark.parametrize("options", [{}, {"delta": 0.5, "damping": 0.0}, {"delta": 3.0, "damping": 1e-3}])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_accepted_step_keeps_within_delta_and_gains(
    policy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """KL and surrogate by dense distributions, update after update."""
    bench = Bench(tmp_path, say(options, policy=POLICIES[policy]))
    model, delta, accepted = bench.run.models.policy, options.get("delta", 0.01), 0
    for _ in range(6):
        batch = bench.batch()
        rollout = batch.rollout

        def logp_MV(rollout: Any = rollout) -> Tensor:
            with torch.no_grad():
                return model.head(model.features(rollout)).log_softmax(1)

        old_MV = logp_MV()
        assert bench.phase.learner is not None
        start = bench.phase.learner.parameters()
        metrics = update(bench.phase, batch)
        new_MV = logp_MV()
        kl = float((old_MV.exp() * (old_MV - new_MV)).sum(1).mean())
        assert metrics["trpo/kl"] == pytest.approx(kl, rel=1e-9, abs=1e-14)
        assert kl < delta
        action_M = rollout.actions_NT[rollout.mask_NT][:, None]
        advantage_M = standardised(batch.advantage_NT, rollout.mask_NT)[rollout.mask_NT]
        ratio_M = (new_MV - old_MV).gather(1, action_M)[:, 0].exp()
        gain = float(((ratio_M - 1) * advantage_M).mean())
        assert metrics["trpo/gain"] == pytest.approx(gain, rel=1e-9, abs=1e-12)
        moved = bench.phase.learner.parameters() - start
        assert float(moved[: policy_size(bench)].norm()) == pytest.approx(metrics["trpo/step_norm"], abs=1e-9)
        if metrics["trpo/tries"] <= 10:
            assert gain > 0
            accepted += 1
    assert accepted >= 4


def test_a_line_search_that_fails_restores_the_weights(tmp_path: Path) -> None:
    """One try at a step far beyond where the quadratic model holds."""
    options = {"delta": 5.0, "damping": 0.0, "tries": 1}
    bench = Bench(tmp_path, say(options, train={"dtype": "float32"}))
    for _ in range(3):
        before = {k: v.clone() for k, v in bench.run.models.policy.state_dict().items()}
        metrics = update(bench.phase, bench.batch())
        if metrics["trpo/tries"] == 2:
            break
    assert metrics["trpo/tries"] == 2
    assert metrics["trpo/kl"] == metrics["trpo/gain"] == metrics["trpo/step_norm"] == 0
    assert all(torch.equal(v, before[k]) for k, v in bench.run.models.policy.state_dict().items())


def test_rewards_that_say_nothing_move_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say(policy={"table": {"actions": 5}}, rewards=["length"]))
    _, before, after, metrics = updated(bench)
    assert metrics["tries"] == metrics["kl"] == metrics["cg_residual"] == 0
    assert torch.equal(after[: policy_size(bench)], before[: policy_size(bench)])


# -- policy and value ---------------------------------------------------------------------------------------


class Watched(TRPO):
    """Keeps all weights as the natural step found and left them."""

    def _natural_step(self, run: Run, learner: Learner, batch: Batch) -> dict[str, float]:
        self.weights = [_weights(run)]
        metrics = super()._natural_step(run, learner, batch)
        self.weights.append(_weights(run))
        return metrics


class Beside(Component):
    """Another loss, which would move the policy at any time."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(-0.1 * batch.mean_over_tokens(now.logprobs_NT))


def _weights(run: Run) -> dict[str, Tensor]:
    return {f"{m}/{k}": v.clone() for m in ("policy", "value") for k, v in run.models[m].state_dict().items()}


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("beside", [False, True])
def test_the_natural_step_moves_the_policy_and_the_critic_the_value(
    beside: bool, minibatches: int, tmp_path: Path
) -> None:
    pipeline = say(algorithm="watched", train={"weight_decay": 0.3, "minibatches": minibatches})
    pipeline["algorithm"] = [pipeline["algorithm"], *(["beside"] if beside else [])]
    bench = Bench(tmp_path, pipeline, {"watched": Watched, "beside": Beside})
    update(bench.phase, bench.batch())
    (trpo,) = [c for c in bench.phase.plan.components if isinstance(c, Watched)]
    found, left = trpo.weights
    done = _weights(bench.run)
    moved = [{k for k in done if not torch.equal(a[k], b[k])} for a, b in ((found, left), (left, done))]
    assert moved == [
        {k for k in done if k.startswith("policy/")},
        {k for k in done if k.startswith("value/")},
    ]


def test_the_value_goes_through_the_batch_so_many_times(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"passes": 3}, train={"epochs": 2, "minibatches": 2}))
    update(bench.phase, bench.batch())
    assert bench.phase.step == 1 + 3 * 2 * 2, "the natural step is one"


def test_a_value_on_the_policys_trunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"models: \{value: \{value-head: \{trunk: own\}\}\}"):
        Bench(tmp_path, say(models={"value": "linear-value"}))
    bench = Bench(tmp_path / "other", say(models={"value": {"linear-value": {"trunk": "reference"}}}))
    _, before, after, _ = updated(bench)
    assert not torch.equal(before, after)


# -- in a pipeline ------------------------------------------------------------------------------------------


def rewards(folder: Path, pipeline: Mapping[str, Any], name: str) -> list[float]:
    started = session(folder, pipeline, {})
    started.run()
    return [row[f"reward/{name}"] for row in logs.read(started.dir.path / "metrics.jsonl")]


def test_it_learns(tmp_path: Path) -> None:
    pipeline = say(
        {"delta": 0.05, "cg_steps": 8}, policy=POLICIES["table"], train={"iterations": 12, "lr": 0.1}
    )
    found = rewards(tmp_path, pipeline, "token-sum")
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + 0.4


@pytest.mark.parametrize(
    "family, policy, trunk",
    [("gpt2", {}, "own"), ("gpt2", {"lora": {"r": 2}}, "own"), ("t5", {}, "reference")],
)
def test_it_runs_on_language_models(
    family: str, policy: dict[str, Any], trunk: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    kind = "seq2seq-lm" if family == "t5" else "causal-lm"
    pipeline = say(
        {"delta": 0.05, "cg_steps": 5},
        policy={kind: {"path": str(folders[family]), **policy}},
        models={"value": {"value-head": {"trunk": trunk}}},
        train={"iterations": 2, "dtype": "float32"},
    )
    started = session(tmp_path, pipeline, {})
    started.run()
    rows = list(logs.read(started.dir.path / "metrics.jsonl"))
    assert all(0 < row["trpo/kl"] < 0.05 and row["trpo/gain"] > 0 for row in rows)


def test_a_language_model_s_own_value_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="trunk: own"):
        Bench(tmp_path, say(policy={"causal-lm": {"path": str(folders["gpt2"])}}))
