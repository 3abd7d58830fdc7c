"""Functions that a pipeline names: `my_file.py:function`, or `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlalign_plugin_function_reward import source


@cache
def named(path: Path) -> Callable[..., Any]:
    """The function, imported once."""
    return source.named(path)
