"""What a task's rows hold and how long they are, as the policy reads them: a part of `rlalign check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from rlalign.data.example import Example, taken
from rlalign.errors import RLAlignError, shortened
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy, Reading
from rlalign.running.histogram import bins, drawn
from rlalign.running.plan import PhasePlan

LOOKED_AT = 256
"""Rows, the first ones, that are measured."""
CHARACTERS, LINES = 600, 12
"""Of the prompt that is shown."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of something, one number a text."""

    what: str
    tokens: Sequence[int]
    limit: int | None = None
    said: str = ""
    """What sets the limit."""
    becomes: str = ""
    """What becomes of those beyond it."""

    @property
    def over(self) -> int:
        return 0 if self.limit is None else sum(length > self.limit for length in self.tokens)

    def lines(self) -> Iterator[str]:
        """In words, and as a picture where they differ."""
        least, most = min(self.tokens), max(self.tokens)
        size = (
            f"{least:,} each"
            if least == most
            else f"{least:,} to {most:,}, median {median(self.tokens):,.0f}"
        )
        limit = f" (at most {self.limit:,})" if self.limit is not None else ""
        yield f"tokens of {self.what}: {size}{limit}"
        if least < most:
            yield from (f"  {line}" for line in drawn(bins(self.tokens, self.limit), self.becomes))
        if self.over:
            share = f"{self.over:,} of {len(self.tokens):,} {self.what} ({self.over / len(self.tokens):.0%})"
            yield f"! {share} are longer than {self.said}: {self.becomes}"

    def facts(self) -> dict[str, Any]:
        """As data."""
        return {
            "least": min(self.tokens),
            "median": median(self.tokens),
            "most": max(self.tokens),
            "limit": self.limit,
            "over": self.over,
            "becomes": self.becomes if self.over else None,
            "histogram": [asdict(one) for one in bins(self.tokens, self.limit)],
        }


@dataclass(frozen=True)
class Look:
    """The rows of a task's training split."""

    task: str
    rows: int
    more: bool
    """Whether there may be more rows than were looked at."""
    measured: int
    fields: dict[str, str]
    """What a row holds, by name, in words."""
    prompt: str
    """The first one, as the model reads it."""
    lengths: Sequence[Lengths]

    def lines(self) -> Iterator[str]:
        """In words."""
        count = f"{self.rows:,}{' or more' if self.more else ''} rows of `train`"
        part = f", the first {self.measured:,} measured" if self.measured < self.rows else ""
        yield f"{self.task}: {count}{part}"
        wide = max(map(len, self.fields))
        yield from (f"  {name:{wide}}  {said}" for name, said in self.fields.items())
        if self.prompt:
            yield "the first prompt, as the model reads it:"
            yield from (f"  │ {line}" for line in _shortly(self.prompt))
        for each in self.lengths:
            yield from each.lines()

    def facts(self) -> dict[str, Any]:
        """As data."""
        return {
            "task": self.task,
            "rows": self.rows,
            "more": self.more,
            "measured": self.measured,
            "fields": self.fields,
            "prompt": self.prompt or None,
            "tokens": {each.what: each.facts() for each in self.lengths},
        }


def look(policy: Policy, plan: PhasePlan, examples: Sequence[Example], *, more: bool) -> Look:
    """At the first rows; the policy is open."""
    some = taken(examples, range(min(LOOKED_AT, len(examples))))
    reading: Reading | None = None
    lengths: list[Lengths] = []
    if not isinstance(plan.task, Environment):
        reading = policy.reading(some, "sampled" in plan.responses)
    if reading is not None and reading.tokens:
        lengths.append(Lengths("prompts", reading.tokens, reading.limit, reading.said, reading.becomes))
    if reading is not None:
        lengths += _of_texts(policy, plan, some)
    return Look(
        plan.settings.task.name, len(examples), more, len(some), fields_of(some),
        reading.first if reading else "", lengths,
    )  # fmt: skip


def _of_texts(policy: Policy, plan: PhasePlan, some: Sequence[Example]) -> Iterator[Lengths]:
    """Of logged responses, where the phase learns from them, and of references."""
    if "logged" in plan.responses and (tokens := _tokens(policy, some)):
        yield Lengths("logged responses", tokens)
    right = [replace(e, responses=e.references, scores=(), finished=()) for e in some if _texts(e)]
    if tokens := _tokens(policy, right):
        most = plan.settings.generation.max_new_tokens
        becomes = "no response can be as long"
        sampled = "sampled" in plan.responses
        said = f"`max_new_tokens: {most}`"
        yield Lengths("references", tokens, *((most, said, becomes) if sampled else ()))


def _texts(example: Example) -> bool:
    return bool(example.references) and all(isinstance(text, str) for text in example.references)


def _tokens(policy: Policy, examples: Sequence[Example]) -> list[int]:
    try:
        found = policy.lengths(examples) if examples else None
    except RLAlignError:  # a prompt that it refuses: told elsewhere
        return []
    return [tokens for _, each in found or () for tokens in each]


def fields_of(examples: Sequence[Example]) -> dict[str, str]:
    """What rows hold beside their ids, by name: of the first row, and in how many it is there."""
    first, count = examples[0], len(examples)
    found = {"prompt": _kind(first.prompt)}
    for name in ("responses", "scores"):
        there = sum(bool(getattr(e, name)) for e in examples)
        if there:
            sizes = [len(getattr(e, name)) for e in examples if getattr(e, name)]
            size = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
            found[name] = f"{size} each" + _share(there, count)
    for key in dict.fromkeys(key for e in examples for key in e.meta):
        values = [e.meta[key] for e in examples if key in e.meta]
        found[f"meta.{key}"] = _kind(values[0]) + _share(len(values), count)
    return found


def _share(there: int, count: int) -> str:
    return "" if there == count else f", in {there:,} of {count:,} rows"


def _kind(value: Any) -> str:
    """What a value is, and its beginning."""
    if isinstance(value, str):
        return f"text: {_begin(repr(value))}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, dict) and "role" in one for one in value):
            roles = ", ".join(str(one["role"]) for one in value)
            return f"chat of {len(value)}: {_begin(roles)}"
        return f"list of {len(value)}" + (f": {_begin(repr(value[0]))}" if value else "")
    return _begin(f"{type(value).__name__}: {value!r}")


def _begin(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def _shortly(text: str) -> list[str]:
    """A long prompt without its middle."""
    lines = shortened(text, CHARACTERS).split("\n")
    half = LINES // 2
    return lines if len(lines) <= LINES else [*lines[:half], "…", *lines[-half:]]
