"""A review goes on: the first half of one from IMDB (Maas et al. 2011), to be ended in good spirits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy
from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset.cells import text_of
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.mapping import get, joined
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import SAMPLES, GrueOptions, GrueReader, GrueTask, Published

TRAIN, TEST = 0.8, 5_000
"""RL4LMs' share of the published `train`, the rest of which is `val`; and how much of the published `test` it takes."""
NOT_POSITIVE = "are not positive"


def halves(review: str) -> tuple[str, str]:
    """The first half of the words, parted by single spaces, and the rest."""
    words = review.split(" ")
    middle = int(len(words) * 0.5)
    return " ".join(words[:middle]), " ".join(words[middle:])


class IMDB(GrueTask):
    """The first half of a film review."""

    paper = "Andrew L. Maas et al., Learning Word Vectors for Sentiment Analysis, 2011"

    class Config(GrueOptions):
        """Options of `imdb`."""

        max_prompt_tokens: int | None = Field(
            64, gt=0, description="longer prompts are cut on the left; needs `tokenizer`"
        )
        train: Literal["all", "positive"] = Field(
            "all",
            description="the reviews of `train`: `positive` ones are what RL4LMs' supervised model learns",
        )
        seed: int = Field(
            42,
            ge=0,
            description="shuffles the published reviews, of which a fifth become `val`; 42 is RL4LMs'",
        )

    config: Config
    samples = SAMPLES / "imdb"
    published = Published(
        "stanfordnlp/imdb", elsewhere="the authors' page offers aclImdb, a folder of text files a class"
    )
    licence = "free for research; cite the paper; texts are of IMDb's users"
    sizes = {"train": 25_000, "test": 25_000}
    warm_start = "rajkumarrrk/gpt2-fine-tuned-on-imdb-positive-reviews"
    side = "left"
    defaults = {"generation": {"top_k": 50, "min_new_tokens": 48, "max_new_tokens": 48}}
    generation = {"top_k": 50, "min_new_tokens": 48, "max_new_tokens": 48}
    limits_the_walk = False

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def digests(self, name: str) -> list[object]:
        return [name, super().digests("test" if name == "test" else "train")]

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        c, source = self.config, "test" if name == "test" else "train"
        found = self.indexed(source, [source], lambda example, reader: source)[source]
        self.check_size(source, found.found)
        # As `shuffle(seed)` of the library `datasets` does it.
        order = numpy.random.default_rng(c.seed).permutation(len(found))
        if name == "test":
            return {name: found.take(order[:TEST][: c.limit])}
        edge = int(len(found) * TRAIN)
        parts = {"train": order[:edge], "val": order[edge:]}
        return {split: found.take(places[: c.limit]) for split, places in parts.items()}

    def reader(self, split: str, table: Table) -> Reviews:
        return Reviews(table.name, self)


class Reviews(GrueReader):
    """One review per row: `text`, and `label`, which is 1 of a positive one."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        review, label = text_of(row, "text"), get(row, "label")
        if str(label) not in ("0", "1"):
            raise BadRow(f"`label` is {label!r}, expected 0 or 1")
        first, second = halves(review)
        prompt = self.prompt(
            first, chat="Go on with this film review, in its style and in good spirits:\n\n{text}"
        )
        answer = (
            joined(first, second, " ")
            if self.config.compat is None and self.config.style == "plain"
            else second
        )
        meta = {"references": [review], "label": int(label)}
        return [Example(place, prompt, (answer,), meta=meta)]
