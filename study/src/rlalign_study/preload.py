"""Imported by the process that runs are forked from: they then start with everything imported."""

from rlalign_study import core, worker

assert worker
core.warm()
