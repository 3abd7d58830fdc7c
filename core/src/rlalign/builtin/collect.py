"""A phase that trains nothing: its scored responses are what a later phase reads."""

from __future__ import annotations

from rlalign.component import Component


class Collect(Component):
    """Sample and score; `task: {from: NAME}` in a later phase reads the result (ReST's Grow step)."""

    responses = "sampled"
