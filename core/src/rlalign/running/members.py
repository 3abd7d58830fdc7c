"""A component in its place in a pipeline, and the hooks it implements."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlalign.config.pipeline import Item
from rlalign.interface import hooks
from rlalign.interface.component import Component

HOOKS = tuple(name for name, value in vars(hooks).items() if hasattr(value, "rlalign_spec"))


@dataclass(frozen=True, eq=False)
class Member:
    """A component and where it stands in the pipeline."""

    item: Item
    component: Component
    role: str
    """`rewards`, `algorithm`, `responses`, `source`, `task`, `use` or `observers`."""

    @property
    def name(self) -> str:
        return self.item.name

    def sees(self, run: Any) -> Any:
        """The run as it is given to this component: an observer may look, and ask for nothing."""
        return run.watched if self.role == "observers" else run


def who(member: Member | None) -> str:
    """`toxicity` (rlalign-plugin-x, pipeline.yaml:12)."""
    if member is None:
        return "a component"
    module = inspect.getmodule(type(member.component))
    package = (module.__name__ if module else "?").split(".")[0]
    where = ", ".join(part for part in (package, member.item.place) if part)
    return f"`{member.name}` ({where})"


def implements(component: Component, hook: str) -> str | None:
    """`plain`, `wrapper` or None."""
    options = getattr(getattr(type(component), hook, None), "rlalign_impl", None)
    if options is None:
        return None
    return "wrapper" if options.get("wrapper") else "plain"


def once(members: Sequence[Member]) -> list[Member]:
    """A component may stand in two places (`logged`, also as the reward); it takes part once, at the first."""
    return list({id(m.component): m for m in reversed(members)}.values())[::-1]


def culprit(error: BaseException, members: Sequence[Member]) -> Member | None:
    """The component deepest in the traceback: an error passes through the wrappers above it."""
    guilty, trace = None, error.__traceback__
    while trace is not None:
        me = trace.tb_frame.f_locals.get("self")
        guilty = next((m for m in members if m.component is me), guilty)
        trace = trace.tb_next
    return guilty
