"""What is logged of an iteration's responses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.rollout import AGE, VERSION, Rollout, own

ROUNDING = 1e-6
"""Rewards that differ by no more than this share of themselves are equal."""


def of_responses(seen: Sequence[tuple[Rollout, Reward]]) -> dict[str, float]:
    """Counts, lengths, and the mean of every reward and of every metric a reward gave, where it gave it."""
    responses = sum(len(rollout) for rollout, _ in seen)
    tokens = sum(int(rollout.mask_NT.sum()) for rollout, _ in seen)
    found = {"responses": float(responses), "tokens": float(tokens)}
    if responses == 0:
        return found
    found["length"] = sum(float(r.length_N.sum()) for r, _ in seen) / responses
    found["finished"] = sum(float(r.finished_N.sum()) for r, _ in seen) / responses
    if seen[0][1].parts:
        found["reward/total"] = sum(float(reward.total_N.sum()) for _, reward in seen) / responses
    for name in seen[0][1].parts:
        parts = [(r, reward.parts[name]) for r, reward in seen]
        found[f"reward/{name}"] = math.fsum(float(_chosen(r, x).sum()) for r, x in parts) / responses
    for name in dict.fromkeys(name for _, reward in seen for name in reward.metrics):
        given = [(r, reward.metrics[name]) for r, reward in seen if name in reward.metrics]
        values = torch.cat([_chosen(r, x).flatten() for r, x in given])
        values = values[~values.isnan()] if values.is_floating_point() else values
        found[name] = float(values.double().mean()) if len(values) else 0.0
    return found


def new_ones(seen: Sequence[tuple[Rollout, Reward]]) -> list[tuple[Rollout, Reward]]:
    """Those responses that were made in this iteration, and not remembered from an earlier one."""
    return [
        (r, reward) if bool(r.new_N.all()) else (r.take(r.new_N), reward.take(r.new_N)) for r, reward in seen
    ]


def of_remembered(seen: Sequence[tuple[Rollout, Reward]]) -> dict[str, float]:
    """How many responses come from earlier iterations, and how old they are; nothing where none does."""
    ages = [r.columns[AGE][~r.new_N] for r, _ in seen if AGE in r.columns]
    if not ages:
        return {}
    age_n = torch.cat(ages).double()
    found = {"replay/responses": float(len(age_n))}
    return found | (
        {"replay/age": float(age_n.mean()), "replay/oldest": float(age_n.max())} if len(age_n) else {}
    )


def of_sampler(seen: Sequence[tuple[Rollout, Reward]], now: int) -> dict[str, float]:
    """With which weights a sampler elsewhere sampled, how many versions the policy has come further `now`, and the
    furthest that a token's log-prob lies from the policy's; nothing where the policy sampled itself."""
    parts = [r for r, _ in seen if VERSION in r.columns and len(r)]
    if not parts:
        return {}
    gaps = [(r.columns[own("logprobs")] - r.logprobs_NT)[r.mask_NT].abs().nan_to_num() for r in parts]
    version = max(float(r.columns[VERSION].nan_to_num().max()) for r in parts)
    return {
        "sampler/largest": float(torch.cat(gaps).max()),
        "sampler/version": version,
        "sampler/behind": now - version,
    }


def tied(seen: Sequence[tuple[Rollout, Reward]]) -> float | None:
    """The share of groups whose responses all earn the same; None where no group has two to compare."""
    found: list[bool] = []
    for rollout, reward in seen:
        total_N, count = reward.total_N.double(), len(rollout.examples)
        sizes_G = rollout.group_N.bincount(minlength=count)
        low_G, high_G = (
            total_N.new_zeros(count).scatter_reduce(0, rollout.group_N, total_N, way, include_self=False)
            for way in ("amin", "amax")
        )
        near_G = high_G - low_G <= ROUNDING * torch.maximum(high_G.abs(), low_G.abs())
        found += near_G[sizes_G > 1].tolist()
    return sum(found) / len(found) if found else None


def sampler_gap(batch: Batch, now: Outputs) -> dict[str, Tensor]:
    """How far the policy, as it learns, is from what was sampled: by rounding alone, before the first optimiser step.

    The mean of |log ratio| over sampled tokens, the mean ratio r of learner to sampler, and the KL between them (its
    estimate r − 1 − log r). All are this piece's shares of the step's. The same of tokens from earlier iterations.
    """
    name = "logprobs_NT" if "logprobs_NT" in now else "full_logprobs_NT"
    if name not in now:
        return {}
    drawn_NT: Tensor = getattr(batch.rollout, name)
    known_NT = batch.rollout.mask_NT & ~drawn_NT.isnan()
    gap_NT = torch.where(known_NT, getattr(now, name).detach() - drawn_NT, 0.0)
    kl_NT = gap_NT.exp() - 1 - gap_NT
    found = {
        "sampler/gap": batch.mean_over_tokens(gap_NT.abs(), _sampled),
        "sampler/kl": batch.mean_over_tokens(kl_NT, _sampled),
        "sampler/ratio": batch.mean_over_tokens(gap_NT.exp(), _sampled),
    }
    if AGE not in batch.rollout.columns or not int(batch.step.count(_remembered)):
        return found
    return {
        **found,
        "replay/gap": batch.mean_over_tokens(gap_NT.abs(), _remembered),
        "replay/kl": batch.mean_over_tokens(kl_NT, _remembered),
        "replay/ratio": batch.mean_over_tokens(gap_NT.exp(), _remembered),
    }


def _sampled(batch: Batch) -> Tensor:
    """[N,T]: the new tokens whose log-probs the sampler left; logged ones have none."""
    rollout = batch.rollout
    return rollout.mask_NT & ~rollout.full_logprobs_NT.isnan() & rollout.new_N[:, None]


def _remembered(batch: Batch) -> Tensor:
    """[N,T]: the tokens that were sampled in an earlier iteration."""
    rollout = batch.rollout
    return rollout.mask_NT & ~rollout.full_logprobs_NT.isnan() & ~rollout.new_N[:, None]


def _chosen(rollout: Rollout, x: Tensor) -> Tensor:
    return x[rollout.mask_NT] if x.ndim == 2 else x
