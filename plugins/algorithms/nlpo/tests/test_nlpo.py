"""NLPO: samples within the copy's nucleus, exact ratios on it, a copy that follows; and PPO where nothing is masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, Component, Rollout, Run, hookimpl
from rlalign.decoding.nucleus import nucleus
from rlalign.testing import Bench, ComponentTests, session

POLICY = {"logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6, "hidden": 8, "scale": 0.3}}


def say(algorithm: Any, **more: Any) -> dict[str, Any]:
    train = {"iterations": 7, "prompts": 12, "epochs": 3, "minibatches": 2, "lr": 0.1, "dtype": "float64"}
    return {
        "task": {"numbers": {"size": 12, "prompts": 3}},
        "policy": POLICY,
        "rewards": ["token-sum", {"kl": {"coef": 0.05}}],
        "models": {"value": {"linear-value": {"trunk": "policy"}}},
        "phases": [{"name": "only", "algorithm": [algorithm, "watch"]}],
        "generation": {"samples": 4, "max_new_tokens": 4, "temperature": 0.9},
        **more,
        "train": {**train, **more.get("train", {})},
    }


class Watch(Component):
    """Remembers batches, and the weights of policy and mask after every iteration (and before the first)."""

    def setup(self, run: Run) -> None:
        self.batches: list[Batch] = []
        self.weights = [_weights(run)]

    @hookimpl(wrapper=True)
    def advantage(self) -> Any:
        batch = yield
        self.batches.append(batch)
        return batch

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        self.weights.append(_weights(run))


def _weights(run: Run) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: w.clone() for key, w in model.state_dict().items()} for name, model in run.models.items()
    }


def test_a_mask_of_the_end_alone_keeps_the_next_likely_tokens(tmp_path: Path) -> None:
    """A copy that finds the end all but certain, and `min_new_tokens` that bans it."""

    class Eager(Watch):
        def setup(self, run: Run) -> None:
            super().setup(run)
            mask: Any = run.models["mask"]
            with torch.no_grad():
                mask.output[:, -1] *= 100
                mask.output[:, -1] += 50 * mask.output.mean(1)

    pipeline = say(
        {"nlpo": {"top_p": 0.5, "refresh": 3}},
        generation={"samples": 4, "max_new_tokens": 4, "min_new_tokens": 3},
        train={"epochs": 1, "minibatches": 1},
    )
    started = session(tmp_path, pipeline, {"watch": Eager})
    started.run()
    rows = [json.loads(line) for line in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    assert all(row["length"] >= 3 and row["sampler/gap"] < 1e-12 for row in rows)
    (watch,) = (c for c in started.phase.plan.components if isinstance(c, Eager))
    batches = watch.batches
    allowed = batches[0].rollout.allowed
    assert allowed is not None
    row_M, step_M = batches[0].rollout.chosen
    kept_M = allowed.mask(row_M, step_M)[step_M < 3].sum(1)
    assert bool((kept_M == 1).any()), "where the nucleus was the end alone, one token was kept in its place"


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def learn(folder: Path, algorithm: Any, name: str | None = None, **more: Any) -> tuple[Any, Watch]:
    started = session(folder, say(algorithm, **more), {"watch": Watch}, name=name)
    started.run()
    return started, next(c for c in started.builder.built.values() if isinstance(c, Watch))


def sorted_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Row by row: tokens in falling order of probability until their sum reaches p."""
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for i, p in enumerate(logits.softmax(-1)):
        total = 0.0
        for token in p.argsort(descending=True).tolist():
            if total >= top_p:
                break
            kept[i, token] = True
            total += float(p[token])
    return kept


# -- the mask ---------------------------------------------------------------------------------------------


def test_the_mask_is_the_copys_nucleus_and_moves_with_a_refresh_only(tmp_path: Path) -> None:
    started, watch = learn(tmp_path, {"nlpo": {"top_p": 0.6, "refresh": 3}})
    masks = [w["mask"] for w in watch.weights]
    policies = [w["policy"] for w in watch.weights]
    for i in range(1, 8):
        assert same(masks[i], policies[i] if i in (3, 6) else masks[i - 1])
    assert not same(masks[0], masks[3])
    assert not same(masks[3], masks[6])
    mask = started.models["mask"]
    for i, batch in enumerate(watch.batches):
        rollout = batch.rollout
        mask.load_state_dict(masks[i])
        with torch.no_grad():
            expected_MV = sorted_nucleus(mask.head(mask.features(rollout)), 0.6)
        expected_MV[:, -1] = True  # ending is always allowed
        allowed_MV = rollout.allowed.mask(*rollout.chosen)
        assert torch.equal(allowed_MV, expected_MV)
        assert not bool(allowed_MV.all())
        assert bool(allowed_MV.gather(1, rollout.actions_NT[rollout.mask_NT][:, None]).all())


def test_at_one_state_the_set_changes_after_a_refresh(tmp_path: Path) -> None:
    """The sets of the first step of each prompt, iteration by iteration."""
    _, watch = learn(tmp_path, {"nlpo": {"top_p": 0.6, "refresh": 3}}, train={"lr": 0.5})

    def sets(rollout: Rollout) -> dict[str, tuple[bool, ...]]:
        row_M, step_M = rollout.chosen
        allowed_MV = rollout.allowed.mask(row_M, step_M)[step_M == 0]
        return {
            str(rollout.examples[int(g)].prompt): tuple(row.tolist())
            for g, row in zip(rollout.group_N, allowed_MV, strict=True)
        }

    found = [sets(batch.rollout) for batch in watch.batches]
    assert found[3] != found[2]
    assert all(found[i] == found[i - 1] for i in (1, 2, 4, 5))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_set_is_the_sorted_one(top_p: float) -> None:
    logits = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(nucleus(logits, top_p), sorted_nucleus(logits, top_p))


@pytest.mark.parametrize("options, least", [({"min_keep": 4}, 4), ({"top_k": 2, "top_p": 0.99}, 1)])
def test_sizes(options: dict[str, Any], least: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"nlpo": {"top_p": 0.3, **options}}), {"watch": Watch})
    rollout = bench.batch().rollout
    size_M = rollout.allowed.mask(*rollout.chosen).sum(1)
    assert int(size_M.min()) >= least
    assert int(size_M.max()) <= (3 if "top_k" in options else 6)  # two and the end


class Drop(Component):
    """Of the first draw of an iteration, keeps the first half of the groups: the loop refills."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Any:
        batch = yield
        return batch.take(batch.rollout.group_N < len(batch.rollout.examples) // 2).as_step()


def test_a_refill_goes_on_with_the_same_tokens_and_masks(tmp_path: Path) -> None:
    """What one draw of 16 prompts samples at a position, two draws of 8 sample there too."""

    def sampled(prompts: int, refill: int) -> list[Rollout]:
        algorithm = (
            [{"nlpo": {"top_p": 0.6}}, "drop", "watch"] if refill else [{"nlpo": {"top_p": 0.6}}, "watch"]
        )
        train = {"iterations": 1, "prompts": prompts, "refill": refill, "lr": 0.0}
        phases = [{"name": "only", "algorithm": algorithm}]
        started = session(
            tmp_path,
            say({}, phases=phases, train=train),
            {"watch": Watch, "drop": Drop},
            name=f"draw-{prompts}",
        )
        started.run()
        watch = next(c for c in started.builder.built.values() if isinstance(c, Watch))
        return [batch.rollout for batch in watch.batches]

    (whole,) = sampled(16, 0)
    parts = sampled(8, 1)
    assert len(parts) == 2
    for first, part in zip((0, 8), parts, strict=True):
        # `Drop` kept the first four groups of each draw.
        twin = whole.take((whole.group_N >= first) & (whole.group_N < first + 4))
        assert [e.id for e in twin.examples] == [e.id for e in part.examples]
        assert twin.texts == part.texts
        assert torch.equal(twin.allowed.mask(*twin.chosen), part.allowed.mask(*part.chosen))


# -- the distribution -------------------------------------------------------------------------------------


def outputs(bench: Bench, rollout: Rollout, token: int) -> Tensor:
    instead = replace(rollout, actions_NT=torch.full_like(rollout.actions_NT, token))
    return bench.run.score("policy", instead, ["logprobs"]).logprobs_NT[rollout.mask_NT].exp()


def test_probabilities_sum_to_one_over_the_mask_and_the_entropy_is_theirs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"nlpo": {"top_p": 0.6, "entropy": 0.01}}), {"watch": Watch})
    batch = bench.batch()
    rollout, at = batch.rollout, batch.rollout.mask_NT
    p_MV = torch.stack([outputs(bench, rollout, token) for token in range(6)], 1)
    torch.testing.assert_close(p_MV.sum(1), torch.ones_like(p_MV[:, 0]), rtol=0, atol=1e-14)
    assert torch.equal(p_MV > 0, rollout.allowed.mask(*rollout.chosen))
    assert torch.equal(batch.old_logprobs_NT[at], rollout.logprobs_NT[at])  # the sampler's own
    mine_M = p_MV.gather(1, rollout.actions_NT[at][:, None])[:, 0]
    torch.testing.assert_close(rollout.logprobs_NT[at].exp(), mine_M, rtol=1e-13, atol=0)
    metrics, _ = bench.gradient(batch)
    entropy = float(-torch.xlogy(p_MV, p_MV).sum(1).mean())
    assert metrics["nlpo/entropy"] == pytest.approx(entropy, rel=1e-12)
    assert metrics["nlpo/clip_fraction"] == 0
    assert metrics["nlpo/kl"] < 1e-13
    # The KL to the reference is of the whole distributions, at the same weights 0.
    assert float(batch.reward.parts["kl"].abs().max()) < 1e-14
    assert bool((rollout.logprobs_NT > rollout.full_logprobs_NT)[at].any())


def test_with_everything_allowed_it_is_ppo(tmp_path: Path) -> None:
    nlpo, watch = learn(tmp_path, {"nlpo": {"top_p": 1.0, "refresh": 3}}, "nlpo")
    ppo, _ = learn(tmp_path, "ppo", "ppo")
    assert all(batch.rollout.allowed is None for batch in watch.batches)
    for name in ("policy", "value"):
        torch.testing.assert_close(
            dict(nlpo.models[name].state_dict()), dict(ppo.models[name].state_dict()), rtol=0, atol=1e-12
        )


def test_evaluation_is_not_constrained(tmp_path: Path) -> None:
    evaluate = {"examples": 64, "generation": {"greedy": False, "temperature": 3.0}}
    started, watch = learn(tmp_path, {"nlpo": {"top_p": 0.01}}, evaluate=evaluate, train={"iterations": 1})
    sampled = {
        json.loads(x)["response"] for x in (started.dir.path / "samples.jsonl").read_text().splitlines()
    }
    assert len(sampled) > 4
    assert watch.batches[0].rollout.allowed is not None


def test_it_learns(tmp_path: Path) -> None:
    started, watch = learn(tmp_path, {"nlpo": {"refresh": 2}}, train={"iterations": 25, "lr": 0.03})
    rows = [json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["reward/token-sum"] > rows[0]["reward/token-sum"] + 0.5
    assert any(batch.rollout.allowed is not None for batch in watch.batches)


# -- as first released ------------------------------------------------------------------------------------


RELEASED = {"nlpo": {"mode": "rl4lms", "top_p": 0.6, "min_keep": 1, "refresh": 1}}


def test_as_released_the_mask_stays_and_the_ratio_is_of_full_probabilities(tmp_path: Path) -> None:
    _, watch = learn(tmp_path, RELEASED)
    assert all(same(w["mask"], watch.weights[0]["mask"]) for w in watch.weights)
    assert not same(watch.weights[-1]["policy"], watch.weights[0]["policy"])

    bench = Bench(tmp_path, say(RELEASED), {"watch": Watch})
    batch = bench.batch()
    rollout = batch.rollout
    metrics, _ = bench.gradient(batch)
    assert metrics["nlpo/kl"] < 1e-13  # the sampler's full log-probs are the old ones
    with torch.no_grad():
        for parameter in bench.run.models.policy.parameters():
            parameter.mul_(1.3)
    x_NT = bench.engine.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
    x_M = (x_NT - rollout.full_logprobs_NT)[rollout.mask_NT]
    assert bench.gradient(batch)[0]["nlpo/kl"] == pytest.approx(float((x_M.expm1() - x_M).mean()), rel=1e-12)


def test_as_released_a_hundred_tokens_are_kept_and_top_k_comes_after(tmp_path: Path) -> None:
    policy = {"logits": {"prompts": 3, "steps": 4, "vocabulary": 150, "scale": 0.1}}
    how = {"samples": 4, "max_new_tokens": 4}
    models = None

    def sizes(options: Mapping[str, Any] = {}, **more: Any) -> Tensor:
        asked = say(
            {"nlpo": {"mode": "rl4lms", "top_p": 0.01, **options}},
            policy=policy,
            models=models,
            generation={**how, **more},
        )
        rollout = Bench(tmp_path, asked, {"watch": Watch}).rollout()[0]
        return rollout.allowed.mask(*rollout.chosen).sum(1)

    assert set(sizes().tolist()) <= {100, 101}  # the end is always allowed
    assert set(sizes(top_k=50).tolist()) == {50}
    assert set(sizes({"min_keep": 7}).tolist()) <= {7, 8}, "what is said counts"


class TestNLPO(ComponentTests):
    component = "nlpo"
    options = {"top_p": 0.7, "refresh": 1, "entropy": 0.01}


class TestNLPOAsReleased(ComponentTests):
    component = "nlpo"
    options = {"mode": "rl4lms", "preset": "rl4lms", "min_keep": 1, "top_p": 0.7}
