"""Counts, sizes and times as reports say them."""

from __future__ import annotations

from rlalign.costs.machines import GIB


def counted(number: float, one: str, many: str | None = None) -> str:
    """`1 prompt`, `2,000 prompts`"""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def in_billions(number: float) -> str:
    """`7.62 billion`"""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,.0f}"


def digits(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def per_second(value: float, unit: str) -> str:
    """`989 TFLOP/s`"""
    return f"{digits(value / 1e12)} T{unit}" if value >= 1e12 else f"{digits(value / 1e9)} G{unit}"


def gib(size: float, unit: float = GIB) -> str:
    """A size in a unit, as a table has it."""
    value = size / unit
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def seconds(value: float) -> str:
    """`0.86 s`, `112 min`, `3.3 h`"""
    if value < 0.0995:
        return f"{1000 * value:.2g} ms"
    if value < 120:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 72 * 3600 else f"{value / 86400:.1f} days"
