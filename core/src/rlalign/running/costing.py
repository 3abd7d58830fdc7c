"""A phase of a pipeline on a machine: its work as numbers, ways to lay it out, whether they fit, what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlalign.costs import memory, seconds
from rlalign.costs.machines import Machine
from rlalign.costs.memory import TAKEN, Bytes
from rlalign.costs.seconds import Seconds
from rlalign.costs.shape import Shape, Work
from rlalign.data.example import Example
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Footprint, Policy
from rlalign.learning.memory import HEAD_CHUNK, MOST, OTHERS, fitting_tokens
from rlalign.running.members import implements
from rlalign.running.plan import PhasePlan, copies_of

LOOKED_AT = 32
"""Prompts whose tokens are counted."""
PROMPT = 256
"""Tokens of a prompt where none can be read."""


@dataclass(frozen=True)
class Lengths:
    """How long prompts and responses are taken to be."""

    prompt: float = PROMPT
    response: float | None = None
    """Of logged responses."""
    responses: float | None = None
    """How many each prompt has, where they are logged."""
    read: bool = False
    """Whether that is of the data."""


def lengths(policy: Policy, examples: Sequence[Example] | None, logged: bool) -> Lengths:
    """Of the first examples, as the policy reads them; it is open."""
    if not examples:
        return Lengths()
    found = policy.lengths([examples[i] for i in range(min(LOOKED_AT, len(examples)))])
    if not found:
        return Lengths()
    prompt = sum(prompt for prompt, _ in found) / len(found)
    responses = [tokens for _, each in found for tokens in each]
    if not logged or not responses:
        return Lengths(prompt, read=True)
    return Lengths(prompt, sum(responses) / len(responses), len(responses) / len(found), read=True)


def work_of(plan: PhasePlan, of: Lengths, horizon: int | None = None) -> Work:
    """What an iteration of a phase does. Responses are taken to be halfway between the shortest and the longest."""
    train, sampled = plan.settings.train, "sampled" in plan.responses
    if isinstance(plan.task, Environment) and not plan.task.rewrites:
        most = float(plan.task.tokens)  # of all turns; a policy's horizon is of one
    else:
        said = float(plan.settings.generation.max_new_tokens)
        most = min(said, horizon or said)
    least = min(most, plan.settings.generation.min_new_tokens)
    response = (least + most) / 2 if sampled or of.response is None else of.response
    scored = {model for model, _ in plan.columns if model != "policy" or not sampled}  # a value reads a trunk
    unknown = "old_logprobs" in plan.live and not sampled
    return Work(
        prompts=train.prompts,
        samples=plan.settings.generation.samples if sampled else round(of.responses or 1),
        prompt=of.prompt,
        response=response,
        longest=most if sampled else response,
        dtype="bfloat16" if train.dtype == "bfloat16" else "float32",
        held={"bfloat16": 2, "float32": 4, "float64": 8}[train.held],
        epochs=train.epochs,
        steps=math.ceil(train.prompts / train.minibatch) if train.minibatch else train.minibatches,
        passes=len(scored)
        + (unknown or plan.sampler is not None),  # what others sampled the policy scores again
        recompute=train.recompute,
        sampled=sampled,
        learns=plan.learns,
    )


def model_of(plan: PhasePlan, policy: Policy, shape: Shape, of: Lengths) -> Model:
    """What a phase asks of a machine."""
    work, who = work_of(plan, of, policy.horizon), plan.sampler
    return Model(
        shape,
        work,
        copies=copied([plan], work, shares=policy.shares or shape.learned < shape.weights),
        shares=policy.shares,
        budget=plan.settings.train.budget,
        constrained=any(component.constraint is not None for component in plan.components),
        trunks=own_trunks(plan),
        updates=next((m.name for m in plan.members if implements(m.component, "update") == "plain"), ""),
        elsewhere=Elsewhere(who.name, who.widths, bool(who.config.ahead)) if who is not None else None,
    )


def copied(plans: Sequence[PhasePlan], work: Work, *, shares: bool) -> float:
    """Bytes a weight of the policy that other models of its size take, values with a trunk of their own among them."""
    specs = {name: spec for plan in plans for name, spec in plan.settings.models.items()}
    said = {"bfloat16": 2, "float32": 4, None: work.held}
    total = 0.0
    for name in () if shares else copies_of(plans):
        total += said[specs[name].dtype] if name in specs else work.held
    return total + sum((work.held + 12) * own_trunks(plan) for plan in plans[:1])


def own_trunks(plan: PhasePlan) -> int:
    """Values that train a copy of the policy of their own."""
    items = [plan.settings.models[name].item for name, role in plan.models.items()
             if role == "value" and name in plan.settings.models]  # fmt: skip
    return sum(item is not None and getattr(item.options, "trunk", None) == "own" for item in items)


def masks(plan: PhasePlan, model: Model) -> float:
    """Bytes that an iteration's record of what truncations left to choose from takes at most: a bit a token of the
    vocabulary, at each step; of the host's memory."""
    narrowed = model.constrained or plan.settings.generation.narrows
    work = model.work
    return work.responses * work.response * model.shape.vocabulary / 8 if narrowed and work.sampled else 0.0


@dataclass(frozen=True)
class Elsewhere:
    """Who samples in the policy's place, on devices of its own."""

    name: str
    widths: Sequence[int]
    """Of each process, its devices."""
    ahead: bool = False
    """Whether it samples while the policy learns."""


@dataclass(frozen=True)
class Sampling:
    """What a sampler elsewhere takes."""

    devices: int
    bytes: float
    """Of each."""
    rows: int
    """Responses that each of its processes gives at once."""
    seconds: float


@dataclass(frozen=True)
class Layout:
    """A way to lay a phase out on a machine, and what it takes."""

    on: Machine
    work: Work
    bytes: Bytes
    seconds: Seconds
    tokens: int
    """Padded tokens of a micro-batch."""
    rows: int
    """Responses that a device, or a process of a sampler elsewhere, gives at once."""
    sharded: bool = False
    offloaded: bool = False
    sampling: Sampling | None = None
    """Of a sampler elsewhere."""

    @property
    def fits(self) -> bool:
        most = max(self.bytes.most, self.sampling.bytes if self.sampling else 0.0)
        return self.rows >= min(1, self.work.samples) and most <= TAKEN * self.on.device.memory

    @property
    def total(self) -> float:
        return self.seconds.total

    @property
    def devices(self) -> int:
        """All that are busy with it."""
        return self.on.count + (self.sampling.devices if self.sampling else 0)


@dataclass(frozen=True)
class Model:
    """What is asked of a machine: a shape, its work, and the models beside it."""

    shape: Shape
    work: Work
    copies: float = 0.0
    """Bytes a weight of other models of its size."""
    shares: bool = False
    budget: int | None = None
    chunk: int | None = None
    constrained: bool = False
    """Whether another model of its size says at each step what may be sampled."""
    trunks: int = 0
    updates: str = ""
    """Who learns in its own way, if anybody does."""
    elsewhere: Elsewhere | None = None

    @property
    def learns_all(self) -> bool:
        """Whether all weights learn, so that adapters would spare something."""
        return self.work.learns and self.shape.learned == self.shape.weights

    def with_lora(self) -> Model:
        """The same with adapters alone, whose copies compute with the network's own weights."""
        return replace(
            self, shape=replace(self.shape, learned=self.shape.adapters), copies=0.0, shares=True, trunks=0
        )

    def in_half(self) -> Model:
        """The same with all weights held and computed with in bfloat16."""
        copies = self.copies * 2 / self.work.held
        return replace(self, work=replace(self.work, dtype="bfloat16", held=2), copies=copies)

    def again(self) -> Model:
        """The same with activations computed again."""
        return replace(self, work=replace(self.work, recompute=True))


def whole(model: Model, on: Machine) -> Layout:
    """All of the model on each device, prompts dealt out among them: how rlalign runs."""
    return _laid_out(model, on, shares=1)


def in_shards(model: Model, on: Machine, offload: bool = False) -> Layout:
    """In shards over all devices (`distributed: {shard: true}`), held in float32 at least, activations computed again.

    `offload`: they lie in the machine's memory between passes.
    """
    model, of = model.again(), model.shape
    if model.work.held == 2:
        model = replace(model, work=replace(model.work, held=4), copies=model.copies * 2)
    if of.prompt == of.response:  # a decoder alone, which then reads whole rows
        model = replace(model, shape=replace(of, once=False))
    return _laid_out(model, on, shares=on.count, offload=offload)


def _laid_out(model: Model, on: Machine, *, shares: int, offload: bool = False) -> Layout:
    of, work, device = model.shape, model.work, on.device
    kind = "cpu" if device.cpu else "cuda"
    chunk = model.chunk or HEAD_CHUNK.get(kind, OTHERS[1])
    each = math.ceil(work.prompts / on.count) * work.samples
    row = work.prompt + work.longest
    prompts = work.prompts if of.once else work.responses
    step = (prompts * work.prompt + work.responses * work.response) / work.steps / on.count
    most = max(row, min(model.budget or _fitting(model, on, kind, chunk, shares, offload), step))
    tokens = math.ceil(most) if work.learns else 0

    own = replace(work, sampled=work.sampled and model.elsewhere is None)

    def taken(rows: int) -> Bytes:
        return memory.taken(
            of, own, on,
            tokens=tokens, chunk=chunk, rows=rows, copies=model.copies, shares=shares, offload=offload,
        )  # fmt: skip

    empty = taken(0)
    rows = memory.rows_at_once(of, work, on, empty.stays + empty.sampler, most=each)
    dealt = replace(work, prompts=on.count * math.ceil(work.prompts / on.count))  # who has fewer waits
    took = seconds.whole(of, dealt, on, rows=max(1, rows), weight=2 if work.dtype == "bfloat16" else 4)
    passes = work.steps * math.ceil(step / most)
    if shares > 1:
        took = replace(took, exchange=seconds.put_together(of, work, on, passes=passes))
    if offload:
        took = replace(took, exchange=took.exchange + seconds.offloaded(of, work, on, passes=passes))
    took = replace(
        took, rollout=took.rollout * (1 + model.constrained), update=took.update * (1 + model.trunks)
    )
    sampling = None
    if model.elsewhere is not None and work.sampled:
        sampling = _sampling(model, on, model.elsewhere)
        rows, exchange = sampling.rows, took.exchange + seconds.moved(of, work)
        # A processor's seconds are its work, whatever else it does at the time.
        ahead = model.elsewhere.ahead and not device.cpu
        took = replace(took, rollout=sampling.seconds, exchange=exchange, ahead=ahead)
    return Layout(on, work, taken(rows), took, tokens, rows, shares > 1 or offload, offload, sampling)


def _sampling(model: Model, on: Machine, who: Elsewhere) -> Sampling:
    """On devices of this kind, as many as the sampler has; those of a process share its weights and rows."""
    count, width = len(who.widths), max(who.widths)
    work = replace(model.work, learns=False, passes=0.0, prompts=math.ceil(model.work.prompts / count))
    one = replace(on.device, memory=on.device.memory * width)

    def taken(rows: int) -> float:
        found = memory.taken(model.shape, work, Machine(one), tokens=0, chunk=0, rows=rows)
        return found.most - found.snapshot

    rows = memory.rows_at_once(model.shape, work, Machine(one), taken(0), most=work.responses)
    devices = on.with_count(width)
    weight = 2 if work.dtype == "bfloat16" else 4
    took = seconds.rollout(model.shape, work, devices, tensor=width, rows=max(1, rows), weight=weight)
    return Sampling(sum(who.widths), taken(rows) / width, rows, took)


def _fitting(model: Model, on: Machine, kind: str, chunk: int, shares: int, offload: bool) -> int:
    """The micro-batch that rlalign would choose there."""
    of, most = model.shape, MOST.get(kind, OTHERS[0])
    size = Footprint(
        weights=0 if offload else 4 * of.weights // shares,
        learned=0 if offload else 4 * of.learned // shares,
        token=int(of.left(again=model.work.recompute, half=model.work.held == 2)),
        logits=4 * of.vocabulary,
    )
    free = int(on.device.memory - (0 if offload else model.work.held * of.weights / shares))
    return fitting_tokens(size, free, copies=round(model.copies / 4), most=most, chunk=chunk)


def fewest(model: Model, on: Machine, most: int = 1024) -> Layout | None:
    """In shards over as few devices of this kind as it takes: a power of two."""
    count = 2
    while count <= most:
        if (found := in_shards(model, on.with_count(count))).fits:
            return found
        count *= 2
    return None
