"""Reads one phase of a pipeline file, with everything it inherits."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from rlalign.config.file import File
from rlalign.config.pipeline import (
    ALTERNATIVES,
    COPY_TIMES,
    ITEM_KEYS,
    MERGED_SECTIONS,
    NAME_PATTERN,
    Evaluate,
    Item,
    ModelSpec,
    Origin,
    Phase,
    short,
)
from rlalign.config.places import Keys
from rlalign.config.validate import absolute, check
from rlalign.config.words import did_you_mean, found
from rlalign.data.settings import Sampling, Train
from rlalign.interface.component import Component


def read(file: File, scope: Keys, names: list[str]) -> Phase | None:
    """One phase, with every default filled in. `names` are the earlier phases'; its own is added."""
    algorithm = file.items(file.find(scope, "algorithm"), "algorithm")
    if file.find(scope, "algorithm") is None:
        file.report(scope, "`algorithm` is missing: how it learns, for instance `algorithm: rloo`")
    name = _name(file, scope, algorithm, names)
    task, origin = _task(file, scope, names)
    names.append(name)
    rewards = file.items(file.find(scope, "rewards"), "rewards")
    components = [item.peek() for item in algorithm]
    responses = _responses(file, scope, components)
    if responses is not None:
        responses = _same(responses, rewards)
        scored = any(component.scored for component in components)
        if not rewards and short(responses.component) == "logged" and scored:
            rewards = [responses]
        plays = task is not None and hasattr(task.cls, "start")  # an Environment, whose module needs torch
        if plays and not rewards and short(responses.component) != "logged":
            rewards = [item] if (item := file.make((*scope, "rewards"), "rewards", "played")) else []
    setters = [task.peek(), *components] if task is not None else components
    generation = file.section(scope, "generation", Sampling, _defaults(file, scope, setters, "generation"))
    train = file.section(scope, "train", Train, _defaults(file, scope, setters, "train"))
    # What an algorithm sets is not known of one that is unread.
    if train is not None and train.iterations is None and train.passes is None and not file.unread:
        file.report((*scope, "train"), "say how long: `iterations` or `passes`")
    evaluate = _evaluate(file, scope, rewards)
    models = _models(file, scope)
    observers = file.items(file.find(scope, "observers"), "observers")
    used = [*rewards, *algorithm, *(evaluate.use if evaluate else ()), *observers]
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
        observers=tuple(observers),
        place=file.tree.place(scope),
        places={
            f"{section}.{key}": file.tree.place(keys)
            for section in MERGED_SECTIONS
            for key, keys in file.merge(scope, section).items()
        },
    )


def _name(file: File, scope: Keys, algorithm: list[Item], earlier: list[str]) -> str:
    default = short(algorithm[0].component) if algorithm else ""
    name = file.tree.at(scope).get("name") if scope else None
    if name is None:
        name = default
        if name and name in earlier:
            file.report(scope, f"another phase is called `{name}`; give this one a `name`")
    elif not isinstance(name, str) or not re.match(NAME_PATTERN, name):
        expected = "expected letters, digits, - and _, as it names files"
        file.report((*scope, "name"), f"{expected}; found {found(name)}")
    elif name in earlier:
        file.report((*scope, "name"), f"another phase is called `{name}` already")
    return str(name)


def is_origin(entry: Any) -> bool:
    return isinstance(entry, dict) and ("from" in entry or "with" in entry)


def _task(file: File, scope: Keys, earlier: list[str]) -> tuple[Item | None, Origin | None]:
    keys, top = file.find(scope, "task"), file.find((), "task")
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
        before = f"earlier phases: {', '.join(filter(None, earlier))}" if earlier else "it is the first"
        file.report((*keys, "from"), f"no earlier phase is named `{origin.phase}` ({before})")
    if top is None:
        reason = "how responses read, and what evaluation uses, is still a task's business"
        file.report(keys, f"name a task at the top of the file too: {reason}")
    return (None if top is None else file.item(top, "task")), origin


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


def _defaults(file: File, scope: Keys, setters: list[Component], section: str) -> dict[str, Any]:
    """What task and algorithm set in a section unless the file does."""
    merged = file.merge(scope, section)
    said = {*merged, *(ALTERNATIVES.get(name, "") for name in merged if section == "train")}
    defaults: dict[str, Any] = {}
    by: dict[str, str] = {}
    for component in setters:
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
    use = file.merge(scope, "evaluate").get("use")
    evaluate = file.section(scope, "evaluate", Evaluate)
    if use is None or file.tree.at(use) is None:
        # `logged`, the stored scores, has none for the responses an evaluation samples.
        used = [item for item in rewards if short(item.component) != "logged"]
    else:
        places = [file.find(scope, "rewards"), file.find((), "rewards")]
        listed = [one for keys in dict.fromkeys(places) for one in file.each(keys)]
        known = [*rewards, *(item for one in listed if (item := file.item(one, "rewards")))]
        unsound = {_called(file.tree.at(one)) for one in listed if file.item(one, "rewards") is None}
        used = _use(file, use, known, unsound)
    return evaluate and evaluate.model_copy(update={"use": tuple(used)})


def _use(file: File, keys: Keys, rewards: list[Item], unsound: Collection[str | None] = ()) -> list[Item]:
    """A bare name that a reward has means that very reward, and so does its component, `mine:Class`.

    What is wrong with an `unsound` reward is told already.
    """
    used = []
    for one in file.each(keys):
        said = file.tree.at(one)
        if isinstance(said, str) and said in unsound:
            continue
        named = next((item for item in rewards if item.name == said or _bare(item) == said), None)
        item = named or file.item(one, "evaluate.use")
        if item is not None:
            used.append(_same(item, rewards))
    return used


def _called(said: Any) -> str | None:
    """The name of an item as a file says it, whether it is sound or not."""
    if not isinstance(said, dict):
        return said if isinstance(said, str) else None
    component = next((key for key in said if key not in ITEM_KEYS), None)
    name = said.get("as") or (short(component) if isinstance(component, str) else None)
    return name if isinstance(name, str) else None


def _bare(item: Item) -> str | None:
    """How a component is said that goes by its own name."""
    return item.component if item.name == short(item.component) else None


def _same(item: Item, among: list[Item]) -> Item:
    """The same component with the same options, where it is listed already: one object serves both."""
    about = (item.name, item.component, item.options)
    return next((other for other in among if (other.name, other.component, other.options) == about), item)


def _models(file: File, scope: Keys) -> dict[str, ModelSpec]:
    models = {}
    for name, keys in file.merge(scope, "models").items():
        said = file.tree.at(keys)
        spec = None
        if name == "policy":
            file.report(keys, "the policy is named by `policy`, at the top of the file")
        elif isinstance(said, dict) and ("of" in said or "dtype" in said):
            spec = _copy(file, keys, said)
        elif said is not None and (item := file.item(keys, "models")) is not None:
            spec = ModelSpec(item=item)
        if spec is not None:
            models[name] = spec
    return models


def _copy(file: File, keys: Keys, said: dict[str, Any]) -> ModelSpec | None:
    """A copy of the policy: of when, and how it is held."""
    if others := [str(key) for key in said if key not in ("of", "dtype")]:
        text = "`of` and `dtype` describe a copy of the policy and stand alone"
        file.report(keys, f"{text}, found {', '.join(others)} beside them")
        return None
    if "of" in said:
        of = _copied(file, (*keys, "of"), said["of"])
        said = {**said, "of": of}
    spec = check(ModelSpec, said, file.folder, file.under(keys))
    return None if "of" in said and said["of"] is None else spec


def _copied(file: File, keys: Keys, of: Any) -> str | None:
    """`of:` a moment at which the policy is copied, or a folder to load, made absolute."""
    if of in COPY_TIMES:
        return str(of)
    problem = ""
    if isinstance(of, str):
        try:
            path = absolute(of, file.folder)
            if path.exists():
                return str(path)
            problem = f": there is no {path}"
        except (ValueError, RuntimeError) as error:
            problem = f": {error}"
        problem += did_you_mean(of, COPY_TIMES)
    file.report(keys, f"expected {', '.join(COPY_TIMES)} or a folder, found {found(of)}{problem}")
    return None


def _refuse_same_names(file: File, scope: Keys, items: list[Item]) -> None:
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(item.name, item)
        if first is not item:
            problem = f"the item at {first.place} is named `{item.name}` too; give one of them `as: …`"
            file.report(file.where(item) or scope, problem)
