"""What is run: the record's configurations as pipelines. A row is a configuration, a method and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """The work of one configuration: an iteration samples `episodes` of `length` tokens each to one prompt of
    `prompt` tokens, and learns from them for `epochs` epochs of `minibatches` optimiser steps."""

    model: str
    episodes: int
    prompt: int
    length: int
    minibatches: int
    epochs: int
    lr: float
    kl: float = 0.02
    refresh: int = 100
    """Iterations between NLPO's refreshes of its mask."""
    first: int = 0
    """The prompt counts from here."""

    @property
    def tokens(self) -> int:
        """An iteration's."""
        return self.episodes * self.length

    @property
    def steps(self) -> int:
        """An iteration's optimiser steps."""
        return self.minibatches * self.epochs


# The record cuts an iteration's tokens into minibatches of 64 (S: 16), drawn from all episodes. Here minibatches
# are whole episodes, as many as the record has: of 3 to 4 episodes in A, 1 to 2 in B, 6 to 7 in LC. Only S, with
# 8 episodes, has 8 where the record has 10.
WORKS = {
    "A": Work("gpt2_tiny", episodes=64, prompt=10, length=20, minibatches=20, epochs=5, lr=1e-4),
    "B": Work("gpt2_tiny", episodes=32, prompt=20, length=50, minibatches=25, epochs=5, lr=1e-4),
    "A-s2s": Work("s2s_tiny", episodes=64, prompt=10, length=20, minibatches=20, epochs=5, lr=1e-4),
    "B-s2s": Work("s2s_tiny", episodes=32, prompt=20, length=50, minibatches=25, epochs=5, lr=1e-4),
    "S": Work("gpt2_small_shape", 8, prompt=10, length=20, minibatches=8, epochs=1, lr=1e-5, first=1),
    "LC": Work(
        "gpt2_tiny_lm", 64, prompt=4, length=10, minibatches=10, epochs=4, lr=1e-3, kl=0.002, refresh=5
    ),
}
METHODS = ("ppo", "nlpo")


def pipeline(work: Work, method: str, models: Path, *, iterations: int, seed: int = 0) -> dict[str, Any]:
    """The pipeline file of a row."""
    algorithm: dict[str, Any] = {"preset": "rl4lms"}
    if method == "nlpo":
        algorithm |= {"mode": "paper", "top_p": 0.9, "min_keep": 100, "refresh": work.refresh}
    policy = {"path": str(models / work.model), "init": "random", "seed": 0}
    if work.model == "gpt2_tiny_lm":
        policy |= {"init": "pretrained"}
    return {
        "task": {
            "toy-numbers": {
                "prompt": " ".join(str(work.first + i) for i in range(work.prompt)),
                "size": 50,
            }
        },
        "policy": {"seq2seq-lm" if work.model == "s2s_tiny" else "causal-lm": policy},
        "rewards": [
            {"increasing-numbers": {"min_tokens": work.length}},
            {"kl": {"coef": work.kl, "target": 2.0, "controller": "rl4lms"}},
        ],
        "algorithm": {method: algorithm},
        "models": {"value": {"value-head": {"trunk": "own"}}},
        # The end is banned until the last token: every episode is as long as the record's.
        "generation": {"samples": 1, "min_new_tokens": work.length, "max_new_tokens": work.length},
        "train": {
            "iterations": iterations,
            "prompts": work.episodes,
            "epochs": work.epochs,
            "minibatches": work.minibatches,
            "lr": work.lr,
            "clip": 0.5,
            "weight_decay": 1e-6,
        },
        "seed": seed,
        "device": "cpu",
    }
