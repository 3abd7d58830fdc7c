"""A reward model as a policy: it chooses among the responses that an example brings, π(y) ∝ exp r(x, y).

Legend: N responses, G groups, K responses of a group, V the most of any group, M chosen steps, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlalign import (
    ComponentError,
    ConfigError,
    Constraint,
    Decoder,
    Example,
    Rollout,
    Sampling,
    Value,
    logged_rollout,
)
from rlalign.decoding.interfaces import Finished
from rlalign_plugin_model_rewards.pairs import ReadsPairs
from rlalign_plugin_model_rewards.text_policy import OneStep, TextPolicy, TextPolicyOptions
from rlalign_plugin_model_rewards.texts import Row

NOBODY = -1
"""Stands behind a short row."""


class ScorerPolicy(TextPolicy):
    """A reward model in training: r(x, y) of prompt and response, from a sequence classifier with one number.

    As a policy it chooses among the responses of an example, with probabilities ∝ exp r: log π(y) − log π(z) is
    r(y) − r(z), and −log π of the better of two is the loss of Bradley and Terry.
    """

    class Config(ReadsPairs, TextPolicyOptions):
        """Options of `sequence-scorer`."""

    config: Config

    def name_outputs(self, settings: Any, *, bare: bool) -> None:
        if not bare and settings.num_labels != 1:
            raise ConfigError(
                f"{self.config.path}: has {settings.num_labels} labels, and a reward model has one; begin with a bare "
                "encoder or language model, which gets a new last layer"
            )
        settings.num_labels = 1
        settings.problem_type = "regression"

    # -- text and prompts ---------------------------------------------------------------------------------

    def refuse(
        self, examples: Sequence[Example], responses: Collection[str] = ("sampled",)
    ) -> Mapping[int, str]:
        why = "it brings no responses, and a reward model chooses among those"
        return {i: why for i, example in enumerate(examples) if not example.responses}

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """[K,2,L] of each: the tokens of its prompt with each of its responses, and which text each belongs to."""
        return tuple(self._candidates(example) for example in examples)

    def _candidates(self, example: Example) -> Tensor:
        if not example.responses:
            raise ComponentError(
                f"example `{example.id}` brings no responses, and a reward model chooses among those"
            )
        c = self.config
        rows = [c.row(self.reader, example, text) for text in example.responses]
        width = max(len(row.ids) for row in rows)
        padded = [[[*part, *[NOBODY] * (width - len(part))] for part in (row.ids, row.types)] for row in rows]
        return torch.tensor(padded, device=self.device)

    def encode(self, examples: Sequence[Example]) -> Rollout:
        rows = [([j], True) for example in examples for j in range(len(example.responses))]
        return logged_rollout(examples, self.prompts(examples), rows, like=self.output.weight)

    def text(self, actions_T: Tensor) -> str:
        """Which response it is; `sample` puts the response itself there."""
        return " ".join(f"response {action + 1}" for action in actions_T.tolist())

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,  # all end at once: there is nothing to tell early
    ) -> Rollout:
        rollout = super().sample(examples, how, uniforms, within)
        chosen = zip(rollout.answered, rollout.actions_NT[:, 0].tolist(), strict=True)
        texts = tuple(example.responses[action] for example, action in chosen)
        return replace(rollout, texts=texts, finished_N=torch.ones_like(rollout.finished_N))

    # -- the model ------------------------------------------------------------------------------------------

    def scores(self, inputs: Sequence[Tensor]) -> Tensor:
        """[G,V]: r of each response of each group, −∞ where a group has no more."""
        rows = [_row(candidate) for group in inputs for candidate in group.tolist()]
        score_n = self.output(self.states(rows))[:, 0]
        sizes = [len(group) for group in inputs]
        parts = score_n.split(sizes)
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=-math.inf)

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        return OneStep(self.scores(inputs).repeat_interleave(k, 0))

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        score_NV = self.scores(rollout.inputs)[rollout.group_N]
        score_MV = score_NV[rollout.chosen[0]]
        return torch.cat([score_MV, score_NV]) if last else score_MV

    def head(self, features: Tensor) -> Tensor:
        return features

    def value(self) -> Value:
        return OwnScore(OwnScore.Config())


class OwnScore(Value):
    """r of the response itself, as the policy gives it: a value without weights of its own."""

    trunk = "policy"

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        assert features is not None
        action_N = rollout.actions_NT[:, 0]
        action_M = action_N[rollout.chosen[0]]
        own = torch.cat([action_M, action_N]) if last else action_M
        return features.gather(1, own[:, None])[:, 0]


def _row(candidate: Sequence[Sequence[int]]) -> Row:
    ids, types = candidate
    length = ids.index(NOBODY) if NOBODY in ids else len(ids)
    return Row(tuple(ids[:length]), tuple(types[:length]))
