"""Functions that a pipeline names: `my_file.py:function`, or `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlalign import Code
from rlalign_plugin_function_reward.source import digest, load, locate


def located(path: Path) -> Code:
    """Where it is. ValueError where there is none; nothing is imported."""
    return locate(path)


@cache
def named(path: Path) -> Callable[..., Any]:
    """The function, imported once."""
    source = locate(path)
    return load(source, digest(source, ()))
