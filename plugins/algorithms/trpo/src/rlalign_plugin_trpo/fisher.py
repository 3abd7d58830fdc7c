"""The policy's Fisher matrix times a vector, and its exact KL: sums over the whole vocabulary, chunk by chunk.

Legend: N responses, T steps, M steps the policy chose, m of them at a time, V words, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlalign import Batch, Learner, Policy, Rollout, Run, log_distribution

# -- the mathematics --------------------------------------------------------------------------------


def kl_divergence(then_mV: Tensor, now_mV: Tensor) -> Tensor:
    """[m]: KL(then ‖ now) = Σ_v p_then (log p_then − log p_now), from log-probs; −∞ in both adds nothing."""
    kl_mV = then_mV.exp() * (then_mV - now_mV)
    return kl_mV.masked_fill(then_mV == -math.inf, 0.0).sum(1)


def softmax_fisher(p_mV: Tensor, x_mV: Tensor, temperature_m: Tensor) -> Tensor:
    """[m,V]: (diag p − ppᵀ) x / τ², the Fisher matrix of a softmax of logits over τ, times x."""
    centred_mV = p_mV * (x_mV - (p_mV * x_mV).sum(1, keepdim=True))
    return centred_mV / temperature_m[:, None].to(p_mV) ** 2


# -- over a batch -----------------------------------------------------------------------------------


def fisher_product(run: Run, learner: Learner, batch: Batch, vector: Tensor) -> Tensor:
    """F·v, F the policy's Fisher matrix, a mean over the batch's chosen steps (Schulman et al. 2015, appendix C).

    F = Jᵀ(diag p − ppᵀ)J with J the Jacobian of the logits: one forward-mode and one reverse pass a
    micro-batch, no second-order graph.
    """
    policy, tangents = run.models.policy, _of_policy(learner.split(vector))

    def push(part: Rollout, chunks: Sequence[Tensor]) -> float:
        _push_fisher(policy, part, chunks, tangents)
        return 0.0

    _, product = learner.accumulate(batch.rollout, push)
    return product / max(1, int(batch.rollout.mask_NT.sum()))


def policy_kl(run: Run, learner: Learner, batch: Batch, vector: Tensor) -> float:
    """KL(π_v ‖ π), a mean over the batch's chosen steps: π_v the policy at a vector, π as it is now.

    Exact: a sum over the vocabulary, under the distribution sampled from.
    """
    policy, then = run.models.policy, _of_policy(learner.split(vector))
    total, _ = learner.accumulate(batch.rollout, lambda part, chunks: _kl(policy, part, chunks, then))
    return total / max(1, int(batch.rollout.mask_NT.sum()))


@torch.no_grad()
def _kl(policy: Policy, rollout: Rollout, chunks: Sequence[Tensor], then: Mapping[str, Tensor]) -> float:
    apart, total = _Apart(policy), 0.0
    own = dict(apart.named_parameters())
    held = {name: x.to(own[name].dtype) for name, x in then.items()}  # rounded as the policy's weights are
    then_MC, now_MC = functional_call(apart, held, (rollout,)), apart(rollout)
    for at in chunks:
        then_mV = _log_probs(functional_call(apart, held, (then_MC[at],)), rollout, at, policy)
        now_mV = _log_probs(apart(now_MC[at]), rollout, at, policy)
        total += float(kl_divergence(then_mV, now_mV).double().sum())
    return total


def _push_fisher(
    policy: Policy, rollout: Rollout, chunks: Sequence[Tensor], tangents: Mapping[str, Tensor]
) -> None:
    """Add Σ Jᵀ(diag p − ppᵀ)J v over the chosen steps to `.grad`."""
    apart, temperature_M = _Apart(policy), rollout.setting("temperature")[rollout.chosen[0]]
    own = dict(apart.named_parameters())
    h_MC = policy.features(rollout)
    g_MC = torch.zeros_like(h_MC)
    with forward_ad.dual_level(), _forward_mode():
        duals = {name: forward_ad.make_dual(own[name], v) for name, v in tangents.items()}
        moved_MC = functional_call(apart, duals, (rollout,))
        for at in chunks:
            z_mV, jv_mV = forward_ad.unpack_dual(functional_call(apart, duals, (moved_MC[at],)))
            if jv_mV is None:  # nothing that trains moves these logits
                continue
            p_mV = _log_probs(z_mV, rollout, at, policy).exp()
            centred_mV = softmax_fisher(p_mV, jv_mV.to(p_mV), temperature_M[at])
            with torch.enable_grad():
                h_mC = h_MC.detach()[at].requires_grad_()
                logits_mV = policy.head(h_mC)
            logits_mV.backward(centred_mV.to(logits_mV.dtype))
            assert h_mC.grad is not None
            g_MC[at] = h_mC.grad
    if h_MC.requires_grad:
        with torch.autocast(h_MC.device.type, enabled=False):
            h_MC.backward(g_MC)


def _of_policy(pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The policy's pieces of a vector, as `_Apart` names its parameters."""
    return {f"policy.{k.removeprefix('policy/')}": x for k, x in pieces.items() if k.startswith("policy/")}


def _log_probs(logits_mV: Tensor, rollout: Rollout, at: Tensor, policy: Policy) -> Tensor:
    row_M, step_M = rollout.chosen
    return log_distribution(logits_mV, rollout, (row_M[at], step_M[at]), policy.ends)


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
