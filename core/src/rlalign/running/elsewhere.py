"""Responses of a sampler elsewhere: with the policy's weights of now, and scored again by the policy at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.rollout import VERSION, Rollout, own
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError, RLAlignError, attributed_to
from rlalign.interface.sampler import Sampler
from rlalign.running import dealing
from rlalign.running.phase import RunningPhase

SCORED = ("logprobs", "full_logprobs")


def asked_elsewhere(
    phase: RunningPhase,
    sampler: Sampler,
    examples: Sequence[Example],
    how: Sampling,
    key: tuple[str | int, ...],
    first: int,
) -> Rollout:
    """What a sampler gives, with the policy's present weights; position p of the draw has the same seeds."""
    policy, device = phase.models.policy, phase.models.device
    positions = range(first, first + len(examples))
    seeds = phase.workspace.seeds.numbers(*key, positions=positions, samples=how.samples)

    def asked() -> Rollout:
        with torch.no_grad(), attributed_to(f"sampler `{sampler.name}`", sampler.name):
            if renewed:
                sampler.take(policy)
            rollout = sampler.sample(policy, examples, how, seeds).to(device)
        if wrong := _flaw(rollout, examples, how):
            raise ComponentError(f"sampler `{sampler.name}` gave a rollout whose {wrong}")
        return rollout

    renewed = sampler.version != policy.version
    if renewed:
        sampler.before, sampler.version = sampler.version, None  # none of them, while it takes others
    rollout = dealing.sampled_by_one(examples, device, asked, f"what `{sampler.name}` samples")
    sampler.version = policy.version
    return rollout


def _flaw(rollout: Rollout, examples: Sequence[Example], how: Sampling) -> str | None:
    if wrong := rollout.flaw():
        return wrong
    given = rollout.group_N.bincount(minlength=len(examples)).tolist()
    if list(rollout.examples) != list(examples) or given != [how.samples] * len(examples):
        return f"groups have {given} responses, where {len(examples)} examples have {how.samples} each"
    if bool((rollout.logprobs_NT.isnan() & rollout.mask_NT).any()):
        return "log-probs are NaN: its logits are, or it does not know what it sampled"
    return None


def scored_again(phase: RunningPhase, sampler: Sampler, rollout: Rollout) -> Rollout:
    """With the policy's own log-probs beside the sampler's; refused where the two are not of the same weights."""
    found = phase.engine.score("policy", rollout, SCORED)
    ours = {own(name): torch.where(rollout.mask_NT, getattr(found, f"{name}_NT"), 0.0) for name in SCORED}
    gap_M = (ours[own("logprobs")] - rollout.logprobs_NT)[rollout.mask_NT].abs()
    if not float(gap_M.mean()) <= sampler.config.tolerance:
        raise RLAlignError(_told(sampler, gap_M))
    version_N = rollout.logprobs_NT.new_full((len(rollout),), float(sampler.version or 0))
    full_NT = rollout.full_logprobs_NT
    full_NT = torch.where(full_NT.isnan(), ours[own("full_logprobs")].to(full_NT), full_NT)
    return replace(rollout, full_logprobs_NT=full_NT).with_columns(**{VERSION: version_N, **ours})


def _told(sampler: Sampler, gap_M: Tensor) -> str:
    held = "none" if sampler.before is None else f"version {sampler.before}"
    mean, most = float(gap_M.mean()), float(gap_M.max())
    return (
        f"sampler `{sampler.name}`: its log-probs of {len(gap_M):,} sampled tokens lie {mean:.3g} from the policy's in "
        f"the mean, {most:.3g} at most, where `tolerance` is {sampler.config.tolerance:g}: it was given the weights of "
        f"version {sampler.version} and samples with others, such as those that it held before ({held}), with both in "
        "part, or it computes otherwise than the policy. Nothing was learned from this; start its servers again, and "
        "resume the run"
    )
