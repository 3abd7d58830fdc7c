"""`best-of`, `at-least`, `best-vs-worst`, `drop-ties`: worked by hand, and what holds whatever the rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlalign.builtin.filters import AtLeast, BestOf, BestVsWorst, DropTies
from rlalign.data.batch import Batch, Reward
from rlalign.data.example import Example
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.testing import ComponentTests, Logits, PolicyGradient, run


def batch_of(*groups: list[float], parts: dict[str, Any] | None = None) -> Batch:
    """A batch with these total rewards, group by group."""
    examples = [Example(str(g), str(g), tuple("1 2" for _ in rewards)) for g, rewards in enumerate(groups)]
    policy = Logits(Logits.Config(prompts=max(1, len(groups)), responses=9))
    policy.setup()
    rollout = policy.encode(examples)
    total_N = torch.tensor([r for rewards in groups for r in rewards])
    tokens_NT = torch.zeros(rollout.mask_NT.shape)
    if len(total_N):
        tokens_NT[:, -1] = total_N
    reward = Reward(tokens_NT, {"total": total_N, **(parts or {})})
    return Batch.of(rollout, reward, total_N, index=torch.arange(len(total_N)))


def kept(cls: type[Component], batch: Batch, **options: Any) -> list[int]:
    """The rows a filter keeps."""
    component = cls(cls.Config(**options))
    component.name = "filter"
    wrapper = component.advantage()  # type: ignore[attr-defined]
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send(batch)
    result: Batch = stopped.value.value
    rows: list[int] = result.columns["index"].tolist()
    assert torch.equal(result.reward.total_N, batch.reward.total_N[rows])
    assert torch.equal(result.advantage_NT, batch.advantage_NT[rows])
    groups = batch.rollout.group_N[rows].tolist()
    mine = [result.rollout.examples[g].id for g in result.rollout.group_N.tolist()]
    assert mine == [batch.rollout.examples[g].id for g in groups]
    return rows


GROUPS = st.lists(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5), min_size=1, max_size=4)


# -- best-of ----------------------------------------------------------------------------------------


def test_best_of_keeps_the_best_of_each_group() -> None:
    batch = batch_of([1.0, 3.0, 2.0], [5.0], [0.0, -1.0])
    assert kept(BestOf, batch) == [1, 3, 4]
    assert kept(BestOf, batch, n=2) == [1, 2, 3, 4, 5]
    assert kept(BestOf, batch, n=9) == [0, 1, 2, 3, 4, 5]


def test_best_of_takes_the_first_among_equals() -> None:
    assert kept(BestOf, batch_of([2.0, 2.0, 2.0])) == [0]
    assert kept(BestOf, batch_of([1.0, 2.0, 2.0, 2.0]), n=2) == [1, 2]


@settings(deadline=None)
@given(GROUPS, st.integers(1, 4))
def test_best_of_leaves_nothing_better_behind(groups: list[list[float]], n: int) -> None:
    batch = batch_of(*groups)
    rows = kept(BestOf, batch, n=n)
    start = 0
    for rewards in groups:
        mine = [i - start for i in rows if start <= i < start + len(rewards)]
        assert len(mine) == min(n, len(rewards))
        assert sorted(rewards, reverse=True)[: len(mine)] == sorted((rewards[i] for i in mine), reverse=True)
        start += len(rewards)


# -- at-least ---------------------------------------------------------------------------------------


def test_at_least_keeps_what_reaches_the_threshold() -> None:
    batch = batch_of([1.0, 3.0, 2.0], [0.0])
    assert kept(AtLeast, batch, threshold=2.0) == [1, 2]
    assert kept(AtLeast, batch, threshold=2.0, strict=True) == [1]
    assert kept(AtLeast, batch, threshold=9.0) == []


def test_at_least_may_compare_one_part() -> None:
    parts = {"quality": torch.tensor([0.0, 1.0]), "steps": torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]])}
    batch = batch_of([9.0, -9.0], parts=parts)
    assert kept(AtLeast, batch, threshold=1.0, part="quality") == [1]
    assert kept(AtLeast, batch, threshold=1.5, part="steps") == [0]
    with pytest.raises(
        ComponentError, match="`filter` compares `style`; the rewards are total, quality, steps"
    ):
        kept(AtLeast, batch, threshold=1.0, part="style")


@settings(deadline=None)
@given(GROUPS, st.integers(-4, 4).map(float))
def test_at_least_splits_the_batch(groups: list[list[float]], threshold: float) -> None:
    batch = batch_of(*groups)
    loose, strict = (kept(AtLeast, batch, threshold=threshold, strict=s) for s in (False, True))
    total = batch.reward.total_N.tolist()
    assert loose == [i for i, r in enumerate(total) if r >= threshold]
    assert strict == [i for i, r in enumerate(total) if r > threshold]


# -- best-vs-worst ----------------------------------------------------------------------------------


def test_best_vs_worst_keeps_both_ends_of_groups_that_differ() -> None:
    batch = batch_of([1.0, 3.0, 2.0], [5.0, 5.0], [0.0], [-1.0, -2.0])
    assert kept(BestVsWorst, batch) == [0, 1, 5 + 1, 5 + 2]


@settings(deadline=None)
@given(GROUPS)
def test_best_vs_worst_leaves_pairs(groups: list[list[float]]) -> None:
    batch = batch_of(*groups)
    rows = kept(BestVsWorst, batch)
    start = 0
    for rewards in groups:
        mine = [rewards[i - start] for i in rows if start <= i < start + len(rewards)]
        assert sorted(mine) == ([] if min(rewards) == max(rewards) else [min(rewards), max(rewards)])
        start += len(rewards)


# -- drop-ties --------------------------------------------------------------------------------------


def test_drop_ties_keeps_whole_groups_that_differ() -> None:
    batch = batch_of([1.0, 3.0, 1.0], [5.0, 5.0], [0.0], [-1.0, -2.0])
    assert kept(DropTies, batch) == [0, 1, 2, 6, 7]


def test_drop_ties_may_look_at_one_reward_of_several() -> None:
    right_N = torch.tensor([1.0, 1.0, 0.0, 1.0])
    batch = batch_of([0.9, 0.7], [0.5, 0.5], parts={"right": right_N})
    assert kept(DropTies, batch) == [0, 1]
    assert kept(DropTies, batch, part="right") == [2, 3]
    with pytest.raises(ComponentError, match="`filter` compares `wrong`; the rewards are total, right"):
        kept(DropTies, batch, part="wrong")


@settings(deadline=None)
@given(GROUPS)
def test_drop_ties_keeps_all_or_nothing_of_a_group(groups: list[list[float]]) -> None:
    batch = batch_of(*groups)
    expected = [i for i, g in enumerate(batch.rollout.group_N.tolist()) if len(set(groups[g])) > 1]
    assert kept(DropTies, batch) == expected


@pytest.mark.parametrize(
    "cls, options",
    [(BestOf, {}), (AtLeast, {"threshold": 0.0}), (BestVsWorst, {}), (DropTies, {})],
)
def test_filters_of_nothing_keep_nothing(cls: type[Component], options: dict[str, Any]) -> None:
    nothing = batch_of([1.0, 2.0]).take(torch.zeros(2, dtype=torch.bool))
    assert kept(cls, nothing, **options) == []


# -- together ---------------------------------------------------------------------------------------


def test_filters_apply_in_the_order_of_the_file(tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "task": "numbers",
        "policy": {"logits": {}},
        "rewards": ["logged"],
        "responses": "logged",
        "train": {"iterations": 1, "prompts": 6},
    }
    counts = {}
    for name, filters in {
        "best of those at least": [{"at-least": {"threshold": 0.0}}, {"best-of": {"n": 2}}],
        "best, if at least": [{"best-of": {"n": 1}}, {"at-least": {"threshold": 0.0}}],
        "none": [{"at-least": {"threshold": 99.0}}, "best-vs-worst"],
    }.items():
        _, session = run(
            tmp_path, {**base, "algorithm": ["once", *filters]}, {"once": PolicyGradient}, name=name
        )
        line = (session.dir.path / "metrics.jsonl").read_text()
        counts[name] = line
    assert '"groups": 0.0' in counts["none"] and '"empty_steps": 1.0' in counts["none"]
    assert '"empty_steps": 0.0' in counts["best, if at least"]


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 1.5}])
def test_best_of_refuses_a_count_that_is_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BestOf.Config(**options)


class TestBestOf(ComponentTests):
    component = "best-of"


class TestAtLeast(ComponentTests):
    component = "at-least"
    options = {"threshold": 2.0}


class TestBestVsWorst(ComponentTests):
    component = "best-vs-worst"


class TestDropTies(ComponentTests):
    component = "drop-ties"
