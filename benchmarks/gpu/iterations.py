"""Whole iterations through the ordinary loop: seconds by parts, and the share of the card's arithmetic in an update."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import shapes
from benchmarks.common.timing import summary
from benchmarks.gpu.roofline import Rates, least_train_seconds, sizes, train_seconds
from benchmarks.gpu.sampling import peak
from benchmarks.speed.work import COMPONENTS

from rlalign.data.settings import Train
from rlalign.running.measured import Costs, Memory
from rlalign.testing.bench import Bench
from rlalign.world import sharding
from rlalign.world.ranks import World, become, here
from rlalign_plugin_hf import CausalLM

KL: dict[str, Any] = {"rewards": ["odd", {"kl": {"coef": 0.05}}]}
OWN: dict[str, Any] = {"models": {"value": {"value-head": {"trunk": "own"}}}}
HALVES = {"weights": "bfloat16"} if "weights" in Train.model_fields else {}
METHODS: dict[str, dict[str, Any]] = {
    "rloo": {"algorithm": "rloo", **KL},
    "ppo": {"algorithm": "ppo", **KL, **OWN},
    "nlpo": {"algorithm": {"nlpo": {"top_p": 0.9}}, **KL, **OWN},
    "dpo": {"algorithm": "dpo", "responses": "logged"},
}


class MadeThere(CausalLM):
    """Whose random weights are made where they are needed: a large model would take a minute on the host."""

    def setup(self) -> None:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            super().setup()


class One(World):
    """A single process that cuts its weights all the same: what FSDP2 costs without anybody to talk to."""

    cuts = True

    @classmethod
    @contextmanager
    def here(cls, device: str) -> Iterator[None]:
        before = here()
        store = torch.distributed.HashStore()
        kind = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(kind, store=store, rank=0, world_size=1)
        become(cls())
        try:
            yield
        finally:
            become(before)
            torch.distributed.destroy_process_group()
            sharding._mesh.cache_clear()


def pipeline(
    folder: Path, device: str, method: str, prompts: int, k: int, prompt: int, new: int, count: int
) -> dict[str, Any]:
    texts = {
        "folder": str(folder),
        "size": prompts * count,
        "prompt": prompt,
        "new": new,
        "logged": method == "dpo",
    }
    tokenizer = str(shapes.tokenizer_of(folder))
    return {
        "task": {"texts": texts},
        "policy": {"made-there": {"path": str(folder), "tokenizer": tokenizer, "init": "random"}},
        **METHODS[method],
        "device": device,
        "generation": {"samples": k, "max_new_tokens": new},
        "train": {"iterations": count, "prompts": prompts, "lr": 1e-6, "dtype": "bfloat16", **HALVES},
        "checkpoints": {"every": 1000},
    }


def iterations(said: dict[str, Any], rates: Rates) -> dict[str, Any]:
    """Seconds of an iteration by parts, and what share of the card's rate the update reaches; the first is left out.

    The share counts six operations a weight and token, prompts and responses alike, once for each epoch: what is
    saved by reading a prompt once for all its responses counts as speed. The share of what must be computed does not
    count that, and so is what the card really does. Where a response ends early, by chance, it is counted whole.
    """
    found: dict[str, Any] = {}
    texts, count = said["task"]["texts"], said["train"]["iterations"]
    with tempfile.TemporaryDirectory() as root, peak(found):
        memory = Memory(torch.device(said["device"]))
        held = Bench(Path(root), said, COMPONENTS | {"made-there": MadeThere})
        costs = Costs(held.phase, memory)
        rows = []
        for _ in range(count):
            rows.append(held.iterate())
            costs.iteration()
        for key in sorted({key for row in rows[1:] for key in row if key.startswith("time/")}):
            found[key] = summary([row[key] for row in rows[1:] if key in row])
        train = held.phase.settings.train
        k = 2 if texts["logged"] else said["generation"]["samples"]
        tokens = train.prompts * k * (texts["prompt"] + texts["new"])
        found["tokens"] = tokens
        model = sizes(held.session.models.policy.network)
        work = train_seconds(model, tokens * train.epochs, rates)
        least = least_train_seconds(model, train.prompts, k, texts["prompt"], texts["new"], rates)
        found["share of the card's rate in the update"] = work / found["time/update"]["median"]
        found["share of what must be computed"] = train.epochs * least / found["time/update"]["median"]
        found["whole iteration, tokens/s"] = tokens / found["time/iteration"]["median"]
        found["budget"], found["head_chunk"] = held.engine.budget, held.engine.head_chunk
        found["weights are cut"] = any(sharding.is_cut(p) for p in held.session.models.policy.parameters())
        found["estimated"], found["measured"] = costs.estimated, costs.measured
    return found


def brief(one: dict[str, Any]) -> str:
    parts = ", ".join(f"{k.removeprefix('time/')} {v['median']:.3f}" for k, v in one.items() if "time/" in k)
    share, least = one["share of the card's rate in the update"], one["share of what must be computed"]
    at = f"update at {share:.0%} of the card, {least:.0%} with each prompt once"
    return f"{one['tokens']:,} tokens: {parts} s; {at}; {one.get('peak GiB', 0):.1f} GiB"
