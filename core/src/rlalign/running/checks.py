"""What is wrong with the components of a phase and how they stand together. Each check tells all it finds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from rlalign.config.pipeline import Pipeline
from rlalign.data import limits
from rlalign.data.settings import Unit
from rlalign.decoding.logits import LIVE
from rlalign.interface import hooks
from rlalign.running import rewriting, samplers
from rlalign.running.members import HOOKS, Member, implements, once, who
from rlalign.running.plan import PhasePlan

WRAPPABLE = ("reward", "advantage", "update")
NEEDS = (*LIVE, "values", "old_logprobs")
COLUMNS = (*LIVE, "values", "state_values")
OF_VALUES = ("values", "state_values")
BELONGS = {
    "rollout": "responses",
    "reward": "rewards",
    "evaluate": "evaluate.use",
    **dict.fromkeys(("advantage", "loss", "update", "step_started", "step_ready"), "algorithm"),
}
"""Hooks that change a run or measure it, and where their components stand."""
DECLARED = (
    *("models", "trains", "needs", "responses", "regularises", "weighs", "adds_turns"),
    *("constraint", "defaults", "sources"),
)
"""What a component may say that has the run do something for it."""


# -- the hooks of components, each alone and side by side --------------------------------------------------


def hooks_of(members: Sequence[Member]) -> Iterator[str]:
    """Hooks that would never be called, and hooks that exclude each other."""
    for member in once(members):
        yield from marks(member)
    for hook in ("advantage", "update"):
        found = [m for m in once(members) if implements(m.component, hook) == "plain"]
        if len(found) > 1:
            names = " and ".join(who(m) for m in found)
            yield f"only one component may implement `{hook}`, but {names} both do; remove one"
    for role in ("rewards", "use", "algorithm", "observers"):
        yield from _wrappers([m for m in members if m.role == role], role)


def marks(member: Member) -> Iterator[str]:
    """A method that has a hook's name but not the mark would never be called."""
    for hook in HOOKS:
        method = getattr(type(member.component), hook, None)
        if not callable(method):
            continue
        if not hasattr(method, "rlalign_impl"):
            yield (
                f"{who(member)} has a method `{hook}` without `@hookimpl`, so it would never be called; "
                "mark it, or give it another name"
            )
            continue
        given = list(inspect.signature(getattr(hooks, hook)).parameters)
        asked = list(inspect.signature(method).parameters)[1:]
        if unknown := [name for name in asked if name not in given]:
            yield f"`{hook}` of {who(member)} asks for `{unknown[0]}`; the hook gives {', '.join(given)}"


def _wrappers(listed: Sequence[Member], role: str) -> Iterator[str]:
    for i, member in enumerate(listed):
        wraps = [hook for hook in HOOKS if implements(member.component, hook) == "wrapper"]
        if bad := [hook for hook in wraps if hook not in WRAPPABLE]:
            yield f"{who(member)} wraps `{bad[0]}`; only {', '.join(WRAPPABLE)} can be wrapped"
        elif wraps and i == 0 and (role != "use" or "reward" in wraps):
            remedy = "move it down" if role != "use" else "the phase's rewards are wrapped as in training"
            yield f"{who(member)} wraps the items above it in `{role}`, and there are none; {remedy}"
        else:
            for below in listed[i + 1 :]:
                for hook in wraps:
                    if hook != "reward" and implements(below.component, hook) == "plain":
                        yield (
                            f"{who(member)} wraps `{hook}`, which {who(below)} implements below it; "
                            "a wrapper stands under what it wraps"
                        )
        if wraps and member.item.weight != 1:
            yield f"{who(member)} is a wrapper and takes no weight; put it on what it wraps"


def watching(observers: Sequence[Member]) -> Iterator[str]:
    """What an observer would change of the run."""
    for member in observers:
        only = f"{member.item.place}: `{member.name}`: what stands under `observers` only watches a run, and this"
        for hook, place in BELONGS.items():
            if implements(member.component, hook):
                yield f"{only} has a `{hook}` hook; list it under `{place}`"
        for name in DECLARED:
            if getattr(member.component, name) not in (None, False, (), [], {}):
                yield f"{only} declares `{name}`; list it under `algorithm`"


# -- what the whole pipeline says ---------------------------------------------------------------------------


def machine_of(pipeline: Pipeline) -> Iterator[str]:
    """What this machine cannot do."""
    place, asked = pipeline.places.get("device", pipeline.policy.place), pipeline.device
    found = None
    if asked != "auto":
        try:
            found = torch.device(asked)
        except RuntimeError:
            yield f"{place}: device: expected auto, cpu, cuda, cuda:1, … found {asked!r}"
    if found is not None and found.type not in ("cpu", "cuda"):
        try:
            torch.zeros((), device=found)
        except (RuntimeError, AssertionError, NotImplementedError):
            yield f"{place}: device: {asked}: no such device here; `device: auto` takes what there is"
    if found is not None and found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            yield f"{place}: device: {asked}: no such device here; `device: auto` takes what there is"
        elif (found.index or 0) >= count:
            yield f"{place}: device: {asked}: there are {count}, numbered from 0"
    held = {phase.train.held: phase for phase in pipeline.phases}
    if "bfloat16" in held and not hasattr(torch.Tensor, "grad_dtype"):
        yield (
            f"{held['bfloat16'].place_of('train.weights')}: train.weights: bfloat16: torch {torch.__version__} is too "
            "old for it (tensors have no `grad_dtype`); update torch, or leave it out"
        )
    for dtype, key in (("float64", "dtype"), ("bfloat16", "weights")):
        if dtype in held and len(held) > 1:
            other = next(phase for found, phase in held.items() if found != dtype)
            yield f"{other.place_of(f'train.{key}')}: train.{key}: {dtype} in one phase means {dtype} in all"
            break


# -- a phase -----------------------------------------------------------------------------------------------


def declarations_of(members: Sequence[Member]) -> Iterator[str]:
    """What components declare that means nothing, and needs that no model can meet."""
    for member in members:
        component, who_says = member.component, f"{member.item.place}: `{member.name}`"
        if component.unit not in (units := get_args(Unit)):
            yield f"{who_says} declares `unit = {component.unit!r}`; there are {', '.join(units)}"
        for name in ("needs", "trains"):
            if isinstance(said := getattr(component, name), str):
                yield f"{who_says} declares `{name}` as one text; it is a list: `{name} = ({said!r},)`"
        for need in component.needs if not isinstance(component.needs, str) else ():
            model, _, output = need.rpartition(".")
            if output not in (COLUMNS if model else NEEDS):
                yield (
                    f"{who_says} needs `{need}`, which no model gives; "
                    f"there are {', '.join(NEEDS)}, and columns: a model, a dot and one of {', '.join(COLUMNS)}"
                )


def phase_of(plan: PhasePlan) -> Iterator[str]:
    """Whatever keeps a planned phase from being run."""
    yield from _names(plan)
    yield from _directions(plan)
    yield from _early(plan)
    yield from _learning(plan)
    yield from _sources(plan)
    yield from _models(plan)
    yield from samplers.faults(plan)
    yield from rewriting.faults(plan)


def _names(plan: PhasePlan) -> Iterator[str]:
    for member in once([*plan.members, *plan.evaluators]):
        if member.name == "total" and implements(member.component, "reward"):
            yield f"{member.item.place}: `total` is what the weighted sum is called; name this otherwise, `as: …`"


def _directions(plan: PhasePlan) -> Iterator[str]:
    """Learning maximises the weighted sum, whatever its parts count."""
    for member in plan.members:
        counts_down = (
            implements(member.component, "reward") == "plain" and not member.component.higher_is_better
        )
        if member.role == "rewards" and counts_down and member.item.weight > 0:
            yield (
                f"{member.item.place}: `{member.name}` counts down: a smaller score is better, and a weight above 0 "
                f"would have larger ones learned; say `weight: {-member.item.weight:g}`"
            )


def _early(plan: PhasePlan) -> Iterator[str]:
    """Columns are taken once all responses are there: too late for who begins before."""
    for member in plan.everybody:
        columns = [need for need in member.component.needs if "." in need]
        if hasattr(member.component, "ahead") and columns:
            yield (
                f"{member.item.place}: `{member.name}` begins before all responses are there (its method `ahead`), "
                f"and `{columns[0]}` is not known then; take one of them out of its class"
            )


def _learning(plan: PhasePlan) -> Iterator[str]:
    for member in plan.training.implementing("loss"):
        if not member.component.trains:
            yield (
                f"{member.item.place}: `{member.name}` has a loss but trains nothing; "
                'its class needs trains = ("policy",)'
            )
    for member in plan.members:
        for name in member.component.trains:
            if plan.models.get(name) in ("frozen", "lagging"):
                yield (
                    f"{member.item.place}: `{member.name}` trains `{name}`, which is {plan.models[name]} here; "
                    "take it out of its `trains`"
                )
    constrained = [m for m in once(plan.members) if m.component.constraint is not None]
    if len(constrained) > 1:
        names = " and ".join(f"`{m.name}` ({m.item.place})" for m in constrained)
        yield f"{names} each constrain what may be sampled, and only one can; remove one"
    kls = [m for m in once(plan.members) if m.component.regularises]
    if len(kls) > 1:
        names = " and ".join(f"`{m.name}` ({m.item.place})" for m in kls)
        yield f"{names} each penalise the KL to the reference; remove one (or set `together: true` on kl)"


def _sources(plan: PhasePlan) -> Iterator[str]:
    settings, sources = plan.settings, plan.source.component.sources
    assert settings.responses is not None
    adds_its_own = bool(sources) and hasattr(plan.source.component, "respond")
    known = [*sources, *([plan.source.name] if adds_its_own else [])]
    for member in plan.members:
        source = member.item.source
        if source is None:
            continue
        if not implements(member.component, "loss"):
            yield f"{member.item.place}: `source` restricts a loss, and `{member.name}` has none; leave it out"
        elif source not in known:
            yield (
                f"{member.item.place}: `source: {source}` needs `responses: {{mix: {{{source}: …}}}}`; "
                f"here they come from {' and '.join(f'`{s}`' for s in known or [plan.source.name])}"
            )
    if "sampled" not in (settings.responses.component, *sources):
        return
    if settings.generation.beams > 1:
        place = settings.place_of("generation.beams")
        yield f"{place}: generation.beams: a beam search is no sample; it belongs under `evaluate`"
    if settings.generation.greedy and plan.learns:
        place = settings.place_of("generation.greedy")
        yield f"{place}: generation.greedy: learning needs responses that differ; leave it out"
    samples = sum(count or settings.generation.samples for count in sources.values())
    samples = samples or settings.generation.samples
    prompts = settings.train.prompts
    if prompts * samples > limits.RESPONSES:
        yield (
            f"{settings.place}: {prompts:,} prompts × {samples:,} responses are more than {limits.RESPONSES:,} an "
            "iteration; lower train.prompts or generation.samples"
        )
    sure = plan.source.component.fewest(settings.generation.samples)
    unsure = [f"`{name}`" for name, one in plan.source.component.source_components.items() if not one.sure]
    remedy = "set generation.samples"
    if sure < samples and unsure:
        remedy = f"{' and '.join(unsure)} may have none, so ask for more of another source"
    elif sure < samples:
        remedy = f"with these options `{plan.source.name}` may bring no more of them back; change those"
    for member in plan.members:
        if sure < member.component.min_samples:
            yield (
                f"{member.item.place}: `{member.name}` needs at least {member.component.min_samples} responses per "
                f"prompt and gets {sure}; {remedy}"
            )


def _models(plan: PhasePlan) -> Iterator[str]:
    for members in (plan.members, plan.evaluators):
        for member in members:
            for model, _, output in (need.rpartition(".") for need in member.component.needs):
                if model and (plan.models.get(model) == "value") != (output in OF_VALUES):
                    kind = (
                        "no value"
                        if output in OF_VALUES
                        else "a value, which gives `values` and `state_values` only"
                    )
                    yield f"{member.item.place}: `{model}.{output}` is needed, but `{model}` is {kind}"
    for name, spec in plan.settings.models.items():
        place = plan.settings.place_of(f"models.{name}")
        if spec.item is None and spec.of is None and spec.dtype is None:
            yield f"{place}: models.{name}: say `of:` or name a component"
        if spec.dtype is not None and plan.models.get(name) == "value":
            yield (
                f"{place}: models.{name}.dtype: only frozen and lagging copies of the policy are held in "
                f"another precision, and `{name}` is a value, which learns; leave it out "
                "(`train.dtype: bfloat16` computes in half precision)"
            )
