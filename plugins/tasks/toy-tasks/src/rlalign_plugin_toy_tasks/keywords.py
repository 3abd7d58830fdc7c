"""Two to four keywords in, a sentence that holds them all out: CommonGen in small, for encoder-decoders.

The logged responses are a careless writer's, who now and then forgets a keyword: what is learned from them is
grammatical and incomplete, and leaves something to align. The references in `meta` forget nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from rlalign import Example
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.worlds import ExactReward, World, shuffled

KEYWORDS = Grammar(
    {
        "SENTENCE": "4 ACT . | 2 ACT and ACTION . | PLACE ACT .",
        "ACT": "2 SOMEONE ACTION | SOMEONE ACTION PLACE | SOMEONE HOW ACTION",
        "ACTION": "VERB SOMETHING",
        "SOMEONE": "3 the PERSON | 2 the TRAIT PERSON | 2 a PERSON_C | an PERSON_V | a TRAIT_C PERSON"
        " | an TRAIT_V PERSON",
        "SOMETHING": "3 the THING | 2 the LOOK THING | 2 a THING_C | an THING_V | a LOOK_C THING"
        " | an LOOK_V THING",
        "PLACE": "AT the SPOT",
        "PERSON": "8 PERSON_C | 4 PERSON_V",
        "TRAIT": "6 TRAIT_C | 3 TRAIT_V",
        "THING": "8 THING_C | 4 THING_V",
        "LOOK": "6 LOOK_C | 3 LOOK_V",
        "PERSON_C": "farmer | sailor | teacher | baker | gardener | dancer | doctor | painter",
        "PERSON_V": "artist | uncle | aunt | engineer",
        "TRAIT_C": "young | tall | happy | tired | quiet | friendly",
        "TRAIT_V": "old | angry | elegant",
        "VERB": "carries | paints | finds | washes | sells | repairs | watches | hides",
        "THING_C": "basket | boat | lamp | kite | bicycle | ladder | piano | hat",
        "THING_V": "apple | umbrella | onion | engine",
        "LOOK_C": "red | blue | heavy | small | broken | wooden",
        "LOOK_V": "empty | ugly | expensive",
        "HOW": "slowly | quickly | carefully | proudly | gladly",
        "AT": "near | behind | beside | under | in",
        "SPOT": "river | house | garden | market | bridge | forest | station | hill",
    }
)
CONTENT = {c[0]: s for s, choices in KEYWORDS.lexicon.items() if s != "AT" for c in choices}
"""The words that can be keywords, each with its kind."""


def coverage(keywords: Sequence[str], text: str) -> float:
    """The share of the keywords that are words of the text."""
    words = set(text.split())
    return sum(word in words for word in keywords) / len(keywords)


def write(keywords: Sequence[str], rng: random.Random) -> str:
    """A sentence of the language that holds the keywords, at random among those it fits."""
    kinds = Counter(CONTENT[word] for word in keywords)
    while True:
        shape = KEYWORDS.shape(rng)
        if kinds <= Counter(shape):
            break
    for word in keywords:
        places = [i for i, part in enumerate(shape) if part == CONTENT[word]]
        shape[places[int(rng.random() * len(places))]] = word
    return " ".join(KEYWORDS.fill(shape, rng))


class ToyKeywords(World):
    """Write a sentence with all the keywords of the prompt."""

    paper = (
        "after Bill Yuchen Lin et al., CommonGen: a constrained text generation challenge for generative commonsense "
        "reasoning, 2020"
    )
    language = "toy-keywords"

    class Config(World.Config):
        """Options of `toy-keywords`."""

        keywords: tuple[int, int] = Field((2, 4), description="the fewest and the most keywords of a prompt")
        responses: int = Field(2, gt=0, description="logged responses an example, scored by their coverage")
        references: int = Field(
            3, ge=0, description="references an example, in `meta`; they hold all keywords"
        )
        forgets: float = Field(
            0.4, ge=0, lt=1, description="how often the writer of the logged responses forgets a keyword"
        )

    config: Config

    def example(self, id: str, rng: random.Random) -> Example:
        words = [word for word in dict.fromkeys(KEYWORDS.sample(rng).split()) if word in CONTENT]
        fewest, most = self.config.keywords
        count = fewest + int(rng.random() * (most - fewest + 1))
        keywords = shuffled(words, rng)[:count]
        responses = [write(self._remembered(keywords, rng), rng) for _ in range(self.config.responses)]
        return Example(
            id=id,
            prompt=" ".join(keywords),
            responses=tuple(responses),
            scores=tuple(coverage(keywords, response) for response in responses),
            meta={
                "language": self.language,
                "keywords": keywords,
                "references": [write(keywords, rng) for _ in range(self.config.references)],
            },
        )

    def _remembered(self, keywords: Sequence[str], rng: random.Random) -> list[str]:
        return [word for word in keywords if rng.random() >= self.config.forgets]


class ToyCoverage(ExactReward):
    """The share of the prompt's keywords that a response holds."""

    task = "toy-keywords"
    reads = "keywords"
    language = KEYWORDS

    def value(self, example: Example, text: str) -> float:
        return coverage(example.meta["keywords"], text)
