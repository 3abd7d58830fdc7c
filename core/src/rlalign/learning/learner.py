"""One iteration's learning: epochs of optimiser steps, and what a component's own `update` may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rlalign.data.batch import Batch
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Train
from rlalign.errors import ComponentError
from rlalign.interface.policy import Model
from rlalign.learning import batching
from rlalign.learning.batching import Block
from rlalign.learning.engine import Engine, Losses
from rlalign.learning.forward import Metrics
from rlalign.learning.optimiser import Optimiser
from rlalign.progress import report
from rlalign.world.ranks import here
from rlalign.world.sharding import cut_like, gathered, is_cut, local, whole


class GradientLearner:
    """Turns batches into optimiser steps over the models a phase trains."""

    def __init__(
        self,
        engine: Engine,
        optimiser: Optimiser,
        models: Mapping[str, Model],
        train: Train,
        losses: Losses,
        started: Callable[[Batch], None],
    ) -> None:
        self.engine = engine
        self.optimiser = optimiser
        self.models = models
        self.train = train
        self.losses = losses
        self.started = started
        """Told of each step before its passes."""

    def learn(
        self,
        batch: Batch,
        shuffle: Callable[[int], torch.Generator],
        progress: Callable[[float], float],
        ready: Callable[[Mapping[str, float]], bool],
        stepped: Callable[[], None],
    ) -> dict[str, float]:
        """Epochs × minibatches of the losses; the mean of each metric over the optimiser steps taken."""
        collected: list[dict[str, float]] = []
        planned = [
            (e, rows) for e in range(self.train.epochs) for rows in self._minibatches(batch, shuffle(e))
        ]
        empty = 0
        for i, (_, rows) in enumerate(planned):
            if len(rows) == 0:
                empty += 1
                continue
            report("step", i + 1, len(planned))
            step = batch if len(rows) == len(batch) else batch.take(rows).as_step()
            metrics, norm = self.gradient_step(step)
            if not ready(metrics):
                self.engine.clear_gradients()
                collected.append({**metrics, "dropped_steps": 1.0})
                break
            lr = self.optimiser.step(progress(i / len(planned)), norm)
            for name in self.engine.trains:
                self.models[name].version += 1
            stepped()
            collected.append({**metrics, "lr": lr, "grad_norm": float(norm)})
        self.engine.clear_gradients()
        taken = sum("lr" in metrics for metrics in collected)
        return {**mean_of(collected), "optimiser_steps": float(taken), "empty_steps": float(empty)}

    def _minibatches(self, batch: Batch, generator: torch.Generator) -> Sequence[Tensor]:
        """Rows of each optimiser step: whole groups, in a random order unless there is one step only."""
        count = len(batch.rollout.examples)
        device = batch.rollout.group_N.device
        if (self.train.minibatch is None and self.train.minibatches == 1) or count == 0:
            return [torch.arange(len(batch), device=device)]
        order = torch.randperm(count, generator=generator).to(device)
        if self.train.minibatch is not None:
            parts = order.split(self.train.minibatch)
        else:
            parts = order.tensor_split(self.train.minibatches)
        return [batching.places_of(groups, batch.rollout.group_N, count) for groups in parts]

    def gradient_step(self, batch: Batch) -> tuple[dict[str, float], Tensor]:
        """Leave the gradient of one step in `.grad`; its metrics and norm, finite or the component is named."""
        metrics = self._step(batch)
        names, values = list(metrics), [float(v) for v in metrics.values()]
        found = dict(zip(names, values, strict=True))
        if not any(name.endswith("/loss") for name in names):
            raise ComponentError("no component returned a loss for this step; is a `return` missing?")
        for name, value in found.items():
            if not math.isfinite(value) and (name == "loss" or name.endswith("/loss")):
                guilty = next((n for n in names if n.endswith("/loss") and not math.isfinite(found[n])), name)
                raise ComponentError(
                    f"the loss of `{guilty.removesuffix('/loss')}` is {found[guilty]}; {self._remedy}"
                )
        norm = self.optimiser.gradient_norm()
        if not math.isfinite(float(norm)):
            raise ComponentError(
                f"the gradient of {' + '.join(n for n in names if n.endswith('/loss'))} is not finite; {self._remedy}"
            )
        return found, norm

    def _step(self, batch: Batch) -> Metrics:
        self.started(batch)
        return self.engine.step(batch, self.losses)

    @property
    def _remedy(self) -> str:
        """What may help where a number is none."""
        clip = "none" if self.train.clip is None else f"{self.train.clip:g}"
        return (
            f"if training has diverged, start a new run with a lower `train.lr` (it is {self.train.lr:g}), a smaller "
            f"`train.clip` ({clip}), or a `kl` reward with a larger `coef`; if not, look at the rewards and advantages "
            "of the batch"
        )

    @contextmanager
    def training(self, only: Collection[str] | None) -> Iterator[None]:
        """With `only`, the other models stay as they are meanwhile, whatever the losses say."""
        trains = self.engine.trains
        if unknown := [name for name in only or () if name not in trains]:
            raise ComponentError(f"run.learn: `{unknown[0]}` does not train here; declare it in `trains`")
        named = self.optimiser.parameters.items()
        still = [p for key, p in named if only is not None and key.partition("/")[0] not in only]
        try:
            self.engine.trains = trains if only is None else tuple(only)
            for parameter in still:
                parameter.requires_grad_(False)
            yield
        finally:
            self.engine.trains = trains
            for parameter in still:
                parameter.requires_grad_(True)

    # -- for `update` hooks ---------------------------------------------------------------------------

    def _vector(self, tensors: Iterable[Tensor]) -> Tensor:
        """One for each parameter, as one vector: of what is cut the whole, where the models compute."""
        return torch.cat([gathered(x.detach()).reshape(-1).to(self._device) for x in tensors])

    @property
    def _device(self) -> torch.device:
        return self.models[self.engine.trains[0]].device

    def parameters(self) -> Tensor:
        """All trained parameters as one vector."""
        pairs = zip(self.optimiser.parameters.values(), self.optimiser.masters.values(), strict=True)
        return self._vector(held if is_cut(held) else master for held, master in pairs)

    def assign(self, vector: Tensor) -> None:
        """Write a vector into the trained parameters."""
        with torch.no_grad():
            for name, piece in self.split(vector).items():
                held, master = self.optimiser.parameters[name], self.optimiser.masters[name]
                master.copy_(local(cut_like(piece, held)))
        self.optimiser.round()
        for name in self.engine.trains:
            self.models[name].version += 1

    def _split(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self.optimiser.parameters.values())
        sizes = [p.numel() for p in parameters]
        return [x.view(p.shape) for x, p in zip(vector.split(sizes), parameters, strict=True)]

    def loss(self, batch: Batch) -> float:
        """The weighted sum of all losses on a step, without a gradient."""
        with torch.no_grad():
            return float(self._step(batch.as_step())["loss"])

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of the weighted sum of all losses, as one vector."""
        self.gradient_step(batch.as_step())
        return self._taken(self.optimiser.parameters.values())

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector's pieces by parameter: `policy/…`, in the parameter's shape."""
        return dict(zip(self.optimiser.parameters, self._split(vector), strict=True))

    def accumulate(
        self, rollout: Rollout, compute: Callable[[Rollout, Sequence[Tensor]], float]
    ) -> tuple[float, Tensor]:
        """Σ compute(part, chunks) over micro-batches, and what it left in `.grad`, as one vector.

        Out of memory, it starts over with half the budget.
        """
        world, what = here(), f"a sum over {len(rollout)} responses"
        while True:
            mine = self.engine.cut(rollout, ranks=world.size)[world.rank :: world.size]
            with whole(self.engine.models.values()):
                parameters = [self._as_it_is(name) for name in self.optimiser.parameters]
                _clear(parameters)
                try:
                    found = world.summed(partial(self._accumulated, rollout, mine, compute), parameters, what)
                except torch.OutOfMemoryError as error:
                    self.engine.halve(rollout, error, known=True)
                    continue
                return sum(found), self._taken(parameters)

    def _accumulated(
        self,
        rollout: Rollout,
        blocks: Sequence[Block],
        compute: Callable[[Rollout, Sequence[Tensor]], float],
    ) -> float:
        total = 0.0
        for block in blocks:
            part = rollout.take(batching.index(block.rows, rollout))
            steps_M = torch.arange(len(part.chosen[0]), device=part.group_N.device)
            with self.engine.autocast():
                total += compute(part, steps_M.split(self.engine.head_chunk))
        return total

    def _as_it_is(self, name: str) -> nn.Parameter:
        """A parameter as its model has it now: of one that is cut the whole, while it is put together."""
        model, _, path = name.partition("/")
        return self.models[model].get_parameter(path)

    def _taken(self, parameters: Collection[nn.Parameter]) -> Tensor:
        """What `.grad` of these holds, as one vector; nothing is left there."""
        masters = self.optimiser.masters.values()
        grads = [
            torch.zeros(p.shape, dtype=m.dtype) if p.grad is None else p.grad
            for p, m in zip(parameters, masters, strict=True)
        ]
        flat = self._vector(grads)
        _clear(parameters)
        return flat


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def mean_of(collected: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in collected for name in metrics)
    return {
        name: sum(m[name] for m in collected if name in m) / sum(name in m for m in collected)
        for name in names
    }
