"""Responses of a sampler elsewhere: with the policy's weights of now, or asked for while the policy learns from those
before; and scored again by the policy at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.rollout import VERSION, Rollout, own
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError, RLAlignError, attributed_to
from rlalign.interface.sampler import Sampler
from rlalign.randomness import Draws
from rlalign.running import dealing
from rlalign.running.ahead import Question
from rlalign.running.phase import RunningPhase
from rlalign.running.pieces import put_together
from rlalign.world.ranks import here

SCORED = ("logprobs", "full_logprobs")


def asked_elsewhere(phase: RunningPhase, sampler: Sampler, question: Question) -> Rollout:
    """What a sampler answers with the policy's present weights, or has answered when it was asked ahead.

    Position p of the draw has the same seeds.
    """

    device, what = phase.models.device, f"what `{sampler.name}` samples"
    if not here().lead(lambda: phase.ahead.has(question), what):
        _hand_over(phase, sampler)

    def asked() -> Rollout:
        found = phase.ahead.answer(question)
        return asking(phase, sampler, question)() if found is None else found

    return dealing.sampled_by_one(question.examples, device, asked, what)


def upcoming(phase: RunningPhase) -> Question | None:
    """What the next iteration will ask; None where that is not asked ahead, or this phase has no other."""
    if not phase.plan.asks_ahead or phase.iteration + 1 >= phase.iterations:
        return None
    draw, start = phase.draw, phase.draw.position
    with attributed_to(f"task `{phase.settings.task.name}`, asked for examples,"):
        examples = draw.next(phase.settings.train.prompts)
    first, draw.position = draw.position - start - len(examples), start
    key = ("sample", phase.repeat, phase.place, phase.iteration + 1)
    return Question(tuple(examples), phase.settings.generation, key, first)


def ask_ahead(phase: RunningPhase, sampler: Sampler) -> None:
    """Have a sampler begin with what comes up, if anything does, with the policy's present weights.

    Its answer will be there when the policy has others. So that weights that did not arrive show before anything is
    learned from them, a short answer is waited for now.
    """
    question, what = phase.upcoming, f"what `{sampler.name}` is asked ahead"
    if question is None:
        return
    phase.upcoming = None
    if _hand_over(phase, sampler):
        scored_again(phase, sampler, asked_elsewhere(phase, sampler, question.short()))
    here().lead(
        lambda: phase.ahead.begin(question, asking(phase, sampler, question), sampler.give_up),
        what,
    )


def _hand_over(phase: RunningPhase, sampler: Sampler) -> bool:
    """Give a sampler the policy's present weights, which rank 0 has whole; whether they were news to it."""
    policy = phase.models.policy
    if sampler.version == policy.version:
        return False
    sampler.before, sampler.version = sampler.version, None  # none of them, while it takes others
    given = put_together(phase.models)

    def take() -> None:
        with torch.no_grad(), attributed_to(f"sampler `{sampler.name}`", sampler.name):
            sampler.take(given)

    here().lead(take, f"the weights that `{sampler.name}` takes")
    sampler.version = policy.version
    return True


def asking(phase: RunningPhase, sampler: Sampler, question: Question) -> Callable[[], Rollout]:
    """What has a sampler answer with the weights that it holds, whatever the policy does meanwhile."""
    policy, device, how, version = phase.models.policy, phase.models.device, question.how, sampler.version
    autocast = phase.engine.autocast
    positions = range(question.first, question.first + len(question.examples))
    seeds = Draws(phase.workspace.seeds.seed, question.key, positions, how.samples)

    def ask() -> Rollout:
        with torch.no_grad(), autocast(), attributed_to(f"sampler `{sampler.name}`", sampler.name):
            rollout = sampler.sample(policy, question.examples, how, seeds).to(device)
        if wrong := _flaw(rollout, question.examples, how):
            raise ComponentError(f"sampler `{sampler.name}` gave a rollout whose {wrong}")
        version_N = rollout.logprobs_NT.new_full((len(rollout),), float(version or 0))
        return rollout.with_columns(**{VERSION: version_N})

    return ask


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
    """With the policy's own log-probs beside the sampler's; refused where the two are to be of the same weights, and
    are not."""
    found = phase.engine.score("policy", rollout, SCORED)
    ours = {own(name): torch.where(rollout.mask_NT, getattr(found, f"{name}_NT"), 0.0) for name in SCORED}
    gap_M = (ours[own("logprobs")] - rollout.logprobs_NT)[rollout.mask_NT].abs()
    same = bool((rollout.columns[VERSION] == phase.models.policy.version).all())
    if same and not float(gap_M.mean()) <= sampler.config.tolerance:
        raise RLAlignError(_told(sampler, phase.models.policy.version, gap_M))
    full_NT = rollout.full_logprobs_NT
    full_NT = torch.where(full_NT.isnan(), ours[own("full_logprobs")].to(full_NT), full_NT)
    return replace(rollout, full_logprobs_NT=full_NT).with_columns(**ours)


def _told(sampler: Sampler, version: int, gap_M: Tensor) -> str:
    held = "none" if sampler.before is None else f"version {sampler.before}"
    mean, most = float(gap_M.mean()), float(gap_M.max())
    return (
        f"sampler `{sampler.name}`: its log-probs of {len(gap_M):,} sampled tokens lie {mean:.3g} from the policy's in "
        f"the mean, {most:.3g} at most, where `tolerance` is {sampler.config.tolerance:g}: it was given the weights of "
        f"version {version} and samples with others, such as those that it held before ({held}), with both in "
        "part, or it computes otherwise than the policy. Nothing was learned from this; start its servers again, and "
        "resume the run"
    )
