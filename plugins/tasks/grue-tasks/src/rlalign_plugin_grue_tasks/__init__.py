"""The tasks of GRUE (Ramamurthy et al. 2023), and some beside them that fit a laptop: one file a task."""

from rlalign_plugin_grue_tasks.cnn_daily_mail import CNNDailyMail
from rlalign_plugin_grue_tasks.common_gen import CommonGen
from rlalign_plugin_grue_tasks.e2e import E2E
from rlalign_plugin_grue_tasks.imdb import IMDB
from rlalign_plugin_grue_tasks.totto import ToTTo

__all__ = ["E2E", "IMDB", "CNNDailyMail", "CommonGen", "ToTTo"]
