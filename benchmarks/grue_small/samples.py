"""What the model wrote before a run and after it, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import rlalign

SHOWN = 4
"""Examples of a run."""


def of_run(run: Any) -> dict[str, float]:
    """Leaves a page for each run, `samples/TASK-ALGORITHM-SEED.md` where runs do their work; measures nothing."""
    lines = (run.folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    shown = [json.loads(line) for line in lines if line]
    before = [row for row in shown if row["iteration"] == shown[0]["iteration"]][:SHOWN]
    # A run that its budget ends does not evaluate at its end.
    after = rlalign.open(run.folder, {"evaluate.examples": SHOWN}, trust=True).rows()
    one = run.planned
    page = run.work / "samples" / f"{one.world}-{one.arm}-{one.seed}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    said = page_of(f"{one.world}, {one.arm}, seed {one.seed}", before, after)
    page.write_text(said, encoding="utf-8")
    return {}


def page_of(title: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Prompts with the responses of the start and of the end."""
    said = [f"# {title}", ""]
    for old, new in zip(before, after, strict=True):
        assert old["prompt"] == new["prompt"], "the first examples are the same whenever they are asked for"
        prompt = old["prompt"]
        if not isinstance(prompt, str):
            prompt = " / ".join(f"{message['role']}: {message['content']}" for message in prompt)
        rewards = {name: values[0] for name, values in new["meta"]["rlalign"]["rewards"].items()}
        said += [f"> {in_line(prompt)}", ""]
        said += [f"- **before**: {in_line(old['response'])}{scores(old['scores'])}"]
        said += [f"- **after**: {in_line(new['responses'][0])}{scores(rewards)}", ""]
    return "\n".join(said)


def in_line(text: str) -> str:
    return " ".join(text.split())


def scores(found: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.2f}' for name, value in found.items())})" if found else ""
