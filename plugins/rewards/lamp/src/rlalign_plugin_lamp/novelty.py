"""`novelty`: what was seldom seen pays more. Legend: S steps, K heads, C width of an embedding, X of what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, computed_field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from rlalign import Component, ConfigError, Options, Rollout, Run, Score, hookimpl
from rlalign_plugin_function_reward.source import FunctionPath, digests
from rlalign_plugin_lamp.embedding import WIDTH, Embedder
from rlalign_plugin_lamp.seen import Described, observations, paid

HEADS = 10
"""As many as the published code has."""


class Novelty(Component):
    """After each turn, how new what was seen is. Only finished iterations count as seen."""

    paper = "Ademi Adeniji et al., Language Reward Modulation for Pretraining Reinforcement Learning, 2023"

    class Config(Options):
        """Options of `novelty`."""

        of: FunctionPath | None = Field(
            None,
            description="a function from a list of what the environment says to a list of what is counted, or of "
            "captions; null: what it says",
        )
        kind: Literal["counts", "disagreement"] = Field(
            "counts",
            description="`counts`: 1/√(1 + earlier visits); `disagreement`: how far ten linear heads are apart that "
            "predict the next caption's embedding",
        )
        model: FunctionPath | None = Field(
            None,
            description="disagreement: a function from a list of texts to a matrix with a row for each; null: a bag of "
            "words in 256 places",
        )

        @model_validator(mode="after")
        def _fits(self) -> Novelty.Config:
            if self.kind == "counts" and self.model is not None:
                raise ValueError("`model` belongs to `kind: disagreement`")
            return self

        @computed_field(description="a hash of both functions' code: other code is another reward")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.of, self.model])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.seen: Counter[str] = Counter()
        self.heads: Heads | None = None

    def setup(self, run: Run) -> None:
        c = self.config
        if digests([c.of, c.model]) != c.digest:
            raise ConfigError(
                f"`{self.name}`: a function's file has changed since the run was prepared; start again"
            )
        self._run, self._of, self._embed = run, Described(c.of), Embedder(c.model)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        episodes = self._of(observations(rollout, self.name))
        if self.config.kind == "counts":
            return Score(
                paid(rollout, [[(1 + self.seen[what]) ** -0.5 for what in one[1:]] for one in episodes])
            )
        read_SX = self._read(rollout, episodes)
        if self.heads is None:
            self.heads = self._heads(read_SX.shape[1])
        found = iter(self.heads.disagreement(read_SX).tolist())
        return Score(paid(rollout, [[next(found) for _ in one[1:]] for one in episodes]))

    @hookimpl
    def iteration_done(self, rollout: Rollout) -> None:
        if not bool(rollout.new_N.any()):
            return
        rollout = rollout.take(rollout.new_N)  # the others were seen when they were new
        episodes = self._of(observations(rollout, self.name))
        if self.config.kind == "counts":
            self.seen.update(what for one in episodes for what in one[1:])
        elif self.heads is not None:
            self.heads.learn(self._read(rollout, episodes))

    def _heads(self, width: int) -> Heads:
        return Heads(width, self._run.rng(self.name, "heads"))

    def _read(self, rollout: Rollout, episodes: Sequence[Sequence[str]]) -> Tensor:
        """[S,X] of all turns: the caption before and what the policy said, each of length one."""
        steps = [
            (before, said)
            for one, row in zip(episodes, rollout.columns["transcript"], strict=True)
            for before, (said, _) in zip(one, row, strict=False)
        ]
        texts = list(dict.fromkeys(text for step in steps for text in step))
        places = {text: place for place, text in enumerate(texts)}
        unit_nC = normalize(self._embed(texts, width=WIDTH), dim=-1)
        return torch.stack([unit_nC[[places[a], places[b]]].flatten() for a, b in steps])

    def state_dict(self) -> dict[str, Any]:
        precision = {} if self.heads is None else {"precision": self.heads.precision_XX}
        return {"seen": dict(self.seen), **precision}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = Counter(state["seen"])
        self.heads = None
        if "precision" in state:
            self.heads = self._heads(len(state["precision"]))
            self.heads.precision_XX = state["precision"].clone()


class Heads:
    """Linear heads, each with first weights of its own, all fitted to the same steps by ridge regression towards those.

    A head's weights are W = (Σ y xᵀ + W₀)(Σ x xᵀ + 1)⁻¹. All have Σ y xᵀ in common, and how far they are apart does not
    depend on it: with linear heads, what came next never moves their disagreement, only how often its like was met.
    So the embeddings of what came next are not kept.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        self.first_KCX = torch.randn(HEADS, width // 2, width, generator=generator, dtype=torch.float64)
        self.precision_XX = torch.eye(width, dtype=torch.float64)

    def disagreement(self, read_SX: Tensor) -> Tensor:
        """[S]"""
        solved_XS = torch.linalg.solve(self.precision_XX, read_SX.T)
        return disagreement((self.first_KCX @ solved_XS).transpose(1, 2))

    def learn(self, read_SX: Tensor) -> None:
        """Fit them to further steps."""
        self.precision_XX = self.precision_XX + read_SX.T @ read_SX


def disagreement(predicted_KSC: Tensor) -> Tensor:
    """[S]: the standard deviation over heads, of which a mean over dimensions is taken."""
    return predicted_KSC.std(0, correction=0).mean(-1)
