"""Talks in two languages: IWSLT 2017's task of translation (Cettolo et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from rlalign_plugin_grue_tasks.grue import SAMPLES, CompatOptions, Published
from rlalign_plugin_grue_tasks.translation import Translation, TranslationOptions

SIZES = {
    "ar": (231_713, 888, 8_583),
    "de": (206_112, 888, 8_079),
    "fr": (232_825, 890, 8_597),
    "ja": (223_108, 871, 8_469),
    "ko": (230_240, 879, 8_514),
    "zh": (231_266, 879, 8_549),
}
"""Of each language's pair with English, as the hub's card says: train, val, test."""


class IWSLT17(Translation):
    """Sentences of TED talks to translate from English to German, or between English and five others."""

    paper = "Mauro Cettolo et al., Overview of the IWSLT 2017 Evaluation Campaign, 2017"

    class Config(TranslationOptions, CompatOptions):
        """Options of `iwslt17`."""

        languages: ClassVar = ("en", *SIZES)

    config: Config
    samples = SAMPLES / "iwslt17"
    licence = "CC BY-NC-ND 4.0; the talks are TED's"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        subset = f"iwslt2017-{'-'.join(self.pair)}"
        other = next(language for language in self.pair if language != "en")
        self.published = Published(
            "IWSLT/iwslt2017",
            exported={
                split: f"{subset}/{part}/*.parquet"
                for split, part in (("train", "train"), ("val", "validation"), ("test", "test"))
            },
            elsewhere="The campaign's archives hold train.tags.en-de.en, IWSLT17.TED.dev2010.en-de.en.xml, …, which "
            "`path` reads too.",
        )
        self.sizes = dict(zip(("train", "val", "test"), SIZES[other], strict=True))
        if self.pair == ("en", "de"):
            self.warm_start = "rajkumarrrk/t5-fine-tuned-on-iwslt2017en_de"
