"""What two runs differ in, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rlalign.records.result import is_evaluation
from rlalign.running.figures import number
from rlalign_compare.difference import ROUNDING, SECTIONS, Differs, Found, counted, share
from rlalign_compare.settings import Setting

MOST = 4
"""Figures that are shown where metrics first differ."""
NOTHING = "not there"


def text_of(found: Found) -> str:
    """All of it."""
    return "\n".join(_text(found))


def _text(found: Found) -> Iterator[str]:
    yield f"A  {found.a}"
    yield f"B  {found.b}"
    for section in SECTIONS:
        rows = [each for each in found.differs if each.section == section]
        if rows:
            yield ""
            yield section
            yield from _columns([(f"  {d.key}", _shown(d.a), _shown(d.b), _aside(d)) for d in rows])
    if not found.differs:
        yield ""
        yield "no setting differs" if found.files else "nothing that is written down of them differs"
    if found.files:
        return
    yield ""
    yield "metrics"
    yield from (f"  {line}" for line in _of_metrics(found))
    for note in found.notes:
        yield f"note: {note}"
    if found.likely:
        yield (
            f"likely because of {found.likely}"
            if ": nothing else" in found.likely
            else f"why: {found.likely}"
        )


def _of_metrics(found: Found) -> Iterator[str]:
    first = found.diverged
    if first is None:
        yield "agree to the bit wherever both have them, times apart"
    else:
        what = "the evaluation after " if is_evaluation(first.row) else ""
        count = first.row["iteration"]
        where = f"{what}iteration {count} of {first.row['phase']}"
        if is_evaluation(first.row) and count == 0:
            where = f"the evaluation before the first iteration of {first.row['phase']}"
        yield f"first differ in {where}; before it {_agreed(first.agreed)}"
        shown = first.metrics[:MOST]
        wide = max(map(len, shown))
        for name in shown:
            one, other = first.row[name], first.other[name]
            yield f"  {name:{wide}}  {_digits(one, other)}: {_apart(one, other)}"
        if more := len(first.metrics) - len(shown):
            yield f"  and {more} more figures of it"
        if first.largest <= ROUNDING:
            yield "  as little as rounding makes"
    yield from found.metrics


def _agreed(counts: tuple[int, int]) -> str:
    verb = "agrees" if sum(counts) == 1 else "agree"
    return f"{counted(counts)} {verb} to the bit" if any(counts) else "there is nothing"


def _digits(one: float, other: float) -> str:
    """Both in four digits, or in as many as tell them apart."""
    for digits in (4, 8, 12):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            return " | ".join(texts)
    return f"{one!r} | {other!r}"


def _apart(one: float, other: float) -> str:
    part = share(one, other)
    if not math.isfinite(part):
        return "one of them is no number"
    return f"{abs(one - other):.3g} apart ({100 * part:.3g} %)"


def _shown(value: Any) -> str:
    """A value on one side, a default as one."""
    if isinstance(value, Setting):
        return _value(value.value) + (" (default)" if value.default else "")
    if value is None:
        return NOTHING
    text = _value(value)
    return f"{text[:12]}…" if len(text) >= 32 and text.isalnum() and text.lower() == text else text


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value) if float(number(value)) == value else repr(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _aside(one: Differs) -> str:
    return f"({one.note})" if one.note else ""


def _columns(rows: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    wide = [min(48, max(map(len, column))) for column in zip(*rows, strict=True)]
    for key, a, b, note in rows:
        yield f"{key:{wide[0]}}  {a:{wide[1]}}  |  {b:{wide[2]}}  {note}".rstrip()
