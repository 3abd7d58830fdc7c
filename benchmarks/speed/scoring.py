"""A reward inline, beside the same one with `isolate: true`, and in a thread of this process; prints JSON.

python -m benchmarks.speed.scoring --work FOLDER

Iterations of RLOO on GPT-2 of 2 × 128 with ROUGE (of NLTK's kind: plain Python), 32 responses of 1 to 48 tokens. In
turn in one process: one phase with the reward inline, one with it isolated. Then the same sampling alone, with the
reward of as many other responses after it, and with that in a thread meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.common.timing import alternating, compared, summary
from benchmarks.speed.work import COMPONENTS, Row, Texts, folder_of, pipeline
from pydantic import Field

from rlalign import Example
from rlalign.data.rollout import Rollout
from rlalign.running.iterating import iterate
from rlalign.running.responses import respond
from rlalign.testing.bench import Bench

ROUNDS, WARM_UP = 9, 2
ROW = Row("tiny", "rloo", "V", "float32")
REFERENCES = (16, 80)
"""Of a prompt: ROUGE takes as many times as long."""


class Referenced(Texts):
    """The same prompts, each with some references."""

    class Config(Texts.Config):
        """Options of `referenced`."""

        references: int = Field(description="how many texts a response is compared with")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        plain = super().examples(split)
        said = [example.prompt for example in plain]
        return [
            replace(
                example,
                meta={"references": [said[(i + j) % len(said)] for j in range(self.config.references)]},
            )
            for i, example in enumerate(plain)
        ]


def bench(place: Path, root: Path, references: int, iterations: int, **beside: Any) -> Bench:
    said = pipeline(ROW, folder_of(ROW, root, None), iterations)
    task = {"referenced": {**said["task"]["texts"], "references": references}}
    rewards = [{"rouge": {}, **beside}, *said["rewards"][1:]]
    return Bench(place, {**said, "task": task, "rewards": rewards}, {**COMPONENTS, "referenced": Referenced})


def served_seconds() -> float:
    """Processor seconds of the processes that this one began."""
    found = 0.0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            found += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return found


def processes(place: Path, root: Path, references: int, rounds: int) -> dict[str, Any]:
    """Iterations of both."""
    steps = rounds + WARM_UP
    inline = bench(place / "inline", root, references, steps)
    isolated = bench(place / "isolated", root, references, steps, isolate=True)
    open_ = {"inline": iterate(inline.phase), "isolated": iterate(isolated.phase)}
    shares: list[float] = []
    theirs: list[float] = []

    def one(name: str) -> None:
        next(open_[name])
        if name == "inline":
            took = inline.phase.clock.worked
            shares.append(took["reward"] / took["rollout"])
        else:
            theirs.append(served_seconds())

    spent = alternating({name: lambda n=name: one(n) for name in open_}, rounds, WARM_UP)
    return {
        "iteration": compared(spent["isolated"], spent["inline"]),
        "reward over sampling": summary(shares[WARM_UP:]),
        "served": (theirs[-1] - theirs[WARM_UP - 1]) / rounds,
    }


def thread(place: Path, root: Path, references: int, rounds: int) -> dict[str, Any]:
    """Sampling and scoring, after each other and at once."""
    made = bench(place / "thread", root, references, rounds)
    examples, before = made.phase.draw.next(made.phase.settings.train.prompts), made.rollout()[0]

    def sampled() -> Rollout:
        return respond(made.phase, examples)

    def after() -> None:
        sampled()
        made.stages.reward(made.run, before)

    def meanwhile() -> None:
        beside = Thread(target=made.stages.reward, args=(made.run, before))
        beside.start()
        sampled()
        beside.join()

    spent = alternating({"alone": sampled, "after": after, "meanwhile": meanwhile}, rounds, WARM_UP)
    return {"wall": {name: summary([one[1] for one in taken]) for name, taken in spent.items()}}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--work", type=Path, required=True, help="models are kept here")
    ask.add_argument("--rounds", type=int, default=ROUNDS)
    said = ask.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for count in REFERENCES:
            at = Path(place) / str(count)
            found[str(count)] = {
                **processes(at, said.work, count, said.rounds),
                "thread": thread(at, said.work, count, said.rounds),
            }
    print(json.dumps({"references": found, "n": said.rounds, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
