"""Diversity and self-BLEU against numbers worked out by hand, and against their definitions written plainly."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from rlalign import Example, logged_rollout
from rlalign_plugin_text_metrics.diversity import Diversity, diversity, msttr, without_punctuation
from rlalign_plugin_text_metrics.self_bleu import SelfBleu, self_bleu
from rlalign_plugin_text_metrics.words import treebank


def rollout_of(*groups):
    examples = [Example(str(i), "", responses=texts) for i, texts in enumerate(groups)]
    actions = [([1], True) for texts in groups for _ in texts]
    return logged_rollout(examples, [torch.ones(1)] * len(groups), actions, like=torch.zeros(1))


def test_diversity_by_hand():
    found = diversity([["a", "b", "a"], ["a", "c"]])
    # words: a 3, b 1, c 1; pairs: ab, ba, ac
    h = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.2))
    assert found == pytest.approx(
        {
            "total_length": 5,
            "mean_pred_length": 2.5,
            "std_pred_length": 0.5,
            "median_pred_length": 2.5,
            "min_pred_length": 2,
            "max_pred_length": 3,
            "distinct-1": 3 / 5,
            "vocab_size-1": 3,
            "unique-1": 2,
            "entropy-1": h,
            "distinct-2": 1,
            "vocab_size-2": 3,
            "unique-2": 3,
            "entropy-2": math.log2(3),
            # p(ab) = p(ac) = p(ba) = 1/3, p(a) = 3/5, p(b) = 1/5
            "cond_entropy-2": -(2 / 3 * math.log2(5 / 9) + 1 / 3 * math.log2(5 / 3)),
            "distinct-3": 1,
            "vocab_size-3": 1,
            "unique-3": 1,
            "entropy-3": 0,
            "cond_entropy-3": -math.log2(3),
        }
    )
    assert h == pytest.approx(1.3709505945)


def test_msttr():
    assert msttr([["a", "b", "a"], ["a", "c", "x"]], 2) == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-5)
    assert msttr([["a", "b", "a"], ["a", "c"]], 2) == 0.75
    assert msttr([["a"] * 99], 100) is None and msttr([["a"] * 100], 100) == 0.01


def test_with_and_without_punctuation():
    assert without_punctuation([["a", ".", "``", "...", "!"]]) == [["a", "``", "..."]]
    found = Diversity(Diversity.Config(window=2)).evaluate(rollout_of(("A cat. A dog!", "(yes)")))
    assert found["total_length"] == 9 and found["total_length-nopunct"] == 5
    assert found["vocab_size-1"] == 8 and found["vocab_size-1-nopunct"] == 4
    assert found["msttr-2"] == 1 and found["msttr-2_nopunct"] == 1
    names = {name.replace("_nopunct", "").replace("-nopunct", "") for name in found}
    assert len(found) == 2 * len(names) == 2 * 21


def test_nothing_to_measure():
    found = Diversity(Diversity.Config()).evaluate(rollout_of(("", "")))
    assert found["total_length"] == found["distinct-1"] == found["entropy-2"] == 0
    assert "msttr-100" not in found
    assert diversity([]) == {}


def test_words_of_the_treebank():
    assert treebank("He can't. They won't!") == ("he", "ca", "n't", ".", "they", "wo", "n't", "!")
    assert treebank('"Ja", 3.5% of $5 at St. Ives') == (
        "``",
        "ja",
        "''",
        ",",
        "3.5",
        "%",
        "of",
        "$",
        "5",
        "at",
        "st.",
        "ives",
    )


# -- self-BLEU ------------------------------------------------------------------------------------------


def plainly(text, others, order):
    """BLEU with closest length and 0.1 for no match but of words."""
    if not text:
        return 0.0
    product = 1.0
    for n in range(1, order + 1):
        mine = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        theirs = [Counter(tuple(o[i : i + n]) for i in range(len(o) - n + 1)) for o in others]
        matched = sum(min(count, max(o[gram] for o in theirs)) for gram, count in mine.items())
        if n == 1 and not matched:
            return 0.0
        product *= (matched or 0.1) / max(1, sum(mine.values()))
    near = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
    return product ** (1 / order) * (1 if len(text) > near else math.exp(1 - near / len(text)))


def test_self_bleu_is_bleu_with_the_others():
    rng = random.Random(1)
    for _ in range(100):
        texts = [rng.choices("abcd", k=rng.randint(0, 8)) for _ in range(rng.randint(2, 6))]
        order = rng.randint(1, 5)
        expected = [plainly(text, texts[:i] + texts[i + 1 :], order) for i, text in enumerate(texts)]
        assert self_bleu(texts, order) == pytest.approx(expected)


def test_self_bleu_by_hand():
    # of `a b c`: words 2/3, pairs 1/2; as long as the other
    assert self_bleu([list("abc"), list("abd")], 2) == pytest.approx([math.sqrt(1 / 3)] * 2)
    # of `a b`: all is there, and the other is twice as long
    assert self_bleu([list("ab"), list("abcd")], 2)[0] == pytest.approx(math.exp(-1))
    assert self_bleu([list("abcd")] * 3, 4) == [1, 1, 1]
    assert self_bleu([list("abcd")], 4) == [0] and self_bleu([], 4) == []


def test_self_bleu_knows_its_group_and_the_corpus():
    metric = SelfBleu(SelfBleu.Config(order=2))
    rollout = rollout_of(("a b c d", "a b c d", "x y"), ("a b c d",))
    value = metric.reward(rollout).value
    assert value.tolist() == [1, 1, 0, 0]
    assert metric.evaluate(rollout) == {"corpus": pytest.approx(3 / 4)}
    assert not SelfBleu.higher_is_better
