"""How a wrapper wraps: it is handed the list, the batch or the metrics that all items above it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from rlalign.data.batch import Batch, Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.interface.hooks import hookimpl, hookspec
from rlalign.interface.run import Learner, Run
from rlalign.running.calls import Calls
from rlalign.running.members import Member, implements


def wrapped(
    hook: str, inner: Callable[..., Any], members: Sequence[Member], calls: Calls
) -> Callable[..., Any]:
    """`inner`, wrapped by each wrapper among these members in turn: the first is the innermost."""
    for member in members:
        if implements(member.component, hook) == "wrapper":
            inner = around(member, hook, inner, calls)
    return inner


def around(member: Member, hook: str, inner: Callable[..., Any], calls: Calls) -> Callable[..., Any]:
    """A wrapper's hook, closed over what it wraps."""
    manager = pluggy.PluginManager("rlalign")
    manager.add_hookspecs(_Wrapping)
    manager.register(_Inner(inner))
    manager.register(member.component)
    wrap: Callable[..., Any] = getattr(manager.hook, hook)

    def call(**arguments: Any) -> Any:
        with calls.watching(hook, member, arguments):
            return wrap(**arguments)

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
