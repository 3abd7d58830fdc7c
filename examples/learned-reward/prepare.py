"""Short pairs of helpful and harmless assistance as data for reward-model.yaml: `python prepare.py FOLDER [WORDS]`.

FOLDER is a copy of the data as the task `hh` reads it. Of its pairs (`train` where there is one, else `test`) those are
kept whose prompt and longer answer have at most so many words together (40); every fourth prompt is set
aside as `val`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from rlalign_plugin_dialog_tasks.hh import HH


def words(text: str) -> int:
    return len(text.split())


def main(source: Path, most: int, target: Path) -> None:
    task = HH(HH.Config(path=str(source), scores="preference", style="chat"))
    split = "train" if list(source.rglob("*train*")) else "test"
    kept: dict[str, list[dict[str, object]]] = {}
    for example in task.examples(split):
        turns = [message for message in example.prompt if message["role"] != "system"]
        said = sum(words(message["content"]) for message in turns)
        if said + max(map(words, example.responses)) > most:
            continue
        row = {
            "id": example.id,
            "prompt": turns,
            "responses": list(example.responses),
            "scores": list(example.scores),
            "meta": {"references": list(example.responses)},
        }
        kept.setdefault(json.dumps(turns), []).append(row)
    prompts = sorted(kept)
    random.Random(0).shuffle(prompts)
    target.mkdir(parents=True, exist_ok=True)
    for name, some in (("val", prompts[::4]), ("train", [p for i, p in enumerate(prompts) if i % 4])):
        rows = [row for prompt in some for row in kept[prompt]]
        (target / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        print(f"{target / name}.jsonl: {len(rows)} pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40, Path(__file__).parent / "data")
