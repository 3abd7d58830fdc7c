"""What of the process nothing may move that only scores texts: its settings and global random numbers."""

from __future__ import annotations

import locale
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch

PROCESS: Mapping[str, Callable[[], Any]] = {
    "Python's global random numbers": random.getstate,
    "NumPy's global random numbers": lambda: [
        part.tolist() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state()
    ],
    "torch's global random numbers": torch.get_rng_state,
    "torch's default dtype": torch.get_default_dtype,
    "torch's number of threads": torch.get_num_threads,
    "torch's grad mode": torch.is_grad_enabled,
    "the environment": lambda: dict(os.environ),
    "the working directory": os.getcwd,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the filters of warnings": lambda: list(warnings.filters),
    "the root logger": lambda: (logging.getLogger().level, list(logging.getLogger().handlers)),
    "the recursion limit": sys.getrecursionlimit,
    "sys.path": lambda: list(sys.path),
}
"""What is looked at, by name."""


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
