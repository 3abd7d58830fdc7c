"""MiniGrid and BabyAI in words: `see: rlalign_plugin_environments.minigrid:see` of `gymnasium`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

UNTOLD = ("unseen", "empty", "wall", "floor", "agent")
DOORS = ("open", "closed", "locked")


def see(game: Any, observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """The mission, what is carried, what stands ahead, and each thing in sight by how far ahead and aside it is."""
    names = import_module("minigrid.core.constants")
    image = observation[
        "image"
    ]  # [across, down, (kind, colour, state)]: one stands below in the middle and looks up
    across, down = image.shape[:2]
    middle, near = across // 2, down - 1

    def told(x: int, y: int) -> str:
        kind, colour, state = map(int, image[x, y])
        name = str(names.IDX_TO_OBJECT[kind])
        if name in ("goal", "lava", "wall", "empty", "unseen"):
            return name
        door = f"{DOORS[state]} " if name == "door" else ""
        return f"{door}{names.IDX_TO_COLOR[colour]} {name}"

    def kind(x: int, y: int) -> str:
        return str(names.IDX_TO_OBJECT[int(image[x, y, 0])])

    said = [f"Mission: {observation['mission']}."]
    if kind(middle, near) not in UNTOLD:  # its own cell shows what it carries
        said.append(f"You carry a {told(middle, near)}.")
    said.append(f"Ahead: {told(middle, near - 1)}.")
    things = [
        (near - y, x - middle, told(x, y))
        for y in range(down)
        for x in range(across)
        if (x, y) != (middle, near) and kind(x, y) not in UNTOLD
    ]
    for ahead, aside, name in sorted(things):
        way = "" if aside == 0 else f", {abs(aside)} {'right' if aside > 0 else 'left'}"
        said.append(f"A {name} {ahead} ahead{way}.")
    return " ".join(said) + "\n"
