"""Which evaluation of a run was the best so far: its checkpoint is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlalign.config.words import did_you_mean
from rlalign.data.settings import Save
from rlalign.errors import ConfigError


class Best:
    """The best evaluation by `checkpoints.best`; without it there is none. The first of equals stays."""

    def __init__(self, asked: Save) -> None:
        self._by = asked.best_by
        self._value: float | None = None
        self.index: int | None = None
        """The checkpoint at which it was, by its number."""

    def seen(self, metrics: Mapping[str, float], index: int, *, counts: bool) -> None:
        """An evaluation at this checkpoint. Before the first iteration (`counts` is false) only its names matter."""
        if self._by is None:
            return
        name, end = self._by
        if name not in metrics:
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
