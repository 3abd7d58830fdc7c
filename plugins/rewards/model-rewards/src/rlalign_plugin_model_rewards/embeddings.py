"""The cosine of two texts' embeddings. Legend: n rows, L tokens of the longest, C width."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from rlalign import Rollout, Run, Score, hookimpl
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions
from rlalign_plugin_model_rewards.texts import texts_of

Pooling = Literal["mean", "cls", "last"]
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}
"""What Sentence-Transformers writes into `1_Pooling/config.json`."""


def pooled(states_nLC: Tensor, real_nL: Tensor, pooling: Pooling) -> Tensor:
    """[n,C]: one state a text, of length one; padding on the right takes no part."""
    length_n = real_nL.sum(1)
    if pooling == "cls":
        found_nC = states_nLC[:, 0]
    elif pooling == "last":
        found_nC = states_nLC[torch.arange(len(length_n), device=length_n.device), length_n - 1]
    else:
        found_nC = torch.where(real_nL[..., None], states_nLC, 0.0).sum(1) / length_n[:, None]
    return normalize(found_nC, dim=-1)


class EmbeddingSimilarity(Scorer):
    """How near a response is to a reference, by the cosine of a sentence encoder's embeddings."""

    class Config(ScorerOptions):
        """Options of `embedding-similarity`."""

        to: str = Field(
            "references",
            description="what a response is compared with: `references` (the nearest), `prompt`, or a key of meta",
        )
        pooling: Pooling | None = Field(
            None,
            description="from tokens to a text: their `mean`, the first (`cls`), or the `last`; null: what "
            "`1_Pooling/config.json` in the model's folder says, else the mean",
        )
        prefix: str = Field(
            "", description="put before every text, where an encoder was trained so (`query: `)"
        )

    config: Config
    bounds = (-1.0, 1.0)
    paper = "Reimers and Gurevych 2019"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._pooling: Pooling = config.pooling or _said_by(Path(config.path)) or "mean"

    def signature(self) -> str:
        return self.signed(f"to:{self.config.to}", f"pooling:{self._pooling}")

    def anatomy(self, network: Any) -> Any:
        return network.get_encoder() if network.config.is_encoder_decoder else network

    def setup(self, run: Run) -> None:
        super().setup(run)
        if (most := _longest(Path(self.config.path))) and self.config.max_tokens is None:
            self.reader.longest = min(most, self.reader.longest or most)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        compared = [texts_of(e, self.config.to) for e in rollout.answered]
        others = [text for texts in compared for text in texts]
        known = dict(zip(others, self.embedded(others, remember=True), strict=True))
        found = [
            max(_cosine(text, mine_C, other, known[other]) for other in texts)
            for text, mine_C, texts in zip(
                rollout.texts, self.embedded(list(rollout.texts)), compared, strict=True
            )
        ]
        return Score(torch.tensor(found))

    def embedded(self, texts: Sequence[str], *, remember: bool = False) -> list[Tensor]:
        """[C] of each text."""
        rows = [self.reader.one(self.config.prefix + text) for text in texts]
        return self.over(rows, self._embedded, remember=remember)

    def _embedded(self, padded: Padded) -> list[Tensor]:
        states_nLC = self.forward(padded).last_hidden_state.float()
        return [x.clone() for x in pooled(states_nLC, padded.real_nL, self._pooling).cpu()]


def _cosine(text: str, mine_C: Tensor, other: str, theirs_C: Tensor) -> float:
    """0 where a text holds nothing: no likeness."""
    return float(mine_C @ theirs_C) if text.strip() and other.strip() else 0.0


def _said_by(folder: Path) -> Pooling | None:
    said = _json(folder / "1_Pooling" / "config.json")
    return next((pooling for key, pooling in POOLINGS.items() if said.get(key) is True), None)


def _longest(folder: Path) -> int | None:
    """Tokens that a Sentence-Transformers model was trained to read."""
    most = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return most if isinstance(most, int) and most > 2 else None


def _json(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        said = json.loads(file.read_text("utf-8"))
        return said if isinstance(said, dict) else {}
    return {}
