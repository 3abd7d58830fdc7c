"""Align language models with reinforcement learning: a minimal core, and plugins for everything else.

Names are imported when they are first used, so that `import rlalign` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlalign.api import Pipeline, Result, load, resume, run
    from rlalign.api import open as open
    from rlalign.builtin.nucleus import Nucleus
    from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
    from rlalign.data.example import Example, Joined, LazyExamples
    from rlalign.data.rollout import Rollout, concat, logged_rollout
    from rlalign.data.settings import Options, Sampling
    from rlalign.data.turn import Episode, Turn
    from rlalign.decoding.interfaces import Constraint, Decoder
    from rlalign.decoding.logits import log_distribution
    from rlalign.decoding.sampler import sample
    from rlalign.errors import CheckpointError, ComponentError, ConfigError, RLAlignError
    from rlalign.interface.code import Code, RunsCode
    from rlalign.interface.component import Component, Lagging, Task
    from rlalign.interface.environment import Environment
    from rlalign.interface.hooks import hookimpl
    from rlalign.interface.policy import Policy, Value
    from rlalign.interface.run import Learner, Run
    from rlalign.interface.sampler import Response, Sampler, sampled_rollout
    from rlalign.interface.tracker import Tracked, Tracker
    from rlalign.running.callbacks import Callbacks
    from rlalign.running.loop import Interrupted
    from rlalign.running.opened import Opened

_HOMES = {
    "api": ("Pipeline", "Result", "load", "open", "resume", "run"),
    "running.callbacks": ("Callbacks",),
    "running.loop": ("Interrupted",),
    "running.opened": ("Opened",),
    "interface.code": ("Code", "RunsCode"),
    "interface.component": ("Component", "Lagging", "Task"),
    "interface.environment": ("Environment",),
    "data.turn": ("Episode", "Turn"),
    "errors": ("CheckpointError", "ComponentError", "ConfigError", "RLAlignError"),
    "data.example": ("Example", "Joined", "LazyExamples"),
    "interface.hooks": ("hookimpl",),
    "data.settings": ("Options", "Sampling"),
    "interface.policy": ("Policy", "Value"),
    "interface.run": ("Learner", "Run"),
    "interface.tracker": ("Tracked", "Tracker"),
    "interface.sampler": ("Response", "Sampler", "sampled_rollout"),
    "decoding.logits": ("log_distribution",),
    "decoding.interfaces": ("Constraint", "Decoder"),
    "decoding.sampler": ("sample",),
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

# Without `open`: `from rlalign import *` would hide Python's own.
__all__ = [
    "Batch",
    "Callbacks",
    "CheckpointError",
    "Code",
    "Component",
    "ComponentError",
    "ConfigError",
    "Constraint",
    "Decoder",
    "Environment",
    "Episode",
    "Example",
    "Interrupted",
    "Joined",
    "Lagging",
    "LazyExamples",
    "Learner",
    "Loss",
    "Nucleus",
    "Opened",
    "Options",
    "Outputs",
    "Pipeline",
    "Policy",
    "RLAlignError",
    "Response",
    "Result",
    "Reward",
    "Rollout",
    "Run",
    "RunsCode",
    "Sampler",
    "Sampling",
    "Score",
    "Task",
    "Tracked",
    "Tracker",
    "Turn",
    "Value",
    "concat",
    "hookimpl",
    "load",
    "log_distribution",
    "logged_rollout",
    "resume",
    "run",
    "sample",
    "sampled_rollout",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlalign' has no attribute {name!r}")
    return getattr(import_module(f"rlalign.{_HOME[name]}"), name)
