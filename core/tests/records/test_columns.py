"""Columns: a value for every logged response, computed once over all data, kept, checked, drawn from."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlalign.data.batch import Batch, Loss, Outputs, Reward
from rlalign.data.example import Example, LazyExamples
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, RLAlignError
from rlalign.interface.component import Task
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.records import checkpoint, columns
from rlalign.records.columns import data_fingerprint
from rlalign.running import loop
from rlalign.testing import Numbers, PolicyGradient, ValueFit, registry, run, session
from rlalign.testing.bench import Silence

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


class Column(PolicyGradient):
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
    assert json.loads((folder / "progress.json").read_text())["examples"] == 6


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


# -- by a model: what a column depends on, and that it is computed once ---------------------------------------


class Better(PolicyGradient):
    """Draws by how much more a response earns than the value expected, at its first step."""

    models = {"value": "value"}
    version = 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.computed: list[str] = []
        self.stop_at: int | None = None
        self.seen: list[Rollout] = []

    @hookimpl
    def phase_started(self, run: Run) -> None:
        def gain(rollout: Rollout, reward: Reward) -> torch.Tensor:
            if self.stop_at == len(self.computed):
                raise KeyboardInterrupt
            self.computed += [e.id for e in rollout.examples]
            return reward.total_N - run.score("value", rollout, ["state_values"]).state_values_NT1[:, 0]

        self.values = run.column("gain", gain, key=[self.version])
        run.draw.weights(self.values.clamp_min(0))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        self.seen.append(batch.rollout)
        return super().loss(batch, now)


class BetterAgain(Better):
    version = 1


TWO: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {}},
    "rewards": ["token-sum"],
    "responses": "logged",
    "phases": [
        {"name": "value", "algorithm": "fits-value", "train": {"iterations": 3, "lr": 0.1}},
        {"name": "align", "algorithm": "better", "train": {"iterations": 2, "lr": 0.05}},
    ],
    "train": {"prompts": 4, "dtype": "float64"},
    "checkpoints": {"every": 1000, "last": 10},  # phases end with one
}
GIVEN: dict[str, Any] = {"fits-value": ValueFit, "better": Better, "better-again": BetterAgain}


def better(session: loop.Session) -> Better:
    (component,) = [c for c in session.builder.built.values() if isinstance(c, Better)]
    return component


def test_a_column_is_by_the_weights_an_earlier_phase_ended_with(tmp_path: Path) -> None:
    """To the bit; and each response that is drawn carries the value of its own row."""
    _, done = run(tmp_path, TWO, GIVEN)
    component, ended = better(done), checkpoint.read(done.dir.checkpoints, 3)
    fitted = ended.models["value"][1]["free"]
    assert bool(fitted.any())
    rollout = done.models.policy.encode(DATA)
    value = done.models["value"]
    value.load_state_dict(ended.models["value"][1])
    with torch.no_grad():
        expected = value.values(rollout)[rollout.chosen[1] == 0]
    earned = torch.tensor([sum(map(float, text.split())) / 10 for _, text, _ in ROWS]).double()
    assert torch.equal(component.values, earned - expected)
    for drawn in component.seen:
        for i, gain in enumerate(drawn.columns["gain"].tolist()):
            example = drawn.examples[int(drawn.group_N[i])]
            assert ROWS[example.row][:2] == (example.id, drawn.texts[i])
            assert gain == component.values[example.row] > 0


def test_what_was_computed_before_an_interruption_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PIECE_TOKENS", 1)
    whole = session(tmp_path, TWO, GIVEN, name="whole")
    whole.run()
    broken = session(tmp_path, TWO, GIVEN, name="broken")
    better(broken).stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    broken.logs.close()
    broken.dir.close()
    for previous, computed in ((False, ["4", "5"]), (True, [])):  # inside the phase it is there already
        folder = tmp_path / "runs/broken"
        resumed = loop.resume(folder, registry(GIVEN), display=Silence(), inexact=True, previous=previous)
        resumed.run()
        assert better(resumed).computed == computed
        mine, theirs = resumed.models.policy.state_dict(), whole.models.policy.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    (one,), (other,) = ((tmp_path / "runs" / n / "columns").iterdir() for n in ("whole", "broken"))
    assert one.name == other.name


def test_whatever_a_column_depends_on_is_in_its_key(tmp_path: Path) -> None:
    def key(value: Any = (), align: Any = (), **changes: Any) -> str:
        phases = [{**phase, **dict(more)} for phase, more in zip(TWO["phases"], (value, align), strict=True)]
        name = str(len(list(tmp_path.glob("runs/*"))))
        started = session(tmp_path, {**TWO, "phases": phases, **changes}, GIVEN, name=name)
        started.run()
        (folder,) = (started.dir.path / "columns").iterdir()
        return folder.name

    first = key()
    assert key(align={"train": {"iterations": 1, "lr": 0.2}}, checkpoints={"every": 1}) == first
    others = [
        key(task={"numbers": {"size": 7}}),
        key(rewards=[{"token-sum": {}, "weight": 2}]),
        key(align={"rewards": ["length"]}),
        key(value={"train": {"iterations": 2, "lr": 0.1}}),  # other weights of the value
        key(align={"algorithm": "better-again"}),  # what the component itself says
    ]
    assert len({first, *others}) == 6


def test_beside_sampled_responses_a_column_is_nan(tmp_path: Path) -> None:
    class Mixed(Column):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            logged_N = torch.tensor([name == "logged" for name in batch.rollout.columns["source"]])
            found_N = batch.rollout.columns["plus-ten"]
            assert torch.equal(found_N.isnan(), ~logged_N)
            assert torch.equal(found_N[logged_N], batch.rollout.columns["score"][logged_N] + 10)
            self.seen += list(batch.rollout.texts)
            return PolicyGradient.loss(self, batch, now)

        def compute(self, rollout: Rollout, reward: Reward) -> Any:
            return torch.tensor([s for e in rollout.examples for s in e.scores]) + 10

    mixed = {"responses": {"mix": {"logged": 1, "sampled": 2}}, "rewards": ["token-sum"]}
    train = {"iterations": 1, "prompts": 6, "lr": 0.01}
    _, done = run(
        tmp_path,
        {**pipeline(), **mixed, "generation": {"max_new_tokens": 7}, "train": train},
        {"column": Mixed},
    )
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Mixed)]
    assert len(component.seen) == 18


# -- memory ------------------------------------------------------------------------------------------------


class Many(Task):
    """Examples made when they are asked for, each with two responses and much to say about itself."""

    size = 0

    def examples(self, split: str) -> Sequence[Example]:
        return _Made(self.size)


class _Made(LazyExamples):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def example(self, i: int) -> Example:
        texts = (f"{i % 5} {i % 3}", f"{i % 6} {i % 2}")
        return Example(str(i), str(i % 6), texts, (float(i % 3), 1.0), meta={"about": f"{i:0400d}"})


class Weighted(Column):
    @hookimpl
    def phase_started(self, run: Run) -> None:
        run.draw.weights(run.column("plus-ten", lambda rollout, reward: reward.parts["logged"] + 10))

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return PolicyGradient.loss(self, batch, now)


def peak(folder: Path, size: int) -> int:
    class Sized(Many):
        pass

    Sized.size = size
    given = {**pipeline(iterations=3, prompts=8, passes=None), "task": "sized"}
    started = session(folder, given, {"column": Weighted, "sized": Sized}, name=str(size))
    tracemalloc.start()
    try:
        started.run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("few, many", [(500, 5_000), pytest.param(1_000, 50_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_data(
    few: int, many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a few numbers a response."""
    monkeypatch.setattr(columns, "PIECE_TOKENS", 1024)
    peak(tmp_path, 50)  # whatever is imported at first use
    grown = peak(tmp_path, many) - peak(tmp_path, few)
    responses = 2 * (many - few)
    assert 0 < grown < 3 * 8 * responses, f"{grown / responses:.1f} bytes a response"
