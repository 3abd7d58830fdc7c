"""The examples of this package, run whole: better by their reward, and still in their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.testing.learning import learns

EXAMPLES = Path(__file__).parents[4] / "examples/algorithms"
RISES = {
    **{"grpo": 0.45, "dapo": 0.4, "gspo": 0.5, "cispo": 0.5},
    **{"reinforce-pp": 0.5, "reinforce-pp-baseline": 0.5, "dr-grpo-seq2seq": 0.15},
}
"""By how much at least, in words of praise over all, or in keywords covered."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RISES)
def test_the_example_learns(name: str, tmp_path: Path) -> None:
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_toy_tasks")
    rows = learns(EXAMPLES / f"{name}.yaml", tmp_path, RISES[name], grammar=0.7)
    if name == "dapo":
        assert sum(row.get("refills", 0) for row in rows) > 0
