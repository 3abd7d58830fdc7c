"""What follows from an event: ATOMIC-10X (West et al. 2022) to learn from, ATOMIC-2020 (Hwang et al. 2021) to test on.

Prompt and splits are those of A-LoL (Baheti et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from pydantic import Field

from rlalign import ConfigError, Example
from rlalign_plugin_dataset.cells import number, text_of
from rlalign_plugin_dataset.corpus import Corpus, LocalOptions, Measuring
from rlalign_plugin_dataset.csv_files import Csv
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lengths import fitted
from rlalign_plugin_dataset.limits import LONGEST_ROW
from rlalign_plugin_dataset.opening import open_file
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import File, Row, Table
from rlalign_plugin_dialog_tasks.constants import SAMPLES, SEED

RELATIONS = ("HinderedBy", "xNeed", "xWant", "xIntent", "xReact", "xAttr", "xEffect")
SPLITS = {"train": "train", "val": "val", "test": "test10x"}
"""ATOMIC-10X's splits by our name."""
CRITIC = "p_valid_model"
OTHER = "have a relation that ATOMIC-10X has not"
EVENT, TAILS = " @@ ", "|"
"""What stands between head and relation, and between tails, in the test file of COMET's repository."""
MAIN, TEST = "ATOMIC10X.jsonl", "test.tsv"


def prompt_of(head: str, relation: str) -> str:
    """COMET's prompt; the space at its end belongs to it."""
    return f"<head> {head.strip()} </head> <relation> {relation} </relation> [GEN] "


class Comet(Corpus):
    """Commonsense: a head, a relation, and the tail to be found."""

    paper = "Jena D. Hwang et al., COMET-ATOMIC 2020, 2021; Peter West et al., Symbolic knowledge distillation, 2022"

    class Config(LocalOptions):
        """Options of `comet`."""

        val_size: int = Field(
            10_000, gt=0, description="examples of `val`, drawn once for all from those there are"
        )
        end: bool = Field(
            False,
            description="teach that a tail ends; A-LoL's tails do not, and decoding stops at the first full stop",
        )
        max_response_tokens: int | None = Field(
            30, gt=0, description="longer tails are cut on the right; needs `tokenizer`"
        )

    config: Config
    samples = SAMPLES / "comet"
    limits_the_walk = False
    generation = {"beams": 2, "max_new_tokens": 30, "stop": (".",)}

    def open(self, path: Path) -> Sources:
        if path.is_file():
            return {"test": [_headless(path)]} if path.suffix == ".tsv" else _thrice(path)
        if not path.is_dir():
            raise ConfigError(f"{path}: there is no such file or folder")
        main, test = (next(iter(sorted(path.rglob(name))), None) for name in (MAIN, TEST))
        if main is None and test is None:
            raise ConfigError(f"{path}: holds neither {MAIN} nor {TEST}")
        return {**(_thrice(main) if main else {}), **({"test": [_headless(test)]} if test else {})}

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        c = self.config
        if name == "test":
            return {name: self._grouped()}
        found = self.indexed(name, list(SPLITS.values()), lambda example, reader: str(example.meta["split"]))
        size = len(found["val"])
        if size > c.val_size:
            drawn = numpy.random.RandomState(SEED).choice(size, c.val_size, replace=False)
            found["val"] = found["val"].take(numpy.sort(drawn))
        if c.limit is not None:
            found = {split: part.take(numpy.arange(min(c.limit, len(part)))) for split, part in found.items()}
        return found

    def _grouped(self) -> Sequence[Example]:
        """One example a head and relation: all its tails are references; the best by the critic is the response."""
        rows = self.indexed("test", ["test"], lambda example, reader: "test")["test"]
        groups: dict[str, list[Example]] = {}
        for example in rows:
            groups.setdefault(str(example.prompt), []).append(example)
        return [_one_of(group) for group in list(groups.values())[: self.config.limit]]

    def reader(self, split: str, table: Table) -> Tails:
        return Tails(table.name, self.config)

    def postprocess(self, text: str) -> str:
        return text.strip()


def _thrice(path: Path) -> Sources:
    """ATOMIC-10X's one file holds all its splits."""
    table = open_file(path, path.name, None)
    return {split: [table] for split in SPLITS.values()}


def _headless(path: Path) -> File:
    """ATOMIC-2020's files have no header: a tail a row, where a fourth column would be a critic's, or all tails."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(LONGEST_ROW).rstrip("\r\n").split("\t")
    if first[:3] == ["head", "relation", "tail"]:
        return open_file(path, path.name, "\t")
    if len(first) == 2 and EVENT in first[0]:
        return Csv(path, path.name, "\t", names=("event", "tails"))
    return Csv(path, path.name, "\t", names=("head", "relation", "tail", CRITIC)[: max(3, len(first))])


def _one_of(group: Sequence[Example]) -> Example:
    first = group[0]
    tails = list(dict.fromkeys(tail for example in group for tail in example.meta["references"]))
    meta = {**first.meta, "references": tails}
    if not all(example.scores for example in group):
        return Example(id=first.id, prompt=first.prompt, meta=meta)
    best = max(group, key=lambda example: example.scores[0])
    return Example(first.id, first.prompt, best.responses, best.scores, best.finished, meta)


class Tails(Measuring):
    """One tail per row: `head`, `relation`, `tail`; in ATOMIC-10X also `split` and the critic's `p_valid_model`."""

    def __init__(self, name: str, config: Comet.Config) -> None:
        super().__init__(name)
        self.config = config

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        if "tails" in row:
            return self._all_tails(row, place)
        head, relation, tail = (text_of(row, name) for name in ("head", "relation", "tail"))
        if relation not in RELATIONS:
            return [OTHER]
        meta: dict[str, Any] = {"head": head.strip(), "relation": relation, "references": [tail.strip()]}
        if "split" in row:
            if row["split"] not in SPLITS:
                raise BadRow(f"`split` is {row['split']!r}, expected one of {', '.join(SPLITS)}")
            meta["split"] = SPLITS[row["split"]]
        elif CRITIC in row and not self.name.endswith(".tsv"):
            raise BadRow("no column `split`")
        scores = (number(row[CRITIC], f"`{CRITIC}`", 0, 1),) if CRITIC in row else ()
        text, ends = fitted(tail.strip(), self.tokens, self.config.max_response_tokens, self.config.end)
        return [Example(place, prompt_of(head, relation), (text,), scores, (ends,), meta)]

    def _all_tails(self, row: Row, place: str) -> Sequence[Example | str]:
        head, mark, relation = text_of(row, "event").rpartition(EVENT)
        if not mark:
            raise BadRow("the event names no relation: expected `head @@ relation`")
        if relation.strip() not in RELATIONS:
            return [OTHER]
        tails = [tail.strip() for tail in text_of(row, "tails").split(TAILS) if tail.strip()]
        if not tails:
            raise BadRow("`tails` is empty")
        meta = {"head": head.strip(), "relation": relation.strip(), "references": tails}
        return [Example(place, prompt_of(head, relation.strip()), meta=meta)]
