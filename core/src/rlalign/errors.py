"""What goes wrong, sorted by who can fix it. Every message says where, what was found, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 4000
"""Characters of somebody else's message that are shown."""


class RLAlignError(Exception):
    """Something a user can fix; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(RLAlignError):
    """The pipeline, its options or the installed plugins are wrong: found before anything runs."""

    exit_code = 2


class Faults:
    """Faults of a pipeline, gathered to be told together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note a `ConfigError` and go on."""
        try:
            yield
        except ConfigError as error:
            self.found.append(str(error))

    def stop(self) -> None:
        """Raise one error for all that was found, if anything was."""
        if self.found:
            raise ConfigError("\n".join(dict.fromkeys(self.found)))


class ComponentError(RLAlignError):
    """A component did what its hook does not allow, or raised."""


@contextmanager
def attributed_to(what: str, name: str | None = None) -> Iterator[None]:
    """Say who it was when code that is not ours raises; errors of our own pass as they are, if they say this name."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except RLAlignError as error:
        if name is None or f"`{name}`" in str(error):
            raise
        raise type(error)(f"{what}: {error}") from error
    except BaseException as error:  # SystemExit too: whoever raises it has not finished
        raise ComponentError(f"{what} raised {describe_error(error)}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever goes wrong before anything runs is a ConfigError."""
    try:
        yield
    except RLAlignError as error:
        if error.exit_code == ConfigError.exit_code:
            raise
        raise ConfigError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ConfigError(f"{where}{error.strerror or error}") from error


def describe_error(error: BaseException) -> str:
    """`KeyError: 'toxicity' (my_rewards.py:12)`"""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said_by(error)}{at}"


def said_by(error: BaseException) -> str:
    """An error's own words, shortened if they fill pages; it may fail even at saying them."""
    try:
        said = str(error)
    except Exception as again:
        return f"(its message raised {type(again).__name__})"
    return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} … {said[-LONGEST // 2 :]}"


class CheckpointError(RLAlignError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 2
