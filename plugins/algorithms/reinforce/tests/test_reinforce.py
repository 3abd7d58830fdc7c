"""The members of the family: the conformance kit, and that they learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign import Batch, ComponentError, ConfigError, Outputs
from rlalign.testing import Bench, ComponentTests, session
from rlalign_plugin_reinforce import PolicyGradient

from .conftest import MEMBERS, numbers


class TestRLOO(ComponentTests):
    component = "rloo"


class TestReinforce(ComponentTests):
    component = "reinforce"


class TestGRPO(ComponentTests):
    component = "grpo"


class TestDrGRPO(ComponentTests):
    component = "dr-grpo"


class TestDAPO(ComponentTests):
    component = "dapo"


class TestGSPO(ComponentTests):
    component = "gspo"


class TestCISPO(ComponentTests):
    component = "cispo"
    exact_gradient = False  # the clipped ratio is a constant


class TestReinforcePP(ComponentTests):
    component = "reinforce-pp"


class TestReinforcePPBaseline(ComponentTests):
    component = "reinforce-pp-baseline"


class TestTokensWeighed(ComponentTests):
    component = "grpo"
    options: ClassVar = {"importance": {"cap": 1.5}, "estimator": "k2"}


class TestWholeResponsesWeighed(ComponentTests):
    component = "rloo"
    options: ClassVar = {"ratio": "sequence", "clip": [0.2, None], "importance": {"level": "sequence"}}


@pytest.mark.parametrize("member", MEMBERS)
def test_it_learns(member: str, tmp_path: Path) -> None:
    made = numbers({member: {} if member != "grpo" else {"kl": 0.001}})
    made["train"] |= (
        {"iterations": 60} if member in ("reinforce", "rloo") else {"iterations": 40, "epochs": 2}
    )
    started = session(tmp_path, made, {})
    started.run()
    rows: list[Mapping[str, float]] = [
        json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()
    ]
    rewards = [m["reward/token-sum"] for m in rows]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5


@pytest.mark.parametrize("member", MEMBERS)
def test_only_those_that_compare_want_siblings(member: str, tmp_path: Path) -> None:
    alone = numbers(member, generation={"samples": 1, "max_new_tokens": 3})
    logs = numbers(member, responses="logged", rewards=["logged"])  # a log may hold groups of one
    if member in ("reinforce", "reinforce-pp"):
        for name, made in (("alone", alone), ("logs", logs)):
            assert len(Bench(tmp_path / name, made).batch())
        return
    with pytest.raises(ConfigError, match=f"`{member}` needs at least 2 responses"):
        Bench(tmp_path, alone)
    bench = Bench(tmp_path, logs)
    with pytest.raises(ComponentError, match="has one response only"):
        bench.batch()


@pytest.mark.parametrize("member", MEMBERS)
def test_equal_rewards_teach_nothing(member: str, tmp_path: Path) -> None:
    """0/0 is nowhere: all responses have three tokens and earn 3, or a third, which has a rounding."""
    for weight in (1.0, 1 / 9):
        options = {"delta": 0.0} if member in ("grpo", "dapo", "gspo", "cispo") else {}
        made = numbers(
            {member: {**options, **({"kl": 0.0} if member == "grpo" else {})}},
            rewards=[{"length": None, "weight": weight}],
        )
        bench = Bench(tmp_path / str(weight), made)
        batch = bench.batch()
        if member == "reinforce":
            assert torch.equal(
                batch.advantage_NT, batch.reward.total_N[:, None].expand_as(batch.advantage_NT)
            )
            continue  # its first baseline is 0: it has seen nothing yet
        _, gradients = bench.gradient(batch)
        assert float(batch.advantage_NT.abs().max()) <= 1e-15
        assert float(gradients["policy/free"].abs().max()) <= 1e-15


def test_by_default_reinforce_and_rloo_are_what_they_were_to_the_bit(tmp_path: Path) -> None:
    for member in ("reinforce", "rloo"):
        bench = Bench(tmp_path / member, numbers(member))
        batch = bench.batch()
        total_N, group_N = batch.reward.total_N, batch.rollout.group_N
        advantage_N = total_N - 0.0
        if member == "rloo":
            sum_G = torch.zeros(6, dtype=torch.float64).index_add(0, group_N, total_N)
            advantage_N = total_N - (sum_G[group_N] - total_N) / 3
        assert torch.equal(batch.advantage_NT, advantage_N[:, None].expand(-1, 3))
        metrics, _ = bench.gradient(batch)
        logprobs_NT = bench.run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT
        assert metrics["loss"] == -float((advantage_N[:, None] * logprobs_NT).sum(1).sum() / 24)
        assert set(metrics) == {"loss", f"{member}/loss"}


def test_a_run_says_how_far_it_moved_and_what_was_clipped(tmp_path: Path) -> None:
    made: dict[str, Any] = numbers({"grpo": {"clip": [0.01, 0.01]}})
    made["train"] |= {"iterations": 2, "epochs": 3, "lr": 0.05}
    started = session(tmp_path, made, {})
    started.run()
    first = json.loads((started.dir.path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["grpo/clip_fraction"] < 1
    assert first["grpo/kl"] > 0 and first["grpo/reference_kl"] > 0


def test_the_length_that_dr_grpo_divides_by_is_the_longest_that_may_be_sampled(tmp_path: Path) -> None:
    found = {}
    for longest in (None, 6, 3):
        options = {"longest": longest} if longest else {}
        made = numbers({"dr-grpo": options}, generation={"samples": 4, "max_new_tokens": 6})
        bench = Bench(tmp_path / str(longest), made)
        found[longest] = bench.gradient(bench.batch())[1]["policy/free"]
    assert torch.equal(found[None], found[6])
    torch.testing.assert_close(found[None] * 2, found[3], rtol=0, atol=1e-12)


def test_remembered_responses_count_once_in_the_mean_of_past(tmp_path: Path) -> None:
    pytest.importorskip("rlalign_plugin_replay")
    made = numbers("reinforce", responses={"replay": {"groups": 4}})
    made["train"] |= {"iterations": 3}
    started = session(tmp_path, made, {})
    started.run()
    rows = [json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["replay/responses"] > 0
    (component,) = [c for c in started.phase.plan.components if c.name == "reinforce"]
    state = component.state_dict()
    assert state["count"] == sum(row["responses"] for row in rows) == 3 * 24
    assert state["total"] == pytest.approx(sum(row["responses"] * row["reward/total"] for row in rows))


@pytest.mark.parametrize("member", ["gspo", {"rloo": {"ratio": "sequence"}}])
def test_a_response_that_begins_with_a_given_step_keeps_its_advantage(member: Any, tmp_path: Path) -> None:
    bench = Bench(tmp_path, numbers(member))
    batch = bench.batch()
    mask_NT = batch.rollout.mask_NT.clone()
    mask_NT[:, 0] = False
    rollout, advantage_N = replace(batch.rollout, mask_NT=mask_NT), batch.advantage_NT[:, 0]
    given = replace(Batch.of(rollout, batch.reward, advantage_N), old=rollout.logprobs_NT).as_step()
    (component,) = [c for c in bench.phase.plan.components if isinstance(c, PolicyGradient)]
    gain_N, _ = component.gain(given, Outputs(logprobs_NT=rollout.logprobs_NT))
    torch.testing.assert_close(gain_N, advantage_N, rtol=0, atol=1e-12)
    assert bool(advantage_N.any())


@pytest.mark.parametrize("scale", ["rewards", "responses"])
def test_scales_over_the_draw(scale: str, tmp_path: Path) -> None:
    """By the deviation of all rewards, or by that of the advantages, less their mean."""
    bench = Bench(tmp_path, numbers({"grpo": {"scale": scale, "kl": 0.0}}, generation={"samples": 4}))
    batch = bench.batch()
    total_N, rows_GK = batch.reward.total_N, batch.rollout.groups()[0]
    less_N = total_N.index_put((rows_GK,), total_N[rows_GK] - total_N[rows_GK].mean(1, keepdim=True))
    deviation = (total_N if scale == "rewards" else less_N).std()
    mean = 0.0 if scale == "rewards" else less_N.mean()
    found_N = batch.advantage_NT.sum(1) / batch.rollout.mask_NT.sum(1)
    torch.testing.assert_close(found_N, (less_N - mean) / (deviation + 1e-4), rtol=0, atol=1e-12)


def test_a_kl_in_the_loss_is_between_whole_distributions(tmp_path: Path) -> None:
    """Of what top-k leaves the policy's log-probs differ from the reference's even where the two are one."""
    made = numbers("grpo", generation={"samples": 4, "max_new_tokens": 3, "top_k": 3})
    bench = Bench(tmp_path, made)
    batch = bench.batch()
    assert not torch.allclose(batch.rollout.logprobs_NT, batch.rollout.full_logprobs_NT)
    assert bench.gradient(batch)[0]["grpo/reference_kl"] == pytest.approx(0, abs=1e-12)


def test_a_deviation_of_a_group_wants_siblings_too(tmp_path: Path) -> None:
    alone = numbers({"reinforce": {"scale": "group"}}, generation={"samples": 1, "max_new_tokens": 3})
    with pytest.raises(ConfigError, match="`reinforce` needs at least 2 responses"):
        Bench(tmp_path, alone)


def test_what_is_not_needed_is_not_asked_for(tmp_path: Path) -> None:
    """A log's old log-probs, and a reference, would each cost a scoring."""
    for member, needs in (
        ("rloo", {"logprobs"}),
        ("dapo", {"logprobs", "old_logprobs"}),
        ({"dapo": {"importance": {}}}, {"logprobs"}),
        ({"rloo": {"kl": 0.1}}, {"logprobs", "full_logprobs", "reference.full_logprobs"}),
    ):
        bench = Bench(tmp_path / str(len(list(tmp_path.iterdir()))), numbers(member))
        (component,) = [c for c in bench.phase.plan.components if isinstance(c, PolicyGradient)]
        assert set(component.needs) == needs
