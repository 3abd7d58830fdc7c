"""A question and a few sentences in, the answer out: reading comprehension in small.

Two or three people are somewhere and have something. The answer is said in one sentence or, where somebody has
something and is asked where it is, follows from two. The writer of the logged answers takes now and then what is
said of somebody else, or gives one half of an answer.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rlalign import Example
from rlalign_plugin_toy_tasks.grammar import Grammar
from rlalign_plugin_toy_tasks.worlds import ExactReward, World, happens, one_of, shuffled

ANSWERS = Grammar(
    {
        "ANSWER": "PEOPLE . | THINGS . | in the PLACE . | BEING . | HAVING . | the THING is in the PLACE .",
        "BEING": "NAME is in the PLACE | NAME and NAME are in the PLACE",
        "HAVING": "NAME has THINGS",
        "PEOPLE": "NAME | NAME and NAME",
        "THINGS": "the THING | the THING and the THING",
        "NAME": "anna | ben | carla | david | emma | frank | greta | henry",
        "PLACE": "kitchen | garden | harbour | station | castle | forest | library | museum",
        "THING": "lamp | kite | basket | clock | drum | ladder | mirror | hat | ball | key",
    }
)
NAMES, PLACES, THINGS = (tuple(c[0] for c in ANSWERS.choices[kind]) for kind in ("NAME", "PLACE", "THING"))
ASKING = ("?", "does", "have", "what", "where", "who")
CONTENT = {*NAMES, *PLACES, *THINGS}
Count = Annotated[int, Field(ge=2, le=len(THINGS) // 2)]
"""Of people: somebody else can be mistaken for one, and there are things for all."""


@dataclass(frozen=True)
class Person:
    """Who is where and has what."""

    name: str
    place: str
    things: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What is asked, the words that answer it, and what a careless reader could take for them."""

    text: str
    answer: tuple[str, ...]
    others: tuple[str, ...]
    forms: tuple[str, str]
    """How an answer reads, in a few words and in a sentence: `{}` stands for the words."""

    def answered(self, words: Sequence[str], form: int) -> str:
        """An answer of these words."""
        row = " and ".join(f"the {word}" if word in THINGS else word for word in words)
        return self.forms[form].format(row, are="is" if len(words) == 1 else "are")


def questions(people: Sequence[Person], asked: Person, thing: str) -> list[Question]:
    """All that can be asked of somebody, of a thing of theirs, and of the place they are in."""
    name, place = asked.name, asked.place
    elsewhere = [p for p in people if p.place != place]
    places = tuple(p.place for p in elsewhere)
    names = tuple(p.name for p in people if p is not asked)
    things = tuple(t for p in people if p is not asked for t in p.things)
    there = tuple(p.name for p in people if p.place == place)
    away = tuple(p.name for p in elsewhere)
    return [
        Question(f"where is {name} ?", (place,), places, ("in the {} .", f"{name} is in the {{}} .")),
        Question(
            f"where is the {thing} ?", (place,), places, ("in the {} .", f"the {thing} is in the {{}} .")
        ),
        Question(f"who has the {thing} ?", (name,), names, ("{} .", f"{{}} has the {thing} .")),
        Question(f"what does {name} have ?", asked.things, things, ("{} .", f"{name} has {{}} .")),
        Question(f"who is in the {place} ?", there, away, ("{} .", f"{{}} {{are}} in the {place} .")),
    ]


def overlap(answer: Collection[str], question: str, text: str) -> float:
    """F1 of the words that answer and the content words of a text; those of the question do not count."""
    given = {word for word in text.split() if word in CONTENT} - set(question.split())
    return 2 * len(given & set(answer)) / (len(given) + len(answer))


class ToyQuestions(World):
    """Answer a question from what is said beside it."""

    paper = "after Jason Weston et al., Towards AI-complete question answering: a set of prerequisite toy tasks, 2015"
    language = "toy-questions"

    class Config(World.Config):
        """Options of `toy-questions`."""

        people: tuple[Count, Count] = Field((2, 2), description="the fewest and the most people of a prompt")
        mistakes: float = Field(
            0.25, ge=0, lt=1, description="how often the writer of the logged responses takes a wrong word"
        )
        forgets: float = Field(0.3, ge=0, lt=1, description="how often the writer gives one word of two")

    config: Config

    def example(self, id: str, rng: random.Random) -> Example:
        fewest, most = self.config.people
        people = _people(fewest + int(rng.random() * (most - fewest + 1)), rng)
        asked = one_of(people, rng)
        question = one_of(questions(people, asked, one_of(asked.things, rng)), rng)
        sentences = [f"{p.name} is in the {p.place} ." for p in people]
        sentences += [f"{p.name} has {' and '.join(f'the {t}' for t in p.things)} ." for p in people]
        responses = [self._careless(question, rng) for _ in range(self.config.responses)]
        return Example(
            id=id,
            prompt=" ".join([question.text, *shuffled(sentences, rng)]),
            responses=tuple(responses),
            scores=tuple(overlap(question.answer, question.text, response) for response in responses),
            meta={
                "language": self.language,
                "question": question.text,
                "answer": list(question.answer),
                "references": [question.answered(question.answer, form) for form in range(2)],
            },
        )

    def _careless(self, question: Question, rng: random.Random) -> str:
        words = list(question.answer)
        if len(words) > 1 and happens(self.config.forgets, rng):
            words = [one_of(words, rng)]
        for i in range(len(words)):
            left = [word for word in question.others if word not in words]
            if left and happens(self.config.mistakes, rng):
                words[i] = one_of(left, rng)
        return question.answered(words, int(rng.random() * 2))


def _people(count: int, rng: random.Random) -> list[Person]:
    """So many, with one or two things each; two of them may be in the same place."""
    places = shuffled(PLACES, rng)[:count]
    if happens(0.4, rng):
        places[1] = places[0]
    things = shuffled(THINGS, rng)
    people = []
    for name, place in zip(shuffled(NAMES, rng), places, strict=False):
        taken = 1 + int(rng.random() * 2)
        people.append(Person(name, place, tuple(things[:taken])))
        things = things[taken:]
    return people


class ToyAnswer(ExactReward):
    """F1 of the content words of an answer and the words that are right; 1 for those and no others."""

    task = "toy-questions"
    reads = "answer"
    language = ANSWERS

    def value(self, example: Example, text: str) -> float:
        return overlap(example.meta["answer"], example.meta["question"], text)
