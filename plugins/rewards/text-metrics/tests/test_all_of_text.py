"""What every metric of text must do: bounds, odd texts, other rows, threads, runs; and what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rlalign import Example, Rollout, logged_rollout
from rlalign.config.registry import Registry
from rlalign.testing.bench import session

TESTS = Path(__file__).parent
FILE = TESTS / "examples_of_text.jsonl"
OPTIONS = {
    "commongen-penalty": {},
    "coverage": {},
    "exact-match": {},
    "json-valid": {},
    "text-length": {"least": 3, "most": 9},
    "numeric-answer": {},
    "parent": {},
    "readability": {},
    "regex": {"pattern": r"\d"},
    "repetition": {},
    "sari": {},
    "self-bleu": {},
    "token-f1": {},
}
"""Those with a score for each response, and options to try them with."""
LOWER = {"repetition", "self-bleu"}
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
ODD = (
    *(
        "",
        " ",
        "\n\n",
        ".",
        "#### ",
        "…",
        "\u200b",
        "\ufeff",
        "\x00",
        "ﬁ ǅ İ ß",
        "🦜🦜 👩‍👩‍👧 e\u0301",
        "名前はアン。ローマ",
    ),
    *(
        "مرحبا ٣",
        "<null>",
        "&quot;&amp;",
        "-\n",
        "<skipped>",
        "{" * 3000,
        "a" * 20_000,
        "#" * 20_000,
        "\ud800",
    ),
    *("Ann Lee " * 3000, "1,1" * 5000, "1/" * 5000, "```\n" * 2000, "a.\n" * 2000, "A. " * 3000, "'" * 5000),
)
"""Texts that no careful writer writes."""
TEXTS = (
    "Ann Lee lives in Rome, 3.",
    "Bo plays 1,000 violins.",
    "2 books",
    "{}",
    "A shop sells 12 cakes. A shop sells 12 cakes.",
)


def made(name: str):
    cls = Registry().load(name).cls
    component = cls(cls.Config.model_validate_json(json.dumps(OPTIONS.get(name, {}))))
    component.name = name
    component.setup(None)
    return component


def rollout_of(texts) -> Rollout:
    """Each text as a response to each example."""
    examples = [
        Example(
            row["id"],
            row["prompt"],
            responses=tuple(texts),
            meta={k: v for k, v in row.items() if k != "prompt"},
        )
        for row in ROWS
    ]
    actions = [([1] * (1 + len(text.split()) % 7), True) for _ in examples for text in texts]
    return logged_rollout(examples, [torch.ones(1)] * len(examples), actions, like=torch.zeros(1))


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_texts_have_a_score_within_bounds(name):
    component = made(name)
    score = component.reward(rollout_of(ODD))
    least, most = component.bounds
    assert score.value.dtype == torch.float64 and score.value.shape == (len(ODD) * len(ROWS),)
    assert bool(score.value.isfinite().all())
    assert least is None or float(score.value.min()) >= least
    assert most is None or float(score.value.max()) <= most + 1e-9
    assert all(len(metric) == len(score.value) for metric in score.metrics.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_other_rows_do_not_matter(name):
    component = made(name)
    rollout = rollout_of(TEXTS)
    whole = component.reward(rollout).value
    rows = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
    assert torch.equal(component.reward(rollout.take(rows)).value, whole[rows])
    for group in range(len(ROWS)):
        mine = rollout.group_N == group
        assert torch.equal(component.reward(rollout.take(mine)).value, whole[mine])
    if name != "commongen-penalty":  # nobody spells anything out here
        assert len(set(whole.tolist())) > 1


@pytest.mark.parametrize("name", OPTIONS)
def test_threads_agree(name):
    rollout = rollout_of((*TEXTS, *ODD[:12]))
    expected = made(name).reward(rollout).value
    shared = made(name)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shared.reward(rollout).value, range(16)))
    assert all(torch.equal(value, expected) for value in found)


@pytest.mark.parametrize("name", [*OPTIONS, "diversity"])
def test_what_it_says_of_itself(name):
    component = made(name)
    assert component.higher_is_better is (name not in LOWER)
    for part in component.signature().split("|") if component.signature() else ():
        key, _, value = part.partition(":")
        assert key and value, component.signature()
    if name == "diversity":
        assert not hasattr(component, "reward")
    else:
        assert component.bounds != (None, None)


@pytest.mark.slow
def test_another_process_gives_the_same_bits():
    """Nothing is summed in the order of a set, which differs from process to process."""
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_all_of_text as t\n"
        "rollout = t.rollout_of((*t.TEXTS, *t.ODD[:14]))\n"
        "print([(name, t.made(name).reward(rollout).value.tolist()) for name in t.OPTIONS])\n"
        "print([t.made(name).evaluate(rollout) for name in ('diversity', 'self-bleu', 'parent')])\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        for seed in ("1", "2")
    ]
    assert said[0].stdout and said[0].stdout == said[1].stdout, said[0].stderr


def test_no_responses():
    empty = rollout_of(TEXTS).take(torch.zeros(len(TEXTS) * len(ROWS), dtype=torch.bool))
    for name in OPTIONS:
        assert made(name).reward(empty).value.shape == (0,)
    for name in ("diversity", "self-bleu", "parent"):
        assert made(name).evaluate(empty) == {}


def pipeline(*rewards):
    return {
        "task": {"dataset": {"path": str(FILE), "prompt": "prompt", "references": "references", "id": "id"}},
        "policy": "bytes",
        "rewards": list(rewards),
        "algorithm": "policy-gradient",
        "generation": {"samples": 3, "max_new_tokens": 12},
        "train": {"iterations": 2, "prompts": 2, "dtype": "float64"},
    }


def test_a_run_with_all_of_them(tmp_path):
    items = [{name: options} for name, options in OPTIONS.items() if name not in LOWER]
    described = pipeline(*items, *[{name: {}, "weight": -0.5} for name in sorted(LOWER)])
    described["evaluate"] = {
        "split": "train",
        "use": [*OPTIONS, "diversity"],
        "generation": {"samples": 3},
    }
    run = session(tmp_path, described, {}, name="all")
    run.run()
    lines = (tmp_path / "runs/all/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    trained = next(row for row in rows if "reward/total" in row)
    assert {f"reward/{name}" for name in OPTIONS} <= set(trained)
    assert {"parent/precision", "parent/recall", "sari/keep", "regex/given_up", "text-length/words"} <= set(
        trained
    )
    evaluated = {key for row in rows for key in row if key.startswith("eval/")}
    assert {"eval/diversity/distinct-2", "eval/self-bleu/corpus", "eval/parent/overlap/f"} <= evaluated
    assert {f"eval/{name}" for name in OPTIONS if name != "text-length"} <= evaluated
