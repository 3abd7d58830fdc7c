"""The examples of this package, run whole: better by their reward, and still in their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.config.load import load_pipeline
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing.bench import Silence

EXAMPLES = Path(__file__).parents[4] / "examples/algorithms"
RISES = {
    "dpo": 0.15,
    "ipo": 0.1,
    "simpo": 0.1,
    "orpo": 0.3,
    "kto": 0.25,
    "rrhf": 0.25,
    "pro": 0.25,
    "rdo-dpo": 0.15,
    "iterative-dpo": 0.3,
    "dpo-seq2seq": 0.15,
}
"""By how much at least, in words of praise over all, or in keywords covered."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RISES)
def test_the_example_learns(name: str, tmp_path: Path) -> None:
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_toy_tasks")
    pipeline = load_pipeline(
        EXAMPLES / f"{name}.yaml", ["evaluate.every=null"] if name != "iterative-dpo" else []
    )
    finished = loop.start(pipeline, root=tmp_path, display=Silence()).run()
    rows = [row for row in logs.read(finished.path / "metrics.jsonl") if "eval/responses" in row]
    reward = "eval/toy-coverage" if "seq2seq" in name else "eval/toy-sentiment"
    before, after = rows[0], rows[-1]
    assert before["iteration"] == 0
    print(name, {key: round(after[key], 3) for key in (reward, "eval/toy-grammar", "eval/kl/per_response")})
    assert after[reward] > before[reward] + RISES[name]
    assert after["eval/toy-grammar"] > 0.75
    assert after["eval/finished"] > 0.98
