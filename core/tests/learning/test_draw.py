"""Draws: shuffled passes, draws by weight, how many iterations there are, and what a refill gets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlalign.data.batch import Batch
from rlalign.data.example import Example, LazyExamples
from rlalign.data.settings import Train
from rlalign.errors import ConfigError, RLAlignError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.learning import draw as drawing
from rlalign.learning.draw import Draw
from rlalign.randomness import Seeds
from rlalign.records.shelf import Shelf
from rlalign.testing import Bench, PolicyGradient, run


def draw(count: int = 7, responses: int = 0, seed: int = 0) -> Draw:
    data = [
        Example(
            str(i),
            str(i),
            tuple(f"{i} {j}" for j in range(responses)),
            tuple(float(j) for j in range(responses)),
            finished=tuple(j % 2 == 0 for j in range(responses)),
        )
        for i in range(count)
    ]
    return Draw(data, Seeds(seed), ("draw", 0, "phase"))


def ids(examples: list[Example]) -> list[str]:
    return [e.id for e in examples]


# -- shuffled passes --------------------------------------------------------------------------------


@given(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_every_pass_covers_the_data_once_however_it_is_cut(count: int, cuts: list[int], seed: int) -> None:
    one, other = draw(count, seed=seed), draw(count, seed=seed)
    drawn = [i for n in cuts for i in ids(one.next(n))]
    assert drawn == ids(other.next(sum(cuts)))
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count], key=int) == [str(i) for i in range(count)]


def test_passes_differ_and_seeds_differ() -> None:
    one = draw(50)
    first, second = ids(one.next(50)), ids(one.next(50))
    assert first != second and sorted(first) == sorted(second)
    assert ids(draw(50, seed=1).next(50)) != first


def test_the_position_is_all_there_is_to_save() -> None:
    one, other = draw(), draw()
    one.next(10)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert ids(one.next(9)) == ids(other.next(9))


def test_no_examples() -> None:
    with pytest.raises(ConfigError, match="no training examples"):
        draw(0)


# -- by weight --------------------------------------------------------------------------------------


def test_weights_over_responses_make_groups_of_one() -> None:
    one = draw(3, responses=4)
    w = torch.zeros(12)
    w[[1, 6, 11]] = torch.tensor([1.0, 2.0, 5.0])
    one.weights(w)
    drawn = one.next(4000)
    assert all(len(e.responses) == len(e.scores) == 1 for e in drawn)
    assert all(e.finished == (e.scores[0] % 2 == 0,) for e in drawn)
    found = Counter((e.id, e.responses[0], e.scores[0], e.row) for e in drawn)
    assert set(found) == {("0", "0 1", 1.0, 1), ("1", "1 2", 2.0, 6), ("2", "2 3", 3.0, 11)}
    for (_, _, _, row), count in found.items():
        share = float(w[row] / w.sum())
        assert count / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


@pytest.mark.parametrize("u, row", [(0.0, 1), (0.25, 3), (1 - 2.0**-53, 3)])
def test_what_weighs_nothing_is_never_drawn(u: float, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the uniform falls on a border, too: a share begins where it stands and ends before the next."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, generator: torch.tensor(u, dtype=dtype))
    one = draw(3, responses=2)
    one.weights(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0, 0.0]))
    assert [e.row for e in one.next(1)] == [row]


def test_weights_over_examples_draw_whole_groups() -> None:
    one = draw(3, responses=2)
    one.weights(torch.tensor([0.0, 1.0, 3.0]), unit="example")
    drawn = one.next(2000)
    assert all(len(e.responses) == 2 for e in drawn)
    share = Counter(ids(drawn))
    assert set(share) == {"1", "2"} and share["2"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_weighted_draws_depend_on_their_place_only() -> None:
    one, other = draw(5, responses=2), draw(5, responses=2)
    for each in (one, other):
        each.weights(torch.arange(10.0))
    whole = [(e.id, e.responses) for e in one.next(20)]
    assert [(e.id, e.responses) for _ in range(10) for e in other.next(2)] == whole


@pytest.mark.parametrize(
    "w, said",
    [
        (torch.ones(3), r"over 8 responses have the shape \(3,\)"),
        (torch.zeros(8), "all draw weights are zero"),
        (-torch.ones(8), "finite and not negative"),
        (torch.full((8,), torch.nan), "finite and not negative"),
    ],
)
def test_weights_that_make_no_sense(w: torch.Tensor, said: str) -> None:
    with pytest.raises(RLAlignError, match=said):
        draw(4, responses=2).weights(w)


# -- from large data --------------------------------------------------------------------------------


class Many(LazyExamples):
    """Examples with no to three responses, and keys that are hashes."""

    def __init__(self, count: int) -> None:
        rng = numpy.random.default_rng(count)
        self.response_counts = rng.integers(0, 4, count, dtype=numpy.int32)
        self.row_keys = rng.integers(0, 2**64 - 1, count, dtype=numpy.uint64)

    def __len__(self) -> int:
        return len(self.response_counts)

    def example(self, index: int) -> Example:
        texts = tuple(f"{index} {j}" for j in range(self.response_counts[index]))
        return Example(str(index), str(index), texts, tuple(map(float, range(len(texts)))))


def told(examples: list[Example]) -> list[tuple[str, tuple[str, ...], int]]:
    return [(e.id, e.responses, e.row) for e in examples]


@pytest.mark.parametrize("unit", [None, "example", "response"])
@pytest.mark.parametrize("keyed", [False, True])
def test_draws_from_files_are_those_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: Any, keyed: bool
) -> None:
    data = Many(5_000)
    if not keyed:
        del data.row_keys

    def drawn(keep: Shelf | None) -> tuple[list[Any], Draw]:
        one = Draw(data, Seeds(3), ("draw",), keep=keep)
        if unit is not None:
            size = len(data) if unit == "example" else int(data.response_counts.sum())
            one.weights(torch.rand(size, generator=torch.Generator().manual_seed(0)), unit)
        return told(one.next(300)), one

    before, in_memory = drawn(None)
    monkeypatch.setattr(drawing, "LARGE", 1_000)
    monkeypatch.setattr(drawing, "AT_ONCE", 777)
    first, _ = drawn(Shelf(tmp_path))
    there = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert first == before
    again, mapped = drawn(Shelf(tmp_path))
    assert again == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == there, "made once"
    assert mapped.state_dict() == in_memory.state_dict()
    kinds = {path.name.partition("-")[0] for path in there}
    assert (
        kinds
        == ({"order"} if keyed else set())
        | {
            None: set(),
            "example": {"weights"},
            "response": {"weights", "starts"} | ({"rows"} if keyed else set()),
        }[unit]
    )
    if unit == "response":
        assert mapped.row_starts().tolist() == in_memory.row_starts().tolist()


def test_what_is_mapped_can_be_changed_by_nobody(tmp_path: Path) -> None:
    keep = Shelf(tmp_path)
    keep("x.i8", lambda: [torch.arange(5)]).fill_(9)
    assert keep("x.i8", lambda: pytest.fail("it is there")).tolist() == [0, 1, 2, 3, 4]


def test_draws_are_those_that_runs_were_begun_with() -> None:
    """Or none of them could go on."""
    one = Draw(Many(3_000), Seeds(5), ("draw", 0, 0))
    assert ids(one.next(8)) == ["257", "1575", "2261", "1724", "2994", "614", "2845", "2031"]
    one.weights(torch.rand(3_000, generator=torch.Generator().manual_seed(1)), "example")
    one.load_state_dict({**one.state_dict(), "position": 0})
    assert ids(one.next(3)) == ["2793", "2686", "1383"]
    assert str(one.state_dict()["weights"]).startswith("a3533357")


def test_long_passes_are_shuffled_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass covers the data once, however it is cut; passes and seeds differ; nothing as long as it is kept."""
    monkeypatch.setattr(drawing, "KEYED", 1_000)
    data = Many(1_001)
    one, other = Draw(data, Seeds(0), ("draw",)), Draw(data, Seeds(0), ("draw",))
    drawn = ids(one.next(3_003))
    assert one._epoch is None
    for start in (0, 1_001, 2_002):
        assert sorted(drawn[start : start + 1_001], key=int) == [str(i) for i in range(1_001)]
    assert drawn[:1_001] != drawn[1_001:2_002]
    assert ids(Draw(data, Seeds(1), ("draw",)).next(1_001)) != drawn[:1_001]
    cut = [i for n in (1, 999, 2, 1_001, 17) for i in ids(other.next(n))]
    assert cut == drawn[: len(cut)]
    resumed = Draw(data, Seeds(0), ("draw",))
    resumed.load_state_dict(json.loads(json.dumps(other.state_dict())))
    assert ids(resumed.next(900)) == drawn[len(cut) : len(cut) + 900]
    short = Draw(Many(1_000), Seeds(0), ("draw",))
    short.next(1)
    assert short._epoch is not None, "at the border draws are as they always were"


def test_what_cannot_be_read_is_left_out_when_it_is_drawn() -> None:
    def odd(examples: Any) -> dict[int, str]:
        return {i: "it is odd" for i, e in enumerate(examples) if int(e.id) % 2}

    data = Many(40)
    whole = ids(Draw(data, Seeds(0), ("draw",)).next(80))
    one, other = (Draw(data, Seeds(0), ("draw",), refuse=odd) for _ in range(2))
    found, left = [], 0
    for n in (1, 7, 8, 4):
        found += ids(one.next(n))
        left += one.left_out
    assert found == [i for i in whole if int(i) % 2 == 0][:20]
    assert left == one.position - 20 > 0
    other.load_state_dict(one.state_dict())
    assert ids(other.next(5)) == ids(one.next(5))


def test_data_of_which_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "GIVE_UP", 100)
    one = Draw(
        Many(40), Seeds(0), ("draw",), refuse=lambda found: dict.fromkeys(range(len(found)), "too long")
    )
    with pytest.raises(
        ConfigError, match=r"1\d\d examples running cannot be read; the last is `\d+`: too long"
    ):
        one.next(8)


# -- how long ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, size, iterations",
    [
        ({"iterations": 5}, 7, 5),
        ({"passes": 1.0, "prompts": 7}, 7, 1),
        ({"passes": 1.0, "prompts": 4}, 7, 2),
        ({"passes": 3.0, "prompts": 4}, 7, 6),  # 21 draws
        ({"passes": 0.5, "prompts": 2}, 8, 2),
        ({"passes": 1.1, "prompts": 10}, 100, 11),  # as floats, 11.000000000000002
        ({"passes": 0.1, "prompts": 64}, 8, 1),
    ],
)
def test_passes_give_iterations(train: dict[str, Any], size: int, iterations: int) -> None:
    assert draw(size).planned(Train(**train)) == iterations


def test_scale_multiplies_what_is_planned() -> None:
    one = draw(8)
    one.scale(0.25)
    assert one.planned(Train(iterations=8)) == 2
    assert one.planned(Train(iterations=1)) == 1
    for share in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RLAlignError, match="a share is positive and finite"):
            one.scale(share)


def test_passes_over_weighted_responses_count_responses() -> None:
    one = draw(4, responses=3)
    one.weights(torch.ones(12))
    assert one.planned(Train(passes=1.0, prompts=4)) == 3
    one.weights(torch.tensor([0.0, 1.0, 2.0] * 4))
    assert one.planned(Train(passes=1.0, prompts=4)) == 2, "what weighs nothing is no part of a pass"
    one.weights(torch.ones(4), unit="example")
    assert one.planned(Train(passes=1.0, prompts=4)) == 1


# -- in a run ---------------------------------------------------------------------------------------

PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 4, "logged": [1]}},
    "policy": {"logits": {}},
    "rewards": ["token-sum"],
    "algorithm": "once",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 2, "prompts": 8, "lr": 0.01},
}


def test_an_example_drawn_twice_is_two_groups(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, {"once": PolicyGradient})
    rollout, _ = bench.rollout()
    assert Counter(e.id for e in rollout.examples) == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert rollout.group_N.tolist() == [g for g in range(8) for _ in range(2)]
    twice = [g for g, e in enumerate(rollout.examples) if e.id == "0"]
    texts = [
        [t for t, g in zip(rollout.texts, rollout.group_N.tolist(), strict=True) if g == one] for one in twice
    ]
    assert texts[0] != texts[1]  # other uniforms


class Survivors(Component):
    """Keeps the groups of examples 0 and 1, and what it was given."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.rounds: list[tuple[list[str], tuple[str, ...]]] = []

    @hookimpl(wrapper=True)
    def advantage(self):
        batch = yield
        rollout = batch.rollout
        self.rounds.append(([e.id for e in rollout.examples], rollout.texts))
        good = torch.tensor([e.id in "01" for e in rollout.examples])
        return batch.take(good[rollout.group_N]).as_step()


def refilled(folder: Path, refill: int, **train: Any) -> tuple[list[dict[str, Any]], Any]:
    steps: list[Batch] = []

    class Look(PolicyGradient):
        @hookimpl
        def loss(self, batch, now):
            steps.append(batch.step)
            return super().loss(batch, now)

    pipeline = {**PIPELINE, "algorithm": ["look", "survivors"]}
    pipeline["train"] = {**PIPELINE["train"], "prompts": 4, "refill": refill, **train}
    _, done = run(folder, pipeline, {"look": Look, "survivors": Survivors})
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    (survivors,) = [c for c in done.builder.built.values() if isinstance(c, Survivors)]
    return rows, (survivors, steps, done)


def test_refill_draws_on_until_enough_groups_survive(tmp_path: Path) -> None:
    rows, (survivors, steps, _) = refilled(tmp_path, 3)
    assert [row["refills"] for row in rows] == [1.0, 1.0]
    assert [row["groups"] for row in rows] == [4.0, 4.0]
    assert [row["responses"] for row in rows] == [16.0, 16.0]  # both rounds are counted
    assert all(sorted(e.id for e in step.rollout.examples) == ["0", "0", "1", "1"] for step in steps)
    rounds = survivors.rounds
    assert len(rounds) == 4 and all(sorted(ids) == ["0", "1", "2", "3"] for ids, _ in rounds)
    assert rounds[0][1] != rounds[1][1]


def test_refill_counts_its_uniforms_on(tmp_path: Path) -> None:
    """Eight prompts at once meet the same uniforms as four and four more."""
    _, (cut, _, _) = refilled(tmp_path / "cut", 1, iterations=1)
    _, (whole, _, _) = refilled(tmp_path / "whole", 0, iterations=1, prompts=8)
    assert [i for ids, _ in cut.rounds for i in ids] == whole.rounds[0][0]
    assert [t for _, texts in cut.rounds for t in texts] == list(whole.rounds[0][1])


def test_what_a_refill_brings_too_much_is_left_out(tmp_path: Path) -> None:
    """About half the prompts survive, so rounds bring more than was asked for: the first of them are the step."""
    (row,), (survivors, (step, *_), _) = refilled(tmp_path, 5, iterations=1, prompts=5)
    drawn = [i for ids, _ in survivors.rounds for i in ids if i in "01"]
    assert len(drawn) > 5, "nothing is left out"
    assert row["groups"] == 5.0 and row["responses"] == 5 * 2 * len(survivors.rounds)
    assert [e.id for e in step.rollout.examples] == drawn[:5]


def test_refill_gives_up_and_says_so(tmp_path: Path) -> None:
    class Nobody(Component):
        @hookimpl(wrapper=True)
        def advantage(self):
            batch = yield
            return batch.take(batch.rollout.group_N < 0).as_step()

    pipeline = {**PIPELINE, "algorithm": ["once", "nobody"], "train": {**PIPELINE["train"], "refill": 2}}
    _, done = run(tmp_path, pipeline, {"once": PolicyGradient, "nobody": Nobody})
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["refills"], row["groups"], row["empty_steps"]) for row in rows] == [(2.0, 0.0, 1.0)] * 2
    assert done.step == 0
    notes = " ".join(done.display.notes)
    assert "iteration 1: 0 of 8 groups after 2 refills" in notes and "no responses left" in notes


def test_a_component_may_weigh_and_scale_before_the_first_draw(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Weighs(PolicyGradient):
        @hookimpl
        def phase_started(self, run: Run) -> None:
            run.draw.weights(torch.tensor([0.0, 1.0, 0.0, 0.0]))
            run.draw.scale(0.25)

        @hookimpl
        def iteration_done(self, run: Run) -> None:
            seen.append([run.phase])

        @hookimpl
        def loss(self, batch, now):
            assert {e.id for e in batch.rollout.examples} == {"1"}
            return super().loss(batch, now)

    pipeline = {**PIPELINE, "responses": "logged", "algorithm": "weighs"}
    pipeline["train"] = {"iterations": 8, "prompts": 4, "lr": 0.01}
    run(tmp_path, pipeline, {"weighs": Weighs})
    assert len(seen) == 2
