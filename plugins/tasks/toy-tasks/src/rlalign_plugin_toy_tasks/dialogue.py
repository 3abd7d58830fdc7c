"""What somebody said and what the reply is to do in, the reply out: dialogue in small, for causal models.

A reply informs, asks, directs or commits to something (the four intents of DailyDialog), and stays with what was
talked about. The writer of the logged replies is a distracted one: now and then another intent, another topic.
"""

from __future__ import annotations

import random

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

TOPICS = {
    "music": ("band", "song", "singer", "concert", "drummer", "album"),
    "sport": ("match", "team", "player", "stadium", "race", "trainer"),
    "food": ("soup", "cake", "cook", "dinner", "bakery", "recipe"),
    "travel": ("train", "hotel", "ticket", "journey", "airport", "suitcase"),
    "work": ("office", "meeting", "report", "boss", "letter", "contract"),
    "art": ("painting", "gallery", "artist", "statue", "museum", "sketch"),
}
TOPIC_OF = {noun: topic for topic, nouns in TOPICS.items() for noun in nouns}

_RULES = {
    "INFORM": "i SAW the NOUN WHEN . | the NOUN was NICE . | the NOUN and the NOUN were NICE . | FRIENDS told me about"
    " the NOUN . | i really LIKE the NOUN .",
    "QUESTION": "did you SEE the NOUN ? | was the NOUN NICE ? | what do you think of the NOUN and the NOUN ? | do you"
    " LIKE the NOUN ? | who told you about the NOUN ?",
    "DIRECTIVE": "please tell me about the NOUN . | SEE the NOUN with me . | do not forget the NOUN and the NOUN . |"
    " please SEE the NOUN LATER .",
    "COMMISSIVE": "i will SEE the NOUN LATER . | i promise to SEE the NOUN and the NOUN . | we can SEE the NOUN LATER"
    " if you LIKE the NOUN . | i will tell you about the NOUN .",
    "START": "oh | well | yes | right",
    "NOUN": " | ".join(TOPIC_OF),
    "SAW": "saw | visited | remembered | found | missed",
    "SEE": "see | visit | remember | find | check",
    "LIKE": "like | prefer | need | enjoy",
    "NICE": "nice | great | strange | expensive | famous | terrible",
    "WHEN": "yesterday | today | last week | on sunday | in june",
    "LATER": "tomorrow | soon | next week | in july",
    "FRIENDS": "friends | everyone | somebody | nobody",
}
INTENTS = {
    name: Grammar({"REPLY": f"{symbol} | START , {symbol}", **_RULES})
    for name in ("inform", "question", "directive", "commissive")
    for symbol in (name.upper(),)
}
REPLIES = Grammar(
    {
        "REPLY": "ANY | START , ANY",
        "ANY": " | ".join(name.upper() for name in INTENTS),
        **_RULES,
    }
)


def intent(text: str) -> str | None:
    """What a reply does; None for what is no reply."""
    return next((name for name, grammar in INTENTS.items() if grammar.accepts(text)), None)


def fit(wanted: str, topic: str, text: str) -> float:
    """Half for the intent, half for the share of the topic's nouns among the reply's; 0 for what is no reply."""
    done = intent(text)
    if done is None:
        return 0.0
    nouns = [TOPIC_OF[word] for word in text.split() if word in TOPIC_OF]
    return 0.5 * (done == wanted) + 0.5 * nouns.count(topic) / len(nouns)


class ToyDialogue(World):
    """Reply with the intent that is wanted, and stay on the topic."""

    paper = "after Yanran Li et al., DailyDialog: a manually labelled multi-turn dialogue dataset, 2017"
    language = "toy-dialogue"

    class Config(World.Config):
        """Options of `toy-dialogue`."""

        references: int = Field(
            3, ge=0, description="references an example, in `meta`, with the right intent and topic"
        )
        strays: float = Field(
            0.5,
            ge=0,
            lt=1,
            description="how often the writer of the logged responses has another intent or topic",
        )

    config: Config

    def example(self, id: str, rng: random.Random) -> Example:
        topic, wanted = one_of(tuple(TOPICS), rng), one_of(tuple(INTENTS), rng)
        said = _reply(one_of(tuple(INTENTS), rng), topic, 0.0, rng)
        responses = [self._distracted(wanted, topic, rng) for _ in range(self.config.responses)]
        return Example(
            id=id,
            prompt=f"{said} [ {wanted} ]",
            responses=tuple(responses),
            scores=tuple(fit(wanted, topic, response) for response in responses),
            meta={
                "language": self.language,
                "intent": wanted,
                "topic": topic,
                "references": [_reply(wanted, topic, 0.0, rng) for _ in range(self.config.references)],
            },
        )

    def _distracted(self, wanted: str, topic: str, rng: random.Random) -> str:
        done = other_than(tuple(INTENTS), wanted, rng) if happens(self.config.strays, rng) else wanted
        return _reply(done, topic, self.config.strays, rng)


def _reply(intent: str, topic: str, strays: float, rng: random.Random) -> str:
    """A reply whose nouns are of the topic, but for so many strays."""
    grammar = INTENTS[intent]
    row = []
    for part in grammar.shape(rng):
        if part == "NOUN":
            of = other_than(tuple(TOPICS), topic, rng) if happens(strays, rng) else topic
            row.append(one_of(TOPICS[of], rng))
        else:
            row += grammar.fill([part], rng)
    return " ".join(row)


class ToyIntent(ExactReward):
    """Half for the intent that is wanted, half for the share of nouns that are of the topic; 0 outside the language."""

    task = "toy-dialogue"
    reads = "intent"
    language = REPLIES

    def value(self, example: Example, text: str) -> float:
        return fit(example.meta["intent"], example.meta["topic"], text)
