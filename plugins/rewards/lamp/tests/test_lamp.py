"""LAMP's two rewards against published numbers, and both phases in a small room."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError, ConfigError, RLAlignError
from rlalign.running import loop
from rlalign.testing import Bench, ComponentTests, EnvironmentTests, registry, run
from rlalign.testing.bench import Silence, logged, run_until, session
from rlalign_plugin_lamp.embedding import alignment, bags
from rlalign_plugin_lamp.novelty import Heads, disagreement
from rlalign_plugin_lamp.room import CORNERS, MOVES, Room, caption, captions, cells, observations
from rlalign_plugin_lamp.seen import ends

ROOM = "rlalign_plugin_lamp.room"
NOVELTY = {"novelty": {"of": f"{ROOM}:cells"}, "weight": 0.9}
ALIGNMENT = {"alignment": {"caption": f"{ROOM}:captions"}, "weight": 0.1}


def pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "task": {"room": {"size": 3, "steps": 6}},
        "policy": {"table": {"actions": list(MOVES), "state": "observation", "prompts": observations(3)}},
        "rewards": [NOVELTY, ALIGNMENT],
        "algorithm": {"rloo": {"credit": "turn"}},
        "generation": {"samples": 4},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
        **changes,
    }


# -- published numbers: goldens `lamp_alignment` and `lamp_reward_mixture` -------------------------------------


def test_alignment_of_bags_of_words() -> None:
    now = ["agent at blue key", "agent at blue door", "agent at green ball", "agent at red door"]
    instructions = ["go to the blue key", "go to the red door"]
    expected = [
        [0.4472135954999579, -0.4472135954999579],
        [0.3162277660168379, -0.3162277660168379],
        [0.0, -0.4472135954999579],
        [0.0, 0.0],  # nothing has changed
    ]
    first_C, *embedded = bags(["agent at red door", *now, *instructions])
    asked = embedded[len(now) :]
    found = [
        [float(alignment(first_C, now_C, asked_C)) for asked_C in asked] for now_C in embedded[: len(now)]
    ]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-9)
    mixed = [
        [0.4947213595499958, 0.4052786404500042],
        [0.2566227766016838, 0.19337722339831623],
        [0.9, 0.8552786404500042],
        [0.1125, 0.1125],
    ]
    for row, novelty, wanted in zip(found, (0.5, 0.25, 1.0, 0.125), mixed, strict=True):
        assert [0.9 * novelty + 0.1 * x for x in row] == pytest.approx(wanted, abs=1e-9)


def test_disagreement_of_heads() -> None:
    predicted = [[[1.0, 2.0], [0.0, 0.5]], [[1.2, 1.6], [0.0, 0.5]], [[0.8, 2.4], [0.0, 0.5]]]
    found = disagreement(torch.tensor(predicted, dtype=torch.float64)).tolist()
    assert found == pytest.approx([0.24494897427831774, 0.0], abs=1e-9)
    mixed = [0.9 * novelty + 0.1 * aligned for novelty, aligned in zip(found, (0.4, -0.1), strict=True)]
    assert mixed == pytest.approx([0.260454076850486, -0.010000000000000002], abs=1e-9)


def test_heads_disagree_less_where_they_have_been_and_as_little_as_ridge_regression_says() -> None:
    heads = Heads(4, torch.Generator().manual_seed(0))
    new, other = torch.eye(4, dtype=torch.float64)[:2]
    before = heads.disagreement(torch.stack([new, other]))
    heads.learn(new.repeat(3, 1))
    after = heads.disagreement(torch.stack([new, other]))
    assert after.tolist() == pytest.approx([float(before[0]) / 4, float(before[1])], abs=1e-12)
    # As whole heads, fitted to what came next: that moves them together.
    read_SX = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    next_SC = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = Heads(4, torch.Generator().manual_seed(0))
    whole.learn(read_SX)
    fitted_KCX = (whole.first_KCX + next_SC.T @ read_SX) @ whole.precision_XX.inverse()
    torch.testing.assert_close(
        disagreement(read_SX @ fitted_KCX.transpose(1, 2)), whole.disagreement(read_SX)
    )


def test_heads_begin_as_the_seed_of_the_run_says(tmp_path: Path) -> None:
    found = []
    for i, seed in enumerate((0, 0, 1)):
        bench = Bench(tmp_path / f"{i}", pipeline(rewards=[{"novelty": {"kind": "disagreement"}}], seed=seed))
        bench.rollout(1)
        (novelty,) = (m.component for m in bench.phase.plan.members if m.name == "novelty")
        found.append(novelty.heads.first_KCX)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# -- kits -----------------------------------------------------------------------------------------------------


class TestRoom(EnvironmentTests):
    component = "room"
    any_split = True


class TestTask(EnvironmentTests):
    component = "room"
    options = {"thing": "blue door", "size": 3}
    any_split = True


class TestNovelty(ComponentTests):
    component = "novelty"
    options = NOVELTY["novelty"]
    pipeline = pipeline()


class TestDisagreement(ComponentTests):
    component = "novelty"
    options = {"of": f"{ROOM}:captions", "kind": "disagreement"}
    pipeline = pipeline(rewards=[{"novelty": options}])


class TestAlignment(ComponentTests):
    component = "alignment"
    options = ALIGNMENT["alignment"]
    pipeline = pipeline()


# -- rewards ---------------------------------------------------------------------------------------------------


def test_captions_say_what_instructions_say() -> None:
    assert caption(0, 0, 5) == "agent at the red key"
    assert caption(1, 3, 5) == "agent some steps from the blue door"
    assert caption(2, 2, 5) == caption(0, 2, 5) == "agent in the middle"
    assert captions(["4 0 of 5: red key"]) == ["agent at the green ball"]
    assert cells(["4 0 of 5: red key"]) == ["4 0 of 5"]
    assert len(set(observations(5))) == 25 * len(CORNERS)


def test_counts_are_those_of_finished_iterations(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(rewards=[{"novelty": NOVELTY["novelty"]}]))
    novelty = next(m.component for m in bench.phase.plan.members if m.name == "novelty")
    rollout, reward = bench.rollout(4)
    turns = ends(rollout)
    for row, steps in enumerate(turns):
        assert reward.tokens_NT[row, steps].tolist() == [1.0] * 6 and float(reward.tokens_NT[row].sum()) == 6
    novelty.iteration_done(rollout=rollout)
    seen = [cells([turn.say])[0] for row in rollout.columns["transcript"] for _, turn in row]
    assert novelty.seen == {cell: seen.count(cell) for cell in seen} and sum(novelty.seen.values()) == 16 * 6
    again = novelty.reward(rollout=rollout).value
    for row, transcript in enumerate(rollout.columns["transcript"]):
        wanted = [(1 + seen.count(cells([turn.say])[0])) ** -0.5 for _, turn in transcript]
        assert again[row, turns[row]].tolist() == pytest.approx(wanted, abs=1e-6)
    stale = rollout.with_columns(age=torch.ones(len(rollout), dtype=torch.long))
    novelty.iteration_done(rollout=stale)  # remembered ones were counted when they were new
    assert sum(novelty.seen.values()) == 16 * 6


@pytest.mark.parametrize("item", [NOVELTY, ALIGNMENT, {"novelty": {"kind": "disagreement"}}], ids=str)
def test_a_reward_knows_nothing_of_what_comes_later(item: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(rewards=[item]))
    rollout, reward = bench.rollout(4)
    component = next(m.component for m in bench.phase.plan.members if m.role == "rewards")
    keep = 3
    short = rollout.with_columns(transcript=tuple(row[:keep] for row in rollout.columns["transcript"]))
    short = replace(short, mask_NT=rollout.mask_NT & (rollout.columns["turn"] < keep))
    found = component.reward(rollout=short).value
    before = rollout.columns["turn"] < keep
    torch.testing.assert_close(found[before], (reward.parts[component.name])[before])
    assert float(found[~before].abs().sum()) == 0.0


def test_alignment_of_an_episode(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(rewards=[ALIGNMENT]))
    rollout, reward = bench.rollout(4)
    for row, steps in enumerate(ends(rollout)):
        thing = rollout.examples[int(rollout.group_N[row])].meta["thing"]
        for step, (_, turn) in zip(steps, rollout.columns["transcript"][row], strict=True):
            value = float(reward.parts["alignment"][row, step])
            said = captions([turn.say])[0]
            if said == "agent in the middle":
                assert value == 0.0
            elif said == f"agent at the {thing}":
                assert value == pytest.approx(0.4)
            else:
                assert value < 0.35


class Rewritten(Room):
    rewrites = True


def test_alignment_where_history_is_rewritten_begins_where_the_episode_did(tmp_path: Path) -> None:
    task = {"rewritten": {"size": 3, "steps": 6}}
    bench = Bench(tmp_path, pipeline(task=task, rewards=[ALIGNMENT]), {"rewritten": Rewritten})
    rollout, reward = bench.rollout(4)
    stayed = 0
    for row, ((_, turn),) in enumerate(rollout.columns["transcript"]):
        example = rollout.examples[int(rollout.group_N[row])]
        if captions([turn.say])[0] == f"agent at the {example.meta['thing']}":
            assert float(reward.parts["alignment"][row].sum()) == pytest.approx(0.4)
            stayed += example.prompt == turn.say
    assert stayed


def test_weights_of_zero_ignore(tmp_path: Path) -> None:
    for zero, kept in ((0, 1), (1, 0)):
        items = [dict(NOVELTY), dict(ALIGNMENT)]
        items[zero]["weight"] = 0.0
        bench = Bench(tmp_path / str(zero), pipeline(rewards=items))
        _, both = bench.rollout(4)
        _, alone = Bench(tmp_path / f"{zero} alone", pipeline(rewards=[items[kept]])).rollout(4)
        torch.testing.assert_close(both.tokens_NT, alone.tokens_NT)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def embed(texts):\n    return [[float('red' in text), float('key' in text), 1.0] for text in texts]\n"
        "def flat(texts):\n    return [1.0 for text in texts]\n"
    )
    mine = {**ALIGNMENT["alignment"], "model": str(tmp_path / "mine.py:embed")}
    task = {"room": {"size": 3, "steps": 6, "thing": "red key"}}
    _, reward = Bench(tmp_path / "a", pipeline(task=task, rewards=[{"alignment": mine}])).rollout(4)
    # (1, 1, 0) of (1, 1, 1): who is at the key has changed two of three numbers.
    expected = (2 / 3) ** 0.5
    assert {round(float(x), 4) for x in reward.parts["alignment"].flatten()} == {0.0, round(expected, 4)}
    for item in ({"alignment": mine}, {"novelty": {"kind": "disagreement", "model": mine["model"]}}):
        ((name, options),) = item.items()
        flat = {name: {**options, "model": str(tmp_path / "mine.py:flat")}}
        with pytest.raises(ComponentError, match="a vector for each of"):
            Bench(tmp_path / name, pipeline(rewards=[flat])).rollout(4)


@pytest.mark.parametrize(
    "item, task, expected",
    [
        ({"novelty": {"model": f"{ROOM}:cells"}}, None, "belongs to `kind: disagreement`"),
        ({"novelty": {"of": f"{ROOM}:cell"}}, None, "did you mean `cells`"),
        ({"novelty": {}}, "numbers", "a task that is an environment"),
        ({"alignment": {"instruction": "goal"}}, None, "holds: instruction, thing"),
    ],
)
def test_what_does_not_fit_is_refused(
    item: dict[str, Any], task: str | None, expected: str, tmp_path: Path
) -> None:
    other = {"task": task, "policy": "logits", "algorithm": "rloo"} if task else {}
    with pytest.raises((ConfigError, RLAlignError), match=expected):
        Bench(tmp_path, pipeline(rewards=[item], **other)).rollout(2)


# -- two phases ----------------------------------------------------------------------------------------------------


def two_phases(**changes: Any) -> dict[str, Any]:
    both = pipeline(task={"room": {}}, **changes)
    both["policy"] = {"table": {**both["policy"]["table"], "prompts": observations(5)}}
    both["generation"] = {"samples": 8}
    both["train"] = {"prompts": 4, "lr": 0.1}
    evaluate = {"every": 20, "examples": 1, "use": ["played"], "generation": {"samples": 64}}
    pretrain = {"name": "pretrain", "rewards": both.pop("rewards"), "train": {"iterations": 40}}
    finetune = {
        "name": "finetune",
        "task": {"room": {"thing": "red key"}},
        "rewards": ["played"],
        "train": {"iterations": 20, "prompts": 1},
        "evaluate": evaluate,
    }
    return {**both, "phases": [pretrain, finetune]}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_pre_training_makes_the_task_easier(tmp_path: Path) -> None:
    """Who moves at random finds the key in few of 64 episodes; who was pre-trained in more, and learns the rest."""
    _, ended = run(tmp_path / "a", two_phases())
    rows = [row for row in lines(ended.dir.path) if "eval/played" in row]
    scratch = two_phases()
    scratch["phases"][0]["train"] = {"iterations": 1}
    scratch["phases"][0]["rewards"] = [{**NOVELTY, "weight": 0.0}]
    _, other = run(tmp_path / "b", scratch)
    without = [row for row in lines(other.dir.path) if "eval/played" in row]
    assert rows[0]["eval/played"] > without[0]["eval/played"] + 0.2
    assert rows[-1]["eval/played"] > 0.9


def test_the_second_phase_sees_neither_reward_and_begins_with_the_same_weights(tmp_path: Path) -> None:
    short = two_phases()
    short["phases"][0]["train"] = {"iterations": 3}
    short["phases"][1] |= {"train": {"iterations": 2, "prompts": 1, "lr": 0.0}, "evaluate": None}
    _, ended = run(tmp_path / "a", short)
    by_phase: dict[str, set[str]] = {"pretrain": set(), "finetune": set()}
    for row in lines(ended.dir.path):
        by_phase[row["phase"]] |= {name for name in row if name.startswith("reward/")}
    assert by_phase["pretrain"] == {"reward/total", "reward/novelty", "reward/alignment"}
    assert by_phase["finetune"] == {"reward/total", "reward/played"}
    alone = {**short, "phases": short["phases"][:1]}
    _, first = run(tmp_path / "b", alone)
    assert torch.equal(first.models.policy.table, ended.models.policy.table)  # the rate of the second is 0
    assert bool(first.models.policy.table.any())


@pytest.mark.thin(1)
@pytest.mark.parametrize("kind", ["counts", "disagreement"])
@pytest.mark.parametrize("after", [2, 5])
def test_a_run_that_was_killed_goes_on_to_the_bit(kind: str, after: int, tmp_path: Path) -> None:
    of = f"{ROOM}:cells" if kind == "counts" else f"{ROOM}:captions"
    short = two_phases(rewards=[{"novelty": {"of": of, "kind": kind}, "weight": 0.9}, ALIGNMENT])
    short["phases"][0]["train"] = {"iterations": 4}
    short["phases"][1] |= {"train": {"iterations": 3, "prompts": 1}, "evaluate": None}
    whole = session(tmp_path / "a", short, {})
    other = session(tmp_path / "b", short, {}, name="broken")
    whole.run()
    run_until(other, after)
    again = loop.resume(tmp_path / "b/runs/broken", registry(), display=Silence())
    again.run()
    assert logged(whole.dir.path) == logged(again.dir.path)
    assert torch.equal(whole.models.policy.table, again.models.policy.table)
