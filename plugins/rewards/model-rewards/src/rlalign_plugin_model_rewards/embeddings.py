"""The cosine of two texts' embeddings. Legend: n rows, L tokens of the longest, C width."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from rlalign import ConfigError, RLAlignError, Rollout, Run, Score, hookimpl
from rlalign.data.limits import require_file
from rlalign_plugin_hf import hub
from rlalign_plugin_hf.faults import explained
from rlalign_plugin_hf.folders import LARGEST_JSON, local
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions
from rlalign_plugin_model_rewards.texts import texts_of

Pooling = Literal["mean", "cls", "last"]
POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # another length, and so the same cosine
}
"""What Sentence-Transformers calls them in `1_Pooling/config.json`: as `pooling_mode`, or behind that word."""


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
            "the model's `1_Pooling/config.json` says, else the mean",
        )
        prefix: str = Field(
            "", description="put before every text, where an encoder was trained so (`query: `)"
        )

    config: Config
    bounds = (-1.0, 1.0)
    paper = "Reimers and Gurevych 2019"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._pooling: Pooling | None = config.pooling
        if self._pooling is None and Path(local(str(config.path))).is_dir():
            self._pooling = pooling_of(str(config.path))

    def signature(self) -> str:
        # What a model named on the hub says is known once it is set up.
        return self.signed(f"to:{self.config.to}", f"pooling:{self._pooling or 'own'}")

    def anatomy(self, network: Any) -> Any:
        return network.get_encoder() if network.config.is_encoder_decoder else network

    def setup(self, run: Run) -> None:
        super().setup(run)
        source = str(self.config.path)
        if self._pooling is None:
            self._pooling = pooling_of(source)
        if self.config.max_tokens is None and (most := _longest(source)):
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
        assert self._pooling is not None
        states_nLC = self.forward(padded).last_hidden_state.float()
        return [x.clone() for x in pooled(states_nLC, padded.real_nL, self._pooling).cpu()]


def _cosine(text: str, mine_C: Tensor, other: str, theirs_C: Tensor) -> float:
    """0 where a text holds nothing: no likeness."""
    return float(mine_C @ theirs_C) if text.strip() and other.strip() else 0.0


def pooling_of(source: str) -> Pooling:
    """How a sentence encoder pools, by its files; the mean where they say nothing."""
    name = "1_Pooling/config.json"
    said = _said_in(source, name)
    flags = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    modes = said.get("pooling_mode") or [flag.removeprefix("pooling_mode_") for flag in flags]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{source}: its {name} says that it pools by {' and '.join(map(str, modes))}, and here there are `mean`, "
            "`cls` and `last`, one of them; take another encoder, or say with `pooling:` what may stand for it"
        )
    return POOLINGS[modes[0]]


def _longest(source: str) -> int | None:
    """Tokens that a Sentence-Transformers model was trained to read."""
    most = _said_in(source, "sentence_bert_config.json").get("max_seq_length")
    return most if isinstance(most, int) and most > 2 else None


def _said_in(source: str, name: str) -> dict[str, Any]:
    """What a JSON file of a model says, fetched for a name on the hub; nothing where the model has no such file."""
    folder = Path(local(source))
    try:
        file = folder / name if folder.is_dir() else hub.file_of(source, name)
        if file is None or not file.exists():
            return {}
        require_file(file, LARGEST_JSON)
        return dict(json.loads(file.read_text("utf-8")))
    except RLAlignError:
        raise
    except Exception as error:
        raise RLAlignError(explained(source, error, f"its {name} cannot be read")) from error
