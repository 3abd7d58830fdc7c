"""The one sampling loop: bans, constraint, temperature, truncation, inverse CDF on given uniforms.

The uniforms come up front, U[prompt, response, step], so neither the batch's size or order nor the
dropping of finished rows ever changes a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.rollout import Rollout, concat
from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import choose, only
from rlalign.decoding.chunks import in_chunks, rows_that_fit
from rlalign.decoding.interfaces import Constraint, Decodable, Finished
from rlalign.decoding.logits import bad_logits, full_precision
from rlalign.decoding.play import Game, Play, prompts_of, started
from rlalign.decoding.trace import Trace
from rlalign.decoding.truncation import truncate
from rlalign.errors import RLAlignError
from rlalign.progress import report

COMPACT_SHARE = 1 / 8
"""Finished rows are dropped once they are this share of the rows being computed."""
TOLD_SHARE = 1 / 8
"""Finished groups are told of once they are this share of those that nobody was told of."""


def steps_between_looks(device: torch.device) -> int:
    """How many steps go by until somebody looks whether responses have ended: a GPU has to be waited for."""
    return 1 if device.type == "cpu" else 8


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
    game: Game | None = None,
) -> Rollout:
    """`how.samples` responses to each example, from `uniforms` [examples, samples, steps]; or episodes of a game.

    `finished` is told of all groups, of most of them while others still go on. Where memory does not hold all prompts
    they are answered some at a time.
    """
    if how.beams > 1:
        raise RLAlignError(f"generation.beams: a {type(policy).__name__} policy has no beam search")
    examples = tuple(examples)
    k, inputs = how.samples, policy.prompts(examples) if game is None else ()
    most = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
    steps = most if game is None else game.tokens
    uniform_GKT = uniforms[:, :k, :steps]
    if len(uniforms) != len(examples) or uniform_GKT.shape != (len(examples), k, steps):
        raise ValueError(
            f"{tuple(uniforms.shape)} uniforms for {len(examples)} × {k} responses of {steps} steps"
        )
    if not examples:
        raise RLAlignError("nothing to sample: no examples")
    told_G = torch.zeros(len(examples), dtype=torch.bool, device=uniforms.device)

    def decode(part: slice) -> Rollout:
        uniform_NT = uniform_GKT[part].reshape(-1, steps)
        teller = None if finished is None else Teller(finished, told_G[part])
        if game is None:
            asked = examples[part], inputs[part]
            return _decode(Trace, policy, *asked, how, uniform_NT, within, teller, compact)
        with started(game, part) as (begun, firsts):
            prompts = prompts_of(policy, begun, steps)
            play = partial(Play, game=game, firsts=firsts, least=how.min_new_tokens, most=most)
            turn = how.model_copy(update={"min_new_tokens": 0})  # `Play` counts in each turn
            return _decode(play, policy, begun, prompts, turn, uniform_NT, within, teller, compact)

    rows = rows_that_fit(policy, uniforms.device, max(map(len, inputs), default=0) + steps)
    return concat(in_chunks(policy, len(examples), k, decode, rows if within is None else rows / 2))


class Teller:
    """Tells of whole groups that have ended, of each once, several at a time."""

    def __init__(self, finished: Finished, told_G: Tensor) -> None:
        self.finished = finished
        self.told_G = told_G
        """Those told of already; written to, as memory may run out after that."""

    def tell(self, trace: Trace) -> None:
        new_G = ((trace.going() == 0) & ~self.told_G).nonzero()[:, 0]
        if len(new_G) == 0 or len(new_G) < TOLD_SHARE * int((~self.told_G).sum()):
            return
        rollout = trace.rollout(new_G)
        if not bool(unknown(rollout).any()):  # refused at the end
            self.told_G[new_G] = True
            self.finished(rollout)

    def tell_rest(self, rollout: Rollout) -> None:
        rest_G, self.told_G[:] = ~self.told_G, True
        if bool(rest_G.all()):
            self.finished(rollout)
        elif bool(rest_G.any()):
            self.finished(rollout.take(rest_G[rollout.group_N]))


def _decode(
    begin: Callable[..., Trace],
    policy: Decodable,
    examples: Sequence[Example],
    inputs: Sequence[Tensor],
    how: Sampling,
    uniform_NT: Tensor,
    within: Constraint | None,
    teller: Teller | None,
    compact: bool,
) -> Rollout:
    """The responses to some prompts, all at once."""
    if within is not None:
        within.start(inputs, how.samples)
    decoder = policy.decoder(inputs, how.samples)
    trace: Trace | None = None
    uniform_nT, steps = uniform_NT, uniform_NT.shape[1]
    every = steps_between_looks(uniform_NT.device)
    for t in range(steps):
        report("token", t + 1, steps)
        logits_nV = full_precision(decoder.logits())
        if not how.greedy and how.temperature != 1:
            logits_nV = logits_nV / how.temperature
        if trace is None:
            trace = begin(policy, examples, inputs, how, steps, like_nV=logits_nV)
        kept_nV = _kept(logits_nV, how, within, trace, t)
        chosen = choose(logits_nV, None if how.greedy else uniform_nT[:, t], kept_nV)
        noted = how.narrows or within is not None or trace.notes_bans
        token_n = trace.add(chosen, kept_nV if noted else None)
        last, looks = t + 1 == steps, (t + 1) % every == 0
        going = trace.look() if looks or last else None
        if last or going == 0:
            break
        if going is not None and teller is not None:
            teller.tell(trace)
        decoder.advance(token_n)
        if within is not None:
            within.advance(token_n)
        if going is not None and compact and len(trace.rows_n) - going >= COMPACT_SHARE * len(trace.rows_n):
            places = trace.alive_n.nonzero()[:, 0]
            decoder.select(places)
            if within is not None:
                within.select(places)
            trace.keep(places)
            uniform_nT = uniform_nT[places]
    if trace is None:
        raise RLAlignError("nothing to sample: no steps")
    trace.close()
    rollout = trace.rollout()
    refuse_nan(policy, within, rollout)
    if teller is not None:
        teller.tell_rest(rollout)
    return rollout


def _kept(logits_nV: Tensor, how: Sampling, within: Constraint | None, trace: Trace, t: int) -> Tensor | None:
    """What may be chosen at step t, or None for everything."""
    kept_nV, may_nV = within.allowed() if within is not None else None, trace.may(t, logits_nV)
    if kept_nV is None:
        kept_nV = may_nV
    elif may_nV is not None:
        kept_nV = kept_nV & may_nV
        if within is not None and hasattr(within, "instead"):
            left_n = kept_nV.any(1)
            if left_n.device.type != "cpu" or not bool(left_n.all()):  # a GPU is not waited for
                kept_nV = torch.where(left_n[:, None], kept_nV, within.instead(~may_nV))
    if how.narrows:
        kept_nV = truncate(logits_nV if kept_nV is None else only(logits_nV, kept_nV), how)
    return kept_nV


def unknown(rollout: Rollout) -> Tensor:
    """[N,T]: where a log-prob is NaN: logits were NaN or +∞, of a token that is banned too, or nothing was left."""
    return rollout.logprobs_NT.isnan() | rollout.full_logprobs_NT.isnan()


def refuse_nan(policy: Decodable, within: Constraint | None, rollout: Rollout) -> None:
    """One look a rollout."""
    bad_NT = unknown(rollout)
    if not bool(bad_NT.any()):
        return
    row, step = min(bad_NT.nonzero().tolist(), key=lambda place: place[1])
    group = int(rollout.group_N[row])
    place = row - int((rollout.group_N < group).sum())
    where = f"example `{rollout.examples[group].id}`, response {place + 1}, step {step + 1}"
    if bool(rollout.full_logprobs_NT[row, step].isnan()):
        raise bad_logits(policy, where)
    raise RLAlignError(
        f"{where}: nothing is left to choose: what the {'policy' if within is None else type(within).__name__} "
        "allows there is banned by `generation.min_new_tokens`, or has no probability"
    )
