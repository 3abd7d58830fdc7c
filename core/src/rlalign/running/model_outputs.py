"""What models say of responses: asked for once, whoever needs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlalign.data.batch import Outputs, field_of
from rlalign.data.rollout import Rollout, own
from rlalign.interface.policy import Policy, Value
from rlalign.learning.engine import Engine
from rlalign.records.remembered import Remembered, scored_once
from rlalign.running.workspace import Workspace
from rlalign.world.ranks import here


class ModelOutputs:
    """Scores responses with the models of a phase, through its engine."""

    def __init__(self, engine: Engine, workspace: Workspace) -> None:
        self.engine = engine
        self.workspace = workspace
        self.models = workspace.models
        self._scored: WeakKeyDictionary[
            Rollout, dict[str, tuple[tuple[int, ...], dict[int, dict[str, Tensor]]]]
        ] = WeakKeyDictionary()
        self._stores: dict[str, Remembered] = {}

    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Each (weights' version, rollout, output) is computed once.

        What a process computed by itself is there for itself: the others would wait for it when all ask together.
        """
        held, weights = self._scored.setdefault(rollout, {}), self._weights(model)
        if model not in held or held[model][0] != weights:  # nobody asks for what others said
            held[model] = (weights, {})
        by_all, by_us = (held[model][1].setdefault(n, {}) for n in (here().count, here().size))
        missing = [name for name in want if name not in by_all and name not in by_us]
        if missing:
            outputs = self.engine.score(model, rollout, missing)
            by_us |= {name: getattr(outputs, field_of(name)) for name in missing}
        return Outputs(**{field_of(name): {**by_us, **by_all}[name] for name in want})

    def _weights(self, model: str) -> tuple[int, ...]:
        """The versions of what it computes with: its own, and that of the policy whose states a value reads."""
        asked = self.models[model]
        trunk = asked.trunk if isinstance(asked, Value) else None
        return (asked.version, *([] if trunk is None else [self.models[trunk].version]))

    def with_columns(self, rollout: Rollout, columns: Sequence[tuple[str, str]]) -> Rollout:
        """Add `model.output` columns; what the sampler gave of new responses is not computed again."""
        wanted: dict[str, list[str]] = {}
        for model, output in columns:
            if f"{model}.{output}" not in rollout.columns:
                wanted.setdefault(model, []).append(output)
        found: dict[str, Tensor] = {}
        for model, outputs in wanted.items():
            if model == "policy":
                known = [o for o in outputs if o in ("logprobs", "full_logprobs")]
                for output in known:
                    found[f"policy.{output}"] = self.policy_logprobs(rollout, output, as_it_is=True)
                outputs = [o for o in outputs if o not in known]
            if outputs:
                scored = self._outputs(rollout, model, outputs)
                found |= {f"{model}.{output}": x_NT for output, x_NT in scored.items()}
        return rollout.with_columns(**found) if found else rollout

    def policy_logprobs(
        self, rollout: Rollout, output: str = "logprobs", *, as_it_is: bool = False
    ) -> Tensor:
        """Log-probs of the policy that sampled: the sampling loop's, and where a row has none, one scoring. Those of a
        sampler elsewhere were scored at once.

        `as_it_is`: of the policy as it is now, so that a row from an earlier iteration is scored as well.
        """
        known_NT: Tensor = getattr(rollout, f"{output}_NT")
        if (own_NT := rollout.columns.get(own(output))) is not None:
            known_NT = torch.where(own_NT.isnan(), known_NT, own_NT)
        missing_N = (known_NT.isnan() & rollout.mask_NT).any(1)
        if as_it_is:
            missing_N |= ~rollout.new_N
        if not bool(missing_N.any()):
            return known_NT
        rows = missing_N.nonzero()[:, 0]
        scored = getattr(self.score("policy", rollout.take(rows), [output]), f"{output}_NT")
        return known_NT.index_copy(0, rows, scored.to(known_NT))

    def _outputs(self, rollout: Rollout, model: str, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of a model. What one that stays as it is says of a logged response is computed once per run."""
        logged_N = (rollout.logprobs_NT.isnan() & rollout.mask_NT).any(1)
        stays = isinstance(self.models[model], Policy) and model in self.models.guarded
        if not stays or not bool(logged_N.any()):
            scored = self.score(model, rollout, outputs)
            return {output: getattr(scored, field_of(output)) for output in outputs}
        stores = {output: self._remembered(model, output) for output in outputs}
        return scored_once(rollout, logged_N, stores, lambda part: self.score(model, part, outputs))

    def precision(self, model: str) -> list[str | None]:
        """What a model's numbers depend on beside its weights: the phase's type, the matrix products, its options."""
        recipe = self.models.recipes.get(model, {})
        return [self.engine.dtype, torch.get_float32_matmul_precision(), recipe.get("with")]

    def _remembered(self, model: str, output: str) -> Remembered:
        known = hashlib.sha256(json.dumps([self.models.guarded[model], *self.precision(model)]).encode())
        name = f"{model}.{output}-{known.hexdigest()[:16]}"
        if name not in self._stores:
            space = self.workspace
            self._stores[name] = Remembered(space.dir.path, space.logs, name, self.models.dtype)
        return self._stores[name]
