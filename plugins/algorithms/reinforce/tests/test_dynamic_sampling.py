"""DAPO whole: `drop-ties` below it, other prompts in the place of those dropped, and `overlong` beside its reward."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from rlalign import Batch, Component, Rollout, Score, hookimpl
from rlalign.testing import Bench, session

from .conftest import numbers


class Right(Component):
    """1 if the first token is even, else 0."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score((rollout.actions_NT[:, 0] % 2 == 0).double())


class Seen(Component):
    """Writes down the batches that are learned from."""

    batches: list[Batch]

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        self.batches.append(batch)
        return batch


def say(*algorithm: Any, refill: int, **more: Any) -> dict[str, Any]:
    made = numbers([*algorithm], rewards=["right"], **more)
    made["generation"]["samples"] = 2
    made["train"] |= {"iterations": 8, "prompts": 4, "refill": refill, "epochs": 2, "minibatches": 2}
    return made


def test_dynamic_sampling_in_a_run(tmp_path: Path) -> None:
    Seen.batches = []
    known = {"right": Right, "seen": Seen}
    started = session(tmp_path, say("dapo", "drop-ties", "seen", refill=5), known)
    started.run()
    rows = [json.loads(x) for x in (started.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["refills"] > 0 for row in rows)  # of two responses half are both right or both wrong
    assert [row["groups"] for row in rows] == [4.0] * 8
    for batch in Seen.batches:
        assert torch.equal(batch.advantage_NT[:, 0] > 0, batch.reward.total_N > 0.5)
    assert rows[-1]["reward/right"] > rows[0]["reward/right"]
    assert {"dapo/clip_fraction", "dapo/kl"} <= set(rows[0])


def test_dropping_ties_leaves_the_direction_and_changes_the_mean(tmp_path: Path) -> None:
    """Groups without a difference add nothing to the gradient, but to the number of tokens it is divided by."""
    found, tokens = {}, {}
    for name, algorithm in (("all", ["dapo"]), ("some", ["dapo", "drop-ties"])):
        bench = Bench(tmp_path / name, say(*algorithm, refill=0), {"right": Right})
        batch = bench.batch()
        found[name], tokens[name] = bench.gradient(batch)[1]["policy/free"], int(batch.rollout.mask_NT.sum())
    assert 0 < tokens["some"] < tokens["all"]
    torch.testing.assert_close(
        found["all"] * tokens["all"], found["some"] * tokens["some"], rtol=0, atol=1e-12
    )


def test_the_soft_punishment_is_a_reward_beside_it_that_ties_need_not_see(tmp_path: Path) -> None:
    """With the punishment, groups that are all right differ by their lengths; `part` asks the other reward."""
    kept = {}
    for part in (None, "right"):
        made = say("dapo", {"drop-ties": {"part": part}}, refill=0)
        made["rewards"] = ["right", {"overlong": {"longest": 3, "cache": 2}}]
        made["generation"] = {"samples": 2, "max_new_tokens": 3}
        bench = Bench(tmp_path / str(part), made, {"right": Right})
        kept[part] = bench.batch(24)
    right_N = kept["right"].reward.parts["right"]
    rows_GK, real_GK = kept["right"].rollout.groups()
    assert bool((right_N[rows_GK].sum(1) == 1).all()) and bool(real_GK.all())
    assert len(kept[None]) > len(kept["right"]) > 0
