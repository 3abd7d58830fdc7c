"""`alignment`: how well what has changed in an episode fits what its instruction asks for."""

from __future__ import annotations

from functools import cached_property

import torch
from pydantic import Field, computed_field

from rlalign import Component, ComponentError, ConfigError, Options, Rollout, Run, Score, hookimpl
from rlalign_plugin_function_reward.source import FunctionPath, digests
from rlalign_plugin_lamp.embedding import Embedder, alignment
from rlalign_plugin_lamp.seen import Described, begun, observations, paid


class Alignment(Component):
    """After each turn, the cosine of (caption now − caption at first) with the instruction."""

    paper = "Ademi Adeniji et al., Language Reward Modulation for Pretraining Reinforcement Learning, 2023"

    class Config(Options):
        """Options of `alignment`."""

        caption: FunctionPath | None = Field(
            None,
            description="a function from a list of what the environment says to a list of captions, "
            "`my_file.py:captions`; null: what it says is the caption",
        )
        model: FunctionPath | None = Field(
            None,
            description="a function from a list of texts to a matrix with a row for each; null: a bag of words",
        )
        instruction: str = Field(
            "instruction", description="the key of an example's `meta` that says what is asked"
        )

        @computed_field(description="a hash of both functions' code: other code is another reward")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.caption, self.model])

    config: Config

    def setup(self, run: Run) -> None:
        c = self.config
        if digests([c.caption, c.model]) != c.digest:
            raise ConfigError(
                f"`{self.name}`: a function's file has changed since the run was prepared; start again"
            )
        self._caption, self._embed = Described(c.caption), Embedder(c.model)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        asked = [self._asked(rollout, g) for g in rollout.group_N.tolist()]
        captions = self._caption(observations(rollout, self.name))
        texts = list(dict.fromkeys([*asked, *(text for episode in captions for text in episode)]))
        places = {text: place for place, text in enumerate(texts)}
        embedded_nC = self._embed(texts)
        compared = [
            (places[first], places[now], places[instruction])
            for instruction, first, (_, *episode) in zip(
                asked, begun(rollout, captions), captions, strict=True
            )
            for now in episode
        ]
        first_n, now_n, asked_n = torch.tensor(compared).view(-1, 3).long().T
        found_n = alignment(embedded_nC[first_n], embedded_nC[now_n], embedded_nC[asked_n])
        values = found_n.split([len(episode) - 1 for episode in captions])
        return Score(paid(rollout, [value_t.tolist() for value_t in values]))

    def _asked(self, rollout: Rollout, group: int) -> str:
        example = rollout.examples[group]
        asked = example.meta.get(self.config.instruction)
        if not isinstance(asked, str) or not asked.strip():
            raise ComponentError(
                f"example `{example.id}` has no text under `{self.config.instruction}` in its `meta` (which holds: "
                f"{', '.join(example.meta) or 'none'}); `{self.name}` compares what has changed with that"
            )
        return asked
