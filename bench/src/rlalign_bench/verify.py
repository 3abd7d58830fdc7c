"""An entry made again from its provenance, and compared to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign_bench.entry import Entry, sha256, shown
from rlalign_bench.ledger import Ledger, entry_of, planned_of
from rlalign_bench.suite import Suite
from rlalign_study.command import Work
from rlalign_study.core import ConfigError
from rlalign_study.plan import Planned
from rlalign_study.rows import Results

STAGE = "verify"
MADE = ("plugins", "modules", "packages", "hardware", "data", "models")
"""What numbers depend on beside the pipeline."""


@dataclass(frozen=True)
class Verdict:
    """What came of making an entry again."""

    entry: Entry
    why: str = ""
    """Why the run failed; then the rest is empty."""
    numbers: Sequence[str] = ()
    """What differs in what was measured."""
    made: Sequence[str] = ()
    """What differs in code, packages, machine and data."""

    @property
    def same(self) -> bool:
        return not self.why and not self.numbers

    @property
    def lines(self) -> list[str]:
        """The verdict in words."""
        made = [f"  {line}" for line in self.made]
        if self.why:
            return [f"{self.entry.key}: could not be made again: {self.why}"]
        if self.same:
            values = sum(map(len, self.entry.per_example.values()))
            told = f"{len(self.entry.metrics)} metrics, {values} values of examples"
            return [
                f"{self.entry.key}: the same to the bit: {told}",
                *(["although it was made with something else:", *made] if made else []),
            ]
        told = f"{self.entry.key}: NOT the same (the entry, now):"
        reason = (
            ["what it was made with differs, which may be why (the entry, now):", *made]
            if made
            else [
                "code, packages, machine and data are the same, so the entry is not what its pipeline gives"
            ]
        )
        return [told, *(f"  {line}" for line in self.numbers), *reason]


def choose(ledger: Ledger, key: str | None) -> Entry:
    """The entry of this name, or a random one."""
    if not ledger.entries:
        raise ConfigError(f"{ledger.suite.name}: there are no entries yet, so there is nothing to verify")
    if key is None:
        return random.choice(ledger.entries)
    found = next((one for one in ledger.entries if one.key == key), None)
    if found is None:
        known = ", ".join(one.key for one in ledger.entries[:8])
        raise ConfigError(f"there is no entry `{key}`; entries are called TASK/ALGORITHM/SEED: {known} …")
    return found


def verify(
    suite: Suite, one: Entry, results: Results, work: Path, memory: float | None, *, trust: bool
) -> Verdict:
    """Make an entry again, in a process of its own, and compare. `results` are the suite's own."""
    if not trust and not _ours(suite, one, results):
        raise ConfigError(
            f"{one.key}: its pipeline is none of this suite's own, and to run it is to run the Python code that it "
            "names; read its `provenance.pipeline`, and say --trust if it is sound"
        )
    about = one.provenance
    # A run that its seconds ended ends again where it did then: after as many tokens.
    budget = {"tokens": float(one.tokens)} if "seconds" in about.budget else dict(about.budget)
    planned = Planned(
        STAGE,
        one.task,
        one.algorithm,
        "",
        one.seed,
        dict(about.overrides),
        dict(about.pipeline),
        {suite.bench.final: dict(about.evaluate)},
        suite.given_of(one.task) if suite.hooks.prepare else {},
        budget,
        dict(about.names),
    )
    made = Results()
    for left in work.glob(f"{STAGE}+*.json"):  # of one that was killed: made with the code of then
        left.unlink()
    doing = Work(suite, memory=memory, runs=work, results=work / STAGE)
    failed = doing.make(STAGE, [planned], made)
    if failed:
        return Verdict(one, why=f"{failed[0].why}; see {work}")
    row = made.rows[planned.key, planned.hash]
    if row.status != "done":
        return Verdict(one, why=row.why)
    again = entry_of(suite, planned, row)
    return Verdict(one, numbers=list(_numbers(one, again)), made=list(_made(one, again)))


def _ours(suite: Suite, one: Entry, results: Results) -> bool:
    planned = planned_of(suite, results)
    final = suite.bench.final
    known = {sha256([p.pipeline, p.final[final], p.names, p.budget]) for p in planned}
    return one.provenance.hash in known


def _numbers(one: Entry, again: Entry) -> Iterator[str]:
    if one.provenance.examples_hash != again.provenance.examples_hash:
        yield "the examples that were measured"
    for name in {**one.metrics, **again.metrics}:
        then, now = one.metrics.get(name), again.metrics.get(name)
        values, others = one.per_example.get(name, ()), again.per_example.get(name, ())
        if len(values) != len(others):
            yield f"{name}: {len(values)} values of examples, {len(others)}"
        elif differ := [abs(a - b) for a, b in zip(values, others, strict=True) if a != b]:
            told = f"{len(differ)} of {len(values)} examples differ, by at most {max(differ):.3g}"
            yield f"{name}: {then!r}, {now!r} ({told})"
        elif then != now:
            yield f"{name}: {then!r}, {now!r}"
    if one.tokens != again.tokens:
        yield f"tokens: {one.tokens}, {again.tokens}"


def _made(one: Entry, again: Entry) -> Iterator[str]:
    for part in MADE:
        then, now = _flat(getattr(one.provenance, part)), _flat(getattr(again.provenance, part))
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                yield shown(f"{part}.{key}: {_short(then.get(key))}, {_short(now.get(key))}")


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": part for name, part in _flat(value).items()}
        else:
            found[key] = value
    return found


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text[:80]
