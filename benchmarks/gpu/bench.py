"""What a GPU makes of it, in one call of at most eight minutes, the most telling figures first.

python -m benchmarks.gpu.bench                               on a GPU
python -m benchmarks.gpu.bench --self-test                   tiny shapes, on whatever there is: does it all run?
python -m benchmarks.gpu.bench --only sampling --shapes gpt2
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import shapes
from benchmarks.common.machine import about
from benchmarks.gpu import iterations, others, profiling, roofline, sampling

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHAPES = ("gpt2", "qwen-0.5b", "qwen-7b", "qwen-1.5b")
PARTS = ("sampling", "training", "runs", "sharding", "tests", "profile", "suites")
BRIEF: dict[str, Callable[[Any], str]] = {
    "sampling": sampling.brief,
    "training": iterations.brief,
    "runs": iterations.brief,
    "sharding": lambda one: (
        f"cut over one process an iteration takes {one['times as long']:.2f} times as long"
    ),
    "tests": others.brief,
    "suites": others.brief,
}


@dataclass(frozen=True)
class Size:
    """How large the work is."""

    rows: tuple[int, ...] = (256, 64, 512)
    samples: int = 8
    prompt: int = 448
    new: int = 128
    prompts: int = 64
    """Of an iteration, which has shorter responses."""
    learned: tuple[int, int] = (128, 128)
    """Tokens of a prompt and of a response in an iteration."""
    rounds: int = 2
    ways: tuple[str, ...] = sampling.ALL
    count: int = 3


SMALL = Size((8, 4), 2, 12, 6, 4, (8, 6), 1, count=2)


@dataclass(frozen=True)
class Piece:
    """One figure: where it goes in the file, what it is called, about how many seconds it needs."""

    part: str
    name: str
    needs: float
    measure: Callable[[float], dict[str, Any]]
    """Given the seconds that are left."""


class Bench:
    """The rates of the device, the models in turn, and the pieces in order."""

    def __init__(self, device: str, size: Size, names: tuple[str, ...], folder: Path) -> None:
        self.device, self.size, self.names, self.folder = device, size, names, folder
        self.rates = roofline.rates(device)
        self._open: tuple[str, Any] | None = None

    def policy(self, shape: str) -> Any:
        """One at a time: the one before is let go."""
        if self._open is None or self._open[0] != shape:
            self.close()
            self._open = shape, sampling.open_policy(sampling.lay(shape, self.folder), self.device)
        return self._open[1]

    def close(self) -> None:
        self._open = None
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def pieces(self) -> Iterator[Piece]:
        first, *more = self.size.rows
        for shape in self.names:
            yield self.sampled(shape, first)
            if shape != "qwen-7b":  # with AdamW in float32 it does not fit one card
                yield Piece("training", f"{shape}/rloo", 30, lambda _, m=shape: self.learn(m, "rloo"))
        for method in ("nlpo", "ppo", "dpo"):
            yield Piece(
                "runs", f"{self.names[0]}/{method}", 20, lambda _, m=method: self.learn(self.names[0], m)
            )
        for shape in self.names:
            for rows in more:
                yield self.sampled(shape, rows)
        name = self.names[min(1, len(self.names) - 1)]
        yield Piece("sharding", name, 40, lambda _: self.cut(name))
        yield Piece("tests", "gpu", 60, lambda left: others.tests(min(left - 20, 150)))
        yield Piece("profile", f"{self.names[0]}/rloo", 20, lambda _: self.profile(self.names[0]))
        for name in others.SUITES:
            yield Piece("suites", name, 60, lambda left, n=name: others.suite(n, left - 15))

    def sampled(self, shape: str, rows: int) -> Piece:
        return Piece("sampling", f"{shape}/{rows}", 30, lambda _: self.sample(shape, rows))

    def sample(self, shape: str, rows: int) -> dict[str, Any]:
        s = self.size
        policy = self.policy(shape)
        return sampling.sampling(policy, rows, s.samples, s.prompt, s.new, s.rounds, self.rates, s.ways)

    def learn(self, shape: str, method: str) -> dict[str, Any]:
        self.close()
        return iterations.iterations(self._pipeline(shape, method), self.rates)

    def cut(self, shape: str) -> dict[str, Any]:
        """RLOO with weights whole, and cut over this one process by FSDP2, both held in float32."""
        said = self._pipeline(shape, "rloo")
        said["train"] |= {"weights": None}
        self.close()
        found = {"whole": iterations.iterations(said, self.rates)}
        self.close()
        with iterations.One.here(self.device):
            found["cut"] = iterations.iterations(said | {"distributed": {"shard": True}}, self.rates)
        seconds = {name: one["time/iteration"]["median"] for name, one in found.items()}
        return found | {"times as long": seconds["cut"] / seconds["whole"]}

    def profile(self, shape: str) -> dict[str, Any]:
        self.close()
        return profiling.profile(self._pipeline(shape, "rloo"), self.device)

    def _pipeline(self, shape: str, method: str) -> dict[str, Any]:
        s = self.size
        folder, (prompt, new) = sampling.lay(shape, self.folder), s.learned
        return iterations.pipeline(folder, self.device, method, s.prompts, s.samples, prompt, new, s.count)


def run(bench: Bench, only: list[str], minutes: float, out: Path) -> dict[str, Any]:
    """Every piece in turn while there is time; the file is written after each."""
    began = time.perf_counter()
    device = torch.cuda.get_device_name() if bench.device != "cpu" else "none"
    report: dict[str, Any] = {
        "machine": about() | {"card": device},
        "rates": {"TB/s": bench.rates.bytes / 1e12, "TFLOP/s": bench.rates.flops / 1e12},
        "left out": {},
    }
    print(report["machine"], report["rates"], flush=True)
    for piece in bench.pieces():
        if piece.part not in only:
            continue
        left = 60 * minutes - (time.perf_counter() - began)
        if left < piece.needs:
            report["left out"][f"{piece.part} {piece.name}"] = f"{left:.0f} s were left"
            continue
        started = time.perf_counter()
        try:
            found = piece.measure(left)
            told = BRIEF[piece.part](found) if piece.part in BRIEF else ""
        except Exception as error:
            traceback.print_exc()
            found, told = {"failed": f"{type(error).__name__}: {error}"}, "failed"
            bench.close()
        found["took"] = time.perf_counter() - started
        report.setdefault(piece.part, {})[piece.name] = found
        print(f"{piece.part} {piece.name}: {told} ({found['took']:.0f} s)", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    bench.close()
    return report


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--shapes", nargs="*", choices=list(shapes.SHAPES), default=SHAPES)
    ask.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    ask.add_argument("--rows", nargs="*", type=int)
    ask.add_argument("--ways", nargs="*", choices=sampling.ALL, default=sampling.ALL, help="of sampling")
    ask.add_argument("--rounds", type=int, help="of each way, after one that is not counted")
    ask.add_argument("--minutes", type=float, default=7.5)
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ask.add_argument("--self-test", action="store_true", help="tiny shapes: whether it all runs")
    ask.add_argument("--out", type=Path, help="by default benchmarks/results/gpu-DATE.json")
    said = ask.parse_args()
    size, names = (SMALL, ("tiny",)) if said.self_test else (Size(), tuple(said.shapes))
    size = replace(
        size,
        rows=tuple(said.rows or size.rows),
        rounds=said.rounds or size.rounds,
        ways=tuple(said.ways),
    )
    out = said.out or RESULTS / f"gpu-{datetime.date.today().isoformat()}.json"
    with tempfile.TemporaryDirectory() as folder:
        report = run(Bench(said.device, size, names, Path(folder)), said.only, said.minutes, out)
    if failed := [n for part in PARTS for n, one in report.get(part, {}).items() if "failed" in one]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
