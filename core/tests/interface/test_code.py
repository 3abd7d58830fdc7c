"""Code that pipelines name."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from rlalign.interface.code import Code


def test_two_threads_import_at_once_and_the_path_is_as_before(tmp_path: Path) -> None:
    """The first one's import ends after the second one has begun."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "fast").mkdir()
    (tmp_path / "slow/slow_of_two.py").write_text(
        "import time\ntime.sleep(0.3)\nimport beside_slow\nNAME = 1\n"
    )
    (tmp_path / "slow/beside_slow.py").write_text("")
    (tmp_path / "fast/fast_of_two.py").write_text("import time\ntime.sleep(0.4)\nNAME = 2\n")
    before, found = list(sys.path), {}

    def load(name: str) -> None:
        code = Code.find(f"{name}_of_two", "NAME", tmp_path / name)
        assert code is not None
        found[name] = code.load()

    threads = [threading.Thread(target=load, args=(name,)) for name in ("slow", "fast")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"slow": 1, "fast": 2} and sys.path == before
