"""One iteration's learning: epochs of optimiser steps, and what a component's own `update` may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlalign.data.batch import Batch
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Train
from rlalign.decoding.logits import full_precision, removed, scaled
from rlalign.errors import ComponentError
from rlalign.interface.policy import Model, Policy
from rlalign.learning import batching
from rlalign.learning.engine import Engine, Losses
from rlalign.learning.optimiser import Optimiser


class GradientLearner:
    """Turns batches into optimiser steps over the models a phase trains."""

    def __init__(
        self, engine: Engine, optimiser: Optimiser, models: Mapping[str, Model], train: Train, losses: Losses
    ) -> None:
        self.engine = engine
        self.optimiser = optimiser
        self.models = models
        self.train = train
        self.losses = losses

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
        return [torch.isin(batch.rollout.group_N, groups).nonzero()[:, 0] for groups in parts]

    def gradient_step(self, batch: Batch) -> tuple[dict[str, float], Tensor]:
        """Leave the gradient of one step in `.grad`; its metrics and norm, finite or the component is named."""
        metrics = self.engine.step(batch, self.losses)
        names, values = list(metrics), [float(v) for v in metrics.values()]
        found = dict(zip(names, values, strict=True))
        if not any(name.endswith("/loss") for name in names):
            raise ComponentError("no component returned a loss for this step; is a `return` missing?")
        for name, value in found.items():
            if not math.isfinite(value) and (name == "loss" or name.endswith("/loss")):
                guilty = next((n for n in names if n.endswith("/loss") and not math.isfinite(found[n])), name)
                raise ComponentError(f"the loss of `{guilty.removesuffix('/loss')}` is {found[guilty]}")
        norm = self.optimiser.gradient_norm()
        if not math.isfinite(float(norm)):
            raise ComponentError(
                f"the gradient of {' + '.join(n for n in names if n.endswith('/loss'))} is not finite"
            )
        return found, norm

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

    def parameters(self) -> Tensor:
        """All trained parameters as one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self.optimiser.parameters.values()])

    def assign(self, vector: Tensor) -> None:
        """Write a vector into the trained parameters."""
        with torch.no_grad():
            for parameter, piece in zip(self.optimiser.parameters.values(), self._split(vector), strict=True):
                parameter.copy_(piece)
        for name in self.engine.trains:
            self.models[name].version += 1

    def _split(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self.optimiser.parameters.values())
        sizes = [p.numel() for p in parameters]
        return [x.view_as(p) for x, p in zip(vector.split(sizes), parameters, strict=True)]

    def loss(self, batch: Batch) -> float:
        """The weighted sum of all losses on a step, without a gradient."""
        with torch.no_grad():
            return float(self.engine.step(batch.as_step(), self.losses)["loss"])

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of the weighted sum of all losses, as one vector."""
        self.gradient_step(batch.as_step())
        return self._taken()

    def kl(self, batch: Batch, vector: Tensor) -> float:
        """KL(π_v ‖ π), a mean over the batch's chosen steps: π_v the policy at a vector, π as it is now.

        Exact: a sum over the vocabulary, under the distribution sampled from.
        """
        rollout, then = batch.rollout, self._of_policy(vector)
        total = self._over_parts(rollout, lambda part: self._kl_part(part, then))
        return total / max(1, int(rollout.mask_NT.sum()))

    def fisher_product(self, batch: Batch, vector: Tensor) -> Tensor:
        """F·v, F the policy's Fisher matrix, a mean over the batch's chosen steps.

        F = Jᵀ(diag p − ppᵀ)J with J the Jacobian of the logits: one forward-mode and one reverse pass a
        micro-batch, no second-order graph.
        """
        rollout, tangents = batch.rollout, self._of_policy(vector)
        self._over_parts(rollout, lambda part: self._push_fisher(part, tangents))
        return self._taken() / max(1, int(rollout.mask_NT.sum()))

    def _taken(self) -> Tensor:
        """What `.grad` holds, as one vector; nothing is left there."""
        parameters = self.optimiser.parameters.values()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.detach().reshape(-1) for g in grads])
        self.engine.clear_gradients()
        return flat

    def _of_policy(self, vector: Tensor) -> dict[str, Tensor]:
        """The policy's pieces of a vector, as `_Apart` names its parameters."""
        named = zip(self.optimiser.parameters, self._split(vector), strict=True)
        return {f"policy.{k.removeprefix('policy/')}": x for k, x in named if k.startswith("policy/")}

    def _over_parts(self, rollout: Rollout, compute: Callable[[Rollout], float]) -> float:
        """A sum over micro-batches. Out of memory, it starts over with half the budget."""
        while True:
            self.engine.clear_gradients()
            try:
                parts = batching.micro_batches(rollout, self.engine.budget)
                return sum(compute(rollout.take(batching.index(rows, rollout))) for rows in parts)
            except torch.OutOfMemoryError:
                self.engine._halve(rollout)

    def _head_chunks(self, rollout: Rollout) -> Sequence[Tensor]:
        row_M, _ = rollout.chosen
        chunks: Sequence[Tensor] = torch.arange(len(row_M), device=row_M.device).split(self.engine.head_chunk)
        return chunks

    @torch.no_grad()
    def _kl_part(self, rollout: Rollout, then: dict[str, Tensor]) -> float:
        policy, total = self.engine.policy("policy"), 0.0
        apart = _Apart(policy)
        with self.engine.autocast():
            then_MC, now_MC = functional_call(apart, then, (rollout,)), apart(rollout)
            for at in self._head_chunks(rollout):
                then_mV = _distribution(
                    functional_call(apart, then, (then_MC[at],)), rollout, at, policy.ends
                )
                now_mV = _distribution(apart(now_MC[at]), rollout, at, policy.ends)
                kl_mV = then_mV.exp() * (then_mV - now_mV)
                total += float(kl_mV.masked_fill(then_mV == -math.inf, 0.0).sum(1).double().sum())
        return total

    def _push_fisher(self, rollout: Rollout, tangents: Mapping[str, Tensor]) -> float:
        """Add Σ Jᵀ(diag p − ppᵀ)J v over the chosen steps to `.grad`."""
        policy = self.engine.policy("policy")
        apart, temperature_M = _Apart(policy), rollout.setting("temperature")[rollout.chosen[0]]
        own = dict(apart.named_parameters())
        with self.engine.autocast():
            h_MC = policy.features(rollout)
            g_MC = torch.zeros_like(h_MC)
            with forward_ad.dual_level(), _forward_mode():
                duals = {name: forward_ad.make_dual(own[name], v) for name, v in tangents.items()}
                moved_MC = functional_call(apart, duals, (rollout,))
                for at in self._head_chunks(rollout):
                    z_mV, jv_mV = forward_ad.unpack_dual(functional_call(apart, duals, (moved_MC[at],)))
                    if jv_mV is None:  # nothing that trains moves these logits
                        continue
                    p_mV = _distribution(z_mV, rollout, at, policy.ends).exp()
                    jv_mV = full_precision(jv_mV)
                    centred_mV = p_mV * (jv_mV - (p_mV * jv_mV).sum(1, keepdim=True))
                    centred_mV = centred_mV / temperature_M[at][:, None].to(p_mV) ** 2
                    with torch.enable_grad():
                        h_mC = h_MC.detach()[at].requires_grad_()
                        logits_mV = policy.head(h_mC)
                    logits_mV.backward(centred_mV.to(logits_mV.dtype))
                    assert h_mC.grad is not None
                    g_MC[at] = h_mC.grad
        if h_MC.requires_grad:
            h_MC.backward(g_MC)
        return 0.0


class _Apart(nn.Module):
    """Trunk and head as calls of one module, so that other tensors can stand in for the parameters."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, what: Rollout | Tensor) -> Tensor:
        return self.policy.features(what) if isinstance(what, Rollout) else self.policy.head(what)


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Tangents without a graph of theirs; of the attention kernels only the plain one has a derivative here."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _distribution(logits_mV: Tensor, rollout: Rollout, at: Tensor, ends: Sequence[int]) -> Tensor:
    """Log-probs of every token at some of the chosen steps, under the distribution sampled from."""
    row_M, step_M = rollout.chosen
    z_mV = scaled(logits_mV, rollout, row_M[at])
    gone_mV = removed(z_mV, rollout, row_M[at], step_M[at], ends)
    return (z_mV if gone_mV is None else z_mV.masked_fill(gone_mV, -math.inf)).log_softmax(1)


def mean_of(collected: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in collected for name in metrics)
    return {
        name: sum(m[name] for m in collected if name in m) / sum(name in m for m in collected)
        for name in names
    }
