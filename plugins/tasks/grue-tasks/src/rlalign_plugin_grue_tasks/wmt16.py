"""News in two languages: WMT16's task of translation (Bojar et al. 2016)."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import BaseModel

from rlalign_plugin_grue_tasks.grue import SAMPLES, CompatOptions, Published
from rlalign_plugin_grue_tasks.translation import Translation, TranslationOptions

SIZES = {
    "cs": {"train": 997_240, "val": 2_656, "test": 2_999},
    "de": {"train": 4_548_885, "val": 2_169, "test": 2_999},
    "fi": {"train": 2_073_394, "val": 1_370, "test": 6_000},
    "ro": {"train": 610_320, "val": 1_999, "test": 1_999},
    "ru": {"train": 1_516_162, "val": 2_818, "test": 2_998},
    "tr": {"train": 205_756, "val": 1_001, "test": 3_000},
}
"""Of each language's pair with English, as the hub's card says."""
NEWS = {"newstest2015": "val", "newsdev2016": "val", "newstest2016": "test", "newstestB2016": "test"}
"""Test sets by the split that they are; others are splits under their own names."""


def with_english(other: str) -> Published:
    """The pair of English and another language."""
    return Published(
        "wmt/wmt16",
        f"{other}-en",
        "41d8a4013aa1489f28fea60ec0932af246086482",
        elsewhere="statmt.org/wmt16 has the texts, two files a source, and test sets as .sgm, which `path` reads too.",
    )


class WMT16(Translation):
    """Sentences of news to translate from English to German, or between English and five others."""

    paper = "Ondřej Bojar et al., Findings of the 2016 Conference on Machine Translation, 2016"

    class Config(TranslationOptions, CompatOptions):
        """Options of `wmt16`."""

        languages: ClassVar = ("en", *SIZES)

    config: Config
    samples = SAMPLES / "wmt16"
    published = with_english("de")
    licence = "that of each source: Europarl, Common Crawl, News Commentary, …"
    sizes = SIZES["de"]

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.published, self.sizes = with_english(self.other), SIZES[self.other]

    def split_of(self, stem: str) -> str:
        found = re.search(r"news(?!-commentary)[A-Za-z-]*\d{4}", stem)
        return super().split_of(stem) if found is None else NEWS.get(found[0], found[0])
