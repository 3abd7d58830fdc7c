"""What a command does with whatever goes wrong in it: a message a user can act on, and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable

import click

from rlalign.errors import RLAlignError, describe_error
from rlalign.running.exits import unfinished


def guarded(debug: bool, work: Callable[[], None]) -> None:
    """One readable message for whatever goes wrong; a traceback only when it is asked for."""
    try:
        with unfinished():
            work()
    except RLAlignError as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"{'stopped' if error.exit_code == 130 else 'error'}: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupted:
        click.echo(str(interrupted) or "stopped before the run began", err=True)
        if interrupted.args:  # a run was going on: end as one that is killed, so that a shell's loop ends too
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        sys.exit(130)
    except OSError as error:
        if debug:
            traceback.print_exc()
        else:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(
                f"error: {where}{error.strerror or error}; free some space or fix it, then `rlalign run --resume`",
                err=True,
            )
        sys.exit(1)
    except BaseException as error:  # SystemExit(0) too: what was asked for is not done
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"error: {describe_error(error)}; --debug shows the traceback", err=True)
        sys.exit(1)
