"""One iteration's learning: epochs of optimiser steps, and what a component's own `update` may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from rlalign import batching
from rlalign.engine import Engine, Losses
from rlalign.errors import ComponentError
from rlalign.logits import full_precision, removed, scaled
from rlalign.optimiser import Optimiser
from rlalign.pipeline import Train
from rlalign.policy import Model, Policy
from rlalign.types import Batch, Rollout


class Learner:
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
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.optimiser.parameters.values()
        ]
        flat = torch.cat([g.detach().reshape(-1) for g in grads])
        self.engine.clear_gradients()
        return flat

    def fisher_product(self, batch: Batch, vector: Tensor) -> Tensor:
        """F·v, F the policy's Fisher matrix, a mean over the batch's chosen steps.

        F = Jᵀ(diag p − ppᵀ)J with J the Jacobian of the logits: one forward-mode and one reverse pass a
        micro-batch, no second-order graph.
        """
        policy = self.engine.policy("policy")
        tangents = dict(zip(self.optimiser.parameters, self._split(vector), strict=True))
        product = torch.zeros_like(vector)
        rollout = batch.rollout
        for rows in batching.micro_batches(rollout, self.engine.budget):
            product += self._fisher_part(policy, rollout.take(batching.index(rows, rollout)), tangents)
        return product / max(1, int(rollout.mask_NT.sum()))

    def _fisher_part(self, policy: Policy, rollout: Rollout, tangents: Mapping[str, Tensor]) -> Tensor:
        whole = _Logits(policy)
        mine = {k: p for k, p in self.optimiser.parameters.items() if k.startswith("policy/")}
        with forward_ad.dual_level(), self.engine.autocast():
            duals = {
                k.replace("policy/", "policy.", 1): forward_ad.make_dual(p, tangents[k])
                for k, p in mine.items()
            }
            logits_MV, dlogits_MV = forward_ad.unpack_dual(functional_call(whole, duals, (rollout,)))
            logp_MV = _distribution(logits_MV.detach(), rollout, policy)
            scale_M1 = rollout.setting("temperature")[rollout.chosen[0]][:, None].to(logp_MV)
            p_MV = logp_MV.exp()
            jv_MV = torch.zeros_like(p_MV) if dlogits_MV is None else full_precision(dlogits_MV.detach())
            centred_MV = p_MV * (jv_MV - (p_MV * jv_MV).sum(1, keepdim=True)) / scale_M1**2
            grads = torch.autograd.grad(
                logits_MV, list(mine.values()), centred_MV.to(logits_MV.dtype), allow_unused=True
            )
        found = dict(zip(mine, grads, strict=True))
        pieces = []
        for key, parameter in self.optimiser.parameters.items():
            grad = found.get(key)
            pieces.append((torch.zeros_like(parameter) if grad is None else grad).detach().reshape(-1))
        return torch.cat(pieces)


class _Logits(nn.Module):
    """Features and head as one call, so that parameters can be swapped for dual numbers."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, rollout: Rollout) -> Tensor:
        return self.policy.head(self.policy.features(rollout))


def _distribution(logits_MV: Tensor, rollout: Rollout, policy: Policy) -> Tensor:
    """Log-probs of every token at the chosen steps, under the distribution sampled from."""
    row_M, step_M = rollout.chosen
    z_MV = scaled(logits_MV, rollout, row_M)
    gone_MV = removed(z_MV, rollout, row_M, step_M, policy.ends)
    return (z_MV if gone_MV is None else z_MV.masked_fill(gone_MV, -math.inf)).log_softmax(1)


def mean_of(collected: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in collected for name in metrics)
    return {
        name: sum(m[name] for m in collected if name in m) / sum(name in m for m in collected)
        for name in names
    }
