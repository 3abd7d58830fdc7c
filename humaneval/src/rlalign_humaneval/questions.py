"""What raters are asked: axes from 1 to 5, and which of two responses is better."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from rlalign.errors import ConfigError

LEVELS = 5
"""Ratings are whole numbers from 1 to this."""
BETTER = "Which response is better?"


class Axis(BaseModel):
    """One thing that a response is rated for, from 1 (`low`) to 5 (`high`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=40)
    question: str = Field(min_length=1, max_length=500)
    low: str = "not at all"
    high: str = "fully"


_FLUENCY = Axis(
    name="fluency",
    question="Does it read as if a careful native speaker had written it?",
    low="unreadable",
    high="flawless",
)

DEFAULT = (
    _FLUENCY,
    Axis(name="quality", question="How well does it do what the prompt asks for?", low="fails", high="fully"),
)
AXES = {
    "imdb": (
        Axis(
            name="coherence",
            question="Does it go on from the prompt, in good sentences that make sense?",
            low="makes no sense",
            high="makes perfect sense",
        ),
        Axis(
            name="sentiment",
            question="What does the writer think of the film?",
            low="very negative",
            high="very positive",
        ),
    ),
    "common-gen": (
        _FLUENCY,
        Axis(
            name="commonsense",
            question="Does it describe something that could happen in everyday life?",
            low="impossible",
            high="entirely plausible",
        ),
    ),
    "daily-dialog": (
        _FLUENCY,
        Axis(
            name="coherence",
            question="Does it fit as the next thing to say in this conversation?",
            low="out of place",
            high="fits perfectly",
        ),
    ),
    "cnn-daily-mail": (
        Axis(
            name="coherence",
            question="Is it fluent, and do its sentences belong together?",
            low="incoherent",
            high="fluent and coherent",
        ),
        Axis(
            name="quality",
            question="Does it say what matters in the article, and nothing that the article does not say?",
            low="a useless summary",
            high="an excellent summary",
        ),
    ),
    "totto": (
        _FLUENCY,
        Axis(
            name="correctness",
            question="Does it say what the highlighted cells say: all of it, and nothing else?",
            low="wrong or vague",
            high="correct and specific",
        ),
    ),
}
"""By task, what the human evaluation of GRUE asked for (Ramamurthy et al. 2023); the words are our own."""
_ALIKE = {"toy-reviews": "imdb", "toy-keywords": "common-gen"}
PAIRWISE = {
    "common-gen": "Which sentence is better: it makes more sense, is more complete and more grammatical?"
}


def axes_of(task: str | None) -> tuple[Axis, ...]:
    """What responses to a task are rated for where nobody says otherwise."""
    return AXES.get(_ALIKE.get(task or "", task or ""), DEFAULT)


def comparison_of(task: str | None) -> str:
    """How the better one of two responses to a task is asked for where nobody says otherwise."""
    return PAIRWISE.get(_ALIKE.get(task or "", task or ""), BETTER)


def axis(said: str) -> Axis:
    """An axis as the command line says it: `NAME: QUESTION`, and `| LOW | HIGH` for the words at both ends."""
    found = re.fullmatch(r"([^:|]+):([^|]+)(?:\|([^|]+)\|([^|]+))?", said.strip(), re.DOTALL)
    parts = [part.strip() for part in found.groups() if part] if found else []
    if len(parts) not in (2, 4) or not all(parts) or len(parts[0]) > 40 or len(parts[1]) > 500:
        raise ConfigError(
            f"--likert {said!r}: expected NAME: QUESTION, or NAME: QUESTION | WORDS FOR 1 | WORDS FOR 5, for instance "
            "'fluency: Does it read well? | unreadable | flawless'; a name of up to 40 characters, a question of 500"
        )
    return Axis(**dict(zip(("name", "question", "low", "high"), parts, strict=False)))
