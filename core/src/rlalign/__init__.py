"""Align language models with reinforcement learning: a minimal core, and plugins for everything else.

Names are imported when they are first used, so that `import rlalign` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlalign.builtin.nucleus import Nucleus
    from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
    from rlalign.data.example import Example, Joined, LazyExamples
    from rlalign.data.rollout import Rollout, concat, logged_rollout
    from rlalign.data.settings import Options, Sampling
    from rlalign.decoding.logits import log_distribution
    from rlalign.decoding.sampler import Constraint, Decoder, sample
    from rlalign.errors import CheckpointError, ComponentError, ConfigError, RLAlignError
    from rlalign.interface.component import Component, Lagging, Task
    from rlalign.interface.hooks import hookimpl
    from rlalign.interface.policy import Policy, Value
    from rlalign.interface.run import Learner, Run

_HOMES = {
    "interface.component": ("Component", "Lagging", "Task"),
    "errors": ("CheckpointError", "ComponentError", "ConfigError", "RLAlignError"),
    "data.example": ("Example", "Joined", "LazyExamples"),
    "interface.hooks": ("hookimpl",),
    "data.settings": ("Options", "Sampling"),
    "interface.policy": ("Policy", "Value"),
    "interface.run": ("Learner", "Run"),
    "decoding.logits": ("log_distribution",),
    "decoding.sampler": ("Constraint", "Decoder", "sample"),
    "builtin.nucleus": ("Nucleus",),
    "data.rollout": ("Rollout", "concat", "logged_rollout"),
    "data.batch": (
        "Batch",
        "Loss",
        "Outputs",
        "Reward",
        "Score",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "CheckpointError",
    "Component",
    "ComponentError",
    "ConfigError",
    "Constraint",
    "Decoder",
    "Example",
    "Joined",
    "Lagging",
    "LazyExamples",
    "Learner",
    "Loss",
    "Nucleus",
    "Options",
    "Outputs",
    "Policy",
    "RLAlignError",
    "Reward",
    "Rollout",
    "Run",
    "Sampling",
    "Score",
    "Task",
    "Value",
    "concat",
    "hookimpl",
    "log_distribution",
    "logged_rollout",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlalign' has no attribute {name!r}")
    return getattr(import_module(f"rlalign.{_HOME[name]}"), name)
