"""What a pipeline would take of a machine, in words: memory part by part, what would fit, a step's seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rlalign.costs.machines import DEVICES, GIB, Machine
from rlalign.costs.memory import TAKEN
from rlalign.costs.seconds import DISK, halves
from rlalign.data.limits import in_words
from rlalign.running.costing import Layout, Lengths, Model, fewest, in_shards, whole
from rlalign.running.plan import PhasePlan

PARTS = {
    "weights": "weights",
    "copies": "other models",
    "optimiser": "optimiser",
    "half": "bfloat16 copies",
    "snapshot": "copy for checkpoints",
    "gradients": "gradients, learning",
    "block": "a layer put together",
    "activations": "activations, learning",
    "logits": "logits, learning",
    "sampler": "weights, sampling",
    "cache": "keys and values, sampling",
}
DATA = 45
"""Bytes of a token of an iteration's data, on each rank."""
MUCH_DATA = 8e9
COMMIT = 0.05
"""Share of the time that checkpoints may take."""
MARGIN = 0.3
NOT_BUILT = "rlalign does not run like that yet"


def machine_in_words(on: Machine) -> str:
    """`8 × H100 (each 79.1 GiB, 989 TFLOP/s in bfloat16, 3.35 TB/s)`"""
    device = on.device
    rate = (
        f"{_number(device.single / 1e12)} TFLOP/s in float32"
        if device.cpu
        else f"{_number(device.half / 1e12)} TFLOP/s in bfloat16"
    )
    measured = ", as measured just now" if device.cpu else ""
    bandwidth = (
        f"{_number(device.bandwidth / 1e12)} TB/s"
        if device.bandwidth >= 1e11
        else f"{_number(device.bandwidth / 1e9)} GB/s"
    )
    return f"{on} ({'each ' if on.count > 1 else ''}{in_words(device.memory)}, {rate}, {bandwidth}{measured})"


def shortly(plan: PhasePlan, model: Model, on: Machine) -> str:
    """In a line: how much memory, how long a step."""
    layout = whole(model, on)
    fits = "" if layout.fits else f", more than {in_words(TAKEN * on.device.memory)} that can be planned with"
    took = layout.seconds
    parts = [("rollout", took.rollout), ("score", took.score), ("update", took.update)]
    shown = ", ".join(f"{name} {_seconds(value)}" for name, value in parts if value)
    return (
        f"on {on.device.name} about {in_words(layout.bytes.most)} of {in_words(on.device.memory)}{fits}; "
        + (f"an iteration about {_seconds(layout.total)} ({shown}), rewards apart" if layout.fits else "")
    ).removesuffix("; ")


def in_full(plan: PhasePlan, model: Model, on: Machine, of: Lengths, rows: int | None) -> Iterator[str]:
    """Line by line."""
    yield from _policy(model)
    ways = {"as it is": whole(model, on)}
    if model.shape.learned == model.shape.weights and model.work.learns:
        ways["with lora"] = whole(model.with_lora(), on)
    if on.count > 1:
        ways[f"in {on.count} shards"] = in_shards(model, on)
    yield ""
    yield from _memory(ways, on)
    yield ""
    chosen = next((layout for layout in ways.values() if layout.fits), None)
    as_it_is = ways["as it is"]
    if not as_it_is.fits:
        yield from _remedies(model, on)
        sharded = next((layout for layout in ways.values() if layout.sharded and layout.fits), None)
        chosen = sharded or chosen
    yield from _devices(model)
    yield ""
    yield from _batch(plan, model, on, of, as_it_is, rows)
    if chosen is None:
        return
    yield ""
    yield from _step(plan, model, chosen, of, next(name for name, way in ways.items() if way is chosen))


def _policy(model: Model) -> Iterator[str]:
    of, work = model.shape, model.work
    learned = "all learn" if of.learned == of.weights else f"{_count(of.learned)} learn"
    used = (
        ""
        if of.response * 2 > of.weights - of.head
        else f", {_count(of.response + of.head)} used for a token"
    )
    cache = in_words(of.cache * (2 if work.dtype == "bfloat16" else 4))
    held = {2: "bfloat16", 4: "float32", 8: "float64"}[work.held]
    yield (
        f"policy: {_count(of.weights)} weights{used}, {learned if work.learns else 'none learn'}; {of.layers} layers, "
        f"vocabulary {of.vocabulary:,}, {cache} of keys and values a token; held in {held}, computed in {work.dtype}"
    )


def _memory(ways: Mapping[str, Layout], on: Machine) -> Iterator[str]:
    """A row a part, a column a way."""
    rows = [("GiB a device", list(ways))]
    for part, name in PARTS.items():
        found = [getattr(way.bytes, part) for way in ways.values()]
        if any(found):
            rows.append((name, [_gib(size) if size else "–" for size in found]))
    rows.append(("most at once", [_gib(way.bytes.most) for way in ways.values()]))
    there = _gib(TAKEN * on.device.memory)
    rows.append((f"fits in {there}", ["yes" if way.fits else "no" for way in ways.values()]))
    wide, columns = max(len(name) for name, _ in rows), [max(12, len(name) + 2) for name in ways]
    for name, cells in rows:
        yield f"{name:{wide}}" + "".join(
            f"{cell:>{column}}" for cell, column in zip(cells, columns, strict=True)
        )
    yield f"({there} is {TAKEN:.0%} of a device: its driver and what is lost between pieces have the rest)"


def _remedies(model: Model, on: Machine) -> Iterator[str]:
    """What would fit, where the pipeline as it is does not."""
    short = "one device" if on.count == 1 else "each device"
    yield f"does not fit as it is, all of it on {short}. What would:"
    tried = {
        "train: {recompute: true}": model.again(),
        "train: {dtype: bfloat16, weights: bfloat16}": model.in_half(),
        "both of these": model.in_half().again(),
    }
    if model.shape.learned == model.shape.weights and model.work.learns:
        tried |= {
            "lora: {r: 16} in the policy": model.with_lora(),
            "lora, recompute and weights in bfloat16": model.with_lora().in_half().again(),
        }
    found = []
    for name, other in tried.items():
        if (layout := whole(other, on)).fits:
            found.append(f"  {name}: {_gib(layout.bytes.most)} GiB")
            if "lora" in name:
                break
    if (sharded := fewest(model, on)) is not None:
        found.append(f"  {sharded.on}, in shards: {_gib(sharded.bytes.most)} GiB each ({NOT_BUILT})")
    yield from found or ["  nothing that is known here"]


def _devices(model: Model) -> Iterator[str]:
    """On which single devices of the table it fits."""
    ways = {"as it is": model}
    if model.shape.learned == model.shape.weights and model.work.learns:
        ways["with lora"] = model.with_lora()
    said = []
    for name, one in ways.items():
        fitting = [device.name for device in DEVICES.values() if whole(one, Machine(device)).fits]
        said.append(f"{name} {', '.join(fitting) or 'none'}")
    yield f"single devices that are enough: {'; '.join(said)}"


def _batch(
    plan: PhasePlan, model: Model, on: Machine, of: Lengths, layout: Layout, rows: int | None
) -> Iterator[str]:
    work, count = model.work, on.count
    told = "an iteration: " + (
        f"{_of(work.prompts, 'prompt')} × {_of(work.samples, 'response')} = {work.responses:,} responses"
    )
    groups = work.prompts / work.steps
    if work.learns:
        times = f"{work.epochs} × " if work.epochs > 1 else ""
        told += f"; {times}{_of(work.steps, 'optimiser step')} of {_of(math.ceil(groups), 'group')}"
        prompts = work.prompts if model.shape.once else work.responses
        tokens = (prompts * work.prompt + work.responses * work.response) / work.steps / count
        passes = max(1, math.ceil(tokens / layout.tokens))
        told += (
            f", each {_of(passes, 'micro-batch', 'micro-batches')} of up to {layout.tokens:,} padded tokens"
        )
        told += " a device" if count > 1 else ""
    yield told
    if count > 1:
        yield from _dealt(work.prompts, count)
        if work.learns and work.steps > 1 and groups < count:
            yield (
                f"  an optimiser step has {groups:.3g} groups for {count} devices: some learn nothing; "
                f"`train.minibatches` of at most {max(1, work.prompts // count)} gives each one"
            )
    if work.sampled and layout.fits and layout.rows < math.ceil(work.prompts / count) * work.samples:
        yield f"  memory holds {layout.rows:,} of a device's responses at once: it samples them in turns"
    where = (
        f"{work.prompt:.0f} tokens, as the first prompts have"
        if of.read
        else f"{work.prompt:.0f} tokens, a guess: no prompt could be read"
    )
    if work.sampled:
        yield (
            f"lengths: prompts of {where}; responses of {work.response:.0f}, half of `max_new_tokens: "
            f"{work.longest:.0f}`, also a guess"
        )
    else:
        yield f"lengths: prompts of {where}; logged responses of {work.response:.0f}"
    data = DATA * work.tokens + 48 * (rows or 0)
    if data > MUCH_DATA:
        yield f"data: each rank holds all of an iteration and the places of all rows: {in_words(data)}, beside the models"


def _dealt(prompts: int, count: int) -> Iterator[str]:
    """Whether prompts can be dealt out evenly."""
    if prompts < count:
        yield (
            f"  {count - prompts} of {count} devices have no prompt and stand idle: `train.prompts` of {count}, or of a "
            "multiple of it, gives each as many"
        )
    elif prompts % count:
        most = math.ceil(prompts / count)
        yield (
            f"  some devices get {most} prompts and some {most - 1}: {1 - prompts / (most * count):.0%} of the time is "
            f"waited; `train.prompts: {most * count}` costs the same time"
        )
    else:
        yield f"  {_of(prompts // count, 'prompt')} a device"


def _step(plan: PhasePlan, model: Model, layout: Layout, of: Lengths, name: str) -> Iterator[str]:
    """Seconds, part by part."""
    took, on, work = layout.seconds, layout.on, layout.work
    way = "in shards, with a sampler of its own" if layout.sharded else name
    built = f" ({NOT_BUILT})" if layout.sharded else ""
    yield f"an iteration on {on}, {way}{built}, estimated to within {MARGIN:.0%} at best:"
    wide = "" if layout.tensor == 1 else f" on samplers of {layout.tensor} devices"
    asked = "one model" if work.passes == 1 else f"{work.passes:g} models"
    rows = [
        ("rollout", took.rollout, f"{_of(min(256, layout.rows), 'response')} at once{wide}"),
        ("score", took.score, f"a pass of {asked} over all responses" if work.passes else ""),
        ("update", took.update, "activations computed again" if work.recompute or layout.sharded else ""),
        ("exchange", took.exchange, "new weights to the sampler" if layout.sharded else "gradients summed"),
    ]
    for part, value, why in rows:
        if value:
            yield f"  {part:9}{_seconds(value):>9} {value / took.total:>5.0%}  {why}".rstrip()
    rate = work.tokens / on.count / took.total
    planned = plan.settings.train.iterations
    phase = f"; {_of(planned, 'iteration')} {_seconds(planned * took.total)}" if planned else ""
    yield f"  {'all':9}{_seconds(took.total):>9}        {_number(rate)} tokens a second and device{phase}"
    yield "  rewards and evaluation come on top, and cannot be known here"
    if work.sampled and not layout.sharded:
        longer = whole(replace(model, work=replace(work, response=work.longest)), on)
        yield f"  if all responses are {work.longest:.0f} tokens long: {_seconds(longer.total)}"
    if layout.sharded and on.count > 1:
        turns, ahead = halves(
            model.shape, replace(work, recompute=True), on, tensor=min(layout.tensor, on.count // 2)
        )
        yield (
            f"  with half of the devices sampling and half learning: {_seconds(turns)} in turns, {_seconds(ahead)} one "
            f"step off policy ({NOT_BUILT})"
        )
    yield from _faster(model, layout)
    yield from _checkpoint(model, layout)


def _faster(model: Model, layout: Layout) -> Iterator[str]:
    if layout.work.dtype == "float32" and not layout.on.device.cpu and not layout.sharded:
        other = whole(replace(model, work=replace(model.work, dtype="bfloat16")), layout.on)
        if other.fits and other.total < 0.8 * layout.total:
            yield f"  with `train.dtype: bfloat16` about {_seconds(other.total)}"


def _checkpoint(model: Model, layout: Layout) -> Iterator[str]:
    of, work = model.shape, model.work
    learned = (8 + (4 if work.held == 2 else 0)) * (of.learned if work.learns else 0)
    size = (work.held + model.copies) * of.weights + learned
    took = size / (layout.on.nodes * DISK)
    every = max(1, math.ceil(took / (COMMIT * layout.total)))
    often = "after each iteration" if every == 1 else f"every {every:,} iterations"
    yield (
        f"checkpoint: {in_words(size)}, about {_seconds(took)} to write at {_number(DISK / 1e9)} GB/s a node: "
        f"{often} it takes {min(1, took / (every * layout.total)):.1%} of the time"
    )


def _of(number: float, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _count(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gib(size: float) -> str:
    value = size / GIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 72 * 3600 else f"{value / 86400:.1f} days"


def lines(parts: Sequence[str]) -> str:
    """As a block of a report."""
    return "\n".join(f"  {part}" if part else "" for part in parts)
