"""A phase from where it stands to its end: iterations, and evaluations now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rlalign.running.evaluation import evaluate
from rlalign.running.iteration import run_iteration
from rlalign.running.phase import RunningPhase


def iterate(phase: RunningPhase, timed: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Run the phase, evaluating now and then; yields after every iteration, at a point that can be saved.

    `timed` is called while the phase's clock still has what the stages of an iteration took.
    """
    if phase.iteration == 0 and phase.settings.evaluate is not None:
        evaluate(phase)
    while not phase.done:
        with phase.telling_where():
            metrics = run_iteration(phase)
        timed()
        phase.log(metrics)
        phase.workspace.display.iteration(phase.iteration, metrics)
        if phase.evaluates:
            evaluate(phase)
        if phase.done:
            phase.models.check_guard()
        yield phase.iteration
    phase.ahead.leave()  # the next phase may have the same sampler
