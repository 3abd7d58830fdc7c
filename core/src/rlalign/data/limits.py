"""How much is too much: limits that no real use meets, so that no file hangs a run or fills the memory."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from pathlib import Path

from rlalign.errors import ConfigError

# -- a pipeline file, an override, or a value on the command line ----------------------------------------------

PIPELINE_BYTES = 2**21
"""The longest pipeline file."""
PIPELINE_TEXT = 2**20
"""Characters of all keys and values, aliases, merges and interpolations written out."""
PIPELINE_NODES = 50_000
"""Keys, values, lists and mappings, aliases, merges and interpolations written out."""
PIPELINE_DEPTH = 50
"""Lists and mappings within each other."""
KEY_CHARACTERS = 1_000
"""The longest key."""
NUMBER_DIGITS = 100
"""Characters of the longest number."""
PHASES = 1_000
"""Phases of a pipeline."""
ITEMS = 1_000
"""Components in one list of a pipeline."""
PROBLEMS = 1_000
"""Faults that are looked for at once."""
INTERPOLATION_TEXT = 2**28
"""Characters of all text on the way to what every `${…}` of a file stands for."""
INTERPOLATION_STEPS = 300_000
"""Function calls that one text with `${…}` may take."""
INTERPOLATIONS_STEPS = 5_000_000
"""Function calls that all of a file may take."""

# -- numbers in a pipeline -------------------------------------------------------------------------------------

COUNT = 10**12
"""The largest of all numbers that count something."""
PROMPTS = 10**6
"""Prompts per iteration."""
SAMPLES = 10**5
"""Responses per prompt."""
NEW_TOKENS = 10**7
"""Tokens of a response."""
RESPONSES = 10**7
"""Responses per iteration: prompts × samples."""

# -- data ------------------------------------------------------------------------------------------------------

TEXT_CHARACTERS = 2**22
"""Of a prompt or a logged response that a tokenizer reads."""
CONFIG_BYTES = 2**24
"""Of a model's config.json."""
FRONT_MATTER_BYTES = 2**16
"""Of a base model's README.md, from its start, that its name and licence are looked for in."""
LICENCE_BYTES = 2**20
"""The longest licence of a base model that goes with what is made of it."""
LICENCE_FILES = 10
"""Files of a licence that go with it."""
LINE_BYTES = 2**28
"""Of a line in a run's logs."""

# -- rewards in processes of their own --------------------------------------------------------------------------

FRAME_BYTES = 2**28
"""Of what a served reward is asked, and of its answer."""
EPISODE_BYTES = 2**22
"""Of what an isolated episode says in one turn."""
OUTPUT_BYTES = 2**20
"""Of what it prints that is kept; of more the latest."""


def require_file(path: Path, most: float = math.inf) -> None:
    """Refuse what is no file, or a larger one, before it is read. One that is not there passes."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no file but a folder, a pipe or a device; put the file there")
    if path.exists() and path.stat().st_size > most:
        size, allowed = in_words(path.stat().st_size), in_words(most)
        raise ConfigError(
            f"{path}: holds {size}, more than {allowed}: it is damaged, or not what its name says"
        )


def machine_memory() -> int:
    """Bytes of memory that this process may use at most."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(most for most, _ in _groups())])


def free_memory() -> int:
    """Bytes of memory that this process may still take, without pushing anything out that is in use."""
    free = machine_memory() // 2  # where nothing says how much
    with suppress(OSError, ValueError, IndexError):
        said = Path("/proc/meminfo").read_text()
        free = int(said.partition("MemAvailable:")[2].split()[0]) * 2**10
    return max(0, min([free, *(most - used for most, used in _groups())]))


def _groups(
    root: Path = Path("/sys/fs/cgroup"), member: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """(limit, use) in bytes of every group of processes that this one is in and that has a limit.

    Use is without copies of files, which are given up when memory runs short.
    """
    folders = [root]
    with suppress(OSError):
        for line in member.read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if not kinds or "memory" in kinds.split(","):
                below = (root / "memory" if kinds else root) / place.lstrip("/")
                folders += [below, *(folder for folder in below.parents if folder.is_relative_to(root))]
    found = []
    for folder in dict.fromkeys(folders):
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with suppress(OSError, ValueError):  # no such group, or `max`
                limit, use = (int((folder / name).read_text()) for name in (most, used))
                stat = (folder / "memory.stat").read_text()
                files = re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
                found.append((limit, use - max(map(int, files), default=0)))
    return found


def require_memory(what: str, *sizes: int, remedy: str) -> None:
    """Refuse what needs more memory than the machine has, before any is taken; `sizes` are factors, in bytes."""
    needed, there = math.prod(sizes), machine_memory()
    if needed > there:
        raise ConfigError(
            f"{what} needs {in_words(needed)} of memory, this machine has {in_words(there)}; {remedy}"
        )


def in_bytes(said: str) -> int:
    """`4 GiB` as a number. Raises ValueError."""
    number, _, unit = said.strip().partition(" ")
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    if unit.strip() not in units or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", number):
        raise ValueError(f"expected bytes, or a number with {', '.join(units)}, such as `4 GiB`")
    return int(float(number) * units[unit.strip()])


def in_words(size: float) -> str:
    """`3.2 GiB`"""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} EiB"
