"""TL;DR: a post on Reddit and its summary (Völske et al. 2017, filtered and compared by Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import filled, list_of, text_of
from rlalign_plugin_dataset.corpus import Corpus, CorpusOptions, Measuring
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lengths import fitted
from rlalign_plugin_dataset.mapping import get, joined
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table, kind_of
from rlalign_plugin_dialog_tasks.constants import SAMPLES

NEWS = "are news articles, no posts"
HUB = {
    "posts": "trl-lib/tldr",
    "pairs": "trl-lib/tldr-preference",
    "feedback": "openai/summarize_from_feedback",
}
PARQUET = "refs/convert/parquet"
COMPARISONS = {"train": "comparisons/train/*.parquet", "val": "comparisons/validation/*.parquet"}


def prompt_of(subreddit: str, title: str, post: str) -> str:
    """The prompt of Stiennon et al. 2020."""
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


class TLDR(Corpus):
    """Posts on Reddit with their summaries, or with a better and a worse one."""

    paper = "Nisan Stiennon et al., Learning to summarize from human feedback, 2020"

    class Config(CorpusOptions):
        """Options of `tldr`."""

        data: Literal["posts", "pairs", "feedback"] = Field(
            "posts",
            description="on the hub: posts with a summary, with a better and a worse one, or with two compared ones as "
            "they were published; in a copy the columns say",
        )
        hub: str | None = Field(
            None, description="the data set's name on the hub; null: the usual one of `data`"
        )
        revision: str | None = Field(
            None,
            description="hub: a commit, tag or branch; null: the latest, of `feedback` its export as Parquet",
        )
        max_response_tokens: int | None = Field(
            None, gt=0, description="longer responses are cut on the right and do not end; needs `tokenizer`"
        )

    config: Config
    samples = SAMPLES / "tldr"
    generation = {"greedy": True, "max_new_tokens": 53}

    def download(self) -> Sources:
        c = self.config
        name = c.hub or HUB[c.data]
        if c.data == "feedback":
            return sources.hub(name, None, c.revision or PARQUET, {}, files=COMPARISONS)
        return sources.hub(name, None, c.revision, {})

    @property
    def where(self) -> str:
        return str(self.place or f"hub: {self.config.hub or HUB[self.config.data]}")

    def reader(self, split: str, table: Table) -> Posts:
        return Posts(table, self.config)

    def postprocess(self, text: str) -> str:
        return text.strip()


class Posts(Measuring):
    """One post per row; its columns say what stands beside it."""

    def __init__(self, table: Table, config: TLDR.Config) -> None:
        super().__init__(table.name)
        self.config = config
        columns = set(table.columns())
        self.has_ids = "id" in columns and "summary" in columns

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        if "summaries" in row:
            return self._compared(row, place)
        if "chosen" in row:
            prompt = text_of(row, "prompt")
            pair = [_answer(get(row, name), name) for name in ("chosen", "rejected")]
            return [self._example(place, prompt, pair, (1.0, 0.0))]
        if "completion" in row:
            return [self._example(place, text_of(row, "prompt"), [text_of(row, "completion")])]
        if "summary" in row:
            prompt = prompt_of(*(text_of(row, name) for name in ("subreddit", "title", "post")))
            name = filled(row["id"], "`id`") if self.has_ids else place
            return [self._example(name, prompt, [" " + text_of(row, "summary").strip()])]
        raise BadRow("no column `completion`, `chosen`, `summary` or `summaries`")

    def _compared(self, row: Row, place: str) -> list[Example | str]:
        post = get(row, "info")
        if not isinstance(post, dict):
            raise BadRow(f"`info` is {kind_of(post)}, expected an object")
        if post.get("post") is None and post.get("article"):
            return [NEWS]
        prompt = prompt_of(
            *(filled(post.get(name), f"`info.{name}`") for name in ("subreddit", "title", "post"))
        )
        summaries = list_of(row, "summaries")
        if len(summaries) != 2:
            raise BadRow(f"{len(summaries)} summaries, expected two")
        texts = [
            filled(summary.get("text") if isinstance(summary, dict) else None, f"summary {i}").strip()
            for i, summary in enumerate(summaries, 1)
        ]
        choice = get(row, "choice")
        if isinstance(choice, bool) or choice not in (0, 1):
            raise BadRow(f"`choice` is {choice!r}, expected 0 or 1")
        return [self._example(place, prompt, [f" {texts[choice]}", f" {texts[1 - choice]}"], (1.0, 0.0))]

    def _example(
        self, name: str, prompt: str, answers: Sequence[str], scores: tuple[float, ...] = ()
    ) -> Example:
        limit = self.config.max_response_tokens
        fits = [fitted(joined(prompt, answer, " "), self.tokens, limit) for answer in answers]
        meta: dict[str, Any] = {"references": [answers[0].strip()]}
        return Example(
            name, prompt, tuple(text for text, _ in fits), scores, tuple(ends for _, ends in fits), meta
        )


def _answer(value: Any, name: str) -> str:
    """Text, or a conversation whose last message is the answer."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return filled(value, f"`{name}`")
