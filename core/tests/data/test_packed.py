"""A rollout is the same, to the bit, after it was bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign.data.packed import pack, unpack
from rlalign.data.rollout import Rollout
from rlalign.testing import Bench


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and bool(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))
        )
    return bool(a == b)


def differences(one: Rollout, other: Rollout) -> list[str]:
    """Of all that a rollout holds."""
    fields = [
        n for n in vars(one) if n not in ("examples", "inputs", "allowed", "columns") and n in vars(other)
    ]
    found = [name for name in fields if not same(getattr(one, name), getattr(other, name))]
    found += [
        f"input {g}" for g, (x, y) in enumerate(zip(one.inputs, other.inputs, strict=True)) if not same(x, y)
    ]
    if set(one.columns) != set(other.columns):
        found.append("columns")
    found += [name for name, x in one.columns.items() if not same(x, other.columns.get(name))]
    for x, y in zip(one.examples, other.examples, strict=True):
        mine, theirs = ({**vars(e), "row": None, "prompt": list(e.prompt)} for e in (x, y))
        found += [f"example {x.id}"] if mine != theirs else []
    if (one.allowed is None) != (other.allowed is None):
        found.append("allowed")
    elif one.allowed is not None and other.allowed is not None:
        masks = (r.allowed.mask(*r.chosen) for r in (one, other) if r.allowed is not None)
        found += [] if same(*masks) else ["allowed"]
    return found


def sampled(folder: Path, **generation: Any) -> Rollout:
    say = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 16, "scale": 2.0}},
        "rewards": ["token-sum"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 3, "max_new_tokens": 7, **generation},
        "train": {"iterations": 2, "prompts": 5},
    }
    return Bench(folder, say).rollout()[0]


@pytest.mark.parametrize("generation", [{}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.5}])
def test_nothing_is_lost(generation: dict[str, Any], tmp_path: Path) -> None:
    rollout = sampled(tmp_path, **generation)
    assert (rollout.allowed is None) == (not {"top_k", "top_p"} & generation.keys())
    rollout = rollout.with_columns(
        score=torch.arange(len(rollout)) / 3.0, words=tuple("é\n" * i for i in range(len(rollout)))
    )
    assert differences(rollout, unpack(pack(rollout))) == []
    some = rollout.take(torch.tensor([4, 2, 9]))
    assert differences(some, unpack(pack(some))) == []


def test_examples_hold_what_they_held(tmp_path: Path) -> None:
    """JSON alone would make lists of tuples, and texts of keys."""
    meta = {"answers": ("a", ["b", (1, None)]), 3: {True: 0.1, None: {}}, "dict": {"tuple": []}}
    rollout = sampled(tmp_path)
    given = replace(rollout.examples[0], meta=meta, prompt=({"role": "user", "content": "é"},))
    again = unpack(pack(replace(rollout, examples=(given, *rollout.examples[1:])))).examples[0]
    assert again.meta == meta and again.prompt == given.prompt
    column = tuple((i, {"of": [i]}) for i in range(len(rollout)))
    assert unpack(pack(rollout.with_columns(pairs=column))).columns["pairs"] == column


def test_the_comparison_sees_what_changes(tmp_path: Path) -> None:
    """Each of these differs from the one before in one thing."""
    rollout = sampled(tmp_path, top_k=3)
    other = unpack(pack(rollout.take(torch.arange(len(rollout)).flip(0))))
    assert set(differences(rollout, other)) >= {"actions_NT", "logprobs_NT", "texts", "allowed"}


def test_what_json_cannot_say_is_refused(tmp_path: Path) -> None:
    rollout = sampled(tmp_path)
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        pack(rollout.with_columns(odd=({1},) * len(rollout)))


def test_an_empty_rollout(tmp_path: Path) -> None:
    rollout = sampled(tmp_path)
    none = rollout.take(torch.zeros(len(rollout), dtype=torch.bool))
    assert len(unpack(pack(none))) == 0
