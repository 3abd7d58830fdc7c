"""BERTScore: each token's nearest token in the other text, by an encoder's states.

Legend: n rows, L tokens of the longest, h and r tokens of a response and a reference, C width of a state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rlalign import ConfigError, Rollout, Run, Score, hookimpl
from rlalign_plugin_hf.loading import open_config
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions
from rlalign_plugin_model_rewards.texts import Row, texts_of

LAYERS = {
    "albert-base-v2": 9,
    "albert-large-v2": 14,
    "albert-xlarge-v2": 13,
    "albert-xxlarge-v2": 8,
    "bart-base": 6,
    "bart-large": 10,
    "bart-large-cnn": 10,
    "bart-large-mnli": 11,
    "bert-base-chinese": 8,
    "bert-base-multilingual-cased": 9,
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "deberta-base": 9,
    "deberta-base-mnli": 9,
    "deberta-large": 16,
    "deberta-large-mnli": 18,
    "deberta-v2-xlarge": 10,
    "deberta-v2-xlarge-mnli": 17,
    "deberta-v2-xxlarge": 21,
    "deberta-v2-xxlarge-mnli": 22,
    "deberta-xlarge": 18,
    "deberta-xlarge-mnli": 40,
    "distilbert-base-multilingual-cased": 5,
    "distilbert-base-uncased": 5,
    "distilroberta-base": 5,
    "electra-base-discriminator": 9,
    "electra-large-discriminator": 14,
    "longformer-base-4096": 7,
    "longformer-large-4096": 14,
    "mpnet-base": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "scibert_scivocab_cased": 9,
    "scibert_scivocab_uncased": 8,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
    "xlnet-base-cased": 5,
    "xlnet-large-cased": 7,
}
"""The layer whose states agree best with people on WMT16, as bert-score 0.3.13 lists it, by the model's name."""
SPACED = ("bart", "deberta", "gpt2", "longformer", "roberta")
"""Model types whose tokens tell the start of a word by the space before it: a text gets one, as in bert-score."""
COUNTED = 10_000
"""Examples at most whose references the inverse document frequencies are taken of."""


class Embedded(NamedTuple):
    """A text's tokens: their states, of length one, and what each weighs; special tokens weigh nothing."""

    states: Tensor
    weights: Tensor


class Found(NamedTuple):
    """Precision, recall and F1 (Zhang et al. 2020, 3)."""

    precision: float
    recall: float
    f1: float


def greedy(response: Embedded, reference: Embedded) -> Found:
    """Each token's largest cosine with any of the other text, a weighted mean over tokens (eqs. of 3).

    Special tokens have no weight, though a token may be nearest to one, as in bert-score. 0 where a text has no token.
    """
    if not bool(response.weights.sum() > 0) or not bool(reference.weights.sum() > 0):
        return Found(0.0, 0.0, 0.0)
    cosine_hr = response.states @ reference.states.T
    precision = float((cosine_hr.amax(1) * response.weights).sum() / response.weights.sum())
    recall = float((cosine_hr.amax(0) * reference.weights).sum() / reference.weights.sum())
    total = precision + recall
    return Found(precision, recall, 2 * precision * recall / total if total else 0.0)


def inverse_frequencies(texts: Sequence[Iterable[int]]) -> tuple[dict[int, float], float]:
    """log((N+1)/(df+1)) of each token over N texts, and what any other gets (Zhang et al. 2020, 3)."""
    counts = Counter(token for text in texts for token in set(text))
    most = math.log(len(texts) + 1)
    return {token: most - math.log(count + 1) for token, count in counts.items()}, most


def layer_of(path: str, layer: int | None, said: Mapping[str, Any]) -> int:
    """The layer whose states are compared. Raises ValueError."""
    names = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
    deepest = next((said[name] for name in names if isinstance(said.get(name), int)), None)
    named = [PurePath(str(name)).name.lower() for name in (path, said.get("_name_or_path") or "")]
    found = layer or next((LAYERS[name] for name in named if name in LAYERS), None)
    if found is None:
        last = "" if deepest is None else f", from 1 to {deepest}"
        raise ValueError(
            f"`layer` is missing: {path} is not in the published table; say which one is compared{last}"
        )
    if deepest is not None and found > deepest:
        raise ValueError(f"`layer: {found}`: the model has {deepest}")
    return found


class BERTScore(Scorer):
    """How near each token of a response is to one of a reference and the other way round, by an encoder's states."""

    class Config(ScorerOptions):
        """Options of `bert-score`."""

        layer: int | None = Field(
            None,
            gt=0,
            description="the layer whose states are compared; null: the published one of this model",
        )
        value: Literal["f1", "precision", "recall"] = Field(
            "f1", description="which of the three is the score"
        )
        to: str = Field(
            "references",
            description="what a response is compared with: `references`, `prompt`, or a key of meta",
        )
        idf: bool = Field(
            False,
            description="weigh tokens by how rare they are in the references of `split`, instead of alike",
        )
        split: str = Field(
            "train", description="the split whose references `idf` counts: its first 10,000 examples"
        )
        baseline: tuple[float, float, float] | None = Field(
            None,
            description="precision, recall and F1 of unrelated texts, from bert-score's baseline files: each score b "
            "becomes (x − b) / (1 − b); null: as it is",
        )

        def fits(self, said: dict[str, Any]) -> None:
            layer_of(str(self.path), self.layer, said)
            if self.baseline is not None and max(self.baseline) >= 1:
                raise ValueError("`baseline`: each is below 1")

    config: Config
    paper = "Zhang et al. 2020"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bounds = (-1.0, 1.0) if config.baseline is None else (None, 1.0)
        self._layer = 0
        self._spaced = False
        self._weights: tuple[dict[int, float], float] = ({}, 1.0)
        self._marks: frozenset[int] = frozenset()

    def signature(self) -> str:
        c = self.config
        layer = c.layer or LAYERS.get(PurePath(str(c.path)).name.lower()) or "auto"
        rescaled = "no" if c.baseline is None else "yes"
        return self.signed(f"layer:{layer}", f"idf:{c.split if c.idf else 'no'}", f"rescaled:{rescaled}")

    def open_config(self) -> Any:
        """Only as many layers as are needed: the states are those of the last one then, as in bert-score."""
        settings = open_config(self.config, self.config.kind)
        try:
            self._layer = layer_of(str(self.config.path), self.config.layer, settings.to_dict())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._spaced = settings.model_type in SPACED
        # What the configuration lists for each layer, such as its kind of attention, is cut with the layers.
        whole = settings.num_hidden_layers
        lists = {k: v for k, v in settings.to_dict().items() if isinstance(v, list) and len(v) == whole}
        for name in lists.keys() - {"architectures"}:
            setattr(settings, name, lists[name][: self._layer])
        settings.num_hidden_layers = self._layer
        return settings

    def anatomy(self, network: Any) -> Any:
        return network.get_encoder() if network.config.is_encoder_decoder else network

    def setup(self, run: Run) -> None:
        super().setup(run)
        tokenizer = self.reader.tokenizer
        ends = (
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
        self._marks = frozenset(token for token in ends if token is not None)
        if self.config.idf:
            self._count(run)

    def _count(self, run: Run) -> None:
        c = self.config
        examples = run.task.examples(c.split)
        first = [examples[i] for i in range(min(COUNTED, len(examples)))]
        texts = [self.row(text).ids for e in first for text in texts_of(e, c.to)]
        self._weights = inverse_frequencies(texts)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        compared = [texts_of(e, self.config.to) for e in rollout.answered]
        references = [text for texts in compared for text in texts]
        known = dict(zip(references, self.embedded(references, remember=True), strict=True))
        responses = self.embedded(list(rollout.texts))
        best = [
            _best([greedy(response, known[text]) for text in texts])
            for response, texts in zip(responses, compared, strict=True)
        ]
        found = [self._rescaled(each) for each in best]
        named = {name: torch.tensor([getattr(each, name) for each in found]) for name in Found._fields}
        value = named.pop(self.config.value)
        return Score(value, metrics=named)

    def embedded(self, texts: Sequence[str], *, remember: bool = False) -> list[Embedded]:
        """Each text's tokens."""
        return self.over([self.row(text) for text in texts], self._embedded, remember=remember)

    def row(self, text: str) -> Row:
        """What the encoder reads of a text."""
        kept = text.strip()
        row: Row = self.reader.one(f" {kept}" if self._spaced and kept else kept)
        return row

    def _embedded(self, padded: Padded) -> list[Embedded]:
        states_nLC = torch.nn.functional.normalize(
            self.forward(padded).last_hidden_state.float(), dim=-1
        ).cpu()
        return [
            # A copy: a view would keep the whole pass.
            Embedded(states_LC[: len(row.ids)].clone(), self._weighed(row.ids))
            for row, states_LC in zip(padded.rows, states_nLC, strict=True)
        ]

    def _weighed(self, ids: Collection[int]) -> Tensor:
        known, otherwise = self._weights
        return torch.tensor([0.0 if token in self._marks else known.get(token, otherwise) for token in ids])

    def _rescaled(self, found: Found) -> Found:
        if self.config.baseline is None:
            return found
        return Found(*((x - b) / (1 - b) for x, b in zip(found, self.config.baseline, strict=True)))


def _best(found: Sequence[Found]) -> Found:
    """The largest of each over several references."""
    return Found(*(max(each[i] for each in found) for i in range(3)))
