"""What a run wrote at its evaluations, and of what it learned from before each.

Only where each row stands is kept, so that any size can be looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlalign_report.follow import Log, Row

EVALUATIONS = 40
"""Evaluations whose samples a page holds, evenly chosen, the first and the last among them."""
ROWS = 32
"""Samples of one evaluation that a page holds."""
CHARACTERS = 4000
"""Of one text."""
BYTES = 4_000_000
"""Of all samples on a page, as they stand in the log."""

ADVANTAGE = "advantage"
LEARNED = ("group", ADVANTAGE, "age")
"""What a line of learned.jsonl has beside those of samples.jsonl, apart from the reward."""

Evaluation = tuple[str, int, int]
"""Phase, pass, and iteration of the phase."""


@dataclass
class _Found:
    places: list[tuple[int, int]] = field(default_factory=list)
    answers: dict[bytes, tuple[int, set[bytes]]] = field(default_factory=dict)
    """By response of two words or more, how often it was given, and to which prompts."""


class Samples:
    """All samples of a run, by evaluation in their order."""

    def __init__(self, path: Path) -> None:
        self._log = Log(path)
        self._found: dict[Evaluation, _Found] = {}

    @property
    def path(self) -> Path:
        return self._log.path

    @property
    def damaged(self) -> int:
        return self._log.damaged

    @property
    def evaluations(self) -> list[Evaluation]:
        return list(self._found)

    def look(self) -> bool:
        """Read what has come since; whether anything has."""
        grew = self._log.begins_anew()
        if grew:
            self._found.clear()
        for at, length, row in self._log.more():
            grew = True
            repeat, iteration = row.get("repeat", 0), row.get("iteration", 0)
            if not (isinstance(repeat, int) and isinstance(iteration, int)):
                continue
            found = self._found.setdefault((str(row.get("phase", "")), repeat, iteration), _Found())
            found.places.append((at, length))
            text = str(row.get("response", ""))
            if len(text.split()) > 1:
                times, prompts = found.answers.get(_hash(text), (0, set()))
                found.answers[_hash(text)] = (times + 1, prompts | {_hash(json.dumps(row.get("prompt")))})
        return grew

    def repeated(self, evaluation: Evaluation) -> tuple[int, int]:
        """Of the responses of two words or more, how many there are, and how many went to other prompts too."""
        answers = self._found[evaluation].answers.values()
        return sum(times for times, _ in answers), sum(
            times for times, prompts in answers if len(prompts) > 1
        )

    def rows(self, evaluation: Evaluation) -> list[Row]:
        """The first samples of an evaluation."""
        return [self._log.again(place) for place in self._found[evaluation].places[:ROWS]]

    def chosen(self, budget: int = BYTES) -> list[Evaluation]:
        """Evaluations to show: as many as there are, or as fit."""
        names = self.evaluations
        count = min(len(names), EVALUATIONS)
        while count > 2 and sum(map(self._bytes, spread(names, count))) > budget:
            count = max(2, count * 3 // 4)
        return spread(names, count)

    def _bytes(self, evaluation: Evaluation) -> int:
        return sum(length for _, length in self._found[evaluation].places[:ROWS])

    def left_out(self, chosen: Sequence[Evaluation]) -> str:
        """What of the samples a page does not hold, in words; empty if it holds all."""
        said = []
        if len(chosen) < len(self._found):
            said.append(f"{len(chosen)} of {len(self._found)} evaluations are shown, evenly chosen")
        if any(len(found.places) > ROWS for found in self._found.values()):
            said.append(f"of each evaluation the first {ROWS} samples")
        return "; ".join(said)


def _token_by_token(row: Mapping[str, Any]) -> Row:
    """Tokens with what each of them was given, as far as they fit each other; None: it was not the policy's."""
    tokens, steps = row.get("tokens"), row.get("steps")
    if not (isinstance(tokens, list) and isinstance(steps, Mapping)):
        return {}
    known = {
        str(name): values
        for name, values in steps.items()
        if isinstance(values, list)
        and len(values) == len(tokens)
        and all(value is None or isinstance(value, int | float) for value in values)
    }
    return {"tokens": [str(token) for token in tokens], "steps": known} if known else {}


def _whole(row: Row) -> list[str]:
    """An advantage that is one for the whole response."""
    return [ADVANTAGE] if ADVANTAGE in row else []


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:8]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[-1]]
    last = len(items) - 1
    return [items[round(i * last / (count - 1))] for i in range(count)]


class Shown:
    """The samples of a run as a page holds them: each prompt once, long texts cut."""

    def __init__(self, samples: Samples, budget: int = BYTES) -> None:
        chosen = samples.chosen(budget)
        self._prompts: dict[str, int] = {}
        self.cut = 0
        """Texts of which only the beginning is shown."""
        self.evaluations = [(name, [self._row(row) for row in samples.rows(name) if row]) for name in chosen]
        said = samples.left_out(chosen)
        if self.cut:
            said += "; " * bool(said) + f"of {self.cut} long texts the first {CHARACTERS:,} characters"
        self.left_out = said

    @property
    def prompts(self) -> list[Any]:
        return [json.loads(prompt) for prompt in self._prompts]

    @property
    def parts(self) -> list[str]:
        """The names of all scores."""
        rows = [row for _, rows in self.evaluations for row in rows]
        return list(dict.fromkeys(name for row in rows for name in row["scores"]))

    @property
    def steps(self) -> list[str]:
        """The names of all that tokens can be tinted by, advantages first."""
        rows = [row for _, rows in self.evaluations for row in rows]
        told = [part for row in rows for part in (row, *row.get("transcript", ()))]
        names = dict.fromkeys(name for part in told for name in (*part.get("steps", ()), *_whole(part)))
        return sorted(names, key=lambda name: name != ADVANTAGE)

    def pairs(self) -> list[tuple[Row, Row]]:
        """What was answered to the same prompt at the first evaluation and at the last."""
        if len(self.evaluations) < 2:
            return []
        (_, first), (_, last) = self.evaluations[0], self.evaluations[-1]
        waiting: dict[int, list[Row]] = {}
        for row in last:
            waiting.setdefault(row["prompt"], []).append(row)
        found = []
        for row in first:
            if after := waiting.get(row["prompt"]):
                found.append((row, after.pop(0)))
        return found

    def _row(self, row: Row) -> Row:
        scores = row.get("scores")
        total = {"total": row["reward"]} if "reward" in row else {}
        found: Row = {
            "prompt": self._prompt(row.get("prompt")),
            "response": self._text(row.get("response", "")),
            "scores": {**total, **(scores if isinstance(scores, Mapping) else {})},
        }
        found |= _token_by_token(row)
        found |= {name: row[name] for name in LEARNED if isinstance(row.get(name), int | float)}
        transcript = row.get("transcript")
        if isinstance(transcript, list):
            found["transcript"] = [self._message(message) for message in transcript]
        return found

    def _prompt(self, prompt: Any) -> int:
        shown = [self._message(m) for m in prompt] if isinstance(prompt, list) else self._text(prompt)
        return self._prompts.setdefault(json.dumps(shown), len(self._prompts))

    def _message(self, message: Any) -> Row:
        if not isinstance(message, Mapping):
            return {"role": "", "content": self._text(message)}
        found: Row = {
            "role": self._text(message.get("role", "")),
            "content": self._text(message.get("content", "")),
            **_token_by_token(message),
        }
        if isinstance(message.get("reward"), int | float):
            found["reward"] = message["reward"]
        if message.get("cut"):
            found["cut"] = True
        if "answer" in message:
            found["answer"] = self._said(message["answer"])
        return found

    def _said(self, said: Any) -> str:
        """What an environment answered last: text, or messages."""
        if isinstance(said, list):
            return "\n".join(
                self._text(one.get("content", "") if isinstance(one, Mapping) else one) for one in said
            )
        return self._text(said)

    def _text(self, value: Any) -> str:
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        if len(text) <= CHARACTERS:
            return text
        self.cut += 1
        return f"{text[:CHARACTERS]} … [{len(text) - CHARACTERS:,} more characters]"
