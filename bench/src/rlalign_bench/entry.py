"""One finished run as anyone can send it in: what it measured, what it cost, all that is needed to make it again.

A file of entries is JSON lines, one entry each. Whoever reads one is told in plain words what does not add up.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rlalign_study.core import ConfigError

CLOSE = 1e-9
"""The share by which a metric may differ from the mean of its values: what summing in another order does."""
HASH = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[\w.+=:@~-]{1,80}")
"""Nothing that Markdown, HTML or a terminal would read, as names stand in tables."""
ALLOWED = "up to 80 letters, digits and . + = : @ ~ _ -"
LARGEST = 1e15
"""No number that is measured is larger, and sums of such numbers stay finite."""
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Provenance:
    """What a run was made of and with."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """The whole pipeline; paths in it begin beside the suite's file."""
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    """What the measurement changed in the pipeline's `evaluate`."""
    names: Mapping[str, str | list[str]] = field(default_factory=dict)
    """By metric what the evaluation logs it as; of a list the mean."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """The tokens and seconds that the run was allowed."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the suite's common pipeline."""
    hash: str = ""
    """Of all of the above but `overrides`: of what the run is."""
    examples: int = 0
    """How many examples were measured."""
    examples_hash: str = ""
    """Of these examples, prompts and references included, in their order."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what was learned from."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the models that the run began with."""
    plugins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By distribution its `version` and the hash of its `code`; rlalign is one of them."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """By name the hash of code that no distribution brought: the suite's own."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of what plugins need: torch and the rest."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    """Device, dtype, threads, platform, Python."""
    date: str = ""
    commit: str = ""

    @property
    def what(self) -> str:
        """What `hash` must be."""
        return sha256([self.pipeline, self.evaluate, self.names, self.budget])


@dataclass(frozen=True)
class Entry:
    """One finished run of a suite: one algorithm on one task with one seed."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    suite: str
    task: str
    algorithm: str
    seed: int
    metrics: Mapping[str, float]
    """Means over the evaluation's examples, and what exists for all of them together only."""
    per_example: Mapping[str, Sequence[float]]
    """By metric one value for each example, in the examples' order: of those metrics that are such means."""
    kl: float | None
    """To the policy that the run began with, a mean over responses; None where it was not measured."""
    tokens: int
    """Of all responses that the run learned from or looked at while it trained, sampled or logged."""
    seconds: float
    """Processor time, evaluations included."""
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def key(self) -> str:
        """What the entry is called: `TASK/ALGORITHM/SEED`."""
        return f"{self.task}/{self.algorithm}/{self.seed}"

    @property
    def line(self) -> str:
        """The entry as a line of JSON, numbers to the bit, sealed with the hash of its content."""
        said = asdict(self)
        return json.dumps({**said, "seal": sha256(said)}, separators=(",", ":"), allow_nan=False)


_ENTRY = TypeAdapter(Entry)


def sha256(said: Any) -> str:
    """The hash of plain values, whatever the order of their keys."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


def mean(values: Sequence[float]) -> float:
    """The mean, rounded once."""
    return math.fsum(values) / len(values)


def shown(text: str) -> str:
    """What somebody else wrote, without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


# -- what does not add up ---------------------------------------------------------------------------------


def problems(entry: Entry) -> list[str]:
    """All that cannot be true of one entry, a sentence each."""
    return list(_numbers(entry)) + list(_provenance(entry.provenance))


def _numbers(entry: Entry) -> Iterator[str]:
    for name in ("suite", "task", "algorithm"):
        value = getattr(entry, name)
        if not NAME.fullmatch(value):
            yield f"{name}: {value[:80]!r} is no name; a name has {ALLOWED}"
    if entry.seed < 0:
        yield f"seed: {entry.seed} is below 0"
    if not entry.metrics:
        yield "metrics: there are none"
    numbers = {"seconds": entry.seconds, **{f"metrics.{name}": x for name, x in entry.metrics.items()}}
    if entry.kl is not None:
        numbers["kl"] = entry.kl
    for name, x in numbers.items():
        if not abs(x) <= LARGEST:
            yield f"{name}: {x} is not finite, or larger than anything that is measured"
    if not 0 <= entry.tokens <= LARGEST or entry.seconds < 0:
        yield f"tokens, seconds: cannot be below 0, nor tokens above {LARGEST:g}"
    count = entry.provenance.examples
    for name, values in entry.per_example.items():
        if name not in entry.metrics:
            yield f"per_example.{name}: `metrics` has no `{name}`"
        elif len(values) != count:
            yield f"per_example.{name}: {len(values)} values, but {count} examples were measured"
        elif not all(abs(x) <= LARGEST for x in values):
            yield f"per_example.{name}: a value is not finite, or larger than anything that is measured"
        elif values and not math.isclose(
            found := mean(values), entry.metrics[name], rel_tol=CLOSE, abs_tol=CLOSE
        ):
            yield f"metrics.{name} is {entry.metrics[name]!r}, but the mean of its {count} values is {found!r}"


def _provenance(made: Provenance) -> Iterator[str]:
    if made.examples < 1:
        yield "provenance.examples: at least one example has to be measured"
    for name in ("pipeline", "names", "plugins", "packages", "hardware"):
        if not getattr(made, name):
            yield f"provenance.{name}: is missing, and the run could not be made again without it"
    if made.hash != made.what:
        yield "provenance.hash: is not the hash of its pipeline, evaluate, names and budget: one of them was changed"
    if not HASH.fullmatch(made.examples_hash):
        yield "provenance.examples_hash: expected 64 hexadecimal digits"
    for name, about in made.plugins.items():
        if not about.get("version") or not HASH.fullmatch(about.get("code", "")):
            yield f"provenance.plugins.{name}: expected `version`, and `code` with 64 hexadecimal digits"
    if made.plugins and "rlalign" not in made.plugins:
        yield "provenance.plugins: rlalign itself is not among them"


def conflicts(entries: Sequence[tuple[str, Entry]]) -> list[str]:
    """What cannot be true of entries together, each named by its place: a sentence for each."""
    found: list[str] = []
    first: dict[str, tuple[str, Entry]] = {}
    measured: dict[str, tuple[str, Entry]] = {}
    begun: dict[tuple[str, int], tuple[str, Entry]] = {}
    for place, entry in entries:
        there, other = first.setdefault(entry.key, (place, entry))
        if other is not entry:
            found.append(f"{place}: {entry.key} is there already ({there}); a run counts once")
        there, other = measured.setdefault(entry.task, (place, entry))
        ours, theirs = entry.provenance, other.provenance
        if (ours.examples, ours.examples_hash) != (theirs.examples, theirs.examples_hash):
            found.append(
                f"{place}: {entry.key} was measured on other examples ({ours.examples}, {ours.examples_hash[:8]}…) "
                f"than {other.key} in {there} ({theirs.examples}, {theirs.examples_hash[:8]}…); "
                "entries of a task compare only on the same ones"
            )
        if sorted(entry.metrics) != sorted(other.metrics) or ours.names != theirs.names:
            found.append(f"{place}: {entry.key} has other metrics than {other.key} in {there}")
        elif sorted(entry.per_example) != sorted(other.per_example):
            found.append(
                f"{place}: {entry.key} has values by example of other metrics than {other.key} in {there}"
            )
        there, other = begun.setdefault((entry.task, entry.seed), (place, entry))
        ours, theirs = entry.provenance, other.provenance
        if ours.models.get("policy") != theirs.models.get("policy"):
            found.append(
                f"{place}: {entry.key} began with other weights than {other.key} in {there}; runs of a task compare "
                "only from the same policy"
            )
    return found


# -- files ------------------------------------------------------------------------------------------------


def write(path: Path, entries: Iterable[Entry]) -> None:
    """A file of entries: there whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text("".join(f"{entry.line}\n" for entry in entries), encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> list[Entry]:
    """The entries in a file; one ConfigError lists all that does not add up."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no file of entries: it is not text") from None
    found: list[tuple[str, Entry]] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            found.append((place, parse(line)))
        except ConfigError as error:
            wrong += [f"{place}: {text}" for text in str(error).split("\n")]
    wrong = wrong or conflicts(found)
    if wrong:
        raise ConfigError(shown("\n".join(wrong)))
    if not found:
        raise ConfigError(f"{path}: holds no entries")
    return [entry for _, entry in found]


def parse(line: str) -> Entry:
    """The entry in a line; one ConfigError lists all that does not add up."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError("is no JSON; a line was cut off?") from None
    if not isinstance(said, dict):
        raise ConfigError("expected an entry, a mapping in JSON")
    seal = said.pop("seal", None)
    try:
        entry = _ENTRY.validate_json(json.dumps(said))
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc']))}: {_TOLD.get(one['type'], one['msg'])}"
            for one in error.errors()
        ]
        raise ConfigError("\n".join(told)) from None
    wrong = problems(entry)
    if seal != sha256(said):
        wrong.append("`seal` is not the hash of the entry: it was changed, or damaged on the way")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return entry


_TOLD = {"unexpected_keyword_argument": "this key is not known", "missing": "is missing"}
