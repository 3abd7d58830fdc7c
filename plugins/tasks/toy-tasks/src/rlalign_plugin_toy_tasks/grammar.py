"""Small languages without recursion: a sampler and an exact recogniser, made from the same rules.

A rule names a symbol (capitals) and lists what it may become, `|` between the choices. Everything else is a
word. A number in front of a choice is its weight; without one it weighs 1.

    Grammar({"NOTE": "GREETING NAME | 3 GREETING", "GREETING": "hello | good day", "NAME": "anna | ben"})
"""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

Choice = tuple[str, ...]


State: TypeAlias = "tuple[Choice, int, list[State], int]"
"""A sentence being shaped: parts that are certain now, how many of them are symbols, where one may go from here
(as often as its weight says), and how many ways those are. A plain tuple: it is taken apart millions of times."""


class Grammar:
    """The language of the first rule's symbol."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        self.start = next(iter(rules))
        self.choices: dict[str, list[Choice]] = {}
        self._urns: dict[str, list[Choice]] = {}
        for symbol, rule in rules.items():
            parsed = [_choice(text) for text in rule.split("|")]
            self.choices[symbol] = [choice for _, choice in parsed]
            self._urns[symbol] = [choice for weight, choice in parsed for _ in range(weight)]
        self.lexicon = {s: c for s, c in self.choices.items() if all(map(self._is_word, c))}
        """The symbols that become one word, whatever they become."""

    def _is_word(self, choice: Choice) -> bool:
        return len(choice) == 1 and choice[0] not in self.choices

    @property
    def words(self) -> list[str]:
        """The vocabulary, in alphabetical order."""
        parts = {part for choices in self.choices.values() for choice in choices for part in choice}
        return sorted(parts - self.choices.keys())

    # -- sampling -------------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> str:
        """A sentence, each choice taken by its weight."""
        return " ".join(self.fill(self.shape(rng), rng))

    def shape(self, rng: random.Random) -> list[str]:
        """A sentence as a row of words and lexicon symbols: what each symbol becomes is left open."""
        return list(self._shape(rng)[0])

    def _shape(self, rng: random.Random) -> tuple[Choice, int]:
        """A shape, and how many symbols are in it."""
        # `Random.random` is the one method whose numbers Python promises to keep between versions.
        draw = rng.random
        row, symbols, ways, count = self._start
        while count:
            parts, more, ways, count = ways[int(draw() * count)]
            row += parts
            symbols += more
        return row, symbols

    def fill(self, shape: Sequence[str], rng: random.Random) -> list[str]:
        """A word for every symbol of a shape."""
        draw, urns = rng.random, self._words
        return [(urn := urns[part])[int(draw() * len(urn))] if part in urns else part for part in shape]

    def sample_from(
        self, beginnings: Container[str], words: int, rng: random.Random
    ) -> tuple[str, str] | None:
        """A sentence in two pieces, the first of so many words; None if that is none of these beginnings.

        Either way it takes the same random numbers as `sample`, but of a sentence that is not wanted only the
        beginning is written.
        """
        shape, symbols = self._shape(rng)
        first = shape[:words]
        beginning = " ".join(self.fill(first, rng))
        if beginning in beginnings:
            return beginning, " ".join(self.fill(shape[words:], rng))
        draw = rng.random
        for _ in range(symbols - sum(map(self.lexicon.__contains__, first))):
            draw()
        return None

    def word(self, symbol: str, rng: random.Random) -> str:
        """One of the words of a lexicon symbol."""
        return self.fill([symbol], rng)[0]

    @cached_property
    def _words(self) -> dict[str, list[str]]:
        return {symbol: [word for (word,) in self._urns[symbol]] for symbol in self.lexicon}

    @cached_property
    def _start(self) -> State:
        """Without recursion what may be left to write at some point is one of few rows: each is a state."""
        known: dict[Choice, State] = {}

        def state(left: Choice) -> State:
            if left not in known:
                certain = 0
                while certain < len(left) and (
                    left[certain] in self.lexicon or left[certain] not in self.choices
                ):
                    certain += 1
                rest = left[certain + 1 :]
                urn = self._urns[left[certain]] if certain < len(left) else ()
                parts = left[:certain]
                ways = [state(choice + rest) for choice in urn]
                known[left] = parts, sum(part in self.lexicon for part in parts), ways, len(ways)
            return known[left]

        list(self._inside_out())
        return state((self.start,))

    # -- recognising ----------------------------------------------------------------------------------

    def accepts(self, text: str) -> bool:
        """Whether the words of a text are a sentence of the language."""
        return self._pattern.fullmatch("".join(f"{word} " for word in text.split())) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self._regex(self.start))

    def _regex(self, part: str) -> str:
        """Without recursion a grammar is a regular expression: every symbol is written out in place."""
        if part not in self.choices:
            return re.escape(part) + " "
        choices = ("".join(map(self._regex, choice)) for choice in self.choices[part])
        return f"(?:{'|'.join(choices)})"

    # -- counting -------------------------------------------------------------------------------------

    @cached_property
    def lengths(self) -> dict[str, tuple[int, int]]:
        """The fewest and the most words each symbol can become."""
        found: dict[str, tuple[int, int]] = {}
        for symbol in self._inside_out():
            spans = [[found.get(part, (1, 1)) for part in choice] for choice in self.choices[symbol]]
            found[symbol] = (
                min(sum(low for low, _ in span) for span in spans),
                max(sum(high for _, high in span) for span in spans),
            )
        return found

    def derivations(self) -> int:
        """In how many ways the start symbol can be written out: at least as many as there are sentences."""
        found: dict[str, int] = {}
        for symbol in self._inside_out():
            total = 0
            for choice in self.choices[symbol]:
                ways = 1
                for part in choice:
                    ways *= found.get(part, 1)
                total += ways
            found[symbol] = total
        return found[self.start]

    def _inside_out(self) -> Iterator[str]:
        """Every symbol after those it is made of. A symbol made of itself would be recursion."""
        done: set[str] = set()
        open_: list[str] = []

        def visit(symbol: str) -> Iterator[str]:
            if symbol in open_:
                raise ValueError(f"{symbol} is made of itself; these grammars have no recursion")
            if symbol in done:
                return
            open_.append(symbol)
            for choice in self.choices[symbol]:
                for part in choice:
                    if part in self.choices:
                        yield from visit(part)
            open_.pop()
            done.add(symbol)
            yield symbol

        yield from visit(self.start)


def _choice(text: str) -> tuple[int, Choice]:
    first, *rest = text.split() or [""]
    if first.isdigit():
        return int(first), tuple(rest)
    return 1, (first, *rest) if first else ()
