"""Copies of states: equal, of their own, in memory that is used again."""

from typing import Any

import pytest
import torch

from rlalign.data.limits import free_memory, machine_memory
from rlalign.records.snapshot import Snapshot
from rlalign.records.tensors import save_tensors, split_state


def state(value: float) -> dict[str, Any]:
    tied = torch.full((3, 4), value)
    return {
        "models": {"policy": (3, {"embed": tied, "head": tied, "turned": tied.T, "none": torch.zeros(0, 2)})},
        "optimiser": {0: {"step": torch.tensor(value), "seen": [1, (2.0, torch.arange(3))]}},
        "loop": {"nothing": None, "words": ["a", {"b": True}]},
    }


def same(one: Any, other: Any) -> bool:
    (tensors, tree), (tensors_, tree_) = split_state(one), split_state(other)
    return tree == tree_ and all(torch.equal(x, tensors_[name]) for name, x in tensors.items())


def places(taken: Any) -> dict[str, int]:
    return {name: x.data_ptr() for name, x in split_state(taken)[0].items() if x.numel()}


def test_a_copy_stays_what_it_was():
    given = state(1.0)
    taken = Snapshot().take(given)
    assert same(taken, state(1.0))
    given["models"]["policy"][1]["embed"].add_(1)
    given["optimiser"][0]["seen"].append(3)
    given["loop"]["words"][1]["b"] = False
    assert same(taken, state(1.0))


def test_its_memory_is_used_again_and_not_kept_for_what_is_gone():
    snapshot = Snapshot()
    first = places(snapshot.take(state(1.0)))
    second = snapshot.take(state(2.0))
    assert same(second, state(2.0)) and places(second) == first
    assert snapshot.fits(state(3.0), free=0)
    snapshot.take({"loop": torch.ones(5)})
    assert not snapshot.fits(state(3.0), free=0) and snapshot.fits(state(3.0), free=10**6)
    assert snapshot.fits({"loop": torch.ones(5)}, free=0) and not snapshot.fits(
        torch.ones(5).double(), free=79
    )


def test_one_tensor_of_two_names_is_one_only_while_it_is(tmp_path):
    """Weights that are tied, and then are not: they must not share the memory of their copies."""
    snapshot = Snapshot()
    taken = snapshot.take(state(1.0))["models"]["policy"][1]
    assert taken["embed"] is taken["head"]
    save_tensors(tmp_path / "x", taken)
    given = state(2.0)
    given["models"]["policy"][1]["head"] = torch.full((3, 4), 5.0)
    taken = snapshot.take(given)["models"]["policy"][1]
    assert (taken["embed"] == 2).all() and (taken["head"] == 5).all()


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        object(),
        {1},
    ],
)
def test_what_no_checkpoint_can_hold_is_left_to_whoever_writes_it(odd):
    assert Snapshot().take({"a": odd})["a"] is odd


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_goes_on_while_its_tensors_are_copied():
    snapshot, x = Snapshot(), torch.zeros(10**7, device="cuda")
    taken = snapshot.take({"x": x})["x"]
    x.add_(1)
    snapshot.wait()
    assert taken.device.type == "cpu" and taken.is_pinned() and not taken.any()


def test_free_memory_is_some_of_the_machines():
    assert 0 < free_memory() < machine_memory()
