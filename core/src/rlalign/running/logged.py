"""A phase's logged responses: as rollouts, and with a value computed for each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlalign.data.batch import Reward
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.records.columns import Columns, Compute
from rlalign.records.weights import fingerprint
from rlalign.running.models import Models
from rlalign.running.plan import PhasePlan


class LoggedResponses:
    """Reads the logged responses of examples; `columns` holds what was computed over the whole data."""

    def __init__(self, plan: PhasePlan, models: Models, columns: Columns) -> None:
        self.plan = plan
        self.models = models
        self.columns = columns

    def rollout(self, examples: Sequence[Example]) -> Rollout:
        """The examples' logged responses, with the scores stored with them and the columns of their rows."""
        for example in examples:
            if example.scores and len(example.scores) != len(example.responses):
                raise ComponentError(
                    f"example `{example.id}` has {len(example.responses)} responses and {len(example.scores)} scores"
                )
        rollout = self._attach(self.models.policy.encode(examples))
        scores = [s for e in examples for s in e.scores or [math.nan] * len(e.responses)]
        score_N = torch.tensor(scores, dtype=torch.float64).to(rollout.logprobs_NT)
        return rollout.with_columns(score=score_N)

    def column(
        self,
        name: str,
        compute: Compute,
        key: Sequence[str | int | float],
        data_fingerprint: Callable[[], str],
        scored: Callable[[Rollout], tuple[Rollout, Reward]],
    ) -> Tensor:
        """A value for every logged response of the data; from then on every rollout carries it."""

        def full_key() -> str:
            settings = self.plan.settings
            parts = {
                "data": data_fingerprint(),
                "task": [settings.task.component, settings.task.identity],
                # All of them: `compute` may score with any model, and a value reads its trunk.
                "models": {name: fingerprint(model) for name, model in sorted(self.models.items())},
                "rewards": [[i.component, i.identity, i.weight, i.name] for i in settings.rewards],
                "precision": [self.plan.settings.train.dtype, torch.get_float32_matmul_precision()],
                "key": [str(k) for k in key],
            }
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

        return self.columns.make(name, full_key, lambda examples: scored(self.rollout(examples)), compute)

    def _attach(self, rollout: Rollout) -> Rollout:
        first_G = torch.tensor([e.row for e in rollout.examples], device=rollout.group_N.device)
        if len(rollout) == 0 or bool((first_G < 0).any()):
            return rollout
        place_N = torch.arange(len(rollout), device=rollout.group_N.device)
        starts_G = torch.zeros_like(first_G).scatter_reduce(
            0, rollout.group_N, place_N, "amin", include_self=False
        )
        return self.columns.attach(rollout, first_G[rollout.group_N] + place_N - starts_G[rollout.group_N])
