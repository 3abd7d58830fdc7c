"""Hooks called through pluggy: those of one component, and a wrapper's around what it wraps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import pluggy

from rlalign.data.batch import Batch, Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ConfigError
from rlalign.interface import hooks
from rlalign.interface.hooks import hookimpl, hookspec
from rlalign.interface.run import Learner, Run
from rlalign.running.members import HOOKS, Member, implements, who


class Caller:
    """The hooks of one component."""

    def __init__(self, member: Member) -> None:
        manager = pluggy.PluginManager("rlalign")
        manager.add_hookspecs(hooks)
        try:
            manager.register(member.component, member.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise ConfigError(_refusal(member, str(error))) from error
        self._hooks = manager.hook

    def __call__(self, hook: str, **arguments: Any) -> Any:
        result = getattr(self._hooks, hook)(**arguments)
        # A hook that is not `firstresult` answers with a list, here of one component's result.
        return (result[0] if result else None) if isinstance(result, list) else result


def _refusal(member: Member, said: str) -> str:
    if "unknown hook" not in said:
        return f"{who(member)} cannot take part: {'; '.join(said.splitlines())}"
    name = said.split("'")[1]
    close = get_close_matches(name, HOOKS, 1)
    hint = f"did you mean `{close[0]}`?" if close else f"the hooks are {', '.join(HOOKS)}"
    return f"{who(member)} marks `{name}` as a hook, and there is none; {hint}"


def wrapped(hook: str, inner: Callable[..., Any], members: Sequence[Member]) -> Callable[..., Any]:
    """`inner` with every wrapper among these around it: each wraps all that stands above it."""
    for member in members:
        if implements(member.component, hook) == "wrapper":
            inner = around(member, hook, inner)
    return inner


def around(member: Member, hook: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper's hook, closed over what it wraps."""
    manager = pluggy.PluginManager("rlalign")
    manager.add_hookspecs(_Wrapping)
    manager.register(_Inner(inner))
    manager.register(member.component)
    call: Callable[..., Any] = getattr(manager.hook, hook)
    return call


class _Wrapping:
    """The hooks that can be wrapped. A wrapper of rewards wraps the one list of what stands above it."""

    @hookspec(firstresult=True)
    def reward(self, run: Run, rollout: Rollout) -> list[Score] | None: ...

    @hookspec(firstresult=True)
    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Batch | None: ...

    @hookspec(firstresult=True)
    def update(self, run: Run, batch: Batch, learner: Learner) -> Any: ...


class _Inner:
    """What a wrapper wraps."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Any:
        return self.call(run=run, rollout=rollout)

    @hookimpl
    def advantage(self, run: Run, rollout: Rollout, reward: Reward) -> Any:
        return self.call(run=run, rollout=rollout, reward=reward)

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Any:
        return self.call(run=run, batch=batch, learner=learner)
