"""What `make demo` runs: a small language model learns to write kind reviews, and what came of it.

The same from a shell: rlalign run examples/quickstart.yaml
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlalign
from rlalign.running.display import LiveDisplay, PlainDisplay, closed_on_failure, make_display

HERE = Path(__file__).resolve().parent
SHOWN = {
    "sentiment": "eval/toy-sentiment",
    "grammatical": "eval/toy-grammar",
    "KL per text": "eval/kl/per_response",
    "distinct-2": "eval/toy-reviews/distinct-2",
    "finished": "eval/finished",
}
SAMPLES = 6


class Brief(PlainDisplay):
    """A line every few seconds; what the evaluations found stands in the table at the end."""

    def __init__(self) -> None:
        super().__init__(interval=4.0)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        pass

    def sample(self, row: Mapping[str, Any]) -> None:
        pass

    def finished(self, summary: Mapping[str, Any]) -> None:
        pass


class Panel(LiveDisplay):
    """The panel; what came of the run stands below the table at the end."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Align a small language model in a minute.")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to examples/quickstart.yaml"
    )
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where runs live")
    parser.add_argument("--seed", type=int, help="seed of the run")
    asked = parser.parse_args()
    started = time.monotonic()
    print("$ rlalign run examples/quickstart.yaml", *asked.overrides, flush=True)
    display = Brief() if isinstance(make_display(), PlainDisplay) else Panel()
    with closed_on_failure(display):
        display.stage("importing what quickstart.yaml names")
        result = rlalign.run(
            rlalign.load(HERE / "quickstart.yaml", asked.overrides, seed=asked.seed),
            root=os.path.relpath(asked.runs),
            display=display,
        )
    show(result)
    print(f"\n  Took {time.monotonic() - started:.0f} s.")


def show(result: rlalign.Result) -> None:
    """The table before → after, some samples, and where everything is."""
    rows, samples = result.evaluations, result.samples
    print(f"\n{'':13}{'before':>10}{'after':>10}")
    for name, key in SHOWN.items():
        before, after = (round(row[key], 3) + 0.0 for row in (rows[0], rows[-1]))  # no −0.000
        print(f"  {name:11}{before:10.3f}{after:10.3f}")
    for when, iteration in (("before", 0), ("after", rows[-1]["iteration"])):
        print(f"\n  {when}:")
        for sample in [s for s in samples if s["iteration"] == iteration][:SAMPLES]:
            print(f"    {sample['scores']['toy-sentiment']:+.2f}  {sample['prompt']} | {sample['response']}")
    print(f"\n  the model     {result.model}, an ordinary transformers folder")
    print(f"  its curves    pip install tensorboard; tensorboard --logdir {result.folder}")
    print(f"  all figures   {result.folder / 'metrics.jsonl'}")
    print(
        "  to go on      .venv/bin/rlalign run examples/quickstart.yaml rewards.kl.coef=0.3 (it stays nearer)"
    )
    print("                your own data, reward and model: docs/pipeline.md")


if __name__ == "__main__":
    main()
