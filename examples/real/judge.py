"""What the run is judged by and learns nothing from: a sentence encoder, and the first model's surprise."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlalign import Component, Rollout, Run, Score, hookimpl
from rlalign.data.settings import Role
from rlalign_plugin_model_rewards.embeddings import EmbeddingSimilarity

KIND = (
    "Thank you so much for your kindness.",
    "You did a wonderful job, and I am grateful.",
    "I am here for you, and I believe in you.",
    "What a lovely idea, I am so happy for you.",
    "Take all the time you need, I understand.",
    "Do not worry, it can happen to anyone.",
)
UNKIND = (
    "This is your fault, and you should be ashamed.",
    "That was a terrible job, and I am disappointed.",
    "I do not care about you or your problems.",
    "What a stupid idea, it will never work.",
    "Hurry up, you are wasting my time.",
    "Stop complaining and leave me alone.",
)


class Kindness(EmbeddingSimilarity):
    """How much nearer a response is to kind sentences than to unkind ones, by their mean cosines."""

    bounds = (-2.0, 2.0)

    def signature(self) -> str:
        return self.signed("kind sentences less unkind ones")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        kind_KC, unkind_KC = (torch.stack(self.embedded(texts, remember=True)) for texts in (KIND, UNKIND))
        said_NC = torch.stack(self.embedded(list(rollout.texts)))
        return Score((said_NC @ kind_KC.T).mean(1) - (said_NC @ unkind_KC.T).mean(1))


class StartPerplexity(Component):
    """The perplexity of the responses under the first model: how natural it finds them."""

    models: Mapping[str, Role] = {"reference": "frozen"}
    needs = ("reference.full_logprobs",)

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> dict[str, float]:
        logprobs_NT = rollout.columns["reference.full_logprobs"]
        return {self.name: float((-logprobs_NT[rollout.mask_NT].double().mean()).exp())}
