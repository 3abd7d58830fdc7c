"""The whole pipeline on the hidden goal: it learns, the reflector stays, a killed run goes on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.records.result import Result
from rlalign.running import loop
from rlalign.testing import registry, run
from rlalign.testing.bench import Silence, logged, run_until, session

from .toy import ASIDES, pipeline, play


def returns(folder: Path, whole: dict[str, Any]) -> list[float]:
    _, ended = run(folder, whole)
    found = [row["eval/played/return"] for row in Result(ended.dir.path).evaluations]
    return [float(x) for x in found]


def test_it_learns_what_only_the_reflector_is_told(tmp_path: Path) -> None:
    """Who knows the side earns .70, who does not at most .25 or so."""
    first, last = returns(tmp_path, pipeline())
    assert first < 0.2 and last > 0.6
