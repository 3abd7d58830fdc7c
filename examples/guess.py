# guess.py, beside the pipeline
import torch
from pydantic import Field

from rlalign import Environment, Example, Options, Turn


class Guess(Environment):
    """A number is thought of; the answers are higher and lower."""

    class Config(Options):
        """Options of `Guess`."""

        most: int = Field(20, gt=1, description="the largest number")

    turns, tokens = 6, 256

    def examples(self, split):
        return [Example(f"{split}-{i}", "") for i in range(64)]

    def start(self, example, start, noise):
        secret = int(torch.randint(1, self.config.most + 1, (1,), generator=start))
        ask = f"I think of a number from 1 to {self.config.most}. Guess it. Say the number only."
        return Game(secret), Turn([{"role": "user", "content": ask}])


class Game:
    """One number."""

    def __init__(self, secret):
        self.secret = secret

    def step(self, text):
        if not text.strip().isdecimal():
            return Turn([{"role": "user", "content": "A number, please."}], reward=-0.2)
        if int(text) == self.secret:
            return Turn(reward=1.0, done=True, metrics={"found": 1.0})
        hint = "Higher." if int(text) < self.secret else "Lower."
        return Turn([{"role": "user", "content": hint}], reward=-0.05)
