"""What the tests of this folder share: a run in one line, and a count of what was sampled and scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlalign.interface.policy import Policy
from rlalign.learning.engine import Engine
from rlalign.running.loop import Session
from rlalign.testing import session

from .methods import METHODS

Runs = Callable[..., Session]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """runs(pipeline, **components): the session of a finished run."""

    def go(pipeline: Mapping[str, Any], name: str | None = None, **components: type[Any]) -> Session:
        known = {**METHODS, **{key.replace("_", "-"): cls for key, cls in components.items()}}
        started = session(tmp_path, pipeline, known, name=name)
        started.run()
        return started

    return go


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the policy sampled, and how often each output of each model was scored without a graph."""
    counted: Counter[str] = Counter()
    score, sample = Engine._score, Policy.sample

    def counted_score(self: Engine, model: str, rollout: Any, want: Any) -> Any:
        counted.update(f"{model}.{name}" for name in want)
        return score(self, model, rollout, want)

    def counted_sample(self: Policy, *arguments: Any) -> Any:
        counted["sample"] += 1
        return sample(self, *arguments)

    monkeypatch.setattr(Engine, "_score", counted_score)
    monkeypatch.setattr(Policy, "sample", counted_sample)
    return counted


def metrics(session: Session) -> list[dict[str, Any]]:
    """The iterations' lines of metrics.jsonl."""
    lines = map(json.loads, (session.dir.path / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "responses" in line]


def component(session: Session, name: str) -> Any:
    """The component object of this name."""
    return next(c for c in session.builder.built.values() if c.name == name)
