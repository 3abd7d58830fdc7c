"""The one sampling loop: bans, constraint, temperature, truncation, inverse CDF on given uniforms.

The uniforms come up front, U[prompt, response, step], so neither the batch's size or order nor the
dropping of finished rows ever changes a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlalign.allowed import Allowed, pack
from rlalign.errors import RLAlignError
from rlalign.logits import full_precision
from rlalign.pipeline import Sampling
from rlalign.types import Example, Rollout

if TYPE_CHECKING:
    from rlalign.policy import Constraint, Decoder, Model, Policy

COMPACT_SHARE = 1 / 8
"""Finished rows are dropped once they are this share of the rows being computed."""
HISTOGRAM_FROM = 512
"""Vocabularies from which a nucleus is found with a histogram, instead of by sorting all of it."""
_BINS = 1024
_PIECE = 1 << 17
"""Entries that such a histogram looks at together: what lies in between then stays in a processor's cache."""


def choose(probs_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """Inverse CDF: the first token whose cumulative probability exceeds u. Never one of probability 0."""
    cdf_nV = probs_nV.cumsum(1)
    target_n1 = uniform_n.to(cdf_nV.dtype)[:, None] * cdf_nV[:, -1:]
    places_V = torch.arange(probs_nV.shape[1], device=probs_nV.device)
    token_n1 = torch.searchsorted(cdf_nV, target_n1, right=True).clamp_max_(len(places_V) - 1)
    if not bool((probs_nV.gather(1, token_n1) > 0).all()):
        # Where rounding lifts the target to the total, the last token that has any probability.
        last_n1 = torch.where(probs_nV > 0, places_V, 0).amax(1, keepdim=True)
        token_n1 = torch.minimum(token_n1, last_n1)
    return token_n1[:, 0]


def only(logits_nV: Tensor, kept_nV: Tensor) -> Tensor:
    """−∞ where nothing is kept. (A CPU's `masked_fill` branches at every entry, and is several times slower.)"""
    bound_nV = kept_nV.to(logits_nV.dtype).sub_(0.5).mul_(math.inf)
    return torch.minimum(logits_nV, bound_nV)


def truncate(logits_nV: Tensor, how: Sampling) -> Tensor:
    """[n,V] bool: what top-k, then top-p, then min-p keep of (scaled, banned) logits. The best stays."""
    kept_nV = best(logits_nV, how.top_k)
    if how.top_p < 1:
        kept_nV &= nucleus(only(logits_nV, kept_nV), how.top_p)
    if how.min_p > 0:
        bar_n1 = logits_nV.amax(1, keepdim=True) + math.log(how.min_p)
        kept_nV &= logits_nV >= bar_n1
    return kept_nV


def best(logits_nV: Tensor, top_k: int) -> Tensor:
    """The k most probable tokens, and those that equal the k-th; with 0 everything."""
    kept_nV = logits_nV > -math.inf
    if 0 < top_k < logits_nV.shape[1]:
        kept_nV &= logits_nV >= logits_nV.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return kept_nV


def nucleus(logits_nV: Tensor, top_p: float) -> Tensor:
    """The smallest sets of most probable tokens whose probability reaches `top_p`; with 1 everything."""
    count, vocabulary = logits_nV.shape
    if top_p >= 1:  # a sum that rounds to 1 early would cut the tail
        return logits_nV > -math.inf
    if vocabulary < HISTOGRAM_FROM or count == 0:
        return _by_sorting(logits_nV, top_p)
    together = max(1, _PIECE // vocabulary) if logits_nV.device.type == "cpu" else count
    return torch.cat([_by_histogram(piece_nV, top_p) for piece_nV in logits_nV.split(together)])


def _by_histogram(logits_nV: Tensor, top_p: float) -> Tensor:
    """`_by_sorting`, but of the tokens around the edge only: B bins by nats below the best hold the probability,
    the bins before the one where its sum reaches `top_p` are kept whole, and that one is sorted.
    """
    count, vocabulary = logits_nV.shape
    top_n1 = logits_nV.amax(1, keepdim=True).clamp_min(torch.finfo(logits_nV.dtype).min)
    depth_nV = top_n1 - logits_nV
    # Deeper than this there are less than 1 - top_p in all, and so no edge.
    deepest = math.log(vocabulary) - math.log1p(-top_p)
    range_n1 = depth_nV.amax(1, keepdim=True).clamp(1e-6, deepest)
    # Two bounds, as a NaN slips through the first; it becomes NaN in the sums, and keeps nothing.
    bin_nV = (depth_nV * (_BINS / range_n1)).clamp_max_(_BINS - 1).int().clamp_min_(0)
    # In double precision the order of summation moves nothing.
    mass_nV = depth_nV.neg_().exp_().double()
    mass_nB = mass_nV.new_zeros(count, _BINS).scatter_add_(1, bin_nV.long(), mass_nV)
    reached_nB = mass_nB.cumsum(1)
    target_n1 = top_p * reached_nB[:, -1:]
    edge_n1 = (reached_nB < target_n1).sum(1, keepdim=True)
    before_n1 = torch.cat([torch.zeros_like(target_n1), reached_nB], 1).gather(1, edge_n1)
    kept_nV = bin_nV < edge_n1.int()
    row_K, column_K = (bin_nV == edge_n1.int()).nonzero(as_tuple=True)
    count_n = torch.bincount(row_K, minlength=count)
    tied_n = count_n > vocabulary // 4  # nothing is gained for these; no row may depend on its neighbours
    if bool(tied_n.any()):
        kept_nV[tied_n] = _by_sorting(logits_nV[tied_n], top_p)
        kept_nV[~tied_n] = nucleus(logits_nV[~tied_n], top_p)
        return kept_nV
    place_K = torch.arange(len(row_K), device=row_K.device) - (count_n.cumsum(0) - count_n)[row_K]
    edge_nE = logits_nV.new_full((count, int(count_n.max())), -math.inf)
    edge_nE[row_K, place_K] = logits_nV[row_K, column_K]
    sorted_nE, order_nE = torch.sort(edge_nE, dim=1, descending=True, stable=True)
    mass_nE = (sorted_nE - top_n1).exp().double()
    keep_nE = (before_n1 + mass_nE.cumsum(1) - mass_nE < target_n1) & (sorted_nE > -math.inf)
    kept_nV[row_K, column_K] = torch.zeros_like(keep_nE).scatter_(1, order_nE, keep_nE)[row_K, place_K]
    return kept_nV


def _by_sorting(logits_nV: Tensor, top_p: float) -> Tensor:
    sorted_nV, order_nV = torch.sort(logits_nV, dim=1, descending=True, stable=True)
    probs_nV = sorted_nV.softmax(1)
    before_nV = probs_nV.cumsum(1) - probs_nV
    keep_nV = (before_nV < top_p) & (sorted_nV > -math.inf)
    return torch.zeros_like(keep_nV).scatter_(1, order_nV, keep_nV)


class Nucleus:
    """NLPO's constraint: the top-p set of another model, which decodes in lock-step with the sampler.

    `always` are tokens never removed; the policy's `ends` and `specials` are added to them.
    """

    def __init__(
        self, model: str, top_p: float = 0.9, top_k: int = 0, min_keep: int = 1, always: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.top_p = top_p
        self.top_k = top_k
        self.min_keep = min_keep
        self.always = tuple(always)
        self._policy: Policy | None = None
        self._decoder: Decoder | None = None

    def resolve(self, models: Mapping[str, Model]) -> None:
        from rlalign.policy import Policy

        model = models[self.model]
        if not isinstance(model, Policy):
            raise RLAlignError(f"a nucleus needs a policy, and `{self.model}` is a {type(model).__name__}")
        self._policy = model

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        assert self._policy is not None, "a constraint is resolved when its phase starts"
        self._decoder = self._policy.decoder(inputs, k)

    def allowed(self) -> Tensor:
        assert self._decoder is not None and self._policy is not None
        logits_nV = full_precision(self._decoder.logits())
        kept_nV = nucleus(logits_nV, self.top_p)
        if self.top_k:
            kept_nV &= best(logits_nV, self.top_k)
        if self.min_keep > 1:
            best_nK = logits_nV.topk(min(self.min_keep, logits_nV.shape[1]), dim=1).indices
            kept_nV.scatter_(1, best_nK, True)
        always = [*self.always, *self._policy.ends, *self._policy.specials]
        kept_nV[:, always] = True
        return kept_nV

    def advance(self, tokens_n: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.advance(tokens_n)

    def select(self, rows: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.select(rows)


@dataclass
class _Trace:
    """What was sampled, by row and step."""

    actions_NT: Tensor
    logprobs_NT: Tensor
    full_logprobs_NT: Tensor
    length_N: Tensor
    finished_N: Tensor
    narrowed: list[tuple[Tensor, Tensor]] | None
    """Of each step: the rows [m] still going, and what each could choose from, packed [m,B]."""
    vocabulary: int


@torch.no_grad()
def sample(
    policy: Policy,
    examples: Sequence[Example],
    how: Sampling,
    uniforms: Tensor,
    within: Constraint | None = None,
    *,
    compact: bool = True,
) -> Rollout:
    """`how.samples` responses to each example, from `uniforms` [examples, samples, steps]."""
    if how.beams > 1:
        raise RLAlignError(f"generation.beams: a {type(policy).__name__} policy has no beam search")
    k, inputs = how.samples, policy.prompts(examples)
    steps = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
    count = len(examples) * k
    decoder = policy.decoder(inputs, k)
    if within is not None:
        within.start(inputs, k)
    trace: _Trace | None = None
    ends: Tensor | None = None
    uniform_NT = uniforms[:, :k, :steps].reshape(count, steps)
    if uniforms.shape[0] != len(examples) or uniform_NT.numel() != count * steps:
        raise ValueError(
            f"{tuple(uniforms.shape)} uniforms for {len(examples)} × {k} responses of {steps} steps"
        )
    rows_n = torch.arange(count, device=uniforms.device)
    alive_n = torch.ones(count, dtype=torch.bool, device=uniforms.device)
    for t in range(steps):
        raw_nV = full_precision(decoder.logits())
        if trace is None or ends is None:
            trace = _begin(count, steps, raw_nV, packed=how.narrows or within is not None)
            ends = torch.tensor(policy.ends, dtype=torch.long, device=raw_nV.device)
        temperature = 1.0 if how.greedy else how.temperature
        scaled_nV = raw_nV / temperature
        kept_nV = _kept(scaled_nV, how, within, ends, t)
        full_nV = scaled_nV.log_softmax(1)
        if kept_nV is None:
            logp_nV = full_nV
        else:
            logp_nV = only(scaled_nV, kept_nV).log_softmax(1)
        if how.greedy:
            token_n = logp_nV.argmax(1)
        else:
            token_n = choose(logp_nV.exp(), uniform_NT[rows_n, t])
        live_n = rows_n[alive_n]
        trace.actions_NT[live_n, t] = token_n[alive_n]
        trace.logprobs_NT[live_n, t] = logp_nV.gather(1, token_n[:, None])[alive_n, 0]
        trace.full_logprobs_NT[live_n, t] = full_nV.gather(1, token_n[:, None])[alive_n, 0]
        trace.length_N[live_n] = t + 1
        if trace.narrowed is not None and kept_nV is not None:
            trace.narrowed.append((live_n.cpu(), pack(kept_nV)[alive_n].cpu()))
        ended_n = torch.isin(token_n, ends) | _stopped(policy, trace, rows_n, alive_n, t, how)
        trace.finished_N[rows_n[alive_n & ended_n]] = True
        alive_n = alive_n & ~ended_n
        remaining = int(alive_n.sum())
        if remaining == 0:
            break
        if t + 1 == steps:
            break
        decoder.advance(token_n)
        if within is not None:
            within.advance(token_n)
        if compact and len(alive_n) - remaining >= COMPACT_SHARE * len(alive_n):
            keep = alive_n.nonzero()[:, 0]
            decoder.select(keep)
            if within is not None:
                within.select(keep)
            rows_n, alive_n = rows_n[keep], alive_n[keep]
    if trace is None:
        raise RLAlignError("nothing to sample: no examples, or no steps")
    return _finish(policy, examples, inputs, how, trace)


def _begin(count: int, steps: int, like_nV: Tensor, *, packed: bool) -> _Trace:
    zeros_NT = like_nV.new_zeros(count, steps)
    longs_N = torch.zeros(count, dtype=torch.long, device=like_nV.device)
    return _Trace(
        actions_NT=longs_N[:, None].repeat(1, steps),
        logprobs_NT=zeros_NT,
        full_logprobs_NT=zeros_NT.clone(),
        length_N=longs_N,
        finished_N=longs_N.bool(),
        narrowed=[] if packed else None,
        vocabulary=like_nV.shape[1],
    )


def _kept(scaled_nV: Tensor, how: Sampling, within: Constraint | None, ends: Tensor, t: int) -> Tensor | None:
    """What may be chosen at step t, or None for everything."""
    kept_nV = within.allowed() if within is not None else None
    if t < how.min_new_tokens and len(ends):
        kept_nV = torch.ones_like(scaled_nV, dtype=torch.bool) if kept_nV is None else kept_nV.clone()
        kept_nV[:, ends] = False
    if how.narrows:
        banned_nV = scaled_nV if kept_nV is None else only(scaled_nV, kept_nV)
        kept_nV = truncate(banned_nV, how)
    if kept_nV is not None and not bool(kept_nV.sum(1).all()):
        raise RLAlignError(
            f"at step {t} the constraint and `min_new_tokens` together leave nothing to choose"
        )
    return kept_nV


def _stopped(policy: Policy, trace: _Trace, rows_n: Tensor, alive_n: Tensor, t: int, how: Sampling) -> Tensor:
    ended_n = torch.zeros_like(alive_n)
    if how.stop and t + 1 >= how.min_new_tokens:
        for i in alive_n.nonzero()[:, 0].tolist():
            text = policy.text(trace.actions_NT[rows_n[i], : t + 1])
            ended_n[i] = any(stop in text for stop in how.stop)
    return ended_n


def _finish(
    policy: Policy, examples: Sequence[Example], inputs: tuple[Tensor, ...], how: Sampling, trace: _Trace
) -> Rollout:
    count, longest = len(trace.length_N), int(trace.length_N.max())
    mask_NT = torch.arange(longest, device=trace.length_N.device) < trace.length_N[:, None]
    texts = []
    for actions_T, length in zip(trace.actions_NT, trace.length_N.tolist(), strict=True):
        text = policy.text(actions_T[:length])
        cuts = [at for stop in how.stop if (at := text.find(stop)) >= 0]
        texts.append(text[: min(cuts)] if cuts else text)
    return Rollout(
        examples=tuple(examples),
        inputs=inputs,
        group_N=torch.arange(len(examples), device=mask_NT.device).repeat_interleave(how.samples),
        actions_NT=trace.actions_NT[:, :longest],
        mask_NT=mask_NT,
        finished_N=trace.finished_N,
        settings=(_neutral_if_greedy(how),),
        setting_N=torch.zeros(count, dtype=torch.long, device=mask_NT.device),
        logprobs_NT=trace.logprobs_NT[:, :longest],
        full_logprobs_NT=trace.full_logprobs_NT[:, :longest],
        texts=tuple(texts),
        allowed=_allowed(trace),
    )


def _allowed(trace: _Trace) -> Allowed | None:
    """What was narrowed, response by response; None if nothing was."""
    if not trace.narrowed:
        return None
    length_N = trace.length_N.cpu()
    start_N = length_N.cumsum(0) - length_N
    bits_MB = torch.empty(int(length_N.sum()), trace.narrowed[0][1].shape[1], dtype=torch.uint8)
    for t, (rows_m, bits_mB) in enumerate(trace.narrowed):
        bits_MB[start_N[rows_m] + t] = bits_mB
    allowed = Allowed.of(trace.vocabulary, bits_MB.split(length_N.tolist()))
    return allowed if any(row is not None for row in allowed.rows) else None


def _neutral_if_greedy(how: Sampling) -> Sampling:
    """Greedy responses carry log-probs at temperature 1."""
    return how.model_copy(update={"temperature": 1.0}) if how.greedy else how
