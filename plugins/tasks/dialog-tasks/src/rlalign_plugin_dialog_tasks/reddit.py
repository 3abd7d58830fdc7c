"""Reddit comments that were voted up or down, as answers to what they comment on.

The data is *Reddit comment scores* of Kaggle (danofer/reddit-comments-scores-nlp): `comments_positive.csv` and
`comments_negative.csv`. Prompt, filters and splits are those of A-LoL (Baheti et al. 2024).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
from pydantic import Field

from rlalign import ConfigError, Example, Joined
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import number
from rlalign_plugin_dataset.corpus import Corpus, LocalOptions, Measuring
from rlalign_plugin_dataset.index import BadRow, Examples, hash_of
from rlalign_plugin_dataset.lengths import fitted
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table, kind_of
from rlalign_plugin_dialog_tasks.constants import SAMPLES, SEED

FILES = {"up": ("comments_positive.csv",), "down": ("comments_negative.csv",)}
LACKING = "have no text or no parent"
NOTHING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
"""Cells that pandas reads as no value."""
NAMED = 5

_URL = re.compile(
    r"https?://(?:www\.)?[a-zA-Z0-9_@:%.+~#=-]{1,256}\.[a-zA-Z0-9()]{1,6}\b[a-zA-Z0-9_@:;%\\+.~#?&/=-]*"
)
_SPACE = re.compile(r"\s+")


def cleaned(text: str) -> str:
    """White space collapsed, addresses of the web replaced by `<URL>`."""
    return _URL.sub("<URL>", _SPACE.sub(" ", text).strip())


class RedditComments(Corpus):
    """Reddit comments that were voted up or down, as answers to their parents."""

    paper = (
        "Ashutosh Baheti et al., Leftover lunch: advantage-based offline reinforcement learning for language models, "
        "2024"
    )

    class Config(LocalOptions):
        """Options of `reddit-comments`."""

        train: Literal["up", "down", "both"] = Field(
            "up", description="whose comments are `train`; `val` and `test` hold both kinds"
        )
        draws: int = Field(102_000, gt=0, description="comments drawn of each kind before the filters")
        held_out: int = Field(
            1000,
            gt=0,
            description="comments of each kind in `test`, and in `val`; of few no more than a fifth",
        )
        max_words: int | None = Field(100, gt=0, description="of the parent, and of the comment")
        max_tokens: int | None = Field(300, gt=0, description="of both together; needs `tokenizer`")
        max_response_tokens: int | None = Field(
            128, gt=0, description="longer responses are cut on the right and do not end; needs `tokenizer`"
        )
        turn: str = Field(
            "<|endoftext|>", min_length=1, description="what ends the parent (DialoGPT's is the default)"
        )

    config: Config
    samples = SAMPLES / "reddit-comments"
    limits_the_walk = False
    generation = {"beams": 2, "max_new_tokens": 128}

    def open(self, path: Path) -> Sources:
        if not path.is_dir():
            raise ConfigError(
                f"{path}: give the folder that holds comments_positive.csv and comments_negative.csv"
            )
        return sources.local(path, FILES)

    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        up, down = (self._kind(kind) for kind in ("up", "down"))
        train = [
            part["train"]
            for kind, part in (("up", up), ("down", down))
            if self.config.train in (kind, "both")
        ]
        held_out = {split: Joined(up[split], down[split]) for split in ("val", "test")}
        return {"train": Joined(*train), **held_out}

    def digests(self, name: str) -> list[Any]:
        return [name, [(kind, table.digest()) for kind, (table,) in self.tables().items()]]

    def reader(self, split: str, table: Table) -> Comments:
        return Comments(table.name, self.config, split)

    def _kind(self, kind: str) -> dict[str, Examples]:
        """Draw as pandas' `sample(random_state=901)` does, filter, and cut: first `test`, then `val`, then `train`."""
        c = self.config
        (table,) = self.tables()[kind]
        rows = self.indexed(kind, [kind], lambda example, reader: kind)[kind]
        drawn = numpy.random.RandomState(SEED).choice(len(rows), min(c.draws, len(rows)), replace=False)
        kept, left, bad = [], Counter[str](), []
        seen: dict[int, str] = {}
        for row in drawn.tolist():
            example = rows[row]
            first = seen.setdefault(hash_of(example.id), str(example.meta["place"]))
            if first != example.meta["place"]:
                bad.append(f"{example.meta['place']}: the id `{example.id}` is that of {first} too")
            elif why := self._unfit(example):
                left[why] += 1
            else:
                kept.append(row)
        self._speak(table.name, len(drawn), len(kept), left, bad)
        size = min(c.held_out, len(kept) // 5)
        found = numpy.array(kept, dtype=numpy.intp)
        cut = {"test": found[:size], "val": found[size : 2 * size], "train": found[2 * size :]}
        return {split: rows.take(part[: c.limit]) for split, part in cut.items()}

    def _unfit(self, example: Example) -> str | None:
        c = self.config
        parent, comment = str(example.meta["parent"]), str(example.meta["references"][0])
        if c.max_words and max(len(parent.split()), len(comment.split())) > c.max_words:
            return f"have more than {c.max_words} words"
        if (
            c.max_tokens
            and self.tokens
            and self.tokens.count(parent + c.turn + comment + c.turn) > c.max_tokens
        ):
            return f"have more than {c.max_tokens} tokens"
        return None

    def _speak(self, what: str, drawn: int, kept: int, left: Mapping[str, int], bad: Sequence[str]) -> None:
        if bad:
            more = f"\n  and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
            listed = "\n  ".join(bad[:NAMED]) + more
            if self.config.bad_rows == "error":
                raise ConfigError(
                    f"{what}: {len(bad):,} of {drawn:,} drawn rows cannot be used; fix them, or leave them out by "
                    f"`bad_rows: skip`:\n  {listed}"
                )
            warnings.warn(f"{what}: {len(bad):,} of {drawn:,} drawn rows left out:\n  {listed}", stacklevel=2)
        if left:
            reasons = "\n  ".join(f"{times:,} {why}" for why, times in left.items())
            warnings.warn(
                f"{what}: {kept:,} of {drawn:,} drawn comments kept; left out:\n  {reasons}", stacklevel=2
            )

    def postprocess(self, text: str) -> str:
        return text.strip()


class Comments(Measuring):
    """One comment per row: `parent_text`, `text`, `score`, and `id` where there is one."""

    def __init__(self, name: str, config: RedditComments.Config, kind: str) -> None:
        super().__init__(name)
        self.config = config
        self.kind = kind

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        parent, text = self._text(row, "parent_text"), self._text(row, "text")
        if parent is None or text is None:
            return [LACKING]
        score = number(get(row, "score"), "`score`")
        if (score > 0) != (self.kind == "up") or score == 0:
            raise BadRow(f"`score` is {score:g} in {self.name}")
        turn = self.config.turn
        if turn in parent or turn in text:
            raise BadRow(f"holds {turn}, which ends a turn")
        parent, text = cleaned(parent), cleaned(text)
        response, ends = fitted(text, self.tokens, self.config.max_response_tokens)
        example = Example(
            id=str(row.get("id") or place),
            prompt=parent + turn,
            responses=(response,),
            scores=(score,),
            finished=(ends,),
            meta={"parent": parent, "votes": self.kind, "place": place, "references": [text]},
        )
        return [example]

    def _text(self, row: Row, name: str) -> str | None:
        value = get(row, name)
        if value is not None and not isinstance(value, str):
            raise BadRow(f"`{name}` is {kind_of(value)}, expected text")
        return None if value is None or value in NOTHING or not value.strip() else value
