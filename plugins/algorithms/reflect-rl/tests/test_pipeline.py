"""The whole pipeline on the hidden goal: it learns, the reflector stays, a killed run goes on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.records.result import Result
from rlalign.running import loop
from rlalign.testing import Bench, registry, run
from rlalign.testing.bench import Silence, logged, run_until, session
from rlalign_plugin_reflect_rl.reflect_rl import successes

from .toy import ASIDES, POLICY, pipeline, play


@pytest.mark.slow
def test_it_learns_what_only_the_reflector_is_told(tmp_path: Path) -> None:
    """Who knows the side earns .70 at best; the reflector's weights are those that it was taught, to the bit."""
    _, ended = run(tmp_path, pipeline())
    first, last = (row["eval/played/return"] for row in Result(ended.dir.path).evaluations)
    assert first < 0.2 and last > 0.6
    reflector, policy = ended.models["reflection"].table, ended.models["policy"].table
    asides = slice(0, len(ASIDES))
    assert torch.equal(reflector[asides], policy[asides])  # acting moves other rows of the table
    advice = reflector[asides].softmax(1)
    assert min(float(advice[i, int(aside.endswith("right"))]) for i, aside in enumerate(ASIDES)) > 0.9
    assert not bool(reflector[len(ASIDES) :].any()) and bool(policy[len(ASIDES) :].any())


@pytest.mark.slow
def test_one_who_always_says_the_other_way_is_as_good_and_one_who_does_not_know_is_none(
    tmp_path: Path,
) -> None:
    """Advice is believed for what it leads to; only what says nothing of the goal cannot help."""
    ends = {}
    for teacher in ("contrary", "blind"):
        _, ended = run(tmp_path / teacher, pipeline({"teacher": teacher}))
        ends[teacher] = [row["eval/played/return"] for row in Result(ended.dir.path).evaluations][-1]
    assert ends["contrary"] > 0.6 and ends["blind"] < 0.4


def acting(**algorithm: Any) -> dict[str, Any]:
    stage = play(algorithm=algorithm)
    del stage["name"]
    return {"policy": POLICY, **stage, "train": {"iterations": 5, "prompts": 2, "lr": 0.3}}


def test_only_successes_are_remembered_the_last_of_this_stage(tmp_path: Path) -> None:
    bench = Bench(tmp_path, acting(keep=7))
    (component,) = [m.component for m in bench.phase.plan.members if m.name == "reflect-rl"]
    seen: list[tuple[float, int]] = []
    for _ in range(4):
        metrics = bench.iterate()
    memory = component.memory
    assert len(memory) == 7 and 0 < metrics["reflect-rl/remembered"] <= 7
    for place in range(len(memory)):
        episode = memory[place]
        earned = float(episode.columns["earned"].sum())
        seen.append((earned, len(episode)))
        assert earned > 0 and bool(episode.mask_NT.any(1).all())
    assert len(set(seen)) > 1
    component.phase_started()
    assert len(component.memory) == 0


def test_what_counts_as_a_success(tmp_path: Path) -> None:
    rollout, _ = Bench(tmp_path, acting()).rollout(8)
    episodes = rollout.columns["episode"]
    returns = {int(e): float(rollout.columns["played"][episodes == e].sum()) for e in episodes.unique()}
    found = {int(episodes[rows[0]]) for rows in successes(rollout, 0.81)}
    assert found == {e for e, earned in returns.items() if earned > 0.81} and 0 < len(found) < len(returns)


def test_replay_is_a_step_of_its_own(tmp_path: Path) -> None:
    with_it, without = Bench(tmp_path / "a", acting()), Bench(tmp_path / "b", acting(replayed=0))
    steps = [[bench.iterate()["optimiser_steps"] for _ in range(4)] for bench in (with_it, without)]
    assert steps == [[1, 2, 2, 2], [1, 1, 1, 1]]


def test_the_replayed_step_is_that_of_its_episodes(tmp_path: Path) -> None:
    """Minus the mean over its tokens of advantage × log π, with the advantages that they had."""
    bench = Bench(tmp_path, acting())
    for _ in range(2):
        bench.iterate()
    (component,) = [m.component for m in bench.phase.plan.members if m.name == "reflect-rl"]
    batch = component.replay(bench.run, torch.device("cpu"))
    again = component.replay(bench.run, torch.device("cpu"))
    assert torch.equal(batch.rollout.actions_NT, again.rollout.actions_NT)
    metrics, _ = bench.gradient(batch.as_step())
    mask_NT = batch.rollout.mask_NT
    now_NT = bench.run.score("policy", batch.rollout, ["logprobs"]).logprobs_NT
    expected = -(batch.advantage_NT * now_NT)[mask_NT].mean()
    assert abs(metrics["loss"] - float(expected)) < 1e-6
    assert float(batch.advantage_NT.abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"kl": 0.1},
        {"kl": 0.1, "ratio": "token", "weigh_kl": True},
        {"importance": {"cap": 1.5}},
        {"importance": {"cap": 1.5, "level": "sequence"}, "ratio": "token", "kl": 0.1},
    ],
    ids=str,
)
def test_what_is_replayed_is_weighed_and_held_to_the_reference_as_what_is_new(
    options: dict[str, Any], tmp_path: Path
) -> None:
    bench = Bench(tmp_path, acting(**options))
    steps = [bench.iterate()["optimiser_steps"] for _ in range(4)]
    assert steps == [1, 2, 2, 2]
    (component,) = [m.component for m in bench.phase.plan.members if m.name == "reflect-rl"]
    batch = component.replay(bench.run, torch.device("cpu"))
    rollout, mask_NT = batch.rollout, batch.rollout.mask_NT
    now_NT = bench.run.score("policy", rollout, ["logprobs"]).logprobs_NT
    ratio_NT = (now_NT - rollout.logprobs_NT).exp()
    kl_NT = torch.zeros_like(ratio_NT)
    if "kl" in options:
        policy, reference = (bench.run.score(m, rollout, ["full_logprobs"]) for m in ("policy", "reference"))
        away_NT = policy.full_logprobs_NT - reference.full_logprobs_NT
        kl_NT = torch.expm1(-away_NT) + away_NT
        assert float(kl_NT[mask_NT].max()) > 1e-4
    assert float((ratio_NT[mask_NT] - 1).abs().max()) > 1e-3
    # With weights the ratio is taken to the policy of when the iteration began, which it still is.
    whole = "importance" in options
    taken_NT = (torch.ones_like(ratio_NT) if whole else ratio_NT) if "ratio" in options else now_NT
    weight_NT = ratio_NT.clamp(max=1.5) if whole else torch.ones_like(ratio_NT)
    kl_NT = ratio_NT * kl_NT if "weigh_kl" in options else kl_NT
    gain_NT = weight_NT * batch.advantage_NT * taken_NT - options.get("kl", 0.0) * kl_NT
    metrics, _ = bench.gradient(batch.as_step())
    assert metrics["loss"] == pytest.approx(-float(gain_NT[mask_NT].mean()), abs=1e-5)


def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Rows, memory and weights; killed in the second stage, and in the third."""
    stages = [
        play({"env": {"hidden-goal": {"away": away}}, "shuffle": True}, name=f"away-{away}", train=train)
        for away in (1, 3)
        for train in [{"iterations": 3, "prompts": 2, "lr": 0.3, "keep_responses": True}]
    ]
    short = pipeline({}, *stages)
    short["phases"][0]["train"] = {"iterations": 2, "prompts": 16, "lr": 0.3}
    whole = session(tmp_path / "a", short, {})
    whole.run()
    for killed in (4, 7):
        other = session(tmp_path / f"b{killed}", short, {}, name="broken")
        run_until(other, killed)
        again = loop.resume(tmp_path / f"b{killed}/runs/broken", registry(), display=Silence())
        again.run()
        assert logged(whole.dir.path) == logged(again.dir.path)
        for name in ("policy", "reflection"):
            ours, theirs = whole.models[name].state_dict(), again.models[name].state_dict()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        mine, others = (_memory(one) for one in (whole, again))
        assert mine and mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine)


def _memory(session: Any) -> dict[str, torch.Tensor]:
    (component,) = {
        id(m.component): m.component for m in session.plans[-1].members if m.name == "reflect-rl"
    }.values()
    state = component.state_dict()["memory"]
    return {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
