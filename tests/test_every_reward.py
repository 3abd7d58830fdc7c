"""Every installed reward and metric takes part in a run: whatever is installed is found, and tried, by itself.

One that needs options, or reads more of an example than `toy-keywords` keeps there, has a row in `NEEDS`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example
from rlalign.config.outline import outline
from rlalign.config.registry import Registry, installed
from rlalign.records import logs
from rlalign.running.evaluation import evaluate
from rlalign.testing import Bench
from rlalign_plugin_toy_tasks import ToyKeywords, models

OUTLINES = {found.name: outline(found.value) for found in installed()}
PLAYED = {"played", "togo", "novelty", "alignment"}
"""Rewards of episodes; their own tests play some."""
REWARDS = sorted(
    name
    for name, told in OUTLINES.items()
    if told.hooks.get("reward") == "plain" and told.kind != "responses"  # `logged` scores nothing by itself
    if name not in PLAYED
)
METRICS = sorted(name for name, told in OUTLINES.items() if told.kind == "metric")


def a_function(folder: Path) -> dict[str, Any]:
    """Options of `function`: a file beside the pipeline."""
    (folder / "scores.py").write_text("def words(texts):\n    return [len(text.split()) for text in texts]\n")
    return {"path": f"{folder / 'scores.py'}:words"}


def a_wordnet(folder: Path) -> dict[str, Any]:
    """Options of `meteor`: a dictionary of one meaning a kind, in WordNet's format."""
    (folder / "dict").mkdir()
    header = "  1 A small dictionary, made for a test\n"
    for kind, letter in {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}.items():
        line = f"{len(header):08d} 00 {letter} 02 first 0 second 0 000{' 01 + 02 00' * (letter == 'v')} | a meaning  \n"
        index = "".join(f"{word} {letter} 1 0 1 0 {len(header):08d}  \n" for word in ("first", "second"))
        (folder / f"dict/data.{kind}").write_text(header + line)
        (folder / f"dict/index.{kind}").write_text(header + index)
        (folder / f"dict/{kind}.exc").write_text("")
    return {"wordnet": str(folder / "dict")}


def a_bleurt(folder: Path) -> dict[str, Any]:
    from rlalign_plugin_bleurt_reward.testing import tiny_checkpoint

    (folder / "checkpoint").mkdir(exist_ok=True)
    return {"path": str(tiny_checkpoint(folder / "checkpoint"))}


def a_scorer(shape: str, **options: Any) -> Callable[[Path], dict[str, Any]]:
    """Options with a tiny random model of a shape."""

    def made(folder: Path) -> dict[str, Any]:
        from rlalign_plugin_model_rewards.testing import tiny_scorer

        return {"path": str(tiny_scorer(folder / shape, shape)), **options}

    return made


class Judge(BaseHTTPRequestHandler):
    """A chat endpoint that grades by a question's length."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"Score: {len(asked) % 10 + 1}"}
        said = json.dumps({"choices": [{"message": message}], "usage": {"total_tokens": 10}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def a_judge(folder: Path) -> dict[str, Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "judge"}


@dataclass(frozen=True)
class Needs:
    """What a component is given, beside its name."""

    options: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = field(default_factory=dict)
    """Its options, or what makes them, and tiny models with random weights, in a folder."""
    meta: Callable[[Example], Mapping[str, Any]] = lambda example: {}
    """What it reads of an example, and `toy-keywords` does not keep."""
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """What else the pipeline says."""
    tolerance: float = 0.0
    """How far values of a model may lie apart that was asked in other batches."""
    marks: Sequence[pytest.MarkDecorator] = ()
    """`pytest.mark.slow` for what takes longer than two seconds; a skip says where else it is tried."""


def world(name: str, policy: str) -> dict[str, Any]:
    """A toy world and the model that lives in it."""
    model = {policy: {"path": str(models.FOLDER / name)}}
    return {"task": {name: {"size": 8, "held_out": 4}}, "policy": model}


NEEDS: dict[str, Needs] = {
    "bandit-payout": Needs(pipeline={"task": "bandit", "policy": {"table": {"actions": 3, "steps": 1}}}),
    "bart-score": Needs(a_scorer("bart"), tolerance=1e-4),
    "bert-score": Needs(a_scorer("bert", layer=2), tolerance=1e-5),
    "bleurt": Needs(a_bleurt, tolerance=1e-5),
    "classifier": Needs(a_scorer("bert-nli", label="neutral"), tolerance=1e-5),
    "embedding-similarity": Needs(a_scorer("bert"), tolerance=1e-5),
    "function": Needs(a_function),
    "kl": Needs({"together": True}),
    "label-accuracy": Needs(
        marks=[pytest.mark.skip(reason="it measures a `sequence-classifier`, which its own tests train")]
    ),
    "llm-judge": Needs(a_judge),
    "meteor": Needs(a_wordnet),
    "nli": Needs(a_scorer("bert-nli"), tolerance=1e-5),
    "numeric-answer": Needs(meta=lambda example: {"references": ["It is 4", "#### 1,000"]}),
    "parent": Needs(meta=lambda example: {"table": [["what", word] for word in example.meta["keywords"]]}),
    "perplexity": Needs(a_scorer("gpt2", value="nll"), tolerance=1e-4),
    "reference-perplexity": Needs(
        {"stride": 8, "window": 16},
        pipeline={"policy": {"causal-lm": {"path": str(models.FOLDER / "toy-reviews")}}},
    ),
    "regex": Needs({"pattern": r"\bthe\b"}),
    "reward-model": Needs(a_scorer("llama-reward"), tolerance=1e-4),
    "summac-zs": Needs(a_scorer("bert-nli"), tolerance=1e-5),
    "toy-answer": Needs(pipeline=world("toy-questions", "seq2seq-lm")),
    "toy-closeness": Needs(pipeline=world("toy-translation", "seq2seq-lm")),
    "toy-facts": Needs(pipeline=world("toy-summaries", "seq2seq-lm")),
    "toy-intent": Needs(pipeline=world("toy-dialogue", "causal-lm")),
}


def params(names: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=NEEDS.get(name, Needs()).marks) for name in names]


class Keywords(ToyKeywords):
    """The task, with what a component reads beside."""

    more: Callable[[Example], Mapping[str, Any]]

    def examples(self, split: str) -> Sequence[Example]:
        return [replace(e, meta={**e.meta, **type(self).more(e)}) for e in super().examples(split)]

    def fingerprint(self, split: str) -> None:  # type: ignore[override]
        return None


def item(name: str, folder: Path) -> dict[str, Any]:
    """How a pipeline names the component."""
    needs, cls = NEEDS.get(name, Needs()), Registry(trust=True).load(name).cls
    options = needs.options(folder) if callable(needs.options) else needs.options
    required = [key for key, option in cls.Config.model_fields.items() if option.is_required()]
    if missing := [key for key in required if key not in options]:
        pytest.fail(
            f"`{name}` has required options, {', '.join(missing)}: give it a row in NEEDS, in {__file__}"
        )
    return {name: dict(options)}


def bench_of(name: str, folder: Path, rewards: Sequence[Any], use: Sequence[Any]) -> Bench:
    """Two iterations of a small pipeline, and an evaluation of what is in `use`."""
    needs = NEEDS.get(name, Needs())
    decoding = {"samples": 2, "max_new_tokens": 16}
    pipeline = {
        "task": {"keywords": {"size": 8, "held_out": 4}},
        "policy": {"seq2seq-lm": {"path": str(models.FOLDER / "toy-keywords")}},
        "rewards": list(rewards),
        "algorithm": "reinforce",
        "generation": decoding,
        "train": {"iterations": 2, "prompts": 3, "lr": 1e-4},
        "evaluate": {"split": "val", "examples": 3, "use": list(use), "generation": decoding},
        **needs.pipeline,
    }
    task = type("Keywords", (Keywords,), {"more": staticmethod(needs.meta)})
    bench = Bench(folder, pipeline, {"keywords": task})
    bench.session.phase = bench.phase  # as it is while a run goes on
    return bench


def ended(bench: Bench) -> None:
    """As at the end of a run, so that what a component opened is closed."""
    bench.phase.plan.training.run_ended(bench.run, None, bench.session.components.dismiss)
    bench.session.logs.close()
    bench.session.dir.close()


def evaluated(bench: Bench) -> dict[str, Any]:
    """What an evaluation logs, all of it finite."""
    evaluate(bench.phase)
    *_, row = logs.read(bench.session.dir.path / "metrics.jsonl")
    for key, value in row.items():
        assert not key.startswith("eval/") or math.isfinite(value), f"{key} is {value}"
    return row


@pytest.mark.parametrize("name", params(REWARDS))
def test_every_reward_trains_and_measures_the_same(name: str, tmp_path: Path) -> None:
    cls = Registry(trust=True).load(name).cls
    weight = {} if getattr(cls, "higher_is_better", True) else {"weight": -1}
    made = item(name, tmp_path)
    bench = bench_of(name, tmp_path, [{**made, **weight, "as": "paid"}], ["paid", {**made, "as": "measured"}])
    for _ in range(2):
        metrics = bench.iterate()
        assert math.isfinite(metrics["reward/paid"]), f"reward/{name} is {metrics['reward/paid']}"
    rollout, reward = bench.rollout()
    measured = bench.phase.plan.evaluation.reward(bench.run, rollout).parts
    close = partial(torch.testing.assert_close, rtol=0, atol=NEEDS.get(name, Needs()).tolerance)
    close(measured["paid"], reward.parts["paid"], msg=f"`{name}` scores otherwise in an evaluation")
    close(measured["measured"], reward.parts["paid"], msg=f"`{name}` scores otherwise under `evaluate.use`")
    row = evaluated(bench)
    assert row["eval/measured"] == pytest.approx(row["eval/paid"], abs=1e-6)
    for value in measured["measured"].flatten().tolist():
        least, most = getattr(cls, "bounds", (None, None))
        assert (least is None or value >= least - 1e-6) and (most is None or value <= most + 1e-6), value
    ended(bench)


@pytest.mark.parametrize("name", params(METRICS))
def test_every_metric_measures(name: str, tmp_path: Path) -> None:
    bench = bench_of(name, tmp_path, ["toy-coverage"], [{**item(name, tmp_path), "as": "measured"}])
    bench.iterate()
    row = evaluated(bench)
    assert any(key.startswith("eval/measured/") for key in row), f"`{name}` measured nothing"
    assert evaluated(bench) == {**row, "time/evaluate": pytest.approx(row["time/evaluate"], abs=60)}
    ended(bench)


def test_one_that_needs_options_and_has_no_row_fails_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(NEEDS, "function")
    with pytest.raises(pytest.fail.Exception, match="`function` has required options, path: give it a row"):
        item("function", tmp_path)


def test_the_table_names_what_is_there() -> None:
    strange = set(NEEDS) - {*REWARDS, *METRICS}
    assert not strange, f"{', '.join(sorted(strange))}: no reward or metric of that name is installed"
