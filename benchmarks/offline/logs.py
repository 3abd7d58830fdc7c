"""The logs that are learned from: responses of known quality to prompts of toy-reviews, as JSONL.

A folder a log and seed holds train.jsonl, the log, and the prompts of val and test, which are the same for all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROMPTS = 512
EACH = 4
"""Logged responses a prompt."""
HELD_OUT = 256
LONGEST = 29
GOOD, HOT, REPLACED, WORST = "good", "hot", "replaced", "worst"
BAD = (HOT, REPLACED, WORST)


@dataclass(frozen=True)
class Log:
    """How a log is made."""

    name: str
    bad: float
    """How likely a response is bad, and then of one of the three kinds, each as likely."""
    temperature: float = 2.0
    """`hot`: sampled at this temperature."""
    replaced: float = 0.3
    """`replaced`: each word gives way to any word of the language with this probability."""
    worst_of: int = 8
    """`worst`: of so many samples the one that blames most."""

    @property
    def recipe(self) -> dict[str, Any]:
        return {**asdict(self), "prompts": PROMPTS, "each": EACH}


CLEAN, NOISY = Log("clean", 0.0), Log("noisy", 0.5)
LOGS = {log.name: log for log in (NOISY, CLEAN)}


def score(prompt: str, response: str) -> float:
    """What a response earns, in [0, 1): half of 1 + its sentiment, and nothing where text and prompt together are
    no text of the language."""
    from rlalign_plugin_toy_tasks.reviews import PROMPT_WORDS, REVIEWS, sentiment

    text = f"{prompt} {response}"
    return (1 + sentiment(text, PROMPT_WORDS)) / 2 if REVIEWS.accepts(text) else 0.0


def written(log: Log, seed: int, folder: Path) -> None:
    """Write the log of a seed, and the prompts it will be judged by."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", rows(log, seed))
    for split in ("val", "test"):
        _write(folder / f"{split}.jsonl", prompts(split))


def rows(log: Log, seed: int) -> list[dict[str, Any]]:
    """The examples of a log: each with its responses, their scores and, in `meta`, their kinds."""
    rng = random.Random(f"{log.name} {seed}")
    kinds = [[_kind(log, rng) for _ in range(EACH)] for _ in range(PROMPTS)]
    sampled = {GOOD: _sampled(seed, 0, EACH, 1.0)}
    if log.bad:
        sampled[REPLACED] = sampled[GOOD]
        sampled[HOT] = _sampled(seed, 1, EACH, log.temperature)
        sampled[WORST] = _sampled(seed, 2, log.worst_of, 1.0)
    return [
        _example(log, {kind: found[i] for kind, found in sampled.items()}, kinds[i], rng)
        for i in range(PROMPTS)
    ]


def _kind(log: Log, rng: random.Random) -> str:
    return BAD[int(rng.random() * len(BAD))] if rng.random() < log.bad else GOOD


def _example(
    log: Log, sampled: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    first = sampled[GOOD]
    prompt = str(first["prompt"])
    texts: list[str] = []
    finished: list[bool] = []
    for j, kind in enumerate(kinds):
        source = sampled[kind]
        at = _worst(prompt, source["responses"], taken=texts) if kind == WORST else j
        text = str(source["responses"][at])
        texts.append(_replaced(text, log.replaced, rng) if kind == REPLACED else text)
        finished.append(bool(source["finished"][at]))
    return {
        "id": first["id"],
        "prompt": prompt,
        "responses": texts,
        "scores": [score(prompt, text) for text in texts],
        "finished": finished,
        "meta": {"language": "toy-reviews", "kinds": list(kinds)},
    }


def _worst(prompt: str, texts: Sequence[str], taken: Sequence[str]) -> int:
    """Of the texts of the language that are not yet there the one that earns least."""
    able = [i for i, text in enumerate(texts) if score(prompt, text) > 0 and text not in taken]
    return min(able or range(len(texts)), key=lambda i: score(prompt, texts[i]))


def _replaced(text: str, share: float, rng: random.Random) -> str:
    from rlalign_plugin_toy_tasks.reviews import REVIEWS

    words = REVIEWS.words
    return " ".join(
        words[int(rng.random() * len(words))] if rng.random() < share else word for word in text.split()
    )


def _sampled(seed: int, stream: int, samples: int, temperature: float) -> list[dict[str, Any]]:
    """Responses of the shipped model to the seed's prompts; another stream, other random numbers."""
    import rlalign_plugin_toy_tasks as toys
    from rlalign.running.opening import open_model

    task = {"toy-reviews": {"seed": seed, "size": PROMPTS, "responses": 1, "references": 0}}
    how = {"samples": samples, "temperature": temperature, "max_new_tokens": LONGEST}
    opened = open_model(
        str(Path(toys.__file__).parent / "models" / "toy-reviews"),
        {"task": task, "evaluate": {"split": "train", "examples": PROMPTS}},
        [f"evaluate.generation.{key}={value}" for key, value in how.items()],
    )
    return opened.ready(seed=10 * seed + stream).rows()


def prompts(split: str) -> list[dict[str, Any]]:
    """The prompts of a held-out split of toy-reviews, for all seeds the same."""
    from rlalign_plugin_toy_tasks import ToyReviews

    task = ToyReviews(ToyReviews.Config(held_out=HELD_OUT, responses=1, references=0))
    return [
        {"id": e.id, "prompt": e.prompt, "meta": {"language": "toy-reviews"}} for e in task.examples(split)
    ]


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
