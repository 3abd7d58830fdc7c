"""What every component must do, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlalign import ConfigError, Example, Options, Task
from rlalign.testing import Bench, RewardTests, run
from rlalign.testing.reward_kit import answered, ask
from rlalign_plugin_model_rewards.testing import tiny_scorer, tiny_scorers


class Questions(Task):
    """Six prompts with references."""

    class Config(Options):
        """No options."""

    def examples(self, split: str) -> Sequence[Example]:
        return [
            Example(str(i), prompt, meta={"references": [f"the {prompt}", "a good man"]})
            for i, prompt in enumerate(
                ("film", "man", "horse", "bad", "the film was good. It was bad.", "x y")
            )
        ]


class ScorerTests(RewardTests):
    shape: str
    more: Mapping[str, Any] = {}
    tolerance = 1e-4

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tiny_scorer(tmp_path_factory.mktemp("model") / "it", cls.shape)
        cls.options = {"path": str(folder), **cls.more}

    def test_of_no_responses_nothing_is_said(self, bench: Bench) -> None:
        nothing = answered(self.examples).take(torch.tensor([], dtype=torch.long))
        for hook in self.hooks():
            found = ask(self.component_of(bench), hook, bench, nothing)
            assert found == {} if hook == "evaluate" else found.value.shape == (0,)


CASES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("classifier", "bert-nli", {"label": "neutral"}),
    ("classifier", "gpt2-classifier", {"label": 1, "value": "logit", "separator": " "}),
    ("reward-model", "llama-reward", {"normalise": 4}),
    ("reward-model", "bert-reward", {}),
    ("perplexity", "gpt2", {"value": "nll"}),
    ("perplexity", "llama", {"value": "nll", "prompt": False}),
    ("bert-score", "bert", {"layer": 2, "idf": True}),
    ("bert-score", "roberta", {"layer": 3, "baseline": [0.1, 0.2, 0.1]}),
    ("embedding-similarity", "bert", {}),
    ("embedding-similarity", "roberta", {"pooling": "last", "prefix": "query: "}),
    ("bart-score", "bart", {"direction": "both"}),
    ("bart-score", "t5", {"max_tokens": 100}),
    ("nli", "bert-nli", {"premise": "references"}),
    ("summac-zs", "bert-nli", {"contradiction": False}),
)
for place, (name, shape, more) in enumerate(CASES):
    called = f"Test{name.title().replace('-', '')}{place}"
    said: dict[str, Any] = {"component": name, "shape": shape, "more": more}
    if any(name == other for other, _, _ in CASES[:place]):
        said["pytestmark"] = pytest.mark.slow
    if name in ("bart-score", "nli"):  # whose random models like no text for its likeness
        said["test_a_reference_itself_is_not_worse_than_another_text"] = None
    globals()[called] = type(called, (ScorerTests,), said)


class TestNLIInBfloat16(ScorerTests):
    component, shape, more = "nli", "bert-nli", {"dtype": "bfloat16"}
    tolerance = near = 0.05
    test_reward_depends_on_its_group_only = None  # to more digits than bfloat16 has


# -- runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return tiny_scorers(tmp_path_factory.mktemp("scorers"))


def pipeline(policy: Any, **parts: Any) -> dict[str, Any]:
    return {
        "task": "questions",
        "policy": policy,
        "algorithm": "rloo",
        "generation": {"samples": 4, "max_new_tokens": 6},
        "train": {"iterations": 2, "prompts": 4, "lr": 1e-3},
        **parts,
    }


def test_all_are_rewards_and_metrics_of_one_run(folders, tmp_path):
    items: list[dict[str, Any]] = [
        {"classifier": {"path": str(folders["bert-nli"]), "label": "neutral"}},
        {"reward-model": {"path": str(folders["bert-reward"])}},
        {"perplexity": {"path": str(folders["llama"])}, "weight": -0.01},
        {"bert-score": {"path": str(folders["roberta"]), "layer": 2}},
        {"embedding-similarity": {"path": str(folders["bert"])}},
        {"bart-score": {"path": str(folders["t5"])}},
        {"nli": {"path": str(folders["bert-nli"]), "premise": "references"}},
        {"summac-zs": {"path": str(folders["bert-nli"])}},
    ]
    use = [{key: value for key, value in item.items() if key != "weight"} for item in items]
    told = pipeline("bytes", rewards=items, evaluate={"every": 2, "split": "val", "use": use})
    run(tmp_path, told, {"questions": Questions})
    names = [next(iter(item)) for item in items]
    trained = [row for row in rows(tmp_path) if "reward/nli" in row]
    for name in names:
        assert math.isfinite(trained[-1][f"reward/{name}"]), name
    assert math.isfinite(trained[-1]["bert-score/recall"])
    evaluated = [row for row in rows(tmp_path) if "eval/nli" in row]
    assert {f"eval/{name}" for name in names} <= set(evaluated[-1])
    assert evaluated[-1]["eval/perplexity/corpus"] > 1


def rows(folder: Path) -> list[dict[str, Any]]:
    import json

    (file,) = folder.rglob("metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("window, stride", [(None, 64), (16, 5)])
def test_the_policy_s_perplexity_of_the_references(shape, window, stride, folders, tmp_path):
    measured = {"reference-perplexity": {"stride": stride, "window": window}}
    told = pipeline(
        {"causal-lm": {"path": str(folders[shape])}},
        rewards=[{"perplexity": {"path": str(folders["gpt2"])}, "weight": -1}],
        evaluate={"every": 2, "split": "val", "examples": 4, "use": [measured]},
    )
    run(tmp_path, told, {"questions": Questions})
    first = next(row for row in rows(tmp_path) if "eval/reference-perplexity/nll" in row)

    examples = Questions(Questions.Config()).examples("val")[:4]
    text = "\n\n".join(reference for e in examples for reference in e.references)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[shape])
    network = transformers.AutoModelForCausalLM.from_pretrained(folders[shape]).eval()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    longest = window or 192
    total = 0.0
    # Token by token: each lies in the first window, or so far behind the beginning of one of the later ones.
    for at in range(1, len(ids)):
        end = longest if at < longest else longest + stride * ((at - longest) // stride + 1)
        context = ids[max(0, min(end, len(ids)) - longest) : at]
        with torch.no_grad():
            total -= float(network(input_ids=torch.tensor([context])).logits[0, -1].log_softmax(0)[ids[at]])
    assert first["eval/reference-perplexity/tokens"] == len(ids) - 1
    assert first["eval/reference-perplexity/nll"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)
    assert first["eval/reference-perplexity/perplexity"] == pytest.approx(
        math.exp(total / (len(ids) - 1)), rel=1e-4
    )


@pytest.mark.parametrize(
    "options, words",
    [({"window": 600}, "more than the model's 192"), ({"stride": 8, "window": 8}, "`stride` must be less")],
)
def test_windows_that_do_not_fit_are_refused(options, words, folders, tmp_path):
    told = pipeline(
        {"causal-lm": {"path": str(folders["gpt2"])}},
        rewards=["length"],
        evaluate={"split": "val", "use": [{"reference-perplexity": options}]},
    )
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, told, {"questions": Questions})


def test_a_policy_that_reads_no_plain_text_is_refused(tmp_path):
    told = pipeline("bytes", rewards=["length"], evaluate={"split": "val", "use": ["reference-perplexity"]})
    with pytest.raises(ConfigError, match=r"takes a `causal-lm`.*`held-out`"):
        run(tmp_path, told, {"questions": Questions})
