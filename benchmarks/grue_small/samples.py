"""What the model wrote before a run and after it, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 4
"""Examples of a run."""


def of_run(run: Any) -> dict[str, float]:
    """Leaves a page for each run, `samples/TASK-ALGORITHM-SEED.md` where runs do their work; measures nothing."""
    there = run.folder / "samples.jsonl"
    if not there.is_file():
        return {}
    lines = there.read_text(encoding="utf-8").split("\n")
    one = run.planned
    page = run.work / "samples" / f"{one.world}-{one.arm}-{one.seed}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    said = page_of(f"{one.world}, {one.arm}, seed {one.seed}", [json.loads(line) for line in lines if line])
    page.write_text(said, encoding="utf-8")
    return {}


def page_of(title: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """Prompts with the responses of the first evaluation and of the last."""
    times = [row["iteration"] for row in samples]
    before, after = (
        [row for row in samples if row["iteration"] == when] for when in (min(times), max(times))
    )
    said = [f"# {title}", ""]
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        prompt = old["prompt"]
        if not isinstance(prompt, str):
            prompt = " / ".join(f"{message['role']}: {message['content']}" for message in prompt)
        said += [f"> {in_line(prompt)}", ""]
        said += [
            f"- **{when}**: {in_line(row['response'])}{scores(row)}"
            for when, row in (("before", old), ("after", new))
        ]
        said += [""]
    return "\n".join(said)


def in_line(text: str) -> str:
    return " ".join(text.split())


def scores(row: Mapping[str, Any]) -> str:
    found = ", ".join(f"{name} {value:.2f}" for name, value in row.get("scores", {}).items())
    return f" ({found})" if found else ""
