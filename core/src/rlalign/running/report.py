"""A pipeline in words, as `rlalign check` prints it: who acts in each stage, which models, what is learned."""

from __future__ import annotations

from collections.abc import Sequence

from rlalign.config.pipeline import Pipeline
from rlalign.running.plan import PhasePlan


def describe(
    pipeline: Pipeline, plans: Sequence[PhasePlan], examples: Sequence[str] = (), tokens: str = ""
) -> str:
    """The whole pipeline in a few lines per phase.

    `examples` says of each what its task gave, `tokens` how large micro-batches may be.
    """
    repeat = f", repeated {pipeline.repeat} times" if pipeline.repeat > 1 else ""
    count = "1 phase" if len(plans) == 1 else f"{len(plans)} phases"
    lines = [f"{pipeline.stem}: {count}{repeat}; policy {pipeline.policy.component}, seed {pipeline.seed}"]
    known: set[str] = {"policy"}
    for place, plan in enumerate(plans):
        lines += [
            "",
            f"{plan.settings.name}:",
            *(
                f"  {line}"
                for line in _phase(plan, known, tokens, first=place == 0, examples=examples[place:][:1])
            ),
        ]
        known |= set(plan.models)
    return "\n".join(lines) + "\n"


def _phase(
    plan: PhasePlan, known: set[str], tokens: str, *, first: bool, examples: Sequence[str]
) -> list[str]:
    phase, train = plan.settings, plan.settings.train
    rows = {"task": f"{phase.task.name}" + (f" (from {phase.origin.phase})" if phase.origin else "")}
    if examples and examples[0]:
        rows["data"] = examples[0]
    for hook, names in plan.acting().items():
        rows[hook] = ", ".join(names) or "nothing but samples"
    if plan.not_evaluated:
        rows["not evaluated"] = plan.told_of_evaluation
    rows.setdefault("reward", "nothing")
    if isolated := [f"{m.name} ({m.item.isolate.where})" for m in plan.everybody if m.item.isolate]:
        rows["isolated"] = ", ".join(isolated)
    if apart := phase.task.apart:
        rows["episodes"] = f"in {apart.processes(apart.workers, 'their')}"
    models = {"policy": "built" if first else "kept"}
    for name in plan.models:
        spec = phase.models.get(name)
        renewed = (spec.of if spec else None) in ("phase", "iteration") or (
            name == "reference" and not (spec and spec.of)
        )
        if name not in known:
            models[name] = "built"
        else:
            models[name] = "renewed" if renewed and not (spec and spec.item) else "kept"
        if spec and spec.dtype:
            models[name] += f" in {spec.dtype}"
    if plan.sampler is not None:
        rows["sampler"] = f"{plan.sampler.name}: {plan.sampler.repeats}"
        if plan.asks_ahead:
            rows["sampler"] += "; responses of weights one iteration old (`ahead`)"
        differs = plan.asks_ahead or not plan.sampler.alike
        if differs and plan.learns and "sampled" in plan.responses and train.mismatch is None:
            rows["sampler"] += "; say `train.mismatch` to weigh how it differs from the policy"
    if plan.observers:
        rows["observers"] = ", ".join(member.name for member in plan.observers)
    rows["models"] = ", ".join(f"{name} {said}" for name, said in models.items())
    rows["trains"] = ", ".join(plan.trains) if plan.learns else "nothing"
    if plan.live or plan.columns:
        columns = [f"{model}.{output}" for model, output in plan.columns]
        rows["needs"] = ", ".join([*sorted(plan.live), *columns])
    if chosen := _defaults(plan):
        rows["defaults"] = ", ".join(chosen)
    length = (
        _count(train.iterations, "iteration") if train.iterations else _count(train.passes, "pass", "passes")
    )
    steps = f"{train.epochs} epochs of " if train.epochs > 1 else ""
    size = _count(train.minibatches, "optimiser step")
    if train.minibatch:
        size = f"{_count(train.minibatch, 'group')} a step"
    learning = f", {steps}{size}" if plan.learns else ""
    if plan.learns and (train.budget or tokens):
        most = f"{train.budget:,} padded tokens (`train.budget`)" if train.budget else tokens
        rows["memory"] = f"micro-batches of {most}"
    rows["length"] = f"{length} of {_count(train.prompts, 'prompt')}{learning}"
    wide = max(map(len, rows))
    return [f"{name:{wide}}  {value}" for name, value in rows.items()]


def _defaults(plan: PhasePlan) -> list[str]:
    """What task and algorithms set in `train` and `generation`, where the file left it to them."""
    return [
        f"{section}.{key} {value} ({component.name})"
        for component in plan.components
        for section, values in component.defaults.items()
        for key, value in values.items()
        if getattr(getattr(plan.settings, section), key) == value
    ]


def _count(number: float | None, one: str, many: str | None = None) -> str:
    return f"{number:g} {one if number == 1 else many or f'{one}s'}"
