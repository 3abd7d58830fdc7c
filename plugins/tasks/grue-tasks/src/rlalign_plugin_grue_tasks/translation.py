"""What the tasks of translation share: their prompt, and rows or pairs of text files that hold two languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field, model_validator

from rlalign import ConfigError, Example
from rlalign_plugin_dataset.cells import filled
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lines import Lines, SideBySide
from rlalign_plugin_dataset.opening import is_data
from rlalign_plugin_dataset.sources import Sources, within
from rlalign_plugin_dataset.tables import Row, Scanned, Table, kind_of
from rlalign_plugin_grue_tasks.grue import GrueOptions, GrueReader, GrueTask, prompt_tokens

NAMES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "fi": "Finnish", "fr": "French",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "ro": "Romanian", "ru": "Russian",
    "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip
"""Languages by their codes."""
MARKUP = {".xml", ".sgm", ".sgml"}
EMPTY = "are empty on one side"
CHAT = "Translate this text from {source} to {target}. Answer with the translation alone.\n\n{{text}}"

_SEGMENT = re.compile(r"\s*<seg\b[^>]*>(.*?)(?:</seg>|$)", re.IGNORECASE)
_SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test", "tst": "test"}


def segment(line: str) -> str | None:
    """The text of a segment, as files of test sets hold it; their other lines are about the document."""
    found = _SEGMENT.match(line)
    return found[1].strip() if found else None


def untagged(line: str) -> str | None:
    """A line of a talk; those that begin with a tag are about it."""
    line = line.strip()
    return None if line.startswith("<") else line


class Sentences(Lines):
    """A text file of which some lines are no sentences."""

    def __init__(self, path: Path, name: str, column: str, sentence: Callable[[str], str | None]) -> None:
        super().__init__(path, name, column=column)
        self.sentence = sentence

    def every(self) -> Iterator[Scanned]:
        for found in super().every():
            if isinstance(found.row, str):
                yield found
            elif (text := self.sentence(found.row[self.column])) is not None:
                yield found._replace(row={self.column: text})

    def read(self, start: int, length: int) -> Row:
        return {self.column: self.sentence(super().read(start, length)[self.column])}


class Named(NamedTuple):
    """What the name of a text file says: `newstest2016-ende-src.en.sgm`."""

    stem: str
    language: str
    sentence: Callable[[str], str | None]


def named(name: str) -> Named:
    """What a text file's name says of it."""
    path = Path(name.removesuffix(".gz"))
    sentence = segment if path.suffix in MARKUP else untagged if ".tags." in name else str
    if path.suffix in MARKUP:
        path = path.with_suffix("")
    return Named(re.sub(r"-(src|ref)\b", "", path.stem), path.suffix[1:], sentence)


def split_of(stem: str) -> str:
    """The split of a pair of files: as a word in their name begins, or in that of a folder, else `train`."""
    words = [word for part in reversed(Path(stem).parts) for word in re.split(r"[-_. ]", part.lower())]
    return next(
        (split for word in words for begin, split in _SPLITS.items() if word.startswith(begin)), "train"
    )


class TranslationOptions(GrueOptions):
    """What every task of translation can be told."""

    languages: ClassVar[Sequence[str]]
    """Those that there are; one of a pair is English unless `any_pair`."""
    any_pair: ClassVar[bool] = False

    source: str = Field("en", description="the language that is translated, by its code")
    target: str = Field("de", description="the language that it is translated to")
    max_prompt_tokens: int | None = prompt_tokens(128)

    @model_validator(mode="after")
    def _two_that_there_are(self) -> TranslationOptions:
        pair = (self.source, self.target)
        for language in pair:
            if language not in self.languages:
                raise ValueError(
                    f"there is no language `{language}` (there are: {', '.join(self.languages)})"
                )
        if len(set(pair)) == 1:
            raise ValueError("`source` and `target` are the same language")
        if not (self.any_pair or "en" in pair):
            raise ValueError("one of `source` and `target` is `en`")
        return self


class Translation(GrueTask):
    """Sentences in two languages, of which one is translated to the other."""

    metrics = (
        "meteor",
        "rouge",
        "bleu",
        {"bert-score": {"path": "google-bert/bert-base-multilingual-cased"}},
        {"sacrebleu": {"tokenize": "intl"}},
        "ter",
        "chrf",
        "diversity",
    )
    defaults = {"generation": {"top_k": 10, "max_new_tokens": 128}}
    generation = {"beams": 4, "max_new_tokens": 128}
    config: TranslationOptions

    @property
    def pair(self) -> tuple[str, str]:
        """The two languages, in the order of translation."""
        return self.config.source, self.config.target

    @property
    def other(self) -> str:
        """The language that is not English."""
        return next(language for language in self.pair if language != "en")

    def open(self, path: Path) -> Sources:
        """Pairs of text files in the two languages where there are such, else files of rows."""
        only = None if path.is_dir() else path
        if only is not None and (is_data(only) or not only.is_file()):
            return super().open(path)
        stems = self._stems(path.parent, path.parent.iterdir()) if only else self._stems(path, within(path))
        forth, back = "".join(self.pair), "".join(reversed(self.pair))
        found: Sources = {}
        for stem, sides in stems.items():
            is_meant = only is None or any(side.path == only for side in sides.values())
            # A test set may be there for both directions: `newstest2016-ende`, `newstest2016-deen`.
            if is_meant and len(sides) == 2 and not (back in stem and stem.replace(back, forth) in stems):
                found.setdefault(self.split_of(stem), []).append(
                    SideBySide([sides[language] for language in self.pair])
                )
        alone = next((side for sides in stems.values() for side in sides.values()), None)
        if not found and only is None and alone is not None:
            other = self.pair[named(alone.path.name).language == self.pair[0]]
            raise ConfigError(f"{path}: {alone.name} is there, and no such file in `{other}`")
        return found or super().open(path)

    def split_of(self, stem: str) -> str:
        """The split that a pair of text files belongs to."""
        return split_of(stem)

    def _stems(self, folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Sentences]]:
        """Text files in the two languages, by what the names of a pair have in common."""
        stems: dict[str, dict[str, Sentences]] = {}
        for path in sorted(files):
            said = named(path.name)
            if said.language in self.pair and path.is_file():
                name = path.relative_to(folder).as_posix()
                stem = (Path(name).parent / said.stem).as_posix()
                stems.setdefault(stem, {})[said.language] = Sentences(
                    path, name, said.language, said.sentence
                )
        return stems

    def reader(self, split: str, table: Table) -> Pairs:
        return Pairs(table.name, self, split)


class Pairs(GrueReader):
    """Rows with two languages: `{"translation": {"en": …, "de": …}}`, or a column for each."""

    def __init__(self, name: str, task: Translation, split: str) -> None:
        super().__init__(name, task, split)
        self.source, self.target = task.pair

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        sides = row.get("translation", row)
        if not isinstance(sides, dict):
            raise BadRow(f"`translation` is {kind_of(sides)}, expected an object")
        for language in (self.source, self.target):
            if language not in sides:
                raise BadRow(f"no `{language}` (there are: {', '.join(sides) or 'none'})")
        source, target = sides[self.source], sides[self.target]
        if "" in (str(source).strip(), str(target).strip()):
            return [EMPTY]
        source, target = filled(source, f"`{self.source}`"), filled(target, f"`{self.target}`")
        if not self.task.compat:
            source, target = source.strip(), target.strip()
        names = {"source": NAMES[self.source], "target": NAMES[self.target]}
        before = "translate {source} to {target}: ".format(**names)
        prompt = self.prompt(source, before=before, chat=CHAT.format(**names))
        return [self.example(place, prompt, [target], source=source)]
