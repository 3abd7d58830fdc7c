"""Makes what the suites read: `python prepare.py CHAT ENCODER DATA [FOLDER]`; README.md says what these are.

CHAT is the folder of a chat model, or a GGUF file of one, and ENCODER that of a sentence encoder. FOLDER, `prepared`
beside this file unless said otherwise, gets the chat model as safetensors, a classifier of praise and blame that is
trained from the encoder, and of DATA's folders what the suites read. What is there already is left as it is.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARE = 0.75
"""Of the facts (`e2e`) and contexts (`dailydialog-plusplus`) of `dev`, so many are to learn from, the rest is `val`."""
ANSWERS = 2
"""Right answers to a context, and adversarial ones: the first ones."""
KINDNESS: dict[str, Any] = {
    "algorithm": "sft",
    "train": {
        "passes": 1,
        "prompts": 32,
        "lr": 1e-4,
        "schedule": {"shape": "linear", "warmup": 0.1},
        "dropout": True,
    },
    "evaluate": {"split": "test", "examples": 2000, "use": ["label-accuracy"]},
    "checkpoints": {"last": 1},
}
"""The classifier: all weights of the encoder, one pass."""


def chat(source: Path, target: Path) -> None:
    """The chat model as safetensors, in float32; of a GGUF file the weights as they are when unpacked."""
    from rlalign_plugin_hf import CausalLM

    model = CausalLM(CausalLM.Config(path=source.absolute()))
    model.open()
    if not model.chats:
        raise SystemExit(f"{source}: has no chat template, and all tasks but `imdb` are put as chats")
    model.setup()
    model.saves_float32 = True
    model.save(target)


def kindness(encoder: Path, sentences: Path, target: Path) -> None:
    """A classifier of sentences of film reviews, trained from the encoder; the run says how often it is right."""
    import rlalign

    work = target.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    rows: dict[str, list[Mapping[str, object]]] = {"train": [], "test": []}
    for label in ("neg", "pos"):
        # Split at line feeds only: some sentences hold \x85, which is a line's end to `splitlines`.
        lines = (sentences / f"rt-polarity.{label}").read_bytes().decode("latin-1").split("\n")
        for i, line in enumerate(line.strip() for line in lines if line.strip()):
            part = "train" if i % 10 else "test"
            rows[part].append({"id": f"{label}-{i}", "prompt": line, "responses": [label]})
    for part, some in rows.items():
        lines_of(work / "sentences" / f"{part}.jsonl", some)
    policy = {
        "sequence-classifier": {"path": str(encoder.absolute()), "labels": ["neg", "pos"], "max_tokens": 64}
    }
    task = {"dataset": {"path": str((work / "sentences").absolute()), "join": ""}}
    rlalign.run({"task": task, "policy": policy, **KINDNESS}, root=work, name="classifier")
    shutil.move(str(work / "classifier" / "model"), target)
    shutil.rmtree(work)


def same(source: Path, target: Path) -> None:
    """The files of rows as they are."""
    for file in sorted(source.iterdir()):
        if file.suffix in (".jsonl", ".txt", ".parquet"):
            shutil.copy(file, target / file.name)


def restaurants(source: Path, target: Path) -> None:
    """E2E's `devset.csv`, parted by facts."""
    with (source / "devset.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    learned = some_of(row["mr"] for row in rows)
    for name, wanted in (("trainset.csv", True), ("devset.csv", False)):
        with (target / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["mr", "ref"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if (row["mr"] in learned) == wanted)


def conversations(source: Path, target: Path) -> None:
    """DailyDialog++'s `dev.json`, parted by contexts, and `test.json`, with few answers to each."""
    dev, test = ([json.loads(row) for row in rows_of(source / f"{part}.json")] for part in ("dev", "test"))
    learned = some_of("\n".join(row["context"]) for row in dev)
    parts = {
        "train": [row for row in dev if "\n".join(row["context"]) in learned],
        "dev": [row for row in dev if "\n".join(row["context"]) not in learned],
        "test": test,
    }
    for part, some in parts.items():
        lines_of(target / f"{part}.json", map(fewer, some))


def fewer(row: Mapping[str, Any]) -> dict[str, Any]:
    answers = ("positive_responses", "adversarial_negative_responses")
    return {**row, **{column: row[column][:ANSWERS] for column in answers}}


def some_of(texts: Iterable[str]) -> set[str]:
    """The share of different texts that is learned from: the same ones wherever this is made."""
    found = sorted(set(texts))
    random.Random(0).shuffle(found)
    return set(found[: max(1, round(SHARE * len(found)))])


def rows_of(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def lines_of(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


DATA: Mapping[str, Callable[[Path, Path], None]] = {
    "imdb": same,
    "commongen": same,
    "e2e": restaurants,
    "dailydialog-plusplus": conversations,
}
"""Folders of DATA, in the layout in which they are published, and what is made of them."""


def main(chat_model: Path, encoder: Path, data: Path, folder: Path) -> None:
    missing = [name for name in (*DATA, "rt-polarity") if not (data / name).is_dir()]
    if missing:
        raise SystemExit(f"{data}: there is no folder {', '.join(missing)}; README.md says what is read")
    for name, made in DATA.items():
        if not (folder / name).is_dir():
            beside = folder / f"{name}.part"
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            made(data / name, beside)
            beside.rename(folder / name)  # there whole, or not at all
    if not (folder / "chat").is_dir():
        chat(chat_model, folder / "chat.part")
        (folder / "chat.part").rename(folder / "chat")
    if not (folder / "kindness").is_dir():
        kindness(encoder, data / "rt-polarity", folder / "kindness")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:4]), Path(sys.argv[4]) if len(sys.argv) == 5 else HERE / "prepared")
