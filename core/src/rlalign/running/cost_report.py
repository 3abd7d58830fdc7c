"""What a pipeline would take of a machine, in words: memory part by part, what would fit, a step's seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from rlalign.costs.machines import DEVICES, GIB, Machine
from rlalign.costs.memory import TAKEN
from rlalign.costs.seconds import DISK
from rlalign.data.limits import in_words
from rlalign.running.amounts import counted, digits, gib, in_billions, per_second, seconds
from rlalign.running.costing import Layout, Lengths, Model, fewest, in_shards, masks, whole
from rlalign.running.plan import PhasePlan, copies_of

PARTS = {
    "weights": "weights",
    "copies": "other models",
    "optimiser": "optimiser",
    "half": "copies to compute with",
    "snapshot": "copy for checkpoints",
    "gradients": "gradients, learning",
    "block": "put together for a pass",
    "activations": "activations, learning",
    "logits": "logits, learning",
    "sampler": "weights, sampling",
    "cache": "keys and values, sampling",
}
OFFLOADED = "of the machine's memory"
DATA = 45
"""Bytes of a token of an iteration's data, on each rank."""
MUCH_DATA = 8e9
COMMIT = 0.05
"""Share of the time that checkpoints may take."""
MARGIN = 0.3
SMALL = 1e9
"""Weights below which a GPU is not kept busy (docs/machines.md)."""
CUT = "`distributed: {shard: true}` with `train: {recompute: true}`"
LYING = "`offload: true` beside `shard`"


def machine_in_words(on: Machine) -> str:
    """`8 × H100 (each 79.1 GiB, 989 TFLOP/s in bfloat16, 3.35 TB/s)`"""
    device = on.device
    rate = (
        f"{per_second(device.single, 'FLOP/s')} in float32"
        if device.cpu
        else f"{per_second(device.half, 'FLOP/s')} in bfloat16"
    )
    measured = ", as measured just now" if device.cpu else ""
    bandwidth = per_second(device.bandwidth, "B/s")
    return f"{on} ({'each ' if on.count > 1 else ''}{in_words(device.memory)}, {rate}, {bandwidth}{measured})"


def shortly(plan: PhasePlan, model: Model, on: Machine, offload: bool = False) -> str:
    """In a line: how much memory, how long a step."""
    layout = in_shards(model, on, offload=True) if offload and not on.device.cpu else whole(model, on)
    aside = f" and {in_words(layout.bytes.offloaded)} {OFFLOADED}" if layout.offloaded else ""
    fits = "" if layout.fits else f", more than {in_words(TAKEN * on.device.memory)} that can be planned with"
    took = layout.seconds
    parts = {name: getattr(took, name) for name in ("rollout", "score", "update", "exchange")}
    shown = ", ".join(f"{name} {seconds(value)}" for name, value in parts.items() if value)
    return (
        f"on {on.device.name} about {in_words(layout.bytes.most)} of {in_words(on.device.memory)}{aside}{fits}; "
        + (f"an iteration about {seconds(layout.total)} ({shown}), rewards apart" if layout.fits else "")
    ).removesuffix("; ")


def ways_of(model: Model, on: Machine) -> dict[str, Layout]:
    """Ways to lay a phase out there, by their names."""
    ways = {"as it is": whole(model, on)}
    if model.learns_all:
        ways["with lora"] = whole(model.with_lora(), on)
    if on.count > 1:
        ways[f"in {on.count} shards"] = in_shards(model, on)
    if not on.device.cpu:
        ways["offloaded"] = in_shards(model, on, offload=True)
    return ways


def in_full(plan: PhasePlan, model: Model, on: Machine, of: Lengths, rows: int | None) -> Iterator[str]:
    """Line by line: memory, what would fit, the batch, seconds; a column for each way to lay it out."""
    ways = ways_of(model, on)
    fitting = [layout for layout in ways.values() if layout.fits]
    yield from _policy(model)
    yield from _others(plan, model)
    yield ""
    yield from _memory(ways, on)
    if not ways["as it is"].fits:
        yield from _remedies(model, on)
    yield from _devices(model)
    yield ""
    yield from _batch(plan, model, on, of, (fitting or list(ways.values()))[0], rows)
    if fitting:
        yield ""
        yield from _step(plan, model, ways)
    if any(way.sharded and not way.offloaded for way in ways.values()):
        yield (
            f"in shards: {CUT}, transformers models only: weights, in float32, and optimiser cut over all devices; to "
            "sample each puts all weights together"
        )
    if any(way.offloaded for way in ways.values()):
        yield (
            f"offloaded: {CUT}, {LYING}: between passes they lie in the machine's memory, for each device as much as "
            "is said above; reckoned with 25 GB/s to a device and 100 GB/s for the processors of a node"
        )


def _policy(model: Model) -> Iterator[str]:
    of, work = model.shape, model.work
    learned = "all learn" if of.learned == of.weights else f"{in_billions(of.learned)} learn"
    used = (
        ""
        if of.response * 2 > of.weights - of.head
        else f", {in_billions(of.response + of.head)} used for a token"
    )
    cache = in_words(of.cache * (2 if work.dtype == "bfloat16" else 4))
    held = {2: "bfloat16", 4: "float32", 8: "float64"}[work.held]
    yield (
        f"policy: {in_billions(of.weights)} weights{used}, {learned if work.learns else 'none learn'}; "
        f"{of.layers} layers, vocabulary {of.vocabulary:,}, {cache} of keys and values a token; held in {held}, "
        f"computed in {work.dtype}"
    )


def _others(plan: PhasePlan, model: Model) -> Iterator[str]:
    """The models beside the policy, and what they take of its size."""
    if copies := sorted(copies_of([plan])):
        size = "on the policy's own network" if model.shares else "each as large as the policy"
        yield f"beside it: {', '.join(copies)}, {size}"
    if values := [name for name, role in plan.models.items() if role == "value"]:
        trunk = "a trunk of its own, which learns" if model.trunks else "a head on another model's states"
        yield f"values: {', '.join(values)}, {trunk}"
    if (who := model.elsewhere) is not None:
        many, meanwhile = len(who.widths), ", while the policy learns" if who.ahead else ""
        devices = f"{counted(many, 'process', 'processes')} on {counted(sum(who.widths), 'device')}"
        yield f"sampler: {who.name}, {devices} beside those that are named, of their kind{meanwhile}"
    if size_of_masks := masks(plan, model):
        yield f"masks: what truncation left to choose from, at most {in_words(size_of_masks)} of the host's memory"


def _memory(ways: Mapping[str, Layout], on: Machine) -> Iterator[str]:
    small = all(way.bytes.most < GIB for way in ways.values())
    unit, name = (2**20, "MiB") if small else (GIB, "GiB")
    there = in_words(TAKEN * on.device.memory)
    rows = [(f"{name} a device", list(ways))]
    for part, name in PARTS.items():
        found = [getattr(way.bytes, part) for way in ways.values()]
        if any(found):
            rows.append((name, [gib(size, unit) if size else "–" for size in found]))
    rows.append(("most at once", [gib(way.bytes.most, unit) for way in ways.values()]))
    if any(way.offloaded for way in ways.values()):
        aside = [way.bytes.offloaded for way in ways.values()]
        rows.append((OFFLOADED, [gib(size, unit) if size else "–" for size in aside]))
    if any(way.sampling for way in ways.values()):
        beside = [way.sampling.bytes if way.sampling else 0.0 for way in ways.values()]
        rows.append(("each that samples", [gib(size, unit) for size in beside]))
    rows.append((f"fits in {there}", ["yes" if way.fits else "no" for way in ways.values()]))
    yield from _table(rows)
    yield f"({there} is {TAKEN:.0%} of a device: its driver, and what is lost between pieces, have the rest)"


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    wide = max(len(name) for name, _ in rows)
    columns = [2 + max(10, *map(len, cells)) for cells in zip(*(cells for _, cells in rows), strict=True)]
    for name, cells in rows:
        row = "".join(f"{cell:>{column}}" for cell, column in zip(cells, columns, strict=True))
        yield f"{name:{wide}}{row}"


def _remedies(model: Model, on: Machine) -> Iterator[str]:
    """What would fit, where the pipeline as it is does not."""
    short = "one device" if on.count == 1 else "each device"
    yield f"does not fit as it is, all of it on {short}. What would:"
    tried = {
        "train: {recompute: true}": model.again(),
        "train: {dtype: bfloat16, weights: bfloat16}": model.in_half(),
        "both of these": model.in_half().again(),
    }
    if model.learns_all:
        tried |= {
            "lora: {r: 16} in the policy": model.with_lora(),
            "lora, recompute and weights in bfloat16": model.with_lora().in_half().again(),
        }
    found = []
    for name, other in tried.items():
        if (layout := whole(other, on)).fits:
            found.append(f"  {name}: {gib(layout.bytes.most)} GiB")
            if "lora" in name:
                break
    lying = in_shards(model, on, offload=True)
    if lying.fits and not on.device.cpu:
        found.append(
            f"  offloaded ({CUT}, {LYING}): {gib(lying.bytes.most)} GiB, and {gib(lying.bytes.offloaded)} GiB of the "
            "machine's memory"
        )
    if (sharded := fewest(model, on)) is not None:
        found.append(f"  {sharded.on}, in shards ({CUT}): {gib(sharded.bytes.most)} GiB each")
    yield from found or ["  nothing that is known here"]


def _devices(model: Model) -> Iterator[str]:
    """On which single devices of the table it fits."""
    said = []
    for name in ways_of(model, Machine(next(iter(DEVICES.values())))):
        fitting = [d.name for d in DEVICES.values() if ways_of(model, Machine(d))[name].fits]
        said.append(f"{name} {', '.join(fitting) or 'none'}")
    yield f"single devices that are enough: {'; '.join(said)}"


def _batch(
    plan: PhasePlan, model: Model, on: Machine, of: Lengths, layout: Layout, rows: int | None
) -> Iterator[str]:
    work, count = model.work, on.count
    told = "an iteration: " + (
        f"{counted(work.prompts, 'prompt')} × {counted(work.samples, 'response')} = {work.responses:,} responses"
    )
    groups = work.prompts / work.steps
    if work.learns:
        times = f"{work.epochs} × " if work.epochs > 1 else ""
        told += f"; {times}{counted(work.steps, 'optimiser step')} of {counted(math.ceil(groups), 'group')}"
        prompts = work.prompts if model.shape.once else work.responses
        tokens = (prompts * work.prompt + work.responses * work.response) / work.steps / count
        passes = max(1, math.ceil(tokens / layout.tokens))
        told += f", each {counted(passes, 'micro-batch', 'micro-batches')} of up to {layout.tokens:,} padded tokens"
        told += " a device" if count > 1 else ""
    yield told
    samplers, who = count, ("device", "devices")
    if model.elsewhere is not None:
        samplers, who = len(model.elsewhere.widths), ("process", "processes")
    if samplers > 1:
        yield from _dealt(work.prompts, samplers, *who)
    if (
        count > 1
        and plan.unit == "group"
        and work.learns
        and work.steps > 1
        and groups < count <= work.prompts
    ):
        yield (
            f"  an optimiser step has {groups:.3g} groups for {count} devices: some learn nothing; "
            f"`train.minibatches` of at most {work.prompts // count} gives each one"
        )
    if work.sampled and layout.fits and layout.rows < math.ceil(work.prompts / samplers) * work.samples:
        yield f"  memory holds {layout.rows:,} of a {who[0]}'s responses at once: it samples them in turns"
    where = (
        f"{work.prompt:.0f} tokens, as the first prompts have"
        if of.read
        else f"{work.prompt:.0f} tokens, a guess: no prompt could be read"
    )
    least = plan.settings.generation.min_new_tokens
    halfway = f"half of `max_new_tokens: {work.longest:.0f}`"
    if least:
        halfway = f"halfway from `min_new_tokens: {least}` to {work.longest:.0f}"
    if work.sampled:
        yield (f"lengths: prompts of {where}; responses of {work.response:.0f}, {halfway}, also a guess")
    else:
        yield f"lengths: prompts of {where}; logged responses of {work.response:.0f}"
    data = DATA * work.tokens + 48 * (rows or 0)
    if data > MUCH_DATA:
        yield f"data: each rank holds an iteration and the places of all rows, {in_words(data)} beside the models"


def _dealt(prompts: int, count: int, one: str, several: str) -> Iterator[str]:
    """Whether prompts can be dealt out evenly."""
    if prompts < count:
        yield (
            f"  {count - prompts} of {count} {several} have no prompt and stand idle: `train.prompts` of {count}, or a "
            "multiple of it, gives each as many"
        )
    elif prompts % count:
        most = math.ceil(prompts / count)
        yield (
            f"  some {several} get {most} prompts and some {most - 1}: {1 - prompts / (most * count):.0%} of the time "
            f"is waited; `train.prompts: {most * count}` costs the same time"
        )
    else:
        yield f"  {counted(prompts // count, 'prompt')} a {one}"


def _step(plan: PhasePlan, model: Model, ways: Mapping[str, Layout]) -> Iterator[str]:
    """Seconds part by part, the whole phase, and checkpoints."""
    work, planned = model.work, plan.settings.train.iterations
    fitting = {name: way for name, way in ways.items() if way.fits}
    rows = [("an iteration", list(fitting))]

    def row(name: str, cell: Callable[[str, Layout], str]) -> None:
        rows.append((name, [cell(*each) for each in fitting.items()]))

    def part_of(part: str, way: Layout) -> str:
        value = float(getattr(way.seconds, part))
        return f"{seconds(value)} {value / way.total:>4.0%}" if value else "–"

    for part in ("rollout", "score", "update", "exchange"):
        if any(getattr(way.seconds, part) for way in fitting.values()):
            row(f"  {part}", lambda name, way, part=part: part_of(part, way))  # type: ignore[misc]
    row("  all", lambda name, way: f"{seconds(way.total)} 100%")
    if work.sampled:
        row(f"  if all have {work.longest:,.0f} tokens", lambda *each: seconds(_all_long(model, *each)))
    if planned:
        row(counted(planned, "iteration"), lambda name, way: seconds(planned * way.total))
    row("tokens a second, each", lambda name, way: digits(work.tokens / way.devices / way.total))
    row("a checkpoint", lambda *each: in_words(_checkpoint(model, *each)[0]))
    row("  written in", lambda *each: seconds(_checkpoint(model, *each)[1]))
    row(f"  iterations, for {COMMIT:.0%}", lambda *each: f"{_checkpoint(model, *each)[2]:,}")
    yield from _table(rows)
    own = f", and all that `{model.updates}` does but epochs of losses," if model.updates else ""
    yield f"(estimates, within {MARGIN:.0%} at best; rewards and evaluation{own} come on top; disks of 2 GB/s a node)"
    yield from _doubts(model, next(iter(fitting.values())).on)
    first = next(iter(fitting.values()))
    if work.dtype == "float32" and not first.on.device.cpu and not first.sharded:
        other = whole(replace(model, work=replace(work, dtype="bfloat16")), first.on)
        if other.fits and other.total < 0.8 * first.total:
            yield f"`train.dtype: bfloat16` would make {seconds(first.total)} about {seconds(other.total)}"


def _doubts(model: Model, on: Machine) -> Iterator[str]:
    """Where the estimate is known to be too short."""
    if model.shape.resting:
        yield "(mixtures of experts: published runs took up to 4 times as long as the estimate)"
    if not on.device.cpu and model.shape.weights < SMALL:
        yield "(small models leave a GPU waiting: with 0.1 and 0.5 billion weights it took 1.6 to 7 times as long)"


def _way(model: Model, name: str) -> Model:
    """The model as a column has it."""
    return model.with_lora() if "lora" in name else model


def _all_long(model: Model, name: str, way: Layout) -> float:
    """Seconds of an iteration whose responses are all as long as they may be."""
    longer = _way(model, name)
    longer = replace(longer, work=replace(longer.work, response=longer.work.longest))
    return (in_shards(longer, way.on, way.offloaded) if way.sharded else whole(longer, way.on)).total


def _checkpoint(model: Model, name: str, way: Layout) -> tuple[float, float, int]:
    """(bytes, seconds, iterations between two) of checkpoints that take no more than their share of the time."""
    one = _way(model, name)
    of, work = one.shape, one.work
    learned = (8 + (4 if work.held == 2 else 0)) * (of.learned if work.learns else 0)
    size = (work.held + one.copies) * of.weights + learned
    took = size / (way.on.nodes * DISK)
    return size, took, max(1, math.ceil(took / (COMMIT * way.total)))


def lines(parts: Sequence[str]) -> str:
    """As a block of a report."""
    return "\n".join(f"  {part}" if part else "" for part in parts)
