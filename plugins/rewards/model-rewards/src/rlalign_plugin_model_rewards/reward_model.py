"""Reward models: a sequence classifier of one logit, trained on which of two responses people like better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from rlalign import ComponentError, ConfigError, Rollout, Run, Score, hookimpl
from rlalign_plugin_model_rewards.classifier import ClassifierOptions, SequenceClassifier, labels_of
from rlalign_plugin_model_rewards.pairs import ReadsPairs


def gain_and_bias(scores: Sequence[float]) -> tuple[float, float]:
    """g and b with which g·r + b has mean 0 and standard deviation 1 over these (Ziegler et al. 2019, 2.2)."""
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / len(scores))
    if not deviation > 1e-6 * max(1.0, abs(mean)):
        raise ValueError(f"their scores do not differ ({len(scores)} of {mean:.4g})")
    return 1 / deviation, -mean / deviation


class RewardModel(SequenceClassifier):
    """What a reward model says of a response to its prompt."""

    class Config(ReadsPairs, ClassifierOptions):
        """Options of `reward-model`."""

        normalise: int = Field(
            0,
            ge=0,
            description="references of so many first examples of `split` get mean 0 and standard deviation 1; 0: the "
            "score is as the model gives it",
        )
        split: str = Field("train", description="the split whose references they are")
        empty: float | None = Field(
            None, description="what a response without text scores; null: what the model says of it"
        )

        def fits(self, said: dict[str, Any]) -> None:
            if (count := len(labels_of(said))) != 1:
                raise ValueError(
                    f"{self.path}: has {count} labels, and a reward model has one; use `classifier`, which takes one "
                    "of several"
                )

    config: Config
    paper = "Stiennon et al. 2020; Ziegler et al. 2019 (gain and bias)"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.gain, self.bias = 1.0, 0.0

    def signature(self) -> str:
        return self.signed(f"reads:{self.config.reads or 'auto'}", f"normalise:{self.config.normalise}")

    def setup(self, run: Run) -> None:
        super().setup(run)
        if len(self.labels) != 1:
            raise ConfigError(
                f"{self.config.path}: has {len(self.labels)} labels, and a reward model has one"
            )
        if self.config.reads == "chat" and self.reader.tokenizer.chat_template is None:
            raise ConfigError(
                f"{self.config.path}: `reads: chat`, and its tokenizer has no chat template; say `reads: pair`"
            )
        if self.config.normalise:
            self._normalise(run)

    def _normalise(self, run: Run) -> None:
        c = self.config
        examples = run.task.examples(c.split)
        first = [examples[i] for i in range(min(c.normalise, len(examples)))]
        rows = [c.row(self.reader, e, reference) for e in first for reference in e.references]
        if not rows:
            raise ConfigError(
                f"`normalise: {c.normalise}` goes by references, and the examples of `{c.split}` have none"
            )
        try:
            self.gain, self.bias = gain_and_bias([float(x) for x in self.logits(rows)])
        except ValueError as error:
            raise ComponentError(f"`normalise` by the references of `{c.split}`: {error}") from None

    def state_dict(self) -> dict[str, Any]:
        return {"gain": self.gain, "bias": self.bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.gain, self.bias = float(state["gain"]), float(state["bias"])

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        c, answers = self.config, zip(rollout.answered, rollout.texts, strict=True)
        rows = [c.row(self.reader, example, text) for example, text in answers]
        raw_N = torch.tensor([float(x) for x in self.logits(rows)])
        value_N = self.gain * raw_N + self.bias
        if self.config.empty is not None:
            without_N = torch.tensor([not text.strip() for text in rollout.texts])
            value_N = torch.where(without_N, self.config.empty, value_N)
        return Score(value_N, metrics={"raw": raw_N} if self.config.normalise else {})
