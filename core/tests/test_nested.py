"""Nested values come back from JSON and from bytes as they were, to the bit."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlalign.nested import of_bytes, to_bytes

LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text() | st.binary()
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.booleans(), st.none())
NESTED = st.recursive(
    LEAVES,
    lambda x: (
        st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple) | st.dictionaries(KEYS, x, max_size=3)
    ),
)


@given(NESTED)
def test_values_arrive_as_they_were(value: Any) -> None:
    assert repr(of_bytes(to_bytes(value))) == repr(value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (3, 5)])
def test_tensors_arrive_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    odd, back, again = of_bytes(to_bytes({"odd": b"abc", "x": x, "t": [x.mT if x.ndim > 1 else x]})).values()
    assert odd == b"abc" and back.dtype == dtype and back.equal(x) and back.shape == x.shape
    assert again[0].equal(x.mT if x.ndim > 1 else x)


def test_numbers_of_numpy_arrive_as_numbers() -> None:
    value = {
        "x": numpy.float32(1.5),
        "n": numpy.int64(3),
        "yes": numpy.bool_(True),
        "none": numpy.float32("inf"),
    }
    assert repr(of_bytes(to_bytes(value))) == repr({"x": 1.5, "n": 3, "yes": True, "none": math.inf})


def test_who_asks_may_name_parts_of_its_own() -> None:
    def own(part: Any, path: tuple[object, ...]) -> tuple[str, Any] | None:
        return ("complex", (part.real, part.imag)) if isinstance(part, complex) else None

    data = to_bytes({"x": [1j, {"complex": "float"}]}, own)
    again = of_bytes(data, {"complex": lambda said: complex(*said)})
    assert again == {"x": [1j, {"complex": "float"}]}
    with pytest.raises(TypeError, match="complex is not JSON serializable"):
        to_bytes({"x": 1j})
