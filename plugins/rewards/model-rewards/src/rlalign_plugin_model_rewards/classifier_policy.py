"""A classifier as a policy: the text is the prompt, the response is one of the labels, a bandit.

Legend: N responses, G groups, M chosen steps, C width of the last layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from rlalign import ConfigError, Decoder, Example, Rollout, Value, logged_rollout
from rlalign_plugin_hf.value import ValueHead
from rlalign_plugin_model_rewards.text_policy import OneStep, TextPolicy, TextPolicyOptions
from rlalign_plugin_model_rewards.texts import Row, as_text


class ClassifierPolicy(TextPolicy):
    """π(label | text): a sequence classifier of transformers, whose every response is one label.

    `sft` on logged labels is training with cross-entropy; any reward of labels trains it as well.
    """

    class Config(TextPolicyOptions):
        """Options of `sequence-classifier`."""

        labels: tuple[str, ...] | None = Field(
            None,
            description="the labels, as responses name them; null: those that the folder's config.json names",
        )

        @field_validator("labels")
        @classmethod
        def _differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
            if labels is None:
                return None
            if len(labels) < 2:
                raise ValueError("name two labels or more")
            if any(label != label.strip() or not label for label in labels):
                raise ValueError("a label is a text without white space at its ends")
            if twice := next((name for name, times in Counter(labels).items() if times > 1), None):
                raise ValueError(f"`{twice}` is named twice")
            return labels

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.labels: tuple[str, ...] = ()

    def name_outputs(self, settings: Any, *, bare: bool) -> None:
        asked = self.config.labels
        if bare and asked is None:
            raise ConfigError(
                f"{self.config.path}: a bare model has no labels; name them: `labels: [no, yes]`"
            )
        if not bare:
            known = tuple(str(settings.id2label[i]) for i in range(settings.num_labels))
            if len(known) < 2:
                raise ConfigError(
                    f"{self.config.path}: gives one number a text, and has no labels to choose among"
                )
            if asked is not None and asked != known:
                raise ConfigError(
                    f"{self.config.path}: its last layer knows the labels {', '.join(known)}, and `labels` says "
                    f"{', '.join(asked)}; leave `labels` out, or begin with a bare encoder"
                )
            asked = known
        assert asked is not None
        self.labels, self.ends = asked, tuple(range(len(asked)))
        settings.id2label, settings.label2id = dict(enumerate(asked)), {x: i for i, x in enumerate(asked)}
        settings.problem_type = "single_label_classification"

    def twin(self) -> Self:
        made = super().twin()
        made.labels = self.labels
        return made

    def value(self) -> Value:
        made = ValueHead(ValueHead.Config())
        made.setup(self)
        return made

    # -- text and prompts ---------------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        rows = [self.reader.one(as_text(example.prompt)) for example in examples]
        return tuple(torch.tensor(row.ids, device=self.device) for row in rows)

    def _rows(self, inputs: Sequence[Tensor]) -> list[Row]:
        return [Row(ids := tuple(tokens.tolist()), (0,) * len(ids)) for tokens in inputs]

    def refuse(
        self, examples: Sequence[Example], responses: Collection[str] = ("sampled",)
    ) -> Mapping[int, str]:
        if "logged" in responses:
            for example in examples:
                for text in example.responses:
                    self._label(example, text)
        return {}

    def _label(self, example: Example, text: str) -> int:
        if text.strip() not in self.labels:
            raise ConfigError(
                f"example `{example.id}`: its response {text[:60]!r} is none of the labels {', '.join(self.labels)}"
            )
        return self.labels.index(text.strip())

    def encode(self, examples: Sequence[Example]) -> Rollout:
        rows = [([self._label(example, text)], True) for example in examples for text in example.responses]
        return logged_rollout(examples, self.prompts(examples), rows, like=self.output.weight)

    def text(self, actions_T: Tensor) -> str:
        return " ".join(self.labels[action] for action in actions_T.tolist())

    # -- the model ------------------------------------------------------------------------------------------

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        return OneStep(self.head(self.states(self._rows(inputs))).repeat_interleave(k, 0))

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        state_NC = self.states(self._rows(rollout.inputs))[rollout.group_N]
        state_MC = state_NC[rollout.chosen[0]]
        return torch.cat([state_MC, state_NC]) if last else state_MC

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(features)
        return logits
