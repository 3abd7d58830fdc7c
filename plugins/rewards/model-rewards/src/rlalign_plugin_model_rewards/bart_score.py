"""BARTScore: how probable an encoder–decoder takes a text to be, given another. Legend: n rows, T targets, V words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from rlalign import Example, Rollout, Score, hookimpl
from rlalign_plugin_hf.options import Kind
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions
from rlalign_plugin_model_rewards.texts import texts_of

IGNORED = -100
"""A target that counts for nothing, as transformers writes it."""


class BARTScore(Scorer):
    """The mean log-probability of a target's tokens given a source, by an encoder–decoder."""

    class Config(ScorerOptions):
        """Options of `bart-score`."""

        kind: ClassVar[Kind] = "seq2seq"
        direction: Literal["prompt-to-response", "reference-to-response", "response-to-reference", "both"] = (
            Field(
                "prompt-to-response",
                description="source to target: faithfulness, precision or recall; `both`: the mean of the last two",
            )
        )
        source: str = Field(
            "prompt", description="the source of `prompt-to-response`: `prompt`, or a key of meta"
        )

    config: Config
    bounds = (None, 0.0)
    paper = "Yuan et al. 2021"

    def signature(self) -> str:
        return self.signed(f"direction:{self.config.direction}")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        pairs = [
            self._pairs(example, text) for example, text in zip(rollout.answered, rollout.texts, strict=True)
        ]
        asked = [pair for each in pairs for way in each for pair in way]
        known = dict(zip(asked, self.scores(asked), strict=True))
        found = [max(math.fsum(known[pair] for pair in way) / len(way) for way in each) for each in pairs]
        return Score(torch.tensor(found))

    def _pairs(self, example: Example, text: str) -> list[list[tuple[str, str]]]:
        """For each reference, or the prompt: the (source, target) whose mean counts."""
        direction = self.config.direction
        if direction == "prompt-to-response":
            return [[("\n".join(texts_of(example, self.config.source)), text)]]
        ways = []
        for reference in texts_of(example, "references"):
            forth, back = (reference, text), (text, reference)
            both = direction == "both"
            ways.append([forth, back] if both else [forth if direction == "reference-to-response" else back])
        return ways

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of each (source, target). Where either holds nothing: as though each token had been guessed among all."""
        rows = [
            self.reader.one(source)._replace(target=self.reader.one(target).ids) for source, target in pairs
        ]
        guessed = -math.log(self.network.get_input_embeddings().num_embeddings)
        whole = [row for row, pair in zip(rows, pairs, strict=True) if all(map(str.strip, pair))]
        known = dict(zip(whole, self.over(whole, self._means), strict=True))
        return [
            known[row] if all(map(str.strip, pair)) else guessed
            for row, pair in zip(rows, pairs, strict=True)
        ]

    def _means(self, padded: Padded) -> list[float]:
        targets = [torch.tensor(row.target) for row in padded.rows]
        labels_nT = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        labels_nT = labels_nT.to(padded.ids_nL.device)
        logprobs_nTV = self.forward(padded, labels=labels_nT).logits.float().log_softmax(-1)
        chosen_nT = logprobs_nTV.gather(2, labels_nT.clamp_min(0)[..., None])[..., 0]
        real_nT = labels_nT != IGNORED
        total_n = torch.where(real_nT, chosen_nT, 0.0).double().sum(1)
        means: list[float] = (total_n / real_nT.sum(1)).tolist()
        return means
