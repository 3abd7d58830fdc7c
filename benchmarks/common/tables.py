"""How tables of results are written in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.common.comparisons import Comparison, Estimate


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table, and the empty line that ends it."""
    every = [head, ["---"] * len(head), *lines]
    return [*(f"| {' | '.join(line)} |" for line in every), ""]


def mean(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.3f} ± {found.half:.3f}" if math.isfinite(found.half) else f"{found.mean:.3f}"


def signed(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.mean:+.3f} ± {found.half:.3f}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def of(count: tuple[int, int]) -> str:
    return f"{count[0]}/{count[1]}"


def comparisons(found: Sequence[Comparison]) -> list[str]:
    """A row for each pair of arms."""
    head = ["pair", "difference", "seeds", "p (paired t)", "p (Holm)", "p (sign flips)", "found with 80 %"]
    lines = [
        [
            f"`{c.arm}` − `{c.other}`",
            signed(c.difference),
            str(c.difference.count),
            p_value(c.p_t),
            p_value(c.p_holm),
            p_value(c.p_flips),
            f"{c.detectable:.3f}",
        ]
        for c in found
    ]
    return rows(head, lines)


def made_with(codes: Sequence[Mapping[str, str]]) -> list[str]:
    """Packages and hashes of plugins that runs were made with; counted where they differ."""
    names = dict.fromkeys(name for code in codes for name in code)
    counts = {name: Counter(code[name] for code in codes if name in code) for name in names}
    lines = [
        [f"`{name}`", ", ".join(f"{k} ({n} runs)" if len(c) > 1 else k for k, n in c.items())]
        for name, c in counts.items()
    ]
    return rows(["made with", ""], lines)
