"""Learn again from responses of earlier iterations, with the scores and log-probs that they had then."""

from rlalign_plugin_replay.memory import Memory, drawn, log_weights
from rlalign_plugin_replay.replay import Replay

__all__ = ["Memory", "Replay", "drawn", "log_weights"]
