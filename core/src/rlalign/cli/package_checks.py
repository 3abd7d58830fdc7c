"""What `rlalign doctor` looks at of what is installed. torch and plugins are imported by processes of their own."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import Any

from rlalign.cli.finding import Finding, note, ok, wrong
from rlalign.data.limits import in_words

PATIENCE = 300.0
"""Seconds for a process that imports: a busy machine, a cold disk."""
_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/kfd"))
"""There where a GPU has a driver, of NVIDIA or AMD."""

_PROBE = """
import json
try:
    import torch
    cuda, why = torch.cuda, ""
    try:
        usable = cuda.is_available()
        usable or not torch.backends.cuda.is_built() or cuda.init()
    except Exception as error:
        usable, why = False, str(error).partition("\\n")[0]
    devices = []
    for i in range(cuda.device_count() if usable else 0):
        about = cuda.get_device_properties(i)
        free, total = cuda.mem_get_info(i)
        devices.append({"name": about.name, "capability": [about.major, about.minor], "free": free, "total": total})
    found = {
        "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "why": why,
        "devices": devices, "built_for": cuda.get_arch_list(), "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "backends": [b for b in ("gloo", "nccl") if torch.distributed.is_available()
                     and getattr(torch.distributed, f"is_{b}_available")()],
    }
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""


def _ask(*arguments: str) -> tuple[str, str]:
    """What another Python prints, and how it went wrong if it did."""
    command = [sys.executable, "-P", *arguments]  # nothing from the current folder is imported
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"was not done after {PATIENCE:g} s"
    if done.returncode < 0:
        return done.stdout, f"ended its process by {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return done.stdout, (said[0] if said else f"ended with {done.returncode}") if done.returncode else ""


# -- Python and torch -----------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    """Whether this Python is one that the core is tested with."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = f"{platform.python_version()} ({sys.executable})"
    classes = distribution("rlalign").metadata.get_all("Classifier") or []
    tested = [line.rpartition(" ")[2] for line in classes if re.search(r":: Python :: 3\.\d+$", line)]
    if mine in tested or not tested:
        yield ok("python", said)
    else:
        yield note("python", f"{said}: tested are {', '.join(tested)}", f"python{tested[-1]} -m venv .venv")


def probe_torch() -> Mapping[str, Any]:
    """What torch says of itself: all of `_PROBE`, or `error`."""
    printed, fault = _ask("-c", _PROBE)
    try:
        found = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"its import {fault or 'printed nothing'}"}
    return found if isinstance(found, Mapping) else {"error": fault}


def torch_finding(found: Mapping[str, Any]) -> Iterator[Finding]:
    if error := found.get("error"):
        yield wrong(
            "torch", f"cannot be imported: {error}", "install it again into this environment, and no other"
        )
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "CPU"
    said = f"{found['version']}, {build} build, {found['vectors']}"
    gpu = next((driver for driver in _DRIVERS if driver.exists()), None)
    if gpu and build == "CPU":
        yield wrong("torch", f"{said}; a GPU has its driver here ({gpu})", "install torch's build for it")
    else:
        yield ok("torch", said)


def devices(found: Mapping[str, Any]) -> Iterator[Finding]:
    """The GPUs, and why there are none."""
    if "error" in found:
        return
    if not found["devices"]:
        why, driver = found["why"], _driver()
        if driver and (found["cuda"] or found["hip"]):
            said = f"none is usable: {why or 'torch sees none'}; driver: {driver}"
            yield wrong(
                "gpu", said, "a newer driver, or a torch for this one; is CUDA_VISIBLE_DEVICES empty?"
            )
        else:
            yield ok("gpu", "none: runs are on the CPU")
        return
    for i, gpu in enumerate(found["devices"]):
        major, minor = gpu["capability"]
        memory = f"{in_words(gpu['free'])} free of {in_words(gpu['total'])}"
        said = f"{i}: {gpu['name']}, capability {major}.{minor}, {memory}"
        said += f", driver: {driver}" if i == 0 and (driver := _driver()) else ""
        if found["cuda"] and not _built_for(major, minor, found["built_for"]):
            names = ", ".join(found["built_for"])
            yield wrong(
                "gpu", f"{said}; this torch is built for {names}", "install a torch that is built for it"
            )
        elif gpu["free"] < gpu["total"] / 2:
            yield note(
                "gpu", f"{said}: others use it", "wait for them (nvidia-smi), or CUDA_VISIBLE_DEVICES=NUMBER"
            )
        else:
            yield ok("gpu", said)


def _built_for(major: int, minor: int, names: Sequence[str]) -> bool:
    """Binary code runs on later devices of its generation, intermediate code on all later ones."""
    for name in names:
        form, _, number = name.partition("_")
        digits = re.match(r"\d+", number)
        least = divmod(int(digits[0]), 10) if digits else (99, 0)
        if (major, minor) >= least and (form == "compute" or major == least[0]):
            return True
    return False


def _driver() -> str:
    """`580.65.06`, or that there is one."""
    if not _DRIVERS[0].exists():
        return "amdgpu" if _DRIVERS[1].exists() else ""
    numbers = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVERS[0].read_text(errors="replace"))
    return numbers[0] if numbers else "NVIDIA's"


# -- versions, plugins ----------------------------------------------------------------------------------------


def ours() -> dict[str, Distribution]:
    """rlalign, and each distribution that offers components, commands or clusters; the first on the path of each."""
    found: dict[str, Distribution] = {}
    for one in distributions():
        name = str(one.metadata["Name"] or "")
        groups = {point.group.partition(".")[0] for point in one.entry_points}
        if name and ("rlalign" in groups or name == "rlalign"):
            found.setdefault(name, one)
    return dict(sorted(found.items()))


def versions() -> Iterator[Finding]:
    """What our packages require, and the versions that they were tested with (their extra `tested`)."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    untested: dict[str, str] = {}
    right: dict[str, str] = {}
    broken = False
    for owner, dist in ours().items():
        for line in dist.requires or []:
            asked = Requirement(line)
            tested = asked.marker is not None and "tested" in str(asked.marker)
            if asked.marker and not asked.marker.evaluate({"extra": "tested" if tested else ""}):
                continue
            name = canonicalize_name(asked.name)
            try:
                there = version(name)
            except PackageNotFoundError:
                if not tested:
                    broken = True
                    said = f"{owner} {dist.version} requires {asked}, which is not installed"
                    yield wrong("versions", said, f"install {asked}, or remove {owner}")
                continue
            if asked.specifier.contains(there, prereleases=True):
                right[name] = there
            elif tested:
                untested[name] = f"{name} {there} (tested: {asked.specifier})"
            else:
                broken = True
                newer = f"install another {name}, or a version of {owner} that goes with it"
                yield wrong(
                    "versions", f"{owner} {dist.version} requires {asked}; installed is {there}", newer
                )
    if untested:
        yield note(
            "versions", f"within the bounds, and not tested: {', '.join(untested.values())}", _AS_TESTED
        )
    if not broken:
        first = [f"{name} {right[name]}" for name in ("transformers", "numpy", "pydantic") if name in right]
        said = ", ".join([f"rlalign {version('rlalign')}", *first])
        yield ok("versions", f"{said}; all that {len(ours())} packages require is there")


_AS_TESTED = "nothing, while all goes well; else install with `-c constraints.txt` of the repository"


def plugins(with_torch: bool) -> Iterator[Finding]:
    """What `rlalign plugins --check` finds, told once a package."""
    if not with_torch:
        yield note(
            "plugins", "not looked at, since all of them need torch", "see torch above; then ask again"
        )
        return
    printed, fault = _ask("-m", "rlalign", "plugins", "--check", "--json")
    try:
        rows = json.loads(printed)
    except ValueError:
        said = f"importing all of them {fault or 'printed what is no JSON'}"
        yield wrong("plugins", said, "`rlalign plugins --check`; remove one package after the other")
        return
    owners, faults = defaultdict(set), defaultdict(list)
    for row in rows:
        owners[row["name"]].add(row["distribution"])
    for row in rows:
        if "error" in row:
            faults[row["name"] if len(owners[row["name"]]) > 1 else row["distribution"]].append(row)
    for about, several in faults.items():
        first, others = several[0], [row["name"] for row in several[1:]]
        if len(owners[about]) > 1:
            yield wrong("plugins", first["error"], "say it so in pipelines, or remove one of the packages")
        else:
            more = f"; and so {', '.join(f'`{name}`' for name in others)}" if others else ""
            yield wrong("plugins", f"{first['error']}{more}", f"install {about} again, or remove it")
    if not faults:
        yield ok("plugins", f"{len(rows)} components of {len({r['distribution'] for r in rows})} packages")


# -- several processes ----------------------------------------------------------------------------------------


def several_processes(torch: Mapping[str, Any]) -> Iterator[Finding]:
    """torchrun, and Ray with the plugin that knows it."""
    said = []
    if "error" not in torch:
        here = shutil.which(
            "torchrun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        backends = ", ".join(torch["backends"]) or "no backend"
        said.append(f"{'torchrun' if here else 'python -m torch.distributed.run'} with {backends}")
        if torch["cuda"] and len(torch["devices"]) > 1 and "nccl" not in torch["backends"]:
            yield wrong("processes", "GPUs, and a torch without nccl", "install torch's usual build for CUDA")
    try:
        said.append(f"Ray {version('ray')}")
    except PackageNotFoundError:
        said.append("no Ray (only `--on ray` needs it)")
    yield ok("processes", ", ".join(said))
