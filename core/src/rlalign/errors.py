"""What goes wrong, sorted by who can mend it. Every message says where, what was found, and what to do."""

from __future__ import annotations


class RLAlignError(Exception):
    """Something a user can mend; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(RLAlignError):
    """The pipeline, its options or the installed plugins are wrong: found before anything runs."""

    exit_code = 2


class ComponentError(RLAlignError):
    """A component did what its hook does not allow, or raised."""


class CheckpointError(RLAlignError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 2
