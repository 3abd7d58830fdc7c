"""Machines as numbers: a small table of devices, and how a person writes one that is not in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rlalign.errors import ConfigError

GIB = 2**30
TERA = 1e12
NODE = 8
"""Devices of one node."""


@dataclass(frozen=True)
class Device:
    """One device. Rates are those of its data sheet, without sparsity; a CPU's are measured."""

    name: str
    memory: float
    """Bytes that programs see."""
    half: float
    """Operations a second in bfloat16."""
    single: float
    """Operations a second in float32."""
    bandwidth: float
    """Bytes a second from and to its memory."""
    link: float
    """Bytes a second to its neighbours in a node, in one direction."""
    cpu: bool = False
    launch: float = 0.0
    """Seconds that a layer costs beside its arithmetic, each time it is called; of a CPU, measured."""

    def rate(self, dtype: str) -> float:
        """Operations a second."""
        return self.half if dtype == "bfloat16" else self.single


@dataclass(frozen=True)
class Machine:
    """So many devices of a kind, in nodes."""

    device: Device
    count: int = 1

    @property
    def nodes(self) -> int:
        """How many nodes of eight they are."""
        return -(-self.count // NODE)

    def __str__(self) -> str:
        return self.device.name if self.count == 1 else f"{self.count} × {self.device.name}"

    def with_count(self, count: int) -> Machine:
        """The same devices, more of them or fewer."""
        return replace(self, count=count)


def _gpu(name: str, gib: float, half: float, single: float, terabytes: float, gigabytes: float) -> Device:
    return Device(name, gib * GIB, half * TERA, single * TERA, terabytes * TERA, gigabytes * 1e9)


DEVICES = {
    device.name.lower(): device
    for device in (
        _gpu("A100-40", 39.4, 312, 19.5, 1.555, 300),
        _gpu("A100-80", 79.1, 312, 19.5, 2.039, 300),
        _gpu("H100", 79.1, 989, 67, 3.35, 450),
        _gpu("H200", 139.7, 989, 67, 4.8, 450),
        _gpu("B200", 178.0, 2250, 75, 7.7, 900),
        _gpu("L40S", 44.4, 362, 91.6, 0.864, 32),
    )
}
"""NVIDIA's data sheets of the SXM boards (of the L40S, PCIe); memory as programs see it."""
ALIASES = {"a100": "a100-80", "h100-80": "h100", "h100-sxm": "h100", "h200-141": "h200", "l40s-48": "l40s"}
_UNITS = {
    "GB": ("memory", 1e9),
    "GiB": ("memory", GIB),
    "TF": ("half", TERA),
    "TF32": ("single", TERA),
    "TB/s": ("bandwidth", TERA),
    "GB/s": ("link", 1e9),
}
HOW = "8xH100, or numbers: 8x80GB,990TF,3.35TB/s (memory, bfloat16 operations a second, memory bandwidth)"


def parse(said: str) -> Machine:
    """`8xH100`, `H200`, `8x80GB,990TF,3.35TB/s`; also `,67TF32` for float32 and `,450GB/s` between devices."""
    found = re.fullmatch(r"(?:([1-9][0-9]{0,5}) *[xX×*] *)?([^ ].*)", said.strip())
    count, what = found.groups() if found else (None, "")
    name = what.strip().lower().replace(" ", "-")
    device = DEVICES.get(ALIASES.get(name, name)) or _from_numbers(what)
    if device is None:
        known = ", ".join(device.name for device in DEVICES.values())
        raise ConfigError(
            f"--machine {said}: no machine that is known here; say {known}, here or cpu, as in {HOW}"
        )
    return Machine(device, int(count or 1))


def _from_numbers(what: str) -> Device | None:
    given: dict[str, float] = {}
    for part in what.split(","):
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([A-Za-z0-9/]+)", part.strip())
        if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
            return None
        key, times = _UNITS[found[2]]
        given[key] = float(found[1]) * times
    if not {"memory", "half", "bandwidth"} <= set(given):
        return None
    return Device(
        name=what.strip(),
        memory=given["memory"],
        half=given["half"],
        single=given.get("single", given["half"] / 15),  # as H100 and A100 have it
        bandwidth=given["bandwidth"],
        link=given.get("link", 32e9),
    )
