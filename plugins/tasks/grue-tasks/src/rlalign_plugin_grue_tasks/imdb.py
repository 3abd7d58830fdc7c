"""A film review goes on: the first half of one from IMDB (Maas et al. 2011), to be ended in good spirits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy
from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset.cells import text_of
from rlalign_plugin_dataset.index import BadRow, Reader
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Scanned, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

TRAIN, TEST = 0.8, 5_000
"""RL4LMs' share of the published `train`, whose rest is `val`; and how much of the published `test` it takes."""
LABELS = ("neg", "pos")
DECODING = {"top_k": 50, "min_new_tokens": 48, "max_new_tokens": 48}


def halves(review: str) -> tuple[str, str]:
    """The first half of the words, parted by single spaces, and the rest."""
    words = review.split(" ")
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


class IMDB(GrueTask):
    """The first half of a film review, to be ended in good spirits."""

    paper = "Andrew L. Maas et al., Learning Word Vectors for Sentiment Analysis, 2011"

    class Config(CompatOptions):
        """Options of `imdb`."""

        max_prompt_tokens: int | None = prompt_tokens(64)
        train: Literal["all", "positive"] = Field(
            "all", description="reviews of `train`: RL4LMs' supervised model learns from `positive` ones"
        )
        seed: int = Field(
            42,
            ge=0,
            description="shuffles the published reviews, of which a fifth become `val`; 42 is RL4LMs'",
        )

    config: Config
    samples = SAMPLES / "imdb"
    published = Published("stanfordnlp/imdb", "plain_text", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31")
    licence = "free for research, cite the paper; the texts are IMDb users'"
    warm_start = "rajkumarrrk/gpt2-fine-tuned-on-imdb-positive-reviews"
    sizes = {"train": 25_000, "test": 25_000}
    side = "left"
    defaults = {"generation": DECODING}
    generation = DECODING
    metrics = (
        {"classifier": {"path": "lvwerra/distilbert-imdb", "label": 1}},
        "reference-perplexity",
        "diversity",
    )
    limits_the_walk = False

    def open(self, path: Path) -> Sources:
        for home in (path, path / "aclImdb"):
            if (home / "train" / "pos").is_dir():
                there = [part for part in ("train", "test") if (home / part / "pos").is_dir()]
                return {part: [TextFiles(home / part, part)] for part in there}
        return super().open(path)

    def splits(self) -> list[str]:
        return [name for name in ("train", "val", "test") if _published(name) in self.tables()]

    def digests(self, name: str) -> list[object]:
        return [name, super().digests(_published(name))]

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        """Shuffled as `shuffle(seed)` of the library `datasets` does, then cut."""
        c, there = self.config, _published(name)
        positive: list[
            bool
        ] = []  # of each review: noted on the way, as to read them again in another order is slow

        def split_of(example: Example, reader: Reader) -> str:
            positive.append(example.meta["label"] == 1)
            return there

        found = self.indexed(there, [there], split_of)[there]
        self.check_size(there, found.found)
        order = numpy.random.default_rng(c.seed).permutation(len(found))
        if name == "test":
            return {name: found.take(order[:TEST][: self.at_most])}
        edge = int(len(found) * TRAIN)
        train = order[:edge]
        if c.train == "positive":
            train = train[numpy.array(positive)[train]]
        return {"train": found.take(train[: self.at_most]), "val": found.take(order[edge:][: self.at_most])}

    def reader(self, split: str, table: Table) -> Reviews:
        return Reviews(table.name, self, split)

    def postprocess(self, text: str) -> str:
        return text  # a review goes on in the middle of a sentence, and the space there belongs to it


def _published(split: str) -> str:
    return "test" if split == "test" else "train"


class TextFiles(Table):
    """The authors' own layout: folders `neg` and `pos`, and in each a file a review, `ID_RATING.txt`."""

    unit = "file"

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(name)
        self._files = [file for label in LABELS for file in sorted((folder / label).glob("*.txt"))]

    def columns(self) -> list[str]:
        return ["text", "label"]

    def place(self, number: int, nth: int) -> str:
        file = self._files[number - 1]
        return f"{self.name}/{file.parent.name}/{file.name}"

    def scan(self) -> Iterator[Scanned]:
        for number in range(len(self._files)):
            row: Row | str
            try:
                row = self.read(number, 0)
            except UnicodeDecodeError as error:
                row = f"not UTF-8: byte 0x{error.object[error.start]:02x} at place {error.start + 1}"
            yield Scanned(number + 1, number, 0, row)

    def read(self, start: int, length: int) -> Row:
        file = self._files[start]
        return {"text": file.read_text(encoding="utf-8"), "label": LABELS.index(file.parent.name)}

    def digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(
                f"{file.parent.name}/{file.name} {file.stat().st_size} ".encode() + file.read_bytes()
            )
        return digest.hexdigest()


class Reviews(GrueReader):
    """One review per row: `text`, and `label`, which is 1 of a positive one."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        review, label = text_of(row, "text"), get(row, "label")
        if str(label) not in ("0", "1"):
            raise BadRow(f"`label` is {label!r}, expected 0 or 1")
        first, second = halves(review)
        if not first:
            raise BadRow("`text` is a single word, and half of it is nothing to begin with")
        prompt = self.prompt(first, chat="Go on with this film review where it stops:\n\n{text}")
        return [
            Example(
                place,
                prompt,
                self.answers(prompt, [second]),
                meta={"references": [review], "label": int(label)},
            )
        ]
