"""Reads one phase of a pipeline file, with everything it inherits."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field

from rlalign.config.entries import SAFE, File
from rlalign.config.overrides import RIVALS, short
from rlalign.config.pipeline import Evaluate, From, Item, ModelSpec, Phase
from rlalign.config.places import Keys, found
from rlalign.config.validate import absolute, check
from rlalign.data.settings import Options, Positive, Sampling, Train
from rlalign.interface.component import Component


class Measure(Options):
    """`evaluate`: what is measured, on what, how often."""

    every: Positive | None = Field(None, description="iterations in between; null: start and end only")
    split: str = Field("val", description="the task's split")
    examples: Positive = Field(256, description="examples, from the start of the split")
    use: Any = Field(None, description="names of rewards, or components; null: the phase's rewards")
    generation: Sampling = Field(Sampling(), description="how responses are sampled, else as the task says")


class Origin(Options):
    """`task: {from: grow, with: [original]}`"""

    phase: str = Field(alias="from", description="an earlier phase, whose responses become the data")
    others: tuple[Literal["original"], ...] = Field((), alias="with", description="what joins them")


AGES = ("start", "phase", "iteration")


class Copy(Options):
    """`models: {reference: {of: start, dtype: bfloat16}}`"""

    of: Any = Field(
        None,
        description="the policy as it was at the `start` of the run, at that of each `phase`, or of each "
        "`iteration`; or a model folder; null: a phase's for `reference`, for others when they are first needed",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="how its weights are held; null: as the run's. bfloat16 takes half of float32's memory",
    )


def read(file: File, scope: Keys, names: list[str]) -> Phase | None:
    """One phase, with every default filled in. `names` are the earlier phases'; its own is added."""
    algorithm = file.items(file.find(scope, "algorithm"), "algorithm")
    if file.find(scope, "algorithm") is None:
        file.report(scope, "`algorithm` is missing: how it learns, for instance `algorithm: rloo`")
    name = _name(file, scope, algorithm, names)
    task, origin = _task(file, scope, names)
    names.append(name)
    rewards = file.items(file.find(scope, "rewards"), "rewards")
    built = _built(file, algorithm)
    responses = _responses(file, scope, built)
    if responses is not None:
        responses = _twin(responses, rewards)
        scored = len(built) < len(algorithm) or any(component.scored for component in built)
        if not rewards and short(responses.component) == "logged" and scored:
            rewards = [responses]
    generation = file.section(scope, "generation", Sampling, _defaults(file, scope, built, "generation"))
    train = file.section(scope, "train", Train, _defaults(file, scope, built, "train"))
    if train is not None and train.iterations is None and train.passes is None:
        file.report((*scope, "train"), "say how long: `iterations` or `passes`")
    evaluate = _evaluate(file, scope, rewards)
    models = _models(file, scope)
    used = [*rewards, *algorithm, *(evaluate.use if evaluate else ())]
    _refuse_same_names(file, scope, [*used, responses] if responses else used)
    if task is None or responses is None or generation is None or train is None:
        return None
    return Phase(
        name=name,
        task=task,
        origin=origin,
        rewards=tuple(rewards),
        algorithm=tuple(algorithm),
        responses=responses,
        generation=generation,
        train=train,
        evaluate=evaluate,
        models=models,
        place=file.tree.place(scope),
        places={
            f"{section}.{key}": file.tree.place(at)
            for section in ("generation", "models")
            for key, at in file.merge(scope, section).items()
        },
    )


def _name(file: File, scope: Keys, algorithm: list[Item], earlier: list[str]) -> str:
    default = short(algorithm[0].component) if algorithm else ""
    name = file.tree.at(scope).get("name") if scope else None
    if name is None:
        name = default
        if name in earlier:
            file.report(scope, f"another phase is called `{name}`; give this one a `name`")
    elif not isinstance(name, str) or not re.match(SAFE, name):
        expected = "expected letters, digits, - and _, as it names files"
        file.report((*scope, "name"), f"{expected}; found {found(name)}")
    elif name in earlier:
        file.report((*scope, "name"), f"another phase is called `{name}` already")
    return str(name)


def is_origin(entry: Any) -> bool:
    return isinstance(entry, dict) and ("from" in entry or "with" in entry)


def _task(file: File, scope: Keys, earlier: list[str]) -> tuple[Item | None, From | None]:
    keys = file.find(scope, "task")
    if keys is None:
        file.report(scope, "`task` is missing: where the examples come from")
        return None, None
    if not is_origin(file.tree.at(keys)):
        return file.item(keys, "task"), None
    if keys == ("task",):
        file.report(keys, "only a phase can learn `from` another phase; name a task here")
        return None, None
    origin = check(Origin, file.tree.at(keys), file.folder, file.under(keys))
    if origin is not None and origin.phase not in earlier:
        before = f"earlier phases: {', '.join(earlier)}" if earlier else "it is the first"
        file.report((*keys, "from"), f"no earlier phase is named `{origin.phase}` ({before})")
    top = file.find((), "task")
    if top is None or origin is None:
        if top is None:
            reason = "how responses read, and what evaluation uses, is still a task's business"
            file.report(keys, f"name a task at the top of the file too: {reason}")
        return None, None
    return file.item(top, "task"), From(origin.phase, original="original" in origin.others)


def _built(file: File, algorithm: list[Item]) -> list[Component]:
    """The components of the algorithm, for what they declare; those that refuse their options are reported."""
    built = []
    for item in algorithm:
        try:
            built.append(item.build())
        except Exception as error:
            file.report(file.where(item), f"`{item.name}` refuses its options: {error}")
    return built


def _responses(file: File, scope: Keys, algorithm: list[Component]) -> Item | None:
    """What the file says, else what the algorithm learns from by nature, else `sampled`."""
    keys = file.find(scope, "responses")
    if keys is not None:
        return file.item(keys, "responses")
    wishes: dict[str, str] = {}
    for component in algorithm:
        if component.responses is not None:
            wishes.setdefault(component.responses, component.name)
    if len(wishes) > 1:
        both = " and ".join(f"`{name}` learns from {wish} ones" for wish, name in wishes.items())
        file.report(scope, f"`responses` is missing: {both}; say which responses this phase uses")
    return file.make((*scope, "responses"), "responses", next(iter(wishes), "sampled"))


def _defaults(file: File, scope: Keys, algorithm: list[Component], section: str) -> dict[str, Any]:
    """What the algorithm sets in a section unless the file does."""
    merged = file.merge(scope, section)
    said = {*merged, *(RIVALS.get(name, "") for name in merged if section == "train")}
    defaults: dict[str, Any] = {}
    by: dict[str, str] = {}
    for component in algorithm:
        for key, value in component.defaults.get(section, {}).items():
            if key in said:
                continue
            if key in defaults and defaults[key] != value:
                both = f"`{by[key]}` sets {defaults[key]} and `{component.name}` {value}"
                file.report((*scope, section), f"`{key}` is missing: {both}; say which")
            defaults[key], by[key] = value, component.name
    return defaults


def _evaluate(file: File, scope: Keys, rewards: list[Item]) -> Evaluate | None:
    if file.find(scope, "evaluate") is None:
        return None
    measure = file.section(scope, "evaluate", Measure)
    merged = file.merge(scope, "evaluate")
    # `logged`, the stored scores, has none for the responses an evaluation samples.
    use = [item for item in rewards if short(item.component) != "logged"]
    if measure is not None and measure.use is not None:
        configured = [*rewards, *file.items(file.find((), "rewards"), "rewards")]
        use = _use(file, merged["use"], configured)
    if measure is None:
        return None
    generation = file.tree.at(merged["generation"]) if "generation" in merged else {}
    return Evaluate(measure.every, measure.split, measure.examples, tuple(use), dict(generation))


def _use(file: File, keys: Keys, configured: list[Item]) -> list[Item]:
    """A bare name that a reward has means that very reward."""
    entries = file.tree.at(keys)
    use = []
    listed = isinstance(entries, list)
    for index, entry in enumerate(entries if listed else [entries]):
        own = (*keys, index) if listed else keys
        named = next((item for item in configured if item.name == entry), None)
        item = named or file.item(own, "use")
        if item is not None:
            use.append(_twin(item, configured))
    return use


def _twin(item: Item, among: list[Item]) -> Item:
    """The same component with the same options, where it is listed already: one object serves both."""
    for other in among:
        if other.name == item.name and other.component == item.component:
            if other.options == item.options:
                return other
    return item


def _models(file: File, scope: Keys) -> dict[str, ModelSpec]:
    models = {}
    for name, keys in file.merge(scope, "models").items():
        entry = file.tree.at(keys)
        if name == "policy":
            file.report(keys, "the policy is named by `policy`, at the top of the file")
        elif isinstance(entry, dict) and not Copy.model_fields.keys().isdisjoint(entry):
            if (spec := _copy(file, keys, entry)) is not None:
                models[name] = spec
        elif entry is not None and (item := file.item(keys, "models")) is not None:
            models[name] = ModelSpec(item=item)
    return models


def _copy(file: File, keys: Keys, entry: dict[str, Any]) -> ModelSpec | None:
    """A copy of the policy: of when, and how it is held."""
    if others := [str(key) for key in entry if key not in Copy.model_fields]:
        file.report(
            keys,
            f"`of` and `dtype` describe a copy of the policy and stand alone, found {', '.join(others)} beside them",
        )
        return None
    copy = check(Copy, entry, file.folder, file.under(keys))
    if copy is None:
        return None
    of = _age(file, keys, copy.of) if "of" in entry else None
    if "of" in entry and of is None:
        return None
    return ModelSpec(of=of, dtype=copy.dtype)


def _age(file: File, keys: Keys, of: Any) -> str | None:
    """`of:` a moment at which the policy is copied, or a folder to load, made absolute."""
    if of in AGES:
        return str(of)
    elif isinstance(of, str):
        try:
            path = absolute(of, file.folder)
            if path.exists():
                return str(path)
            problem = f"there is no {path}"
        except (ValueError, RuntimeError) as error:
            problem = str(error)
        close = get_close_matches(of, AGES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        file.report(
            (*keys, "of"),
            f"expected {', '.join(AGES)} or a folder, found {found(of)}: {problem}{hint}",
        )
    else:
        file.report((*keys, "of"), f"expected {', '.join(AGES)} or a folder, found {found(of)}")
    return None


def _refuse_same_names(file: File, scope: Keys, items: list[Item]) -> None:
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(item.name, item)
        if first is not item:
            problem = f"the entry at {first.place} is named `{item.name}` too; give one of them `as: …`"
            file.report(file.where(item) or scope, problem)
