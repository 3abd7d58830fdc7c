"""A sentence in English in, its translation into a small language of our own out.

The language has a word for each of English's, and rules that English has not: the verb stands last, adjectives
behind their noun, and article, adjective and noun agree in gender and number, the verb with its subject. The
translator of the logged responses makes no mistake of grammar, and now and then misreads a word or leaves one out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from rlalign import Example
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.worlds import (
    ExactReward,
    World,
    happens,
    one_of,
    other_than,
)

PERSONS = {
    "farmer": "belo",
    "sailor": "maro",
    "teacher": "docto",
    "baker": "pano",
    "dancer": "tina",
    "doctor": "meda",
    "painter": "kola",
    "singer": "vosa",
}
THINGS = {
    "boat": "navo",
    "basket": "korbo",
    "lamp": "lumo",
    "ladder": "skalo",
    "kite": "venta",
    "piano": "klava",
    "hat": "kapa",
    "table": "tabla",
}
VERBS = {
    "carry": "porti",
    "paint": "pinti",
    "find": "trovi",
    "sell": "vendi",
    "repair": "ripi",
    "hide": "kashi",
}
ADJECTIVES = {"old": "vet", "young": "jun", "tall": "alt", "red": "rub", "small": "pet", "heavy": "pez"}
ADVERBS = {"today": "odi", "slowly": "lente", "often": "sovi", "gladly": "alegre"}
"""The dictionary. A noun's last letter is its gender, and an adjective takes it over."""
NOUNS = {**PERSONS, **THINGS}


@dataclass(frozen=True)
class Nouns:
    """A noun phrase."""

    noun: str
    many: bool
    known: bool
    """With "the"; with "a" or without an article otherwise."""
    adjective: str | None

    def english(self) -> str:
        rest = _row(self.adjective, self.noun + "s" * self.many)
        article = "the" if self.known else "" if self.many else "an" if rest[0] in "aeiou" else "a"
        return _row(article, rest)

    def translated(self) -> str:
        noun = NOUNS[self.noun]
        ending = noun[-1] + "s" * self.many
        article = f"l{ending}" if self.known else "" if self.many else f"un{ending}"
        adjective = self.adjective and ADJECTIVES[self.adjective] + ending
        return _row(article, noun[:-1] + ending, adjective)


@dataclass(frozen=True)
class Meaning:
    """What a sentence says, in whatever language."""

    subject: Nouns
    verb: str
    thing: Nouns
    adverb: str | None

    def english(self) -> str:
        verb = self.verb if self.subject.many else _third_person(self.verb)
        return _row(self.subject.english(), verb, self.thing.english(), self.adverb, ".")

    def translations(self) -> list[str]:
        """All that are right: an adverb stands first or before the verb."""
        verb = VERBS[self.verb] + "n" * self.subject.many
        subject, thing = self.subject.translated(), self.thing.translated()
        adverb = self.adverb and ADVERBS[self.adverb]
        rows = [_row(adverb, subject, thing, verb, "."), _row(subject, thing, adverb, verb, ".")]
        return rows if adverb else rows[:1]


def _row(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _third_person(verb: str) -> str:
    return f"{verb[:-1]}ies" if verb.endswith("ry") else f"{verb}s"


def _rules() -> dict[str, str]:
    """The grammar of the language, from its dictionary."""
    rules = {"SENTENCE": "CLAUSE ."}
    clauses = []
    for number, letter in (("ONE", ""), ("MANY", "s")):
        rules[f"VERB_{number}"] = " | ".join(verb + "n" * bool(letter) for verb in VERBS.values())
        for part in ("WHO", "WHAT"):
            phrases = []
            for gender in "oa":
                kind = f"{part}_{gender.upper()}_{number}"
                adjectives = f"ADJECTIVE_{gender.upper()}_{number}"
                nouns = PERSONS if part == "WHO" else THINGS
                rules[kind] = " | ".join(n + letter for n in nouns.values() if n[-1] == gender)
                rules[adjectives] = " | ".join(stem + gender + letter for stem in ADJECTIVES.values())
                articles = [f"l{gender}{letter}", "" if letter else f"un{gender}"]
                phrases += [f"{a} {kind}{tail}" for a in articles for tail in ("", f" {adjectives}")]
            rules[f"{part}_{number}"] = " | ".join(phrases)
        subject, verb = f"WHO_{number}", f"VERB_{number}"
        clauses += [
            f"{subject} WHAT {verb}",
            f"ADVERB {subject} WHAT {verb}",
            f"{subject} WHAT ADVERB {verb}",
        ]
    return {
        **rules,
        "CLAUSE": " | ".join(clauses),
        "WHAT": "WHAT_ONE | WHAT_MANY",
        "ADVERB": " | ".join(ADVERBS.values()),
    }


TRANSLATIONS = Grammar(_rules())
ENGLISH = sorted(
    {"the", "a", "an", ".", *NOUNS, *(f"{noun}s" for noun in NOUNS), *ADJECTIVES, *ADVERBS}
    | {form for verb in VERBS for form in (verb, _third_person(verb))}
)


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest words to put in, leave out or replace to make one row of the other."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


def closeness(references: Sequence[str], text: str) -> float:
    """1 less the edits a word to the nearest reference; no less than 0. (TER without its shifts.)"""
    words = text.split()
    rows = [reference.split() for reference in references]
    return max(0.0, *(1 - edits(words, row) / len(row) for row in rows))


class ToyTranslation(World):
    """Translate an English sentence into the language of this world."""

    paper = (
        "after Ondřej Bojar et al., Findings of the 2016 conference on machine translation, 2016 (task and kind of "
        "metric)"
    )
    language = "toy-translation"

    class Config(World.Config):
        """Options of `toy-translation`."""

        forgets: float = Field(
            0.4,
            ge=0,
            lt=1,
            description="how often the writer of the logged responses leaves out what can be left out",
        )
        mistakes: float = Field(
            0.2, ge=0, lt=1, description="how often the writer misreads a word, or one for many"
        )

    config: Config

    def example(self, id: str, rng: random.Random) -> Example:
        meaning = _meaning(rng)
        references = meaning.translations()
        responses = [
            one_of(self._misread(meaning, rng).translations(), rng) for _ in range(self.config.responses)
        ]
        return Example(
            id=id,
            prompt=meaning.english(),
            responses=tuple(responses),
            scores=tuple(closeness(references, response) for response in responses),
            meta={"language": self.language, "references": references},
        )

    def _misread(self, meaning: Meaning, rng: random.Random) -> Meaning:
        """A sentence as a careless reader has it in mind."""
        return Meaning(
            subject=self._misread_nouns(meaning.subject, tuple(PERSONS), rng),
            verb=self._misread_word(meaning.verb, tuple(VERBS), rng),
            thing=self._misread_nouns(meaning.thing, tuple(THINGS), rng),
            adverb=self._left_out(meaning.adverb, tuple(ADVERBS), rng),
        )

    def _misread_nouns(self, nouns: Nouns, others: Sequence[str], rng: random.Random) -> Nouns:
        return replace(
            nouns,
            noun=self._misread_word(nouns.noun, others, rng),
            many=nouns.many != happens(self.config.mistakes, rng),
            adjective=self._left_out(nouns.adjective, tuple(ADJECTIVES), rng),
        )

    def _misread_word(self, word: str, others: Sequence[str], rng: random.Random) -> str:
        return other_than(others, word, rng) if happens(self.config.mistakes, rng) else word

    def _left_out(self, word: str | None, others: Sequence[str], rng: random.Random) -> str | None:
        if word is None or happens(self.config.forgets, rng):
            return None
        return self._misread_word(word, others, rng)


def _meaning(rng: random.Random) -> Meaning:
    subject = _nouns(tuple(PERSONS), rng)
    verb = one_of(tuple(VERBS), rng)
    thing = _nouns(tuple(THINGS), rng)
    return Meaning(subject, verb, thing, one_of(tuple(ADVERBS), rng) if happens(0.6, rng) else None)


def _nouns(nouns: Sequence[str], rng: random.Random) -> Nouns:
    return Nouns(
        noun=one_of(nouns, rng),
        many=happens(0.5, rng),
        known=happens(0.5, rng),
        adjective=one_of(tuple(ADJECTIVES), rng) if happens(0.6, rng) else None,
    )


class ToyCloseness(ExactReward):
    """1 less the edits a word that a translation is away from the nearest right one."""

    task = "toy-translation"
    reads = "references"
    language = TRANSLATIONS

    def value(self, example: Example, text: str) -> float:
        return closeness(example.meta["references"], text)
