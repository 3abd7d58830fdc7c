"""Steps captured in CUDA graphs, one for each number of slots: a replay is one call, whatever the step is made of.

An optimiser's step changes weights where they are, so that a graph stays good for the next rollout.
"""

from __future__ import annotations

from typing import Any

import torch

from rlalign_plugin_hf.engine.slots import Slots

WARM_UP = 3
"""Steps before a capture, in which libraries make ready what a capture would not allow them to."""


class Eager:
    """The same step, kernel by kernel."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    def step(self, n: int) -> None:
        self.slots.step(n)


class Graphs(Eager):
    """The step of each number of slots, captured when it is first taken."""

    def __init__(self, slots: Slots) -> None:
        super().__init__(slots)
        self._graphs: dict[int, Any] = {}
        self._pool: Any = None
        self.failed: str | None = None
        """Why the step cannot be captured here; it is taken without a graph then."""

    def step(self, n: int) -> None:
        if n not in self._graphs and self.failed is None:
            try:
                self._graphs[n] = self._captured(n)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # if the step itself is at fault, it says so again
                self.failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if n in self._graphs:
            self._graphs[n].replay()
        else:
            self.slots.step(n)

    def _captured(self, n: int) -> Any:
        """The graph of a step, and all slots as they were: one with nothing to do steps without a trace.

        It takes its last token once more, and writes the keys and values that stand there or will.
        """
        slots = self.slots
        held = [(buffer, buffer.clone()) for buffer in (slots.time_B, slots.tick_)]
        slots.time_B.fill_(slots.shape.steps)
        slots.tick_.zero_()
        try:
            with torch.cuda.device(slots.token_B.device):
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        slots.step(n)
                        slots.tick_.zero_()
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                # Of this thread alone: others may copy checkpoints meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    slots.step(n)
            self._pool = graph.pool()
        finally:
            for buffer, before in held:
                buffer.copy_(before)
        return graph
