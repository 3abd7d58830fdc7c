"""What tasks of published data share: a copy of it, the hub, or a few rows of our own; splits; bad rows; sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from rlalign import ConfigError, Example, Options, Task
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.index import Examples, Reader, SplitOf, index
from rlalign_plugin_dataset.lengths import Tokens
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Table


class CorpusOptions(Options):
    """What every such task can be told."""

    path: Path | None = Field(None, strict=False, description="a copy of the data: its folder, or one file")
    sample: bool = Field(
        False, description="instead: a dozen rows of our own, in the layout of the data, to try things with"
    )
    bad_rows: Literal["skip", "error"] = Field(
        "skip",
        description="what a row that cannot be used does: be left out, counted and named, or refuse the data",
    )
    limit: int | None = Field(
        None, gt=0, description="at most this many examples of each split, the first ones"
    )
    tokenizer: str | Path | None = Field(
        None,
        description="a tokenizer's folder (`./…`) or name, by which limits in tokens are kept; null: none of them is",
    )

    @model_validator(mode="after")
    def _one_place(self) -> CorpusOptions:
        if self.path is not None and self.sample:
            raise ValueError("say `path` or `sample: true`, not both")
        return self


class LocalOptions(CorpusOptions):
    """Of data that is not on the hub."""

    @model_validator(mode="after")
    def _some_place(self) -> LocalOptions:
        if self.path is None and not self.sample:
            raise ValueError("this data is not on the hub: say `path`, where your copy is, or `sample: true`")
        return self


class Measuring(Reader):
    """A reader of which some limits are in tokens."""

    tokens: Tokens | None = None
    """There once the rows have been walked over: what they hold does not depend on it, how long it is does."""


class Corpus(Task):
    """A published data set. Of its rows only the places are held; they are read as they are drawn."""

    samples: Path
    """The folder of its sample rows."""
    sizes: Mapping[str, int] = {}
    """Rows of each split, where they are known for sure."""
    places: ClassVar[frozenset[str]] = frozenset({"path", "tokenizer"})
    """Options that say where something is: a fingerprint holds what is there."""
    limits_the_walk: ClassVar[bool] = True
    """Whether the walk over the rows ends when `limit` is reached; else the task sees to it afterwards."""
    config: CorpusOptions

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.here = self.place is not None
        self._sources: Sources | None = None
        self._examples: dict[str, Sequence[Example]] = {}
        self._tokens: Tokens | None = None

    # -- what a task says ---------------------------------------------------------------------------------

    def open(self, path: Path) -> Sources:
        """The tables of a copy, by split."""
        return sources.local(path, {})

    def download(self) -> Sources:
        """The tables on the hub, by split."""
        raise NotImplementedError

    def reader(self, split: str, table: Table) -> Measuring:
        """How a table reads."""
        raise NotImplementedError

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        """The examples of a split, and of others if they come with it."""
        found = self.indexed(name, [name], lambda example, reader: name)
        self.check_size(name, found[name].found)
        return found

    # -- what all have in common ----------------------------------------------------------------------------

    def examples(self, split: str) -> Sequence[Example]:
        name = self.known(split)
        if name not in self._examples:
            self._examples |= self.read(name)
        if len(self._examples[name]) == 0:
            raise ConfigError(f"{self.where}: the split `{name}` is empty")
        return self._examples[name]

    def fingerprint(self, split: str) -> str:
        """Of the contents and of all options but places."""
        options = self.config.model_dump(mode="json", exclude=set(self.places))
        tokenizer = self.tokens.digest() if self.tokens else None
        said = json.dumps([type(self).__name__, options, tokenizer, self.digests(self.known(split))])
        return hashlib.sha256(said.encode()).hexdigest()

    def digests(self, name: str) -> list[Any]:
        """What a split is made of."""
        return [name, [(table.name, table.digest()) for table in self.tables()[name]]]

    def splits(self) -> list[str]:
        """The splits there are."""
        return list(self.tables())

    def known(self, split: str) -> str:
        """The name under which a split is there."""
        names = self.splits()
        found = sources.pick(split, dict.fromkeys(names))
        if found is None:
            raise ConfigError(f"{self.where}: has no split `{split}` (splits: {', '.join(names)})")
        return found

    def tables(self) -> Sources:
        """The tables by split."""
        if self._sources is None:
            place = self.place
            self._sources = self._downloaded() if place is None else self.open(place)
        return self._sources

    def _downloaded(self) -> Sources:
        try:
            return self.download()
        except ConfigError as error:
            raise ConfigError(f"{error}\n{self.without_hub()}") from error

    def without_hub(self) -> str:
        """What to do where the hub cannot be reached."""
        return "Without the hub: `path`, a copy of the data, or `sample: true`, a dozen rows of our own"

    def indexed(self, name: str, names: Sequence[str], split_of: SplitOf) -> dict[str, Examples]:
        """One walk over a split's tables."""
        tables = self.tables()[name]
        readers = [self.reader(name, table) for table in tables]
        skip = self.config.bad_rows == "skip"
        limit = self.at_most if self.limits_the_walk else None
        found = index(tables, readers, names, split_of, skip=skip, limit=limit)
        for reader in readers:
            reader.tokens = self.tokens
        return found

    @property
    def at_most(self) -> int | None:
        """How many examples of a split are wanted; None: all."""
        return min((one for one in (self.config.limit, self.most) if one is not None), default=None)

    @property
    def place(self) -> Path | None:
        """The folder or file; None: the hub."""
        return self.samples if self.config.sample else self.config.path

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.place or f"hub: {getattr(self.config, 'hub', None)}")

    @property
    def tokens(self) -> Tokens | None:
        """The tokenizer, if one was named."""
        if self._tokens is None and self.config.tokenizer is not None:
            self._tokens = Tokens(self.config.tokenizer)
        return self._tokens

    def check_size(self, name: str, found: int) -> None:
        """Refuse data that is not whole, where `whole` wants it so."""
        expected = self.sizes.get(sources.canonical(name))
        if not self.whole or self.at_most is not None or expected in (None, found):
            return
        raise ConfigError(
            f"{self.where}: `{name}` holds {found:,} rows, expected {expected:,}; `whole: false` takes it as it is"
        )

    @property
    def whole(self) -> bool:
        """Whether split sizes must be the published ones: as the option says, else of what the hub gives."""
        asked: bool | None = getattr(self.config, "whole", False)
        return self.place is None if asked is None else asked
