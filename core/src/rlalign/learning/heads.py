"""From features to log-probs and entropies at chosen steps, and from their cotangents back to the features.

`ByAutograd` takes any head. `InPlace` takes a head that is one matrix: a single buffer holds its logits, then
their probabilities, then their gradient, and the matrix's own gradient is added where it stands; a matrix that
does not train costs neither. Both give the same numbers up to rounding.

Legend: m chosen steps, C width of the features, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rlalign.data.rollout import Rollout
from rlalign.decoding.logits import LIVE, full_precision, only_full, removed, steps_outputs, temperatures
from rlalign.interface.policy import Policy

Outputs = dict[str, Tensor]
Chosen = tuple[Tensor, Tensor]


class Head(Protocol):
    """A policy's head over some chosen steps, held open until the cotangents of its outputs are known."""

    outputs: Outputs
    """[m] for each that was wanted, without a graph."""

    def backward(self, cotangents: Mapping[str, Tensor]) -> Tensor | None:
        """Add the gradients of the head's weights to their `.grad`; returns that of the features, if they have one."""


def opened(
    policy: Policy,
    h_mC: Tensor,
    rollout: Rollout,
    chosen_m: Chosen,
    want: Collection[str],
    *,
    learns: bool = False,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Head:
    """The head over these steps. Unless it `learns` it has no backward."""
    matrix_VC = policy.head_matrix()
    narrowed = rollout.allowed is not None or any(how.min_new_tokens for how in rollout.settings)
    both = (
        narrowed and "full_logprobs" in want and not only_full(want)
    )  # two distributions of the same logits
    if matrix_VC is None or both:
        return ByAutograd(policy, h_mC, rollout, chosen_m, want, learns, autocast)
    return InPlace(policy, matrix_VC, h_mC, rollout, chosen_m, want, learns, autocast)


class ByAutograd:
    """Any head: whatever it adds, caps or scales is in its graph."""

    def __init__(
        self,
        policy: Policy,
        h_mC: Tensor,
        rollout: Rollout,
        chosen_m: Chosen,
        want: Collection[str],
        learns: bool,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._h_mC = h_mC.detach().requires_grad_(learns and h_mC.requires_grad)
        with torch.set_grad_enabled(learns):
            with autocast():
                logits_mV = policy.head(self._h_mC)
            self._found = steps_outputs(logits_mV, rollout, chosen_m, policy.ends, want)
        self.outputs = {name: x.detach() for name, x in self._found.items()}

    def backward(self, cotangents: Mapping[str, Tensor]) -> Tensor | None:
        found, self._found = self._found, {}
        pairs = [(x, cotangents[name]) for name, x in found.items() if name in cotangents and x.requires_grad]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [g.to(x.dtype) for x, g in pairs])
        return self._h_mC.grad


class InPlace:
    """A head that is one matrix, without a graph: log p(a) = z_a − log Σ exp z and its gradient 1_a − p."""

    @torch.no_grad()
    def __init__(
        self,
        policy: Policy,
        matrix_VC: Tensor,
        h_mC: Tensor,
        rollout: Rollout,
        chosen_m: Chosen,
        want: Collection[str],
        learns: bool,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._matrix_VC, self._h_mC = matrix_VC, h_mC
        self._action_m1 = rollout.actions_NT[chosen_m][:, None]
        with autocast():
            logits_mV = F.linear(h_mC, matrix_VC)
        self._dtype = logits_mV.dtype
        z_mV = full_precision(logits_mV)
        del logits_mV
        over_m1 = temperatures(rollout, chosen_m[0])
        self._over_m1 = None if over_m1 is None else over_m1.to(z_mV.dtype)
        if self._over_m1 is not None:
            z_mV /= self._over_m1
        gone_mV = None if only_full(want) else removed(z_mV, rollout, *chosen_m, policy.ends)
        if gone_mV is not None:
            z_mV.masked_fill_(gone_mV, -math.inf)
        z_mV -= z_mV.amax(1, keepdim=True)
        action_m1 = z_mV.gather(1, self._action_m1)
        self._z_mV: Tensor | None = None
        if "entropy" in want:
            p_mV = z_mV.exp()
            if gone_mV is not None:
                z_mV.masked_fill_(gone_mV, 0.0)  # p is 0 there, and 0 times −∞ would be NaN
            self._z_mV = z_mV
        else:
            p_mV = z_mV.exp_()
        self._p_mV: Tensor | None = p_mV
        self._total_m1 = p_mV.sum(1, keepdim=True)
        log_total_m1 = self._total_m1.log()
        self._logp_m1 = action_m1 - log_total_m1
        found = {"logprobs": self._logp_m1, "full_logprobs": self._logp_m1}
        if self._z_mV is not None:
            mean_m = torch.linalg.vecdot(p_mV, self._z_mV)
            found["entropy"] = log_total_m1 - mean_m[:, None] / self._total_m1
            self._log_p_and_entropy_m1 = found["entropy"] - log_total_m1
        self.outputs = {name: found[name][:, 0] for name in LIVE if name in want}
        if not learns:
            self._p_mV = self._z_mV = None

    @torch.no_grad()
    def backward(self, cotangents: Mapping[str, Tensor]) -> Tensor | None:
        p_mV, z_mV, self._p_mV, self._z_mV = self._p_mV, self._z_mV, None, None
        if p_mV is None or not cotangents:
            return None
        d_mV = self._of_logits(p_mV, z_mV, cotangents).to(self._dtype)
        del p_mV, z_mV
        self._add_matrix_gradient(d_mV)
        if not self._h_mC.requires_grad:
            return None
        return (d_mV @ self._matrix_VC.to(self._dtype)).to(self._h_mC.dtype)

    def _of_logits(self, p_mV: Tensor, z_mV: Tensor | None, cotangents: Mapping[str, Tensor]) -> Tensor:
        """[m,V]: d loss / d logits, in a buffer of the forward. `p_mV` is not yet divided by its sum."""

        def given(*names: str) -> Tensor | None:
            found = [cotangents[name].to(p_mV.dtype)[:, None] for name in names if name in cotangents]
            total = sum(found[1:], found[0]) if found else None
            return total if total is None or self._over_m1 is None else total / self._over_m1

        g_m1, g_entropy_m1 = given("logprobs", "full_logprobs"), given("entropy")
        if g_entropy_m1 is not None:
            # d entropy / d z = −p (log p + entropy)
            assert z_mV is not None
            z_mV += self._log_p_and_entropy_m1
            z_mV *= -g_entropy_m1 / self._total_m1
            if g_m1 is not None:
                z_mV -= g_m1 / self._total_m1
            d_mV = z_mV.mul_(p_mV)
        else:
            assert g_m1 is not None
            d_mV = p_mV.mul_(-g_m1 / self._total_m1)
        if g_m1 is not None:
            # A token that was taken away (log p = −∞) has no logit to push.
            d_mV.scatter_add_(1, self._action_m1, g_m1.masked_fill(self._logp_m1 == -math.inf, 0.0))
        return d_mV

    def _add_matrix_gradient(self, d_mV: Tensor) -> None:
        matrix_VC = self._matrix_VC
        if not matrix_VC.requires_grad:
            return
        h_mC = self._h_mC.detach().to(d_mV.dtype)
        if matrix_VC.grad is None:
            # float32 where the matrix is held in half precision
            matrix_VC.grad = (d_mV.T @ h_mC).to(getattr(matrix_VC, "grad_dtype", matrix_VC.dtype))
        elif matrix_VC.grad.dtype == d_mV.dtype:
            matrix_VC.grad.addmm_(d_mV.T, h_mC)
        else:
            matrix_VC.grad += d_mV.T @ h_mC
