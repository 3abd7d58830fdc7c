"""What RL4LMs was measured at, run with rlalign: seconds, memory, and how fast it learns (README.md beside this).

python -m benchmarks.rl4lms.bench                  every row, then the learning curves; goes on where it stopped
python -m benchmarks.rl4lms.bench A-ppo S-ppo      these rows
python -m benchmarks.rl4lms.bench --report         what is in the results file, measured again by nobody
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.machine import about
from benchmarks.rl4lms import curves, models, rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDED: dict[str, Any] = json.loads((HERE / "recorded.json").read_text())
AIMS = {"A": 15, "B": 30, "A-s2s": 12, "B-s2s": 25, "S": 6}
"""How many times faster an iteration should be than the record's; memory: half of it."""
COUNTED = {"S": 4, "LC": 15}
"""Iterations measured after the first."""
LEARNING = "learning"
PLUGINS = ("rlalign-plugin-ppo", "rlalign-plugin-nlpo", "rlalign-plugin-hf")


def speed_rows() -> list[str]:
    """The rows of the record's table; `-1t` is one thread."""
    return list(RECORDED["rows"])


def learning_rows(seeds: int) -> list[str]:
    """A method and a seed, in the configuration LC."""
    return [f"{LEARNING}-{method}-{seed}" for method in rows.METHODS for seed in range(seeds)]


def row_pipeline(row: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    """The pipeline of a row, its model laid out in `folder`; and the threads it runs on, if the row says so."""
    threads = 1 if row.endswith("-1t") else None
    name = row.removesuffix("-1t")
    if name.startswith(LEARNING):
        _, method, seed = name.split("-")
        work, iterations, seeded = rows.WORKS["LC"], len(RECORDED["learning"]["ppo-0"]), int(seed)
    else:
        config, _, method = name.rpartition("-")
        work, iterations, seeded = rows.WORKS[config], 1 + COUNTED.get(config, 10), 0
    models.lay(work.model, folder)
    return rows.pipeline(work, method, folder, iterations=iterations, seed=seeded), threads


def measure(row: str, folder: Path, threads: int, wait: str) -> dict[str, Any]:
    """Run a row in a process of its own."""
    pipeline, own = row_pipeline(row, folder)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "OMP_NUM_THREADS": str(own or threads),
        "TOKENIZERS_PARALLELISM": "false",
        **({} if wait == "default" else {"OMP_WAIT_POLICY": wait}),
    }
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / f"{row}.yaml"
        file.write_text(json.dumps(pipeline))
        command = [sys.executable, "-m", "benchmarks.rl4lms.measure", str(file), place]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{row} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if row.startswith(LEARNING):
        return {name: [line[name] for line in found["iterations"]] for name in LEARNED}
    return summary(found, wait)


LEARNED = ("reward/increasing-numbers", "kl/k1", "wall")


def summary(found: Mapping[str, Any], wait: str) -> dict[str, Any]:
    """The figures of a speed row: medians over the iterations after the first."""
    counted = found["iterations"][1:]

    def median(*names: str) -> float:
        return float(statistics.median(sum(line[name] for name in names) for line in counted))

    first = counted[0]
    rollout = median("time/rollout", "time/score", "time/reward", "time/advantage")
    update, steps, tokens = median("time/update"), int(first["optimiser_steps"]), int(first["tokens"])
    return {
        "iterations": len(counted),
        "iteration_s": median("wall"),
        "fastest_s": min(line["wall"] for line in counted),
        "cpu_s": median("cpu"),
        "rollout_s": rollout,
        "rollout_tokens_s": tokens / rollout,
        "train_s": update,
        "tokens": tokens,
        "optimiser_steps": steps,
        "setup_s": found["setup"],
        "main_gb": found["peak_bytes"] / 1e9,
        "threads": found["threads"],
        "wait": wait,
        "others_cores": max(line["others"] for line in counted),
        "load": max(line["load"] for line in counted),
    }


# -- the results file ---------------------------------------------------------------------------------------


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


# -- the report ---------------------------------------------------------------------------------------------


def ratios(row: str, found: Mapping[str, Any]) -> dict[str, float]:
    """How many times faster than the record, stage by stage; and the share of its memory."""
    was = RECORDED["rows"][row]
    return {
        "iteration": was["iteration_s"] / found["iteration_s"],
        "rollout": found["rollout_tokens_s"] / was["rollout_tokens_s"],
        "train": was["train_s"] / found["train_s"],
        "step": (was["train_s"] / was["optimiser_steps"]) / (found["train_s"] / found["optimiser_steps"]),
        "memory": found["main_gb"] / memory(was),
    }


def memory(was: Mapping[str, float]) -> float:
    """The record's main process and its workers, GB; the row of one thread says nothing of it."""
    return was.get("main_gb", math.nan) + was.get("workers_gb", math.nan)


def _known(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2f}"


def report(results: Mapping[str, Any]) -> str:
    """Tables of the speed rows and of learning, in Markdown."""
    lines = [
        "| row | s/iteration | recorded | × | aim | rollout × | update × | × a step | GB | recorded | share "
        "| other cores busy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in speed_rows() if row in results["rows"]):
        found, was = results["rows"][row], RECORDED["rows"][row]
        r, aim = ratios(row, found), AIMS.get(row.rpartition("-")[0])
        mark = (
            "" if aim is None or row.endswith("-1t") else f"{aim}" if r["iteration"] >= aim else f"**{aim}**"
        )
        lines.append(
            f"| {row} | {found['iteration_s']:.2f} | {was['iteration_s']:.1f} | {r['iteration']:.1f} | {mark} "
            f"| {r['rollout']:.1f} | {r['train']:.1f} | {r['step']:.1f} | {found['main_gb']:.2f} "
            f"| {_known(memory(was))} | {_known(r['memory'])} | {found['others_cores']:.2f} |"
        )
    learnt = curves.summary(RECORDED["learning"], results["learning"])
    return "\n".join([*lines, "", *learnt])


def main() -> None:
    """The command line."""
    every = speed_rows()
    parser = argparse.ArgumentParser(description="RL4LMs' recorded runs, with rlalign.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(every)}, or {LEARNING}")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of each method's learning curve")
    parser.add_argument("--threads", type=int, default=2, help="of torch; a row `-1t` has one")
    waits = ["default", "passive", "active"]
    parser.add_argument(
        "--wait", default="default", choices=waits, help="OMP_WAIT_POLICY; the record's default"
    )
    parser.add_argument(
        "--out", type=Path, help="results file; by default benchmarks/results/rl4lms-DATE.json"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "bench-rl4lms", help="models are kept here"
    )
    parser.add_argument("--again", action="store_true", help="measure rows anew that are in the file")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if wrong := sorted(set(asked.rows) - {*every, LEARNING}):
        parser.error(f"no row {wrong[0]}; there are {', '.join(every)} and {LEARNING}")
    today = datetime.date.today().isoformat()
    out: Path = asked.out or ROOT / "benchmarks" / "results" / f"rl4lms-{today}.json"
    results: dict[str, Any] = {"date": today, "about": about(*PLUGINS), "rows": {}, "learning": {}}
    if out.exists():
        results |= json.loads(out.read_text())
    asked.work.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in every if not asked.rows or row in asked.rows]
    if not asked.rows or LEARNING in asked.rows:
        wanted += learning_rows(asked.seeds)
    for row in [] if asked.report else wanted:
        kind, name = ("learning", row.removeprefix(f"{LEARNING}-")) if LEARNING in row else ("rows", row)
        if name in results[kind] and not asked.again:
            continue
        print(f"{row} …", flush=True)
        results[kind][name] = measure(row, asked.work.resolve(), asked.threads, asked.wait)
        save(out, results)
    print(report(results))
    if results["learning"]:
        print(curves.draw(RECORDED["learning"], results["learning"], out.with_suffix(".svg")))


if __name__ == "__main__":
    main()
