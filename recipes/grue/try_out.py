"""Tries recipes where there is neither hub nor GPU: `python -m recipes.grue.try_out imdb/nlpo gsm8k/rloo`.

Two iterations on the task's sample rows, or with `--data` on a copy of its data,
with tiny random models in place of those that are named. Nothing is learned;
it shows whether all goes together, and what a run leaves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ITERATIONS, PROMPTS, SAMPLES = 2, 4, 2
LONGEST = {"max_new_tokens": 12, "min_new_tokens": 4, "beams": 2, "samples": SAMPLES}
"""What `generation` is cut to."""
LIMIT = 64
"""Examples of each split that are taken of a copy."""
ENOUGH = {"gsm8k": {"held_out": 0.5}}
"""Of a dozen rows a twentieth may be none."""


def tiny_models(folder: Path) -> dict[str, Path]:
    """Random models of every kind that recipes name, and their tokenizers, which read letter by letter."""
    from transformers.utils import logging

    from rlalign_plugin_model_rewards.testing import tiny_scorer

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    labels = {i: f"LABEL_{i}" for i in range(5)}
    named = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    return {
        "causal-lm": tiny_scorer(folder / "causal", "gpt2", n_positions=4096),
        "chat": tiny_scorer(folder / "chat", "llama", max_position_embeddings=4096),
        "seq2seq-lm": tiny_scorer(folder / "seq2seq", "t5"),
        "classifier": tiny_scorer(folder / "classifier", "bert-nli", **named),
        "bert-score": tiny_scorer(folder / "encoder", "roberta"),
    }


def shortened(
    recipe: Mapping[str, Any], models: Mapping[str, Path], data: Path | None = None
) -> dict[str, Any]:
    """The recipe on sample rows, or a copy of its data, with tiny models, for two iterations a phase."""
    ((task, options),) = recipe["task"].items()
    chat = options.get("style") == "chat"
    found = small({key: value for key, value in recipe.items() if key != "task"}, models)
    if chat:
        found["policy"] = {"causal-lm": {**found["policy"]["causal-lm"], "path": str(models["chat"])}}
    rows = (
        {"path": str(data.absolute()), "limit": LIMIT} if data else {"sample": True, **ENOUGH.get(task, {})}
    )
    return {"task": {task: {**options, **rows}}, **found}


def small(sections: Mapping[str, Any], models: Mapping[str, Path]) -> dict[str, Any]:
    """Sections of a pipeline, with tiny models and for two iterations."""
    return {key: _small(key, value, models) for key, value in sections.items()}


def _small(key: str, value: Any, models: Mapping[str, Path]) -> Any:
    if key == "generation":
        return {name: min(each, LONGEST.get(name, each)) for name, each in value.items()}
    if key == "train":
        return _short(value)
    if key in ("classifier", "bert-score", "causal-lm", "seq2seq-lm"):
        more = {"layer": 1} if key == "bert-score" else {}
        return {**value, "path": str(models[key]), **more}
    if key == "a-lol":
        return {
            **value,
            "draw": "uniform",
            "clamp": False,
        }  # of random models nothing need be above the value
    if key == "evaluate" and value is not None:
        value = {**value, "examples": 4}
    if isinstance(value, Mapping):
        return {name: _small(name, each, models) for name, each in value.items()}
    if isinstance(value, list):
        return [_small("", each, models) for each in value]
    return value


def _short(train: Mapping[str, Any]) -> dict[str, Any]:
    """As little as still has several optimiser steps an iteration where there were several."""
    found = {name: each for name, each in train.items() if name != "passes"}
    once = train.get("iterations") == 1  # of a whole log: what the phase before it wrote
    found |= (
        {"iterations": 1, "prompts": ITERATIONS * PROMPTS}
        if once
        else {"iterations": ITERATIONS, "prompts": PROMPTS}
    )
    found |= {name: 2 for name in ("minibatch", "minibatches") if name in train}
    return found


def main() -> None:
    import rlalign
    from rlalign.errors import ConfigError

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", metavar="TASK/ALGORITHM")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="a copy of the task's data, for sample rows"
    )
    parser.add_argument("--runs", default="runs", help="the folder of runs")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = tiny_models(Path(folder))
        for name in said.recipes:
            if not (file := HERE / f"{name}.yaml").is_file():
                there = sorted(f"{one.parent.name}/{one.stem}" for one in HERE.glob("*/*.yaml"))
                raise SystemExit(f"error: {name}: no such recipe; there are {', '.join(there)}")
            recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
            try:
                rlalign.run(shortened(recipe, models, said.data), root=said.runs, name=name.replace("/", "-"))
            except ConfigError as error:
                raise SystemExit(f"error: {name}: {error}") from error


if __name__ == "__main__":
    main()
