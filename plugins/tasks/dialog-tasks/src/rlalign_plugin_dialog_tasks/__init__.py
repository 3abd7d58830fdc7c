"""Published data as tasks: the prompts, filters and splits of their papers, one file a task."""

from rlalign_plugin_dialog_tasks.comet import Comet
from rlalign_plugin_dialog_tasks.grounded import FaithDial, WizardOfWikipedia
from rlalign_plugin_dialog_tasks.hh import HH
from rlalign_plugin_dialog_tasks.reddit import RedditComments
from rlalign_plugin_dialog_tasks.tldr import TLDR

__all__ = ["HH", "TLDR", "Comet", "FaithDial", "RedditComments", "WizardOfWikipedia"]
