"""An environment: a task whose examples begin episodes of several turns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator

from rlalign.data.example import Example
from rlalign.data.turn import Episode, Turn
from rlalign.interface.component import Task


class Environment(Task):
    """A task that starts episodes; its `examples` are what they start from.

    It draws from the two generators it is given and from nothing else, so that the same start plays the same game.
    """

    turns: int = 8
    """Responses of the longest episode. Its last one ends it: that is a rule of the game."""
    tokens: int = 512
    """Tokens of the longest episode after its prompt, those it is told included. An episode that needs more is cut."""

    replays: bool = True
    """The same start, noise and texts give the same turns. If not, what comes back is written down, and an iteration
    that is done again takes it from there."""
    rewrites: bool = False
    """Each turn's `say` is the whole next prompt and each response a row of its own, and no `tokens` limit it."""

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        """Begin an episode: the game, and what the policy reads first. Without `say` that is the example's prompt.

        `start` is the same for all samples of a prompt, which are compared with each other: what it decides they
        have in common, their first turn above all. `noise` is each one's own.
        """
        raise NotImplementedError

    def start_all(
        self, examples: Sequence[Example], starts: Sequence[Generator], noises: Sequence[Generator]
    ) -> Sequence[tuple[Episode, Turn]]:
        """Begin several episodes; all at once, where that helps."""
        return [self.start(*each) for each in zip(examples, starts, noises, strict=True)]

    def step_all(self, episodes: Sequence[Episode], texts: Sequence[str]) -> Sequence[Turn]:
        """What comes back for the responses that ended at one moment, in their order; all at once, where that helps."""
        return [episode.step(text) for episode, text in zip(episodes, texts, strict=True)]
