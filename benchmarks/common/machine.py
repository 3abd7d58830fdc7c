"""What a figure was measured on and with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """The machine, how busy it is, and the versions: of torch, transformers, rlalign, and these packages."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _of("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": int(_of("/proc/meminfo", "MemTotal").removesuffix(" kB") or 0) * 1024 / 1e9 or None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "rlalign", *packages)
        },
        "commit": _commit(),
    }


def _of(path: str, key: str) -> str:
    """What a line `key: …` of one of the kernel's files says; nothing where there is no such file."""
    text = Path(path).read_text() if Path(path).exists() else ""
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _commit() -> str:
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
