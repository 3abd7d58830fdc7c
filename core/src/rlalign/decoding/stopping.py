"""Stop strings: where a response ends because its text holds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


class Stops:
    """The strings that end a response, looked for in the text of its last tokens.

    What is found there counts if the whole text holds it too: the first token of a piece may read otherwise alone.
    """

    def __init__(self, strings: Sequence[str], text: Callable[[Tensor], str], least: int) -> None:
        self.strings = tuple(strings)
        self.text = text
        self.least = max(1, least)
        """Steps before which no response ends."""
        longest = max(map(len, self.strings), default=0)
        # A character may be four tokens of a byte each; the first of a piece may lack those before them.
        self.reach = 4 * longest + 8

    def length(self, actions_T: Tensor, seen: int) -> int | None:
        """The first length past `seen` at which the text holds a stop string; nothing ended it up to there."""
        first = max(seen + 1, self.least)
        if len(actions_T) < first:
            return None
        # Nobody has looked at what came before the least length.
        begin = max(0, first - 1 - self.reach) if seen >= self.least else 0
        if not self._in(actions_T[begin:]):
            return None
        return next((n for n in range(first, len(actions_T) + 1) if self._in(actions_T[:n])), None)

    def earlier(self, actions_T: Tensor, text: str) -> int | None:
        """The length at which an ended response should have ended already, by its whole text; None: there is none."""
        before = len(actions_T) - 1
        if before < self.least or not self._any(text) or not self._in(actions_T[:before]):
            return None
        return next(n for n in range(self.least, before + 1) if self._in(actions_T[:n]))

    def cut(self, text: str) -> str:
        """A text up to what stops it."""
        places = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    def _in(self, actions_T: Tensor) -> bool:
        return self._any(self.text(actions_T))

    def _any(self, text: str) -> bool:
        return any(stop in text for stop in self.strings)
