"""Rollouts and batches: taking, joining, grouping, and means whose pieces add up to the step's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign import Batch, Example, Reward, Rollout
from rlalign.data.allowed import Allowed
from rlalign.data.batch import Outputs, concat_batches
from rlalign.data.rollout import concat
from rlalign.data.settings import Sampling

V = 9


def rollout(seed: int, groups: list[int], *, narrowed: bool = True, inner: bool = True) -> Rollout:
    """Random responses in groups of these sizes, in an order that is not group by group.

    Everything row-aligned is derived from one number a row, so that any mix-up shows.
    """
    g = torch.Generator().manual_seed(seed)
    group_N = torch.tensor([i for i, size in enumerate(groups) for _ in range(size)], dtype=torch.long)
    group_N = group_N[torch.randperm(len(group_N), generator=g)]
    count = len(group_N)
    length_N = torch.randint(1, 6, (count,), generator=g)
    steps = int(length_N.max()) if count else 0
    key_N = torch.rand(count, generator=g, dtype=torch.float64)
    mask_NT = torch.arange(steps) < length_N[:, None]
    given = torch.rand(count, steps, generator=g) < 0.2  # a few steps inside the length were given
    given[torch.arange(count), (length_N - 1).clamp_min(0)] = False
    mask_NT = mask_NT & ~given
    grid_NT = torch.where(mask_NT, key_N[:, None] + torch.arange(steps), 0.0)
    allowed = None
    if narrowed and count:
        dense = torch.rand(count, steps, V, generator=g) < 0.5
        allowed = Allowed.of_mask(dense)
    columns: dict[str, Any] = {
        "key": key_N,
        "grid": grid_NT,
        "ends": torch.cat([grid_NT, key_N[:, None]], 1),
        "names": tuple(f"{seed}:{i}" for i in range(count)),
    }
    if inner and count:
        columns["twin"] = rollout(seed + 1, [1] * count, inner=False)
    return Rollout(
        examples=tuple(Example(id=f"{seed}/{i}", prompt=str(i)) for i in range(len(groups))),
        inputs=tuple(torch.arange(i + 1) for i in range(len(groups))),
        group_N=group_N,
        actions_NT=torch.where(mask_NT, (key_N[:, None] * 1000).long() + torch.arange(steps), 0),
        mask_NT=mask_NT,
        finished_N=key_N > 0.5,
        settings=(Sampling(), Sampling(temperature=0.5 + seed % 3)),
        setting_N=(key_N > 0.3).long(),
        logprobs_NT=-grid_NT,
        full_logprobs_NT=-2 * grid_NT,
        texts=tuple(f"{k:.6f}" for k in key_N.tolist()),
        allowed=allowed,
        columns=columns,
    )


def row(r: Rollout, i: int) -> dict[str, Any]:
    """All there is about one response, without padding."""
    length = int(r.length_N[i])
    at = torch.full((length,), i), torch.arange(length)
    columns: dict[str, Any] = {}
    for name, column in r.columns.items():
        if isinstance(column, Rollout):
            columns[name] = row(column, i)
        elif isinstance(column, Tensor):
            columns[name] = column[i].reshape(-1)[: length + 1].tolist()
            while columns[name] and columns[name][-1] == 0:
                columns[name].pop()
        else:
            columns[name] = column[i]
    g = int(r.group_N[i])
    return {
        "example": r.examples[g].id,
        "input": r.inputs[g].tolist(),
        "actions": r.actions_NT[i, :length].tolist(),
        "mask": r.mask_NT[i, :length].tolist(),
        "beyond": int(r.mask_NT[i, length:].sum()),
        "finished": bool(r.finished_N[i]),
        "setting": r.settings[int(r.setting_N[i])],
        "logprobs": r.logprobs_NT[i, :length].tolist(),
        "full": r.full_logprobs_NT[i, :length].tolist(),
        "text": r.texts[i],
        "allowed": None if r.allowed is None else r.allowed.mask(*at).tolist(),
        "columns": columns,
    }


def check(r: Rollout) -> None:
    """What holds of every rollout."""
    assert len(r.examples) == len(r.inputs)
    assert len(r.texts) == len(r) == len(r.mask_NT) == len(r.logprobs_NT) == len(r.setting_N)
    if len(r):
        assert int(r.group_N.max()) < len(r.examples)
    if r.allowed is not None:
        assert len(r.allowed.rows) == len(r)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
seeds = st.integers(0, 10_000)


@settings(max_examples=100, deadline=None)
@given(seeds, sizes, st.data())
def test_take_keeps_all_there_is_about_a_row(seed: int, groups: list[int], data: st.DataObject) -> None:
    r = rollout(seed, groups)
    rows = data.draw(st.lists(st.integers(0, len(r) - 1), max_size=12))
    taken = r.take(torch.tensor(rows, dtype=torch.long))
    check(taken)
    assert [row(taken, j) for j in range(len(rows))] == [row(r, i) for i in rows]
    assert [e.id for e in taken.examples] == sorted({r.examples[int(r.group_N[i])].id for i in rows})
    again = taken.take(torch.arange(len(taken)))
    assert [row(again, j) for j in range(len(rows))] == [row(taken, j) for j in range(len(rows))]
    if rows:
        some = torch.tensor(rows)[::2]
        assert [row(r.take(some), j) for j in range(len(some))] == [
            row(taken.take(torch.arange(len(rows))[::2]), j) for j in range(len(some))
        ]


def test_take_by_a_mask_is_take_by_its_indices_and_its_length_is_checked() -> None:
    r = rollout(0, [2, 3])
    keep = torch.tensor([True, False, True, True, False])
    assert r.take(keep).texts == r.take(keep.nonzero()[:, 0]).texts
    with pytest.raises(ValueError, match=r"a mask over 5 rows has the shape \(4,\)"):
        r.take(keep[:4])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(seeds, sizes, st.booleans()), min_size=1, max_size=3))
def test_concat_keeps_rows_and_groups_apart(parts: list[tuple[int, list[int], bool]]) -> None:
    made = [rollout(seed, groups, narrowed=narrowed) for seed, groups, narrowed in parts]
    joined = concat(made)
    check(joined)
    rows = [row(part, i) for part in made for i in range(len(part))]
    if joined.allowed is not None:
        for i, each in enumerate(rows):
            if each["allowed"] is None:
                each["allowed"] = [[True] * V for _ in range(int(joined.length_N[i]))]
    for each in rows:
        if joined.columns["twin"].allowed is not None and each["columns"]["twin"]["allowed"] is None:
            each["columns"]["twin"]["allowed"] = [[True] * V] * len(each["columns"]["twin"]["actions"])
    assert [row(joined, i) for i in range(len(joined))] == rows
    assert len(joined.examples) == sum(len(groups) for _, groups, _ in parts)
    counts = torch.bincount(joined.group_N).tolist()
    assert counts == [size for part in made for size in torch.bincount(part.group_N).tolist()]
    assert len(set(joined.settings)) == len(joined.settings)


@settings(max_examples=50, deadline=None)
@given(seeds, seeds, sizes)
def test_concat_of_the_same_examples_makes_one_group_of_each(one: int, two: int, groups: list[int]) -> None:
    from dataclasses import replace

    a = rollout(one, groups)
    b = rollout(two, [6 - size for size in groups])
    b = replace(b, examples=a.examples)
    joined = concat([a, b], same_examples=True)
    check(joined)
    assert torch.bincount(joined.group_N).tolist() == [6] * len(groups)
    assert joined.group_N.tolist() == sorted(joined.group_N.tolist())
    assert sorted(joined.texts) == sorted([*a.texts, *b.texts])
    for g, example in enumerate(joined.examples):
        mine = [joined.texts[i] for i in range(len(joined)) if int(joined.group_N[i]) == g]
        theirs = [
            r.texts[i] for r in (a, b) for i in range(len(r)) if r.examples[int(r.group_N[i])] is example
        ]
        assert mine == theirs  # first the first part's, each in its order


def test_a_column_only_one_part_has_is_gone_after_a_join() -> None:
    a, b = rollout(0, [1, 2]), rollout(1, [2])
    assert "more" not in concat([a.with_columns(more=torch.zeros(3)), b]).columns


def test_joining_with_an_empty_part_changes_nothing() -> None:
    a = rollout(0, [2, 3])
    empty = rollout(5, [2]).take(torch.zeros(0, dtype=torch.long))
    for parts in ([a, empty], [empty, a]):
        joined = concat(parts)
        assert [row(joined, i) for i in range(5)] == [row(a, i) for i in range(5)]


@settings(max_examples=100, deadline=None)
@given(seeds, sizes)
def test_groups_lists_each_row_once_under_its_example(seed: int, groups: list[int]) -> None:
    r = rollout(seed, groups)
    rows_GK, real_GK = r.groups()
    assert rows_GK.shape == real_GK.shape == (len(groups), max(groups))
    for g, size in enumerate(groups):
        assert real_GK[g].tolist() == [True] * size + [False] * (max(groups) - size)
        assert rows_GK[g, :size].tolist() == (r.group_N == g).nonzero()[:, 0].tolist()
    assert sorted(rows_GK[real_GK].tolist()) == list(range(len(r)))
    assert not rows_GK[~real_GK].any()


def test_on_another_device_nothing_stays_behind() -> None:
    """What was worked out of a rollout before is none of its fields."""
    r = rollout(3, [2, 1, 3])
    assert len(r.length_N) == len(r.cost_N) == len(r.new_N) == 6
    moved = r.to("meta")
    tensors = [
        x for x in (*vars(moved).values(), *moved.inputs, *moved.columns.values()) if isinstance(x, Tensor)
    ]
    assert len(tensors) > 10 and {x.device.type for x in tensors} == {"meta"}
    assert moved.texts == r.texts and moved.examples == r.examples


def test_lengths_and_costs() -> None:
    r = rollout(3, [2, 1, 3])
    for i in range(len(r)):
        chosen = r.mask_NT[i].nonzero()[:, 0]
        assert int(r.length_N[i]) == int(chosen[-1]) + 1
        assert int(r.cost_N[i]) == int(r.length_N[i]) + int(r.group_N[i]) + 1
    row_M, step_M = r.chosen
    assert r.mask_NT[row_M, step_M].all()
    assert len(row_M) == int(r.mask_NT.sum())
    assert row_M.tolist() == sorted(row_M.tolist())


# -- batches --------------------------------------------------------------------------------------------------


def batch(seed: int, groups: list[int]) -> Batch:
    r = rollout(seed, groups)
    g = torch.Generator().manual_seed(seed)
    part = torch.randn(len(r), generator=g, dtype=torch.float64)
    tokens = torch.where(r.mask_NT, torch.randn(r.mask_NT.shape, generator=g, dtype=torch.float64), 0.0)
    reward = Reward(tokens, {"a": part, "b": tokens}, {"m": part})
    return Batch.of(r, reward, reward.total_N, pairs=r.columns["twin"], weight=part)


def long_ones(b: Batch) -> Tensor:
    return b.rollout.length_N >= 3


def sure_steps(b: Batch) -> Tensor:
    return b.reward.tokens_NT > 0


def large_groups(b: Batch) -> Tensor:
    return b.rollout.groups()[1].sum(1) > 2


@settings(max_examples=100, deadline=None)
@given(seeds, sizes, st.data())
def test_means_of_pieces_add_up_to_the_steps(seed: int, groups: list[int], data: st.DataObject) -> None:
    step = batch(seed, groups)
    n = len(groups)
    cut = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    pieces = []
    for part in set(cut):
        mine = torch.tensor([g for g in range(n) if cut[g] == part])
        pieces.append(step.take(torch.isin(step.rollout.group_N, mine)))
    pieces = [p.take(torch.arange(len(p))) for p in pieces]  # a piece of a piece is one of the step
    assert all(p.step is step for p in pieces)

    def by_hand(x: Tensor, where: Tensor) -> float:
        return float(x[where].sum()) / max(1, int(where.sum()))

    def x_NT(b: Batch) -> Tensor:
        return b.rollout.columns["grid"] * b.reward.tokens_NT

    def x_N(b: Batch) -> Tensor:
        return b.reward.total_N * b.rollout.columns["key"]

    def x_G(b: Batch) -> Tensor:
        rows, real = b.rollout.groups()
        return (x_N(b)[rows] * real).sum(1)

    mask = step.rollout.mask_NT
    tokens: list[tuple[Any, Tensor]] = [
        (None, mask),
        (sure_steps, mask & sure_steps(step)),
        (long_ones, mask & long_ones(step)[:, None]),
    ]
    for where, expected in tokens:
        found = sum(float(p.mean_over_tokens(x_NT(p), where)) for p in pieces)
        assert found == pytest.approx(by_hand(x_NT(step), expected), rel=1e-12, abs=1e-12)
    for where in (None, long_ones):
        found = sum(float(p.mean_over_responses(x_N(p), where)) for p in pieces)
        here = where(step) if where else torch.ones(len(step), dtype=torch.bool)
        assert found == pytest.approx(by_hand(x_N(step), here), rel=1e-12, abs=1e-12)
    for where in (None, large_groups):
        found = sum(float(p.mean_over_groups(x_G(p), where)) for p in pieces)
        here = where(step) if where else torch.ones(len(groups), dtype=torch.bool)
        assert found == pytest.approx(by_hand(x_G(step), here), rel=1e-12, abs=1e-12)


def test_what_is_not_counted_is_never_read_and_gets_no_gradient() -> None:
    step = batch(1, [2, 3])
    x_NT = torch.where(step.rollout.mask_NT, 1.0, torch.nan).double().requires_grad_()
    mean = step.mean_over_tokens(x_NT)
    assert mean.item() == pytest.approx(1.0)
    mean.backward()
    assert x_NT.grad is not None
    assert torch.equal(x_NT.grad != 0, step.rollout.mask_NT)
    x_N = torch.where(long_ones(step), 2.0, torch.inf)
    assert float(step.mean_over_responses(x_N, long_ones)) == pytest.approx(2.0)


def test_the_wrong_shape_is_refused() -> None:
    step = batch(1, [2, 3])
    with pytest.raises(ValueError, match=r"a mean over \(5,\) entries was given \(2,\) values"):
        step.mean_over_responses(torch.zeros(2))
    with pytest.raises(ValueError):
        step.mean_over_tokens(torch.zeros(5))
    with pytest.raises(ValueError):
        step.mean_over_groups(torch.zeros(5))


def test_counting_does_not_grow_with_the_number_of_pieces() -> None:
    """Means with the same `where` share one count; a step does not collect one a call."""
    step = batch(1, [2, 3, 4, 5, 5])
    seen = []

    def where(b: Batch) -> Tensor:
        if b is step:
            seen.append(b)
        return long_ones(b)

    for i in range(len(step)):
        piece = step.take(torch.tensor([i]))
        piece.mean_over_tokens(torch.zeros(1, step.rollout.steps), where)
        piece.mean_over_responses(torch.zeros(1), where)
    assert len(seen) <= 2


def test_of_spreads_a_number_a_response_over_its_chosen_steps() -> None:
    r = rollout(2, [3, 1])
    reward = Reward(torch.zeros(r.mask_NT.shape, dtype=torch.float64), {})
    b = Batch.of(r, reward, r.columns["key"])
    assert torch.equal(b.advantage_NT, torch.where(r.mask_NT, r.columns["key"][:, None], 0.0))
    nan = torch.where(r.mask_NT, 1.0, torch.nan)
    assert torch.equal(Batch.of(r, reward, nan).advantage_NT, r.mask_NT.float())
    for shape in ([1], [1, 5], [4, 3], [4, 5, 1]):
        said = f"the shape [4], or [4, 5] with one for each token; got {shape}"
        with pytest.raises(ValueError, match=re.escape(said)):
            Batch.of(r, reward, torch.zeros(shape))


def test_old_logprobs_are_there_for_who_asked() -> None:
    from dataclasses import replace

    b = batch(0, [2])
    with pytest.raises(AttributeError, match="needs `old_logprobs`"):
        _ = b.old_logprobs_NT
    assert replace(b, old=b.advantage_NT).take(torch.tensor([1])).old_logprobs_NT.shape[0] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(seeds, sizes), min_size=1, max_size=3))
def test_batches_of_several_draws_join(parts: list[tuple[int, list[int]]]) -> None:
    made = [batch(seed, groups) for seed, groups in parts]
    joined = concat_batches(made).as_step()
    assert joined.step is joined
    start = 0
    for b in made:
        rows = torch.arange(start, start + len(b))
        piece = joined.take(rows)
        t = b.rollout.steps
        assert [row(piece.rollout, i) for i in range(len(b))] == [row(b.rollout, i) for i in range(len(b))]
        assert torch.equal(piece.advantage_NT[:, :t], b.advantage_NT)
        assert torch.equal(piece.reward.tokens_NT[:, :t], b.reward.tokens_NT)
        assert torch.equal(piece.reward.parts["a"], b.reward.parts["a"])
        assert torch.equal(piece.reward.metrics["m"], b.reward.metrics["m"])
        assert piece.columns["pairs"].texts == b.columns["pairs"].texts
        assert not piece.advantage_NT[:, t:].any()
        assert not piece.rollout.mask_NT[:, t:].any()
        start += len(b)
    total = sum(float(b.reward.total_N.sum()) for b in made) / len(joined)
    assert float(joined.mean_over_responses(joined.reward.total_N)) == pytest.approx(total, rel=1e-12)


def test_outputs_say_what_was_not_asked_for() -> None:
    now = Outputs(logprobs_NT=torch.zeros(3, 2))
    assert "logprobs_NT" in now
    assert now.take(torch.tensor([0])).logprobs_NT.shape == (1, 2)
    with pytest.raises(AttributeError, match="declares `entropy` in its `needs`"):
        _ = now.entropy_NT


def test_nothing_left_is_still_a_batch() -> None:
    step = batch(0, [2, 3])
    none = step.take(torch.zeros(len(step), dtype=torch.bool))
    assert len(none) == len(none.rollout.examples) == 0
    rows_GK, real_GK = none.rollout.groups()
    assert len(rows_GK) == len(real_GK) == 0
    assert float(none.mean_over_tokens(none.advantage_NT)) == 0
    assert float(none.mean_over_groups(torch.zeros(0))) == 0
    assert none.rollout.length_N.shape == none.rollout.cost_N.shape == (0,)
    assert float(none.as_step().mean_over_responses(torch.zeros(0))) == 0
