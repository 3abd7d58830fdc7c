"""PPO, A2C, vanilla PG: by hand, with golden numbers through a real phase in every route, and the conformance kit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, ComponentError, ConfigError
from rlalign.config.load import load_pipeline
from rlalign.testing import Bench, ComponentTests, registry, session
from rlalign.testing.golden import GIVEN, GivenLogits, golden, golden_gradient
from rlalign_plugin_ppo import (
    A2C,
    PPO,
    VanillaPG,
    clipped_value_error,
    explained_variance,
    gae,
)

CASES = {c["id"]: c for c in json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]}
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES = [("A", 10**9, 10**9), ("A", 10**9, 4), ("B", 10**9, 2), ("T", 2, 3), (None, 1, 1)]
Table = list[list[float]]


class TestPPO(ComponentTests):
    component = "ppo"
    options = {"entropy": 0.01, "value_clip": 0.1}


class TestPPOAsInRLHF(ComponentTests):
    component = "ppo"
    options = {"preset": "rlhf", "whiten_rewards": True}


class TestA2C(ComponentTests):
    component = "a2c"
    options = {"entropy": 0.01}


class TestVanillaPG(ComponentTests):
    component = "vanilla-pg"


class TestA2CWhitened(ComponentTests):
    component = "a2c"
    options = {"whiten": "minibatch", "truncated": "terminal"}


# -- advantages -------------------------------------------------------------------------------------------


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_gae_by_hand() -> None:
    """γ = 0.9, λ = 0.5, so γλ = 0.45: two episodes that ended and one that was cut, ten tokens."""
    reward = f64([[0, 0, 1, 0], [2, 0, 0, 0], [0.5, 0, -1, 0]])
    values = f64([[0.5, 0.4, 0.2, 0, 0], [1, 0, 0, 0, 0], [0.1, 0.2, 0.3, 0.6, 0]])
    length = torch.tensor([3, 1, 3])
    mask = torch.arange(4) < length[:, None]
    d = [0.9 * 0.4 - 0.5, 0.9 * 0.2 - 0.4, 1 - 0.2]  # δ of the first: −0.14, −0.22, 0.8
    e = [
        0.5 + 0.9 * 0.2 - 0.1,
        0.9 * 0.3 - 0.2,
        -1 + 0.9 * 0.6 - 0.3,
    ]  # of the cut one: its tail is worth 0.6
    expected = f64(
        [
            [d[0] + 0.45 * (d[1] + 0.45 * d[2]), d[1] + 0.45 * d[2], d[2], 0],
            [2 - 1, 0, 0, 0],
            [e[0] + 0.45 * (e[1] + 0.45 * e[2]), e[1] + 0.45 * e[2], e[2], 0],
        ]
    )
    torch.testing.assert_close(gae(reward, values, mask, length, 0.9, 0.5), expected, rtol=0, atol=1e-12)
    flat = gae(reward, values.scatter(1, length[:, None], 0.0), mask, length, 0.9, 0.5)
    assert flat[2, 2] == -1 - 0.3
    assert torch.equal(flat[:2], gae(reward, values, mask, length, 0.9, 0.5)[:2])


def test_gae_is_the_sum_of_discounted_errors() -> None:
    """Equation 16 as it stands, over the steps that were chosen; given steps in between are no steps."""
    g = torch.Generator().manual_seed(0)
    reward, values = torch.randn(6, 5, generator=g).double(), torch.randn(6, 6, generator=g).double()
    length = torch.tensor([5, 4, 3, 2, 1, 5])
    mask = torch.arange(5) < length[:, None]
    mask[0, 2] = mask[5, 0] = mask[5, 3] = False
    reward = torch.where(mask, reward, 0.0)
    found = gae(reward, values, mask, length, 0.97, 0.8)
    for i in range(6):
        steps = mask[i].nonzero()[:, 0].tolist()
        v = [float(values[i, t]) for t in steps] + [float(values[i, length[i]])]
        delta = [float(reward[i, t]) + 0.97 * v[j + 1] - v[j] for j, t in enumerate(steps)]
        for j, t in enumerate(steps):
            expected = sum((0.97 * 0.8) ** n * x for n, x in enumerate(delta[j:]))
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-12)
    assert not found[~mask].any()


def test_gae_that_counts_turns() -> None:
    """Two episodes with given steps in between: γ and λ act between turns and at the end, and are 1 within a turn."""
    reward = f64([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -0.5, 0.0], [0.0, 0.2, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor(
        [
            [True, True, True, False, False, True, True, False],
            [True, True, False, False, True, False, False, False],
        ]
    )
    turn = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0]])
    values = f64(
        [
            [-1.069, 0.955, 0.028, 0.161, 0.045, 0.416, -0.376, 0.0, -0.84],
            [-0.012, 1.789, 0.61, 0.521, 0.561, 0.627, -0.277, -2.262, 1.518],
        ]
    )
    length = torch.tensor([7, 5])
    by_token = f64(
        [
            [1.64211588736, -0.39775571199999993, 0.7389504, 0.0, 0.0, -0.84368, -0.124, 0.0],
            [1.8800587200000003, 0.3582760000000005, 0.0, 0.0, 2.0033000000000003, 0.0, 0.0, 0.0],
        ]
    )
    by_turn = f64(
        [
            [1.78388, -0.24012, 0.6868799999999999, 0.0, 0.0, -0.916, -0.124, 0.0],
            [2.159276, 0.3582760000000005, 0.0, 0.0, 2.0033000000000003, 0.0, 0.0, 0.0],
        ]
    )
    given = (reward, values, mask, length, 0.9, 0.8)
    torch.testing.assert_close(gae(*given), by_token, rtol=0, atol=1e-9)
    torch.testing.assert_close(gae(*given, turn), by_turn, rtol=0, atol=1e-9)
    alone = torch.arange(8).expand(2, -1)  # each step a turn of its own
    assert torch.equal(gae(*given, alone), gae(*given))


def test_without_values_and_discount_it_is_the_return_to_go() -> None:
    reward = f64([[1.0, 2.0, 3.0]])
    found = gae(
        reward, torch.zeros(1, 4).double(), torch.ones(1, 3, dtype=torch.bool), torch.tensor([3]), 1, 1
    )
    assert found.tolist() == [[6, 5, 3]]


def test_the_value_error_by_hand() -> None:
    """The larger of both errors counts: from 1 to 2 is held at 1.2, from 1 to 0.9 is not held."""
    error, acts = clipped_value_error(
        f64([[2.0, 2.0, 0.9]]), f64([[1.0, 1.0, 1.0]]), f64([[2.0, 0.0, 0.0]]), 0.2
    )
    torch.testing.assert_close(error, f64([[0.64, 4.0, 0.81]]))
    assert acts.tolist() == [[True, False, False]]


def test_the_explained_variance_by_hand() -> None:
    mask, returns = torch.tensor([[True, True, False]]), f64([[1.0, 3.0, 9.0]])
    assert float(explained_variance(returns, returns, mask)) == 1
    assert float(explained_variance(0 * returns, returns, mask)) == 0
    assert float(explained_variance(f64([[1.5, 2.5, 0.0]]), returns, mask)) == pytest.approx(0.75)
    assert float(explained_variance(returns, 0 * returns, mask)) == 0


def test_the_update_goes_on_until_one_and_a_half_times_the_target() -> None:
    """The factor of `target_kl` in OpenAI's released PPO; at the border it goes on, and nothing else ends it."""
    ppo, never = PPO(PPO.Config(target_kl=0.5)), PPO(PPO.Config())
    for kl, on in ((0.75, True), (0.7501, False)):
        metrics = {f"{ppo.name}/kl": kl, f"{ppo.name}/clip_fraction": 1.0 - kl}
        assert (ppo.step_ready(metrics), never.step_ready(metrics)) == (on, True)


# -- golden numbers ---------------------------------------------------------------------------------------


def cut(table: Table, mask: Table) -> list[list[list[float]]]:
    """[prompt][token] without padding, as one response a prompt."""
    return [[[x for x, m in zip(row, ms, strict=True) if m]] for row, ms in zip(table, mask, strict=True)]


def write_values(bench: Bench, table: Table) -> None:
    free = bench.run.models["value"].free  # [responses, steps + 1]
    with torch.no_grad():
        free.zero_()
        free[: len(table), : len(table[0])] = f64(table)


def prepare(folder: Path, case: Mapping[str, Any], algorithm: Any) -> tuple[Bench, Batch]:
    """The batch as the old policy and value make it; then the new ones stand in their place."""
    inputs, hyper = case["inputs"], case["hyperparameters"]
    mask = inputs["mask"]
    old, ref = inputs.get("old_token_logp", inputs.get("token_logp")), inputs["ref_token_logp"]
    scores = [[s] for s in inputs.get("score", inputs.get("reward"))]
    say = {**golden(cut(old, mask), cut(ref, mask), scores), "algorithm": algorithm}
    say["rewards"] = ["logged", {"kl": {"coef": hyper.get("kl_coef", hyper.get("beta"))}}]
    bench = Bench(folder, say, GIVEN)
    write_values(bench, inputs.get("old_values", inputs.get("values", [[0.0]])))
    batch = bench.batch()
    policy = bench.run.models.policy
    now = cut(inputs.get("new_token_logp", old), mask)
    options = policy.config.model_copy(update={"logprobs": tuple(tuple(map(tuple, r)) for r in now)})
    changed = GivenLogits(options)
    changed.setup()
    with torch.no_grad():
        policy.free.copy_(changed.free)
    if "vpred" in inputs:
        write_values(bench, inputs["vpred"])
    return bench, batch


def padded(batch: Batch, x_NT: Tensor) -> Table:
    """[prompt][token], as the numbers of the case stand: the draw shuffles prompts."""
    order = sorted(
        range(len(batch)), key=lambda i: int(batch.rollout.examples[int(batch.rollout.group_N[i])].id)
    )
    return torch.where(batch.rollout.mask_NT, x_NT, 0.0)[order].tolist()


def close(found: Table, expected: Table) -> None:
    assert f64(found).flatten().tolist() == pytest.approx(f64(expected).flatten().tolist(), **NEAR)


def check_gradient(bench: Bench, case: Mapping[str, Any], gradients: Mapping[str, Tensor], logp: str) -> None:
    grad, mask = case["expected"]["grad"], case["inputs"]["mask"]
    by_logit = golden_gradient(bench.run.models.policy, cut(grad[logp], mask))  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)
    if "vpred" in grad:
        expected = f64(grad["vpred"])
        by_value = gradients["value/free"][: expected.shape[0], : expected.shape[1]]
        torch.testing.assert_close(by_value, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("whiten", ["minibatch", "batch"])
@pytest.mark.parametrize("rewards", ["false", "true"])
@pytest.mark.parametrize("route, budget, chunk", ROUTES)
def test_ppo_full(route: Any, budget: int, chunk: int, rewards: str, whiten: str, tmp_path: Path) -> None:
    case = CASES[f"ppo_full_whiten_rewards_{rewards}"]
    expected = case["expected"]
    options = {"preset": "rlhf", "whiten": whiten, "whiten_rewards": rewards == "true"}
    bench, batch = prepare(tmp_path, case, {"ppo": options})
    close(padded(batch, batch.reward.tokens_NT), expected["token_rewards_before_whitening"])
    close(padded(batch, batch.columns["returns"]), expected["returns"])
    key = "advantages_whitened" if whiten == "batch" else "advantages_before_whitening"
    close(padded(batch, batch.advantage_NT), expected[key])
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    assert metrics["ppo/policy"] == pytest.approx(expected["policy_loss"], **NEAR)
    assert metrics["ppo/value"] == pytest.approx(expected["value_loss"], **NEAR)
    assert metrics["ppo/clip_fraction"] == pytest.approx(expected["policy_clipfrac"], **NEAR)
    assert metrics["ppo/value_clip_fraction"] == pytest.approx(expected["value_clipfrac"], **NEAR)
    ratio = f64(expected["ratio"])[f64(case["inputs"]["mask"]) > 0]
    assert metrics["ppo/kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), **NEAR)
    check_gradient(bench, case, gradients, "new_token_logp")


@pytest.mark.parametrize("algorithm", [{"vanilla-pg": {"value": 0.0}}, {"a2c": {"lam": 1.0, "value": 0.0}}])
@pytest.mark.parametrize("route, budget, chunk", ROUTES)
def test_vanilla_policy_gradient(route: Any, budget: int, chunk: int, algorithm: Any, tmp_path: Path) -> None:
    case = CASES["vanilla_pg_token_level"]
    bench, batch = prepare(tmp_path, case, algorithm)
    for name, x_NT in (("token_rewards", batch.reward.tokens_NT), ("returns", batch.columns["returns"])):
        close(padded(batch, x_NT), case["expected"][name])
    close(padded(batch, batch.advantage_NT), case["expected"]["advantages"])
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(case["expected"]["loss"], **NEAR)
    check_gradient(bench, case, gradients, "token_logp")


# -- in a pipeline ----------------------------------------------------------------------------------------


def say(algorithm: Any, **more: Any) -> dict[str, Any]:
    train = {"iterations": 30, "prompts": 12, "epochs": 2, "minibatches": 2, "lr": 0.05, "dtype": "float64"}
    return {
        "task": {"numbers": {"size": 12, "prompts": 3}},
        "policy": {"logits": {"prompts": 3, "steps": 4, "vocabulary": 6, "hidden": 8, "scale": 0.3}},
        "models": {"value": {"linear-value": {"trunk": "policy"}}},
        "rewards": ["token-sum", {"kl": {"coef": 0.05}}],
        "algorithm": algorithm,
        "generation": {"samples": 4, "max_new_tokens": 4},
        **more,
        "train": {**train, **more.get("train", {})},
    }


def learn(folder: Path, algorithm: Any, **more: Any) -> list[dict[str, float]]:
    started = session(folder, say(algorithm, **more), {})
    started.run()
    return [json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "algorithm",
    [
        *("ppo", "a2c", "vanilla-pg", {"ppo": {"preset": "rl4lms"}}),
        *(
            pytest.param(algorithm, marks=pytest.mark.slow)
            for algorithm in (
                {"ppo": {"entropy": 0.01, "value_clip": 0.2}},
                {"ppo": {"whiten": "none"}},
                {"a2c": {"whiten": "batch", "whiten_rewards": True}},
            )
        ),
    ],
)
def test_it_learns(algorithm: Any, tmp_path: Path) -> None:
    rows = learn(tmp_path, algorithm)
    rewards = [row["reward/token-sum"] for row in rows]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5
    assert rows[-1]["kl/per_response"] > 0.05


def test_the_value_learns_what_is_to_come(tmp_path: Path) -> None:
    """Under a policy that stands still its values explain returns better and better."""
    rows = learn(tmp_path, "ppo", models=None, train={"lr": 0.0, "lrs": {"value": 0.02}, "iterations": 60})
    explained = [row["ppo/explained_variance"] for row in rows]
    assert explained[0] == 0
    assert sum(explained[-5:]) / 5 > 0.02
    assert rows[-1]["ppo/value"] < rows[0]["ppo/value"]
    assert rows[-1]["ppo/clip_fraction"] == 0


def test_the_first_step_of_an_iteration_is_on_policy(tmp_path: Path) -> None:
    """Ratio 1, nothing clipped, whatever sampling did, and it takes no scoring of the policy."""
    how = {
        "samples": 4,
        "max_new_tokens": 4,
        "top_k": 4,
        "top_p": 0.9,
        "temperature": 0.7,
        "min_new_tokens": 2,
    }
    bench = Bench(tmp_path, say("ppo", generation=how))
    for _ in range(3):
        batch = bench.batch()
        assert batch.rollout.allowed is not None
        assert torch.equal(batch.old_logprobs_NT, batch.rollout.logprobs_NT)
        metrics, gradients = bench.gradient(batch)
        assert metrics["ppo/clip_fraction"] == 0
        assert metrics["ppo/kl"] < 1e-12
        with torch.no_grad():
            for key, g in gradients.items():
                model, _, name = key.partition("/")
                bench.run.models[model].get_parameter(name).sub_(0.1 * g)
        assert bench.gradient(batch)[0]["ppo/kl"] > 1e-6  # an update leaves it
        for model in ("policy", "value"):
            bench.run.models[model].version += 1


def test_a_critic_warms_up_alone(tmp_path: Path) -> None:
    weights: list[Tensor] = []
    train = {"iterations": 3, "weight_decay": 0.5}
    started = session(tmp_path, say({"ppo": {"warmup": 2}}, models=None, train=train), {})
    before = started.models.policy.free.clone()

    def watch(metrics: Mapping[str, float], **rest: Any) -> None:
        if "responses" in metrics:
            weights.append(started.models.policy.free.clone())

    original = started.logs.metrics
    started.logs.metrics = lambda m, **rest: (watch(m), original(m, **rest))[1]  # type: ignore[method-assign]
    started.run()
    assert torch.equal(weights[0], before)
    assert torch.equal(weights[1], before)
    assert not torch.equal(weights[2], before)
    assert bool(started.models["value"].free.any())


def test_a_warm_up_on_the_policys_own_trunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"value-head: \{trunk: own\}"):
        Bench(tmp_path, say({"ppo": {"warmup": 1}}))


def test_a_cut_response_is_worth_what_would_have_come(tmp_path: Path) -> None:
    def returns(truncated: str) -> Batch:
        bench = Bench(tmp_path, say({"ppo": {"truncated": truncated, "lam": 0.0}}, models=None))
        with torch.no_grad():
            bench.run.models["value"].free.fill_(3.0)
        return bench.batch()

    bootstrap, terminal = returns("bootstrap"), returns("terminal")
    rollout = bootstrap.rollout
    assert 0 < int(rollout.finished_N.sum()) < len(rollout)
    last = (torch.arange(len(rollout)), rollout.length_N - 1)
    difference_N = bootstrap.columns["returns"][last] - terminal.columns["returns"][last]
    assert torch.equal(difference_N, torch.where(rollout.finished_N, 0.0, 3.0).double())


def test_the_return_of_vanilla_pg_owes_nothing_to_the_value(tmp_path: Path) -> None:
    """What the value is learned towards is what was paid from the step on, cut responses included."""
    bench = Bench(tmp_path, say("vanilla-pg", models=None))
    with torch.no_grad():
        bench.run.models["value"].free.normal_(generator=torch.Generator().manual_seed(0))
    batch = bench.batch()
    assert 0 < int(batch.rollout.finished_N.sum()) < len(batch)
    to_come_NT = batch.reward.tokens_NT.flip(1).cumsum(1).flip(1)  # token rewards are 0 behind the end
    mask_NT = batch.rollout.mask_NT
    torch.testing.assert_close(batch.columns["returns"][mask_NT], to_come_NT[mask_NT], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        batch.advantage_NT[mask_NT], (to_come_NT - batch.columns["values"])[mask_NT], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("name", ["ppo", "a2c", "vanilla-pg"])
def test_the_loss_is_a_sum_and_a_bonus_is_taken_off(name: str, warmup: int, tmp_path: Path) -> None:
    """policy + value·L_V − entropy·H, means over the step's tokens; while the value warms up, its part alone."""
    options = {"value": 0.7, "entropy": 0.3, "warmup": warmup}
    bench = Bench(tmp_path, say({name: options}, models=None))
    with torch.no_grad():
        bench.run.models["value"].free.normal_(generator=torch.Generator().manual_seed(0))
    batch = bench.batch()
    mask_NT, old_NT, returns_NT = batch.rollout.mask_NT, batch.columns["values"], batch.columns["returns"]
    assert len(set(batch.rollout.length_N.tolist())) > 1, "responses of one length hide what is counted"
    found = bench.run.score("policy", batch.rollout, ["entropy"])
    expected = {
        "value": ((old_NT - returns_NT) ** 2)[mask_NT].mean() / 2,
        "entropy": found.entropy_NT[mask_NT].mean(),
        "explained_variance": 1 - (returns_NT - old_NT)[mask_NT].var() / returns_NT[mask_NT].var(),
    }
    for budget in (10**9, 1):  # in one piece, response by response
        metrics, _ = bench.gradient(batch, budget=budget)
        part = {key: metrics[f"{name}/{key}"] for key in ("policy", *expected)}
        assert part == pytest.approx({**part, **{k: float(x) for k, x in expected.items()}}, rel=1e-12)
        bonus = 0 if warmup else part["policy"] - 0.3 * part["entropy"]
        assert metrics["loss"] == pytest.approx(bonus + 0.7 * part["value"], rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"whiten": "minibatch"}], ids=["as-it-is", "whitened"])
def test_a2c_whitens_advantages_only_if_asked(options: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"a2c": options}))
    batch = bench.batch()
    advantage_M, logp_M = (x[batch.rollout.mask_NT] for x in (batch.advantage_NT, batch.rollout.logprobs_NT))
    if options:
        advantage_M = (advantage_M - advantage_M.mean()) / (advantage_M.var(correction=0) + 1e-8).sqrt()
    expected = -float((advantage_M * logp_M).mean())
    assert bench.gradient(batch, budget=1)[0]["a2c/policy"] == pytest.approx(expected, rel=1e-12)


def test_the_update_ends_at_too_large_a_step(tmp_path: Path) -> None:
    for row in learn(tmp_path, {"ppo": {"target_kl": 1e-5}}, train={"iterations": 2}):
        assert row["optimiser_steps"] == 1
        assert row["dropped_steps"] == 1


# -- presets ----------------------------------------------------------------------------------------------


def load(folder: Path, algorithm: Any, **more: Any) -> Any:
    text = json.dumps(say(algorithm, **more))
    return load_pipeline(folder / "pipeline.yaml", registry=registry(), text=text).phases[0]


def test_a_preset_is_one_word_and_each_value_may_be_said(tmp_path: Path) -> None:
    phase = load(tmp_path, {"ppo": {"preset": "rlhf", "lam": 0.9}})
    options = phase.algorithm[0].options
    assert (options.gamma, options.lam, options.value, options.value_clip) == (1.0, 0.9, 0.1, 0.2)
    assert (options.whiten, options.truncated, options.clip) == ("batch", "terminal", 0.2)
    options = load(tmp_path, {"ppo": {"preset": "rl4lms"}}).algorithm[0].options
    assert (options.gamma, options.lam, options.value, options.value_clip) == (0.99, 0.95, 1.0, None)
    assert (options.whiten, options.truncated, options.clip) == ("minibatch", "terminal", 0.2)


def test_a_preset_sets_what_stands_around_it(tmp_path: Path) -> None:
    bare = say({"ppo": {"preset": "rl4lms"}})
    bare["train"] = {"iterations": 2, "clip": 2.0}
    phase = load_pipeline(tmp_path / "p.yaml", registry=registry(), text=json.dumps(bare)).phases[0]
    assert (phase.train.epochs, phase.train.clip, phase.train.weight_decay) == (5, 2.0, 1e-6)
    bare["algorithm"] = {"ppo": {"preset": "rlhf"}}
    phase = load_pipeline(tmp_path / "p.yaml", registry=registry(), text=json.dumps(bare)).phases[0]
    assert (phase.train.epochs, phase.train.lr, phase.generation.temperature) == (4, 3e-6, 0.7)


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.ppo\.preset: expected 'rl4lms' or 'rlhf'"):
        load(tmp_path, {"ppo": {"preset": "rl4lm"}})


def test_what_they_share() -> None:
    vanilla, a2c = VanillaPG.Config(), A2C.Config()
    assert vanilla.model_dump() == {**a2c.model_dump(), "lam": 1.0, "truncated": "terminal"}
    assert set(A2C.Config.model_fields) | {"clip", "target_kl", "preset"} == set(PPO.Config.model_fields)
    for preset, truncated in product(("rl4lms", "rlhf"), ("bootstrap", "terminal")):
        assert PPO.Config(preset=preset, truncated=truncated).truncated == truncated  # type: ignore[arg-type]
