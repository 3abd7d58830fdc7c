"""learned.jsonl: a few of the responses that were learned from, with what the loss was given of them."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.data.batch import Batch, Loss, Outputs, Reward
from rlalign.data.rollout import Rollout
from rlalign.errors import CheckpointError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.records.result import Result
from rlalign.testing import PolicyGradient, run
from rlalign.testing.bench import stopped_and_resumed

GIVEN: list[tuple[int, Batch]] = []
"""What the loss was given of each iteration, whole."""


class Centred(PolicyGradient):
    """A response's advantage is its reward less the mean."""

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N - reward.total_N.mean())

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:  # type: ignore[override]
        if not GIVEN or GIVEN[-1][0] != run.iteration:
            GIVEN.append((run.iteration, batch.step))
        found: Loss = super().loss(batch, now)
        return found


class ByToken(Centred):
    """A token's advantage is where it stands."""

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        steps_NT = torch.arange(rollout.steps).expand(rollout.mask_NT.shape) - 1.5
        return Batch.of(rollout, reward, steps_NT)


class Ends(Centred):
    """Ends the phase in its third iteration."""

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if run.iteration == 3:
            run.finish_phase("enough")


class LastGroup(Component):
    """Leaves one group."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch.take(batch.rollout.group_N == batch.rollout.group_N.max())


EXTRA: dict[str, Any] = {
    "once": PolicyGradient,
    "centred": Centred,
    "by-token": ByToken,
    "ends": Ends,
    "last": LastGroup,
}
PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "algorithm": "centred",
    "rewards": [{"token-sum": None, "weight": 3}, {"kl": {"coef": 0.7}}],
    "generation": {"samples": 3, "max_new_tokens": 7},
    "train": {"iterations": 5, "prompts": 4, "lr": 0.5, "budget": 20},
    "evaluate": {"examples": 2, "every": 2, "show": 7, "generation": {"greedy": False}},
}


def learned(folder: Path, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    GIVEN.clear()
    _, done = run(folder, {**PIPELINE, **changes}, EXTRA)
    return done.dir.path, Result(done.dir.path).learned


@pytest.mark.parametrize("algorithm", ["centred", "by-token"])
def test_it_holds_what_the_loss_was_given(algorithm: str, tmp_path: Path) -> None:
    _, rows = learned(tmp_path, algorithm=algorithm)
    told = {iteration + 1: batch for iteration, batch in GIVEN}
    assert [row["iteration"] for row in rows] == [at for at in (2, 4, 5) for _ in range(6)]
    assert [row["group"] for row in rows] == [0, 0, 0, 1, 1, 1] * 3  # whole ones: a third one would make 9
    for place, row in enumerate(rows):
        batch, i = told[row["iteration"]], place % 6  # in the order in which they were sampled
        rollout, length = batch.rollout, int(batch.rollout.length_N[i])
        assert row["prompt"] == rollout.examples[int(rollout.group_N[i])].prompt
        assert row["response"] == rollout.texts[i]
        assert row["reward"] == float(batch.reward.total_N[i])
        assert row["reward"] == pytest.approx(3 * row["scores"]["token-sum"] + row["scores"]["kl"], rel=1e-5)
        advantages = batch.advantage_NT[i, :length].tolist()
        if algorithm == "centred" or length == 1:
            assert row["advantage"] == advantages[0] and "advantage" not in row.get("steps", {})
        else:
            assert row["steps"]["advantage"] == advantages and "advantage" not in row
        if "steps" in row:
            assert "".join(row["tokens"]) == row["response"]
            assert {len(values) for values in row["steps"].values()} == {length}
    assert any("kl" in row.get("steps", {}) for row in rows)
    assert len({row["reward"] for row in rows}) > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": None},
        {"algorithm": "once"},  # whose advantages nobody makes: they are rewards by default
        {"algorithm": ["once", "last"]},
    ],
)
def test_nothing_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    folder, rows = learned(tmp_path, **changes)
    assert rows == [] and not (folder / "learned.jsonl").exists()


def test_only_what_was_learned_from(tmp_path: Path) -> None:
    _, rows = learned(tmp_path, algorithm=["centred", "last"])
    assert [row["iteration"] for row in rows] == [at for at in (2, 4, 5) for _ in range(3)]
    assert [row["response"] for row in rows[:3]] == list(GIVEN[1][1].rollout.texts)


def test_a_group_that_is_too_large_is_shown_in_part(tmp_path: Path) -> None:
    evaluate = {**PIPELINE["evaluate"], "every": None, "show": 2}
    _, rows = learned(tmp_path, evaluate=evaluate)
    assert [(row["iteration"], row["group"]) for row in rows] == [(5, 0), (5, 0)]
    assert [row["response"] for row in rows] == list(GIVEN[-1][1].rollout.texts[:2])


def test_a_phase_that_is_ended_shows_its_last_iteration(tmp_path: Path) -> None:
    evaluate = {"examples": 2, "show": 3}
    _, rows = learned(tmp_path, algorithm="ends", evaluate=evaluate)
    assert {row["iteration"] for row in rows} == {3} and len(rows) == 3


def test_a_resumed_run_has_written_the_same(tmp_path: Path) -> None:
    folder, rows = learned(tmp_path, algorithm="by-token", evaluate={**PIPELINE["evaluate"], "every": 1})
    again = stopped_and_resumed(
        tmp_path,
        {**PIPELINE, "algorithm": "by-token", "evaluate": {**PIPELINE["evaluate"], "every": 1}},
        EXTRA,
    )
    assert len(rows) == 30
    assert (again.dir.path / "learned.jsonl").read_bytes() == (folder / "learned.jsonl").read_bytes()


def test_an_edited_line_is_told(tmp_path: Path) -> None:
    folder, rows = learned(tmp_path)
    del rows[1]["reward"]
    (folder / "learned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match=r"learned.jsonl:2: is not what was written \(reward"):
        _ = Result(folder).learned
