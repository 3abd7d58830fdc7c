"""The one sampling loop: bans, constraint, temperature, truncation, inverse CDF on given uniforms.

The uniforms come up front, U[prompt, response, step], so neither the batch's size or order nor the
dropping of finished rows ever changes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed, pack
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import choose, only
from rlalign.decoding.logits import bad_logits, full_precision
from rlalign.decoding.top_k_top_p import truncate
from rlalign.errors import RLAlignError
from rlalign.progress import report


class Decoder(Protocol):
    """Generation in progress: one row a response, the rows of a prompt side by side."""

    def logits(self) -> Tensor:
        """[n,V] for the next step."""

    def advance(self, tokens_n: Tensor) -> None:
        """Take one token a row."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""


class Constraint(Protocol):
    """Narrows what may be sampled; its state moves with the sampler's rows.

    One that reads models has a method `resolve(models)` too, called once they are there.
    """

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        """Begin k responses per prompt."""

    def allowed(self) -> Tensor:
        """[n,V] bool for the next step, before the learner's own temperature, top-k and top-p.

        Where `min_new_tokens` bans all of them, a method `instead(banned_V)` says what is allowed in their place.
        """

    def advance(self, tokens_n: Tensor) -> None:
        """Take one token a row."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""


class Decodable(Protocol):
    """What the sampling loop asks of a policy."""

    ends: tuple[int, ...]
    horizon: int | None

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]: ...
    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder: ...
    def text(self, actions_T: Tensor) -> str: ...


Finished = Callable[[Rollout], None]
"""Is told of whole groups once all their responses have ended: each group once, several at a time."""

COMPACT_SHARE = 1 / 8
"""Finished rows are dropped once they are this share of the rows being computed."""
TOLD_SHARE = 1 / 8
"""Finished groups are told of once they are this share of those that nobody was told of."""


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
    texts: dict[int, str] = field(default_factory=dict)
    """Of responses that somebody was told of."""


@torch.no_grad()
def sample(
    policy: Decodable,
    examples: Sequence[Example],
    how: Sampling,
    uniforms: Tensor,
    within: Constraint | None = None,
    finished: Finished | None = None,
    *,
    compact: bool = True,
) -> Rollout:
    """`how.samples` responses to each example, from `uniforms` [examples, samples, steps].

    `finished` is told of all groups, of most of them while others still go on.
    """
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
    told_G = torch.zeros(len(examples), dtype=torch.bool, device=uniforms.device)
    for t in range(steps):
        report("token", t + 1, steps)
        raw_nV = full_precision(decoder.logits())
        if trace is None or ends is None:
            trace = _begin(count, steps, raw_nV, packed=how.narrows or within is not None)
            ends = torch.tensor(policy.ends, dtype=torch.long, device=raw_nV.device)
        temperature = 1.0 if how.greedy else how.temperature
        scaled_nV = raw_nV / temperature
        kept_nV = _kept(scaled_nV, how, within, ends, t)
        token_n, logp_n, full_n = choose(scaled_nV, None if how.greedy else uniform_NT[rows_n, t], kept_nV)
        live_n = rows_n[alive_n]
        trace.actions_NT[live_n, t] = token_n[alive_n]
        trace.logprobs_NT[live_n, t] = logp_n[alive_n]
        trace.full_logprobs_NT[live_n, t] = full_n[alive_n]
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
        if finished is not None and (rows := _newly_ended(trace, rows_n[alive_n], told_G, k)) is not None:
            finished(_rollout(policy, examples, inputs, how, trace, rows))
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
    _refuse_nan(policy, examples, how, within, trace)
    rollout = _rollout(policy, examples, inputs, how, trace)
    if finished is not None:
        finished(rollout.take(~told_G[rollout.group_N]) if bool(told_G.any()) else rollout)
    return rollout


def _newly_ended(trace: _Trace, going_n: Tensor, told_G: Tensor, k: int) -> Tensor | None:
    """The rows of whole groups that have ended, once these are worth telling of; marks them as told."""
    ended_G = torch.bincount(going_n // k, minlength=len(told_G)) == 0
    new_G = (ended_G & ~told_G).nonzero()[:, 0]
    if len(new_G) == 0 or len(new_G) < TOLD_SHARE * int((~told_G).sum()):
        return None
    rows_n = (new_G[:, None] * k + torch.arange(k, device=new_G.device)).flatten()
    if bool(trace.logprobs_NT[rows_n].isnan().any()):  # refused at the end
        return None
    told_G[new_G] = True
    return rows_n


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
        if within is not None and hasattr(within, "instead") and not bool((left_n := kept_nV.any(1)).all()):
            banned_V = torch.zeros_like(kept_nV[0])
            banned_V[ends] = True
            kept_nV = torch.where(left_n[:, None], kept_nV, within.instead(banned_V))
    if how.narrows:
        banned_nV = scaled_nV if kept_nV is None else only(scaled_nV, kept_nV)
        kept_nV = truncate(banned_nV, how)
    return kept_nV


def _refuse_nan(
    policy: Decodable, examples: Sequence[Example], how: Sampling, within: Constraint | None, trace: _Trace
) -> None:
    """One look a rollout: log-probs are NaN wherever logits were NaN or +∞, or nothing was left to choose."""
    bad_NT = trace.logprobs_NT.isnan()
    if not bool(bad_NT.any()):
        return
    row, step = min(bad_NT.nonzero().tolist(), key=lambda place: place[1])
    where = f"example `{examples[row // how.samples].id}`, response {row % how.samples + 1}, step {step + 1}"
    if bool(trace.full_logprobs_NT[row, step].isnan()):
        raise bad_logits(policy, where)
    raise RLAlignError(
        f"{where}: nothing is left to choose: what the {'policy' if within is None else type(within).__name__} "
        "allows there is banned by `generation.min_new_tokens`, or has no probability"
    )


def _stopped(
    policy: Decodable, trace: _Trace, rows_n: Tensor, alive_n: Tensor, t: int, how: Sampling
) -> Tensor:
    ended_n = torch.zeros_like(alive_n)
    if how.stop and t + 1 >= how.min_new_tokens:
        for i in alive_n.nonzero()[:, 0].tolist():
            text = policy.text(trace.actions_NT[rows_n[i], : t + 1])
            ended_n[i] = any(stop in text for stop in how.stop)
    return ended_n


def _rollout(
    policy: Decodable,
    examples: Sequence[Example],
    inputs: tuple[Tensor, ...],
    how: Sampling,
    trace: _Trace,
    rows_n: Tensor | None = None,
) -> Rollout:
    """All responses, or those in these rows: whole groups."""
    rows: Tensor | slice = slice(None) if rows_n is None else rows_n
    length_N, k = trace.length_N[rows], how.samples
    longest = int(length_N.max())
    mask_NT = torch.arange(longest, device=length_N.device) < length_N[:, None]
    places = range(len(length_N)) if rows_n is None else rows_n.tolist()
    groups = [row // k for row in places[::k]]
    return Rollout(
        examples=tuple(examples[g] for g in groups),
        inputs=tuple(inputs[g] for g in groups),
        group_N=torch.arange(len(groups), device=mask_NT.device).repeat_interleave(k),
        actions_NT=trace.actions_NT[rows, :longest],
        mask_NT=mask_NT,
        finished_N=trace.finished_N[rows],
        settings=(_neutral_if_greedy(how),),
        setting_N=torch.zeros(len(length_N), dtype=torch.long, device=mask_NT.device),
        logprobs_NT=trace.logprobs_NT[rows, :longest],
        full_logprobs_NT=trace.full_logprobs_NT[rows, :longest],
        texts=tuple(_text(policy, how, trace, row) for row in places),
        allowed=_allowed(trace, rows),
    )


def _text(policy: Decodable, how: Sampling, trace: _Trace, row: int) -> str:
    """A response that has ended, up to what stops it."""
    if row not in trace.texts:
        text = policy.text(trace.actions_NT[row, : int(trace.length_N[row])])
        cuts = [at for stop in how.stop if (at := text.find(stop)) >= 0]
        trace.texts[row] = text[: min(cuts)] if cuts else text
    return trace.texts[row]


def _allowed(trace: _Trace, rows: Tensor | slice) -> Allowed | None:
    """What was narrowed, response by response; None if nothing was."""
    if not trace.narrowed:
        return None
    wanted_N = torch.zeros(len(trace.length_N), dtype=torch.bool)
    wanted_N[rows if isinstance(rows, slice) else rows.cpu()] = True
    length_N = torch.where(wanted_N, trace.length_N.cpu(), 0)
    start_N = length_N.cumsum(0) - length_N
    bits_MB = torch.empty(int(length_N.sum()), trace.narrowed[0][1].shape[1], dtype=torch.uint8)
    for t, (rows_m, bits_mB) in enumerate(trace.narrowed):
        mine_m = wanted_N[rows_m]
        bits_MB[start_N[rows_m[mine_m]] + t] = bits_mB[mine_m]
    allowed = Allowed.of(trace.vocabulary, bits_MB.split(length_N[wanted_N].tolist()))
    return allowed if any(row is not None for row in allowed.rows) else None


def _neutral_if_greedy(how: Sampling) -> Sampling:
    """Greedy responses carry log-probs at temperature 1."""
    return how.model_copy(update={"temperature": 1.0}) if how.greedy else how
