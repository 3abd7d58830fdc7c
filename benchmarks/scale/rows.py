"""How much time and memory many short rows take: the index, a start once it is there, draws, and a whole run.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.scale.rows --rows 10000000
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.scale.rows --rows 10000000 --walked 1000000

Each part is a process of its own. `index` walks over all rows; `start` finds the index there; `draws` are uniform ones
and those by weight, in two processes at once, which must draw the same; `run` is a run of three iterations. Memory is
what a process holds for itself (RssAnon), beyond what it held when all was imported: files that are mapped lie in the
memory once, for all processes. Prints JSON.

Under `--walked` only so many rows are walked over. The index of all of them is then written as the walk would leave it
but for its keys, which are random numbers and no hashes: on a busy machine that spares the longest part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.machine import about

DRAWS = 2_000
PARTS = "index", "start", "uniform", "weighted", "run"
ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, rows: int) -> array[int]:
    """Rows of about 85 bytes: an id, a question, its answer. Gives their lengths."""
    lengths = array("i")
    with path.open("w") as file:
        for i in range(rows):
            a, b = i * 7919 % 10007, i * 104729 % 997
            row = f'{{"id": "r{i}", "prompt": "What is {a} and {b} in case {i}?", "answer": "{a + b}"}}'
            lengths.append(file.write(row + "\n"))
    return lengths


def write_index(folder: Path, lengths: array[int]) -> None:
    """The index that a walk over these rows would leave, but for its keys."""
    import numpy

    from rlalign_plugin_dataset import places

    os.environ["RLALIGN_CACHE"] = str(folder / "cache")
    made = task(folder)
    tables = made._tables("train")
    kept = made._kept("train", tables, None)
    assert kept is not None, "of so few rows no index is kept"
    kept.mkdir(parents=True)
    rows = numpy.zeros(len(lengths), places.ROW)
    rows["length"] = lengths
    rows["start"] = numpy.cumsum(rows["length"]) - rows["length"]
    rows["number"] = numpy.arange(1, len(rows) + 1)
    rows["nth"] = 1
    keys = numpy.random.default_rng(0).integers(0, 2**64 - 1, len(rows), dtype=places.KEY)
    found = places.Places(rows, numpy.ones(len(rows), places.ANSWERS), keys)
    for name, values in zip(("rows", "answers", "keys"), found, strict=True):
        values.tofile(kept / f"0.{name}")
    digests = [table.digest() for table in tables]
    places.write_about(kept, places.Found({"train": found}, len(rows), (), digests))


def own_memory() -> int:
    """Bytes that this process holds for itself."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


class Watch:
    """Seconds since it began, processor seconds, and the most memory beyond what was held then."""

    def __init__(self) -> None:
        self._began, self._cpu, self._before = time.perf_counter(), time.process_time(), own_memory()
        self._most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self._most = max(self._most, own_memory() - self._before)

    def told(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        held = own_memory() - self._before
        return {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "peak_mb": round(max(self._most, held) / 1e6, 1),
            "held_mb": round(held / 1e6, 1),
        }


def task(folder: Path) -> Any:
    from rlalign_plugin_dataset import Dataset

    return Dataset(Dataset.Config(path=folder / "rows.jsonl", responses="answer", join=""))


def pipeline(folder: Path) -> dict[str, Any]:
    """A run whose model costs nothing."""
    return {
        "task": {"dataset": {"path": str(folder / "rows.jsonl"), "responses": "answer", "join": ""}},
        "policy": "bytes",
        "rewards": ["length"],
        "algorithm": "once",
        "generation": {"samples": 2, "max_new_tokens": 4},
        "train": {"iterations": 3, "prompts": 64, "lr": 0.01},
    }


def work(folder: Path, part: str) -> dict[str, Any]:
    """A part, in this process."""
    import torch

    from rlalign.learning.draw import Draw
    from rlalign.randomness import Seeds
    from rlalign.records.shelf import Shelf
    from rlalign.testing import PolicyGradient, bench
    from rlalign_plugin_dataset import limits

    if part == "run":
        watch = Watch()
        started = bench.session(folder, pipeline(folder), {"once": PolicyGradient})
        first: list[float] = []
        started.display.iteration = lambda *_: first.append(time.perf_counter())  # type: ignore[method-assign]
        began = time.perf_counter()
        started.run()
        return {
            **watch.told(),
            "first_iteration_s": round(first[0] - began, 2),
            "of_3_iterations_s": round(first[-1] - began, 2),
        }
    limits.KEPT_BYTES = 2**20  # of the rows that are walked over, few as they may be, an index is kept
    made = task(folder)
    watch = Watch()
    data = made.examples("train")
    fingerprint = made.fingerprint("train")
    keep = Shelf(folder / "draws")
    draw = Draw(data, Seeds(0), ("draw", 0, 0), keep=keep)
    if part == "weighted":
        draw.weights(keep("column.f8", lambda: pieces(len(data), torch)), "response")
    first_drawn = draw.next(1)[0].id
    found = {"rows": len(data), "fingerprint": fingerprint[:16], "first": first_drawn, "start": watch.told()}
    if part in ("index", "start"):
        return found
    watch = Watch()
    drawn = [example.id for example in draw.next(DRAWS)]
    told = watch.told()
    return {
        **found,
        "draws": told,
        "ms_a_draw": round(1000 * told["cpu_seconds"] / DRAWS, 3),
        "drawn": hashlib.sha256(" ".join(drawn).encode()).hexdigest()[:16],
    }


def pieces(count: int, torch: Any) -> Any:
    """Weights, as a column has them: numbers in a file."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, 2**20):
        yield torch.rand(min(2**20, count - start), generator=generator, dtype=torch.float64)


def begun(folder: Path, part: str) -> Callable[[], dict[str, Any]]:
    """A part, in a process of its own, which is waited for when its answer is asked for."""
    command = [sys.executable, "-m", "benchmarks.scale.rows", "--folder", str(folder), "--part", part]
    place = {**os.environ, "RLALIGN_CACHE": str(folder / "cache")}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=place)

    def answer() -> dict[str, Any]:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{part}: failed")
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        print(f"{part}: {found}", file=sys.stderr, flush=True)
        return found

    return answer


def measured(folder: Path, rows: int, walked: int | None) -> dict[str, Any]:
    """All parts."""
    lengths = write(folder / "rows.jsonl", rows)
    found: dict[str, Any] = {
        "machine": about(),
        "rows": rows,
        "bytes": (folder / "rows.jsonl").stat().st_size,
    }
    if walked is not None:
        (folder / "walked").mkdir()
        write(folder / "walked" / "rows.jsonl", walked)
        found["walked"] = begun(folder / "walked", "index")()
        write_index(folder, lengths)
    for part in PARTS if walked is None else PARTS[1:]:
        two = [begun(folder, part) for _ in range(2 if part in ("uniform", "weighted") else 1)]
        found[part], *others = (answer() for answer in two)
        for other in others:
            found[part]["another_process_draws_the_same"] = other["drawn"] == found[part]["drawn"]
    found["index_bytes"] = sum(p.stat().st_size for p in (folder / "cache").rglob("*") if p.is_file())
    found["mapped_by_draws_bytes"] = sum(p.stat().st_size for p in (folder / "draws").iterdir())
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--walked", type=int, help="walk over so many rows only")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder:
        print(json.dumps(work(asked.folder, asked.part)))
        return
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measured(Path(place), asked.rows, asked.walked), indent=1))


if __name__ == "__main__":
    main()
