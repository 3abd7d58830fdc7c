"""What a command does with whatever goes wrong in it: a message a user can act on, and an exit code."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from rlalign.errors import RLAlignError, describe_error, shown
from rlalign.running.exits import unfinished
from rlalign.world.ranks import here


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print what others may have written: no secret, and nothing that steers a terminal."""
    click.echo(shown(text), err=err, nl=nl)


class _Notes(logging.Handler):
    """Notes of the core, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"note: {record.getMessage()}", err=True)


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Warnings of rlalign and its plugins are notes, without a line of code."""
    with warnings.catch_warnings():
        plainly = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not here().leads:
                return  # rank 0 says it for all
            if "rlalign" in filename:
                say(f"note: {message}", err=True)
            else:
                plainly(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def guarded(
    debug: bool, work: Callable[[], None], *, notes: int = logging.WARNING, stopped: str = "stopped"
) -> None:
    """One readable message for whatever goes wrong; a traceback only when it is asked for."""
    logger = logging.getLogger("rlalign")
    logger.handlers, logger.propagate = [_Notes(notes)], False
    logger.setLevel(notes)
    try:
        with unfinished(), _warnings_said():
            work()
    except RLAlignError as error:
        if debug:
            say(traceback.format_exc(), err=True, nl=False)
        elif not getattr(error, "told", False):  # rank 0 of several processes says it for all
            whose = getattr(error, "whose", "")
            say(str(error) if error.exit_code > 128 else f"error: {whose}{error}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:  # at a question: Ctrl-C, or the end of the input
        say(f"\n{stopped}", err=True)
        sys.exit(130)
    except KeyboardInterrupt as interrupted:
        say(str(interrupted) or stopped, err=True)
        if interrupted.args:  # a run was going on: end as one that is killed, so that a shell's loop ends too
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        sys.exit(130)
    except OSError as error:
        if debug:
            say(traceback.format_exc(), err=True, nl=False)
        else:
            where = f"{error.filename}: " if error.filename else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
            remedy = "; free some space or fix it, then `rlalign run --resume`" if full else ""
            say(f"error: {where}{error.strerror or error}{remedy}", err=True)
        sys.exit(1)
    except BaseException as error:  # SystemExit(0) too: what was asked for is not done
        if debug:
            say(traceback.format_exc(), err=True, nl=False)
        elif not getattr(error, "told", False):
            whose = getattr(error, "whose", "")
            say(f"error: {whose}{describe_error(error)}; --debug shows the traceback", err=True)
        sys.exit(1)
