"""Columns: a value for every logged response, computed once over all data, kept, checked, drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlalign.data.batch import Batch, Loss, Outputs, Reward
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, RLAlignError
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.records import columns
from rlalign.records.columns import data_fingerprint
from rlalign.testing import Numbers, run
from rlalign.testing.kit import _Once as ONCE

DATA = Numbers(Numbers.Config()).examples("train")
ROWS = [(e.id, text, score) for e in DATA for text, score in zip(e.responses, e.scores, strict=True)]


def pipeline(**train: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {}},
        "responses": "logged",
        "algorithm": "column",
        "train": {"passes": 2, "prompts": 4, "lr": 0.01, **train},
    }


class Column(ONCE):
    """Makes a column of score + 10, and looks for it in every batch."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.calls: list[tuple[list[str], list[int]]] = []
        self.seen: list[tuple[str, float]] = []

    def compute(self, rollout: Rollout, reward: Reward) -> Any:
        self.calls.append(([e.id for e in rollout.examples], [e.row for e in rollout.examples]))
        return reward.parts["logged"] + 10

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.values = run.column("plus-ten", self.compute, key=("version", 1))
        self.again = run.column("plus-ten", self.compute, key=("version", 1))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        rollout = batch.rollout
        plus_ten = rollout.columns["plus-ten"]
        torch.testing.assert_close(plus_ten, rollout.columns["score"] + 10)
        self.seen += list(zip(rollout.texts, plus_ten.tolist(), strict=True))
        return super().loss(batch, now)


def made(folder: Path, cls: type[Column] = Column, **train: Any) -> tuple[Any, Any]:
    _, done = run(folder, pipeline(**train), {"column": cls})
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Column)]
    return component, done


def test_a_column_holds_every_logged_response_in_the_order_of_the_data(tmp_path: Path) -> None:
    component, done = made(tmp_path)
    assert component.values.tolist() == pytest.approx([score + 10 for _, _, score in ROWS])
    assert component.calls == [([e.id for e in DATA], [0, 1, 4, 8, 10, 15])]
    assert torch.equal(component.values, component.again)  # computed once
    (folder,) = (done.dir.path / "columns").iterdir()
    assert folder.name.startswith("plus-ten-")
    assert numpy.fromfile(folder / "values.f64").tolist() == component.values.tolist()
    assert json.loads((folder / "progress.json").read_text()) == {"examples": 6}


def test_every_logged_batch_carries_it(tmp_path: Path) -> None:
    component, _ = made(tmp_path)
    assert {text for text, _ in component.seen} == {text for _, text, _ in ROWS}


def test_it_is_computed_in_pieces_of_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = made(tmp_path / "whole")
    monkeypatch.setattr(columns, "PIECE_TOKENS", 1)
    pieces, _ = made(tmp_path / "pieces")
    assert pieces.calls == [([e.id], [row]) for e, row in zip(DATA, (0, 1, 4, 8, 10, 15), strict=True)]
    assert torch.equal(whole.values, pieces.values)


def test_weighted_draws_carry_the_value_of_their_own_response(tmp_path: Path) -> None:
    class Weighted(Column):
        @hookimpl
        def phase_started(self, run: Run) -> None:
            self.values = run.column("plus-ten", self.compute)
            run.draw.weights((self.values - 10).clamp_min(0))

    component, _ = made(tmp_path, Weighted)
    positive = {text for _, text, score in ROWS if score > 0}
    assert component.seen and {text for text, _ in component.seen} <= positive


@pytest.mark.parametrize(
    "result, said",
    [
        (
            lambda n: torch.zeros(n - 1),
            rf"column `plus-ten`: computed \({len(ROWS) - 1},\) for {len(ROWS)} responses",
        ),
        (lambda n: [0.0] * n, "computed list"),
        (lambda n: torch.full((n,), torch.nan), "computed a NaN"),
    ],
)
def test_what_is_no_column_is_refused(result: Any, said: str, tmp_path: Path) -> None:
    class Bad(Column):
        def compute(self, rollout: Rollout, reward: Reward) -> Any:
            return result(len(rollout))

    with pytest.raises(ComponentError, match=f"`phase_started` of `column` .*{said}"):
        made(tmp_path, Bad)


def test_data_without_logged_responses_has_no_columns(tmp_path: Path) -> None:
    class Bare(Numbers):
        def example(self, index: int) -> Any:
            from dataclasses import replace

            return replace(super().example(index), responses=(), scores=())

    with pytest.raises(RLAlignError, match="column `plus-ten`: the data has no logged responses"):
        run(
            tmp_path,
            {**pipeline(), "task": "bare", "responses": "sampled", "rewards": ["token-sum"]},
            {"column": Column, "bare": Bare},
        )


def test_examples_without_responses_take_no_rows(tmp_path: Path) -> None:
    class Gaps(Numbers):
        def example(self, index: int) -> Any:
            from dataclasses import replace

            example = super().example(index)
            return replace(example, responses=(), scores=()) if index == 1 else example

    class Starts(Column):
        @hookimpl
        def phase_started(self, run: Run) -> None:
            self.values = run.column("plus-ten", self.compute)
            run.draw.weights(torch.ones(len(self.values)))  # never draws the empty example

    _, done = run(tmp_path, {**pipeline(), "task": "gaps"}, {"column": Starts, "gaps": Gaps})
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Starts)]
    assert component.values.tolist() == pytest.approx([s + 10 for i, _, s in ROWS if i != "1"])


def test_fingerprints_tell_data_apart() -> None:
    from dataclasses import replace

    base = data_fingerprint(DATA)
    assert data_fingerprint(list(DATA)) == base
    assert data_fingerprint([replace(e, row=5) for e in DATA]) == base  # a row is no part of the data
    assert data_fingerprint(DATA[::-1]) != base
    for change in (
        {"prompt": "x"},
        {"scores": (1.0,)},
        {"meta": {"a": 1}},
        {"finished": (False,)},
        {"id": "z"},
    ):
        assert data_fingerprint([replace(DATA[0], **change), *DATA[1:]]) != base
