"""What both studies of this folder play in: a lock, and blocks whose values are noisy; and what priors say of them."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor

from rlalign import Component, Environment, Episode, Example, Options, Run, Turn, hookimpl
from rlalign_plugin_toy_tasks import ToyBlocks, goal_pairs
from rlalign_plugin_toy_tasks.blocks import Position, distances

DIGITS = 8
"""Of the lock; its wheels have as many digits each, and an episode as many turns."""
LEAST, TIMES = 0.9, 20
"""A plan is good that is worth this much (the best is worth 1), and is found once so many in a row are good."""
PRIORS = {"p=.02": 0.02, "p=.125": 0.125, "p=.5": 0.5, "p=.9": 0.9}


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(crc32("/".join(map(str, key)).encode()))


# -- the lock ---------------------------------------------------------------------------------------------


def code(draw: str) -> list[int]:
    """The digits that open it."""
    return torch.randint(DIGITS, (DIGITS,), generator=generator("lock", draw)).tolist()


class LockOptions(Options):
    """Options of `lock` and of `worth`."""

    draw: str = Field("0", description="another name, other digits")
    pays: Literal["digits", "opening"] = Field(
        "digits", description="what pays: each right digit 1/8, or opening it 1"
    )

    def reward(self, wheel: int) -> float:
        """For the right digit of a wheel."""
        return 1 / DIGITS if self.pays == "digits" else float(wheel == DIGITS - 1)


class Lock(Environment):
    """One wheel after the other; a wrong digit turns all back, and there are as many turns as wheels."""

    class Config(LockOptions):
        """The same."""

    config: Config
    turns, tokens = DIGITS, 4 * DIGITS

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-0", "0")]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _Hand(self.config), Turn("0")


class _Hand:
    def __init__(self, config: Lock.Config) -> None:
        self.config, self.digits, self.wheel = config, code(config.draw), 0

    def step(self, text: str) -> Turn:
        if text != str(self.digits[self.wheel]):
            self.wheel = 0
            return Turn("0")
        paid, self.wheel = self.config.reward(self.wheel), self.wheel + 1
        return Turn(reward=paid, done=True) if self.wheel == DIGITS else Turn(str(self.wheel), paid)


def worth(pi_SHA: Tensor, config: LockOptions) -> float:
    """What a plan earns in the mean."""
    digits, to_come = code(config.draw), [0.0] * (DIGITS + 1)  # behind the last wheel there is nothing
    for h in reversed(range(DIGITS)):
        p = [float(pi_SHA[s, h, digit]) for s, digit in enumerate(digits)]
        right = [config.reward(s) + to_come[s + 1] for s in range(DIGITS)]
        to_come = [p[s] * right[s] + (1 - p[s]) * to_come[0] for s in range(DIGITS)] + [0.0]
    return to_come[0]


class Worth(Component):
    """What the plan is worth, exactly, after each episode; ends the phase once that is enough."""

    class Config(LockOptions):
        """Those of the lock."""

    config: Config
    good = 0

    @hookimpl(wrapper=True)
    def update(self, run: Run) -> Generator[None, Mapping[str, float], Mapping[str, float]]:
        metrics = yield
        table = run.models.policy.get_parameter("table").detach()
        found = worth(table.double().softmax(1).view(DIGITS, DIGITS, DIGITS), self.config)
        self.good = self.good + 1 if found >= LEAST else 0
        if self.good == TIMES:
            run.finish_phase(f"{TIMES} plans running were good")
        return {**metrics, "worth/plan": found}

    def state_dict(self) -> dict[str, Any]:
        return {"good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.good = state["good"]


def _lock_scores(draw: str, right: float, wrong: float | None = None) -> dict[str, dict[str, float]]:
    """Log-probs of a prior: `right` of the digit, and if it is said, `wrong` of the one after it."""
    scores = {}
    for wheel, digit in enumerate(code(draw)):
        said = {digit: right} | ({} if wrong is None else {(digit + 1) % DIGITS: wrong})
        rest = (1 - sum(said.values())) / (DIGITS - len(said))
        scores[str(wheel)] = {str(d): math.log(said.get(d, rest)) for d in range(DIGITS)}
    return scores


# -- blocks -----------------------------------------------------------------------------------------------


class NoisyBlocks(ToyBlocks):
    """`toy-blocks` whose values somebody sees with errors, always the same of a position."""

    class Config(ToyBlocks.Config):
        """Options of `noisy-blocks`; those of `toy-blocks` beside them."""

        noise: float = Field(0.0, ge=0, description="standard deviation of the error")
        draw: str = Field("0", description="another name, other errors")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        seen = {"noise": self.config.noise, "draw": self.config.draw}
        return [Example(one.id, one.prompt, meta={**one.meta, **seen}) for one in super().examples(split)]


def noisy_pairs(example: Example, transcript: Sequence[tuple[str, Turn]]) -> float:
    """`goal_pairs`, as it is seen."""
    at = transcript[-1][1].say
    error = torch.randn(1, generator=generator("value", example.meta["draw"], at))
    return goal_pairs(example, transcript) + example.meta["noise"] * float(error)


def _block_scores(draw: str, sign: int) -> dict[str, dict[str, float]]:
    """A policy that likes moves towards the goal (or away from it), with an error of its own on each."""
    far = distances(Position(("dcba",)))
    rng = generator("prior", draw)
    return {
        str(at): {
            move: -sign * far[to] + float(torch.randn(1, generator=rng)) for move, to in at.moves().items()
        }
        for at in far
    }


# -- what the studies ask for -----------------------------------------------------------------------------

components = {"lock": Lock, "worth": Worth, "noisy-blocks": NoisyBlocks}


def prepare(ground: Any) -> dict[str, float]:
    """Write the priors."""
    draw = str(ground.seed)
    if ground.world in ("digits", "opening"):
        made = {name: _lock_scores(draw, p) for name, p in PRIORS.items()} | {
            "wrong": _lock_scores(draw, 0.1 / 7, 0.9)
        }
    else:
        made = {name: _block_scores(draw, sign) for name, sign in (("right", 1), ("wrong", -1))}
    folder = ground.work / "priors" / f"{ground.world}-{draw}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, scores in made.items():
        (folder / f"{name}.json").write_text(json.dumps(scores))
    return {}


def of_run(run: Any) -> dict[str, float]:
    """Episodes until the plan is good and stays so, the cap where it never was; or the share of solved starts."""
    worths = [row["worth/plan"] for row in run.logged if "worth/plan" in row]
    if not worths:
        return {"solved": next(row["reward/played"] for row in run.logged if "reward/played" in row)}
    cap = run.pipeline["train"]["iterations"]
    worths += worths[-1:] * TIMES  # a run that ended keeps its plan
    good = [found >= LEAST for found in worths]
    first = next((i for i in range(len(good) - TIMES) if all(good[i : i + TIMES])), None)
    return {"episodes": float(cap if first is None else first + 1), "found": float(first is not None)}
