"""What the tests of this package share."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest


@pytest.fixture
def python(tmp_path: Path) -> str:
    """What stands for the Python of an environment with vLLM."""
    script = tmp_path / "python"
    standin = Path(__file__).with_name("standin.py")
    path = shlex.quote(":".join(filter(None, sys.path)))
    script.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nshift 2\nPYTHONPATH={path} exec {sys.executable} {standin} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)
