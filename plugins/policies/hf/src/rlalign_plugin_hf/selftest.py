"""A loaded network is asked once whether it computes here what it computes alone: a few rows, some milliseconds.

No list of names says which architectures work: whatever comes out otherwise is refused, with what was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlalign import Example, RLAlignError, Rollout, logged_rollout
from rlalign_plugin_hf.options import where

if TYPE_CHECKING:
    from rlalign_plugin_hf.causal import CausalLM
    from rlalign_plugin_hf.model import LanguageModel

CLOSE = 1e-3
"""Largest difference of a logit, in standard deviations of the logits: float32 rounds at 1e-5 of them and less."""


def padding_token(policy: LanguageModel) -> int | None:
    """The network's padding token, where it could stand within a response."""
    pad = getattr(policy.network.config, "pad_token_id", None)
    if pad is None or pad in policy.ends or not 0 <= pad < policy.vocabulary:
        return None
    return int(pad)


@torch.no_grad()
def refuse_if_inexact(policy: LanguageModel) -> None:
    """Stop at an architecture that is not what this package takes it for.

    Some count positions by what is no padding. In a response, where each token is computed once and kept, that
    cannot be done; such a network is exact as long as its padding token is never chosen, so it is ruled out.
    """
    pad = padding_token(policy)
    wrong = fault(policy, pad)
    if wrong and pad is not None and not fault(policy, None):
        policy.never = pad
        return
    if wrong:
        raise RLAlignError(
            f"{where(policy.config)}: a {type(policy.network).__name__} cannot be trained here: {wrong}"
        )


def fault(policy: LanguageModel, pad: int | None) -> str | None:
    """What comes out otherwise than from the network's own forward of one row, unpadded and without a cache."""
    ids = (torch.arange(1, 12, device=policy.device) * 5) % policy.vocabulary
    inputs = ids[:5], ids[3:5]
    actions = ids[4:10].tolist(), ids[5:11].tolist()
    if pad is not None:
        actions[0][1] = actions[1][2] = pad
    examples = [Example(str(i), "", responses=("",)) for i in range(2)]
    rows = [(tokens, False) for tokens in actions]
    rollout = logged_rollout(examples, inputs, rows, like=policy._weight)
    way = "by its own forward"
    try:
        pairs = zip(inputs, rollout.actions_NT, strict=True)
        own_NTV = torch.stack([policy.own_logits(prompt, tokens_T) for prompt, tokens_T in pairs])
        way = "where trunk and head run apart"
        apart_NTV = policy.head(policy.features(rollout)).view_as(own_NTV)
        way = "token by token, beside a longer prompt"
        sampled_NTV = _step_by_step(policy, inputs, rollout.actions_NT)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{way} it raises {type(error).__name__}: {lines[0]}"
    if not bool(own_NTV.isfinite().any()):
        return "its own logits are NaN or infinite"
    spread = float(own_NTV[own_NTV.isfinite()].std().clamp_min(1e-6))
    ways = {
        "where trunk and head run apart": apart_NTV,
        "token by token, beside a longer prompt": sampled_NTV,
    }
    for way, ours_NTV in ways.items():
        off = float((ours_NTV - own_NTV).masked_fill(ours_NTV == own_NTV, 0.0).abs().max())  # −∞ may be both
        if not off <= CLOSE * spread:
            return f"{way}, its logits differ by {off:.2g} from those of the row alone"
    return None


def computes_prompts_once(policy: CausalLM) -> bool:
    """Whether states, and the gradient of the embeddings, are those of whole rows where prompts are computed once."""
    from rlalign_plugin_hf import prompts_once

    ids = (torch.arange(1, 12, device=policy.device) * 5) % policy.vocabulary
    examples = [Example(str(i), "", responses=("", "")) for i in range(2)]
    rows = [(ids[i : i + length].tolist(), False) for i, length in enumerate((6, 3, 1, 4))]
    try:
        return prompts_once.plain_cache(policy.network.config) and all(
            _same_features(policy, logged_rollout(examples, prompts, rows, like=policy._weight))
            for prompts in ((ids[:5], ids[3:5]), (ids[:3], ids[3:6]))  # padded, and of one length
        )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # then it is computed as whole rows, which is right
        return False


@torch.enable_grad()
def _same_features(policy: CausalLM, rollout: Rollout) -> bool:
    """Whether two passes give the states of one, and their gradient."""
    from rlalign_plugin_hf import prompts_once

    ways = prompts_once.features(policy, rollout, last=True), policy._features_of_rows(rollout, last=True)
    weights = torch.arange(ways[0].numel(), device=policy.device).cos().view_as(ways[0])
    found = [(h, *torch.autograd.grad(h, policy._weight, weights.to(h))) for h in ways]
    return all(bool((ours - own).norm() <= CLOSE * own.norm()) for ours, own in zip(*found, strict=True))


def _step_by_step(policy: LanguageModel, inputs: Any, actions_NT: Tensor) -> Tensor:
    """[N,T,V], as sampling computes them; halfway the rows change places."""
    decoder, order = policy.decoder(inputs, 1), torch.arange(len(actions_NT), device=actions_NT.device)
    found = []
    for t in range(actions_NT.shape[1]):
        found.append(decoder.logits()[order])
        if t + 1 < actions_NT.shape[1]:
            decoder.advance(actions_NT[order, t])
        if t == 1:
            order = order.flip(0)
            decoder.select(order)
    return torch.stack(found, 1)
