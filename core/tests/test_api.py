"""rlalign from Python: what a notebook does, and what the command line is made of."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rlalign
from rlalign import Callbacks, Component, ConfigError, Example, Options, Score, Task, hookimpl
from rlalign.records import checkpoint, logs
from rlalign.running import callbacks
from rlalign.running.display import NoDisplay
from rlalign.testing import Logits, Numbers, PolicyGradient, TokenSum

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 4, "lr": 0.1},
    "evaluate": {"every": 2, "examples": 4, "generation": {"samples": 2}},
}


class Odd(Component):
    """The share of odd numbers among a response's tokens; counts its calls."""

    class Config(Options):
        """Options of `Odd`."""

        factor: float = 1.0

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.calls = 0

    @hookimpl
    def reward(self, rollout: Any) -> Score:
        self.calls += 1
        odd = [[int(word) % 2 for word in text.split()] for text in rollout.texts]
        return Score(
            torch.tensor([self.config.factor * sum(x) / max(len(x), 1) + self.calls / 100 for x in odd])
        )

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


def short(texts: Sequence[str]) -> list[float]:
    return [-len(text) / 10 for text in texts]


OWN: dict[str, Any] = {**PIPELINE, "rewards": [{Odd: {"factor": 2.0}, "weight": 0.5}, short]}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quiet(pipeline: Any, **options: Any) -> rlalign.Result:
    return rlalign.run(pipeline, display=False, **options)


def without_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


class Halt(Exception):
    pass


def broken_off(pipeline: Any, after: int, **options: Any) -> Path:
    """The folder of a run that a callback ended at this iteration."""

    def end(row: dict[str, Any]) -> None:
        if row["iteration"] == after:
            raise Halt

    with pytest.raises(Halt):
        quiet(pipeline, name="broken", callbacks=Callbacks(on_iteration=end), **options)
    return Path("runs/broken")


# -- load ---------------------------------------------------------------------------------------------


def test_a_file_and_a_dict_mean_the_same() -> None:
    Path("pipeline.yaml").write_text(yaml.dump(PIPELINE, sort_keys=False))
    from_file, from_dict = rlalign.load("pipeline.yaml"), rlalign.load(PIPELINE)
    assert from_file.settings.resolved == from_dict.settings.resolved
    assert from_file.check() == from_dict.check()
    assert from_dict.check().startswith("pipeline: 1 phase; policy rlalign.testing:Logits, seed 0\n")


def test_overrides_as_a_dict_and_as_on_the_command_line() -> None:
    said = {"train.lr": 0.5, "rewards.sum.weight": 2, "evaluate": None, "generation": {"samples": 3}}
    loaded = rlalign.load(PIPELINE, said, seed=7)
    by_dict = loaded.settings
    texts = ["train.lr=0.5", "rewards.sum.weight=2", "evaluate=null", "generation={samples: 3}"]
    by_text = rlalign.load(PIPELINE, texts, seed=7)
    assert by_dict.resolved == by_text.settings.resolved
    assert loaded.check() == by_text.check()
    (phase,) = by_dict.phases
    assert (by_dict.seed, phase.train.lr, phase.rewards[0].weight, phase.generation.samples) == (7, 0.5, 2, 3)
    assert phase.evaluate is None
    assert PIPELINE["train"]["lr"] == 0.1  # the caller's dict stays as it was


def test_values_of_python_and_of_numpy() -> None:
    import numpy

    data = {**PIPELINE, "folder": Path("."), "train": {**PIPELINE["train"], "lr": numpy.float64(0.25)}}
    data["train"]["betas"] = (0.8, 0.9)
    (phase,) = rlalign.load(data, {"train.prompts": numpy.int64(2)}).settings.phases
    assert (phase.train.lr, phase.train.prompts, phase.train.betas) == (0.25, 2, (0.8, 0.9))


@pytest.mark.parametrize(
    "change, overrides, said",
    [
        (
            {"train": {"iterations": 3, "lr": "much"}},
            {},
            "pipeline: train.lr: expected a number, found 'much' (text)",
        ),
        ({}, {"train.lr": "much"}, 'override (train.lr="much"): train.lr: expected a number'),
        ({}, {"rewards.nosuch.weight": 1}, "`rewards` has no item named `nosuch`"),
        ({}, ["train.lr"], "command line (train.lr): expected key=value"),
        ({"rewards": ["nosuch"]}, {}, "no component named `nosuch` is installed"),
        ({"rewards": [object()]}, {}, "rewards[0]: expected text, a number"),
        ({3: 4}, {}, "expected a name or a component's class as a key, found 3"),
        (
            {"rewards": [lambda texts: texts]},
            {},
            "`<lambda>` cannot be a name in a pipeline; choose one by components=",
        ),
        ({"rewards": [int]}, {}, "`int`: int is no component"),
    ],
)
def test_what_is_wrong_is_said_as_on_the_command_line(change: Any, overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        rlalign.load({**PIPELINE, **change}, overrides)
    assert said in str(error.value)


def test_everything_wrong_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        rlalign.load({**PIPELINE, "rewards": ["nosuch"], "train": {"iterations": 0, "lrr": 1}})
    assert len(str(error.value).splitlines()) == 3


def test_parts_that_do_not_fit_are_found_by_check() -> None:
    loaded = rlalign.load(PIPELINE, {"models": {"unused": {"of": "start"}}})
    with pytest.raises(ConfigError, match="no component uses a model `unused`"):
        loaded.check()


# -- run ----------------------------------------------------------------------------------------------


def test_a_result_holds_what_the_folder_holds() -> None:
    result = quiet(PIPELINE, root="elsewhere", name="one")
    assert result.folder == Path("elsewhere/one") and result.finished
    assert repr(result) == "Result('elsewhere/one', finished)"
    assert [row["iteration"] for row in result.metrics] == [1, 2, 3]
    assert [row["iteration"] for row in result.evaluations] == [0, 2, 3]
    assert result.last == result.evaluations[-1] and "eval/sum" in result.last
    assert {row["iteration"] for row in result.samples} == {0, 2, 3}
    assert (result.model / "config.json").exists()
    again = rlalign.Result("elsewhere/one")
    assert (again.metrics, again.evaluations) == (result.metrics, result.evaluations)


def test_runs_are_numbered_and_accept_what_load_accepts() -> None:
    Path("toy.yaml").write_text(yaml.dump(PIPELINE))
    folders = [
        quiet(one).folder for one in ("toy.yaml", Path("toy.yaml"), rlalign.load("toy.yaml"), PIPELINE)
    ]
    assert [str(f) for f in folders] == ["runs/toy", "runs/toy-2", "runs/toy-3", "runs/pipeline"]


def test_a_quiet_run_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quiet(PIPELINE)
    assert capfd.readouterr() == ("", "")
    rlalign.run(PIPELINE)
    assert "run pipeline-2 in runs/pipeline-2" in capfd.readouterr().out


def test_numbers_that_json_has_no_word_for_are_numbers() -> None:
    result = quiet(PIPELINE)
    with (result.folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "p", "repeat": 0, "iteration": 4, "loss": "nan", "lr": "-inf"}\n')
    last = result.metrics[-1]
    assert math.isnan(last["loss"]) and last["lr"] == -math.inf and last["phase"] == "p"


def test_frames_need_pandas_only_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    result = quiet(PIPELINE)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        result.frame()
    seen: list[Any] = []
    monkeypatch.setitem(sys.modules, "pandas", type("pandas", (), {"DataFrame": seen.append}))
    result.frame("evaluations")
    assert seen == [result.evaluations]


# -- callbacks and interruptions ------------------------------------------------------------------------


def test_callbacks_get_the_rows_that_are_logged() -> None:
    seen: dict[str, list[Any]] = {}

    def keep(name: str) -> Any:
        return lambda *given: seen.setdefault(name, []).append(given if len(given) > 1 else given[0])

    names = ("on_start", "on_phase", "on_iteration", "on_evaluation", "on_checkpoint", "on_finish")
    second: list[Any] = []
    callbacks = [Callbacks(**{name: keep(name) for name in names}), Callbacks(on_iteration=second.append)]
    result = quiet(PIPELINE, callbacks=callbacks)
    assert seen["on_iteration"] == result.metrics == second
    assert seen["on_evaluation"] == result.evaluations
    assert seen["on_start"] == seen["on_finish"] == [result.folder]
    assert seen["on_phase"] == [("PolicyGradient", 3)]
    assert seen["on_checkpoint"][-1] == result.folder / "checkpoints" / checkpoint_names(result.folder)[-1]


def checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_a_callback_raises_ends_the_run_and_it_resumes_as_if_it_had_never_stopped() -> None:
    whole = quiet(PIPELINE, name="whole")
    folder = broken_off(PIPELINE, after=2)
    assert not rlalign.Result(folder).finished
    resumed = rlalign.resume(folder, display=False)
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    assert without_times(resumed.evaluations) == without_times(whole.evaluations)
    a, b = (checkpoint.load_tensors(r.model / "model.safetensors") for r in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    before = (folder / "metrics.jsonl").read_bytes()
    assert rlalign.resume(resumed, display=False).finished  # over: it stays as it is
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_that_a_callback_ends_before_it_begins_is_free_to_resume() -> None:
    def end(folder: Path) -> None:
        raise Halt

    with pytest.raises(Halt):
        quiet(PIPELINE, name="early", callbacks=Callbacks(on_start=end))
    assert rlalign.resume("runs/early", display=False).finished


def test_ctrl_c_ends_the_run_at_a_checkpoint_and_gives_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(rlalign.Interrupted, match="stopped after iteration 1 of PolicyGradient, and saved"):
        quiet(PIPELINE, name="stopped", callbacks=Callbacks(on_iteration=press))
    assert signal.getsignal(signal.SIGINT) is before
    assert [row["iteration"] for row in rlalign.Result("runs/stopped").metrics] == [1]
    assert rlalign.resume("runs/stopped", display=False).finished


def test_signals_that_come_together_are_one_request() -> None:
    def end(row: dict[str, Any]) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)

    with pytest.raises(rlalign.Interrupted, match="stopped after iteration 1 of PolicyGradient, and saved"):
        quiet(PIPELINE, name="stopped", callbacks=Callbacks(on_iteration=end))


def test_a_scheduler_s_warning_is_no_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "SAME_REQUEST", 0.0)

    def end(row: dict[str, Any]) -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)

    with pytest.raises(rlalign.Interrupted, match="stopped after iteration 1 of PolicyGradient, and saved"):
        quiet(PIPELINE, name="stopped", callbacks=Callbacks(on_iteration=end))


def test_a_second_ctrl_c_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "SAME_REQUEST", 0.0)

    def press(row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quiet(PIPELINE, name="stopped", callbacks=Callbacks(on_iteration=press))
    assert rlalign.resume("runs/stopped", display=False).finished


@pytest.mark.parametrize("where", ["reward", "callback"])
def test_code_that_raises_what_ctrl_c_raises_is_named(where: str) -> None:
    def press(*given: Any) -> list[float]:
        raise KeyboardInterrupt

    watch = Callbacks(on_iteration=press if where == "callback" else None)
    rewards = [press] if where == "reward" else PIPELINE["rewards"]
    with pytest.raises(
        rlalign.ComponentError, match=r"raised KeyboardInterrupt \(test_api.py:\d+\)"
    ) as caught:
        quiet({**PIPELINE, "rewards": rewards}, name="stopped", callbacks=watch)
    assert "nobody pressed Ctrl-C" in str(caught.value)
    assert ("`press`" in str(caught.value)) == (where == "reward")


def test_a_run_in_another_thread() -> None:
    done: list[rlalign.Result] = []
    thread = threading.Thread(target=lambda: done.append(quiet(PIPELINE)))
    thread.start()
    thread.join()
    assert done[0].finished


# -- classes and functions of a notebook ----------------------------------------------------------------


def test_classes_and_functions_stand_in_the_pipeline_itself() -> None:
    result = quiet(OWN)
    assert {"reward/Odd", "reward/short"} <= set(result.last) | set(result.metrics[-1])
    said = yaml.safe_load((result.folder / "pipeline.yaml").read_text())
    assert said["rewards"] == [{"Odd": {"factor": 2.0}, "weight": 0.5}, "short"]
    given = json.loads((result.folder / "lock.json").read_text())["given"]
    assert {name: one["class"] for name, one in given.items()} == {
        "Odd": f"{__name__}:Odd",
        "short": f"{__name__}:short",
    }
    as_named = {**OWN, "rewards": [{"odd": {"factor": 2.0}, "weight": 0.5}, "brief"]}
    named = quiet(rlalign.load(as_named, components={"odd": Odd, "brief": short}))
    assert [row["reward/odd"] for row in named.metrics] == [row["reward/Odd"] for row in result.metrics]


def test_a_run_with_own_classes_resumes_when_they_are_given_again() -> None:
    whole = quiet(OWN, name="whole")
    folder = broken_off(OWN, after=2)
    with pytest.raises(
        ConfigError, match=r"`Odd` \(.*test_api:Odd\), `short`.*components=\{'Odd': …, 'short': …\}"
    ):
        rlalign.resume(folder)
    again: dict[str, Any] = {"Odd": Odd, "short": short}
    resumed = rlalign.resume(folder, components=again, display=False)
    assert without_times(resumed.metrics) == without_times(whole.metrics)


def test_a_class_that_changed_is_noticed() -> None:
    folder = broken_off(OWN, after=2)

    class Odd(globals()["Odd"]):  # type: ignore[misc]
        __qualname__ = "Odd"

        @hookimpl
        def reward(self, rollout: Any) -> Score:
            return Score(torch.zeros(len(rollout)))

    changed: dict[str, Any] = {"Odd": Odd, "short": short}
    with pytest.raises(ConfigError, match=r"given\.Odd\.code"):
        rlalign.resume(folder, components=changed)
    assert rlalign.resume(folder, components=changed, inexact=True, display=False).finished


NOTEBOOK = """
import json, sys
from rlalign import Component, Options, hookimpl

SOURCE = '''
class Apart(Options):
    at: float = AT
class Own(Component):
    Config = Apart
    other = json.JSONEncoder
    names = {"a", "b", "c"}
    @hookimpl
    def reward(self, rollout):
        known = {text for text in rollout.texts if text in {"1", "2", "3"}}
        return self.config.at + len(known)
'''
from rlalign.records.environment import class_hash
for at in ("1.0", "2.0", "1.0"):
    exec(SOURCE.replace("AT", at))
    print(class_hash(Own))
"""


def test_the_hash_of_a_class_is_the_same_in_every_process() -> None:
    """Classes of a notebook have no file; sets come in another order in each process."""
    found = [
        subprocess.check_output(
            [sys.executable, "-c", NOTEBOOK], text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).split()
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] and found[0][0] == found[0][2] != found[0][1]


def test_two_classes_of_one_name_are_refused() -> None:
    other = type("Odd", (Odd,), {})
    with pytest.raises(ConfigError, match=r"rewards\[1\]: two components are called `Odd`"):
        rlalign.load({**PIPELINE, "rewards": [Odd, other]})


def test_a_function_that_asks_for_what_there_is_not() -> None:
    def wrong(texts: list[str], labels: list[str]) -> list[float]:
        return []

    with pytest.raises(
        ConfigError, match="`wrong` asks for `labels`; a reward function may ask for prompts, texts"
    ):
        rlalign.load({**PIPELINE, "rewards": [wrong]})


def test_every_part_can_be_a_class() -> None:
    parts = {
        "task": Numbers,
        "policy": Logits,
        "rewards": [{TokenSum: {}, "as": "sum"}],
        "algorithm": PolicyGradient,
    }
    by_class, by_name = quiet({**PIPELINE, **parts}), quiet(PIPELINE)
    assert [row["reward/sum"] for row in by_class.metrics] == [row["reward/sum"] for row in by_name.metrics]


# -- open -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> rlalign.Result:
    """A finished run that nothing may change."""
    return quiet(PIPELINE, root=tmp_path_factory.mktemp("made"), name="toy")


def test_a_run_evaluates_as_it_did_and_by_other_measures(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy)
    expected = without_times(toy.evaluations)[-1]
    assert opened.evaluate() == expected == opened.evaluate()
    again = rlalign.open(toy.folder, use=[Odd, "sum", short], examples=2, components={"more": Odd}).evaluate()
    assert again["eval/responses"] == 4.0 and {"eval/more", "eval/sum", "eval/short"} <= set(again)
    sampled = rlalign.open(toy, {"evaluate.generation.samples": 3}, seed=5).evaluate()
    assert sampled["eval/responses"] == 12.0


def test_an_evaluation_example_by_example(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy, {"evaluate.generation.samples": 3})
    figures, values, examples = opened.evaluate_by_example()
    assert figures == opened.evaluate()
    assert set(values) == {"eval/length", "eval/finished", "eval/total", "eval/sum"}
    for name, some in values.items():
        assert len(some) == 4 and sum(some) / 4 == pytest.approx(figures[name], rel=1e-6)
    scores = [row["scores"]["sum"] for row in opened.sample()]
    means = [sum(scores[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert len(set(means)) > 1 and values["eval/sum"] == pytest.approx(means, rel=1e-12)
    # The hash is of what is measured on, and not of who is measured.
    assert rlalign.open(toy, seed=5).evaluate_by_example()[2] == examples
    assert rlalign.open(toy, examples=3).evaluate_by_example()[2] != examples


def test_samples_to_prompts_of_one_s_own(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy)
    rows = opened.sample(["1", "4"], samples=3, seed=1)
    assert [row["prompt"] for row in rows] == ["1"] * 3 + ["4"] * 3 and "scores" not in rows[0]
    assert opened.sample(["1", "4"], samples=3, seed=1) == rows
    assert opened.sample(["1", "4"], samples=3, seed=2) != rows
    scored = opened.sample()
    assert len(scored) == 8 and "sum" in scored[0]["scores"]
    assert opened.evaluate() == without_times(toy.evaluations)[-1]  # whatever was asked before
    with pytest.raises(ConfigError, match="temperatur: unknown option; did you mean `temperature`"):
        opened.sample(["1"], temperatur=1)


def test_scores_of_responses(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy)
    rows = opened.score(["1", "2"], [["3 4", "5"], "6 6 6"])
    assert [row["response"] for row in rows] == ["3 4", "5", "6 6 6"]
    assert [row["scores"]["sum"] for row in rows] == pytest.approx([0.7, 0.5, 1.8])
    assert [row["tokens"] for row in rows] == [3, 2, 4]  # the end is one
    plain = opened.score(["1"], ["3 4"], rewards=False)[0]
    assert "scores" not in plain and plain["logprob"] == rows[0]["logprob"] < 0
    assert opened.score([], []) == []
    with pytest.raises(ConfigError, match="1 responses are given to 2 prompts"):
        opened.score(["1", "2"], ["3"])
    assert opened.evaluate() == without_times(toy.evaluations)[-1]


def test_log_probs_are_those_it_was_sampled_with(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy, {"evaluate.generation.max_new_tokens": 5})
    file = Path("rows.jsonl")
    assert opened.export_responses(file) == "rows.jsonl, 8 responses"
    for row in logs.read(file):
        scored = opened.score([row["prompt"]], [row["responses"]], rewards=False)
        ended = row["finished"]
        known = row["meta"]["rlalign"]["full_logprobs"]
        for one, (sampled, by_itself) in zip(scored, zip(known, ended, strict=True), strict=True):
            assert not by_itself or one["logprob"] == pytest.approx(sampled, rel=1e-5)


def test_what_a_component_learned_is_there_whatever_was_asked_before() -> None:
    pipeline = {**OWN, "evaluate": {"every": 2, "examples": 4, "use": ["Odd"], "generation": {"samples": 2}}}
    result = quiet(pipeline)
    opened = rlalign.open(result, components={"Odd": Odd, "short": short})
    fresh = rlalign.open(result, components={"Odd": Odd, "short": short}).evaluate()
    opened.sample(["1"])
    opened.score(["1"], ["2"])
    assert opened.evaluate() == fresh


def test_a_model_folder_answers_prompts_without_a_task(toy: rlalign.Result) -> None:
    how: dict[str, Any] = {"policy": "rlalign.testing:Logits"}
    opened = rlalign.open(toy.model, **how)
    rows = opened.sample(["1", "2"], max_new_tokens=5)
    assert [row["prompt"] for row in rows] == ["1", "2"]
    assert opened.score(["1"], ["3"])[0]["scores"] == {}
    with pytest.raises(ConfigError, match="name a task"):
        opened.evaluate()
    with pytest.raises(ConfigError, match="is a model already"):
        opened.export("copy")
    known = rlalign.open(toy)
    assert opened.score(["1"], ["3 4"])[0]["logprob"] == known.score(["1"], ["3 4"])[0]["logprob"]
    row = rlalign.open(toy.model, task=Numbers, use=[TokenSum], split="test", **how).evaluate()
    assert "eval/TokenSum" in row


def test_export(toy: rlalign.Result) -> None:
    opened = rlalign.open(toy)
    assert opened.export("made/model") == Path("made/model")
    a, b = (checkpoint.load_tensors(Path(p) / "model.safetensors") for p in ("made/model", toy.model))
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ConfigError, match="made/model: exists"):
        opened.export("made/model")
    with pytest.raises(ConfigError, match="has kept no responses"):
        toy.export_responses("kept.jsonl")


def test_a_run_without_evaluation_still_answers() -> None:
    result = quiet({key: value for key, value in PIPELINE.items() if key != "evaluate"})
    opened = rlalign.open(result)
    assert len(opened.sample(["1"], samples=2)) == 2
    assert result.last == result.metrics[-1] and result.evaluations == []
    with pytest.raises(ConfigError, match="has no `evaluate` section; name a split to use"):
        opened.evaluate()
    assert "eval/responses" in rlalign.open(result, split="test").evaluate()


def test_what_cannot_be_opened(toy: rlalign.Result) -> None:
    with pytest.raises(ConfigError, match="nothing: there is no such run"):
        rlalign.open("nothing")
    with pytest.raises(ConfigError, match="a policy goes with a model"):
        rlalign.open(toy, policy="table")
    with pytest.raises(ConfigError, match="no component named `nosuch`"):
        rlalign.open(toy, use=["nosuch"])
    with pytest.raises(ConfigError, match=r"only `evaluate\.…=…` can be said here"):
        rlalign.open(toy, {"train.lr": 1})


def test_rewards_that_need_more_than_a_prompt_take_an_example(toy: rlalign.Result) -> None:
    def wanted(texts: list[str], examples: list[Example]) -> list[float]:
        return [float(text == e.meta["answer"]) for text, e in zip(texts, examples, strict=True)]

    opened = rlalign.open(toy, use=[wanted])
    rows = opened.score([Example("a", "1", meta={"answer": "2"})], [["2", "3"]])
    assert [row["scores"]["wanted"] for row in rows] == [1.0, 0.0]


# -- importing ------------------------------------------------------------------------------------------


def test_importing_and_reading_results_needs_no_torch(toy: rlalign.Result) -> None:
    code = (
        "import sys, rlalign\n"
        f"result = rlalign.Result({str(toy.folder)!r})\n"
        "assert len(result.metrics) == 3 and callable(rlalign.open) and callable(rlalign.run)\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "open" not in rlalign.__all__  # `from rlalign import *` leaves Python's own


def test_names_of_the_api_are_no_modules() -> None:
    import pkgutil

    modules = {module.name for module in pkgutil.iter_modules(rlalign.__path__)}
    assert not modules & {*rlalign.__all__, "open"}


def test_a_display_of_one_s_own() -> None:
    class Mine(NoDisplay):
        def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
            seen.append(i)

    seen: list[int] = []
    rlalign.run(PIPELINE, display=Mine())
    assert seen == [1, 2, 3]


def test_a_task_of_one_s_own() -> None:
    class Mine(Task):
        def examples(self, split: str) -> list[Example]:
            return [Example(str(i), str(i)) for i in range(5)]

    assert quiet({**PIPELINE, "task": Mine}).finished
