"""From logits and one uniform a row to a token and its log-probs.

Nothing here looks at a number: shapes alone decide what is computed, so that an engine can put it into a graph.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Tokens whose probabilities are added up before a place is looked for."""
FLAT = 2048
"""Vocabularies up to which one sum over all tokens costs less."""
SEEN = 1e-12
"""The least share of all tokens at which those that are kept are not weighed anew, among themselves."""
BELOW = 1 - 2**-53
"""Takes a double to the next one below: rounding may lift a target to the total, and nothing exceeds that."""


class Chosen(NamedTuple):
    """One token a row, and its log-prob: among what could be chosen, and among all tokens."""

    token_n: Tensor
    logprob_n: Tensor
    full_logprob_n: Tensor


def choose(logits_nV: Tensor, uniform_n: Tensor | None, kept_nV: Tensor | None = None) -> Chosen:
    """By inverse CDF, or the most probable token without uniforms; of those in `kept_nV`, if that is given.

    Log-probs are NaN where logits are NaN or +∞, or where nothing is kept; the token is any then.
    """
    if kept_nV is not None:
        if logits_nV.device.type == "cpu" and uniform_n is not None:
            return _of_all(logits_nV, uniform_n, kept_nV)
        return _among(logits_nV, uniform_n, kept_nV)
    probs_nV = logits_nV.softmax(1)
    token_n = logits_nV.argmax(1) if uniform_n is None else inverse_cdf(probs_nV, uniform_n)
    logprob_n = probs_nV.gather(1, token_n[:, None])[:, 0].log()
    return Chosen(token_n, logprob_n, logprob_n)


def _among(logits_nV: Tensor, uniform_n: Tensor | None, kept_nV: Tensor) -> Chosen:
    """From a softmax over what is kept."""
    left = choose(only(logits_nV, kept_nV), uniform_n)
    return left._replace(full_logprob_n=_logprob(logits_nV, left.token_n))


def _of_all(logits_nV: Tensor, uniform_n: Tensor, kept_nV: Tensor) -> Chosen:
    """From one softmax over all tokens, but for rows of whose tokens too little is kept, or that are NaN."""
    probs_nV = logits_nV.softmax(1)
    left_nV = kept_nV.view(torch.uint8).to(probs_nV.dtype).mul_(probs_nV)
    total_n = left_nV.sum(1)
    token_n = inverse_cdf(left_nV, uniform_n)
    prob_n = left_nV.gather(1, token_n[:, None])[:, 0]
    found = Chosen(token_n, (prob_n / total_n).log_(), prob_n.log())
    seen_n = total_n > SEEN
    if bool(seen_n.all()):
        return found
    rest = (~seen_n).nonzero()[:, 0]
    among = _among(logits_nV[rest], uniform_n[rest], kept_nV[rest])
    return Chosen(*(x.index_copy(0, rest, y) for x, y in zip(found, among, strict=True)))


def _logprob(logits_nV: Tensor, token_n: Tensor) -> Tensor:
    """Of one token a row among all. As `choose` has it, but where its probability is too small for a float."""
    probs_nV = logits_nV.softmax(1)
    prob_n1, logit_n1 = (x_nV.gather(1, token_n[:, None]) for x_nV in (probs_nV, logits_nV))
    below_n1 = logit_n1 - logits_nV.amax(1, keepdim=True) + probs_nV.amax(1, keepdim=True).log()
    tiny_n1 = prob_n1 < torch.finfo(probs_nV.dtype).tiny
    return torch.where(tiny_n1, below_n1, prob_n1.log())[:, 0]


def only(logits_nV: Tensor, kept_nV: Tensor) -> Tensor:
    """−∞ where nothing is kept.

    (A CPU's `masked_fill` branches at every entry, reading Booleans as such costs twice as much as reading bytes, and
    memory that is new has to be fetched.)
    """
    if logits_nV.device.type != "cpu":
        return torch.where(kept_nV, logits_nV, -math.inf)
    bound_nV = kept_nV.view(torch.uint8).to(logits_nV.dtype).sub_(0.5).mul_(math.inf)
    return torch.minimum(logits_nV, bound_nV, out=bound_nV)


def inverse_cdf(mass_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds u times the total. Never one without mass.

    In a large vocabulary first the block of tokens that holds it, then the token in this block: fewer sums.
    """
    count, vocabulary = mass_nV.shape
    uniform_n1 = uniform_n[:, None].double()
    if vocabulary <= FLAT:
        mass_nV = mass_nV.double()
        reached_nV = mass_nV.cumsum(1)
        return _first_above(mass_nV, reached_nV, uniform_n1 * reached_nV[:, -1:])[0][:, 0]
    whole = vocabulary // BLOCK * BLOCK
    mass_nB = mass_nV[:, :whole].view(count, -1, BLOCK).sum(2)
    if whole < vocabulary:
        mass_nB = torch.cat([mass_nB, mass_nV[:, whole:].sum(1, keepdim=True)], 1)
    mass_nB = mass_nB.double()
    reached_nB = mass_nB.cumsum(1)
    block_n1, target_n1 = _first_above(mass_nB, reached_nB, uniform_n1 * reached_nB[:, -1:])
    within_n1 = (target_n1 - (reached_nB - mass_nB).gather(1, block_n1)).clamp_min_(0)
    token_nb = block_n1 * BLOCK + torch.arange(BLOCK, device=mass_nV.device)
    mass_nb = mass_nV.gather(1, token_nb.clamp_max(vocabulary - 1)).double() * (token_nb < vocabulary)
    place_n1, _ = _first_above(mass_nb, mass_nb.cumsum(1), within_n1)
    return (block_n1 * BLOCK + place_n1).clamp_max_(vocabulary - 1)[:, 0]


def _first_above(mass_nB: Tensor, reached_nB: Tensor, target_n1: Tensor) -> tuple[Tensor, Tensor]:
    """The first place with mass where the sum so far exceeds the target; and the target, below the last sum."""
    if mass_nB.device.type == "cpu":
        target_n1 = torch.minimum(target_n1, reached_nB[:, -1:] * BELOW)
        place_n1 = torch.searchsorted(reached_nB, target_n1, right=True)
        return place_n1.clamp_max_(mass_nB.shape[1] - 1), target_n1  # past the end where there are NaN
    return _first_above_in_parallel(mass_nB, reached_nB, target_n1)


def _first_above_in_parallel(mass_nB: Tensor, reached_nB: Tensor, target_n1: Tensor) -> tuple[Tensor, Tensor]:
    """The same where sums are made in parallel: by rounding they may rise, or fall, at a place without mass."""
    reached_nB = torch.where(mass_nB > 0, reached_nB, -1.0)
    target_n1 = torch.minimum(target_n1, reached_nB.amax(1, keepdim=True) * BELOW)
    return (reached_nB > target_n1).byte().argmax(1, keepdim=True), target_n1
