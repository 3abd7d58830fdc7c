"""What went wrong with a model, in words for whoever named it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlalign import RLAlignError


@contextmanager
def explaining(source: str) -> Iterator[None]:
    """Say which model it is with which something went wrong."""
    try:
        yield
    except (RLAlignError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RLAlignError(explained(source, error)) from error


def explained(source: str, error: Exception, what: str = "cannot be loaded") -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"{source}: comes with Python code of its own, which is not run unless the pipeline says "
            "`remote_code: true`; read it first"
        )
    if "safetensors" in text and "bin" in text:
        return f"{source}: has no safetensors weights, and pickled ones are not loaded. {first_line(error)}"
    return f"{source}: {what}. {first_line(error)}"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"({type(error).__name__}: {first})"
