"""Functions that the tests offer as tools, and what reads and judges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from rlalign import Example


def multiply(a: float, b: Annotated[float, Field(description="the second factor")] = 2) -> float:
    """Multiply two numbers."""
    return a * b


def pick(colour: Literal["red", "green"], many: list[int]) -> dict[str, Any]:
    """Pick a colour."""
    return {colour: many}


def broken(text: str) -> str:
    """Do not use."""
    raise LookupError(f"nothing for {text}")


def leaves() -> str:
    """Leave."""
    raise SystemExit(3)


def long(size: int) -> str:
    """Say much."""
    return "x" * size


def untyped(a, b: int) -> int:  # type: ignore[no-untyped-def]
    """Of no known type."""
    return int(a) + b


def every_text(text: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """Whatever is said is a call, unless it is short."""
    if "?" in text:
        raise ValueError("no question marks, please")
    return [("multiply", {"a": len(text), "b": 3})] if len(text) > 1 else []


def by_length(answer: str, example: Example) -> float:
    """An answer's length, as a share of the question's."""
    return len(answer) / len(str(example.prompt))


def hangs(a: int, b: int) -> int:
    """Never comes back."""
    time.sleep(600)
    return a + b


def calls_hangs(text: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """Whatever is said is a call that hangs."""
    return [("hangs", {"a": 1, "b": 2})]


def half() -> str:
    """As in a file's name that is no UTF-8."""
    return "\ud800"
