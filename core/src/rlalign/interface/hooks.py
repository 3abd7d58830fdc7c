"""Everything a component can take part in: five stages of an iteration and six events of a run.

Implement any subset as methods marked `@rlalign.hookimpl`, with the arguments named as here
(a hook may leave out arguments it does not read). `docs/hooks.md` is the manual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
    from rlalign.data.example import Example
    from rlalign.data.rollout import Rollout
    from rlalign.interface.run import Learner, Run

hookspec = pluggy.HookspecMarker("rlalign")
hookimpl = pluggy.HookimplMarker("rlalign")


@hookspec(firstresult=True)
def rollout(run: Run, examples: Sequence[Example]) -> Rollout | None:
    """Responses to the examples the loop drew, each example one group.

    The pipeline's `responses` decides which component answers: `sampled`, `logged`, a `mix` of both.
    An algorithm never samples by hand; it declares what it wants (`responses`, `constraint`).
    """


@hookspec
def reward(run: Run, rollout: Rollout) -> Score | None:
    """Score responses, higher is better.

    Called with whole groups, possibly in several parts; a response's value may depend on its group
    only. As a wrapper (`@hookimpl(wrapper=True)`) it receives from its `yield` the list of scores of
    the items above it, named and unweighted, and returns scores of the same names.
    """


@hookspec(firstresult=True)
def advantage(run: Run, rollout: Rollout, reward: Reward) -> Batch | None:
    """Turn scored responses into a training batch: `Batch.of(rollout, reward, advantage)`.

    Without an implementation the advantage is the response's total reward at every chosen step.
    A wrapper filters (`batch.take`), pairs or reweights what the items above it made.
    """


@hookspec
def loss(run: Run, batch: Batch, now: Outputs) -> Loss | None:
    """A differentiable scalar of `now` on one piece of an optimiser step.

    All components' losses are weighted and added. Means are taken with `batch.mean_over_tokens`,
    `mean_over_responses` and `mean_over_groups`, which divide by the whole step's count.
    """


@hookspec
def evaluate(run: Run, rollout: Rollout) -> Mapping[str, float] | None:
    """Metrics of a set of responses that are not a mean over responses, logged as `eval/<name>`."""


@hookspec
def phase_started(run: Run) -> None:
    """Before the first draw of a phase, and again when a run resumes inside it.

    The place for `run.column(...)` and `run.draw.weights(...)`; whatever is done here must come out
    the same when it is done again.
    """


@hookspec(firstresult=True)
def update(run: Run, batch: Batch, learner: Learner) -> Mapping[str, float] | None:
    """One iteration's learning, with what `learner` can do; returns metrics.

    Without an implementation: epochs times minibatches of `loss`, an optimiser step each.
    """


@hookspec
def step_started(run: Run, batch: Batch) -> None:
    """The passes of an optimiser step are about to begin; `batch` is all of it.

    What a loss wants to know of the models for the whole step is asked here (`run.score`), by all processes
    together, and remembered until weights change.
    """


@hookspec
def step_ready(run: Run, metrics: Mapping[str, float]) -> bool | None:
    """The gradient of an optimiser step is there. False drops the step and ends this update."""


@hookspec
def iteration_done(run: Run, rollout: Rollout, reward: Reward, metrics: Mapping[str, float]) -> None:
    """The iteration's learning is over: adapt a coefficient, refresh a copy, update a baseline.

    `rollout` and `reward` are all its responses and what they earned, `metrics` what is logged of it.
    """


@hookspec
def evaluated(run: Run, metrics: Mapping[str, float]) -> None:
    """An evaluation is over: stop a phase that no longer improves (`run.finish_phase`)."""


@hookspec
def run_ended(run: Run, error: Exception | None) -> None:
    """The run is over: `error` is None where it is finished and its model written, else what stopped it.

    Called on every component that was set up in this process; not after a second Ctrl-C.
    """


WATCHING = ("phase_started", "iteration_done", "evaluated", "run_ended")
"""The hooks of components under `observers`."""
