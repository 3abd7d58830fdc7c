"""What holds of every metric that compares with references."""

from __future__ import annotations

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlalign import ComponentError, ConfigError, Example, Task
from rlalign.config.registry import Registry
from rlalign.testing import run

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]
METRICS = {
    "rouge": {},
    "rouge, lines": {"type": "rougeLsum"},
    "rouge, any language": {"type": "rougeL", "tokens": "unicode", "stemmer": False, "references": "mean"},
    "rouge-l-max": {},
    "bleu": {},
    "sacrebleu": {},
    "sacrebleu, intl": {"tokenize": "intl", "lowercase": True},
    "chrf": {},
    "chrf, ++": {"word_order": 2},
    "ter": {},
    "ter, clipped": {"clip": True, "normalized": True},
    "meteor-nosyn": {},
    "cider": {},
    "cider, coco": {"tokens": "coco"},
}
"""Options by component, and what is special behind a comma. `meteor` has a test of its own, which makes a WordNet."""


class Questions(Task):
    """A task of ten prompts with one to three references."""

    def examples(self, split):
        words = ["to", "be", "or", "not", "a", "b", "c d e", "f g h i j"]
        return [
            Example(
                str(i),
                f"{split} {i}",
                meta={"references": [" ".join(words[i % 5 :][: j + 2]) for j in range(i % 3 + 1)]},
            )
            for i in range(10)
        ]


def made(case):
    cls = Registry(trust=True).load(case.split(",")[0]).cls
    metric = cls(cls.Config(**METRICS[case]))
    metric.name = case.split(",")[0]
    metric.setup(SimpleNamespace(task=SimpleNamespace(examples=lambda split: EXAMPLES), note=print))
    return metric


@pytest.fixture(params=METRICS)
def metric(request):
    return made(request.param)


def test_values_lie_within_their_bounds(metric):
    low, high = metric.bounds
    values = metric.values(TEXTS, EXAMPLES)
    assert all((low is None or value >= low) and value <= high for value in values)
    assert values[0] > 0.9 * high or metric.name == "cider"
    assert len(set(values)) > 5


def test_an_empty_text_is_the_worst(metric):
    examples = [Example("a", "", meta={"references": refs}) for refs in (["some words"], [""], ["", "a"])]
    assert metric.values(["", "", ""], examples) == [0.0, 0.0, 0.0]
    assert metric.values([" \n"], examples[:1]) == [0.0]


def test_any_text_has_a_value(metric):
    odd = ["\ud800", "\x00\x01", "🙂🙂", "\u202eabc", "a\u0301", "''``\"\"", "|||", "%s{}\\", "İI", "\r\n\t"]
    for text in odd:
        for reference in odd:
            (value,) = metric.values([text], [Example("a", "", meta={"references": [reference, "x"]})])
            assert math.isfinite(value)


def test_no_reference_is_an_error(metric):
    with pytest.raises(
        ComponentError, match=f"`{metric.name}` compares with references, and example `seven` has none"
    ):
        metric.values(["a", "b"], [EXAMPLES[0], Example("seven", "", meta={"answer": "x"})])


def test_one_reference_may_be_a_text(metric):
    example = [Example("a", "", meta={"references": kind}) for kind in ("the cat sat", ["the cat sat"])]
    one, other = metric.values(["a cat sat down", "a cat sat down"], example)
    assert one == other


@pytest.mark.parametrize(
    "case", [case for case in METRICS if case.split(",")[0] not in ("ter", "cider", "bleu", "sacrebleu")]
)
def test_another_reference_can_only_help(case):
    metric = made(case)
    if case == "rouge, any language":
        pytest.skip("a mean of references")
    more = [Example("", "", meta={"references": [*e.references, "the cat and the dog"]}) for e in EXAMPLES]
    fewer, all_of_them = metric.values(TEXTS, EXAMPLES), metric.values(TEXTS, more)
    assert all(a >= b for a, b in zip(all_of_them, fewer, strict=True)) and all_of_them != fewer


def test_order_and_company_change_nothing(metric):
    whole = metric.values(TEXTS, EXAMPLES)
    order = random.Random(0).sample(range(len(PAIRS)), len(PAIRS))
    assert metric.values([TEXTS[i] for i in order], [EXAMPLES[i] for i in order]) == [whole[i] for i in order]
    assert [metric.values([t], [e])[0] for t, e in zip(TEXTS, EXAMPLES, strict=True)] == whole


def test_eight_threads_find_the_same(metric):
    expected = metric.values(TEXTS, EXAMPLES)
    fresh = [(f"{text} {i}", e) for i in range(40) for text, e in zip(TEXTS, EXAMPLES, strict=True)]
    alone = made_again(metric).values(*zip(*fresh, strict=True))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: metric.values(*zip(*fresh[i::8], strict=True)), range(8)))
        same = list(pool.map(lambda _: metric.values(TEXTS, EXAMPLES), range(8)))
    assert all(each == expected for each in same)
    assert [found[i % 8][i // 8] for i in range(len(fresh))] == alone


def made_again(metric):
    again = type(metric)(metric.config)
    again.name = metric.name
    again.setup(SimpleNamespace(task=SimpleNamespace(examples=lambda split: EXAMPLES), note=print))
    return again


def test_a_signature_says_what_the_numbers_depend_on():
    signatures = {made(case).signature() for case in METRICS}
    assert len(signatures) == len(METRICS)
    assert all(s.startswith("nrefs:var|") and "|version:" in s for s in signatures)


def test_each_is_a_reward_and_a_metric(tmp_path):
    names = sorted({case.split(",")[0] for case in METRICS})
    pipeline = {
        "task": "questions",
        "policy": "bytes",
        "rewards": names,
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 6},
        "train": {"iterations": 1, "prompts": 3},
        "evaluate": {"use": names, "examples": 4},
    }
    finished, _ = run(tmp_path, pipeline, {"questions": Questions})
    logged = {key for key in finished.metrics if key.startswith("eval/")}
    assert {f"eval/{name}" for name in names} <= logged
    assert {f"eval/{name}/corpus" for name in ("bleu", "sacrebleu", "chrf", "ter", "cider")} <= logged
    assert {f"eval/rouge/{kind}" for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")} <= logged


def test_a_task_without_references_is_refused_before_anything_is_trained(tmp_path):
    pipeline = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 5}},
        "rewards": ["cider"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 6},
        "train": {"iterations": 1, "prompts": 3},
    }
    with pytest.raises(ConfigError, match=r"`cider` weighs n-grams .* split `train` has 0"):
        run(tmp_path, pipeline)
    with pytest.raises(ComponentError, match=r"`rouge` compares with references, and example"):
        run(tmp_path, {**pipeline, "rewards": ["rouge"]}, name="second")
