"""Run pipelines one after the other, in one process or in each of a group: together.py FOLDER JOBS.json."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RANK = os.environ.get("RANK", "0")
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")
ALONE = "7 prompts"
written: list[str] = []


def watch(event: str, given: tuple[Any, ...]) -> None:
    """Note every file that is opened for writing, and every name that is made or goes."""
    opened = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if opened or event in CHANGING:
        written.append(str(given[0]))


@contextmanager
def counting(into: Path, wanted: bool) -> Iterator[None]:
    """Write how often ranks talked, by how."""
    if not wanted:
        yield
        return
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[str(func)] += str(func).startswith("c10d.")
            return func(*args, **(kwargs or {}))

    with Counting():
        yield
    into.write_text(json.dumps(counts))


def main(folder: Path, jobs: dict[str, dict[str, Any]]) -> None:
    import rlalign
    from rlalign.errors import RLAlignError
    from rlalign.learning import draw

    large = draw.LARGE
    for name, job in jobs.items():
        written.clear()
        draw.LARGE = job.get("large", large)
        said = ""
        try:
            pipeline = rlalign.load(job["file"], job["overrides"])
            with counting(folder / f"{name}-counted-rank{RANK}.json", job.get("counted", False)):
                rlalign.run(pipeline, root=folder, name=name, display=False)
        except RLAlignError as error:
            said = f"{type(error).__name__}: {error}"
        here = [path for path in written if path.startswith(str(folder))]
        with (folder / f"{name}-rank{RANK}.json").open("w") as file:
            json.dump({"said": said, "written": here}, file)
        if name == ALONE and RANK == "0":  # once a run is over, nobody has to come by
            (folder / "alone.json").write_text(json.dumps(rlalign.open(folder / name).evaluate()))


if __name__ == "__main__":
    sys.addaudithook(watch)
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
