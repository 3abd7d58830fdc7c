"""TeaMs-RL: it is learned how to rewrite instructions, and what is written so is data to learn from."""

from rlalign_plugin_teams_rl.evolve import Evolve
from rlalign_plugin_teams_rl.evolved import Evolved
from rlalign_plugin_teams_rl.players import ACTIONS

__all__ = ["ACTIONS", "Evolve", "Evolved"]
