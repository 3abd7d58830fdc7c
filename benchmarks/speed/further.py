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

from rlalign.running.iterating import iterate
from rlalign.running.view import open_phase
from rlalign.testing import bench

ROUNDS, WARM_UP = 9, 2
NAMES = {"tiny": "GPT-2, 2 × 128", "llama": "Llama, 4 × 256"}


def nlpo(shape: str, rounds: int) -> dict[str, Any]:
    """NLPO's sampling within a top-p set, of `benchmarks.nlpo_step`."""
    one = nlpo_step.sampling(shape, peaked=False, rounds=rounds, top_p=0.9, halves=False)
    cpu = {
        "ours": one["seconds"]["plain"],
        "other": one["seconds"]["nlpo"],
        "ratio": one["ratio"]["nlpo"]["cpu"],
    }
    return {"what": f"NLPO's sampling, {NAMES[shape]}", "beside": "sampling", "n": rounds, "cpu": cpu}


def opened(said: dict[str, Any], place: Path) -> Iterator[int]:
    """The last phase of a pipeline held open, those before it done; yields after an iteration."""
    session = bench.session(place, said, COMPONENTS)
    for at, plan in enumerate(session.plans):
        phase = session.phase = open_phase(session, plan, 0, at)
        phase.start()
        if at == len(session.plans) - 1:
            return iterate(phase)
        for _ in iterate(phase):
            pass
    raise AssertionError("a pipeline has phases")


def pair(what: str, beside: str, said: dict[str, dict[str, Any]], place: Path, rounds: int) -> dict[str, Any]:
    """One iteration of each in turn, the plain one first."""
    open_ = {name: opened(pipeline, place / name) for name, pipeline in said.items()}
    spent = alternating({name: lambda n=name: next(open_[n]) for name in said}, rounds, WARM_UP)
    plain, other = spent.values()
    return {"what": what, "beside": beside, "n": rounds, **compared(plain, other)}


def a_lol(root: Path, place: Path, rounds: int) -> dict[str, Any]:
    """The phase of A-LoL that learns, from a response to each of 32 prompts, beside cross-entropy on 32 responses."""
    steps = rounds + WARM_UP
    plain = pipeline(Row("tiny", "dpo", "S", "float32"), shapes.lay("tiny", root), steps)  # 16 pairs
    train = {**plain["train"], "prompts": 32}
    texts = {**plain["task"]["texts"], "size": 32 * steps}
    lol = {key: x for key, x in plain.items() if key != "algorithm"} | {
        "task": {"texts": texts},
        "models": {"value": {"value-head": {"trunk": "reference", "per_prompt": True}}},
        "train": train,
        "phases": [
            {"name": "value", "algorithm": "fit-value", "train": {**train, "iterations": 1}},
            {"name": "align", "algorithm": "a-lol"},
        ],
    }
    return pair(
        "A-LoL, GPT-2, 2 × 128", "SFT", {"sft": {**plain, "algorithm": "sft"}, "a-lol": lol}, place, rounds
    )


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
