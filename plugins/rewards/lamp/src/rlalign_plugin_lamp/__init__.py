"""LAMP: rewards to pre-train on before there is a task, made of what is new and of what language asks for."""

from rlalign_plugin_lamp.alignment import Alignment
from rlalign_plugin_lamp.novelty import Novelty
from rlalign_plugin_lamp.room import Room

__all__ = ["Alignment", "Novelty", "Room"]
