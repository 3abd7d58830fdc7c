"""Runs of the same pipeline are a group; different pipelines stand side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rlalign_report import names
from rlalign_report.run import Run, number

if TYPE_CHECKING:
    from rlalign_study.stats import Estimate

APART = ("seed", "folder")
"""What runs of one group may differ in."""
LONGEST = 200
"""Characters of a value that is shown."""


@dataclass(frozen=True)
class Group:
    """Runs of one pipeline."""

    name: str
    runs: tuple[int, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by their pipelines, seeds apart, in the order in which they were named."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        own = {key: value for key, value in _pipeline(run).items() if key not in APART}
        same = json.dumps(own, sort_keys=True) if own else f"run {i}"
        found.setdefault(same, []).append(i)
    called = [_name([runs[i].name for i in members]) for members in found.values()]
    several = {name for name in called if called.count(name) > 1}
    return [
        Group(runs[members[0]].name if name in several else name, tuple(members))
        for name, members in zip(called, found.values(), strict=True)
    ]


def differences(runs: Sequence[Run], found: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Each value of the pipelines that is not the same in all groups, as text."""
    leaves = [dict(_leaves(_pipeline(runs[group.runs[0]]))) for group in found]
    keys = dict.fromkeys(key for one in leaves for key in one if key not in APART)
    told = [(key, [one.get(key, "–") for one in leaves]) for key in keys]
    return [(key, values) for key, values in told if len(set(values)) > 1]


def table(runs: Sequence[Run], found: Sequence[Group]) -> list[dict[str, Any]]:
    """Each figure of the last evaluation, by group, and of other groups whether they differ from the first.

    p is that of a paired t-test over the seeds that both groups have, adjusted by Holm's method over all figures that
    are tested: counts are not.
    """
    from rlalign_study.stats import estimate, holm, paired_t

    last = [run.evaluations.rows[-1] if run.evaluations.rows else {} for run in runs]
    known = dict.fromkeys(name for row in last for name in row if name.startswith("eval/"))
    figures = sorted(known, key=names.order)
    lines: list[dict[str, Any]] = []
    tests: dict[str, float] = {}
    for name in figures:
        cells: list[dict[str, Any] | None] = []
        for at, group in enumerate(found):
            values = [value for i in group.runs if math.isfinite(value := number(last[i].get(name)))]
            cells.append(_cell(estimate(values)))
            if at:
                pairs = _paired(runs, last, found[0], group, name)
                if len(pairs) > 1 and name.removeprefix("eval/") not in names.COUNTS:
                    tests[f"{at} {name}"] = paired_t(pairs)
        lines.append({"name": name, "cells": cells})
    adjusted = holm(tests)
    for line in lines:
        line["p"] = [adjusted.get(f"{at} {line['name']}") for at in range(len(found))]
    return lines


def _cell(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    half = found.half if math.isfinite(found.half) else None
    return {"mean": found.mean, "half": half, "count": found.count}


def _paired(
    runs: Sequence[Run], last: Sequence[Mapping[str, Any]], one: Group, other: Group, name: str
) -> list[float]:
    """The differences of a figure between runs of one seed."""

    def by_seed(group: Group) -> dict[Any, float]:
        return {runs[i].lock.get("seed"): number(last[i].get(name)) for i in group.runs}

    first, second = by_seed(one), by_seed(other)
    found = [second[seed] - first[seed] for seed in first if seed in second]
    return [value for value in found if math.isfinite(value)]


def _pipeline(run: Run) -> Mapping[str, Any]:
    found = run.lock.get("pipeline")
    return found if isinstance(found, Mapping) else {}


def _name(members: Sequence[str]) -> str:
    if len(members) == 1:
        return members[0]
    shared = re.sub(r"[-_. ]+(seed|s)?[-_. ]*$", "", _beginning(members))
    return shared or members[0]


def _beginning(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        for i, part in enumerate(value):
            only = next(iter(part)) if isinstance(part, Mapping) and len(part) == 1 else None
            if only is None:
                yield from _leaves(part, f"{place}[{i}]")
            else:  # a component by its name
                yield from _leaves(part[only], f"{place}.{only}")
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield place, text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
