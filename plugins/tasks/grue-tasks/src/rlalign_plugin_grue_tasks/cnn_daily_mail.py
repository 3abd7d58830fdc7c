"""News and their highlights: CNN/DailyMail (Hermann et al. 2015, See et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from rlalign import Example
from rlalign_plugin_dataset.cells import text_of
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

CHAT = "Summarize this article in three or four short sentences.\n\n{text}"


class CNNDailyMail(GrueTask):
    """A news article, to be summarised in a few sentences."""

    paper = "Abigail See, Peter J. Liu, Christopher D. Manning, Get To The Point, 2017"

    class Config(CompatOptions):
        """Options of `cnn-daily-mail`."""

        max_prompt_tokens: int | None = prompt_tokens(512)

    config: Config
    samples = SAMPLES / "cnn-daily-mail"
    published = Published("abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d")
    licence = "Apache-2.0 on the hub; the articles are CNN's and the Daily Mail's"
    warm_start = "rajkumarrrk/t5-base-fine-tuned-on-cnn-dm"
    sizes = {"train": 287_113, "val": 13_368, "test": 11_490}
    side = "right"
    defaults = {"generation": {"top_k": 100, "min_new_tokens": 50, "max_new_tokens": 100}}
    generation = {"temperature": 0.7, "min_new_tokens": 50, "max_new_tokens": 100}
    metrics = ("meteor", "rouge", "bleu", {"bert-score": {"path": "FacebookAI/roberta-large"}}, "diversity")

    def reader(self, split: str, table: Table) -> Articles:
        return Articles(table.name, self, split)


class Articles(GrueReader):
    """One article per row: `article`, and `highlights`, a sentence a line."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        article, highlights = text_of(row, "article"), text_of(row, "highlights")
        return [self.example(place, self.prompt(article, before="Summarize: ", chat=CHAT), [highlights])]
