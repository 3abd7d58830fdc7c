"""An iteration's learning: by an `update` hook, or else epochs × minibatches of the losses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from rlalign.data.batch import Batch, Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.learning.learner import GradientLearner
from rlalign.running.bad_rewards import save_bad_batch, without_bad_rewards
from rlalign.running.phase import RunningPhase
from rlalign.running.responses import sample


def update(phase: RunningPhase, batch: Batch) -> Mapping[str, float]:
    """Learn from a batch; the metrics."""
    if len(batch) == 0:
        phase.workspace.display.note(f"iteration {phase.iteration + 1}: no responses left to learn from")
        return {"empty_steps": 1.0}
    now = Update(phase)
    try:
        with phase.untouched.learning(batch):
            own = phase.plan.training.update(phase.run, batch, now)
            if own is None:
                return now.learn(batch)
        now.stepped()
        return own
    except ComponentError as error:
        folder = phase.workspace.dir
        where = save_bad_batch(folder, batch.rollout, {"advantage": batch.advantage_NT, **batch.reward.parts})
        raise ComponentError(f"{error} (the batch is in {where})") from error
    finally:
        now.close()


class Update:
    """One iteration's learning in progress: the `learner` of an `update` hook. `Learner` says what each method does."""

    def __init__(self, phase: RunningPhase) -> None:
        self._phase = phase
        self._refusal: str | None = None
        self._responded = 0
        self._epochs = 0

    @property
    def _learner(self) -> GradientLearner:
        if self._refusal is not None:
            raise ComponentError(f"the learner of an `update` hook cannot be used {self._refusal}")
        assert self._phase.learner is not None
        return self._phase.learner

    def close(self) -> None:
        self._refusal = "once the hook has returned"

    def stepped(self) -> None:
        self._phase.step += 1

    def loss(self, batch: Batch) -> float:
        with self._phase.untouched.core():
            return self._learner.loss(batch)

    def gradient(self, batch: Batch) -> Tensor:
        with self._phase.untouched.core():
            return self._learner.gradient(batch)

    def parameters(self) -> Tensor:
        with self._phase.untouched.core():
            return self._learner.parameters()

    def assign(self, vector: Tensor) -> None:
        with self._phase.untouched.core():
            self._learner.assign(vector)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        with self._phase.untouched.core():
            return self._learner.split(vector)

    def accumulate(
        self, rollout: Rollout, compute: Callable[[Rollout, Sequence[Tensor]], float]
    ) -> tuple[float, Tensor]:
        with self._phase.untouched.core():
            return self._learner.accumulate(rollout, compute)

    def learn(self, batch: Batch, only: Collection[str] | None = None) -> dict[str, float]:
        learner, phase = self._learner, self._phase
        first, self._epochs = self._epochs, self._epochs + phase.settings.train.epochs

        def progress(share: float) -> float:
            phase.share = share
            return phase.progress

        self._refusal = "by other hooks while it learns"
        try:
            with phase.untouched.core(), learner.training(only):
                return learner.learn(
                    batch.as_step(),
                    shuffle=lambda epoch: phase.rng("minibatches", phase.iteration, first + epoch),
                    progress=progress,
                    ready=lambda metrics: phase.plan.training.step_ready(phase.run, metrics),
                    stepped=self.stepped,
                )
        finally:
            self._refusal = None

    def respond(self, examples: Sequence[Example]) -> tuple[Rollout, Reward]:
        phase, _ = self._phase, self._learner
        self._responded += 1
        key = ("respond", phase.repeat, phase.place, phase.iteration, self._responded)
        with phase.untouched.core():
            rollout = sample(phase, examples, phase.settings.generation, key, 0)
            return without_bad_rewards(phase, phase.plan.training, rollout, phase.plan.columns)
