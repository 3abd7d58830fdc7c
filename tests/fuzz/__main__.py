"""Runs fuzz cases in this process, one line of JSON for each that ends badly.

python tests/fuzz runs                     500 cases of one target
python tests/fuzz runs --first 17 -n 1     one case again, with what it raised
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

MEMORY = 12 * 2**30
"""Address space; torch alone reserves some gigabytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("-n", "--count", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    home = Path(tempfile.mkdtemp(prefix="rlalign-fuzz-"))
    try:
        work(home, asked.target, asked.first, asked.count, asked.seconds)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def write_once(task: type[Any]) -> None:
    """Texts of a toy world are the same each time, and most examples are about one of two."""
    write = task.examples

    @cache
    def written(config: str, split: str) -> Any:
        return write(task(task.Config.model_validate_json(config)), split)

    task.examples = lambda self, split: written(self.config.model_dump_json(), split)


def work(home: Path, name: str, first: int, count: int, seconds: float) -> None:
    """Cases `first` to `first + count`; the last line says how many were run."""
    import torch
    from targets import TARGETS, TRAP
    from watching import Watch, verdict

    from rlalign.config import registry
    from rlalign_plugin_toy_tasks import ToyKeywords, ToyReviews

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (home / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(home / "tmp")
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it, for those it starts too
    sys.dont_write_bytecode = True
    registry.installed = cache(registry.installed)  # nothing is installed meanwhile, and looking takes 10 ms
    for task in (ToyReviews, ToyKeywords):
        write_once(task)
    target, watch = TARGETS[name](home), Watch(TRAP)
    inside, started, index = home / "inside", time.monotonic(), first
    for index in range(first, first + count):
        inside.mkdir()
        os.chdir(inside)
        case = target.case(random.Random(f"{name} {index}"), inside)
        print(json.dumps({"began": index}), flush=True)  # the last one is it, if the process dies
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            wrong = verdict(case, watch, inside)
        wrong = wrong or target.harmed()
        if wrong is not None:
            print(json.dumps({"target": name, "case": index, "wrong": wrong}), flush=True)
        os.chdir(home)
        shutil.rmtree(inside)
        if time.monotonic() - started > seconds:
            break
    print(json.dumps({"done": index + 1 - first}), flush=True)


if __name__ == "__main__":
    main()
