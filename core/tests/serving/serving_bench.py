"""Rewards of `served_rewards.py` in processes of their own, and something to ask them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlalign import Component, Example, Rollout
from rlalign.config.pipeline import Isolate, Item
from rlalign.data.rollout import logged_rollout
from rlalign.serving.host import Alone
from rlalign.serving.served import Served, served

HERE = Path(__file__).parent


def module() -> Any:
    if "served_rewards" not in sys.modules:
        spec = importlib.util.spec_from_file_location("served_rewards", HERE / "served_rewards.py")
        assert spec is not None and spec.loader is not None
        sys.modules["served_rewards"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["served_rewards"])
    return sys.modules["served_rewards"]


def item_of(name: str, isolate: Isolate | None = None, **options: Any) -> Item:
    cls = getattr(module(), name)
    return Item(
        name=name.lower(),
        component=f"served_rewards:{name}",
        options=cls.Config(**options),
        cls=cls,
        place="p.yaml:3",
        isolate=isolate,
    )


def real(name: str, **options: Any) -> Component:
    return item_of(name, **options).build()


@contextmanager
def isolated(name: str, *, options: dict[str, Any] | None = None, **limits: Any) -> Iterator[Any]:
    """A served reward; what it may do and how often it is asked are `limits`."""
    item = item_of(name, Isolate(**{"retries": 0, **limits}), **options or {})
    one: Served = served(item.build(), item, HERE, trust=True, seed=0)
    try:
        yield one
    finally:
        one.close()


def run(iteration: int = 0) -> Any:
    """A run as far as a served reward looks at it."""
    return Alone({"phase": "p", "repeat": 0, "iteration": iteration, "step": 0, "tick": iteration})


def rollout(texts: Sequence[str], samples: int = 1) -> Rollout:
    """Responses, `samples` to each example; a token is a character."""
    groups = [tuple(texts[i : i + samples]) for i in range(0, len(texts), samples)]
    examples = [
        Example(
            id=f"e{g}",
            prompt=[{"role": "user", "content": f"prompt {g}"}] if g % 2 else f"prompt {g} \ud800",
            responses=group,
            scores=(float("nan"),) * len(group),
            meta={
                "references": ["a", "b"][: g % 3],
                "weight": 0.1 * g,
                "pair": (1, [2.5, None]),
                "~": {3: "x"},
            },
        )
        for g, group in enumerate(groups)
    ]
    return logged_rollout(
        examples,
        [torch.tensor([g]) for g in range(len(groups))],
        [([*map(ord, text), 0], i % 2 == 0) for i, text in enumerate(texts)],
        like=torch.zeros(()),
    )
