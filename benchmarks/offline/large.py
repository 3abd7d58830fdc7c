"""How much memory and time a large log takes: rows of 1,000 tokens, drawn in proportion to their reward.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.offline.large --rows 200000

Each part is a process of its own: `cold` reads the data, computes the column and stops at the first checkpoint;
`warm` goes on from there, with the column on disk, and takes 50 steps; `halves` does the same in two processes, and
must end at the same bits; `drawn` counts which rows are drawn. Prints JSON: seconds to the first step, seconds a step,
and the largest resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.machine import about

WORDS, TOKENS, STEPS = 200, 1000, 50
DRAWS, BINS = 100_000, 100
ROOT = Path(__file__).resolve().parents[2]


def write_model(folder: Path) -> None:
    """A random GPT-2 of one small layer that reads 1,100 tokens, and a tokenizer of as many words as it has."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    words = {"<end>": 0, **{f"w{i}": i + 1 for i in range(WORDS)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 1100, "vocab_size": WORDS + 1}
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))


def write_log(path: Path, rows: int) -> None:
    """Random pieces of a hundred words with random scores; a quarter earns nothing."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(WORDS)]
    pieces = [" ".join(rng.choices(words, k=100)) for _ in range(500)]
    last = [" ".join(rng.choices(words, k=TOKENS - 901)) for _ in range(500)]  # and the end is a token too
    with path.open("w") as file:
        for i in range(rows):
            score = max(0.0, rng.random() - 0.25)
            text = " ".join([*rng.choices(pieces, k=9), rng.choice(last)])
            row = {"id": str(i), "prompt": f"w{i % WORDS} w1 ", "response": text, "score": score}
            file.write(json.dumps(row) + "\n")


def pipeline(folder: Path) -> dict[str, Any]:
    """R-LoL on all of it."""
    columns = {"prompt": "prompt", "responses": "response", "scores": "score", "id": "id"}
    return {
        "task": {"dataset": {"path": str(folder / "log.jsonl"), **columns}},
        "policy": {"causal-lm": {"path": str(folder / "model"), "init": "random"}},
        "rewards": ["logged"],
        "algorithm": {"r-lol": {}},
        "train": {"iterations": 2 * STEPS, "prompts": 4, "lr": 1e-4},
        "checkpoints": {"every": 1},
    }


def work(folder: Path, runs: str, steps: int) -> dict[str, Any]:
    """Go on with the run in this folder, or begin it, for so many steps."""
    started = time.perf_counter()
    from rlalign.config.load import load_pipeline
    from rlalign.records.weights import fingerprint
    from rlalign.running import loop
    from rlalign.testing.bench import Silence

    if (folder / runs).exists():
        session = loop.resume(folder / runs / "large", display=Silence())
    else:
        file = folder / "pipeline.yaml"
        file.write_text(json.dumps(pipeline(folder)))
        session = loop.start(load_pipeline(file), root=folder / runs, name="large", display=Silence())
    opened = time.perf_counter() - started
    seen: list[float] = []

    def stop(*_: Any) -> None:
        seen.append(time.perf_counter() - started)
        session.stopping = len(seen) >= steps

    session.display.iteration = stop  # type: ignore[assignment, method-assign]
    with contextlib.suppress(loop.Interrupted):
        session.run()
    return {
        "opened_s": round(opened, 2),
        "first_step_s": round(seen[0], 2),
        "steps": len(seen),
        "step_s": round((seen[-1] - seen[0]) / (len(seen) - 1), 3) if len(seen) > 1 else None,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "weights": fingerprint(session.models.policy)[:16],
    }


def drawn(folder: Path, runs: str) -> dict[str, Any]:
    """Draw as the run does; χ² of the rows drawn against their share of all gains, in a hundred bins."""
    from rlalign.learning.draw import Draw
    from rlalign.randomness import Seeds
    from rlalign.running import loop
    from rlalign.testing.bench import Silence

    session = loop.resume(folder / runs / "large", display=Silence())
    (column,) = (folder / runs / "large" / "columns").glob("*/values.f64")
    gain = torch.from_file(str(column), size=column.stat().st_size // 8, dtype=torch.float64)
    draw = Draw(session.data.split(session.plans[0], "train"), Seeds(0), ("draw", 0, 0))
    draw.weights(gain)
    rows = torch.tensor([example.row for example in draw.next(DRAWS)])
    bins = (
        (BINS * (gain.cumsum(0) - gain / 2) / gain.sum()).long().clamp(max=BINS - 1)
    )  # a last row without gain
    expected = DRAWS * torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, gain) / gain.sum()
    counted = torch.bincount(bins[rows], minlength=BINS)
    some = expected > 0  # with few rows not every bin has one
    chi2 = float(((counted - expected)[some] ** 2 / expected[some]).sum())
    nothing = int((gain[rows] <= 0).sum())
    return {"draws": DRAWS, "of_no_gain": nothing, "chi2": round(chi2, 1), "freedom": int(some.sum()) - 1}


def apart(folder: Path, runs: str, steps: int) -> dict[str, Any]:
    """`work`, or with no steps `drawn`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.offline.large", "--folder", str(folder)]
    command += ["--runs", runs, "--steps", str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{runs}, {steps} steps: {found}", file=sys.stderr, flush=True)
    return found


def measured(folder: Path, rows: int) -> dict[str, Any]:
    """All parts."""
    write_model(folder / "model")
    write_log(folder / "log.jsonl", rows)
    found: dict[str, Any] = {
        "machine": about(),
        "rows": rows,
        "bytes": (folder / "log.jsonl").stat().st_size,
        "cold": apart(folder, "whole", 1),
    }
    shutil.copytree(folder / "whole", folder / "halves")
    found["warm"] = apart(folder, "whole", STEPS)
    found["halves"] = [apart(folder, "halves", STEPS // 2) for _ in range(2)]
    found["same_bits"] = found["halves"][1]["weights"] == found["warm"]["weights"]
    found["drawn"] = apart(folder, "whole", 0)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    for hidden, kind in (("--folder", Path), ("--runs", str), ("--steps", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder:
        steps = asked.steps
        print(json.dumps(work(asked.folder, asked.runs, steps) if steps else drawn(asked.folder, asked.runs)))
        return
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measured(Path(place), asked.rows), indent=1))


if __name__ == "__main__":
    main()
