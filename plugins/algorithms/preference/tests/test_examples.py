"""The examples of this package, run whole: better by their reward, and still in their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlalign.testing.learning import learns

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
    overrides = [] if name == "iterative-dpo" else ["evaluate.every=null"]
    learns(EXAMPLES / f"{name}.yaml", tmp_path, RISES[name], overrides=overrides)
