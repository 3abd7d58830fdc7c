"""rlalign beside TRL: every row of the work in a process of its own (README.md beside this).

python -m benchmarks.speed.bench                         every row; goes on where it stopped
python -m benchmarks.speed.bench --models tiny --algorithms rloo grpo --scenarios S
python -m benchmarks.speed.bench --only growth           how cost grows, and the plot
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common.machine import about
from benchmarks.speed import report, work

from rlalign.running.half import slowdown

ROOT = Path(__file__).resolve().parents[2]
PPO_TRL = ROOT / ".venv-trl" / "ppo"
"""The last TRL with PPO, beside the newest: a folder that goes before it on the path."""
PARTS = ("parity", "rows", "profile", "memory", "checkpoints", "further", "growth", "scoring")


def run(module: str, *arguments: str, ppo: Path | None = None) -> dict[str, Any]:
    """What a module prints last, as JSON; one thread that sleeps while it waits."""
    path = [*([str(ppo)] if ppo else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", f"benchmarks.speed.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-5:]))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Results:
    """The file of a day's figures: what is in it is not measured again, and each figure is written at once."""

    def __init__(self, path: Path, *, again: bool) -> None:
        self.path, self.again = path, again
        self.data: dict[str, Any] = {"date": datetime.date.today().isoformat()}
        if path.exists():
            self.data |= json.loads(path.read_text())

    def take(self, part: str, name: str, way: Any) -> None:
        """Measure one thing; what goes wrong is told and written down, and the others go on."""
        held = self.data.setdefault(part, {})
        if name in held and "failed" not in held[name] and not self.again:
            return
        print(f"{part} {name} …", flush=True)
        try:
            held[name] = way()
        except Exception as error:
            traceback.print_exc()
            held[name] = {"failed": f"{type(error).__name__}: {error}"}
        held[name]["about"] = about(*(["trl"] if find_spec("trl") else []))
        beside = self.path.with_suffix(".tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        beside.replace(self.path)


def measure(
    results: Results, rows: Sequence[work.Row], parts: Sequence[str], said: argparse.Namespace
) -> None:
    ppo = said.ppo_trl if said.ppo_trl.exists() else None

    def arguments(row: work.Row) -> tuple[str, ...]:
        return (row.name, "--folder", str(work.folder_of(row, said.work, said.real)))

    def path_of(row: work.Row) -> Path | None:
        if row.algorithm == "ppo" and ppo is None:
            raise RuntimeError(f"TRL has no PPO since 1.13; there is no older one in {said.ppo_trl}")
        return ppo if row.algorithm == "ppo" else None

    for row in rows if "parity" in parts else ():
        if row.scenario == "S" and row.dtype == "float32" and row.algorithm != "ppo":
            results.take("parity", row.name, lambda row=row: run("parity", *arguments(row)))
    steps = ("--steps", str(said.steps)) if said.steps else ()
    for row in rows if "rows" in parts else ():
        results.take("rows", row.name, lambda r=row: run("measure", *arguments(r), *steps, ppo=path_of(r)))
    plain = [row for row in rows if row.scenario == "S"]
    for row in plain if "profile" in parts else ():
        if not (row.large and row.algorithm == "ppo"):
            results.take("profile", row.name, lambda row=row: run("profile", *arguments(row), *steps))
    for row in plain if "memory" in parts else ():
        for side in ("ours", "trl") if row.dtype == "float32" and row.algorithm != "ppo" else ():
            results.take(
                "memory",
                f"{row.name}/{side}",
                lambda r=row, s=side: run("measure", *arguments(r), "--side", s),
            )
    for row in plain if "checkpoints" in parts else ():
        if row.dtype == "float32" and row.algorithm == "rloo":
            results.take("checkpoints", row.name, lambda row=row: run("checkpoints", *arguments(row)))
    for name in ("further", "growth", "scoring"):
        if name in parts:
            results.take(name, "all", lambda n=name: run(n, "--work", str(said.work)))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--models", nargs="*", choices=work.MODELS, help="all, and `real` if it is named")
    ask.add_argument("--algorithms", nargs="*", choices=work.ALGORITHMS, default=work.ALGORITHMS)
    ask.add_argument("--scenarios", nargs="*", choices=list(work.SCENARIOS), default=list(work.SCENARIOS))
    ask.add_argument("--dtypes", nargs="*", choices=work.DTYPES, default=work.DTYPES)
    ask.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="these parts")
    ask.add_argument("--real", help="folder of a real model: a row more")
    ask.add_argument("--steps", type=int, help="steps that count; each model has a number of its own")
    ask.add_argument("--ppo-trl", type=Path, default=PPO_TRL, help="folder with a TRL that has PPO")
    ask.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-speed", help="models are kept here")
    ask.add_argument("--out", type=Path, help="by default benchmarks/results/speed-DATE.json")
    ask.add_argument(
        "--all",
        action="store_true",
        help="also rows that say what cheaper ones say, or that this processor cannot do",
    )
    ask.add_argument("--again", action="store_true", help="measure anew what is in the file")
    said = ask.parse_args()
    out = said.out or ROOT / "benchmarks/results" / f"speed-{datetime.date.today().isoformat()}.json"
    said.work = said.work.resolve()
    said.work.mkdir(parents=True, exist_ok=True)
    models = said.models or [m for m in work.MODELS if m != "real" or said.real]
    results = Results(out, again=said.again)
    rows = work.rows(models, said.algorithms, said.scenarios, said.dtypes)
    if not said.all:
        rows = [row for row in rows if row.tells()]
        if any(row.dtype == "bfloat16" for row in rows) and (times := slowdown()) > 1:
            print(
                f"no rows in bfloat16: a product of matrices takes {times:.1f} times as long as in float32 here"
            )
            rows = [row for row in rows if row.dtype != "bfloat16"]
    measure(results, rows, said.only, said)
    shown: Mapping[str, Any] = results.data
    print("\n\n".join(report.tables(shown)))


if __name__ == "__main__":
    main()
