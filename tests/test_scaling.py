"""benchmarks/scale/scaling.py: what its README says comes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.scale import scaling

README = (Path(scaling.__file__).parent / "README.md").read_text()


@pytest.mark.slow
def test_a_row_of_the_table_comes_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(scaling.QWEN))
    (tmp_path / "pipeline.yaml").write_text(json.dumps(scaling.PIPELINE))
    found = scaling.seconds(tmp_path, 16, 256)
    cells = " | ".join(f"{found[stage]:.2g}" for stage in scaling.STAGES)
    assert f"| 16 | 256 | {cells} | {found['iteration']:.1f} |" in README
