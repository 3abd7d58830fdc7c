"""Talks in two languages: IWSLT 2017's task of translation (Cettolo et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from rlalign_plugin_grue_tasks.grue import SAMPLES, CompatOptions, Published
from rlalign_plugin_grue_tasks.translation import Translation, TranslationOptions

SIZES = {
    "ar": {"train": 231_713, "val": 888, "test": 8_583},
    "de": {"train": 206_112, "val": 888, "test": 8_079},
    "fr": {"train": 232_825, "val": 890, "test": 8_597},
    "ja": {"train": 223_108, "val": 871, "test": 8_469},
    "ko": {"train": 230_240, "val": 879, "test": 8_514},
    "zh": {"train": 231_266, "val": 879, "test": 8_549},
}
"""Of each language's pair with English, as the hub's card says."""


WARM_START = "rajkumarrrk/t5-fine-tuned-on-iwslt2017en_de"


def between(source: str, target: str) -> Published:
    """A direction of translation."""
    subset = f"iwslt2017-{source}-{target}"
    parts = {"train": "train", "val": "validation", "test": "test"}
    return Published(
        "IWSLT/iwslt2017",
        exported={split: f"{subset}/{part}/*.parquet" for split, part in parts.items()},
        elsewhere="The campaign's archives hold train.tags.en-de.en, IWSLT17.TED.dev2010.en-de.en.xml, …, which `path` "
        "reads too.",
    )


class IWSLT17(Translation):
    """Sentences of TED talks to translate from English to German, or between English and five others."""

    paper = "Mauro Cettolo et al., Overview of the IWSLT 2017 Evaluation Campaign, 2017"

    class Config(TranslationOptions, CompatOptions):
        """Options of `iwslt17`."""

        languages: ClassVar = ("en", *SIZES)

    config: Config
    samples = SAMPLES / "iwslt17"
    published = between("en", "de")
    licence = "CC BY-NC-ND 4.0; the talks are TED's"
    warm_start: str | None = WARM_START
    generation = {"beams": 4, "length_penalty": 0.6, "max_new_tokens": 128}
    sizes = SIZES["de"]

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.published, self.sizes = between(*self.pair), SIZES[self.other]
        self.warm_start = WARM_START if self.pair == ("en", "de") else None
