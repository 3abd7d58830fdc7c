"""What goes wrong, sorted by who can mend it. Every message says where, what was found, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RLAlignError(Exception):
    """Something a user can mend; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(RLAlignError):
    """The pipeline, its options or the installed plugins are wrong: found before anything runs."""

    exit_code = 2


class ComponentError(RLAlignError):
    """A component did what its hook does not allow, or raised."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Say who it was when code that is not ours raises; errors of our own pass as they are."""
    try:
        yield
    except RLAlignError:
        raise
    except Exception as error:
        raise ComponentError(f"{what} raised {told(error)}") from error


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


def told(error: Exception) -> str:
    """`KeyError: 'toxicity' (my_rewards.py:12)`"""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"


class CheckpointError(RLAlignError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 2
