from __future__ import annotations

import json
import random
import time
from pathlib import Path
from statistics import fmean

import pytest
from rouge_score.rouge_scorer import RougeScorer

from rlalign import Example
from rlalign_plugin_text_metrics.rouge import TYPES, Rouge, RougeLMax, common_length, rouge_lsum

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]


def rouge(**options):
    return Rouge(Rouge.Config(**options))


@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_of_rouge_score(kind, stemmer):
    scorer = RougeScorer([kind], use_stemmer=stemmer)
    expected = [scorer.score_multi(refs, text)[kind].fmeasure for text, refs in PAIRS]
    assert rouge(type=kind, stemmer=stemmer).values(TEXTS, EXAMPLES) == expected


def test_lines_in_any_order_have_the_union_that_rouge_score_finds():
    generator, scorer = random.Random(0), RougeScorer(["rougeLsum", "rougeL"])

    def text():
        lines = [
            generator.choices("abcdef", k=generator.randrange(1, 9)) for _ in range(generator.randrange(1, 5))
        ]
        return "\n".join(map(" ".join, lines))

    for _ in range(300):
        one, other = text(), text()
        expected = scorer.score(other, one)
        split = [tuple(tuple(line.split()) for line in each.split("\n")) for each in (one, other)]
        assert rouge_lsum(*split) == expected["rougeLsum"].fmeasure
        length = common_length(tuple(one.split()), tuple(other.split()))
        assert length / len(one.split()) == expected["rougeL"].precision


def test_literal_numbers():
    example = [Example("a", "", meta={"references": ["a b c d", "a x"]})]
    for kind, value in {"rouge1": 6 / 7, "rouge2": 2 / 5, "rougeL": 6 / 7, "rougeLsum": 6 / 7}.items():
        assert rouge(type=kind).values(["a b d"], example) == [pytest.approx(value)]
    assert rouge().values(["a b d"], example) == [pytest.approx((6 / 7 + 2 / 5 + 6 / 7) / 3)]
    mean = rouge(type="rouge1", references="mean").values(["a b d"], example)
    assert mean == [pytest.approx((6 / 7 + 2 / 5) / 2)]


def test_sentences_swapped_are_whole_line_by_line():
    example = [Example("a", "", meta={"references": "b c\na d"})]
    assert rouge(type="rougeLsum").values(["a d\nb c"], example) == [1.0]
    assert rouge(type="rougeL").values(["a d\nb c"], example) == [0.5]


def test_letters_of_other_languages_count_if_asked():
    example = [Example("a", "", meta={"references": "Grüße aus Köln"})]
    assert rouge(type="rouge1").values(["Grüsse aus Kiel"], example)[0] > 1 / 3  # `gr` and `aus`: half words
    assert rouge(type="rouge1", tokens="unicode").values(["Grüsse aus Kiel"], example) == [
        pytest.approx(1 / 3)
    ]
    japanese = [Example("a", "", meta={"references": "猫がいる"})]
    assert rouge(type="rouge1").values(["猫がいる"], japanese) == [0.0]
    assert rouge(type="rougeL", tokens="unicode").values(["猫がいた"], japanese) == [0.75]


def test_narrativeqa_counts_the_first_words_only():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    metric = RougeLMax(RougeLMax.Config())
    expected = [max(scorer.score(ref, text)["rougeL"].fmeasure for ref in refs) for text, refs in PAIRS]
    assert metric.values(TEXTS, EXAMPLES) == expected
    example = [Example("a", "", meta={"references": ["yes", "no"]})]
    assert metric.values(["word " * 99 + "yes"], example) == [pytest.approx(2 / 101)]
    assert metric.values(["word " * 100 + "yes"], example) == [0.0]
    assert RougeLMax(RougeLMax.Config(words=1)).values(["no yes yes"], example) == [1.0]


def test_long_texts_take_no_long_time():
    generator = random.Random(0)
    one, other = (" ".join(generator.choices("abcdefghij", k=5000)) for _ in range(2))
    example = [Example("a", "", meta={"references": other})]
    started = time.process_time()
    found = {kind: rouge(type=kind).values([one], example)[0] for kind in TYPES}
    assert time.process_time() - started < 2
    assert found["rougeL"] == found["rougeLsum"] > 0.4 and found["rouge1"] > 0.9


def test_the_mean_is_that_of_the_three():
    each = [rouge(type=kind).values(TEXTS, EXAMPLES) for kind in TYPES[:3]]
    assert rouge().values(TEXTS, EXAMPLES) == [fmean(row) for row in zip(*each, strict=True)]
