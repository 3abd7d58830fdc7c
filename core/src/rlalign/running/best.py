"""Which evaluation of a run was the best so far: its checkpoint is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlalign.config.words import did_you_mean
from rlalign.data.settings import Save
from rlalign.errors import ConfigError
from rlalign.running.plan import PhasePlan

ALWAYS = ("eval/responses", "eval/tokens", "eval/length", "eval/finished")
"""What each evaluation measures."""


class Best:
    """The best evaluation by `checkpoints.best`; without it there is none. The first of equals stays."""

    def __init__(self, asked: Save) -> None:
        self._by = asked.best_by
        self._value: float | None = None
        self.index: int | None = None
        """The checkpoint at which it was, by its number."""

    def seen(
        self,
        metrics: Mapping[str, float],
        index: int,
        *,
        counts: bool,
        plan: PhasePlan,
        later: Iterable[PhasePlan] = (),
    ) -> None:
        """A phase's evaluation at this checkpoint. Before the first iteration (`counts` is false) only names matter.

        One that lacks the metric is passed over, if another phase has measured it or a `later` one may.
        """
        if self._by is None:
            return
        name, end = self._by
        if name not in metrics:
            others = set().union(*(measuring(other, name) for other in later))
            if self.index is not None or others - measuring(plan, name):
                return
            known = [each for each in metrics if each.startswith("eval/")]
            raise ConfigError(
                f"checkpoints.best: this evaluation measures no `{name}`{did_you_mean(name, known)} "
                f"(there are {', '.join(known)})"
            )
        value = float(metrics[name])
        better = self._value is None or (value > self._value if end == "high" else value < self._value)
        if counts and math.isfinite(value) and better:
            self._value, self.index = value, index

    def state(self) -> dict[str, Any] | None:
        """What a resumed run must know."""
        return None if self._by is None else {"by": list(self._by), "value": self._value, "index": self.index}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state` gave. By another metric, what was best so far is not known, and counts for nothing."""
        if state is not None and self._by is not None and state["by"] == list(self._by):
            self._value, self.index = state["value"], state["index"]


def measuring(plan: PhasePlan, metric: str) -> set[object]:
    """What may measure this in a phase's evaluation: the components it is called after, or the phase's whole reward."""
    if plan.settings.evaluate is None:
        return set()
    name = metric.removeprefix("eval/")
    found: set[object] = {
        m.component for m in plan.evaluators if f"{name}/".startswith((f"{m.name}/", f"reward/{m.name}/"))
    }
    return found | ({plan.training} if name in ("total", "reward/total") and plan.evaluates_reward else set())


def unmeasured(asked: Save, plans: Sequence[PhasePlan]) -> list[str]:
    """What is wrong where no phase's evaluation can measure the metric that is asked for."""
    metric, _ = asked.best_by or (ALWAYS[0], "")
    if metric in ALWAYS or any(measuring(plan, metric) for plan in plans):
        return []
    names = dict.fromkeys(m.name for plan in plans if plan.settings.evaluate for m in plan.evaluators)
    meant, there = did_you_mean(metric.split("/")[1], names), ", ".join(names)
    return [f"checkpoints.best: no evaluation measures `{metric}`{meant} (what is evaluated: {there})"]
