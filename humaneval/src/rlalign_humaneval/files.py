"""The three files: what the page holds, its key, which stays with whoever made it, and a rater's answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlalign.errors import ConfigError
from rlalign_humaneval.questions import LEVELS, Axis
from rlalign_humaneval.sources import Prompt

TIE = "tie"
Rating = Annotated[int, Field(strict=True, ge=1, le=LEVELS)]
LARGEST = 2**26
"""Bytes of the largest file that is read."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sheet(_File):
    """What a page shows. Its ids say nothing: neither they nor the order tell which run wrote what."""

    axes: tuple[Axis, ...]
    pairwise: str | None
    prompts: dict[str, Prompt]
    texts: dict[str, tuple[str, str]]
    """By id of a text, the id of its prompt, and the text."""
    pairs: dict[str, tuple[str, str]]
    """By id of a comparison, the two texts."""

    @property
    def hash(self) -> str:
        """What the page is called."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8", "backslashreplace")).hexdigest()[:16]


class Key(_File):
    """What the ids of a page stand for."""

    format: Literal["rlalign-humaneval-key/1"]
    page: str
    runs: tuple[str, ...]
    sources: tuple[str, ...]
    task: str | None
    seed: int
    sheet: Sheet
    examples: dict[str, str | None]
    """By id of a prompt, the example's."""
    wrote: dict[str, tuple[str, ...]]
    """By id of a text, the runs that wrote it: several where they wrote the very same."""

    @model_validator(mode="after")
    def _whole(self) -> Key:
        known = {run for wrote in self.wrote.values() for run in wrote} <= {*self.runs}
        texts = self.wrote.keys() == self.sheet.texts.keys()
        if not (known and texts and self.page == self.sheet.hash):
            raise ValueError("its parts do not belong together: the file was edited, or damaged")
        return self


class Choice(_File):
    """Which of two texts was better, or `tie`; and which of them stood on the left, or first."""

    choice: str
    left: str


class Answers(_File):
    """What one rater said: by text a rating for each axis, by comparison a choice."""

    format: Literal["rlalign-humaneval-answers/1"]
    page: str
    rater: str = Field(min_length=1, max_length=80)
    saved: str = Field("", max_length=80)
    ratings: dict[str, tuple[Rating | None, ...]]
    choices: dict[str, Choice]


_Read = TypeVar("_Read", Key, Answers)


def read(path: Path, kind: type[_Read]) -> _Read:
    """A key, or a rater's answers, as they were written."""
    expected = (
        "key that `rlalign humaneval make` writes" if kind is Key else "file of answers that the page saves"
    )
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: holds more than {LARGEST:,} bytes; expected a {expected}")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        told = (f"`{place}`: " if place else "") + first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {told}; expected a {expected}") from None


def read_answers(paths: list[Path], key: Key) -> list[Answers]:
    """The answers of several raters; refused where they do not belong to the key, or a rater is there twice."""
    found: dict[str, tuple[Path, Answers]] = {}
    for path in paths:
        answers = read(path, Answers)
        if wrong := foreign(answers, key):
            raise ConfigError(f"{path}: {wrong}")
        if answers.rater in found:
            raise ConfigError(
                f"{path} and {found[answers.rater][0]}: both are answers of {answers.rater!r}: name only the later "
                "file of one person; two people of one name must use different ones (`rater` in the file)"
            )
        found[answers.rater] = (path, answers)
    return [answers for _, answers in found.values()]


def foreign(answers: Answers, key: Key) -> str | None:
    """Why these answers do not belong to a key, if so."""
    if answers.page != key.page:
        return f"these are answers to the page {answers.page[:80]!r}, and the key is that of {key.page!r}"
    sheet = key.sheet
    for text, ratings in answers.ratings.items():
        if text not in sheet.texts:
            return f"rates {text[:80]!r}, which the page does not hold: the file was edited"
        if len(ratings) != len(sheet.axes):
            return f"rates {text!r} on {len(ratings)} axes, and the page has {len(sheet.axes)}: the file was edited"
    for pair, chosen in answers.choices.items():
        if pair not in sheet.pairs:
            return f"compares {pair[:80]!r}, which the page does not hold: the file was edited"
        if chosen.choice not in (*sheet.pairs[pair], TIE) or chosen.left not in sheet.pairs[pair]:
            return f"chooses {chosen.choice[:80]!r} in {pair!r}, which is neither of the two: the file was edited"
    return None
