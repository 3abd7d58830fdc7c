"""Learn again from responses of earlier iterations, with the scores and log-probs that they had then."""

from rlalign_plugin_replay.memory import Memory, draw_weights, drawn
from rlalign_plugin_replay.replay import Replay

__all__ = ["Memory", "Replay", "draw_weights", "drawn"]
