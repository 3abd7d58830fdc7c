"""The user's own data as a task: files, folders or a dataset on the hub, its columns mapped in the pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from rlalign import ConfigError, Example, Options, Task
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.columns import Columns
from rlalign_plugin_dataset.gathered import Gathered
from rlalign_plugin_dataset.index import Examples, by_share, index
from rlalign_plugin_dataset.mapping import Template, glued
from rlalign_plugin_dataset.places import cache_name, not_kept, place_of
from rlalign_plugin_dataset.remote import Url
from rlalign_plugin_dataset.rows import Rows
from rlalign_plugin_dataset.tables import Encoding, Table

__all__ = ["Dataset"]

Share = Annotated[float, Field(gt=0, le=1)]
Names = tuple[str, ...]
FileName = Annotated[str, Field(min_length=1)]


class Dataset(Task):
    """Examples from the user's own data, read from disk as they are drawn."""

    class Config(Options):
        """Options of `dataset`. A column option that is not given means the column of the option's own name."""

        path: Url | Annotated[Path, Field(strict=False)] | None = Field(
            None,
            description="a file (.jsonl, .json, .csv, .tsv, .txt, each also with .gz; .parquet), or a folder, one file "
            "or folder a split; here, or elsewhere: `s3://bucket/data`",
        )
        lines: dict[str, FileName] = Field(
            {},
            description="files of one text a line, side by side in the folder `path`: column → file; `{split}` in the "
            "names stands for the split",
        )
        hub: str | None = Field(
            None, description="instead of `path`: the id of a dataset on the Hugging Face hub"
        )
        subset: str | None = Field(None, description="hub: its configuration")
        revision: str | None = Field(None, description="hub: a commit, tag or branch")
        splits: dict[str, Share | str | Names] = Field(
            {},
            description="split → a share of the data (`0.9`), or the files in the folder, or beside the file "
            "(`a-*.jsonl`), or splits of the hub that make it up; none: as file names say",
        )
        prompt: str | None = Field(
            None,
            description="the prompt's column (text, a list of messages, or a dialogue as a list of texts), or a "
            "template: `Q: {question}`",
        )
        chat: str | None = Field(
            None,
            description="a column of message lists, instead of `prompt`; a last message by `assistant` is the "
            "response, as is the last turn of a dialogue that is a list of texts",
        )
        style: Literal["plain", "chat"] = Field(
            "plain",
            description="`chat`: a prompt of text is put as a user's message, and a dialogue as turns of user and "
            "assistant, for a model with a chat template",
        )
        system: str | None = Field(
            None, description="a system message for chats that begin with none of their own"
        )
        turn: str = Field(
            "\n", description="what ends each turn of a dialogue that is a list of texts, in a plain prompt"
        )
        responses: str | Names | None = Field(
            None, description="column of a logged response or a list of them, or one column a response"
        )
        scores: str | Names | None = Field(
            None, description="column or columns of their scores, in the same order"
        )
        score_range: tuple[float, float] | None = Field(
            None,
            description="the least and the largest score there can be: a row with another cannot be used",
        )
        empty_responses: Literal["keep", "bad"] = Field(
            "keep",
            description="a response without text: `keep`: it only ends, as one may be sampled; `bad`: the row "
            "cannot be used",
        )
        finished: str | None = Field(
            None,
            description="column that says whether each response ended by itself; without one they all did",
        )
        chosen: str | None = Field(
            None, description="column of the better response of a pair, or of a list of them, scored 1"
        )
        rejected: str | None = Field(None, description="column of the worse one, or of several, scored 0")
        references: str | Names | None = Field(
            None,
            description="column or columns of reference answers, text or lists, for metrics: `meta['references']`",
        )
        gather: bool = Field(
            False,
            description="make one example of all rows that share a prompt, with the references and responses of all",
        )
        id: str | None = Field(
            None,
            description="column or template of a unique name; without one an example is called `file:line`",
        )
        meta: Names | None = Field(
            None,
            description="columns kept in `meta` for rewards and metrics; null: all that mean nothing else",
        )
        join: str | None = Field(
            None,
            description="put before a logged response where no white space parts it from a text prompt; "
            "null: nothing, and say so if words run together",
        )
        limit: int | None = Field(
            None,
            gt=0,
            description="at most this many rows of each split, the first ones; of gathered ones, this many prompts",
        )
        bad_rows: Literal["error", "skip"] = Field(
            "error",
            description="what a row that cannot be used does: refuse the data, or be left out, counted and named",
        )
        delimiter: str | None = Field(
            None,
            min_length=1,
            max_length=1,
            description="between CSV fields; null: comma, semicolon or tab, as the header shows",
        )
        encoding: Encoding = Field("utf-8", description="how the bytes of files are text")

        @field_validator("prompt", "id")
        @classmethod
        def _template(cls, text: str | None) -> str | None:
            if text is not None:
                Template(text)
            return text

        @model_validator(mode="after")
        def _fits_together(self) -> Dataset.Config:
            if (self.path is None) == (self.hub is None):
                raise ValueError("say `path`, for a file or folder, or `hub`, for a dataset on the hub")
            if self.hub is None and (self.subset or self.revision):
                raise ValueError("`subset` and `revision` belong to `hub`")
            if (self.chosen is None) != (self.rejected is None):
                raise ValueError("a pair needs both `chosen` and `rejected`")
            if self.chosen is not None and self.responses is not None:
                raise ValueError("say `responses`, or `chosen` and `rejected`, not both")
            if self.lines and not isinstance(self.path, Path):
                raise ValueError("`lines` names files in the folder `path`, which is one on this machine")
            marked = {name.count(sources.SPLIT) for name in self.lines.values()}
            if marked - {0, 1} or len(marked) > 1:
                raise ValueError("`lines`: either each name holds `{split}` once, or none does")
            if self.prompt is not None and self.chat is not None:
                raise ValueError("say `prompt` or `chat`, not both")
            kinds = {isinstance(value, float) for value in self.splits.values()}
            if len(kinds) > 1:
                raise ValueError("`splits` holds either shares or names, not both")
            if kinds == {True} and sum(self.shares.values()) > 1 + 1e-9:
                raise ValueError(
                    f"the shares of `splits` add up to {sum(self.shares.values()):g}, more than 1"
                )
            return self

        @property
        def shares(self) -> dict[str, float]:
            """The splits that are shares of the data."""
            return {split: value for split, value in self.splits.items() if isinstance(value, float)}

        @property
        def named(self) -> dict[str, Names]:
            """The splits that are files or splits of the hub."""
            return {
                split: (value,) if isinstance(value, str) else value
                for split, value in self.splits.items()
                if not isinstance(value, float)
            }

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        where = self.config.path
        self.here = isinstance(where, Path) or str(where).startswith("file://")
        self._sources: sources.Sources | None = None
        self._examples: dict[str, Examples | Gathered] = {}

    def examples(self, split: str) -> Sequence[Example]:
        name = self._known(split)
        if name not in self._examples:
            self._examples |= self._index(name)
        found = self._examples[name]
        if len(found) == 0:
            share = self.config.shares[name]
            raise ConfigError(
                f"{self._where}: `splits: {{{name}: {share:g}}}` got none of {found.found:,} rows; rows with the same "
                "prompt and no `id` go together, so give them ids, or take more rows or a "
                f"larger share, a file of its own (`splits: {{{name}: FILE}}`), or, to evaluate on what is learned "
                "from, `evaluate: {split: train}`"
            )
        return found

    def fingerprint(self, split: str) -> str:
        """Of the contents and of all options but the place."""
        self.examples(split)  # which says what columns there are to be read
        name = self._known(split)
        options = self.config.model_dump(mode="json", exclude={"path"})
        tables = self._tables(name)
        digests = self._examples[name].digests or [table.digest() for table in tables]
        named = [(table.name, digest) for table, digest in zip(tables, digests, strict=True)]
        said = json.dumps([options, name, named], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def _index(self, name: str) -> Mapping[str, Examples | Gathered]:
        c = self.config
        tables = self._tables(name)
        columns = [Columns(c, table) for table in tables]
        for table, mapped in zip(tables, columns, strict=True):
            table.only(mapped.needed())
        most = min((most for most in (c.limit, self.most) if most is not None), default=None)
        found = index(
            tables,
            [Rows(c, mapped) for mapped in columns],
            list(c.shares) if name in c.shares else [name],
            by_share(c.shares) if name in c.shares else lambda example, reader: name,
            skip=c.bad_rows == "skip",
            limit=None if c.gather else most,
            glued=glued if c.join is None else None,
            kept=self._kept(name, tables, most),
        )
        return {split: Gathered(rows, most) for split, rows in found.items()} if c.gather else found

    def _kept(self, name: str, tables: Sequence[Table], most: int | None) -> Path | None:
        """Where the index of large data is kept: what it depends on is in the name. None: it is made anew."""
        known = [table.identity() for table in tables]
        if not any(table.large for table in tables) or None in known:
            return None
        options = self.config.model_dump(mode="json", exclude={"path"})
        try:
            return place_of([options, name, most, known])
        except OSError as error:
            not_kept(cache_name(), " and ".join(table.name for table in tables), error.strerror)
            return None

    @property
    def _where(self) -> str:
        return str(self.config.path or f"hub: {self.config.hub}")

    def _there(self) -> sources.Sources:
        """The tables by split, as files and folders say."""
        if self._sources is None:
            c = self.config
            if isinstance(c.path, Url):
                self._sources = sources.remote(c.path, c.named, c.delimiter, c.encoding)
            elif c.path is not None and c.lines:
                self._sources = sources.lines(c.path, c.lines, c.named, c.encoding)
            elif c.path is not None:
                self._sources = sources.local(c.path, c.named, c.delimiter, c.encoding)
            else:
                self._sources = sources.hub(str(c.hub), c.subset, c.revision, c.named)
            if c.shares and "train" not in self._sources:
                raise ConfigError(
                    f"{self._where}: shares are of `train`, and there is none (splits: {', '.join(self._sources)}); "
                    f"{self._which('train')}"
                )
        return self._sources

    def _known(self, split: str) -> str:
        names = {**self.config.shares, **self._there()}
        if self.config.shares and "train" not in self.config.shares:
            names.pop("train")  # its rows are shared out
        found = sources.pick(split, names)
        if found is None:
            hint = ""
            if not self.config.splits and "train" in names and split != "train":
                hint = f"; `splits: {{train: 0.9, {split}: 0.1}}` would set some rows aside"
            elif not self.config.splits:
                hint = f"; {self._which(split)}"
            raise ConfigError(f"{self._where}: has no split `{split}` (splits: {', '.join(names)}){hint}")
        return found

    def _which(self, split: str) -> str:
        """How a split is named that is there under another name."""
        other = next(iter(self._there()))
        if self.config.lines or self.config.hub:
            return f"`splits: {{{split}: {other}}}` makes it of that one"
        (first, *_) = self._there()[other]
        return f"`splits: {{{split}: {first.name}}}` names the file"

    def _tables(self, name: str) -> list[Table]:
        return self._there()["train" if name in self.config.shares else name]
