"""What the runs of a seed begin with: noisy preferences, the reward model fitted to them, the pairs it has scored."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import correlation, fmean, pstdev
from typing import Any

from rlalign_study import core, plan

Given = Mapping[str, Any]
"""How a log is made; study.yaml says what each number means."""
SPARE = 1.1
"""So many times more prompts are sampled for than are needed: two equal samples make no pair."""


def prepare(ground: Any) -> dict[str, float]:
    """Write preferences, fit a reward model to them, and have it score their responses anew."""
    given, name = ground.given, f"{ground.world}-{ground.seed}"
    preferences, model, log = (ground.work / kind / name for kind in ("preferences", "reward-models", "logs"))
    for folder in (model, log):
        shutil.rmtree(folder, ignore_errors=True)
    found = written(given, ground.seed, preferences)
    run = _run(ground, "fit")
    for split in ("train", "val"):
        asked = {"split": split, "examples": given["held_out"], "use": ["pair-accuracy"]}
        measured = core.evaluated(run, asked, {})
        found[f"{split}.accuracy"] = round(measured["eval/pair-accuracy/accuracy"], 4)
    shutil.copytree(run / "model", model)
    shutil.rmtree(run)
    run = _run(ground, "rescore")
    shutil.copytree(preferences, log)
    (rows,) = (run / "rows").iterdir()
    shutil.copy(rows, log / "train.jsonl")
    shutil.rmtree(run)
    return found | scored(log / "train.jsonl")


def _run(ground: Any, which: str) -> Path:
    """A run that `given` describes, made."""
    pipeline = plan.fill(ground.given[which], world=ground.world, seed=ground.seed, work=ground.work)
    name = f"{which}-{ground.world}-{ground.seed}"
    shutil.rmtree(ground.work / name, ignore_errors=True)  # of one that was killed
    run, broke = core.train({**pipeline, "seed": ground.seed}, ground.work, {}, root=ground.work, name=name)
    if broke is not None:
        raise RuntimeError(broke)
    return run


def scored(file: Path) -> dict[str, float]:
    """Of the pairs that are learned from: the spread of learned scores, and how far they agree with the true ones."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    learned = [score for row in rows for score in row["scores"]]
    worth = [x for row in rows for x in (truth(row["prompt"], text) for text in row["responses"])]
    return {
        "learned": round(fmean(learned), 4),
        "learned_sd": round(pstdev(learned), 4),
        "correlation": round(correlation(learned, worth), 4),
    }


def truth(prompt: str, response: str) -> float:
    """What a response is worth, in [0, 1): half of 1 + its sentiment, and 0 where it is no text of the language."""
    from rlalign_plugin_toy_tasks.reviews import PROMPT_WORDS, REVIEWS, sentiment

    text = f"{prompt} {response}"
    return (1 + sentiment(text, PROMPT_WORDS)) / 2 if REVIEWS.accepts(text) else 0.0


def prefers_first(first: float, second: float, sharpness: float, rng: random.Random) -> bool:
    """A draw of Bradley and Terry: the first of two is preferred with probability σ(sharpness · its lead)."""
    return rng.random() < 1 / (1 + math.exp(-sharpness * (first - second)))


def written(given: Given, seed: int, folder: Path) -> dict[str, float]:
    """Write the pairs of a seed, and the prompts it will be judged by; what the pairs are like."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, float] = {}
    for stream, (split, count) in enumerate((("train", given["pairs"]), ("val", given["held_out"]))):
        rows = pairs(given, seed, stream, split, count)
        _write(folder / f"{split}.jsonl", rows)
        found |= {f"{split}.{key}": value for key, value in kinds(rows).items()}
    _write(folder / "test.jsonl", [_prompt(e.id, e.prompt) for e in _task(given, seed).examples("test")])
    return found


def pairs(given: Given, seed: int, stream: int, split: str, count: int) -> list[dict[str, Any]]:
    """So many examples: two different samples of the shipped model, of which a noisy judge prefers one (score 1)."""
    rng = random.Random(f"preferences {seed} {split}")
    made = (_pair(row, given["sharpness"], rng) for row in _sampled(given, seed, stream, split, count))
    rows = list(islice((row for row in made if row is not None), count))
    if len(rows) < count:
        raise ValueError(f"of {split}, only {len(rows)} of {count} prompts have two different samples")
    return rows


def _pair(row: Mapping[str, Any], sharpness: float, rng: random.Random) -> dict[str, Any] | None:
    prompt, texts = str(row["prompt"]), [str(text) for text in row["responses"]]
    if texts[0] == texts[1]:
        return None
    worth = [truth(prompt, text) for text in texts]
    first = prefers_first(worth[0], worth[1], sharpness, rng)
    said = {"responses": texts, "scores": [float(first), float(not first)], "finished": row["finished"]}
    made = _prompt(row["id"], prompt) | said
    made["meta"] |= {
        "references": texts,
        "truth": worth,
    }  # references: what the reward model is normalised on
    return made


def _prompt(id: str, prompt: Any) -> dict[str, Any]:
    return {"id": id, "prompt": prompt, "meta": {"language": "toy-reviews"}}


def kinds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of pairs: mean and spread of what their responses are worth, and how often the preferred one is worth more.

    Pairs that are worth the same count half: no judge can do better on them.
    """
    worth = [row["meta"]["truth"] for row in rows]
    right = [
        0.5 if a == b else float((a > b) == (row["scores"][0] > row["scores"][1]))
        for row, (a, b) in zip(rows, worth, strict=True)
    ]
    every = [x for pair in worth for x in pair]
    return {
        "pairs": len(rows),
        "truth": round(fmean(every), 4),
        "truth_sd": round(pstdev(every), 4),
        "grammar": round(fmean(x > 0 for x in every), 4),
        "right": round(fmean(right), 4),
    }


def _task(given: Given, seed: int, size: int = 1) -> Any:
    from rlalign_plugin_toy_tasks import ToyReviews

    return ToyReviews(
        ToyReviews.Config(seed=seed, size=size, held_out=given["tested"], responses=1, references=0)
    )


def _sampled(given: Given, seed: int, stream: int, split: str, count: int) -> list[dict[str, Any]]:
    """Two responses of the shipped model to each of the seed's prompts, and to some more."""
    import rlalign_plugin_toy_tasks as toys

    asked = math.ceil(SPARE * count)
    task = {"toy-reviews": {"seed": seed, "size": asked, "held_out": asked, "responses": 1, "references": 0}}
    how = {"samples": 2, "temperature": 1.0, "max_new_tokens": given["longest"]}
    model = Path(toys.__file__).parent / "models" / "toy-reviews"
    said = {"split": split, "examples": asked} | {f"generation.{key}": value for key, value in how.items()}
    return core.model_samples(model, task, said, seed=10 * seed + stream)


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
