"""TeaMs-RL: it is learned how to rewrite instructions, and what is written so is data to learn from."""

from rlalign_plugin_teams_rl.evolve import ACTIONS, Evolve
from rlalign_plugin_teams_rl.evolved import Evolved

__all__ = ["ACTIONS", "Evolve", "Evolved"]
