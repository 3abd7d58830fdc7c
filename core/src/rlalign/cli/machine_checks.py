"""What `rlalign doctor` looks at of the machine: cores and threads, disks, limits, the hub, variables."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rlalign.cli.finding import Finding, note, ok, wrong
from rlalign.config.words import did_you_mean
from rlalign.data.limits import in_words
from rlalign.errors import RLAlignError
from rlalign.world.joining import WAIT, longest

_GIB = 2**30
LITTLE, SCARCE = _GIB, 10 * _GIB
"""Free bytes of a disk: with less than the first, a checkpoint of a small language model does not fit."""
SHARED = 2**28
FILES = 1024
SECONDS = 5.0
"""How long the hub may take to answer."""
SECRET = "RLALIGN_SERVE_TOKEN"
VARIABLES = {
    "RLALIGN_CACHE": "where indexes of data lie",
    WAIT: "seconds that processes wait for one that stands still",
    SECRET: "the token of served rewards",
}


# -- cores and threads ----------------------------------------------------------------------------------------


def cores(groups: Path = Path("/sys/fs/cgroup")) -> tuple[float, str]:
    """The processors that this process may use at once, and what says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    with suppress(OSError, ValueError):
        most, period = (groups / "cpu.max").read_text().split()
        quotas.append(int(most) / int(period))
    with suppress(OSError, ValueError):
        most, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        quotas += [int(most) / int(period)] if int(most) > 0 else []
    least = min(quotas, default=float(allowed))
    if least < allowed:
        return least, f"{least:g} cores by its container's quota, of {allowed} that it sees"
    return float(allowed), f"{allowed} core{'s' if allowed > 1 else ''}"


def threads(torch_threads: int | None) -> Iterator[Finding]:
    """OpenMP's threads against the cores there are."""
    count, said = cores()
    fitting = max(1, int(count))
    setting, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY", "passive")
    for_each = "export OMP_NUM_THREADS={}; 1 is best beside other work, or for many runs at once"
    asked = None
    if setting is not None:
        first = setting.partition(",")[0].strip()
        if not (first.isascii() and first.isdigit() and int(first) > 0):
            yield wrong(
                "threads", f"OMP_NUM_THREADS={setting!r} is no number of threads", for_each.format(fitting)
            )
        else:
            asked = int(first)
    used = max([n for n in (asked, torch_threads) if n is not None], default=None)
    if used is not None and used > count:
        yield wrong(
            "threads",
            f"{used} threads on {said}: they wait for each other, and an operation can take 100 times as long",
            for_each.format(fitting),
        )
    elif used is not None:
        yield ok("threads", f"{used} on {said}")
    elif setting is None:
        yield ok("threads", said)
    if policy.lower() != "passive":
        yield wrong(
            "threads",
            f"OMP_WAIT_POLICY={policy}: threads that wait spin. On two cores that others used, too, a small product of "
            "matrices took 96 ms with two of them, 9 ms with two that sleep, 1 ms with one thread",
            "export OMP_WAIT_POLICY=passive, or unset it: the command rlalign sets it then",
        )
    load = os.getloadavg()[0]
    if load > count + 0.5 and (used or fitting) > 1:
        yield note(
            "threads",
            f"a load of {load:.1f} on {said}: others compute here",
            "export OMP_NUM_THREADS=1 while they do",
        )


# -- disks and limits -----------------------------------------------------------------------------------------


def disk(runs: Path) -> Iterator[Finding]:
    """The folders that are written to."""
    yield _folder("runs", runs, needed=True, other="--runs FOLDER (of `rlalign run`, too)")
    yield _folder("hub cache", hub_cache(), needed=not _offline(), other="HF_HOME=FOLDER")
    if said := os.environ.get("RLALIGN_CACHE"):
        yield _folder("data cache", Path(said), needed=True, other="RLALIGN_CACHE=FOLDER")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    if said := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(said).expanduser()
    home = os.environ.get("HF_HOME")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home or f"{shared}/huggingface").expanduser() / "hub"


def _folder(about: str, folder: Path, *, needed: bool, other: str) -> Finding:
    """Whether a file can be written there, and how much is free."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    complain = wrong if needed else note
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0" * 2**16)
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        said = f"{folder}: nothing can be written to {there}: {error.strerror or error}"
        return complain(about, said, f"free some space, make it writable, or choose another: {other}")
    if free < LITTLE:
        said = f"{folder}: {in_words(free)} free; a checkpoint of a language model takes more"
        return complain(about, said, f"free some space (`rlalign clean RUN`), or choose another: {other}")
    if free < SCARCE:
        return note(
            about, f"{folder}: {in_words(free)} free", f"large models need more; another folder: {other}"
        )
    return ok(about, f"{folder}: {in_words(free)} free")


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Through it processes hand each other tensors."""
    start = "start the container with more, say --shm-size=8g (or --ipc=host)"
    if not folder.is_dir():
        yield note("/dev/shm", "is not there: processes of one machine cannot hand each other tensors", start)
        return
    use = shutil.disk_usage(folder)
    said = f"{in_words(use.free)} free of {in_words(use.total)}"
    if use.free < SHARED:
        yield note("/dev/shm", f"{said}: several processes on GPUs, or a server of vLLM, need more", start)
    else:
        yield ok("/dev/shm", said)


def open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    if unlimited or soft >= FILES:
        yield ok("open files", "no limit" if unlimited else f"up to {soft}")
    else:
        most = FILES if hard == resource.RLIM_INFINITY else min(4 * FILES, hard)
        yield note(
            "open files", f"up to {soft} in a process; data in many files needs more", f"ulimit -n {most}"
        )


# -- the hub, and variables -----------------------------------------------------------------------------------


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def hub(online: bool) -> Iterator[Finding]:
    """Whether models and data can be fetched."""
    if _offline():
        said = "HF_HUB_OFFLINE is set: models and data are what the cache and your folders hold"
        yield note("hub", said, "unset HF_HUB_OFFLINE to fetch more") if online else ok("hub", said)
        return
    if not online:
        yield ok("hub", "not asked; --online does")
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        asked = urllib.request.Request(f"{address}/api/models?limit=1", headers={"User-Agent": "rlalign"})
        urllib.request.urlopen(asked, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        yield note(
            "hub", f"{address} answers with {error.code} {error.reason}", "look at HF_ENDPOINT, or try later"
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        yield wrong(
            "hub",
            f"{address} cannot be reached in {SECONDS:g} s: {why}",
            "set HTTPS_PROXY or HF_ENDPOINT; or HF_HUB_OFFLINE=1 and models in folders (`path: FOLDER`)",
        )
    else:
        yield ok("hub", f"{address} answers")


def variables() -> Iterator[Finding]:
    """The project's own, and those of torchrun where nobody has started a torchrun."""
    for name, value in sorted(os.environ.items()):
        if name.startswith("RLALIGN_"):
            if name not in VARIABLES:
                hint = did_you_mean(name, list(VARIABLES)) or f"; there are {', '.join(VARIABLES)}"
                yield note("variables", f"{name}: nothing reads it{hint}", f"unset {name}")
            elif name == WAIT and (fault := _waiting()):
                yield wrong("variables", fault, f"export {name}=600, or unset it")
            else:
                said = "is set" if name == SECRET else f"= {value}"
                yield ok("variables", f"{name} {said}: {VARIABLES[name]}")
    if left := [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR") if name in os.environ]:
        yield note(
            "variables",
            f"{', '.join(left)}: set as torchrun does, so a run would wait for other processes",
            f"unset {' '.join(left)}, unless a launcher set them on purpose",
        )


def _waiting() -> str:
    """What is wrong with `RLALIGN_WAIT`."""
    try:
        longest()
    except RLAlignError as error:
        return str(error)
    return ""
