"""News in two languages: WMT16's task of translation (Bojar et al. 2016)."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import BaseModel

from rlalign_plugin_grue_tasks.grue import SAMPLES, CompatOptions, Published
from rlalign_plugin_grue_tasks.translation import Translation, TranslationOptions

SIZES = {
    "cs": (997_240, 2_656, 2_999),
    "de": (4_548_885, 2_169, 2_999),
    "fi": (2_073_394, 1_370, 6_000),
    "ro": (610_320, 1_999, 1_999),
    "ru": (1_516_162, 2_818, 2_998),
    "tr": (205_756, 1_001, 3_000),
}
"""Of each language's pair with English, as the hub's card says: train, val, test."""
NEWS = {"newstest2015": "val", "newsdev2016": "val", "newstest2016": "test", "newstestB2016": "test"}
"""Test sets by the split that they are; others are splits under their own names."""


class WMT16(Translation):
    """Sentences of news to translate from English to German, or between English and five others."""

    paper = "Ondřej Bojar et al., Findings of the 2016 Conference on Machine Translation, 2016"

    class Config(TranslationOptions, CompatOptions):
        """Options of `wmt16`."""

        languages: ClassVar = ("en", *SIZES)

    config: Config
    samples = SAMPLES / "wmt16"
    licence = (
        "not one for all of it: each source (Europarl, Common Crawl, News Commentary, …) has its own terms"
    )

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        other = next(language for language in self.pair if language != "en")
        self.published = Published(
            "wmt/wmt16",
            subset=f"{other}-en",
            revision="41d8a4013aa1489f28fea60ec0932af246086482",
            elsewhere="statmt.org/wmt16 offers the texts, two files a source, and test sets as .sgm, which `path` "
            "reads too.",
        )
        self.sizes = dict(zip(("train", "val", "test"), SIZES[other], strict=True))

    def split_of(self, stem: str) -> str:
        found = re.search(r"news(?!-commentary)[A-Za-z-]*\d{4}", stem)
        return super().split_of(stem) if found is None else NEWS.get(found[0], found[0])
