"""The members of the family: the conformance kit, and that they learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign import ComponentError, ConfigError
from rlalign.testing import Bench, ComponentTests, session

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
