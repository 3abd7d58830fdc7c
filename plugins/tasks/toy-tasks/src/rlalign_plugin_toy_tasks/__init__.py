"""Worlds that are learned in seconds on a CPU, and whose best answer is known. One file a world."""

from rlalign_plugin_toy_tasks.bandit import Bandit, BanditPayout
from rlalign_plugin_toy_tasks.dates import Dates, ToyDates, has_date
from rlalign_plugin_toy_tasks.fluency import ToyGrammar
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.keywords import ToyCoverage, ToyKeywords, coverage
from rlalign_plugin_toy_tasks.reviews import ToyReviews, ToySentiment, sentiment
from rlalign_plugin_toy_tasks.rising_numbers import IncreasingNumbers, ToyNumbers, increasing_run

__all__ = [
    "Bandit",
    "BanditPayout",
    "Dates",
    "Grammar",
    "IncreasingNumbers",
    "ToyCoverage",
    "ToyDates",
    "ToyGrammar",
    "ToyKeywords",
    "ToyNumbers",
    "ToyReviews",
    "ToySentiment",
    "coverage",
    "has_date",
    "increasing_run",
    "sentiment",
]
