"""What each metric of text costs: processor seconds of one thread per 1,000 responses.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.rewards
    … --rounds 5 --pairs 1000 --only parent sari --json benchmarks/results/rewards.json

Every component of the package `rlalign-plugin-text-metrics` that is installed, as the registry lists them; what cannot
be set up here (files that are not there) is named and left out. Sentences are made up: 18 words on average, drawn by
Zipf's law; a prompt has three references, of which each response is a disturbed copy of one, a table and keywords.
The metrics alternate in one process, each once a round, after a round that does not count. Every round has sentences
of its own, so that `new` finds no cache filled; `again` are other responses to the prompts of the same round, whose
references are known by then.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import random
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.common.machine import about
from pydantic import ValidationError

from rlalign import Example, Rollout, logged_rollout
from rlalign.config.registry import Registry, installed
from rlalign.interface.component import Component

PACKAGE = "rlalign-plugin-text-metrics"
OPTIONS: dict[str, dict[str, Any]] = {"regex": {"pattern": r"\b(\w+) \1\b"}}
"""What metrics are asked for that need an option."""
GROUP = 4
"""Responses to a prompt."""


@lru_cache(1)
def vocabulary(size: int = 5000) -> tuple[list[str], list[float]]:
    """Made-up words, and how often each is said."""
    rng = random.Random(0)
    parts = [a + b for a in "bdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    words = {"".join(rng.choices(parts, k=rng.choice((1, 1, 2, 2, 3)))) for _ in range(3 * size)}
    kept = sorted(words)
    rng.shuffle(kept)
    kept = kept[:size]
    return kept, list(itertools.accumulate(1 / (rank + 3) for rank in range(len(kept))))


def sentences(rng: random.Random, words: list[str], weights: list[float]) -> Iterator[list[str]]:
    """Sentences of 6 to 30 words, without end."""
    while True:
        yield rng.choices(words, cum_weights=weights, k=rng.randint(6, 30))


def written(tokens: Sequence[str]) -> str:
    """As a person writes it."""
    return f"{' '.join(tokens).capitalize()}."


def examples(seed: int, pairs: int) -> list[Example]:
    """Prompts with references, table and keywords, and twice as many responses as are measured at once."""
    rng, (words, weights) = random.Random(seed), vocabulary()
    told = sentences(rng, words, weights)
    made = []
    for index in range(pairs // GROUP):
        said = [next(told) for _ in range(3)]
        responses = []
        for _ in range(2 * GROUP):
            tokens = [word if rng.random() < 0.7 else rng.choice(words) for word in rng.choice(said)]
            responses.append(f"{written(tokens)} {index}")
        pairs_of_table = [(rng.choice(words), " ".join(rng.sample(said[0], 2))) for _ in range(10)]
        meta = {
            "references": [f"{written(tokens)} {index}" for tokens in said],
            "table": pairs_of_table,
            "highlighted": pairs_of_table[:3],
            "keywords": rng.sample(said[0], 4),
            "overlap_subset": bool(index % 2),
        }
        made.append(Example(f"{seed}-{index}", written(next(told)), tuple(responses), meta=meta))
    return made


def rollouts(seed: int, pairs: int) -> tuple[Rollout, Rollout]:
    """Responses to prompts, and others to the same."""
    made = examples(seed, pairs)
    inputs = [torch.ones(1)] * len(made)
    halves = []
    for half in (slice(None, GROUP), slice(GROUP, None)):
        asked = [Example(e.id, e.prompt, e.responses[half], meta=e.meta) for e in made]
        actions = [([1] * len(text.split()), True) for e in asked for text in e.responses]
        halves.append(logged_rollout(asked, inputs, actions, like=torch.zeros(1)))
    return halves[0], halves[1]


def a_run() -> Any:
    """What metrics ask of a run when they are set up: its task's examples."""
    return SimpleNamespace(task=SimpleNamespace(examples=lambda split: examples(0, 400)), note=print)


def metrics(only: Sequence[str]) -> tuple[dict[str, Component], dict[str, str]]:
    """The components that can be set up here, and why others cannot."""
    found: dict[str, Component] = {}
    left_out: dict[str, str] = {}
    for one in sorted(installed(), key=lambda one: one.name):
        if one.distribution != PACKAGE or (only and one.name not in only):
            continue
        try:
            cls = Registry().load(one.name).cls
            component = cls(cls.Config.model_validate_json(json.dumps(OPTIONS.get(one.name, {}))))
            component.name = one.name
            component.setup(a_run())
        except Exception as error:  # what it needs is not here: files, or an option that only a user can give
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            left_out[one.name] = said.partition("\n")[0]
        else:
            found[one.name] = component
    return found, left_out


def seconds(component: Component, hook: str, rollout: Rollout) -> float:
    """Processor seconds of this thread for one call."""
    call = getattr(component, hook)
    asked = inspect.signature(call).parameters
    given = {name: value for name, value in {"run": None, "rollout": rollout}.items() if name in asked}
    start = time.thread_time()
    call(**given)
    return time.thread_time() - start


def measured(components: dict[str, Component], rounds: int, pairs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per 1,000 responses of each component, by hook and by whether the prompts are new."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in components}
    for count in range(rounds + 1):
        for name, component in components.items():
            for hook in ("reward", "evaluate"):
                if not hasattr(component, hook):
                    continue
                # a seed of its own for each metric and hook: they share caches
                new, again = rollouts(seed_of(name, hook, count), pairs)
                for label, rollout in ((f"{hook} new", new), (f"{hook} again", again)):
                    spent = 1000 * seconds(component, hook, rollout) / len(rollout)
                    if count:
                        found[name].setdefault(label, []).append(spent)
    return found


def seed_of(*parts: object) -> int:
    """The same in every process."""
    return zlib.crc32(repr(parts).encode())


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(x: dict[str, float] | None) -> str:
    return f"{x['median']:.3f} [{x['least']:.3f}, {x['most']:.3f}]" if x else "–"


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures as the package's README shows them."""
    columns = ("reward new", "reward again", "evaluate new")
    lines = [f"| metric | {' | '.join(columns)} |", "|---|---|---|---|"]
    for name, found in report.items():
        lines.append(f"| `{name}` | {' | '.join(shown(found.get(column)) for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--pairs", type=int, default=1000, help="responses in a round, four to a prompt")
    ask.add_argument("--only", nargs="*", default=[], help="these metrics and no others")
    ask.add_argument("--json", type=Path, help="where the figures are written")
    said = ask.parse_args()
    machine = about("rouge-score", "sacrebleu", "nltk", "regex")
    components, left_out = metrics(said.only)
    found = measured(components, said.rounds, said.pairs)
    machine["load after"] = os.getloadavg()[0]
    report = {name: {label: summary(values) for label, values in by.items()} for name, by in found.items()}
    print(
        f"{machine}\n\nprocessor seconds per 1,000 responses, median [least, most] of {said.rounds} rounds\n"
    )
    print(table(report))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    if said.json:
        whole = {"machine": machine, "rounds": said.rounds, "pairs": said.pairs, "left out": left_out}
        said.json.parent.mkdir(parents=True, exist_ok=True)
        said.json.write_text(json.dumps({**whole, "seconds": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
