"""Algorithms that TRL lacks, each beside what it is made of, in one process and in turn; prints JSON.

NLPO's sampling beside plain sampling; A-LoL beside supervised learning on the same logged responses; PPO of an
encoder–decoder beside PPO of a decoder of the same width and depth.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import nlpo_step
from benchmarks.common import shapes
from benchmarks.common.timing import alternating, compared
from benchmarks.speed.work import COMPONENTS, Row, pipeline

from rlalign.running import loop
from rlalign.testing.bench import Bench

ROUNDS, WARM_UP = 9, 2
NAMES = {"tiny": "GPT-2, 2 × 128", "llama": "Llama, 4 × 256"}


def nlpo(shape: str, rounds: int) -> dict[str, Any]:
    """NLPO's sampling within a top-p set, of `benchmarks.nlpo_step`."""
    one = nlpo_step.sampling(shape, peaked=False, rounds=rounds, top_p=0.9, halves=False)
    cpu = {"ours": one["seconds"]["plain"], "other": one["seconds"]["nlpo"], "ratio": one["ratio"]["nlpo"]["cpu"]}
    return {"what": f"NLPO's sampling, {NAMES[shape]}", "beside": "sampling", "n": rounds, "cpu": cpu}


def phases(said: dict[str, dict[str, Any]], place: Path) -> dict[str, Iterator[int]]:
    """Phases held open; each yields after an iteration."""
    made = {name: Bench(place / name, pipeline, COMPONENTS) for name, pipeline in said.items()}
    return {name: loop.iterate(bench.phase) for name, bench in made.items()}


def pair(what: str, beside: str, said: dict[str, dict[str, Any]], place: Path, rounds: int) -> dict[str, Any]:
    """One iteration of each in turn."""
    open_ = phases(said, place)
    spent = alternating({name: lambda n=name: next(open_[n]) for name in said}, rounds, WARM_UP)
    plain, other = spent.values()
    return {"what": what, "beside": beside, "n": rounds, **compared(plain, other)}


def a_lol(root: Path, place: Path, rounds: int) -> dict[str, Any]:
    """The phase of A-LoL that learns, with a reference and the values of the prompts, beside cross-entropy."""
    folder, steps = shapes.lay("tiny", root), rounds + WARM_UP
    plain = pipeline(Row("tiny", "dpo", "S", "float32"), folder, steps)
    lol = {**plain, "algorithm": "a-lol", "models": {"value": {"value-head": {"trunk": "reference", "per_prompt": True}}}}
    said = {"sft": {**plain, "algorithm": "sft"}, "a-lol": lol}
    return pair("A-LoL, GPT-2, 2 × 128", "SFT", said, place, rounds)


def encoder_decoder(root: Path, place: Path, rounds: int) -> dict[str, Any]:
    row, steps = Row("tiny", "ppo", "S", "float32"), rounds + WARM_UP
    said = {}
    for kind, shape in (("causal-lm", "tiny"), ("seq2seq-lm", "t5")):
        folder = shapes.lay(shape, root)
        policy = {kind: {"path": str(folder), "tokenizer": str(folder / "tokenizer")}}
        said[shape] = {**pipeline(row, folder, steps), "policy": policy}
    return pair("PPO, T5, 2 + 2 × 128", "PPO, GPT-2, 2 × 128", said, place, rounds)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--work", type=Path, required=True, help="models are kept here")
    ask.add_argument("--rounds", type=int, default=ROUNDS)
    said = ask.parse_args()
    with tempfile.TemporaryDirectory() as place:
        pairs = [
            a_lol(said.work, Path(place) / "a-lol", said.rounds),
            encoder_decoder(said.work, Path(place) / "ppo", said.rounds),
            *(nlpo(shape, said.rounds) for shape in NAMES),
        ]
    print(json.dumps({"pairs": pairs, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
