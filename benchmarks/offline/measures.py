"""What is read off a finished run: how far it fell, and what it learned from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any


def derive(row: Any, given: Mapping[str, Any]) -> dict[str, float]:
    """How far a run fell from its best checkpoint to the last."""
    known = row.metrics
    return {"fall": known["best.reward"] - known["last.reward"]} if "best.reward" in known else {}


def of_run(run: Any) -> dict[str, float]:
    """What a run learned from, and what it sampled for that."""
    trained = [row for row in run.logged if "responses" in row]
    sampled = [row for row in trained if _phase(run.pipeline, row["phase"]).get("rewards")]
    learned, left_out = used(run.pipeline, trained, run.folder)
    return {
        "steps": sum(row.get("optimiser_steps", 0) for row in trained if row["phase"] != "value"),
        "learned": learned,
        "sampled": sum(row["responses"] for row in sampled),
        "sampled_tokens": sum(row["tokens"] for row in sampled),
        "left_out": round(left_out, 4),
    }


def _phase(pipeline: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A phase by its name; a pipeline without phases is one itself."""
    named = [phase for phase in pipeline.get("phases", ()) if phase["name"] == name]
    return named[0] if named else pipeline


def _options(algorithm: Any) -> dict[str, Mapping[str, Any]]:
    """The items of `algorithm`, by name."""
    listed = algorithm if isinstance(algorithm, list) else [algorithm]
    return {
        name: options
        for item in listed
        for name, options in ({item: {}} if isinstance(item, str) else item).items()
    }


def used(
    pipeline: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[int, float]:
    """Responses learned from (behind a threshold an estimate), and the share of those given that never are."""
    learned = given = kept = 0.0
    log = Path(pipeline["task"]["dataset"]["path"]) / "train.jsonl"
    pool = cache(lambda repeat: _scores(folder / "rows" / f"grow-{repeat + 1}.jsonl") + _scores(log))
    for row in trained:
        phase = _phase(pipeline, row["phase"])
        algorithm = _options(phase["algorithm"])
        if algorithm.keys() & {"collect", "fit-value"}:
            continue
        drawn, share = row["responses"], next((x for key, x in row.items() if key.endswith("/kept")), 1.0)
        if share < 1:  # only what is kept is drawn at all
            given, kept, learned = given + drawn / share, kept + drawn, learned + drawn
            continue
        count = most = float(drawn)
        if "best-vs-worst" in algorithm:
            count = 2 * row["groups"]
        elif "best-of" in algorithm:
            count = row["groups"]
        elif "at-least" in algorithm:
            threshold = algorithm["at-least"]["threshold"]
            count = drawn * fmean(score > threshold for score in pool(row["repeat"]))
            most = algorithm["at-most"]["n"]
        given, kept = given + drawn, kept + count
        learned += min(count, most) * phase["train"].get("epochs", 1)
    return round(learned), 1 - kept / given


def _scores(file: Path) -> list[float]:
    return [score for line in file.read_text().splitlines() for score in json.loads(line)["scores"]]
