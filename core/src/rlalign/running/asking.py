"""What somebody asks of a model, put to it as the task puts its own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlalign.config.pipeline import Phase
from rlalign.data.example import Example, Prompt
from rlalign.errors import ConfigError, RLAlignError
from rlalign.interface.component import Task
from rlalign.interface.policy import Policy

SYSTEM = ("system", "developer")
"""Roles of messages that say how to answer."""


class NoTask(Task):
    """Stands in where a model is opened without a task: prompts can be answered, nothing can be evaluated."""

    def examples(self, split: str) -> Sequence[Example]:
        return []


def before(policy: Policy, task: Task, phase: Phase, system: str | None = None) -> list[Any] | None:
    """The messages that come before what somebody asks; None where it is put as plain text.

    A model that reads messages is asked as the task asks, by its first example, and in messages where there is no
    task. `system` stands in place of the task's system message.
    """
    own: list[Any] | None = None
    if policy.chats:
        own = [] if isinstance(task, NoTask) else system_of(first_prompt(task, phase))
    if system is None:
        return own
    if own is None:
        who = (
            f"the task `{phase.task.name}` asks in plain text"
            if policy.chats
            else "the model has no chat template"
        )
        raise ConfigError(
            f"{who}, so that there is no system message; leave it out, or write it into the prompt"
        )
    return [{"role": "system", "content": system}]


def first_prompt(task: Task, phase: Phase) -> Prompt:
    """How a task asks, by its first example."""
    split = phase.evaluate.split if phase.evaluate else "train"
    try:
        examples = task.examples(split)
    except RLAlignError as error:
        raise ConfigError(
            f"{phase.task.place}: the task `{phase.task.name}` tells by its data whether it asks in messages, and that "
            f"cannot be read: {error}. The run's model folder answers without the task"
        ) from error
    if not examples:
        raise ConfigError(f"{phase.task.place}: task `{phase.task.name}` has no examples in `{split}`")
    return examples[0].prompt


def system_of(prompt: Prompt) -> list[Any] | None:
    """The messages before the first turn of a chat; None of plain text."""
    if isinstance(prompt, str):
        return None
    turns = [i for i, message in enumerate(prompt) if message.get("role") not in SYSTEM]
    return list(prompt[: turns[0] if turns else len(prompt)])
