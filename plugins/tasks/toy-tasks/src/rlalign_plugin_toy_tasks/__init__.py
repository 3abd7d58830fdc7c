"""Worlds that are learned in seconds on a CPU, and whose best answer is known. One file a world."""

from rlalign_plugin_toy_tasks.bandit import Bandit, BanditPayout
from rlalign_plugin_toy_tasks.blocks import ToyBlocks, goal_pairs
from rlalign_plugin_toy_tasks.corridor import ToyCorridor
from rlalign_plugin_toy_tasks.dates import Dates, ToyDates, has_date
from rlalign_plugin_toy_tasks.dialogue import ToyDialogue, ToyIntent
from rlalign_plugin_toy_tasks.fluency import ToyGrammar
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.keywords import ToyCoverage, ToyKeywords, coverage
from rlalign_plugin_toy_tasks.questions import ToyAnswer, ToyQuestions
from rlalign_plugin_toy_tasks.reviews import ToyReviews, ToySentiment, sentiment
from rlalign_plugin_toy_tasks.rising_numbers import IncreasingNumbers, ToyNumbers, increasing_run
from rlalign_plugin_toy_tasks.summaries import ToyFacts, ToySummaries
from rlalign_plugin_toy_tasks.translation import ToyCloseness, ToyTranslation

__all__ = [
    "Bandit",
    "BanditPayout",
    "Dates",
    "Grammar",
    "IncreasingNumbers",
    "ToyAnswer",
    "ToyBlocks",
    "ToyCloseness",
    "ToyCorridor",
    "ToyCoverage",
    "ToyDates",
    "ToyDialogue",
    "ToyFacts",
    "ToyGrammar",
    "ToyIntent",
    "ToyKeywords",
    "ToyNumbers",
    "ToyQuestions",
    "ToyReviews",
    "ToySentiment",
    "ToySummaries",
    "ToyTranslation",
    "coverage",
    "goal_pairs",
    "has_date",
    "increasing_run",
    "sentiment",
]
