"""Short reviews of films in a language of our own: what a language model aligns to in a minute.

The prompt is the first three words of a review, the response the rest. Sentiment is read off a lexicon;
whether a text is grammatical is known exactly, so that what a reward costs in fluency can be counted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from pydantic import Field

from rlalign import Component, Example, Rollout, Score, hookimpl
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.texts import whole_texts
from rlalign_plugin_toy_tasks.worlds import World

REVIEWS = Grammar(
    {
        "REVIEW": "4 BODY . | 2 OPENING . BODY . | 2 BODY . CLOSING . | OPENING . BODY . CLOSING .",
        "OPENING": "WHEN WHO WATCHED THIS FILM | WHO WATCHED THIS FILM WHERE",
        "BODY": "4 CLAUSE | 8 CLAUSE JOIN CLAUSE | although CLAUSE , CLAUSE",
        "JOIN": "3 and | 2 but | because | while",
        "CLOSING": "WE would recommend it | WE would avoid it | WE would not recommend it"
        " | WE would not avoid it | 2 SHORTLY it was SO",
        "CLAUSE": "4 THE PART SEEMED SO | 3 THE PARTS APPEARED SO | 3 WHO LIKED THE THING"
        " | THE PART was not VERY | THE PARTS were not VERY | WHO never LIKED THE THING",
        "SO": "4 VERY | WORD and WORD",
        "VERY": "3 WORD | 2 DEGREE WORD",
        "WORD": "GOOD | BAD",
        "LIKED": "LOVED | HATED",
        "THING": "PART | PARTS",
        "PART": "plot | story | ending | music | acting | camera | cast | pace",
        "PARTS": "actors | songs | jokes | scenes | costumes | dances",
        "SEEMED": "3 was | felt | seemed | looked",
        "APPEARED": "3 were | felt | seemed | looked",
        "GOOD": "great | lovely | funny | clever | brilliant | moving | charming | fresh",
        "BAD": "awful | dull | boring | clumsy | terrible | weak | tedious | stale",
        "LOVED": "loved | enjoyed | admired | adored",
        "HATED": "hated | disliked | despised | regretted",
        "DEGREE": "very | really | truly | rather | quite",
        "THE": "3 the | its",
        "WHO": "i | we | critics | friends | everyone | somebody",
        "WE": "i | we",
        "WHEN": "yesterday | today | last NIGHT | on SUNDAY",
        "NIGHT": "night | week | month",
        "SUNDAY": "sunday | monday | friday",
        "WATCHED": "watched | saw",
        "THIS": "this | that",
        "FILM": "film | movie | show | play",
        "WHERE": "at home | in town | with friends | alone",
        "SHORTLY": "overall | frankly | honestly",
    }
)
PROMPT_WORDS = 3

POSITIVE = frozenset(c[0] for s in ("GOOD", "LOVED") for c in REVIEWS.choices[s]) | {"recommend"}
NEGATIVE = frozenset(c[0] for s in ("BAD", "HATED") for c in REVIEWS.choices[s]) | {"avoid"}
DEGREES = frozenset(c[0] for c in REVIEWS.choices["DEGREE"])
NEGATIONS = frozenset({"not", "never"})


def sentiment(text: str, given: int = 0) -> float:
    """(p − n) / (p + n + ½), p words of praise and n of blame; "not" and "never" turn the next one round.

    Words of degree may stand between: "not very dull" is praise. The first `given` words are read and not
    counted. A text with neither scores 0, and none reaches ±1: one more word always gains something.
    """
    praise = blame = 0
    turned = False
    for place, word in enumerate(text.split()):
        if word in DEGREES:
            continue
        if place >= given and (word in POSITIVE or word in NEGATIVE):
            if (word in POSITIVE) != turned:
                praise += 1
            else:
                blame += 1
        turned = word in NEGATIONS
    return (praise - blame) / (praise + blame + 0.5)


class ToyReviews(World):
    """Go on with a review from its first three words. References are what the language itself goes on with."""

    language = "toy-reviews"

    class Config(World.Config):
        """Options of `toy-reviews`."""

        responses: int = Field(4, gt=0, description="logged responses an example, scored by their sentiment")
        references: int = Field(2, ge=0, description="further responses an example, in `meta`")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        count = self.config.size if split == "train" else self.config.held_out
        rng = random.Random(f"toy-reviews {self.config.seed} {split}")
        prompts = [" ".join(REVIEWS.sample(rng).split()[:PROMPT_WORDS]) for _ in range(count)]
        rests = _rests(prompts, self.config.responses + self.config.references, rng)
        return [self._example(f"{split}-{i}", p, rests[i]) for i, p in enumerate(prompts)]

    def _example(self, id: str, prompt: str, rests: Sequence[str]) -> Example:
        responses, references = rests[: self.config.responses], rests[self.config.responses :]
        return Example(
            id=id,
            prompt=prompt,
            responses=tuple(responses),
            scores=tuple(sentiment(f"{prompt} {rest}", PROMPT_WORDS) for rest in responses),
            meta={"language": self.language, "references": list(references)},
        )


def _rests(prompts: Sequence[str], each: int, rng: random.Random) -> list[list[str]]:
    """For every prompt independent draws of what follows it: reviews are written until all are served."""
    rests: list[list[str]] = [[] for _ in prompts]
    waiting: dict[str, list[int]] = {}
    for i, prompt in reversed(list(enumerate(prompts))):
        waiting.setdefault(prompt, []).extend([i] * each)
    while waiting:
        if found := REVIEWS.sample_from(waiting, PROMPT_WORDS, rng):
            prompt, rest = found
            rests[waiting[prompt].pop()].append(rest)
            if not waiting[prompt]:
                del waiting[prompt]
    return rests


class ToySentiment(Component):
    """How much a response praises rather than blames, between −1 and 1. The prompt is read, and not counted."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        given = [len(str(rollout.examples[g].prompt).split()) for g in rollout.group_N.tolist()]
        return Score(torch.tensor(list(map(sentiment, whole_texts(rollout), given))))
