"""How well language models predict texts: responses under a frozen model, references under the policy.

Legend: n rows, L tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from rlalign import Component, ConfigError, Example, Options, Rollout, Run, Score, hookimpl, logged_rollout
from rlalign_plugin_hf.causal import CausalLM
from rlalign_plugin_hf.options import Kind
from rlalign_plugin_model_rewards.scorer import Padded, Scorer, ScorerOptions


def perplexity_of(nll: float) -> float:
    """exp of a mean −log p, infinite where that overflows."""
    return math.exp(nll) if nll < 700 else math.inf


class Perplexity(Scorer):
    """How surprised a frozen language model is by each token of a response: fluency, lower is better.

    `corpus` is the perplexity of all responses' tokens together, each token counting once.
    """

    class Config(ScorerOptions):
        """Options of `perplexity`."""

        kind: ClassVar[Kind] = "causal"
        value: Literal["perplexity", "nll"] = Field(
            "perplexity", description="exp of the mean −log p of a token, or `nll`, that mean itself"
        )
        prompt: bool = Field(
            True,
            description="whether the model reads the prompt first; too much of it is cut at its beginning",
        )

    config: Config
    higher_is_better = False
    paper = "Jelinek et al. 1977"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bounds = (0.0 if config.value == "nll" else 1.0, None)

    def signature(self) -> str:
        return self.signed(f"value:{self.config.value}", f"prompt:{'yes' if self.config.prompt else 'no'}")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        means = [total / count for total, count in self._totals(rollout)]
        if self.config.value == "perplexity":
            means = [perplexity_of(nll) for nll in means]
        return Score(torch.tensor(means, dtype=torch.float64))

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        if not (found := self._totals(rollout)):
            return {}
        nll = math.fsum(total for total, _ in found) / sum(count for _, count in found)
        return {"corpus": nll if self.config.value == "nll" else perplexity_of(nll)}

    def _totals(self, rollout: Rollout) -> list[tuple[float, int]]:
        """−log p of each response, and of how many tokens."""
        contexts = [self.reader.context(e.prompt if self.config.prompt else None) for e in rollout.examples]
        groups = rollout.group_N.tolist()
        rows = [self.reader.after(contexts[g], text) for g, text in zip(groups, rollout.texts, strict=True)]
        # No token to predict: as though one had been guessed among all.
        guessed = math.log(self.network.get_input_embeddings().num_embeddings)
        there = [row for row in rows if row.scored]
        found = dict(zip(there, self.over(there, self._nll, self.budget, remember=True), strict=True))
        return [(found[row], row.scored) if row.scored else (guessed, 1) for row in rows]

    def _nll(self, padded: Padded) -> list[float]:
        logprobs_nLV = self.forward(padded).logits[:, :-1].float().log_softmax(-1)
        chosen_nL = logprobs_nLV.gather(2, padded.ids_nL[:, 1:, None])[..., 0].double().cpu()
        ends = [len(row.ids) - 1 for row in padded.rows]
        return [
            -float(chosen_L[end - row.scored : end].sum())
            for row, end, chosen_L in zip(padded.rows, ends, chosen_nL, strict=True)
        ]


def windows(
    tokens: Sequence[int], begin: Sequence[int], longest: int, stride: int
) -> list[tuple[list[int], list[int]]]:
    """A long text cut into (context, targets), so that every token is a target once.

    At most `stride` targets a window, after as much of the text before them as the model reads. What `begin` holds
    stands before the text; where that is nothing, the first token is no target.
    """
    whole = [*begin, *tokens]
    at, made = max(1, len(begin)), []
    while at < len(whole):
        # The first window holds as many targets as there is room for: nothing stands before it that could be read.
        end = min(len(whole), longest if at == max(1, len(begin)) else at + stride)
        start = max(0, end - longest)
        made.append((whole[start:at], whole[at:end]))
        at = end
    return made


class ReferencePerplexity(Component):
    """How well the policy still predicts the references as plain text: what it forgets, lower is better.

    As RL4LMs does: all references one after the other, read through windows that each score their last tokens.
    """

    class Config(Options):
        """Options of `reference-perplexity`."""

        stride: int = Field(
            512, gt=0, description="tokens that a window scores; fewer: more context for each, and more work"
        )
        window: int | None = Field(
            None, gt=1, description="tokens of a window; null: what the model's positions allow, at most 1024"
        )
        separator: str = Field("\n\n", description="between two references; RL4LMs puts two line ends")

        @model_validator(mode="after")
        def _leaves_context(self) -> ReferencePerplexity.Config:
            if self.window is not None and self.stride >= self.window:
                raise ValueError("`stride` must be less than `window`: a window's first token is context")
            return self

    config: Config
    higher_is_better = False
    bounds = (1.0, None)
    paper = "Ramamurthy et al. 2023 (`causal_perplexity` of RL4LMs)"

    def signature(self) -> str:
        return f"stride:{self.config.stride}|window:{self.config.window or 'model'}"

    def setup(self, run: Run) -> None:
        policy = run.models.policy
        if not isinstance(policy, CausalLM):
            raise ConfigError(
                f"`{self.name}` reads references as plain text, which takes a `causal-lm` for a policy; `held-out` "
                "measures any policy on them as answers to their prompts"
            )
        self._longest(policy)

    def _longest(self, policy: CausalLM) -> int:
        room = policy.positions.room(0)
        asked = self.config.window or min(1024, room or 1024)
        if room is not None and asked > room:
            raise ConfigError(f"`window: {asked}` is more than the model's {room} positions")
        return asked

    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> Mapping[str, float]:
        policy = run.models.policy
        assert isinstance(policy, CausalLM)
        texts = [text for e in rollout.examples for text in e.references]
        if not texts:
            raise ConfigError(f"`{self.name}` reads references, and {rollout.examples[0].without_references}")
        tokenizer = policy.tokenizer
        tokens = tokenizer(
            self.config.separator.join(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        )["input_ids"]
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        longest = self._longest(policy)
        stride = min(self.config.stride, longest - 1)
        cut = windows(tokens, begin, longest, stride)
        if not cut:
            raise ConfigError(f"`{self.name}`: the references hold no token that could be predicted")
        read = logged_rollout(
            [Example(f"window {i}", "", responses=("",)) for i in range(len(cut))],
            [torch.tensor(context, device=policy.device) for context, _ in cut],
            [(targets, False) for _, targets in cut],
            like=next(policy.parameters()),
        )
        logprobs_NT = run.score("policy", read, ["full_logprobs"]).full_logprobs_NT
        count = int(read.mask_NT.sum())
        nll = -float(torch.where(read.mask_NT, logprobs_NT, 0.0).double().sum()) / count
        return {"perplexity": perplexity_of(nll), "nll": nll, "tokens": float(count)}
