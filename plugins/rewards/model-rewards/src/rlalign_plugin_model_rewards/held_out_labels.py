"""How well a policy predicts what it did not learn from: labels, and which response of a pair is the better.

Legend: n examples, K labels, N responses, T steps, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rlalign import Component, ComponentError, Example, Rollout, Run, hookimpl
from rlalign_plugin_model_rewards.calibration import of_labels, of_pairs
from rlalign_plugin_model_rewards.classifier_policy import ClassifierPolicy


class LabelAccuracy(Component):
    """A metric for `evaluate.use`: how often a `sequence-classifier` gives the examples' logged label its largest
    probability (`accuracy`), and whether it is as sure as it should be (`ece` over 10 bins, `brier`, `nll`).
    """

    paper = "Chuan Guo et al., On calibration of modern neural networks, 2017"
    responses = "logged"

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        policy = run.models.policy
        if not isinstance(policy, ClassifierPolicy):
            raise ComponentError(
                f"`{self.name}` measures a `sequence-classifier`, and the policy is a {type(policy).__name__}"
            )
        examples = answered(rollout.examples, 1, "a logged response, the right label")
        label_n = policy.encode(
            [replace(e, responses=e.responses[:1], scores=(), finished=()) for e in examples]
        )
        every = [replace(e, responses=policy.labels, scores=(), finished=()) for e in examples]
        logprobs = run.score("policy", policy.encode(every), ["full_logprobs"]).full_logprobs_NT
        return of_labels(logprobs[:, 0].reshape(len(examples), -1), label_n.actions_NT[:, 0])


class PairAccuracy(Component):
    """A metric for `evaluate.use`: how often the policy finds the better of two logged responses more probable.

    Of groups of more than two, every better and worse. `ece` over 10 bins, `brier` and `nll` are of the probability
    σ(log π(better) − log π(worse)), which for a `sequence-scorer` is σ(r(better) − r(worse)).
    """

    paper = "Chuan Guo et al., On calibration of modern neural networks, 2017"
    responses = "logged"

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        examples = answered(rollout.examples, 2, "two logged responses or more")
        logged = run.models.policy.encode(examples)
        logprobs_NT = run.score("policy", logged, ["full_logprobs"]).full_logprobs_NT
        total_N = torch.where(logged.mask_NT, logprobs_NT, 0.0).double().sum(1).cpu()
        better, worse, first = [], [], 0
        for example in examples:
            if len(example.scores) != len(example.responses):
                raise ComponentError(
                    f"example `{example.id}` has responses without scores to compare them by"
                )
            for i, high in enumerate(example.scores):
                for j, low in enumerate(example.scores):
                    if high > low:
                        better.append(first + i)
                        worse.append(first + j)
            first += len(example.responses)
        if not better:
            raise ComponentError(f"`{self.name}`: no two responses to an example have different scores")
        return {**of_pairs(total_N[better] - total_N[worse]), "pairs": float(len(better))}


def answered(examples: Sequence[Example], least: int, what: str) -> list[Example]:
    """The examples, which all have so many responses."""
    lacking = next((e for e in examples if len(e.responses) < least), None)
    if lacking is not None:
        raise ComponentError(
            f"example `{lacking.id}` has {len(lacking.responses)} logged responses; needed: {what}"
        )
    return list(examples)
