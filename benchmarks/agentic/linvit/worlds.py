"""What both studies of this folder play in: a lock, and blocks whose values are noisy; and what priors say of them."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from pydantic import Field

from rlalign import Component, Environment, Episode, Example, Options, Run, Turn, hookimpl
from rlalign_plugin_toy_tasks import ToyBlocks, goal_pairs
from rlalign_plugin_toy_tasks.blocks import Position, distances

DIGITS = 8
"""Of the lock; its wheels have as many digits each, and an episode as many turns."""
LEAST, TIMES = 0.9, 20
"""A plan is good that opens the lock this often, and is found once so many in a row are good."""
PRIORS = {"p=.02": 0.02, "p=.125": 0.125, "p=.5": 0.5, "p=.9": 0.9}


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(crc32("/".join(map(str, key)).encode()))


# -- the lock ---------------------------------------------------------------------------------------------


def code(draw: str) -> list[int]:
    """The digits that open it."""
    return torch.randint(DIGITS, (DIGITS,), generator=generator("lock", draw)).tolist()


class Lock(Environment):
    """One wheel after the other; a wrong digit turns all back, and there are as many turns as wheels."""

    class Config(Options):
        """Options of `lock`."""

        draw: str = Field("0", description="another name, other digits")

    config: Config
    turns, tokens = DIGITS, 4 * DIGITS

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(f"{split}-0", "0")]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _Hand(code(self.config.draw)), Turn("0")


class _Hand:
    def __init__(self, digits: Sequence[int]) -> None:
        self.digits, self.wheel = digits, 0

    def step(self, text: str) -> Turn:
        if text != str(self.digits[self.wheel]):
            self.wheel = 0
            return Turn("0")
        self.wheel += 1
        return Turn(reward=1.0, done=True) if self.wheel == DIGITS else Turn(str(self.wheel))


class Opens(Component):
    """How often the plan opens the lock, exactly, after each episode; ends the phase once that is often enough."""

    class Config(Options):
        """Options of `opens`."""

        draw: str = Field("0", description="that of the lock")

    config: Config
    good = 0

    @hookimpl(wrapper=True)
    def update(self, run: Run) -> Generator[None, Mapping[str, float], Mapping[str, float]]:
        metrics = yield
        table = run.models.policy.get_parameter("table").detach()
        pi_SHA = table.double().softmax(1).view(DIGITS, DIGITS, DIGITS)
        opens = math.prod(float(pi_SHA[i, i, digit]) for i, digit in enumerate(code(self.config.draw)))
        self.good = self.good + 1 if opens >= LEAST else 0
        if self.good == TIMES:
            run.finish_phase(f"the lock was opened in {TIMES} plans running")
        return {**metrics, "opens/share": opens}

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

components = {"lock": Lock, "opens": Opens, "noisy-blocks": NoisyBlocks}


def prepare(ground: Any) -> dict[str, float]:
    """Write the priors."""
    draw = str(ground.seed)
    if ground.world == "lock":
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
    share = [row["opens/share"] for row in run.logged if "opens/share" in row]
    if not share:
        return {"solved": next(row["reward/played"] for row in run.logged if "reward/played" in row)}
    cap = run.pipeline["train"]["iterations"]
    good = [value >= LEAST for value in share] + [
        share[-1] >= LEAST
    ] * TIMES  # a run that ended keeps its plan
    first = next((i for i in range(len(share)) if all(good[i : i + TIMES])), None)
    return {"episodes": float(cap if first is None else first + 1), "found": float(first is not None)}
