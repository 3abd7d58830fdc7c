"""`--processes N`: this process becomes torchrun, and N others run the pipeline; with `--on`, elsewhere."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from types import FrameType

from rlalign.errors import RLAlignError

SHUTDOWN_SECONDS = "600"
"""How long an iteration may still go on once a run was asked to stop; torchrun's own 30 would lose longer ones."""


class Ended(RLAlignError):
    """The processes have ended, and have said why."""

    told = True

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.exit_code = code


def of_each(arguments: Sequence[str]) -> list[str]:
    """What each of the processes is told of a command's arguments: it starts no others."""
    left, found = iter(arguments), []
    for one in left:
        if one in ("--processes", "--on"):
            next(left, None)
        elif not one.startswith(("--processes=", "--on=")):
            found.append(one)
    return found


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run `rlalign ARGUMENTS` in so many processes on this machine, and end as they do."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def pass_on(number: int, frame: FrameType | None) -> None:
        raise SignalException("asked to stop", signal.Signals(number))  # as torchrun does at SIGTERM

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS)
    signal.signal(signal.SIGUSR1, pass_on)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what went wrong is told below
    try:
        run.run(run.parse_args(["--standalone", "--nproc-per-node", str(count), "-m", "rlalign", *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise RLAlignError(
                f"rank {rank} of {count} was ended by {signal.Signals(-failure.exitcode).name}. The last checkpoint "
                "stands; go on from it with `rlalign run --resume`"
            ) from None
        raise Ended(failure.exitcode) from None
    except SignalException as error:
        raise Ended(128 + error.sigval) from None


def launch_on(where: str, count: int, arguments: Sequence[str], again: Sequence[str]) -> None:
    """Run `rlalign ARGUMENTS` in so many processes of a cluster, and end as they do.

    One that is started again has the arguments `again` besides.
    """
    from rlalign.config import clusters

    code = clusters.find(where, "--on").launch(count, arguments, [*arguments, *again])
    if code:
        raise Ended(code)
