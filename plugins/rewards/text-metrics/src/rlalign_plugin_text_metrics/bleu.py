"""BLEU: n-grams shared with any of the references (Papineni et al., 2002), plain and as sacreBLEU computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, field_validator
from sacrebleu.metrics.bleu import BLEU

from rlalign import Example, Options
from rlalign_plugin_text_metrics.metric import CorpusMetric, references, signed
from rlalign_plugin_text_metrics.tokens import split

ORDER = 4
REMEMBERED = 2**9
"""Sets of references of which the n-grams are remembered: those of CNN/DM take 30 kB each."""
Counts = tuple[int, ...]
"""Lengths of text and reference; for each order the n-grams that match, and those there are."""


def counts(text: str, targets: tuple[str, ...]) -> Counts:
    """What BLEU counts of a text beside its references, the shortest of which sets the length asked for."""
    ours, length = _ngrams(text)
    theirs, asked = _merged(targets)
    found, matches = [0] * ORDER, [0] * ORDER
    for gram, count in ours.items():
        found[len(gram) - 1] += count
        matches[len(gram) - 1] += min(count, theirs.get(gram, 0))
    return (length, asked, *matches, *found)


def bleu(counted: Sequence[Counts]) -> float:
    """BLEU of all texts whose counts these are, without smoothing: 0 where some order has no match."""
    length, asked, *both = (sum(column) for column in zip(*counted, strict=True))
    matches, found = both[:ORDER], both[ORDER:]
    if not all(matches) or not asked:
        return 0.0
    mean = math.exp(sum((1.0 / ORDER) * math.log(m / f) for m, f in zip(matches, found, strict=True)))
    ratio = length / asked
    return mean if ratio > 1 else mean * math.exp(1 - 1.0 / ratio)


def _ngrams(text: str) -> tuple[Counter[tuple[str, ...]], int]:
    words = split(text)
    return Counter(words[i : i + n] for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)), len(
        words
    )


@lru_cache(REMEMBERED)
def _merged(targets: tuple[str, ...]) -> tuple[Counter[tuple[str, ...]], int]:
    """Each n-gram as often as the reference that has most of it, and the length of the shortest."""
    merged: Counter[tuple[str, ...]] = Counter()
    lengths = []
    for ngrams, length in map(_ngrams, targets):
        merged |= ngrams
        lengths.append(length)
    return merged, min(lengths)


class Bleu(CorpusMetric):
    """Word sequences, up to four long, that a response shares with its references: BLEU without smoothing, 0 to 1.

    RL4LMs' `bleu`: words are what stands between spaces, and a response that shares no four words in a row scores 0.
    """

    bounds = (0.0, 1.0)
    paper = "Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, 2002"

    def signature(self) -> str:
        shown = {"nrefs": "var", "case": "mixed", "tok": "split", "smooth": "none", "brevity": "shortest"}
        return signed(**shown, version=version("rlalign-plugin-text-metrics"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [bleu([each]) for each in self._counts(texts, examples)]

    def corpus(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        return bleu(self._counts(texts, examples))

    def _counts(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Counts]:
        return [counts(t, references(e, self.name)) for t, e in zip(texts, examples, strict=True)]


Tokenizer = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]


@lru_cache(REMEMBERED)
def _scorer(targets: tuple[str, ...], tokenize: Tokenizer, lowercase: bool) -> BLEU:
    streams = [[each] for each in targets]
    return BLEU(lowercase=lowercase, tokenize=tokenize, effective_order=True, references=streams)


class SacreBleu(CorpusMetric):
    """Word sequences, up to four long, that a response shares with its references: sacreBLEU over 100, 0 to 1.

    Single responses are scored with smoothing and effective order. Under `evaluate.use` it also gives the figure that
    sacreBLEU's command prints for all of them, over 100.
    """

    class Config(Options):
        """Options of `sacrebleu`."""

        tokenize: Tokenizer = Field(
            "13a",
            description="how texts become words; sacreBLEU's default is 13a. RL4LMs translates with intl; char suits "
            "Chinese, Japanese and Thai",
        )
        lowercase: bool = Field(False, description="ignore case; sacreBLEU does not")

        @field_validator("tokenize")
        @classmethod
        def _there(cls, tokenize: Tokenizer) -> Tokenizer:
            module = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}.get(tokenize)
            if module and find_spec(module) is None:
                raise ValueError(
                    f"`{tokenize}` needs the extra `{tokenize[:2]}` of sacrebleu; `char` needs nothing more"
                )
            return tokenize

    config: Config
    bounds = (0.0, 1.0)
    paper = "Post, A Call for Clarity in Reporting BLEU Scores, 2018"

    def signature(self) -> str:
        case = "lc" if self.config.lowercase else "mixed"
        how = {"nrefs": "var", "case": case, "eff": "yes", "tok": self.config.tokenize, "smooth": "exp"}
        return signed(**how, version=version("sacrebleu"))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        c = self.config
        scorers = [_scorer(references(e, self.name), c.tokenize, c.lowercase) for e in examples]
        return [min(1.0, s.corpus_score([t], None).score / 100) for t, s in zip(texts, scorers, strict=True)]

    def corpus(self, texts: Sequence[str], examples: Sequence[Example]) -> float:
        c = self.config
        scorer = BLEU(lowercase=c.lowercase, tokenize=c.tokenize, force=True)
        score: float = scorer.corpus_score(texts, streams(examples, self.name)).score
        return min(1.0, score / 100)


def streams(examples: Sequence[Example], asked_by: str) -> list[list[Any]]:
    """References as sacreBLEU wants them: the first of every example, the second, …; None where one has fewer."""
    found = [references(example, asked_by) for example in examples]
    most = max(map(len, found))
    return [[each[i] if i < len(each) else None for each in found] for i in range(most)]
