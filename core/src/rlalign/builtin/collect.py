"""A phase that trains nothing: its scored responses are for a later phase, or for another run."""

from __future__ import annotations

from rlalign.interface.component import Component


class Collect(Component):
    """Sample, score and keep; `task: {from: NAME}` in a later phase reads the result (ReST's Grow step)."""

    responses = "sampled"
    defaults = {"train": {"keep_responses": True}}
