"""The tasks of GRUE (Ramamurthy et al. 2023), and some beside them that fit a laptop: one file a task."""

from rlalign_plugin_grue_tasks.cnn_daily_mail import CNNDailyMail
from rlalign_plugin_grue_tasks.common_gen import CommonGen
from rlalign_plugin_grue_tasks.daily_dialog import DailyDialog
from rlalign_plugin_grue_tasks.e2e import E2E
from rlalign_plugin_grue_tasks.gsm8k import GSM8K
from rlalign_plugin_grue_tasks.imdb import IMDB
from rlalign_plugin_grue_tasks.iwslt17 import IWSLT17
from rlalign_plugin_grue_tasks.multi30k import Multi30k
from rlalign_plugin_grue_tasks.narrative_qa import NarrativeQA
from rlalign_plugin_grue_tasks.totto import ToTTo
from rlalign_plugin_grue_tasks.wmt16 import WMT16

__all__ = [
    "E2E",
    "GSM8K",
    "IMDB",
    "IWSLT17",
    "WMT16",
    "CNNDailyMail",
    "CommonGen",
    "DailyDialog",
    "Multi30k",
    "NarrativeQA",
    "ToTTo",
]
