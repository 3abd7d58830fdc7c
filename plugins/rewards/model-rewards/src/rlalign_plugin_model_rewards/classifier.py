"""Sequence classifiers as rewards: how probable a label is of a response. Legend: n rows, C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from rlalign import ComponentError, Example, Rollout, Run, Score, hookimpl
from rlalign_plugin_hf.options import Kind
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions
from rlalign_plugin_model_rewards.texts import Row, Side, texts_of

Value = Literal["softmax", "sigmoid", "logit", "largest"]


def labels_of(said: Mapping[str, Any]) -> list[str]:
    """The names of a classifier's labels, as its config.json says them; transformers counts two unless it says."""
    named = said.get("id2label")
    if isinstance(named, Mapping) and named:
        return [str(named[key]) for key in sorted(named, key=int)]
    return [f"LABEL_{i}" for i in range(int(said.get("num_labels", 2)))]


def place_of(label: str | int, labels: Sequence[str]) -> int:
    """Which label is meant by a name, in whatever case, or by a number. Raises ValueError."""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    found = [i for i, name in enumerate(labels) if name.lower() == str(label).lower()]
    if len(found) != 1:
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise ValueError(f"the model has no label {label!r}; it has {known}")
    return found[0]


def valued(logits_C: Tensor, label: int, value: Value) -> float:
    """What a label's logit among all is taken as."""
    match value:
        case "softmax":
            return float(logits_C.softmax(0)[label])
        case "sigmoid":
            return float(logits_C[label].sigmoid())
        case "logit":
            return float(logits_C[label])
        case "largest":
            return float(int(logits_C.argmax()) == label)


class ClassifierOptions(ScorerOptions):
    """Options of all that a sequence classifier scores."""

    kind: ClassVar[Kind] = "classifier"


class SequenceClassifier(Scorer):
    """Base of what scores by a sequence classifier's logits.

    transformers reads a decoder-only classifier at the last token that is not the padding token, which is the wrong one
    where a text ends in a token that pads too. Here it is read at the last token of the row.
    """

    config: Any

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.labels: list[str] = []
        self._head: Any = None

    def setup(self, run: Run) -> None:
        super().setup(run)
        self.labels = labels_of(self.network.config.to_dict())
        head = getattr(self.network, "score", None)
        if isinstance(head, nn.Module) and not self.network.config.is_encoder_decoder:
            self._head = head
            self._require_own_pooling()

    def logits(self, rows: Sequence[Row]) -> list[Tensor]:
        """[C] of each row, in float32."""
        return self.over(rows, self._logits)

    def _logits(self, padded: Padded) -> list[Tensor]:
        if self._head is None:
            found_nC = self.forward(padded).logits
        else:
            trunk = getattr(self.network, self.network.base_model_prefix)
            states = trunk(input_ids=padded.ids_nL, attention_mask=padded.real_nL.long())
            last_n = padded.real_nL.sum(1) - 1
            rows_n = torch.arange(len(last_n), device=last_n.device)
            found_nC = self._head(states.last_hidden_state[rows_n, last_n])
        return list(found_nC.float().cpu())

    def _require_own_pooling(self) -> None:
        """Refuse a network whose score is not its head at the last token."""
        count = self.network.get_input_embeddings().num_embeddings
        ids = [i for i in range(min(8, count)) if i != self.filler]
        with torch.inference_mode():
            padded = Padded.of([Row(tuple(ids), (0,) * len(ids))], self.filler, self.network.device)
            own = (
                self.network(input_ids=padded.ids_nL, attention_mask=padded.real_nL.long())
                .logits[0]
                .float()
                .cpu()
            )
            mine = self._logits(padded)[0]
        if not torch.allclose(own, mine, rtol=1e-3, atol=1e-3 * float(own.abs().max().clamp_min(1))):
            raise ComponentError(
                f"{self.config.path}: a {type(self.network).__name__} does not score at the last token, and cannot be "
                "read here"
            )


class Classifier(SequenceClassifier):
    """How probable a sequence classifier takes a label to be of a response."""

    class Config(ClassifierOptions):
        """Options of `classifier`."""

        label: str | int | None = Field(
            None, description="the label that is scored, by name or number; null: the only one there is"
        )
        label_from: str | None = Field(
            None, description="key of an example's meta that holds its label, instead of one `label` for all"
        )
        value: Value = Field(
            "softmax",
            description="of the label's logit: `softmax` among all labels, `sigmoid`, the `logit` itself, or 1 where "
            "it is the `largest`, else 0",
        )
        context: str | None = Field(
            "prompt",
            description="what is read before the response: `prompt`, a key of the example's meta, or null: nothing",
        )
        pair: bool = Field(
            False, description="context and response as the tokenizer pairs two texts, instead of as one text"
        )
        separator: str = Field(
            "", description="between context and response as one text; may be a special token of the model"
        )
        truncation_side: Side = Field(
            "left",
            description="end that is cut of what is too long: of the context first, then of the response",
        )
        empty: float | None = Field(
            None, description="what a response without text scores; null: what the model says of it"
        )

        @model_validator(mode="after")
        def _one_label(self) -> Classifier.Config:
            if self.label is not None and self.label_from is not None:
                raise ValueError("say `label` or `label_from`, not both")
            return self

        def fits(self, said: dict[str, Any]) -> None:
            labels = labels_of(said)
            if self.label_from is None:
                label = _only(labels) if self.label is None else self.label
                place_of(label, labels)
            if len(labels) == 1 and self.value in ("softmax", "largest"):
                raise ValueError(
                    f"`value: {self.value}` of the only label is always 1; say `sigmoid` or `logit`"
                )

    config: Config
    paper = "Ramamurthy et al. 2023 (`learned_reward` of RL4LMs)"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bounds = (None, None) if config.value == "logit" else (0.0, 1.0)

    def signature(self) -> str:
        c = self.config
        label = c.label_from and f"meta.{c.label_from}"
        return self.signed(f"label:{label or c.label}", f"value:{c.value}", f"context:{c.context}")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        examples = rollout.answered
        rows = [self.row(e, text) for e, text in zip(examples, rollout.texts, strict=True)]
        found = [
            valued(logits_C, self._label(e), self.config.value)
            for e, logits_C in zip(examples, self.logits(rows), strict=True)
        ]
        if self.config.empty is not None:
            found = [
                self.config.empty if not text.strip() else x
                for x, text in zip(found, rollout.texts, strict=True)
            ]
        return Score(torch.tensor(found))

    def row(self, example: Example, response: str) -> Row:
        """What the model reads."""
        c = self.config
        if c.context is None:
            row: Row = self.reader.one(response)
            return row
        context = "\n".join(texts_of(example, c.context))
        if c.pair:
            row = self.reader.two(context, response)
        else:
            row = self.reader.joined(context, c.separator, response)
        return row

    def _label(self, example: Example) -> int:
        c = self.config
        try:
            if c.label_from is not None:
                if c.label_from not in example.meta:
                    raise ValueError(
                        f"there is none (its `meta` holds: {', '.join(example.meta) or 'nothing'})"
                    )
                return place_of(example.meta[c.label_from], self.labels)
            return _only(self.labels) if c.label is None else place_of(c.label, self.labels)
        except ValueError as error:
            of = "" if c.label_from is None else f"example `{example.id}`, meta.{c.label_from}: "
            raise ComponentError(f"{of}{error}") from None


def _only(labels: Sequence[str]) -> int:
    if len(labels) != 1:
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise ValueError(f"`label` is missing; the model has {known}")
    return 0
