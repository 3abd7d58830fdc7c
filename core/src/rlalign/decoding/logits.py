"""Logits → log-probs and entropy: the one place that applies temperature, bans and `allowed`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from rlalign.data.rollout import Rollout
from rlalign.errors import BadLogits

LIVE = ("logprobs", "full_logprobs", "entropy")


HUGE = 1e4
"""No weight of a model that works is as large."""


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits in float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def bad_logits(model: object, where: str) -> BadLogits:
    """The error for a model's logits at some place, with what may have caused them."""
    named = f"the model `{getattr(model, 'name', '') or type(model).__name__}`"
    weights = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    largest = {name: float(weight.detach().abs().max()) for name, weight in weights.items() if weight.numel()}
    broken = next((name for name, most in largest.items() if not math.isfinite(most)), None)
    grown = max(largest, key=lambda name: largest[name], default=None) if broken is None else None
    if broken is not None or (grown is not None and largest[grown] > HUGE):
        said = (
            f"so are its weights, `{broken}` among them"
            if broken
            else f"`{grown}` holds {largest[grown or '']:.1g}"
        )
        cause = (
            f"{said}: it has diverged. Start a new run with a lower `train.lr`, a smaller `train.clip`, or a `kl` "
            "reward with a larger `coef`"
        )
    else:
        cause = (
            "its weights are finite, so a number overflows on the way, as under `train.dtype: bfloat16`, or its "
            "attention returns NaN, as `eager` does in some architectures where prompts are padded on the left: "
            "try `attention: sdpa`, or `train.dtype: float32`"
        )
    return BadLogits(f"{where}: the logits of {named} are NaN or infinite; {cause}")


def _log_total(scaled_MV: Tensor) -> Tensor:
    """[M,1]: the logarithm of the sum of exponentials; NaN where a logit is +∞."""
    total_M1 = scaled_MV.logsumexp(1, keepdim=True)
    return total_M1.masked_fill(total_M1 == math.inf, math.nan)


def steps_outputs(
    logits_MV: Tensor,
    rollout: Rollout,
    chosen_M: tuple[Tensor, Tensor],
    ends: Sequence[int],
    want: Collection[str],
) -> dict[str, Tensor]:
    """[M] per wanted output, for some chosen steps (row_M, step_M) of a rollout."""
    row_M, step_M = chosen_M
    action_M1 = rollout.actions_NT[row_M, step_M][:, None]
    scaled_MV = scaled(logits_MV, rollout, row_M)
    removed_MV = None if only_full(want) else removed(scaled_MV, rollout, row_M, step_M, ends)
    outputs: dict[str, Tensor] = {}
    full_M1 = scaled_MV.gather(1, action_M1)
    if removed_MV is None:
        norm_M1 = _log_total(scaled_MV)
        outputs["logprobs"] = outputs["full_logprobs"] = (full_M1 - norm_M1)[:, 0]
        if "entropy" in want:
            logp_MV = scaled_MV - norm_M1
            # A policy may rule tokens out by a logit of −∞; they add nothing, not NaN.
            outputs["entropy"] = -(logp_MV.exp() * logp_MV.masked_fill(logp_MV == -math.inf, 0.0)).sum(1)
    else:
        if "full_logprobs" in want:
            outputs["full_logprobs"] = (full_M1 - _log_total(scaled_MV))[:, 0]
        logp_MV = scaled_MV.masked_fill(removed_MV, -math.inf).log_softmax(1)
        outputs["logprobs"] = logp_MV.gather(1, action_M1)[:, 0]
        if "entropy" in want:
            outputs["entropy"] = -(logp_MV.exp() * logp_MV.masked_fill(logp_MV == -math.inf, 0.0)).sum(1)
    return {name: outputs[name] for name in LIVE if name in want}


def only_full(want: Collection[str]) -> bool:
    """Whether nothing is wanted that bans and truncations move."""
    return set(want) == {"full_logprobs"}


def log_distribution(
    logits_MV: Tensor, rollout: Rollout, chosen_M: tuple[Tensor, Tensor], ends: Sequence[int]
) -> Tensor:
    """[M,V]: log-probs of every token at some chosen steps (row_M, step_M), under the distribution sampled from."""
    z_MV = scaled(logits_MV, rollout, chosen_M[0])
    gone_MV = removed(z_MV, rollout, *chosen_M, ends)
    return (z_MV if gone_MV is None else z_MV.masked_fill(gone_MV, -math.inf)).log_softmax(1)


def scaled(logits_MV: Tensor, rollout: Rollout, row_M: Tensor) -> Tensor:
    """Logits over the temperature each row was sampled at."""
    full_MV, over_M1 = full_precision(logits_MV), temperatures(rollout, row_M)
    return full_MV if over_M1 is None else full_MV / over_M1.to(full_MV.dtype)


def temperatures(rollout: Rollout, row_M: Tensor) -> Tensor | None:
    """[M,1]: what each row's logits were divided by; None if by nothing."""
    if all(how.temperature == 1 for how in rollout.settings):
        return None
    return rollout.setting("temperature")[row_M][:, None]


def removed(
    scaled_MV: Tensor, rollout: Rollout, row_M: Tensor, step_M: Tensor, ends: Sequence[int]
) -> Tensor | None:
    """[M,V] bool: what bans and truncations took away; None if nothing."""
    removed_MV = None
    if rollout.allowed is not None:
        removed_MV = ~rollout.allowed.mask(row_M, step_M)
    # Asked of the settings, not of the tensors: no wait for the device.
    if ends and any(how.min_new_tokens for how in rollout.settings):
        early_M = step_M < rollout.setting("min_new_tokens")[row_M]
        if removed_MV is None:
            removed_MV = torch.zeros_like(scaled_MV, dtype=torch.bool)
        columns = torch.tensor(list(ends), device=scaled_MV.device)
        removed_MV[:, columns] |= early_M[:, None]
    return removed_MV
