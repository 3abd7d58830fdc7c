"""How cost grows: tokens a processor second of sampling, as one size grows and the others stay; prints JSON.

    python -m benchmarks.speed.growth --work FOLDER
    python -m benchmarks.speed.growth --draw            the plot, of the newest results

Batch: rows share what an operation costs however few they are, until arithmetic outweighs it. Length: attention reads
a longer cache at every step. Vocabulary: the head and the sampler cost as much a token as there are tokens to choose
from. Samples: a prompt is read once for all its responses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import shapes
from benchmarks.common.sampling import open_policy, ours
from benchmarks.common.timing import alternating

ROWS, PROMPT, NEW, VOCABULARY = 32, 16, 48, 1000
SHARED = 128
"""Tokens of the prompt where what grows is the number of its samples."""
AXES: dict[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "length": (16, 32, 64, 128, 256, 512),
    "vocabulary": (250, 1000, 4000, 16000, 50257),
    "samples": (1, 2, 4, 8, 16, 32),
}


def policy_of(vocabulary: int, folder: Path, longest: int) -> Any:
    from transformers import AutoModelForCausalLM

    config = shapes.config_of("tiny")
    config.vocab_size, config.n_positions = vocabulary, longest
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    shapes.write_tokenizer(folder / "tokenizer", vocabulary)
    return open_policy(folder)


def axis(what: str, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        longest = PROMPT + max(SHARED, max(sizes) if what == "length" else NEW) + NEW
        held = {
            v: policy_of(v, Path(place) / str(v), longest)
            for v in (sizes if what == "vocabulary" else (VOCABULARY,))
        }
    plain = held.get(VOCABULARY)
    ways: dict[str, Callable[[], Any]] = {}
    for size in sizes:
        ways[str(size)] = {
            "batch": lambda n=size: ours(plain, n, 1, PROMPT, NEW),
            "length": lambda n=size: ours(plain, ROWS, 1, PROMPT, n),
            "vocabulary": lambda n=size: ours(held[n], ROWS, 1, PROMPT, NEW),
            "samples": lambda n=size: ours(plain, max(sizes), n, SHARED, NEW),
        }[what]()
    spent = alternating(ways, rounds)
    tokens = [(n if what == "batch" else ROWS) * (n if what == "length" else NEW) for n in sizes]
    if what == "samples":
        tokens = [max(sizes) * NEW] * len(sizes)
    seconds = [[cpu for cpu, _ in spent[str(n)]] for n in sizes]
    speed = [t / statistics.median(s) for t, s in zip(tokens, seconds, strict=True)]
    return {"sizes": list(sizes), "tokens/s": speed, "knee": knee(what, sizes, speed), "seconds": seconds}


def knee(what: str, sizes: Sequence[int], speed: Sequence[float]) -> int | None:
    """Where half of the speed is lost (length, vocabulary), or half (batch) or nine tenths of it are reached."""
    if what in ("length", "vocabulary"):
        return next((n for n, x in zip(sizes, speed, strict=True) if x < max(speed) / 2), None)
    share = 0.5 if what == "batch" else 0.9
    return next(n for n, x in zip(sizes, speed, strict=True) if x >= share * max(speed))


def draw(axes: Mapping[str, Any], path: Path) -> Path:
    """A panel for each size that grows, its knee marked."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same figures give the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(axes), figsize=(3.2 * len(axes), 3), layout="constrained")
    for panel, (what, one) in zip(panels, axes.items(), strict=True):
        panel.plot(one["sizes"], one["tokens/s"], color="#1f4e79", linewidth=1.8, marker="o", markersize=3)
        if one["knee"] is not None:
            panel.axvline(one["knee"], color="#b4552d", linewidth=0.9, linestyle=":")
        panel.set_xscale("log", base=2)
        panel.set_xlabel({"length": "new tokens", "samples": "samples a prompt"}.get(what, what))
        panel.set_ylim(0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("tokens a processor second")
    figure.savefig(path, metadata={"Date": None})
    return path


def main() -> None:
    from benchmarks.speed import report

    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--work", type=Path, help="not used: the models are made for each size")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--draw", action="store_true", help="measure nothing")
    said = ask.parse_args()
    if said.draw:
        print(draw(report.latest("speed")["growth"]["all"]["axes"], report.RESULTS / "growth.svg"))
        return
    axes = {what: axis(what, sizes, said.rounds) for what, sizes in AXES.items()}
    print(json.dumps({"axes": axes, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
