"""Settings of the process that a hook leaves as they were: set back, and told, where it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rlalign.errors import Altered


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _go_back(directory: str | None) -> None:
    if directory is not None:
        os.chdir(directory)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


_SETTINGS: Sequence[tuple[str, Callable[[Any], object] | None]] = (
    ("the working directory", _go_back),
    ("torch's default dtype", torch.set_default_dtype),
    ("torch's default device", _set_default_device),
    ("torch's number of threads", torch.set_num_threads),
    ("torch's grad mode", torch.set_grad_enabled),
    ("torch's inference mode", None),
    ("torch's autocast", lambda on: torch.set_autocast_enabled("cpu", on)),
    ("torch's deterministic mode", torch.set_deterministic_debug_mode),
    ("torch's precision of matrix products", torch.set_float32_matmul_precision),
)


def _settings() -> tuple[Any, ...]:
    return (
        _directory(),
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
    )


@contextmanager
def settings_kept(told: Callable[[str, str], None]) -> Iterator[None]:
    """Set back whatever setting of the process is changed inside, and say so."""
    before = _settings()
    try:
        yield
    finally:
        if (now := _settings()) != before:
            for (what, put), was, got in zip(_SETTINGS, before, now, strict=True):
                if got != was and put is None:
                    raise Altered(f"left {what} {'on' if got else 'off'}")
                if got != was and put is not None:
                    put(was)
                    told(what, f"changed {what} from {was} to {got}; it is {was} again")
