"""Captions of pictures in several languages (Elliott et al. 2016)."""

from __future__ import annotations

from typing import ClassVar

from rlalign_plugin_grue_tasks.grue import SAMPLES, Published
from rlalign_plugin_grue_tasks.translation import Translation, TranslationOptions, split_of

TEST = "test_2016_flickr"
"""The first of its test sets; the others are splits under their own names."""


class Multi30k(Translation):
    """Captions to translate from English to German, or between any two of four languages."""

    paper = "Desmond Elliott et al., Multi30K: Multilingual English-German Image Descriptions, 2016"

    class Config(TranslationOptions):
        """Options of `multi30k`."""

        languages: ClassVar = ("en", "de", "fr", "cs")
        any_pair: ClassVar = True

    config: Config
    samples = SAMPLES / "multi30k"
    published = Published(
        "bentrevett/multi30k",
        elsewhere="github.com/multi30k/dataset holds data/task1/raw with train.en.gz, train.de.gz, …, which `path` "
        "reads too.",
    )
    licence = "for research and education; the captions stem from Flickr30k, whose terms hold"
    sizes = {"train": 29_000, "val": 1_014, "test": 1_000}
    defaults = {"generation": {"top_k": 10, "max_new_tokens": 48}}
    generation = {"beams": 4, "max_new_tokens": 48}

    def split_of(self, stem: str) -> str:
        return stem if stem.startswith("test_") and stem != TEST else split_of(stem)
