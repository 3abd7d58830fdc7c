"""What somebody asks of a model, put to it as the task puts its own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlalign.config.pipeline import Phase
from rlalign.config.words import found
from rlalign.data.example import Example, Prompt
from rlalign.errors import ConfigError, RLAlignError, attributed_to
from rlalign.interface.component import Task
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy
from rlalign.running.data import Data
from rlalign.running.models import Models
from rlalign.running.plan import PhasePlan
from rlalign.running.playing import opening

SYSTEM = ("system", "developer")
"""Roles of messages that say how to answer."""


class AskedData(Data):
    """The data of a phase that trains nothing is what will be answered."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prompts: list[Example] = []

    def training(self, plan: PhasePlan, repeat: int) -> Sequence[Example]:
        if self.prompts:
            return self.prompts
        asked = plan.settings.evaluate
        assert asked is not None
        return self.split(plan, asked.split)


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
    """How a task asks, by the first example that it is evaluated on, or else trained on."""
    name, place, faults = phase.task.name, phase.task.place, []
    for split in dict.fromkeys([phase.evaluate.split if phase.evaluate else "train", "train"]):
        try:
            with attributed_to(f"{place}: task `{name}`, which tells by its data how it asks", name):
                if examples := task.examples(split):
                    first = opening(task, examples).say if isinstance(task, Environment) else ""
                    return first or examples[0].prompt
            faults.append(f"{place}: task `{name}` has no examples in `{split}`")
        except RLAlignError as error:
            faults.append(str(error))
    raise ConfigError(faults[0])


def system_of(prompt: Prompt) -> list[Any] | None:
    """The messages before the first turn of a chat; None of plain text."""
    if isinstance(prompt, str):
        return None
    turns = [i for i, message in enumerate(prompt) if message.get("role") not in SYSTEM]
    return list(prompt[: turns[0] if turns else len(prompt)])


def told(models: Models, plans: Sequence[PhasePlan]) -> str:
    """How each phase asks a model that reads chats, and whose system message comes first, for `rlalign check`.

    Nothing of a model on the hub, which would have to be fetched.
    """
    peeked = models.item.peek()
    if not isinstance(peeked, Policy) or not peeked.here:
        return ""
    policy = models.opened()
    if not policy.chats:
        return ""
    wide = max(len(plan.settings.name) for plan in plans)
    lines = [f"  {plan.settings.name:{wide}}  {_manner(policy, plan)}" for plan in plans]
    return "\n".join(["", "prompts:", *lines, ""])


def _manner(policy: Policy, plan: PhasePlan) -> str:
    prompt = first_prompt(plan.task, plan.settings)
    said = system_of(prompt)
    if said is None:
        return "plain text, though the model has a chat template: no role, no system message"
    task = plan.settings.task
    if said:
        content = said[0].get("content")
        option = next((k for k, v in task.options.model_dump().items() if v == content and v), None)
        whose = f"the pipeline ({task.place}: {task.name}.{option})" if option else f"the task `{task.name}`"
        return f"chats; the system message is of {whose}: {_shown(content)}"
    if own := policy.own_system():
        return f"chats; the system message is of the tokenizer's chat template: {_shown(own)}"
    return "chats without a system message"


def _shown(text: Any) -> str:
    return found(text).rpartition(" (")[0]
