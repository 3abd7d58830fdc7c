from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import sacrebleu
from sacrebleu.metrics.lib_ter import translation_edit_rate

from rlalign import Example
from rlalign_plugin_text_metrics.edits import edits
from rlalign_plugin_text_metrics.ter import Ter

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]
MOST = max(len(refs) for _, refs in PAIRS)
STREAMS = [[refs[i] if i < len(refs) else None for _, refs in PAIRS] for i in range(MOST)]


def ter(**options):
    return Ter(Ter.Config(**options))


@pytest.mark.parametrize(
    ("text", "reference", "made"),
    [
        ("a b c", "a b c", 0),
        ("a x c", "a b c", 1),
        ("a c", "a b c", 1),
        ("a b b c", "a b c", 1),
        ("c d e a b", "a b c d e", 1),  # one move
        ("", "a b", 2),
        ("a b", "", 2),
        ("", "", 0),
    ],
)
def test_edits_on_literal_texts(text, reference, made):
    assert edits(text.split(), reference.split()) == made


def moved(generator, words):
    """Words, some of them lost, added, replaced or moved."""
    words = list(words)
    for _ in range(generator.randrange(7)):
        i = generator.randrange(len(words) + 1)
        kind = generator.choice(("lose", "add", "move", "replace"))
        if kind == "lose":
            del words[i : i + 1]
        elif kind == "add":
            words.insert(i, generator.choice("abcdefghijk"))
        elif kind == "replace":
            words[i : i + 1] = generator.choice("abcdefghijk")
        else:
            run = words[i : i + 4]
            del words[i : i + 4]
            to = generator.randrange(len(words) + 1)
            words[to:to] = run
    return words


@pytest.mark.parametrize(("most", "count"), [(12, 400), (40, 60), (90, 6)])
def test_edits_are_sacrebleu_s(most, count):
    generator = random.Random(most)
    for _ in range(count):
        reference = generator.choices("abcdefghijklmno", k=generator.randrange(most + 1))
        text = moved(generator, reference)
        assert edits(text, reference) == translation_edit_rate(text, reference)[0], (text, reference)
    for _ in range(count // 6):
        text, reference = (generator.choices("abcdefgh", k=generator.randrange(1, most)) for _ in range(2))
        assert edits(text, reference) == translation_edit_rate(text, reference)[0], (text, reference)


@pytest.mark.parametrize("normalized", [True, False])
def test_values_are_one_minus_sacrebleu_s(normalized):
    scorer = sacrebleu.TER(normalized=normalized)
    expected = [
        1 - scorer.sentence_score(text, refs).score / 100 if text.strip() else 0.0 for text, refs in PAIRS
    ]
    assert ter(normalized=normalized).values(TEXTS, EXAMPLES) == pytest.approx(expected, abs=1e-15)
    corpus = 1 - scorer.corpus_score(TEXTS, STREAMS).score / 100
    assert ter(normalized=normalized).corpus(TEXTS, EXAMPLES) == pytest.approx(corpus, abs=1e-15)


def test_an_empty_response_is_the_worst_of_them_even_where_nothing_was_expected():
    examples = [Example("a", "", meta={"references": [""]}), Example("b", "", meta={"references": ["a b"]})]
    assert ter().values(["", " "], examples) == [0.0, 0.0]


def test_clipped_or_not():
    example = [Example("a", "", meta={"references": ["a"]})]
    assert ter().values(["b c d"], example) == [-2.0]
    assert ter(clip=True).values(["b c d"], example) == [0.0]
    assert ter().bounds == (None, 1.0) and ter(clip=True).bounds == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["apart", "alike", "one word", "nearly one word"])
def test_no_pair_takes_long(kind):
    generator = random.Random(0)
    text, reference = (generator.choices([*"abcdefghij"], k=1500) for _ in range(2))
    if kind == "alike":
        reference = [*text[700:], *text[:700]]
    if "one word" in kind:
        text, reference = ["a"] * 1500, ["a"] * 1500
        if kind == "nearly one word":
            text[-1], reference[0] = "b", "c"
    started = time.process_time()
    edits(text, reference)
    assert time.process_time() - started < 4
