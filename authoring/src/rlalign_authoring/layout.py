"""A pipeline as YAML that a person might have written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlalign.config import places
from rlalign.errors import ConfigError

Notes = Mapping[str, Sequence[str]]
"""Comments, by the section that they stand above."""
WIDTH = 100
"""Characters of a line of items, beyond which each gets its own."""


def file_of(header: Sequence[str], sections: Mapping[str, Any], notes: Notes) -> str:
    """A file that begins with these lines of comment."""
    lines = [f"# {line}" for line in header]
    for name, value in sections.items():
        lines += commented(name, value, notes)
    return "\n".join(lines) + "\n"


def commented(name: str, value: Any, notes: Notes) -> list[str]:
    """The lines of a section; of several phases the last one has the comments."""
    if name != "phases":
        return [*(f"# {note}" for note in notes.get(name, ())), *section(name, value)]
    *before, last = value
    return ["phases:", *(line for phase in before for line in phase_of(phase, {})), *phase_of(last, notes)]


def phase_of(phase: Mapping[str, Any], notes: Notes) -> Iterator[str]:
    """A phase as an item of a list."""
    lines = (line for name, value in phase.items() for line in commented(name, value, notes))
    yield from (f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines))


def section(name: str, value: Any) -> list[str]:
    """A section; what makes `evaluate` long, and `rewards` that say more than a component, get lines of their own."""
    if name == "evaluate" and value:
        short = [f"  {key}: {flow(each)}" for key, each in value.items() if key != "use"]
        return [
            "evaluate:",
            *short,
            "  use:",
            *(f"  {line}" for item in value["use"] for line in lines_of(item)),
        ]
    line = f"{name}: {flow(value)}"
    if (
        name == "rewards"
        and value
        and (len(line) > WIDTH or any(len(item) > 1 for item in value if has_options(item)))
    ):
        return ["rewards:", *(line for item in value for line in lines_of(item))]
    return [line]


def has_options(item: Any) -> bool:
    """Whether an item is more than a name."""
    return isinstance(item, Mapping)


def lines_of(item: Any) -> list[str]:
    """An item of a list of components, and what stands beside the component."""
    if not has_options(item):
        return [f"- {flow(item)}"]
    (component, options), *beside = item.items()
    return [f"- {component}: {flow(options)}", *(f"  {key}: {flow(value)}" for key, value in beside)]


def flow(value: Any) -> str:
    """On one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    return text if _plain(text) else json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> bool:
    """Whether YAML reads it as this text without quotation marks."""
    try:
        return not re.search(r"[{}\[\],&*#?|<>=!%@:`\n]", text) and places.value(text, "") == text
    except ConfigError:
        return False


def number(value: float) -> str:
    """With a point, as YAML 1.1 wants it, and in powers of ten where it is small."""
    if value == 0 or abs(value) >= 1e-3:
        return repr(value)
    digits, power = f"{value:.2e}".split("e")
    digits = digits.rstrip("0")
    return f"{digits}0e{int(power)}" if digits.endswith(".") else f"{digits}e{int(power)}"
