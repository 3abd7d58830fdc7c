"""Clusters that are this machine, as a package brings them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with the clusters `nearby` and `crowded`, and one that is broken."""
    info = tmp_path / "site" / "stranger-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rlalign.clusters]\n"
        "nearby = nearby:Nearby\n"
        "crowded = nearby:Crowded\n"
        "broken = nowhere_at_all:Nearby\n"
    )
    for folder in (HERE, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))))
