"""A sentence with given words: CommonGen (Lin et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy

from rlalign import Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import filled, list_of, text_of
from rlalign_plugin_dataset.gathered import Gathered
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.opening import is_data
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

TEXTS = {"words": "commongen.{split}.src_alpha.txt", "target": "commongen.{split}.tgt.txt"}
"""The authors' text files, which go together line by line."""
CHAT = "Write one sentence about an everyday scene that uses all of these words: {words}."


class CommonGen(GrueTask):
    """Three to five words, and a sentence about an everyday scene that uses all of them."""

    paper = "Bill Yuchen Lin et al., CommonGen, 2020"

    class Config(CompatOptions):
        """Options of `common-gen`."""

        max_prompt_tokens: int | None = prompt_tokens(20)

    config: Config
    samples = SAMPLES / "common-gen"
    published = Published(
        "GEM/common_gen",
        exported={
            "train": "common_gen/train/*.parquet",
            "val": "common_gen/validation/*.parquet",
            "test": "common_gen/test/*.parquet",
        },
        elsewhere="It also reads allenai/common_gen, and the authors' own files: commongen.*.jsonl, or "
        "commongen.*.src_alpha.txt beside commongen.*.tgt.txt.",
    )
    licence = "MIT"
    warm_start = "rajkumarrrk/t5-common-gen"
    sizes = {"train": 67_389, "val": 993, "test": 1_497}
    side = "right"
    blind = {
        "test": "CommonGen keeps the sentences of `test` to itself; evaluate on `val`, or by what reads no references, "
        "such as `coverage`"
    }
    defaults = {"generation": {"top_k": 50, "min_new_tokens": 5, "max_new_tokens": 20}}
    generation = {"beams": 5, "min_new_tokens": 5, "max_new_tokens": 20}
    metrics = (
        "meteor",
        "rouge",
        "bleu",
        {"bert-score": {"path": "FacebookAI/roberta-large"}},
        "cider",
        "coverage",
        "diversity",
    )
    limits_the_walk = False

    def open(self, path: Path) -> Sources:
        """The authors' text files; where a split is there in another form too, that one."""
        texts = (
            sources.lines(path, TEXTS, {}) if any(path.glob(TEXTS["words"].replace("{split}", "*"))) else {}
        )
        others = not texts or any(is_data(file) for file in path.iterdir())
        return {**texts, **super().open(path)} if others else texts

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        rows = self.indexed(name, [name], lambda example, reader: name)[name]
        self.check_size(name, rows.found)
        if self.compat:
            return {name: rows.take(numpy.arange(len(rows))[: self.at_most])}
        return {name: Gathered(rows, self.at_most)}

    def reader(self, split: str, table: Table) -> Scenes:
        return Scenes(table.name, self, split)


class Scenes(GrueReader):
    """Words and sentences: in rows of the hub (`concepts`, `target`, `references`), of the authors (`concept_set`,
    `scene`), or a line of each of their text files."""

    def __init__(self, name: str, task: CommonGen, split: str) -> None:
        super().__init__(name, task, split)
        self.gathers = not task.compat

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        words = [filled(word, "a word") for word in _words(row)]
        prompt = self.prompt(
            " ".join(words),
            before="generate a sentence with: ",
            after=".",
            chat=CHAT.replace("{words}", ", ".join(words)),
        )
        return [self.example(place, prompt, self._sentences(row), keywords=words)]

    def _sentences(self, row: Row) -> list[str]:
        """Those of a row, each once; RL4LMs read GEM's `target` alone."""
        if "scene" in row:
            found = [filled(text, "a sentence of `scene`") for text in list_of(row, "scene")]
        else:
            others = list_of(row, "references") if row.get("references") else []
            found = [row.get("target") or "", *others]
        if not all(isinstance(text, str) for text in found):
            raise BadRow("`target` is no text, or `references` no list of texts")
        return [text for text in dict.fromkeys(found) if text.strip()][: 1 if self.task.compat else None]


def _words(row: Row) -> Sequence[object]:
    if "concepts" in row:
        return list_of(row, "concepts")
    if "concept_set" in row:
        return text_of(row, "concept_set").split("#")
    return text_of(row, "words").split(" ")
