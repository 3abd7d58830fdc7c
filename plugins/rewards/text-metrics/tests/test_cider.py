from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlalign import ConfigError, Example
from rlalign_plugin_text_metrics.cider import Cider, Frequencies, cider_d
from rlalign_plugin_text_metrics.tokens import penn

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]


def plain(text, targets, sets):
    """CIDEr-D word by word from its formula, of texts that are split at spaces."""

    def grams(words, n):
        return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))

    def weighed(words, n):
        found = {}
        for gram, count in grams(words, n).items():
            df = sum(any(gram in grams(each.split(), n) for each in refs) for refs in sets)
            found[gram] = count * (math.log(len(sets)) - math.log(max(1, df)))
        return found

    total = 0.0
    for target in targets:
        ours, theirs = text.split(), target.split()
        apart = max(0, len(ours) - 1) - max(0, len(theirs) - 1)
        for n in (1, 2, 3, 4):
            a, b = weighed(ours, n), weighed(theirs, n)
            norms = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
            if norms:
                clipped = sum(min(a[g], b.get(g, 0.0)) * b.get(g, 0.0) for g in a)
                total += clipped / norms * math.exp(-(apart**2) / 72)
    return 10 * total / 4 / len(targets)


def set_up(task=EXAMPLES, **options):
    metric, notes = Cider(Cider.Config(**options)), []
    metric.name = "cider"
    metric.setup(SimpleNamespace(task=SimpleNamespace(examples=lambda split: task), note=notes.append))
    metric.notes = notes
    return metric


def spaced(text):
    return " ".join(penn(text))


def test_scores_follow_the_formula():
    sets = [tuple(map(spaced, refs)) for _, refs in PAIRS]
    frequencies = Frequencies([refs for _, refs in PAIRS], "penn")
    for text, refs in PAIRS:
        expected = plain(spaced(text), [spaced(r) for r in refs], sets)
        assert cider_d(text, refs, frequencies) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_literal_numbers():
    frequencies = Frequencies([["a b"], ["a c"], ["d e f g h"], ["i"]], "penn")
    same = cider_d("d e f g h", ["d e f g h"], frequencies)
    assert same == pytest.approx(10.0)
    # one word of two: log 4 and log 2 weigh; pairs match nowhere; lengths are alike
    a, b = math.log(2), math.log(4)
    assert cider_d("a x", ["a b"], frequencies) == pytest.approx(10 * a * a / (a * a + b * b) / 4)
    assert cider_d("a b", ["a b"], frequencies) == pytest.approx(5.0)  # no triples
    longer = cider_d("d e f g h h h", ["d e f g h"], frequencies)
    assert longer < same * math.exp(-4 / 72)
    assert cider_d("", ["a"], frequencies) == cider_d("a", [""], frequencies) == 0.0


def test_one_pair_alone_scores_as_in_any_company():
    metric = set_up()
    together = metric.values(TEXTS, EXAMPLES)
    assert [metric.values([t], [e])[0] for t, e in zip(TEXTS, EXAMPLES, strict=True)] == together
    assert together[0] > 5


def test_coco_s_words_have_no_case_and_no_punctuation():
    example = [Example("a", "", meta={"references": "the dogs ran home"})]
    assert set_up(tokens="coco").values(["The dogs, ran home!"], example)[0] == pytest.approx(10)
    assert set_up().values(["The dogs, ran home!"], example)[0] < 5


def test_frequencies_of_a_file_are_those_of_a_split(tmp_path):
    lines = [json.dumps(refs if i % 2 else {"references": refs}) for i, (_, refs) in enumerate(PAIRS)]
    (tmp_path / "sets.jsonl").write_text("\n".join(lines) + "\n\n")
    there = set_up(task=[], file=tmp_path / "sets.jsonl")
    assert there.values(TEXTS, EXAMPLES) == set_up().values(TEXTS, EXAMPLES)
    assert "idf:sets.jsonl" in there.signature() and "idf:train-20000" in set_up().signature()
    (tmp_path / "sets.jsonl").write_text('["a"]\n{"texts": []}\n')
    with pytest.raises(ConfigError, match=r"sets.jsonl, line 2: a list of references, or an object"):
        set_up(file=tmp_path / "sets.jsonl")
    (tmp_path / "sets.jsonl").write_text('["a"\n')
    with pytest.raises(ConfigError, match=r"sets.jsonl, line 1 is no JSON"):
        set_up(file=tmp_path / "sets.jsonl")


def test_the_first_examples_suffice_and_a_note_says_so():
    metric = set_up(examples=5)
    assert metric.frequencies.sets == 5
    assert metric.notes == [
        "`cider` counts n-grams in the first 5 of 24 examples of the task's split `train`"
    ]
    assert set_up().notes == []


@pytest.mark.parametrize("task", [[], [Example("a", "")], EXAMPLES[:1], [*EXAMPLES[:1], Example("b", "")]])
def test_fewer_than_two_sets_of_references_are_refused(task):
    with pytest.raises(ConfigError, match=r"`cider` weighs n-grams .* at least 2"):
        set_up(task=task)


def test_an_evaluation_counts_in_its_own_references():
    metric = set_up(task=EXAMPLES[:2])
    rollout = SimpleNamespace(
        texts=[*TEXTS, *TEXTS], answered=[*EXAMPLES, *EXAMPLES]
    )  # two responses to each
    frequencies = Frequencies([refs for _, refs in PAIRS], "penn")
    expected = [cider_d(text, refs, frequencies) for text, refs in PAIRS]
    assert metric.evaluate(rollout) == {"corpus": pytest.approx(sum(expected) / len(expected))}
    assert metric.evaluate(SimpleNamespace(texts=TEXTS[:1], answered=EXAMPLES[:1])) == {}
