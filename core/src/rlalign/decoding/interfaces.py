"""What the sampling loop asks of a policy, of its decoder and of a constraint, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from rlalign.data.example import Example, Prompt
from rlalign.data.rollout import Rollout


class Decoder(Protocol):
    """Generation in progress: one row a response, the rows of a prompt side by side."""

    def logits(self) -> Tensor:
        """[n,V] for the next step."""

    def advance(self, tokens_n: Tensor) -> None:
        """Take one token a row."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""


class Constraint(Protocol):
    """Narrows what may be sampled; its state moves with the sampler's rows.

    One that reads models has a method `resolve(models)` too, called once they are there.
    """

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        """Begin k responses per prompt."""

    def allowed(self) -> Tensor:
        """[n,V] bool for the next step, before the learner's own temperature, top-k and top-p.

        Where `min_new_tokens`, or an episode's choices, ban all of them, a method `instead(banned_nV)` says what is
        allowed in their place.
        """

    def advance(self, tokens_n: Tensor) -> None:
        """Take one token a row."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""


class Decodable(Protocol):
    """What the sampling loop asks of a policy."""

    ends: tuple[int, ...]
    horizon: int | None
    at_once: int | None
    """How many responses it gives at once, where more did not fit; set by the loop."""

    def row_bytes(self, tokens: int) -> float | None: ...
    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]: ...
    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder: ...
    def text(self, actions_T: Tensor) -> str: ...
    def check_row(self, example: Example, prompt: int, response: int, remedy: str) -> None: ...
    def given(self, say: Prompt, closed: bool) -> Tensor: ...
    def words(self, choices: Sequence[str]) -> Sequence[Sequence[int]]: ...


Finished = Callable[[Rollout], None]
"""Is told of whole groups once all their responses have ended: each group once, several at a time."""
