"""A tool that runs Python in a process of its own, with little time, memory and output.

It keeps a run from being slowed down, filled up or crashed by a model's mistakes. It is no prison: the code has the
rights of whoever runs it, reads their files and the run's variables in /proc, reaches the network, and what it starts
in a session of its own outlives it. Who needs more puts the whole run into a container.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

from pydantic import Field

from rlalign import Options
from rlalign.data.settings import Bytes

_BOOT = """
import os, resource, signal, sys, traceback
memory, seconds, output, parent = map(int, sys.argv[1:])
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    os._exit(1)
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.argv = [""]
sys.excepthook = lambda kind, error, trace: traceback.print_exception(kind, error, trace.tb_next)
exec(compile(sys.stdin.read(), "<code>", "exec"), {"__name__": "__main__"})
"""


class Sandbox(Options):
    """Limits of `python`."""

    seconds: float = Field(5.0, gt=0, le=3600, description="how long code may run")
    memory: Bytes = Field(2**28, description="what it may hold, in bytes or as `256 MiB`")
    output: int = Field(
        2**16, gt=0, description="bytes that it may print, and that each file it writes may have"
    )


def python_tool(limits: Sandbox) -> Callable[..., str]:
    """The function `python`."""

    def python(code: str) -> str:
        """Run Python code. What it prints comes back, and nothing else: print the result."""
        return run(code, limits)

    python.__annotations__ = {"code": str, "return": str}  # whoever reads them knows no `str` of this module
    return python


def run(code: str, limits: Sandbox) -> str:
    """What code prints. RuntimeError with that and the reason where it does not come to its end."""
    numbers = (limits.memory, int(limits.seconds) + 1, limits.output, os.getpid())
    with tempfile.TemporaryDirectory(prefix="rlalign-python-") as home, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={"HOME": home, "PATH": os.defpath, "OMP_NUM_THREADS": "1"},  # no variables of this process
            start_new_session=True,
        )
        late = False
        try:
            process.communicate(code.encode("utf-8", "replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what it started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        said = printed.read(limits.output).decode("utf-8", "replace").strip()
    if late:
        raise RuntimeError(f"{said}\nstopped after {limits.seconds:g} seconds".strip())
    if process.returncode:
        killed = f"killed by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else ""
        raise RuntimeError("\n".join(filter(None, (said, killed))) or f"exit code {process.returncode}")
    return said
