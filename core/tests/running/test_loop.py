"""A run stopped between any two iterations goes on as if it had not been; what outlives a phase, and what ends one.

Kills of real processes are in `tests/test_resume.py`; here runs stop and go on within the test, with
components that each depend on one thing a resumed run must know.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, Component, Example, Loss, Rollout, Run, Score, Task, hookimpl
from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records.weights import fingerprint
from rlalign.running import loop
from rlalign.testing import Logits, PolicyGradient, registry, session
from rlalign.testing.bench import Silence, logged
from rlalign.testing.logits import LogitsDecoder


class Stops(Silence):
    """Asks a run to stop after the iterations of the whole run that it is given."""

    def __init__(self, after: Collection[int]) -> None:
        super().__init__()
        self.after = after
        self.done = 0
        self.session: loop.Session | None = None

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self.done += 1
        if self.done in self.after and self.session is not None:
            self.session.stopping = True


def stop_and_go(
    folder: Path, pipeline: Mapping[str, Any], components: Mapping[str, type[Any]], after: Collection[int]
) -> loop.Session:
    """The last session of a run that was stopped after these iterations."""
    given = {"learns": PolicyGradient, **components}
    display = Stops(after)
    current = session(folder, pipeline, given, name="stopped", display=display)
    while True:
        display.session = current
        try:
            current.run()
            return current
        except loop.Interrupted:
            current = loop.resume(folder / "runs/stopped", registry(given), display=display)


def check(
    folder: Path,
    pipeline: Mapping[str, Any],
    components: Mapping[str, type[Any]] = {},
    after: Collection[int] = range(1, 1000),
) -> tuple[loop.Session, loop.Session]:
    """A run that stops as often as it is asked to ends like one that never does."""
    whole = session(folder, pipeline, {"learns": PolicyGradient, **components}, name="whole")
    whole.run()
    stopped = stop_and_go(folder, pipeline, components, after)
    assert logged(stopped.dir.path) == logged(whole.dir.path)
    assert {n: fingerprint(m) for n, m in stopped.models.items()} == {
        n: fingerprint(m) for n, m in whole.models.items()
    }
    return whole, stopped


def pipeline(*algorithm: Any, **changes: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 4}},
        "rewards": ["token-sum"],
        "algorithm": ["learns", *algorithm],
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 4, "prompts": 4, "minibatches": 2, "epochs": 2, "lr": 0.05},
        **changes,
    }


TRAIN = pipeline()["train"]


# -- stopped after every iteration ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        pipeline(evaluate={"every": 2, "examples": 3}),
        pipeline(responses={"mix": {"logged": 1, "sampled": 2}}),
        pipeline("best-of", train={**TRAIN, "refill": 2, "minibatches": 1}),
        pipeline(policy={"logits": {"hidden": 4, "dropout": 0.3}}, train={**TRAIN, "dropout": True}),
        pipeline(
            rewards=["token-sum", "normalise", {"kl": {"target": 0.1}}], train={**TRAIN, "dtype": "float64"}
        ),
        pipeline(rewards=["token-sum", "kl"], models={"reference": {"of": "iteration"}}),
        pipeline(rewards=["token-sum", "kl"], models={"reference": {"of": "start"}}, repeat=2),
        pipeline(
            rewards=["token-sum", "kl"],
            models={"reference": {"of": "start", "dtype": "bfloat16"}},
            repeat=2,
        ),
        pipeline(train={**TRAIN, "schedule": {"shape": "cosine", "warmup": 0.3}, "weight_decay": 0.1}),
        pipeline(checkpoints={"every": 3}, repeat=2),
    ],
    ids=[
        "evaluation",
        "mix",
        "refill",
        "dropout",
        "float64",
        "of iteration",
        "of start",
        "of start in half precision",
        "schedule",
        "every 3",
    ],
)
def test_stopped_after_every_iteration(tmp_path: Path, given: dict[str, Any]) -> None:
    check(tmp_path, given)


def test_models_that_are_equal_are_on_the_disk_once(tmp_path: Path) -> None:
    """The first phase's reference is the first policy, the second's what the first has learned; also after a stop."""
    phases = [{"name": "one", "models": {"reference": {"of": "phase"}}}, {"name": "two"}, {"name": "three"}]
    phases[2]["models"] = {"reference": {"of": "start"}}
    given = pipeline(rewards=["token-sum", "kl"], phases=phases, checkpoints={"every": 1, "last": 99})
    stopped = stop_and_go(tmp_path, given, {"learns": PolicyGradient}, [1, 5, 9])
    files = sorted(stopped.dir.checkpoints.glob("*/models/*.safetensors"))
    by_content: dict[bytes, set[int]] = {}
    for file in files:
        by_content.setdefault(file.read_bytes(), set()).add(file.stat().st_ino)
    assert len(files) == 12 * 2 + 8, (
        "policy and reference each time, and the first policy while it is not that"
    )
    assert all(len(inodes) == 1 for inodes in by_content.values())
    assert len(by_content) == 13, "the first policy, and one after each iteration"


# -- components ----------------------------------------------------------------------------------------


class Counts(Component):
    """Rewards by how many iterations it has seen; `setup` makes the state, as one that loads a file would."""

    def setup(self, run: Run) -> None:
        self.seen = 0

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(rollout.length_N * (self.seen % 3 - 1.0))

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_component_keeps_its_state_over_a_phase_without_it(tmp_path: Path) -> None:
    """It is set up when its first phase of the process begins, and only then has its state back."""
    phases = [
        {"name": "one", "rewards": ["counts"]},
        {"name": "two"},
        {"name": "three", "rewards": ["counts"]},
    ]
    whole, stopped = check(tmp_path, pipeline(phases=phases), {"counts": Counts})
    for done in (whole, stopped):
        assert [c.seen for c in done.builder.built.values() if isinstance(c, Counts)] == [8]


def test_a_component_that_is_not_set_up_yet_is_not_asked_for_its_state(tmp_path: Path) -> None:
    check(
        tmp_path,
        pipeline(phases=[{"name": "one"}, {"name": "two", "rewards": ["counts"]}]),
        {"counts": Counts},
    )


class Averages(Component):
    """Holds a lagging copy at a running mean of the policy, written straight into its weights."""

    models = {"mean": "lagging"}
    needs = ("mean.full_logprobs",)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.where(rollout.mask_NT, rollout.columns["mean.full_logprobs"], 0.0))

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        pairs = zip(run.models["mean"].parameters(), run.models["policy"].parameters(), strict=True)
        for mine, theirs in pairs:
            mine.data.lerp_(theirs.data, 0.3)


def test_a_copy_that_a_component_writes_to_is_saved_as_it_is(tmp_path: Path) -> None:
    """Its version says nothing of that: the file of an earlier checkpoint must not stand for it."""
    check(tmp_path, pipeline(rewards=["token-sum", "averages"]), {"averages": Averages})


class Spoils(Component):
    """Writes to the reference when the first checkpoint is written: in no hook, so that none is caught at it."""

    models = {"reference": "frozen"}

    def setup(self, run: Run) -> None:
        self.run = run

    def state_dict(self) -> dict[str, Any]:
        if self.run.iteration == 1:
            next(self.run.models["reference"].parameters()).data.add_(1)
        return {}


def test_a_frozen_model_is_what_it_was_before_the_run_was_stopped(tmp_path: Path) -> None:
    with pytest.raises(RLAlignError, match="the model `reference` changed"):
        stop_and_go(tmp_path, pipeline("spoils"), {"spoils": Spoils}, after=[1, 2])


# -- draws and columns -----------------------------------------------------------------------------------


class Weighs(Component):
    """Draws logged responses by weights that follow from `self.of(run)`."""

    responses = "logged"

    def of(self, run: Run) -> torch.Tensor:
        return run.column("total", lambda rollout, reward: reward.total_N.exp())

    @hookimpl
    def phase_started(self, run: Run) -> None:
        run.draw.weights(self.of(run))


class WeighsByPolicy(Weighs):
    """Not allowed: the policy learns, so a resumed run would weigh otherwise."""

    def of(self, run: Run) -> torch.Tensor:
        size = int(run.draw.row_starts()[-1])
        weight = next(run.models["policy"].parameters()).detach().abs().sum()
        return torch.arange(1.0, size + 1) + weight


def test_weighted_draws_go_on(tmp_path: Path) -> None:
    check(tmp_path, pipeline("weighs", rewards=[], generation={}), {"weighs": Weighs})


def test_weights_that_follow_from_what_was_learned_are_refused(tmp_path: Path) -> None:
    given = pipeline("weighs", rewards=[], generation={})
    with pytest.raises(CheckpointError, match="the draw's weights are not what they were"):
        stop_and_go(tmp_path, given, {"weighs": WeighsByPolicy}, after=[1])


class Column(Component):
    """Remembers what its column says."""

    responses = "logged"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.values: list[torch.Tensor] = []

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.values.append(run.column("score", lambda rollout, reward: reward.total_N))


def test_a_column_over_an_earlier_phases_rows_is_of_the_latest_pass(tmp_path: Path) -> None:
    phases = [
        {"name": "grow", "algorithm": "collect"},
        {
            "name": "improve",
            "task": {"from": "grow"},
            "rewards": ["logged"],
            "algorithm": ["learns", "column"],
        },
    ]
    done = session(tmp_path, pipeline(phases=phases, repeat=3), {"learns": PolicyGradient, "column": Column})
    done.run()
    (column,) = (c for c in done.builder.built.values() if isinstance(c, Column))
    for repeat, values in enumerate(column.values):
        rows = logged(done.dir.path)[f"rows/grow-{repeat + 1}.jsonl"]
        expected = torch.tensor([score for row in rows for score in row["scores"]], dtype=torch.float64)
        assert torch.equal(values, expected), f"pass {repeat + 1}"


def test_fingerprints_belong_to_data_not_to_addresses(tmp_path: Path) -> None:
    started = session(tmp_path, pipeline(), {"learns": PolicyGradient})
    wiring, seen = started.plans[0], set()
    for i in range(20):  # each list may take the place in memory of the one before
        seen.add(started.data.fingerprint(wiring, [Example(str(i), "")]))
    assert len(seen) == 20
    train = started.data.split(wiring, "train")
    assert started.data.fingerprint(wiring, train) == started.data.fingerprint(wiring, list(train))


class Counted(Task):
    """A task that says by itself what its data is."""

    asked = 0

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), str(i)) for i in range(4)]

    def fingerprint(self, split: str) -> str:
        Counted.asked += 1
        return f"version 3 of {split}"


def test_a_task_may_say_what_its_data_is(tmp_path: Path) -> None:
    started = session(tmp_path, pipeline(task="counted"), {"learns": PolicyGradient, "counted": Counted})
    assert json.loads((started.dir.path / "lock.json").read_text())["data"] == {
        "counted/train": "version 3 of train"
    }
    before = Counted.asked
    started.data.fingerprint(started.plans[0], started.data.split(started.plans[0], "train"))
    assert Counted.asked == before


def test_the_examples_that_are_evaluated_are_in_the_lock(tmp_path: Path) -> None:
    def locked(name: str, **evaluate: Any) -> dict[str, str]:
        said = pipeline(evaluate=evaluate)
        started = session(tmp_path / name, said, {"learns": PolicyGradient})
        found: dict[str, str] = json.loads((started.dir.path / "lock.json").read_text())["data"]
        return found

    two, three = locked("two", examples=2), locked("three", examples=3)
    (task,) = {name.partition("/")[0] for name in two}
    assert set(two) == {f"{task}/train", f"{task}/val[:2]"}
    assert two[f"{task}/val[:2]"] != three[f"{task}/val[:3]"]


# -- budgets ---------------------------------------------------------------------------------------------


class Memory(Component):
    """A machine that holds no more than 40 padded tokens at a time."""

    trains = ("policy",)
    unit = "response"

    @hookimpl
    def loss(self, batch: Batch) -> Loss | None:
        if batch.rollout.mask_NT.numel() > 20:
            raise torch.OutOfMemoryError
        return None


def test_a_budget_that_was_found_outlives_its_phase(tmp_path: Path) -> None:
    """Also where the run was stopped between phases: other budgets are other bits."""
    phases = [{"name": "one", "algorithm": ["learns", "memory"]}, {"name": "two"}]
    whole, stopped = check(tmp_path, pipeline(phases=phases), {"memory": Memory}, after=[4])
    assert stopped.budget == whole.budget < 16384


class Crowded(Logits):
    """Has memory for no more than two prompts' responses in the second iteration."""

    def decoder(self, inputs: Sequence[Tensor], k: int) -> LogitsDecoder:
        if self.version == 4 and len(inputs) > 2:
            raise torch.OutOfMemoryError
        return super().decoder(inputs, k)


def test_how_many_responses_fit_is_remembered(tmp_path: Path) -> None:
    """A policy may round otherwise beside fewer responses."""
    given = pipeline(policy={"crowded": {"hidden": 4}})
    whole, stopped = check(tmp_path, given, {"crowded": Crowded}, after=[3])
    assert stopped.models.policy.at_once == whole.models.policy.at_once == 6


# -- how phases and runs end -------------------------------------------------------------------------------


class Enough(Component):
    """Ends its phase after the second iteration."""

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if run.iteration == 2:
            run.finish_phase("enough was learned")


def test_a_phase_that_a_component_ends_is_over_in_a_resumed_run_too(tmp_path: Path) -> None:
    given = pipeline(phases=[{"name": "one", "algorithm": ["learns", "enough"]}, {"name": "two"}])
    whole, _ = check(tmp_path, given, {"enough": Enough})
    lines = logged(whole.dir.path)["metrics.jsonl"]
    assert [(line["phase"], line["iteration"]) for line in lines] == [
        *(("one", i) for i in (1, 2)),
        *(("two", i) for i in (1, 2, 3, 4)),
    ]


def test_evaluation_touches_nothing_that_is_learned(tmp_path: Path) -> None:
    weights = []
    for i, evaluate in enumerate(({}, {"evaluate": {"every": 1, "examples": 5}})):
        done = session(tmp_path, pipeline(**evaluate), {"learns": PolicyGradient}, name=f"run-{i}")
        done.run()
        weights.append(fingerprint(done.models.policy))
    assert weights[0] == weights[1]


def test_a_finished_run_says_so_and_gives_its_last_figures(tmp_path: Path) -> None:
    given = pipeline(evaluate={"examples": 3})
    first = session(tmp_path, given, {"learns": PolicyGradient}, name="run")
    finished = first.run()
    display = Silence()
    again = loop.resume(tmp_path / "runs/run", registry({"learns": PolicyGradient}), display=display)
    assert again.run() == finished
    assert display.notes == [
        f"{tmp_path / 'runs/run'}: this run is finished; its model is in {tmp_path / 'runs/run/model'}"
    ]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    class Broken(Task):
        def examples(self, split: str) -> Sequence[Example]:
            return []

    with pytest.raises(RLAlignError, match="has no examples in `train`"):
        session(tmp_path, pipeline(task="broken"), {"learns": PolicyGradient, "broken": Broken})
    assert not (tmp_path / "runs").exists()


def test_the_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    display = Stops([2])
    current = session(tmp_path, pipeline(), {"learns": PolicyGradient}, name="run", display=display)
    display.session = current
    with pytest.raises(
        loop.Interrupted, match=r"after iteration 2 of learns, and saved; .*--resume .*runs/run`"
    ) as e:
        current.run()
    assert e.value.exit_code == 130
