"""The examples of this package, run whole: better by their reward, and still in their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.config.load import load_pipeline
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing.bench import Silence

EXAMPLES = Path(__file__).parents[4] / "examples/algorithms"
RISES = {"grpo": 0.45, "dapo": 0.4, "gspo": 0.5, "reinforce-pp": 0.5, "dr-grpo-seq2seq": 0.15}
"""By how much at least, in words of praise over all, or in keywords covered."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RISES)
def test_the_example_learns(name: str, tmp_path: Path) -> None:
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_toy_tasks")
    pipeline = load_pipeline(EXAMPLES / f"{name}.yaml", ["evaluate.every=null"])
    finished = loop.start(pipeline, root=tmp_path, display=Silence()).run()
    rows = list(logs.read(finished.path / "metrics.jsonl"))
    measured = [row for row in rows if "eval/responses" in row]
    reward = "eval/toy-coverage" if "seq2seq" in name else "eval/toy-sentiment"
    before, after = measured[0], measured[-1]
    assert before["iteration"] == 0
    assert after[reward] > before[reward] + RISES[name]
    assert after["eval/toy-grammar"] > 0.7
    assert after["eval/finished"] > 0.98
    if name == "dapo":
        assert sum(row.get("refills", 0) for row in rows) > 0
