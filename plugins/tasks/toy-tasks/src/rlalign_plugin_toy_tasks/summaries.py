"""A story of five or six sentences in, one sentence with its key facts out: summarisation in small.

Key facts are who did what to which thing, where, on which day, and how it made them feel. The story tells more:
how the thing looked, what the weather was like, where somebody else stayed. The writer of the logged summaries
leaves out facts, and mixes them up with what the story says of others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from pydantic import Field

from rlalign import Example
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.worlds import (
    ExactReward,
    World,
    happens,
    other_than,
)

_LEXICON = {
    "WHO": "anna | ben | carla | david | emma | frank | greta | henry",
    "DID": "bought | found | lost | painted | repaired | sold | broke | hid",
    "THING": "lamp | kite | basket | clock | drum | ladder | mirror | piano | boat | hat",
    "PLACE": "market | garden | harbour | station | castle | forest | library | museum",
    "DAY": "monday | tuesday | wednesday | thursday | friday | saturday | sunday",
    "FELT": "happy | tired | proud | sad | angry | surprised",
}
STORIES = Grammar(
    {
        "STORY": "WHEN ASIDE WENT DEED MOOD | WHEN WENT ASIDE DEED MOOD | WHEN WENT DEED ASIDE MOOD"
        " | ASIDE WHEN WENT DEED MOOD | WENT WHEN DEED MOOD ASIDE",
        "WHEN": "it was DAY . | this was on a DAY .",
        "ASIDE": "STAYED | STAYED WEATHER | WEATHER STAYED",
        "STAYED": "OTHER stayed in the ELSEWHERE . | OTHER slept in the ELSEWHERE .",
        "WEATHER": "the sky was SKY . | the air was SKY .",
        "WENT": "WHO walked to the PLACE . | WHO came to the PLACE .",
        "DEED": "there WHO DID a THING . | there WHO DID a LOOK THING .",
        "MOOD": "this made WHO FELT . | in the end WHO felt FELT .",
        **_LEXICON,
        "OTHER": _LEXICON["WHO"],
        "ELSEWHERE": _LEXICON["PLACE"],
        "LOOK": "red | small | heavy | wooden | new",
        "SKY": "grey | clear | cold | warm",
    }
)
SUMMARIES = Grammar(
    {
        "SUMMARY": "3 MAIN . | 2 on DAY MAIN . | MAIN on DAY .",
        "MAIN": "DEED | DEED and felt FELT",
        "DEED": "WHO DID a THING | WHO DID a THING in the PLACE",
        **_LEXICON,
    }
)
KINDS = {c[0]: kind for kind, choices in SUMMARIES.lexicon.items() for c in choices}
"""The words that are facts, each with its kind."""
NEEDED = ("WHO", "DID", "THING")
"""Facts without which there is no sentence."""
BESIDES = {"WHO": "OTHER", "PLACE": "ELSEWHERE"}
"""What a story says of others and can be mistaken for a fact."""

Facts = dict[str, str]


def facts(text: str) -> set[tuple[str, str]]:
    """What a summary says: its words that are facts, with their kinds."""
    return {(KINDS[word], word) for word in text.split() if word in KINDS}


def agreement(key: Mapping[str, str], text: str) -> float:
    """The facts that story and summary share, as a share of all that either has: what is left out costs, and what is
    made up costs as much."""
    told, said = set(key.items()), facts(text)
    return len(told & said) / len(told | said)


def write(told: Mapping[str, str], rng: random.Random) -> str:
    """A summary that holds exactly these facts, at random among those that do."""
    while True:
        shape = SUMMARIES.shape(rng)
        if {part for part in shape if part in SUMMARIES.lexicon} == told.keys():
            return " ".join(told.get(part, part) for part in shape)


class ToySummaries(World):
    """Sum up a story in one sentence."""

    paper = (
        "after Karl Moritz Hermann et al., Teaching machines to read and comprehend, 2015 (the news of CNN and Daily "
        "Mail)"
    )
    language = "toy-summaries"

    class Config(World.Config):
        """Options of `toy-summaries`."""

        references: int = Field(3, ge=0, description="references an example, in `meta`; they hold all facts")
        forgets: float = Field(
            0.35, ge=0, lt=1, description="how often the writer of the logged responses leaves out a fact"
        )
        mistakes: float = Field(
            0.15, ge=0, lt=1, description="how often the writer mixes up a fact that is not left out"
        )

    config: Config

    def example(self, id: str, rng: random.Random) -> Example:
        story, words = _story(rng)
        key = {kind: words[kind] for kind in _LEXICON}
        responses = [write(self._remembered(words, rng), rng) for _ in range(self.config.responses)]
        return Example(
            id=id,
            prompt=story,
            responses=tuple(responses),
            scores=tuple(agreement(key, response) for response in responses),
            meta={
                "language": self.language,
                "facts": key,
                "references": [write(key, rng) for _ in range(self.config.references)],
            },
        )

    def _remembered(self, words: Mapping[str, str], rng: random.Random) -> Facts:
        """The key facts as a careless reader has them in mind."""
        kept: Facts = {}
        for kind in _LEXICON:
            if kind not in NEEDED and happens(self.config.forgets, rng):
                continue
            kept[kind] = words[kind]
            if happens(self.config.mistakes, rng):
                kept[kind] = words[BESIDES[kind]] if kind in BESIDES else _another(kind, words[kind], rng)
        return kept


def _story(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A story, and the word that each of its symbols became, everywhere the same."""
    shape = STORIES.shape(rng)
    words = {symbol: STORIES.word(symbol, rng) for symbol in STORIES.lexicon}
    for kind, besides in BESIDES.items():
        words[besides] = _another(kind, words[kind], rng)
    return " ".join(words.get(part, part) for part in shape), words


def _another(kind: str, word: str, rng: random.Random) -> str:
    return other_than([c[0] for c in STORIES.choices[kind]], word, rng)


class ToyFacts(ExactReward):
    """Facts that a summary shares with its story, as a share of all that either has."""

    task = "toy-summaries"
    reads = "facts"
    language = SUMMARIES

    def value(self, example: Example, text: str) -> float:
        return agreement(example.meta["facts"], text)
