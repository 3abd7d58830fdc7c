"""A phase: its logs, bad rewards, schedules and progress, how it ends, what it leaves behind."""

from __future__ import annotations

import gc
import json
import math
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options, Schedule
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.learning.optimiser import factor
from rlalign.records.weights import fingerprint
from rlalign.testing import Bench, PolicyGradient, run, session
from rlalign.testing.bench import stopped_and_resumed

PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 40, "logged": [1]}},
    "policy": {"logits": {}},
    "rewards": ["token-sum"],
    "algorithm": "once",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 2, "prompts": 4, "lr": 0.01},
}


class Broken(Component):
    """NaN (or an infinity) for the examples named, in the iterations named."""

    class Config(Options):
        groups: int = Field(1, description="groups of an iteration that are bad")
        value: str = Field("nan", description="what they get")
        steps: bool = Field(False, description="a score per step, bad at the first")

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        bad_N = rollout.group_N < self.config.groups
        bad = float(self.config.value)
        if not self.config.steps:
            return Score(torch.where(bad_N, bad, 1.0))
        value_NT = torch.full(rollout.mask_NT.shape, math.nan)  # padding is never read
        value_NT[rollout.mask_NT] = 1.0
        value_NT[bad_N, 0] = bad
        return Score(value_NT)


EXTRA: dict[str, Any] = {"once": PolicyGradient, "broken": Broken}


def rows(done: Any, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.dir.path / name).read_text().splitlines()]


def with_train(**train: Any) -> dict[str, Any]:
    return {**PIPELINE, "train": {**PIPELINE["train"], **train}}


# -- logs -------------------------------------------------------------------------------------------


def test_every_iteration_is_a_line_of_metrics(tmp_path: Path) -> None:
    pipeline = with_train(epochs=2, minibatches=2)
    pipeline["rewards"] = [{"token-sum": None, "weight": 2}, "kl"]
    _, done = run(tmp_path, pipeline, EXTRA)
    found = rows(done)
    assert [(r["phase"], r["repeat"], r["iteration"], r["step"]) for r in found] == [
        ("once", 0, 1, 4),
        ("once", 0, 2, 8),
    ]
    expected = {
        "responses", "tokens", "length", "finished", "groups", "reward/total", "reward/token-sum", "reward/kl",
        "kl/k1", "kl/k2", "kl/k3", "kl/per_response", "kl/coef", "loss", "once/loss", "lr", "grad_norm",
        "optimiser_steps", "empty_steps", "time/iteration", "time/rollout", "time/score", "time/reward",
        "time/advantage", "time/update", "time/reward/token-sum", "time/reward/kl", "groups/tied",
    }  # fmt: skip
    for row in found:
        assert expected <= set(row)
        assert row["responses"] == 8.0 and row["groups"] == 4.0 and row["optimiser_steps"] == 4.0
        assert row["length"] == pytest.approx(row["tokens"] / 8)
        assert row["reward/total"] == pytest.approx(2 * row["reward/token-sum"] + row["reward/kl"], rel=1e-5)


class Gives(Component):
    """Rewards of two responses each to four prompts, by iteration."""

    class Config(Options):
        """Options of `gives`."""

        rows: list[list[float]] = Field([], description="of each iteration, what the eight responses get")

    config: Config

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        return Score(torch.tensor(self.config.rows[run.iteration]))


SAME = [1.0, 1.0, 2.0, 2.0, 0.1, 0.1, -3.0, -3.0]


@pytest.mark.parametrize(
    "given, shares, notes",
    [
        ([SAME] * 5, [1.0] * 5, 1),
        ([SAME, SAME, [*SAME[:7], -3.1], SAME, SAME], [1.0, 1.0, 0.75, 1.0, 1.0], 0),
        ([[0.0, 1.0] * 4] * 5, [0.0] * 5, 0),
        ([[1.0, 1.00001] * 4, [1.0, 1.00000006] * 4, *[SAME] * 3], [0.0, 1.0, 1.0, 1.0, 1.0], 1),
    ],
)
@pytest.mark.parametrize("compares", [True, False])
def test_groups_without_a_difference_are_counted_and_told_once(
    given: list[list[float]], shares: list[float], notes: int, compares: bool, tmp_path: Path
) -> None:
    class Compares(PolicyGradient):
        min_samples = 2 if compares else 1

    pipeline = {**with_train(iterations=5), "rewards": [{"gives": {"rows": given}}]}
    _, done = run(tmp_path, pipeline, {"once": Compares, "gives": Gives})
    assert [row["groups/tied"] for row in rows(done)] == shares
    told = [note for note in done.display.notes if "earned the same reward" in note]  # type: ignore[attr-defined]
    assert len(told) == (notes if compares else 0)


class Slow(Component):
    """Takes most of an iteration."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        time.sleep(0.2)
        return Score(torch.ones(len(rollout)))


class SlowWithColumns(Slow):
    """Cannot be computed elsewhere."""

    needs = ("full_logprobs",)


@pytest.mark.parametrize(
    "reward, device, told", [(Slow, "cuda", 1), (Slow, "cpu", 0), (SlowWithColumns, "cuda", 0)]
)
def test_a_reward_that_a_gpu_waits_for_is_told_once(
    reward: type[Component], device: str, told: int, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, {**with_train(iterations=3), "rewards": ["slow"]}, {**EXTRA, "slow": reward})
    bench.session.device = torch.device(device)  # what is computed stays where it was
    for _ in range(3):
        bench.iterate()
    notes = [note for note in bench.session.display.notes if "nothing else went on" in note]  # type: ignore[attr-defined]
    assert len(notes) == told and all(note.startswith("`slow` took ") for note in notes)


def test_groups_of_one_have_nothing_to_tie(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "generation": {**PIPELINE["generation"], "samples": 1}}
    _, done = run(tmp_path, pipeline, EXTRA)
    assert not any("groups/tied" in row for row in rows(done))


def test_evaluations_are_lines_of_their_own_with_samples(tmp_path: Path) -> None:
    evaluate = {"every": 1, "examples": 3, "use": ["token-sum", "length"], "generation": {"samples": 2}}
    finished, done = run(tmp_path, {**PIPELINE, "evaluate": evaluate}, EXTRA)
    found = rows(done)
    assert [(r["iteration"], any(k.startswith("eval/") for k in r)) for r in found] == [
        (0, True), (1, False), (1, True), (2, False), (2, True),
    ]  # fmt: skip
    first = found[0]
    assert first["eval/responses"] == 6.0 and {"eval/token-sum", "eval/total", "eval/finished"} <= set(first)
    samples = rows(done, "samples.jsonl")
    assert [(s["iteration"], s["prompt"]) for s in samples[:6]] == [(0, p) for p in "001122"]
    assert len(samples) == 18
    for sample in samples:
        words = sample["response"].split()
        assert sample["scores"] == {
            "token-sum": pytest.approx(sum(map(float, words)) / 10),
            "length": len(words),
        }
    assert finished.metrics == {k: v for k, v in found[-1].items() if k.startswith("eval/")}


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboardX.proto import event_pb2

    _, done = run(tmp_path, PIPELINE, EXTRA)
    (path,) = (done.dir.path / "events").iterdir()
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
        at += 12 + size + 4
    assert events[0].file_version == "brain.Event:2"
    curves = [e for e in events[1:] if all(v.HasField("simple_value") for v in e.summary.value)]
    for event, row in zip(curves, rows(done), strict=True):
        scalars = {v.tag: v.simple_value for v in event.summary.value}
        assert event.step == row["iteration"]
        assert scalars["reward/total"] == pytest.approx(row["reward/total"], rel=1e-6)
        assert set(scalars) == {k for k, v in row.items() if isinstance(v, float)}


def test_tensorboard_gets_the_pipeline_and_samples(tmp_path: Path) -> None:
    """Once, however often the run goes on, and the same as of a run that never stopped."""

    def told(run: Path) -> list[tuple[int, str, str]]:
        found = []
        for path in sorted((run / "events").iterdir()):
            data, at = path.read_bytes(), 0
            while at < len(data):
                size = int.from_bytes(data[at : at + 8], "little")
                event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
                at += 12 + size + 4
                for value in event.summary.value:
                    if not value.HasField("simple_value"):
                        text = b"".join(value.tensor.string_val).decode()
                        found.append((event.step, value.tag, text))
                    plugin = value.metadata.plugin_data
                    if value.tag.endswith("start_info"):
                        info = HParamsPluginData.FromString(plugin.content).session_start_info
                        said = {name: v.number_value or v.string_value for name, v in info.hparams.items()}
                        assert said["train.iterations"] == 2 and said["rewards"] == '["token-sum", "length"]'
                        assert "folder" not in said and not any("observers" in name for name in said)
                    if value.tag.endswith("end_info"):
                        ended = HParamsPluginData.FromString(plugin.content).session_end_info
                        assert ended.status == STATUS_SUCCESS
        return found

    from tensorboardX.proto import event_pb2
    from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    evaluate = {"every": 1, "split": "val", "examples": 3}
    pipeline = {**PIPELINE, "rewards": ["token-sum", "length"], "evaluate": evaluate}
    _, done = run(tmp_path, pipeline, EXTRA, name="whole")
    again = stopped_and_resumed(tmp_path, pipeline, EXTRA)
    found = told(done.dir.path)
    assert [(step, tag) for step, tag, _ in found] == [
        *((0, "pipeline"), (0, "_hparams_/session_start_info")),
        *((step, "samples") for step in (0, 1, 2)),
        (0, "_hparams_/session_end_info"),
    ]
    assert "    rewards:\n    - token-sum" in found[0][2]
    (first, *_) = rows(done, "samples.jsonl")
    assert f"    {first['prompt']}\n    → {first['response']}\n" in found[2][2]
    assert len(list((again.dir.path / "events").iterdir())) == 2 and told(again.dir.path) == found


def test_a_run_leaves_its_model_and_nothing_half_written(tmp_path: Path) -> None:
    _, done = run(tmp_path, PIPELINE, EXTRA)
    names = {p.name for p in done.dir.path.iterdir()}
    assert {"pipeline.yaml", "lock.json", "metrics.jsonl", "events", "checkpoints", "model"} <= names
    assert {p.name for p in done.dir.model.iterdir()} >= {"README.md", "model.safetensors", "config.json"}
    assert not [p for p in done.dir.path.rglob("*") if p.name.startswith(".tmp")]


# -- bad rewards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("steps", [False, True])
def test_a_bad_reward_stops_the_run_and_keeps_the_batch(value: str, steps: bool, tmp_path: Path) -> None:
    rewards = ["token-sum", {"broken": {"value": value, "steps": steps}}]
    with pytest.raises(ComponentError, match="`broken` is not finite for 2 of 8 responses"):
        run(tmp_path, {**PIPELINE, "rewards": rewards}, EXTRA, name="r")
    kept = json.loads((tmp_path / "runs/r/bad-batch/texts.json").read_text())
    assert len(kept) == 8 and set(kept[0]) == {"example", "prompt", "response"}


def test_padding_of_a_score_per_step_is_never_read(tmp_path: Path) -> None:
    finished, _ = run(tmp_path, {**PIPELINE, "rewards": [{"broken": {"groups": 0, "steps": True}}]}, EXTRA)
    assert math.isfinite(finished.metrics["reward/total"]) and math.isfinite(finished.metrics["loss"])


def test_drop_leaves_out_whole_groups_and_records_them(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Look(PolicyGradient):
        @hookimpl
        def advantage(self, rollout, reward):
            seen.append((len(rollout.examples), len(rollout)))
            assert bool(reward.total_N.isfinite().all()) and len(reward.total_N) == len(rollout)

    pipeline = with_train(prompts=20, on_bad_reward="drop")
    pipeline |= {"rewards": ["broken"], "algorithm": "look"}
    _, done = run(tmp_path, pipeline, {**EXTRA, "look": Look})
    assert seen == [(19, 38), (19, 38)]
    dropped = rows(done, "dropped.jsonl")
    assert [(d["phase"], d["iteration"], d["rewards"], len(d["examples"])) for d in dropped] == [
        ("look", 1, ["broken"], 1),
        ("look", 2, ["broken"], 1),
    ]
    assert [r["groups"] for r in rows(done)] == [19.0, 19.0]


def test_drop_forgives_five_per_cent_and_no_more(tmp_path: Path) -> None:
    pipeline = {**with_train(prompts=20, on_bad_reward="drop"), "rewards": [{"broken": {"groups": 2}}]}
    with pytest.raises(ComponentError, match=r"`broken` is bad for 10% .* more than the 5%.*not finite"):
        run(tmp_path, pipeline, EXTRA, name="r")
    (line,) = (tmp_path / "runs/r/dropped.jsonl").read_text().splitlines()
    assert len(json.loads(line)["examples"]) == 2


# -- progress and schedules -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, at",
    [
        ({}, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ({"shape": "linear"}, {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ({"shape": "linear", "floor": 0.2}, {0.0: 1.0, 0.5: 0.6, 1.0: 0.2}),
        ({"shape": "cosine"}, {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        ({"shape": "linear", "warmup": 0.5}, {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        ({"warmup": 0.1}, {0.05: 0.5, 0.1: 1.0, 0.9: 1.0}),
    ],
)
def test_schedules_by_hand(schedule: dict[str, Any], at: dict[float, float]) -> None:
    for progress, expected in at.items():
        assert factor(Schedule(**schedule), progress) == pytest.approx(expected)


def test_learning_rates_follow_the_progress_of_their_phase(tmp_path: Path) -> None:
    train = {"iterations": 4, "schedule": {"shape": "linear"}, "lr": 0.1}
    pipeline = {**with_train(**train), "phases": [{"name": "a"}, {"name": "b", "train": {"epochs": 2}}]}
    _, done = run(tmp_path, pipeline, EXTRA)
    lr = {(r["phase"], r["iteration"]): r["lr"] for r in rows(done)}
    assert [lr["a", i] for i in (1, 2, 3, 4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    # Two optimiser steps an iteration, half of one apart; the line holds their mean.
    assert [lr["b", i] for i in (1, 2, 3, 4)] == pytest.approx([0.09375, 0.06875, 0.04375, 0.01875])


# -- ending -----------------------------------------------------------------------------------------


def test_finish_phase_ends_this_phase_only(tmp_path: Path) -> None:
    class Enough(Component):
        @hookimpl
        def iteration_done(self, run: Run) -> None:
            if run.phase == "a" and run.iteration == 2:
                run.finish_phase("the target is reached")

    pipeline = {**with_train(iterations=4), "algorithm": ["once", "enough"], "evaluate": {"examples": 2}}
    pipeline["phases"] = [{"name": "a"}, {"name": "b"}]
    _, done = run(tmp_path, pipeline, {**EXTRA, "enough": Enough})
    found = [(r["phase"], r["iteration"], "eval/total" in r) for r in rows(done)]
    assert found == [
        ("a", 0, True), ("a", 1, False), ("a", 2, False), ("a", 2, True),
        ("b", 0, True), *[("b", i, False) for i in (1, 2, 3, 4)], ("b", 4, True),
    ]  # fmt: skip
    assert "a ended: the target is reached" in done.display.notes


def test_finish_phase_before_the_first_draw(tmp_path: Path) -> None:
    class Never(Component):
        @hookimpl
        def phase_started(self, run: Run) -> None:
            run.finish_phase("nothing to do")

    _, done = run(tmp_path, {**PIPELINE, "algorithm": ["once", "never"]}, {**EXTRA, "never": Never})
    assert done.step == 0 and not (done.dir.path / "metrics.jsonl").exists()
    assert done.dir.model.is_dir()


# -- collecting -------------------------------------------------------------------------------------


class Look(PolicyGradient):
    """Remembers (prompt, response, score) of every row it learns from."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.met: list[list[tuple[str, str, float]]] = []

    @hookimpl
    def advantage(self, rollout, reward):
        prompts = [rollout.examples[g].prompt for g in rollout.group_N.tolist()]
        self.met.append(list(zip(prompts, rollout.texts, reward.parts["logged"].tolist(), strict=True)))


def collecting(*phases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**PIPELINE, "phases": [{"name": "grow", "algorithm": "collect"}, *phases], **changes}


def improving(prompts: int, **task: Any) -> dict[str, Any]:
    return {
        "name": "improve",
        "task": {"from": "grow", **task},
        "algorithm": "look",
        "responses": "logged",
        "rewards": None,
        "train": {"iterations": None, "passes": 1, "prompts": prompts},
    }


def test_each_pass_reads_what_it_collected_itself_and_the_original_data(tmp_path: Path) -> None:
    """All of both, once; and a phase that reads rows samples nothing."""
    task = {"numbers": {"size": 5, "logged": [2]}}
    pipeline = collecting(improving(13, **{"with": ["original"]}), task=task, repeat=2)
    _, done = run(tmp_path, pipeline, {**EXTRA, "look": Look})
    (look,) = [c for c in done.builder.built.values() if isinstance(c, Look)]
    original = [
        (e.prompt, text, float(torch.tensor(score)))
        for e in done.data.split(done.plans[0], "train")
        for text, score in zip(e.responses, e.scores, strict=True)
    ]
    assert len(look.met) == 2
    for i, met in enumerate(look.met):
        written = rows(done, f"rows/grow-{i + 1}.jsonl")
        assert len(written) == 8 and all(len(r["responses"]) == len(r["scores"]) == 2 for r in written)
        collected = [
            (r["prompt"], text, float(torch.tensor(score)))
            for r in written
            for text, score in zip(r["responses"], r["scores"], strict=True)
        ]
        assert Counter(met) == Counter(collected + original)
    assert set(look.met[0]) != set(look.met[1])


def test_a_phase_that_only_collects_changes_nothing(tmp_path: Path) -> None:
    started = session(tmp_path, collecting(), EXTRA)
    before = fingerprint(started.models.policy)
    started.run()
    assert started.step == 0 and fingerprint(started.models.policy) == before
    assert all(row.get("loss") is None for row in rows(started))


def test_collected_rows_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """8 bytes an example stay in memory."""
    count = 2000
    pipeline = collecting(improving(4, **{"with": ["original"]}))
    pipeline["phases"][0]["train"] = {"iterations": 5, "prompts": count // 5}
    pipeline["phases"][1]["train"] = {"iterations": 1, "prompts": 4}
    _, done = run(tmp_path, pipeline, {**EXTRA, "look": Look})
    done.data.training(done.plans[1], 0)  # whatever is imported at first use
    tracemalloc.start()
    try:
        data = done.data.training(done.plans[1], 0)
        assert len(data) == count + 40
        assert sum(len(e.responses) for e in data) == 2 * count + 40
        gc.collect()  # Python keeps thousands of freed tuples until then
        assert tracemalloc.get_traced_memory()[0] < 20 * count
    finally:
        tracemalloc.stop()
    assert (data[0].prompt, data[-1].id) == (rows(done, "rows/grow-1.jsonl")[0]["prompt"], "39")
