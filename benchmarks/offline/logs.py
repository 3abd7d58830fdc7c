"""The logs that are learned from: responses of known quality to prompts of toy-reviews, as JSONL.

A folder for each log and seed holds train.jsonl, the log, and the prompts of val and test, which are the same for all.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlalign_study import core, plan

GOOD, HOT, REPLACED, WORST = "good", "hot", "replaced", "worst"
BAD = (HOT, REPLACED, WORST)
Given = Mapping[str, Any]
"""How a log is made; study.yaml says what each number means."""


def prepare(ground: Any) -> dict[str, float]:
    """Write a log, clone it, and measure both."""
    given, name = ground.given, f"{ground.world}-{ground.seed}"
    log, reference = ground.work / "logs" / name, ground.work / "references" / name
    shutil.rmtree(reference, ignore_errors=True)
    written(given, ground.world, ground.seed, log)
    pipeline = plan.fill(given["clone"], world=ground.world, seed=ground.seed, work=ground.work)
    run, broke = core.train(
        {**pipeline, "seed": ground.seed}, ground.work, {}, root=ground.work, name=f"clone-{name}"
    )
    if broke is not None:
        raise RuntimeError(broke)
    measured = ground.measure(run, {"split": "test", "examples": given["held_out"], "generation.samples": 4})
    shutil.copytree(run / "model", reference)
    shutil.rmtree(run)
    return kinds(log / "train.jsonl") | {f"reference.{key}": value for key, value in measured.items()}


def kinds(path: Path) -> dict[str, float]:
    """Of each kind of response, and of all: how many, their mean score, and the share that is grammatical."""
    found: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for kind, score in zip(row["meta"]["kinds"], row["scores"], strict=True):
            found.setdefault(kind, []).append(score)
            found.setdefault("all", []).append(score)
    made: dict[str, float] = {}
    for kind, scores in sorted(found.items()):
        made |= {f"{kind}.responses": len(scores), f"{kind}.score": round(fmean(scores), 4)}
        made[f"{kind}.grammar"] = round(fmean(score > 0 for score in scores), 4)
    return made


def score(prompt: str, response: str) -> float:
    """What a response earns, in [0, 1): half of 1 + its sentiment, and nothing where text and prompt together are
    no text of the language."""
    from rlalign_plugin_toy_tasks.reviews import PROMPT_WORDS, REVIEWS, sentiment

    text = f"{prompt} {response}"
    return (1 + sentiment(text, PROMPT_WORDS)) / 2 if REVIEWS.accepts(text) else 0.0


def written(given: Given, name: str, seed: int, folder: Path) -> None:
    """Write the log of a seed, and the prompts it will be judged by."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", rows(given, name, seed))
    for split in ("val", "test"):
        _write(folder / f"{split}.jsonl", prompts(given, split))


def rows(given: Given, name: str, seed: int) -> list[dict[str, Any]]:
    """The examples of a log: each with its responses, their scores and, in `meta`, their kinds."""
    rng = random.Random(f"{name} {seed}")
    chosen = [[_kind(given, rng) for _ in range(given["each"])] for _ in range(given["prompts"])]
    sampled = {GOOD: _sampled(given, seed, 0, given["each"], 1.0)}
    if given["bad"]:
        sampled[REPLACED] = sampled[GOOD]
        sampled[HOT] = _sampled(given, seed, 1, given["each"], given["temperature"])
        sampled[WORST] = _sampled(given, seed, 2, given["worst_of"], 1.0)
    return [
        _example(given, {kind: found[i] for kind, found in sampled.items()}, chosen[i], rng)
        for i in range(given["prompts"])
    ]


def _kind(given: Given, rng: random.Random) -> str:
    return BAD[int(rng.random() * len(BAD))] if rng.random() < given["bad"] else GOOD


def _example(
    given: Given, sampled: Mapping[str, Mapping[str, Any]], chosen: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    first = sampled[GOOD]
    prompt = str(first["prompt"])
    texts: list[str] = []
    finished: list[bool] = []
    for j, kind in enumerate(chosen):
        source = sampled[kind]
        at = _worst(prompt, source["responses"], taken=texts) if kind == WORST else j
        text = str(source["responses"][at])
        texts.append(_replaced(text, given["replaced"], rng) if kind == REPLACED else text)
        finished.append(bool(source["finished"][at]))
    return {
        "id": first["id"],
        "prompt": prompt,
        "responses": texts,
        "scores": [score(prompt, text) for text in texts],
        "finished": finished,
        "meta": {"language": "toy-reviews", "kinds": list(chosen)},
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


def _sampled(given: Given, seed: int, stream: int, samples: int, temperature: float) -> list[dict[str, Any]]:
    """Responses of the shipped model to the seed's prompts; another stream, other random numbers."""
    import rlalign_plugin_toy_tasks as toys

    task = {"toy-reviews": {"seed": seed, "size": given["prompts"], "responses": 1, "references": 0}}
    how = {"samples": samples, "temperature": temperature, "max_new_tokens": given["longest"]}
    asked = {"split": "train", "examples": given["prompts"]}
    asked |= {f"generation.{key}": value for key, value in how.items()}
    model = Path(toys.__file__).parent / "models" / "toy-reviews"
    return core.model_samples(model, task, asked, seed=10 * seed + stream)


def prompts(given: Given, split: str) -> list[dict[str, Any]]:
    """The prompts of a held-out split of toy-reviews, for all seeds the same."""
    from rlalign_plugin_toy_tasks import ToyReviews

    task = ToyReviews(ToyReviews.Config(held_out=given["held_out"], responses=1, references=0))
    return [
        {"id": e.id, "prompt": e.prompt, "meta": {"language": "toy-reviews"}} for e in task.examples(split)
    ]


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
