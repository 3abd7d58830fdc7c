"""The command line."""

from rlalign.cli.commands import main

__all__ = ["main"]
