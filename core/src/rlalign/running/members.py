"""A component in its place in a pipeline, and the hooks it implements."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from rlalign.config.pipeline import Item
from rlalign.errors import ConfigError
from rlalign.interface import hooks
from rlalign.interface.component import Component

HOOKS = tuple(name for name, value in vars(hooks).items() if hasattr(value, "rlalign_spec"))


@dataclass(frozen=True, eq=False)
class Member:
    """A component and where it stands in the pipeline."""

    item: Item
    component: Component
    role: str
    """`rewards`, `algorithm`, `responses`, `part`, `task` or `use`."""

    @property
    def name(self) -> str:
        return self.item.name


def who(member: Member | None) -> str:
    """`toxicity` (rlalign-plugin-x, pipeline.yaml:12)."""
    if member is None:
        return "a component"
    module = inspect.getmodule(type(member.component))
    package = (module.__name__ if module else "?").split(".")[0]
    where = ", ".join(part for part in (package, member.item.place) if part)
    return f"`{member.name}` ({where})"


def check_hooks(member: Member) -> None:
    """A method that has a hook's name without the mark would silently be no hook."""
    for hook in HOOKS:
        method = getattr(type(member.component), hook, None)
        if callable(method) and not hasattr(method, "rlalign_impl"):
            raise ConfigError(
                f"{who(member)} has a method `{hook}` without `@hookimpl`, so it would never be called; "
                "mark it, or give it another name"
            )
        given = list(inspect.signature(getattr(hooks, hook)).parameters)
        asked = list(inspect.signature(method).parameters)[1:] if callable(method) else []
        if unknown := [name for name in asked if name not in given]:
            raise ConfigError(
                f"`{hook}` of {who(member)} asks for `{unknown[0]}`; the hook gives {', '.join(given)}"
            )


def implements(component: Component, hook: str) -> str | None:
    """`plain`, `wrapper` or None."""
    options = getattr(getattr(type(component), hook, None), "rlalign_impl", None)
    if options is None:
        return None
    return "wrapper" if options.get("wrapper") else "plain"
