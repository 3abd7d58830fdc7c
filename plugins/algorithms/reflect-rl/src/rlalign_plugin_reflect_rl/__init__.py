"""Reflect-RL: a frozen model reflects on each turn, and the policy chooses among numbered actions."""

from rlalign_plugin_reflect_rl.hidden_goal import HiddenGoal, HiddenGoalAdvice
from rlalign_plugin_reflect_rl.reflect_rl import ReflectRL
from rlalign_plugin_reflect_rl.reflecting import Reflecting
from rlalign_plugin_reflect_rl.text_taxi import TextTaxi

__all__ = ["HiddenGoal", "HiddenGoalAdvice", "ReflectRL", "Reflecting", "TextTaxi"]
