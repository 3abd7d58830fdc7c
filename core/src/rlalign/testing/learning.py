"""An example of the repository, run whole: is it better for it, and still in its language?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.config.load import load_pipeline
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing.bench import Silence


def learns(
    file: Path,
    root: Path,
    rise: float,
    grammar: float = 0.75,
    overrides: Sequence[str] = ("evaluate.every=null",),
) -> list[dict[str, Any]]:
    """Run a pipeline of a toy task; what it measures must rise by more than `rise`. Returns the rows of its log."""
    finished = loop.start(load_pipeline(file, overrides), root=root, display=Silence()).run()
    rows = list(logs.read(finished.path / "metrics.jsonl"))
    measured = [row for row in rows if "eval/responses" in row]
    before, after = measured[0], measured[-1]
    (reward,) = {"eval/toy-coverage", "eval/toy-sentiment"} & before.keys()
    assert before["iteration"] == 0
    assert after[reward] > before[reward] + rise, f"{reward}: {before[reward]:.3f}, then {after[reward]:.3f}"
    assert after["eval/toy-grammar"] > grammar
    assert after["eval/finished"] > 0.98
    return rows
