"""A table for a room of any size, and captions that are wrong in some cells, or in all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rlalign_plugin_lamp.room import CORNERS, captions, observations
from rlalign_plugin_table import Table

WRONG = 0.3
"""The share of cells whose caption speaks of another place."""


class RoomTable(Table):
    """A table with a state for everything that a room says."""

    class Config(Table.Config):
        """Options of `room-table`."""

        actions: tuple[str, ...] = Field(("up", "down", "left", "right"), description="as of `table`")
        state: Any = Field("observation", description="as of `table`")
        size: int = Field(description="cells of a side")

    def __init__(self, config: Any) -> None:
        super().__init__(config.model_copy(update={"prompts": tuple(observations(config.size))}))


def mistaken(said: Sequence[str]) -> list[str]:
    """What is seen; in some cells what is seen on the other side of the room."""
    cells = [one.partition(":")[0] for one in said]
    return captions([_opposite(cell) if _number(cell) < WRONG else cell for cell in cells])


def random(said: Sequence[str]) -> list[str]:
    """In each cell the caption of one of the corners, whichever."""
    things = list(CORNERS)
    return [f"agent at the {things[int(4 * _number(one.partition(':')[0]))]}" for one in said]


def _number(cell: str) -> float:
    """Between 0 and 1, the same of a cell whenever it is asked."""
    return zlib.crc32(f"{cell}!".encode()) / 2**32


def _opposite(cell: str) -> str:
    row, column, _, size = cell.split()
    return f"{int(size) - 1 - int(row)} {int(size) - 1 - int(column)} of {size}"


components = {"room-table": RoomTable}
