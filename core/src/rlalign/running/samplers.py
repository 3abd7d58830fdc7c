"""What is wrong with a sampler elsewhere, and with what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator

from rlalign.config.pipeline import SAMPLER
from rlalign.interface.environment import Environment
from rlalign.interface.sampler import Sampler
from rlalign.running.members import once
from rlalign.running.plan import PhasePlan, decoding


def faults(plan: PhasePlan) -> Iterator[str]:
    """Who stands under `models.sampler`, and what a sampler elsewhere cannot do."""
    settings = plan.settings
    for name, spec in settings.models.items():
        place, item = f"{settings.place_of(f'models.{name}')}: models.{name}", spec.item
        samples = item is not None and issubclass(item.cls, Sampler)
        if samples and name != SAMPLER:
            yield f"{place}: `{item and item.name}` is a sampler, and stands under `models: {{{SAMPLER}: …}}`"
        elif name == SAMPLER and not samples:
            said = f"`{item.name}` is none" if item else "a copy of the policy is none"
            yield f"{place}: expected a sampler, such as `vllm`; {said}"
    if plan.sampler is None:
        return
    if isinstance(plan.task, Environment):
        yield (
            f"{settings.place_of('task')}: `{plan.task.name}` plays episodes, which `{plan.sampler.name}` cannot; "
            f"leave out `models.{SAMPLER}`: the policy then plays itself"
        )
        return
    asked = {}
    if "sampled" in plan.responses:
        asked["generation"] = settings.generation
        for member in once(plan.members):
            if member.component.constraint is not None:
                yield (
                    f"{member.item.place}: `{member.name}` has a second model narrow what is sampled, step by step, "
                    f"which `{plan.sampler.name}` cannot; leave out `models.{SAMPLER}`: the policy then samples itself"
                )
        yield from _ahead(plan, plan.sampler)
    if settings.evaluate is not None:
        asked["evaluate.generation"] = decoding(settings, plan.task)
    for section, how in asked.items():
        for lack in plan.sampler.lacks(how):
            yield f"{settings.place_of(section)}: {section}.{lack}"


def _ahead(plan: PhasePlan, sampler: Sampler) -> Iterator[str]:
    """What does not go with responses that are sampled while the policy learns from those before."""
    settings = plan.settings
    if not sampler.config.ahead:
        return
    place = f"{settings.place_of(f'models.{SAMPLER}')}: models.{SAMPLER}.{sampler.name}.ahead"
    if not sampler.concurrent:
        yield f"{place}: `{sampler.name}` cannot sample while the policy learns: it does not say `concurrent`"
    if not plan.samples_only:
        yield (
            f"{place}: goes with `responses: sampled`; what `{plan.source.name}` asks for next is not known "
            "while the policy learns"
        )
    if settings.train.refill:
        yield (
            f"{place}: train.refill draws again once rewards are there, so which prompts are next is not known while "
            "the policy learns; leave one of the two out"
        )
