"""The tasks of GRUE (Ramamurthy et al. 2023), and some beside them that fit a laptop: one file a task."""

from rlalign_plugin_grue_tasks.imdb import IMDB

__all__ = ["IMDB"]
