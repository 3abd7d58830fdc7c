"""A run on large data: what cannot be read is left out when it is drawn, and the run resumes to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlalign.data.batch import Batch, Loss, Outputs
from rlalign.data.example import Example, LazyExamples
from rlalign.interface.component import Task
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.learning import draw
from rlalign.testing import PolicyGradient, run
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign.testing.logits import Logits

SIZE = 300


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as large."""
    monkeypatch.setattr(draw, "LARGE", 100)
    monkeypatch.setattr(draw, "KEYED", 200)
    monkeypatch.setattr(draw, "AT_ONCE", 64)


class Many(Task):
    """Prompts 0 … 5, and two logged responses each."""

    def examples(self, split: str) -> Sequence[Example]:
        return Made()


class Made(LazyExamples):
    response_counts = numpy.full(SIZE, 2, dtype=numpy.int32)
    row_keys = numpy.random.default_rng(0).integers(0, 2**64 - 1, SIZE, dtype=numpy.uint64)

    def __len__(self) -> int:
        return SIZE

    def example(self, i: int) -> Example:
        return Example(str(i), str(i % 6), (f"{i % 5} {i % 3}", f"{i % 6} {i % 2}"), (float(i % 3), 1.0))


class Picky(Logits):
    """Reads no odd prompts, and says how many it was asked about at once."""

    most = 0

    def refuse(self, examples: Sequence[Example], responses: object = ()) -> Mapping[int, str]:
        Picky.most = max(Picky.most, len(examples))
        return {i: "is odd" for i, e in enumerate(examples) if int(str(e.prompt)) % 2}


class Weighted(PolicyGradient):
    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.values = run.column("plus-ten", lambda rollout, reward: reward.parts["logged"] + 10)
        run.draw.weights(self.values)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        torch.testing.assert_close(batch.rollout.columns["plus-ten"], batch.rollout.columns["score"] + 10)
        return super().loss(batch, now)


def pipeline(source: str) -> dict[str, Any]:
    by = {"responses": "logged", "algorithm": "weighted"} if source == "logged" else {"rewards": ["length"]}
    return {
        "task": "many",
        "policy": {"picky": {"prompts": 6}},
        "algorithm": "once",
        "generation": {"samples": 2, "max_new_tokens": 3},
        "train": {"iterations": 4, "prompts": 8, "lr": 0.1},
        "evaluate": {"split": "train", "examples": 5, "every": 2},
        **by,
    }


GIVEN = {"many": Many, "picky": Picky, "once": PolicyGradient, "weighted": Weighted}


@pytest.mark.parametrize("source", ["sampled", "logged"])
def test_what_cannot_be_read_is_left_out_when_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("rlalign.running.data.LOOKED_AT", 20)
    monkeypatch.setattr("rlalign.records.columns.PIECE_TOKENS", 64)
    monkeypatch.setattr(Picky, "most", 0)
    _, whole = run(tmp_path, pipeline(source), GIVEN, name="whole")
    logs = logged(whole.dir.path)
    iterations = [row for row in logs["metrics.jsonl"] if "left_out" in row]
    assert [row["groups"] for row in iterations] == [8.0] * 4
    total = sum(row["left_out"] for row in iterations)
    if source == "sampled":
        assert total > 0
    else:
        assert total == 0, "what weighs nothing is not drawn"
    assert Picky.most <= 20, "all rows were looked at beforehand"
    assert [row["prompt"] for row in logs["samples.jsonl"]][:5] == ["0", "2", "4", "0", "2"]
    assert whole.display.notes[0].startswith(  # type: ignore[attr-defined]
        "policy `picky` leaves out 10 of the first 20 examples of `train`, and others as they are drawn"
    )
    kept = {path.name.partition("-")[0] for path in (whole.dir.columns / "draws").iterdir()}
    assert kept == {"order"} | ({"starts", "rows", "weights"} if source == "logged" else set())
    if source == "logged":
        (component,) = [c for c in whole.builder.built.values() if isinstance(c, Weighted)]
        expected = [(s + 10) * (int(str(e.prompt)) % 2 == 0) for e in Made() for s in e.scores]
        assert component.values.tolist() == pytest.approx(expected)
    resumed = stopped_and_resumed(tmp_path, pipeline(source), GIVEN)
    assert logged(resumed.dir.path) == logs
    ours, theirs = resumed.models.policy.state_dict(), whole.models.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
