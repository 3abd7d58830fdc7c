"""The plan of a phase: its components, built, each in its place, and what they need. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlalign.config.pipeline import COPY_TIMES, Item, Phase, Pipeline
from rlalign.config.registry import Registry
from rlalign.data.settings import Role, Unit
from rlalign.decoding.logits import LIVE
from rlalign.errors import ConfigError, RLAlignError, told
from rlalign.interface.component import Component, Lagging, Task
from rlalign.interface.policy import Policy
from rlalign.running.members import HOOKS, Member, implements
from rlalign.running.stages import Stages

_UNITS: tuple[Unit, ...] = ("response", "group", "step")
_LIVE = (*LIVE, "values", "old_logprobs")
_COLUMNS = (*LIVE, "values", "state_values")
_OF_VALUES = ("values", "state_values")
_USUAL_ROLES: dict[str, Role] = {"reference": "frozen", "value": "value"}


@dataclass
class Builder:
    """Builds components. One whose options and name equal an earlier one's is that very object."""

    registry: Registry
    built: dict[tuple[str, str, str], Component] = field(default_factory=dict)

    def build(self, item: Item) -> Component:
        key = (f"{item.cls.__module__}:{item.cls.__qualname__}", item.options.model_dump_json(), item.name)
        if key not in self.built:
            try:
                self.built[key] = item.build()
            except Exception as error:
                said = error if isinstance(error, RLAlignError | ValueError) else told(error)
                raise ConfigError(f"{item.place}: `{item.name}` refuses its options: {said}") from error
        return self.built[key]

    def members(self, items: Sequence[Item], role: str) -> list[Member]:
        return [Member(item, self.build(item), role) for item in items]

    def parts(self, whole: Component, item: Item) -> list[Member]:
        """The components another one calls by itself, by name."""
        found = []
        for name in whole.parts:
            try:
                cls = self.registry.load(name).cls
                part = Item(name=name, component=name, options=cls.Config(), cls=cls, place=item.place)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"{item.place}: {item.name}.{name}: {error}") from error
            if not hasattr(cls, "respond"):
                raise ConfigError(
                    f"{item.place}: {item.name}.{name}: `{name}` is no source of responses: it has no method `respond`"
                )
            found.append(Member(part, self.build(part), "part"))
        return found


@dataclass(frozen=True)
class PhasePlan:
    """What a phase is made of."""

    settings: Phase
    task: Task
    members: tuple[Member, ...]
    evaluators: tuple[Member, ...]
    training: Stages
    evaluation: Stages
    models: Mapping[str, Role]
    lagging: Mapping[str, int]
    """After how many iterations each copy of the policy that the core renews takes its weights."""
    trains: tuple[str, ...]
    live: frozenset[str]
    columns: tuple[tuple[str, str], ...]
    reward_columns: tuple[tuple[str, str], ...]
    """Those that rewards read."""
    evaluation_columns: tuple[tuple[str, str], ...]
    unit: Unit
    learns: bool

    @property
    def source(self) -> Member:
        """Where responses come from."""
        return next(m for m in self.members if m.role == "responses")

    @property
    def components(self) -> list[Component]:
        """Every component of the phase, once, in pipeline order."""
        return list({id(m.component): m.component for m in (*self.members, *self.evaluators)}.values())


def plan_phases(pipeline: Pipeline, registry: Registry) -> tuple[list[PhasePlan], Builder]:
    """Build the components of all phases, and check that they fit together, before any model loads."""
    builder = Builder(registry)
    plans = [plan_phase(phase, builder) for phase in pipeline.phases]
    used = {name for plan in plans for name in plan.models}
    for phase in pipeline.phases:
        if unused := sorted(set(phase.models) - used):
            who = "no component" if len(plans) == 1 else "no component of any phase"
            raise ConfigError(f"{phase.place}: models.{unused[0]}: {who} uses a model `{unused[0]}`")
        for name, spec in phase.models.items():
            policy = pipeline.policy.peek() if spec.dtype and spec.of in (None, *COPY_TIMES) else None
            if isinstance(policy, Policy) and policy.shares:
                raise ConfigError(
                    f"{phase.place}: models.{name}.dtype: copies of this policy share its network already (LoRA), "
                    "so that there are no weights to hold in another precision; leave it out"
                )
    return plans, builder


def plan_phase(phase: Phase, builder: Builder) -> PhasePlan:
    """Build a phase's components and check that they fit together."""
    task_member = builder.members([phase.task], "task")[0]
    task = task_member.component
    assert isinstance(task, Task)
    assert phase.responses is not None
    (source,) = builder.members([phase.responses], "responses")
    parts = builder.parts(source.component, source.item)
    for member in parts:
        source.component.__dict__.setdefault("built", {})[member.name] = member.component
    rewards = builder.members(phase.rewards, "rewards")
    algorithm = builder.members(phase.algorithm, "algorithm")
    members = (task_member, source, *parts, *rewards, *algorithm)
    use = builder.members(phase.evaluate.use if phase.evaluate else (), "use")
    evaluators = (task_member, *use)
    for member in algorithm:
        for hook, place in (("reward", "rewards"), ("rollout", "responses")):
            if getattr(type(member.component), hook, None) is not None:
                raise ConfigError(
                    f"{member.item.place}: `{member.name}` has a `{hook}` hook; list it under `{place}`"
                )
    everybody = list({id(m.component): m for m in (*members, *evaluators)}.values())
    stages, evaluation = Stages(members), Stages(evaluators)
    if len(stages.implementing("rollout")) != 1:
        raise ConfigError(f"{phase.place}: `{source.name}` cannot answer: it has no `rollout` hook")
    learns = bool(stages.implementing("loss") or stages.implementing("update"))
    live = frozenset(need for m in members for need in m.component.needs if "." not in need)
    declared = _models(everybody, live)
    plan = PhasePlan(
        settings=phase,
        task=task,
        members=members,
        evaluators=evaluators,
        training=stages,
        evaluation=evaluation,
        models={name: "lagging" if isinstance(m, Lagging) else m for name, m in declared.items()},
        lagging={name: m.every for name, m in declared.items() if isinstance(m, Lagging)},
        trains=tuple(dict.fromkeys(name for m in members for name in m.component.trains)),
        live=live,
        columns=_columns(members),
        reward_columns=_columns(rewards),
        evaluation_columns=_columns(evaluators),
        unit=_UNITS[max((_UNITS.index(m.component.unit) for m in stages.implementing("loss")), default=0)],
        learns=learns,
    )
    _check(plan)
    return plan


def _models(members: Sequence[Member], live: frozenset[str]) -> dict[str, Role | Lagging]:
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
    found: dict[tuple[str, str], None] = {}
    for member in members:
        for need in member.component.needs:
            model, _, output = need.rpartition(".")
            if output not in (_COLUMNS if model else _LIVE):
                raise ConfigError(
                    f"{member.item.place}: `{member.name}` needs `{need}`, which no model gives; "
                    f"there are {', '.join(_LIVE)}, and columns: a model, a dot and one of {', '.join(_COLUMNS)}"
                )
            if model:
                found[model, output] = None
    return tuple(found)


def _check(plan: PhasePlan) -> None:
    phase = plan.settings
    for member in plan.training.implementing("loss"):
        if not member.component.trains:
            raise ConfigError(
                f"{member.item.place}: `{member.name}` has a loss but trains nothing; "
                'its class needs trains = ("policy",)'
            )
    for member in plan.members:
        for name in member.component.trains:
            if plan.models.get(name) in ("frozen", "lagging"):
                raise ConfigError(
                    f"{member.item.place}: `{member.name}` trains `{name}`, which is {plan.models[name]} here; "
                    "take it out of its `trains`"
                )
        source, sources = member.item.source, plan.source.component.parts
        if source is not None and not implements(member.component, "loss"):
            raise ConfigError(
                f"{member.item.place}: `source` restricts a loss, and `{member.name}` has none; leave it out"
            )
        if source is not None and source not in sources:
            raise ConfigError(
                f"{member.item.place}: `source: {source}` needs `responses: {{mix: {{{source}: …}}}}`; "
                f"here they come from {' and '.join(f'`{s}`' for s in sources or [plan.source.name])}"
            )
    for model, output in (*plan.columns, *plan.evaluation_columns):
        if (plan.models.get(model) == "value") != (output in _OF_VALUES):
            kind = (
                "no value"
                if output in _OF_VALUES
                else "a value, which gives `values` and `state_values` only"
            )
            raise ConfigError(f"{phase.place}: `{model}.{output}` is needed, but `{model}` is {kind}")
    assert phase.responses is not None
    sampled = "sampled" in (phase.responses.component, *plan.source.component.parts)
    if sampled and phase.generation.beams > 1:
        raise ConfigError(
            f"{phase.place}: generation.beams: a beam search is no sample; it belongs under `evaluate`"
        )
    if sampled and phase.generation.greedy and plan.learns:
        raise ConfigError(
            f"{phase.place}: generation.greedy: learning needs responses that differ; leave it out"
        )
    counts = plan.source.component.parts
    samples = sum(counts.values()) if counts else phase.generation.samples
    for member in plan.members:
        if sampled and samples < member.component.min_samples:
            raise ConfigError(
                f"{member.item.place}: `{member.name}` needs at least {member.component.min_samples} responses a "
                f"prompt and gets {samples}; set generation.samples"
            )
    constrained = [m for m in plan.members if m.component.constraint is not None]
    if len(constrained) > 1:
        names = " and ".join(f"`{m.name}` ({m.item.place})" for m in constrained)
        raise ConfigError(f"{names} each constrain what may be sampled, and only one can; remove one")
    kls = [m for m in plan.members if m.component.regularises]
    if len(kls) > 1:
        names = " and ".join(f"`{m.name}` ({m.item.place})" for m in kls)
        raise ConfigError(
            f"{names} each penalise the KL to the reference; remove one (or set `together: true` on kl)"
        )
    for name, spec in phase.models.items():
        if spec.item is None and spec.of is None and spec.dtype is None:
            raise ConfigError(f"{phase.place}: models.{name}: say `of:` or name a component")
        if spec.dtype is not None and plan.models.get(name) == "value":
            raise ConfigError(
                f"{phase.place}: models.{name}.dtype: only frozen and lagging copies of the policy are held in "
                f"another precision, and `{name}` is a value, which learns; leave it out "
                "(`train.dtype: bfloat16` computes in half precision)"
            )


def acting(plan: PhasePlan) -> dict[str, list[str]]:
    """Who acts in each stage, for `rlalign check`."""
    found = {
        hook: [m.name for m in plan.training.implementing(hook)]
        for hook in HOOKS
        if hook != "evaluate" and plan.training.implementing(hook)
    }
    scored = [m.name for m in plan.evaluation.implementing("reward")]
    measured = [m.name for m in plan.evaluation.implementing("evaluate")]
    if plan.settings.evaluate:
        found["evaluate"] = [*scored, *measured]
    return found
