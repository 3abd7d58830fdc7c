"""What `make demo` runs: two toys learned in seconds, and what came of them.

The same from a shell: rlalign run examples/bandit.yaml; rlalign run examples/toy-numbers.yaml
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rlalign import loop
from rlalign.display import Display, PlainDisplay, make_display
from rlalign.pipeline import config
from rlalign.records import logs

HERE = Path(__file__).resolve().parent


class Brief(PlainDisplay):
    """A line every second; what an evaluation found stands in the table at the end."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        pass

    def finished(self, summary: Mapping[str, Any]) -> None:
        pass


def display() -> Display:
    """The live panel on a terminal, lines elsewhere."""
    chosen = make_display()
    return Brief() if isinstance(chosen, PlainDisplay) else chosen


def run(name: str, runs: Path) -> Path:
    """Train examples/<name>.yaml in a new folder of `runs`."""
    print(f"\n$ rlalign run examples/{name}.yaml", flush=True)
    return loop.start(config.load(HERE / f"{name}.yaml"), root=runs, display=display()).run().path


def evaluations(path: Path) -> list[dict[str, Any]]:
    return [row for row in logs.read(path / "metrics.jsonl") if "eval/total" in row]


def softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def figures(pi: Sequence[float], reference: Sequence[float], payouts: Sequence[float]) -> dict[str, float]:
    """Expected reward, KL to the reference and the probabilities of a bandit's policy, exactly."""
    kl = sum(p * math.log(p / q) for p, q in zip(pi, reference, strict=True) if p > 0)
    reward = sum(p * r for p, r in zip(pi, payouts, strict=True))
    return {"reward": reward, "KL": kl} | {f"π(arm {i})": p for i, p in enumerate(pi)}


def table(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    rows = next(iter(columns.values()))
    wide = max(map(len, rows))
    print(f"\n{title}\n  {'':{wide}}" + "".join(f"{name:>10}" for name in columns))
    for row in rows:
        print(f"  {row:{wide}}" + "".join(f"{column[row]:10.3f}" for column in columns.values()))


def bandit(runs: Path) -> Path:
    path = run("bandit", runs)
    phase = config.load(path / "pipeline.yaml").phases[0]
    payouts, beta = phase.task.options.payouts, phase.rewards[1].options.coef  # type: ignore[attr-defined]
    reference = [1 / len(payouts)] * len(payouts)
    learned = softmax(load_file(path / "model" / "model.safetensors")["table"][0].tolist())
    optimum = softmax([math.log(q) + r / beta for q, r in zip(reference, payouts, strict=True)])
    shown = {"before": reference, "after": learned, "optimum": optimum}
    table(
        f"bandit: arms pay {', '.join(f'{p:g}' for p in payouts)}; β = {beta:g}; "
        "the optimum is π* ∝ π_ref · exp(R/β)",
        {name: figures(pi, reference, payouts) for name, pi in shown.items()},
    )
    return path


def toy_numbers(runs: Path) -> Path:
    path = run("toy-numbers", runs)
    rows = evaluations(path)
    shown = {"reward": "eval/increasing-numbers", "KL": "eval/kl/per_response", "length": "eval/length"}
    table(
        "toy-numbers: the reward is the share of a response that is an increasing run",
        {
            when: {name: row[key] for name, key in shown.items()}
            for when, row in (("before", rows[0]), ("after", rows[-1]))
        },
    )
    samples = list(logs.read(path / "samples.jsonl"))
    for when, sample in (("before", samples[0]), ("after", samples[-1])):
        print(f"  a response {when}: {sample['response']}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn two toys in seconds.")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where runs live")
    runs = Path(os.path.relpath(parser.parse_args().runs))
    started = time.monotonic()
    folders = [bandit(runs), toy_numbers(runs)]
    print(f"\nTook {time.monotonic() - started:.1f} s. Each run is a folder:")
    for folder in folders:
        print(f"  {folder}: metrics.jsonl · samples.jsonl · events/ · checkpoints/ · model/")
    print(f"Curves: pip install tensorboard; tensorboard --logdir {runs}")


if __name__ == "__main__":
    main()
