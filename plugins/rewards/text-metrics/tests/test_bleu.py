from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path

import pytest
import sacrebleu
from nltk.translate.bleu_score import corpus_bleu
from pydantic import ValidationError

from rlalign import Example
from rlalign_plugin_text_metrics.bleu import Bleu, SacreBleu, bleu, counts
from rlalign_plugin_text_metrics.chrf import Chrf

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]
MOST = max(len(refs) for _, refs in PAIRS)
STREAMS = [[refs[i] if i < len(refs) else None for _, refs in PAIRS] for i in range(MOST)]


def made(cls, **options):
    return cls(cls.Config(**options))


# -- bleu -----------------------------------------------------------------------------------------------


def test_plain_bleu_on_literal_numbers():
    # 6 words of 6, 4 pairs of 5, 2 triples of 4, 1 of 3
    found = counts("a b c d x e", ("a b c d e x",))
    assert found == (6, 6, 6, 3, 2, 1, 6, 5, 4, 3)
    assert bleu([found]) == pytest.approx((1 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    shorter = counts("a b c d", ("a b c d e f", "a b c d e f g h"))
    assert bleu([shorter]) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu([found, shorter]) == pytest.approx(
        (10 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25 * math.exp(1 - 12 / 10)
    )


def test_a_word_counts_as_often_as_the_reference_that_has_most_of_it():
    assert counts("the the the the", ("the cat the", "the dog"))[2] == 2


def test_the_shortest_reference_sets_the_length():
    references = ("a b c d e f g h", "a b c d")
    assert counts("a b c d e f", references)[:2] == (6, 4)


def test_plain_bleu_is_nltk_s_where_all_references_are_of_one_length():
    same = [(t, r) for t, r in PAIRS if len({len(x.split()) for x in r}) == 1 and len(t.split()) >= 4]
    assert len(same) > 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = corpus_bleu([[x.split() for x in refs] for _, refs in same], [t.split() for t, _ in same])
    texts = [t for t, _ in same]
    examples = [Example("", "", meta={"references": refs}) for _, refs in same]
    assert made(Bleu).corpus(texts, examples) == pytest.approx(expected, rel=1e-12)


def test_without_four_words_in_a_row_plain_bleu_is_zero():
    values = made(Bleu).values(TEXTS, EXAMPLES)
    assert values[0] == 1.0 and values[13] == values[14] == 0.0
    assert [values[i] for i in (16, 17, 18, 19)] == [0, 0, 0, 0]


# -- sacrebleu and chrf ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "none", "zh"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_sacrebleu_s_sentences(tokenize, lowercase):
    scorer = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    expected = [scorer.sentence_score(text, refs).score / 100 for text, refs in PAIRS]
    found = made(SacreBleu, tokenize=tokenize, lowercase=lowercase).values(TEXTS, EXAMPLES)
    assert found == pytest.approx(expected, abs=1e-15) and max(found) == 1.0


def test_sacrebleu_s_corpus_with_some_references_missing():
    expected = sacrebleu.BLEU().corpus_score(TEXTS, STREAMS)
    assert made(SacreBleu).corpus(TEXTS, EXAMPLES) == expected.score / 100
    few = TEXTS[:3], EXAMPLES[:3]
    literal = sacrebleu.corpus_bleu(TEXTS[:3], [s[:3] for s in STREAMS[:3]]).score / 100
    assert made(SacreBleu).corpus(*few) == literal > 0.3


@pytest.mark.parametrize("word_order", [0, 2])
@pytest.mark.parametrize("lowercase", [True, False])
def test_chrf(word_order, lowercase):
    scorer = sacrebleu.CHRF(word_order=word_order, lowercase=lowercase)
    expected = [scorer.sentence_score(text, refs).score / 100 for text, refs in PAIRS]
    metric = made(Chrf, word_order=word_order, lowercase=lowercase)
    assert metric.values(TEXTS, EXAMPLES) == pytest.approx(expected, abs=1e-15)
    assert metric.corpus(TEXTS, EXAMPLES) == scorer.corpus_score(TEXTS, STREAMS).score / 100


def test_chrf_on_a_literal_number():
    # characters: 2 of 3 each way; pairs: 1 of 2; triples: 0 of 1; so P = R = (2/3 + 1/2 + 0)/3
    example = [Example("a", "", meta={"references": "a b d"})]
    assert made(Chrf).values(["a b c"], example) == [pytest.approx((2 / 3 + 1 / 2) / 3)]


def test_signatures_are_sacrebleu_s():
    kept = f"version:{sacrebleu.__version__}"
    assert made(SacreBleu).signature() == f"nrefs:var|case:mixed|eff:yes|tok:13a|smooth:exp|{kept}"
    assert made(Chrf, word_order=2).signature() == f"nrefs:var|case:mixed|eff:yes|nc:6|nw:2|space:no|{kept}"
    scorer = sacrebleu.CHRF(word_order=2)
    scorer.corpus_score(TEXTS, STREAMS)
    assert (
        re.sub("nrefs:[^|]*", "nrefs:var", str(scorer.get_signature()))
        == made(Chrf, word_order=2).signature()
    )


def test_tokenisers_that_are_not_installed_are_refused_early(monkeypatch):
    monkeypatch.setattr("rlalign_plugin_text_metrics.bleu.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match="`ja-mecab` needs the extra `ja` of sacrebleu"):
        SacreBleu.Config(tokenize="ja-mecab")
