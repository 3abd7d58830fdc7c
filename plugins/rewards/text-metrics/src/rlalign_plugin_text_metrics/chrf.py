"""chrF: characters shared with a reference (Popović, 2015), as sacreBLEU computes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

from pydantic import Field
from sacrebleu.metrics.chrf import CHRF

from rlalign import Example, Options
from rlalign_plugin_text_metrics.bleu import streams
from rlalign_plugin_text_metrics.metric import CorpusMetric, references, signed


@lru_cache(2**8)
def _scorer(targets: tuple[str, ...], word_order: int, lowercase: bool) -> CHRF:
    return CHRF(word_order=word_order, lowercase=lowercase, references=[[each] for each in targets])


class Chrf(CorpusMetric):
    """Character sequences, up to six long, that a response shares with the nearest reference: chrF over 100, 0 to 1."""

    class Config(Options):
        """Options of `chrf`."""

        word_order: int = Field(
            0,
            ge=0,
            le=4,
            description="also sequences of words, up to so many: 0 is chrF, sacreBLEU's default; 2 is chrF++",
        )
        lowercase: bool = Field(False, description="ignore case; sacreBLEU does not")

    config: Config
    bounds = (0.0, 1.0)
    paper = "Popović, chrF: character n-gram F-score for automatic MT evaluation, 2015; chrF++: words helping, 2017"

    def signature(self) -> str:
        case = "lc" if self.config.lowercase else "mixed"
        orders = {"nc": CHRF.CHAR_ORDER, "nw": self.config.word_order}
        return signed(nrefs="var", case=case, eff="yes", **orders, space="no", version=version("sacrebleu"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        c = self.config
        scorers = [_scorer(references(e, self.name), c.word_order, c.lowercase) for e in examples]
        return [min(1.0, s.corpus_score([t], None).score / 100) for t, s in zip(texts, scorers, strict=True)]

    def corpus(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        scorer = CHRF(word_order=self.config.word_order, lowercase=self.config.lowercase)
        score: float = scorer.corpus_score(texts, streams(examples, self.name)).score
        return min(1.0, score / 100)
