"""From a pipeline to the plans of its phases: components are built and checked. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlalign.config.pipeline import COPY_TIMES, SAMPLER, Item, Phase, Pipeline
from rlalign.config.places import Keys
from rlalign.config.registry import Registry
from rlalign.config.validate import check
from rlalign.config.words import did_you_mean
from rlalign.data.settings import Role, Unit
from rlalign.errors import ConfigError, Faults, RLAlignError, describe_error
from rlalign.interface.component import Component, Lagging, Task
from rlalign.interface.policy import Policy
from rlalign.interface.sampler import Sampler
from rlalign.running import checks
from rlalign.running.members import Member, implements, once
from rlalign.running.plan import PhasePlan, decoding
from rlalign.running.stages import Stages
from rlalign.serving.copies import Copies
from rlalign.serving.isolated import isolated, unplayable
from rlalign.serving.served import served, unlimited, unservable

_UNITS: tuple[Unit, ...] = ("response", "group", "step")
_USUAL_ROLES: dict[str, Role] = {"reference": "frozen", "value": "value"}


@dataclass
class Builder:
    """Builds components. One whose options and name equal an earlier one's is that very object."""

    registry: Registry
    faults: Faults
    pipeline: Pipeline
    built: dict[tuple[str, str, str, str], Component] = field(default_factory=dict)

    def build(self, item: Item) -> Component:
        limits = item.isolate or item.apart
        isolated_by = limits.model_dump_json() if limits else ""
        cls = f"{item.cls.__module__}:{item.cls.__qualname__}"
        key = (cls, item.options.model_dump_json(), item.name, isolated_by)
        if key not in self.built:
            try:
                self.built[key] = self._elsewhere(item) if limits else item.build()
            except ConfigError:
                raise
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                said = error if isinstance(error, RLAlignError | ValueError) else describe_error(error)
                raise ConfigError(f"{item.place}: `{item.name}` refuses its options: {said}") from error
        return self.built[key]

    def _elsewhere(self, item: Item) -> Component:
        """What stands for a component that other processes compute."""
        real, limits = item.build(), item.isolate or item.apart
        assert limits is not None
        unmarked = [*checks.marks(Member(item, real, "rewards" if item.isolate else "task"))]
        if unmarked:
            raise ConfigError("\n".join(unmarked))
        wrong = (unservable(real) if item.isolate else unplayable(real)) or unlimited(limits.memory)
        if item.component in self.registry.extra:
            wrong = (
                "was handed over from Python; `isolate` needs code that another process can import: a file"
            )
        if wrong:
            raise ConfigError(f"{item.place}: isolate: `{item.name}` {wrong}")
        folder, trust, seed = self.pipeline.folder, self.registry.trust, self.pipeline.seed
        if item.apart:
            return isolated(item, folder, trust=trust, seed=seed)
        return served(real, item, folder, trust=trust, seed=seed)

    def members(self, items: Sequence[Item], role: str) -> list[Member]:
        """The components of these items; one that refuses its options is a fault, and left out."""
        found = []
        for item in items:
            with self.faults.collecting():
                found.append(Member(item, self.build(item), role))
        return found

    def sources(self, whole: Component, item: Item) -> list[Member]:
        """The components that another one asks for responses."""
        return [self._source(name, whole.source_options.get(name, {}), item) for name in whole.sources]

    def _source(self, name: str, options: Mapping[str, Any], item: Item) -> Member:
        """A component, with its options, that an item asks for responses."""
        where, faults = f"{item.place}: {item.name}.{name}", list[str]()

        def wrong(keys: Keys, text: str) -> None:
            faults.append(f"{'.'.join((where, *map(str, keys)))}: {text}")

        try:
            cls = self.registry.load(name).cls
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
        if not hasattr(cls, "respond"):
            raise ConfigError(f"{where}: `{name}` is no source of responses: it has no method `respond`")
        folder = self.pipeline.folder or Path()
        checked = check(cls.Config, options, folder, wrong, trust=self.registry.trust)
        if checked is None:
            raise ConfigError("\n".join(faults))
        source = Item(name=name, component=name, options=checked, cls=cls, place=item.place)
        return Member(source, self.build(source), "source")


def plan_phases(pipeline: Pipeline, registry: Registry) -> tuple[list[PhasePlan], Builder]:
    """Build the components of all phases, and check that they fit together, before any model loads.

    One error lists the faults of all phases.
    """
    faults = Faults()
    faults.found += checks.machine_of(pipeline)
    builder = Builder(registry, faults, pipeline)
    plans: list[PhasePlan] = []
    for phase in pipeline.phases:
        with faults.collecting():
            if (plan := plan_phase(phase, builder)) is not None:
                plans.append(plan)
    if pipeline.checkpoints.best is not None and all(phase.evaluate is None for phase in pipeline.phases):
        faults.found.append(
            "checkpoints.best: nothing is evaluated; add an `evaluate` section, or leave it out"
        )
    faults.found += _of_models(pipeline, plans) if len(plans) == len(pipeline.phases) else []
    faults.found += against_shards(pipeline) if pipeline.distributed.shard is True else []
    if pipeline.distributed.offload and pipeline.distributed.shard is False:
        faults.found.append(
            f"{pipeline.places['distributed']}: distributed: `offload: true` is of weights that are cut: say "
            "`shard: true` or `auto`, too"
        )
    faults.stop()
    return plans, builder


def plan_phase(phase: Phase, builder: Builder) -> PhasePlan | None:
    """A phase's plan. What is wrong with it goes to the builder's faults; None where that leaves no plan."""
    faults, before = builder.faults, len(builder.faults.found)
    listed = {
        "task": [phase.task],
        "responses": [phase.responses],
        "rewards": phase.rewards,
        "algorithm": phase.algorithm,
        "use": phase.evaluate.use if phase.evaluate else (),
        "observers": phase.observers,
    }
    built = {role: builder.members(items, role) for role, items in listed.items()}
    for member in built["algorithm"]:
        for hook, place in (("reward", "rewards"), ("rollout", "responses")):
            if getattr(type(member.component), hook, None) is not None:
                faults.found.append(
                    f"{member.item.place}: `{member.name}` has a `{hook}` hook; list it under `{place}`"
                )
    if not built["task"] or not built["responses"]:
        return None
    (task,), (source,) = built["task"], built["responses"]
    assert isinstance(task.component, Task)
    sources: list[Member] = []
    with faults.collecting():
        sources = builder.sources(source.component, source.item)
    source.component.source_components = {member.name: member.component for member in sources}
    members = (task, source, *sources, *built["rewards"], *built["algorithm"], *built["observers"])
    sampled = decoding(phase, task.component).draws_as(phase.generation) if phase.evaluate else True
    scoring, left_out = _evaluators(built["rewards"], built["use"], source, sampled)
    evaluators = (task, *scoring)
    everybody = once((*members, *evaluators, *left_out))
    measures = [m for m in scoring if m.role == "use"]
    faults.found += [
        *checks.hooks_of(members),
        *checks.hooks_of((task, *measures)),
        *checks.declarations_of(everybody),
        *checks.watching(built["observers"]),
    ]
    live = frozenset(need for m in members for need in m.component.needs if "." not in need)
    declared: dict[str, Role | Lagging] = {}
    with faults.collecting():
        declared = _declared(everybody, live)
    if len(faults.found) > before:  # components that do not fit make no plan
        return None
    training, evaluation = Stages(members, "train"), Stages(evaluators, "evaluate")
    trained = {id(m.component) for m in members}
    only_evaluating = Stages([m for m in evaluators if id(m.component) not in trained], "evaluate")
    if len(training.implementing("rollout")) != 1:
        raise ConfigError(f"{source.item.place}: `{source.name}` cannot answer: it has no `rollout` hook")
    plan = PhasePlan(
        settings=phase,
        task=task.component,
        members=members,
        evaluators=evaluators,
        training=training,
        evaluation=evaluation,
        only_evaluating=only_evaluating,
        models={name: "lagging" if isinstance(m, Lagging) else m for name, m in declared.items()},
        lagging={name: m.every for name, m in declared.items() if isinstance(m, Lagging)},
        trains=tuple(dict.fromkeys(name for m in members for name in m.component.trains)),
        live=live,
        columns=_columns(members),
        reward_columns=_columns(built["rewards"]),
        evaluation_columns=_columns(evaluators),
        evaluates_reward=_scores_of(scoring) == _scores_of(built["rewards"]) != set(),
        not_evaluated=tuple(m.name for m in left_out),
        unit=_UNITS[max((_UNITS.index(m.component.unit) for m in training.implementing("loss")), default=0)],
        learns=bool(training.implementing("loss") or training.implementing("update")),
        sampler=_sampler(phase, builder),
    )
    faults.found += checks.phase_of(plan)
    return plan


def _sampler(phase: Phase, builder: Builder) -> Sampler | None:
    spec = phase.models.get(SAMPLER)
    if spec is None or spec.item is None or not issubclass(spec.item.cls, Sampler):
        return None
    made: Any = builder.build(spec.item)
    assert isinstance(made, Sampler)
    if isinstance(made, Copies):
        item, known = builder.pipeline.policy, builder.registry
        if item.component in known.extra:
            raise ConfigError(
                f"{spec.item.place}: `{spec.item.name}`: the policy was handed over from Python, and other processes "
                "need code that they can import: a file"
            )
        made.policy_is(item, builder.pipeline.folder, trust=known.trust, seed=builder.pipeline.seed)
    return made


def _evaluators(
    rewards: Sequence[Member], used: Sequence[Member], source: Member, sampled: bool
) -> tuple[list[Member], list[Member]]:
    """Who scores in an evaluation, and whose estimates are left out where its responses are no samples.

    A reward of the phase scores as in training, so all that stands above its last wrapper goes together.
    """
    named = {id(m.component) for m in used}
    last = max(
        (i for i, m in enumerate(rewards) if implements(m.component, "reward") == "wrapper"), default=-1
    )
    together = any(id(m.component) in named for m in rewards[: last + 1])
    own = [m for i, m in enumerate(rewards) if (together if i <= last else id(m.component) in named)]
    # Stored scores are of stored responses: they join no others unasked.
    own = [m for m in own if m.component is not source.component or id(m.component) in named]
    ours = {id(m.component) for m in rewards}
    asked = [*own, *(m for m in used if id(m.component) not in ours)]
    left_out = [] if sampled else [m for m in asked if m.component.estimates]
    return [m for m in asked if m not in left_out], left_out


def _scores_of(members: Sequence[Member]) -> set[int]:
    """The phase's rewards among these, wrappers apart."""
    return {
        id(m.component)
        for m in members
        if m.role == "rewards" and implements(m.component, "reward") == "plain"
    }


def _declared(members: Sequence[Member], live: frozenset[str]) -> dict[str, Role | Lagging]:
    """The models that somebody needs, and the role each plays."""
    roles: dict[str, tuple[Role | Lagging, str]] = {}
    for member in members:
        wanted = dict(member.component.models)
        prefixes = [need.split(".")[0] for need in member.component.needs if "." in need]
        for name in [*prefixes, *member.component.trains, *(["value"] if "values" in live else [])]:
            if name in _USUAL_ROLES:
                wanted.setdefault(name, _USUAL_ROLES[name])
            elif name != "policy" and name not in wanted:
                raise ConfigError(
                    f"{member.item.place}: `{member.name}` uses a model `{name}` without saying its role; "
                    f'its class needs models = {{"{name}": "frozen" | "lagging" | "value"}}'
                )
        for name, role in wanted.items():
            if name in roles and roles[name][0] != role:
                raise ConfigError(
                    f"{member.item.place}: `{member.name}` wants the model `{name}` as {role}, "
                    f"but `{roles[name][1]}` wants it as {roles[name][0]}"
                )
            roles.setdefault(name, (role, member.name))
    return {name: role for name, (role, _) in roles.items()}


def _columns(members: Sequence[Member]) -> tuple[tuple[str, str], ...]:
    needs = [need.rpartition(".") for member in members for need in member.component.needs]
    return tuple(dict.fromkeys((model, output) for model, _, output in needs if model))


def against_shards(pipeline: Pipeline) -> Iterator[str]:
    """What cannot be cut over processes, where weights are to be."""
    shard = f"distributed.shard: {'auto' if pipeline.distributed.shard == 'auto' else 'true'}"
    said = f"{pipeline.places['distributed']}: {shard}"
    policy = pipeline.policy.peek()
    if not isinstance(policy, Policy) or not policy.divisible:
        yield (
            f"{said}: the weights of a `{pipeline.policy.component}` policy cannot be cut, those of transformers "
            "models can (`causal-lm`, `seq2seq-lm`); leave it out"
        )
    for phase in pipeline.phases:
        if phase.train.held == "bfloat16":
            yield f"{said}: weights that are cut are held in float32; leave out `train.weights: bfloat16`"
            break


def _of_models(pipeline: Pipeline, plans: Sequence[PhasePlan]) -> list[str]:
    """What `models` says that nobody asks for, or that the policy cannot do."""
    found = []
    used = {name for plan in plans for name in plan.models}
    learning = sorted({name for plan in plans for name in plan.trains})
    for phase in pipeline.phases:
        for name in phase.train.lrs:
            if name not in learning:
                place, hint = phase.place_of(f"train.lrs.{name}"), did_you_mean(name, learning)
                there = ", ".join(learning) or "none does"
                found.append(f"{place}: train.lrs.{name}: no model `{name}` learns{hint or f' ({there})'}")
        for name, spec in phase.models.items():
            place = phase.place_of(f"models.{name}")
            if name not in used and name != SAMPLER:
                who = "no component" if len(plans) == 1 else "no component of any phase"
                found.append(f"{place}: models.{name}: {who} uses a model `{name}`")
            copied = spec.item is None and spec.of in (None, *COPY_TIMES)
            if not copied and spec.item is None and "path" not in type(pipeline.policy.options).model_fields:
                found.append(
                    f"{place}: models.{name}.of: a `{pipeline.policy.component}` policy is not loaded from a folder; "
                    f"say {', '.join(COPY_TIMES)}"
                )
            policy = pipeline.policy.peek() if spec.dtype and copied else None
            if isinstance(policy, Policy) and policy.shares:
                found.append(
                    f"{place}: models.{name}.dtype: copies of this policy share its network already (LoRA), "
                    "so that there are no weights to hold in another precision; leave it out"
                )
    return found
