"""Machines by name, and by numbers."""

from __future__ import annotations

import pytest

from rlalign import ConfigError
from rlalign.costs.machines import DEVICES, GIB, parse


def test_by_name() -> None:
    eight = parse("8xH100")
    assert (eight.count, eight.nodes, eight.device) == (8, 1, DEVICES["h100"])
    assert str(eight) == "8 × H100"
    assert str(parse("h200")) == "H200"
    assert parse("64 x A100").device.name == "A100-80"
    assert parse("64xA100").nodes == 8
    assert parse("2xA100-40").device.memory == pytest.approx(39.4 * GIB)


def test_by_numbers() -> None:
    """What is not said: float32 as on an H100, PCIe between devices."""
    device = parse("8x80GB,990TF,3.35TB/s").device
    assert (device.memory, device.half, device.bandwidth) == (80e9, 990e12, 3.35e12)
    assert (device.single, device.link) == (66e12, 32e9)
    more = parse("24 GiB, 165TF, 1TB/s, 82TF32, 64GB/s").device
    assert (more.memory, more.single, more.link) == (24 * GIB, 82e12, 64e9)


@pytest.mark.parametrize(
    "said", ("8xH10", "", "8x", "0xH100", "80GB", "80GB,990TF", "80GB,990TF,0TB/s", "x", "8xH100,2")
)
def test_what_is_none_is_told_with_those_that_are(said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(said)
    for part in (f"--machine {said}:", "A100-80", "B200", "here or cpu", "8x80GB,990TF,3.35TB/s"):
        assert part in str(error.value)
