"""Sentences of film reviews, praise or blame, as data for classifier.yaml: `python prepare.py FOLDER`.

FOLDER holds `rt-polarity.neg` and `rt-polarity.pos` (Pang and Lee 2005, sentence polarity dataset v1.0), a sentence a
line in Latin-1. Of each file's sentences, every tenth from the first on is for the test, every tenth from the second on
for validation, all others are for training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    rows: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for label in ("neg", "pos"):
        # Split at line feeds only: some sentences hold \x85, which is a line's end to `splitlines`.
        lines = (source / f"rt-polarity.{label}").read_bytes().decode("latin-1").split("\n")
        for i, line in enumerate(line.strip() for line in lines if line.strip()):
            split = {0: "test", 1: "val"}.get(i % 10, "train")
            rows[split].append({"id": f"{label}-{i}", "prompt": line, "responses": [label]})
    target.mkdir(parents=True, exist_ok=True)
    for split, found in rows.items():
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
        print(f"{target / split}.jsonl: {len(found)} sentences")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "data")
