"""A-LoL in three phases: imitation, a value of the frozen reference, weighted draws of logged responses."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from rlalign import Batch, Example, LazyExamples, Options, Reward, Rollout, Run, Task, hookimpl
from rlalign.records import checkpoint, columns
from rlalign.running import loop
from rlalign.testing import Numbers, registry, session
from rlalign.testing.bench import Silence
from rlalign.testing.kit import ComponentTests

from .conftest import Runs, component, metrics
from .methods import METHODS, ALoL, FitValue, PromptValue, same

ROWS = 80 * 3  # what `numbers` below logs
PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 80, "prompts": 6, "logged": [2, 4], "longest": 4, "vocabulary": 6}},
    "policy": {"logits": {"prompts": 6, "responses": 1, "steps": 5, "vocabulary": 7}},
    "rewards": ["token-sum"],
    "phases": [
        {"name": "warm-start", "algorithm": "sft", "train": {"passes": 2, "lr": 0.05}},
        {"name": "value", "algorithm": "fit-value", "train": {"iterations": 30, "lr": 0.1}},
        {"name": "align", "algorithm": ["a-lol", "watch"], "train": {"passes": 1, "prompts": 6, "lr": 0.05}},
    ],
    "models": {"value": "prompt-value"},
    "generation": {"samples": 8, "max_new_tokens": 5},
    "train": {"prompts": 24, "dtype": "float64"},
    "checkpoints": {"every": 1000, "keep": 10},  # phases end with one
}


def _logged() -> Sequence[Example]:
    return Numbers(Numbers.Config(**{**PIPELINE["task"]["numbers"], "logged": (2, 4)})).examples("train")


def _texts() -> list[tuple[str, str]]:
    """(example, response) of every row of the data, in its order."""
    return [(e.id, text) for e in _logged() for text in e.responses]


def _gain(value: Tensor) -> Tensor:
    """A = R − V(x) of every row. `token-sum` computes R in single precision."""
    reward = torch.tensor([sum(map(float, text.split())) / 10 for _, text in _texts()]).double()
    return reward - torch.cat([value[int(str(e.prompt))].expand(len(e.responses)) for e in _logged()])


def test_three_phases(runs: Runs) -> None:
    session = runs(PIPELINE)
    lines = metrics(session)
    by_phase = {p: [x for x in lines if x["phase"] == p] for p in ("warm-start", "value", "align")}
    assert by_phase["warm-start"][-1]["sft/loss"] < by_phase["warm-start"][0]["sft/loss"]
    assert by_phase["value"][-1]["fit-value/loss"] < by_phase["value"][0]["fit-value/loss"]

    # Phase 3's advantages are R − V by the weights in phase 2's last checkpoint, to the bit.
    end = 7 + 30  # ⌈160 examples / 24⌉ and 30 iterations
    saved = checkpoint.read(session.dir.checkpoints, end)
    value = saved.models["value"][1]["free"]
    assert bool((value != 0).all())
    gain = _gain(value)
    watch = component(session, "watch")
    (run,) = watch.runs
    (folder,) = (session.dir.path / "columns").iterdir()
    stored = torch.from_file(str(folder / "values.f64"), size=ROWS, dtype=torch.float64)
    assert torch.equal(stored, gain)
    assert same(saved.models["value"][1], session.models["value"].state_dict())

    # One pass is 40 iterations of 6 of the 240 rows; only the share with A > 0 of them is planned.
    share = float((gain > 0).double().mean())
    assert 0.2 < share < 0.8
    assert len(by_phase["align"]) == round(40 * share)

    # Every response that was drawn carries its own row's advantage, and none without a gain was.
    rows = _texts()
    drawn = [batch.rollout for batch in watch.batches]
    assert sum(map(len, drawn)) == 6 * len(by_phase["align"])
    for rollout in drawn:
        for i, text in enumerate(rollout.texts):
            example = rollout.examples[int(rollout.group_N[i])]
            assert rows[example.row] == (example.id, text)
            assert rollout.columns["advantage"][i] == stored[example.row] > 0

    # Rows are drawn in proportion to A⁺: χ² over thousands of draws.
    p = stored.clamp_min(0) / stored.clamp_min(0).sum()
    counts = torch.bincount(torch.tensor([e.row for e in run.draw.next(20000)]), minlength=ROWS)
    assert not counts[p == 0].any()
    kept = p > 0
    chi2 = float(((counts - 20000 * p) ** 2 / (20000 * p))[kept].sum())
    freedom = int(kept.sum()) - 1
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_it_learns_what_earns_more(runs: Runs) -> None:
    longer = {
        **PIPELINE,
        "phases": [*PIPELINE["phases"][:2], {**PIPELINE["phases"][2], "train": {"passes": 4, "lr": 0.2}}],
    }
    longer["evaluate"] = {"examples": 60, "generation": {"temperature": 1.0}, "use": ["token-sum"]}
    session = runs(longer)
    found = [json.loads(x) for x in (session.dir.path / "metrics.jsonl").read_text().splitlines()]
    scores = [(x["phase"], x["eval/token-sum"]) for x in found if "eval/token-sum" in x]
    align = [score for phase, score in scores if phase == "align"]
    assert align[-1] > align[0] + 0.15, scores


def test_whole_groups_carry_the_column_too(runs: Runs) -> None:
    align = {**PIPELINE["phases"][2], "algorithm": [{"a-lol": {"draw": False}}, "watch"]}
    session = runs({**PIPELINE, "phases": [*PIPELINE["phases"][:2], align]})
    assert len([x for x in metrics(session) if x["phase"] == "align"]) == 14  # ⌈80 groups / 6⌉
    (folder,) = (session.dir.path / "columns").iterdir()
    stored = torch.from_file(str(folder / "values.f64"), size=ROWS, dtype=torch.float64)
    known = _texts()
    for batch in component(session, "watch").batches:
        rollout = batch.rollout
        for g, example in enumerate(rollout.examples):
            at = (rollout.group_N == g).nonzero()[:, 0]
            assert [known[example.row + j] for j in range(len(at))] == [
                (example.id, rollout.texts[i]) for i in at
            ]
            assert torch.equal(rollout.columns["advantage"][at], stored[example.row : example.row + len(at)])


class Interrupting(ALoL):
    """Stops half-way through the column, as often as it is told to."""

    stops = 0
    computed: list[str] = []

    @hookimpl
    def phase_started(self, run: Run) -> None:
        column = run.column

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return counted if name == "column" else getattr(run, name)

        def counted(name: str, compute: Any, key: Any) -> Tensor:
            def stepwise(rollout: Rollout, reward: Reward) -> Tensor:
                if Interrupting.stops and len(Interrupting.computed) >= 40:
                    Interrupting.stops -= 1
                    raise KeyboardInterrupt
                Interrupting.computed += [e.id for e in rollout.examples]
                return compute(rollout, reward)

            return column(name, stepwise, key)

        super().phase_started(Slow())


def test_a_column_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "PIECE_TOKENS", 100)
    extra = {**METHODS, "a-lol": Interrupting}
    whole = session(tmp_path, PIPELINE, METHODS, name="whole")
    whole.run()
    monkeypatch.setattr(Interrupting, "computed", [])
    monkeypatch.setattr(Interrupting, "stops", 1)
    broken = session(tmp_path, PIPELINE, extra, name="broken")
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert 40 <= len(Interrupting.computed) < 60
    resumed = loop.resume(tmp_path / "runs/broken", registry(extra), display=Silence(), inexact=True)
    resumed.run()
    # No example was computed twice, none left out, and nothing else differs.
    assert Interrupting.computed == [str(i) for i in range(80)]
    assert same(whole.models["policy"].state_dict(), resumed.models["policy"].state_dict())
    # Inside the phase the column is there already.
    assert [x.name for x in (tmp_path / "runs/whole/columns").iterdir()] == [
        x.name for x in (tmp_path / "runs/broken/columns").iterdir()
    ]
    again = loop.resume(
        tmp_path / "runs/broken", registry(extra), display=Silence(), inexact=True, previous=True
    )
    again.run()
    assert len(Interrupting.computed) == 80
    assert same(whole.models["policy"].state_dict(), again.models["policy"].state_dict())


def test_whatever_a_column_depends_on_is_in_its_key(runs: Runs) -> None:
    def key(**changes: Any) -> str:
        run = runs({**PIPELINE, **changes})
        (folder,) = (run.dir.path / "columns").iterdir()
        return folder.name

    def phases(*changes: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**phase, **change} for phase, change in zip(PIPELINE["phases"], changes, strict=True)]

    first = key()
    assert key(checkpoints={"every": 5}, phases=phases({}, {}, {"train": {"passes": 2}})) == first
    others = [
        key(task={"numbers": {**PIPELINE["task"]["numbers"], "size": 81}}),
        key(rewards=[{"token-sum": {}, "weight": 2}]),
        key(phases=phases({}, {}, {"rewards": ["length"]})),
        key(phases=phases({}, {"train": {"iterations": 29, "lr": 0.1}}, {})),  # another value
        key(phases=phases({}, {}, {"algorithm": [{"a-lol": {"version": 1}}, "watch"]})),
    ]
    assert len({first, *others}) == 6


def test_a_fitted_value_lives_on_where_a_later_phase_says_nothing_of_it(runs: Runs) -> None:
    phases = [dict(phase) for phase in PIPELINE["phases"]]
    phases[1] = {**phases[1], "models": {"value": "prompt-value"}}
    session = runs({**PIPELINE, "models": None, "phases": phases})
    saved = checkpoint.read(session.dir.checkpoints, 7 + 30)
    assert same(saved.models["value"][1], session.models["value"].state_dict())
    (folder,) = (session.dir.path / "columns").iterdir()
    stored = torch.from_file(str(folder / "values.f64"), size=ROWS, dtype=torch.float64)
    assert torch.equal(stored, _gain(saved.models["value"][1]["free"]))


def test_a_value_may_read_the_frozen_reference(runs: Runs) -> None:
    """The trunk of a value is a model of the phase, whether or not a component asks for it."""
    phases = [
        {**p, "models": {"value": {"linear-value": {"trunk": "reference"}}}} for p in PIPELINE["phases"][1:]
    ]
    phases[0] = {**phases[0], "train": {"iterations": 10, "lr": 0.05}}
    session = runs({**PIPELINE, "models": None, "phases": phases})
    lines = [x for x in metrics(session) if x["phase"] == "value"]
    assert lines[-1]["fit-value/loss"] < lines[0]["fit-value/loss"]


class Lazy(Task):
    """Examples made when they are asked for."""

    class Config(Options):
        """Options of `lazy`."""

        rows: int = Field(2000, description="logged responses")

    def examples(self, split: str) -> Sequence[Example]:
        return _LazyRows(self.config.rows)  # type: ignore[attr-defined]


class _LazyRows(LazyExamples):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows // 2

    def example(self, i: int) -> Example:
        texts = (f"{i % 5} {i % 3}", f"{i % 6} {i % 2}")
        return Example(id=str(i), prompt=str(i % 6), responses=texts, meta={"about": f"{i:0400d}"})


def _peak(folder: Path, rows: int) -> int:
    train = {"iterations": 20, "prompts": 8}
    phases = [{"name": "align", "algorithm": "a-lol", "train": train}]
    pipeline = {**PIPELINE, "task": {"lazy": {"rows": rows}}, "phases": phases}
    started = session(folder, pipeline, {**METHODS, "lazy": Lazy}, name=str(rows))
    tracemalloc.start()
    try:
        started.run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("few, many", [(2_000, 20_000), pytest.param(2_000, 200_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_data(
    few: int, many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PIECE_TOKENS", 4096)
    _peak(tmp_path, 100)  # whatever is imported at first use
    grown = _peak(tmp_path, many) - _peak(tmp_path, few)
    assert 0 < grown < 3 * 8 * (many - few), f"{grown / (many - few):.1f} bytes a row"


def test_batches_are_groups_of_one(runs: Runs) -> None:
    session = runs(PIPELINE)
    for batch in component(session, "watch").batches:
        assert isinstance(batch, Batch)
        assert len(batch) == len(batch.rollout.examples) == 6
        assert all(len(e.responses) == 1 for e in batch.rollout.examples)


class TestALoL(ComponentTests):
    component = ALoL


class TestFitValue(ComponentTests):
    component = FitValue
    pipeline = {"models": {"value": {"linear-value": {"trunk": "reference"}}}}


class TestFitPromptValue(ComponentTests):
    component = FitValue
    pipeline = {"models": {"value": "prompt-value"}}

    @property
    def extra(self) -> dict[str, type[Any]]:
        return {**super().extra, "prompt-value": PromptValue}
