"""Cells that must hold something: text, a list, a number."""

from __future__ import annotations

import math
from typing import Any

from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.tables import Row, kind_of


def text_of(row: Row, name: str) -> str:
    """A column that holds text, and not only white space."""
    return filled(get(row, name), f"`{name}`")


def filled(value: Any, what: str) -> str:
    """Text that is more than white space."""
    if not isinstance(value, str):
        raise BadRow(f"{what} is {kind_of(value)}, expected text")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return value


def list_of(row: Row, name: str) -> list[Any]:
    """A column that holds a list."""
    value = get(row, name)
    if not isinstance(value, list):
        raise BadRow(f"`{name}` is {kind_of(value)}, expected a list")
    return value


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds; in CSV it is written as text."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        found = None
    if found is None:
        raise BadRow(f"{what} is {kind_of(value)}, expected a number")
    if not math.isfinite(found):
        raise BadRow(f"{what} is {found}")
    if not low <= found <= high:
        raise BadRow(f"{what} is {found:g}, expected {low:g} to {high:g}")
    return found
