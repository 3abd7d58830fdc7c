"""A run that goes on longer or otherwise: exactly where it can, with a note where not, refused where it does not fit.

Kills at every write of a change are at the end; those of real processes in `tests/test_resume.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlalign import Component, Rollout, Run, Score, hookimpl
from rlalign.errors import ConfigError, RLAlignError
from rlalign.records import checkpoint, logs, rewriting, rundir
from rlalign.records.environment import merged
from rlalign.records.weights import fingerprint
from rlalign.running import loop
from rlalign.testing import PolicyGradient, registry, session
from rlalign.testing.bench import Silence, logged

TRAIN: dict[str, Any] = {"iterations": 4, "prompts": 4, "minibatches": 2, "lr": 0.05}
ONE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 4}},
    "rewards": ["token-sum", {"kl": {"coef": 0.1}}],
    "algorithm": "learns",
    "generation": {"samples": 3, "max_new_tokens": 4},
    "train": TRAIN,
    "evaluate": {"every": 2, "examples": 3},
}
TWO: dict[str, Any] = {
    **{key: value for key, value in ONE.items() if key != "train"},
    "phases": [
        {"name": "first", "train": {**TRAIN, "iterations": 2}},
        {"name": "second", "train": {**TRAIN, "iterations": 3}},
    ],
}


class Asks(Component):
    """Rewards by how far the phase is."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        return Score(rollout.length_N * (0.5 - run.progress))


class Hears(Component):
    """Rewards by how often it was evaluated."""

    def setup(self, run: Run) -> None:
        self.heard = 0

    @hookimpl
    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.heard += 1

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(rollout.length_N * (self.heard - 2.0))

    def state_dict(self) -> dict[str, Any]:
        return {"heard": self.heard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.heard = state["heard"]


class Ends(Component):
    """Ends its phase after two iterations."""

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if run.iteration == 1:
            run.finish_phase("enough")


GIVEN: dict[str, type[Any]] = {"learns": PolicyGradient, "asks": Asks, "hears": Hears, "ends": Ends}


class Stops(Silence):
    """Stops a run after so many iterations of this process."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after
        self.session: loop.Session | None = None

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left == 0 and self.session is not None:
            self.session.stopping = True


def begin(folder: Path, pipeline: Mapping[str, Any], after: int | None, name: str = "run") -> Path:
    """A run that is stopped after so many iterations, or finished."""
    display = Stops(after or 0)
    display.session = session(folder, pipeline, GIVEN, name=name, display=display)
    if after is None:
        display.session.run()
    else:
        with pytest.raises(loop.Interrupted):
            display.session.run()
    return folder / "runs" / name


def go_on(run: Path, *overrides: str, **options: Any) -> tuple[loop.Session, list[str]]:
    """The run gone on to its end, and what it noted."""
    display = Silence()
    going = loop.resume(run, registry(GIVEN), overrides=overrides, display=display, **options)
    going.run()
    return going, display.notes


def outcome(session: loop.Session) -> tuple[Any, ...]:
    """All that two runs are compared by."""
    path = session.dir.path
    last = checkpoint.read(path / "checkpoints", checkpoint.find(path / "checkpoints")[-1])
    loop = {
        key: value for key, value in last.loop.items() if key not in ("lock", "last", "measured", "spread")
    }
    optimiser = {n: {k: v.tolist() for k, v in held.items()} for n, held in last.optimiser.items()}
    known = {name: fingerprint(model) for name, model in session.models.items()}
    return known, (path / "model/model.safetensors").read_bytes(), optimiser, loop, last.components


def changes(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "lock.json").read_text()).get("changes", [])
    return found


def with_value(pipeline: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        **pipeline,
        **{k: {**pipeline[k], **v} if isinstance(v, dict) else v for k, v in sections.items()},
    }


# -- exact -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 3, None], ids=["1", "2", "3", "finished"])
def test_extended_it_is_a_run_that_was_begun_longer(tmp_path: Path, after: int | None) -> None:
    run = begin(tmp_path, ONE, after)
    longer = session(tmp_path, with_value(ONE, train={"iterations": 7}), GIVEN, name="longer")
    longer.run()
    going, notes = go_on(run, extend=3)
    assert outcome(going) == outcome(longer)
    assert logged(run) == logged(longer.dir.path)  # an evaluation at the old end too, as every second has one
    assert notes == [] and not (run / "inexact.jsonl").exists()
    (change,) = changes(run)
    assert change["values"] == [{"key": "train.iterations", "from": 4, "to": 7}]
    assert (change["checkpoint"], change["inexact"]) == (after or 4, [])


def test_extended_twice_and_stopped_in_between(tmp_path: Path) -> None:
    run = begin(tmp_path, ONE, None)
    longer = session(tmp_path, with_value(ONE, train={"iterations": 8}), GIVEN, name="longer")
    longer.run()
    display = Stops(1)
    display.session = loop.resume(run, registry(GIVEN), extend=2, display=display)
    with pytest.raises(loop.Interrupted):
        display.session.run()
    assert (run / "model").is_dir()  # the old one
    go_on(run)
    going, notes = go_on(run, extend=2)
    assert outcome(going) == outcome(longer) and notes == []
    assert [change["checkpoint"] for change in changes(run)] == [4, 6]
    before = (run / "lock.json").read_bytes()
    assert "is finished" in go_on(run)[1][0]
    assert (run / "lock.json").read_bytes() == before


@pytest.mark.parametrize(
    "pipeline, after, said, begun",
    [
        (ONE, 3, ["checkpoints.last=5", "checkpoints.every=1"], ONE),
        (ONE, 1, ["evaluate.every=3"], with_value(ONE, evaluate={"every": 3})),
        (ONE, 3, ["train.iterations=5"], with_value(ONE, train={"iterations": 5})),
        (ONE, 2, ["train.iterations=3"], with_value(ONE, train={"iterations": 3})),
        (ONE, None, ["repeat=2"], {**ONE, "repeat": 2}),
        (
            TWO,
            1,
            ["phases.second.train.lr=0.2", "phases.second.rewards=[token-sum, kl: {coef: 0.3}]"],
            {
                **TWO,
                "phases": [
                    TWO["phases"][0],
                    {
                        "name": "second",
                        "train": {**TRAIN, "iterations": 3, "lr": 0.2},
                        "rewards": ["token-sum", {"kl": {"coef": 0.3}}],
                    },
                ],
            },
        ),
    ],
    ids=["checkpoints", "evaluate.every", "longer", "shorter", "repeat", "a phase to come"],
)
def test_a_change_that_is_exact_is_one_that_was_there_from_the_beginning(
    tmp_path: Path, pipeline: dict[str, Any], after: int | None, said: list[str], begun: dict[str, Any]
) -> None:
    run = begin(tmp_path, pipeline, after)
    other = session(tmp_path, begun, GIVEN, name="other")
    other.run()
    going, notes = go_on(run, *said)
    assert outcome(going) == outcome(other) and logged(run) == logged(other.dir.path)
    assert notes == [] and changes(run)[0]["inexact"] == []


def test_an_extended_run_in_its_second_phase(tmp_path: Path) -> None:
    run = begin(tmp_path, TWO, None)
    longer = {**TWO, "phases": [TWO["phases"][0], {"name": "second", "train": {**TRAIN, "iterations": 5}}]}
    other = session(tmp_path, longer, GIVEN, name="other")
    other.run()
    going, notes = go_on(run, extend=2)
    assert outcome(going) == outcome(other) and notes == []
    assert changes(run)[0]["values"][0]["key"] == "phases[1].train.iterations"


# -- inexact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pipeline, after, said, why",
    [
        (ONE, 2, ["train.lr=0.2"], "train.lr changes after 2 iterations of `learns`"),
        (ONE, 1, ["rewards.kl.coef=0.3"], "rewards changes after 1 iteration of `learns`"),
        (ONE, 2, ["evaluate.every=3"], "evaluate.every changes after 2 iterations of `learns`"),
        (ONE, 2, ["evaluate.examples=2"], "evaluate.examples changes after 2 iterations of `learns`"),
        (
            with_value(ONE, train={"schedule": {"shape": "linear"}}),
            2,
            ["train.iterations=6"],
            "train.iterations changes after 2 iterations of `learns`, and the learning rate depends on how long it is",
        ),
        (
            with_value(ONE, rewards=["asks"]),
            2,
            ["train.iterations=6"],
            "train.iterations changes after 2 iterations of `learns`, and a component has asked how far it is",
        ),
        (
            with_value(ONE, rewards=["hears"], train={"iterations": 3}),
            None,
            ["train.iterations=6"],
            "train.iterations changes after 3 iterations of `learns`, and a component has heard of the evaluation at "
            "its end",
        ),
        (TWO, 3, ["rewards=[token-sum, kl: {coef: 0.3}]"], "phases.first.rewards changes after 1 iteration"),
        (
            {**ONE, "repeat": 2},
            5,
            ["train.iterations=6"],
            "train.iterations changes after 1 iteration of `learns`",
        ),
    ],
    ids=[
        "lr",
        "reward",
        "evaluate.every",
        "examples",
        "schedule",
        "progress",
        "evaluated",
        "phases",
        "repeat",
    ],
)
def test_a_change_that_is_not_is_said_and_noted(
    tmp_path: Path, pipeline: dict[str, Any], after: int | None, said: list[str], why: str
) -> None:
    run = begin(tmp_path, pipeline, after)
    at = checkpoint.find(run / "checkpoints")[-1]
    _, notes = go_on(run, *said)
    (note,) = notes
    assert why in note and note.startswith("inexact from here on")
    (row,) = logs.read(run / "inexact.jsonl")
    assert (row["checkpoint"], row["changed"], row["lost"]) == (at, [], [])
    assert any(why in line for line in row["said"]) and changes(run)[0]["inexact"] == row["said"]


def test_a_changed_run_goes_on_exactly_from_there(tmp_path: Path) -> None:
    """Stopped after every iteration, and not: both were changed at the same one."""
    ends = []
    for name in ("whole", "stopped"):
        run = begin(tmp_path, ONE, 1, name)
        display = Stops(1 if name == "stopped" else 0)
        going = loop.resume(run, registry(GIVEN), overrides=["train.lr=0.3"], display=display)
        while True:
            display.session = going
            try:
                going.run()
                break
            except loop.Interrupted:
                display.left = 1
                going = loop.resume(run, registry(GIVEN), display=display)
        ends.append((outcome(going), logged(run)))
    assert ends[0] == ends[1]


def test_a_change_changes_something(tmp_path: Path) -> None:
    """A coefficient that a component keeps in its state, too."""
    for said in ("train.lr=0.3", "rewards.kl.coef=0.9"):
        plain, changed = (begin(tmp_path, ONE, 2, f"{name} {said}".replace("=", "-")) for name in "ab")
        assert outcome(go_on(plain)[0])[0] != outcome(go_on(changed, said)[0])[0]


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pipeline, after, said, why",
    [
        (ONE, 1, ["policy.logits.hidden=5"], "policy: its checkpoints hold the weights of the one that it has"),
        (ONE, 1, ["seed=3"], "seed: every number so far follows from it"),
        (TWO, 1, ["phases.second.name=third"], "phases: their names and their order"),
        (ONE, 1, ["train.dtype=float64"], "train.dtype: the weights of this run are held in another precision"),
        ({**ONE, "repeat": 2}, 5, ["repeat=1"], "repeat: pass 2 over the phases has begun; say at least as many"),
        (ONE, 1, ["rewards=[token-sum]"], "models: `learns` has begun with those that it has"),
        (ONE, 1, ["models={reference: {of: start}}"], "models: `learns` has begun with those that it has"),
        (ONE, 2, ["train.iterations=2"], "train.iterations: 2 iterations of `learns` are done; say more than that"),
        (TWO, 3, ["phases.first.train.lr=1"], "that phase is over, so nothing would change"),
        (ONE, None, ["train.lr=1"], "the run is finished, so nothing would change; make it longer: `--extend 20`"),
        (ONE, None, ["checkpoints.last=9"], "the run is finished, so nothing would change"),
        (ONE, None, ["train.iterations=3"], "train.iterations: 4 iterations of `learns` are done; say more than that"),
        (with_value(ONE, algorithm=["learns", "ends"]), None, ["train.iterations=9"], "ended by a component: enough"),
        (
            TWO,
            2,
            ["phases.second.task={from: first}"],
            "task: {from: first}: the responses of `first` were not kept",
        ),
        (ONE, 1, ["trian.lr=1"], "trian"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_the_run_left_alone(
    tmp_path: Path, pipeline: dict[str, Any], after: int | None, said: list[str], why: str
) -> None:
    run = begin(tmp_path, pipeline, after)
    before = contents(run)
    with pytest.raises(ConfigError) as error:
        loop.resume(run, registry(GIVEN), overrides=said, display=Silence())
    assert why in str(error.value)
    assert contents(run) == before
    if after is not None:
        go_on(run)


@pytest.mark.parametrize(
    "pipeline, why",
    [
        (
            with_value(ONE, train={"iterations": None, "passes": 1}),
            "say how many it shall have in all: `train.passes=2`",
        ),
        ({**ONE, "repeat": 2}, "the phases run 2 times; say how often they shall run in all: `repeat=3`"),
    ],
)
def test_what_extend_does_not_say(tmp_path: Path, pipeline: dict[str, Any], why: str) -> None:
    run = begin(tmp_path, pipeline, 1)
    with pytest.raises(ConfigError, match="--extend") as error:
        loop.resume(run, registry(GIVEN), extend=3, display=Silence())
    assert why in str(error.value)


class Half(Component):
    """Half of the iterations are enough for it."""

    def setup(self, run: Run) -> None:
        run.draw.scale(0.5)


def test_a_share_of_the_iterations_is_extended_by_saying_of_how_many(tmp_path: Path) -> None:
    said = {**ONE, "algorithm": ["learns", "half"], "train": {**ONE["train"], "iterations": 6}}
    done = session(tmp_path, said, {**GIVEN, "half": Half}, name="run").run()
    with pytest.raises(ConfigError, match=r"make 0.5 times those .*: `train.iterations=12`$"):
        loop.resume(done.path, registry({**GIVEN, "half": Half}), extend=3, display=Silence())
    again = loop.resume(
        done.path, registry({**GIVEN, "half": Half}), overrides=["train.iterations=12"], display=Silence()
    )
    again.run()
    assert again.phase.iteration == 6


def test_extended_twice_with_no_checkpoint_in_between(tmp_path: Path) -> None:
    done = session(tmp_path, ONE, GIVEN, name="run").run()
    first = loop.resume(done.path, registry(GIVEN), extend=2, display=Silence())
    first.dir.close()
    again = loop.resume(done.path, registry(GIVEN), extend=1, display=Silence())
    again.run()
    assert again.phase.iteration == ONE["train"]["iterations"] + 3


def test_passes_are_extended_by_saying_how_many(tmp_path: Path) -> None:
    passes = with_value(ONE, train={"iterations": None, "passes": 1, "prompts": 8})
    run = begin(tmp_path, passes, None)
    other = session(tmp_path, with_value(passes, train={"passes": 2}), GIVEN, name="other")
    other.run()
    going, notes = go_on(run, "train.passes=2")
    assert outcome(going) == outcome(other) and notes == []


def test_an_edited_pipeline_is_told_how_to_say_it(tmp_path: Path) -> None:
    run = begin(tmp_path, ONE, 1)
    file = run / "pipeline.yaml"
    file.write_text(file.read_text().replace("lr: 0.05", "lr: 0.2"))
    with pytest.raises(ConfigError) as error:
        loop.resume(run, registry(GIVEN), display=Silence())
    assert "pipeline.train.lr: 0.05 then, 0.2 now" in str(error.value)
    assert f"`rlalign run --resume {run} train.lr=0.2`" in str(error.value)
    with pytest.raises(ConfigError, match=r"pipeline\.train\.lr: 0\.05 then, 0\.2 now"):
        loop.resume(run, registry(GIVEN), overrides=["evaluate.every=3"], display=Silence())
    file.write_text(file.read_text().replace("lr: 0.2", "lr: 0.05"))
    go_on(run, "train.lr=0.2")


def test_what_changed_by_itself_is_refused_before_the_change_is_made(tmp_path: Path) -> None:
    run = begin(tmp_path, ONE, 1)
    lock = json.loads((run / "lock.json").read_text())
    (run / "lock.json").write_text(json.dumps({**lock, "threads": 99}))
    before = contents(run)
    with pytest.raises(ConfigError, match="threads: 99 then"):
        loop.resume(run, registry(GIVEN), overrides=["train.lr=1"], display=Silence())
    assert contents(run) == before
    go_on(run, "train.lr=1", inexact=True)
    (row,) = logs.read(run / "inexact.jsonl")
    assert "threads: 99 then" in row["changed"][0] and row["said"] == changes(run)[0]["inexact"]
    assert json.loads((run / "lock.json").read_text())["threads"] == 99  # that is still to be told


def test_a_lock_that_was_edited_beside_a_change_is_told(tmp_path: Path) -> None:
    run = begin(tmp_path, ONE, 1)
    loop.resume(run, registry(GIVEN), overrides=["train.lr=1"], display=Silence()).dir.close()
    lock = json.loads((run / "lock.json").read_text())
    (run / "lock.json").write_text(json.dumps({**lock, "budgets": {"policy": 3}}))
    with pytest.raises(ConfigError, match="it was edited since the checkpoint was written"):
        loop.resume(run, registry(GIVEN), display=Silence())


def test_back_before_a_change(tmp_path: Path) -> None:
    run = begin(tmp_path, ONE, 2)
    display = Stops(0)
    display.session = going = loop.resume(run, registry(GIVEN), overrides=["train.lr=1"], display=display)
    going.dir.close()  # as a kill would
    with pytest.raises(ConfigError, match=r"train\.lr: changed at checkpoint 2 then, at 1 now"):
        loop.resume(run, registry(GIVEN), previous=True, display=Silence())
    go_on(run, previous=True, inexact=True)


def test_a_run_without_a_checkpoint_starts_again_as_it_is_said(tmp_path: Path) -> None:
    session(tmp_path, ONE, GIVEN, name="run").dir.close()
    other = session(tmp_path, with_value(ONE, train={"lr": 0.3}), GIVEN, name="other")
    other.run()
    going, notes = go_on(tmp_path / "runs/run", "train.lr=0.3")
    assert outcome(going) == outcome(other)
    assert notes == ["no checkpoint yet: the run starts again"]


# -- killed ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill is to the code below it: nothing that it does afterwards reaches the disk."""


WRITES: tuple[tuple[Any, str], ...] = (
    *((rewriting, "write_atomic"), (rewriting, "sync"), (rewriting, "complete")),
    *((rundir.os, "replace"), (rundir.os, "fsync"), (Path, "unlink")),
    *((loop, "change"), (loop, "changes_since")),
)


def failing(patch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]) -> list[str]:
    """Let the call with this number, of all that a change makes, fail; says which calls there were."""
    calls: list[str] = []

    def counted(real: Any, name: str) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise error()
            return real(*given, **more)

        return call

    for holder, name in WRITES:
        patch.setattr(holder, name, counted(getattr(holder, name), name))
    return calls


@pytest.mark.parametrize(
    "holder, name", [(checkpoint, "write"), (loop, "save_folder")], ids=["before", "after"]
)
def test_killed_around_its_last_checkpoint_a_longer_run_exports_its_own_model(
    tmp_path: Path, holder: Any, name: str
) -> None:
    run = begin(tmp_path, ONE, None)
    old = (run / "model/model.safetensors").read_bytes()
    longer = session(tmp_path, with_value(ONE, train={"iterations": 5}), GIVEN, name="longer")
    longer.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, killed)
        with pytest.raises(Killed):
            go_on(run, extend=1)
    going, _ = go_on(run)
    assert outcome(going) == outcome(longer) and outcome(going)[1] != old
    assert logged(run) == logged(longer.dir.path)


def killed(*given: Any, **more: Any) -> None:
    raise Killed


@pytest.mark.slow  # a run goes on some thirty times
@pytest.mark.parametrize(
    "error", [Killed, lambda: OSError(28, "No space left on device")], ids=["kill", "full disk"]
)
def test_failed_at_any_write_it_has_the_change_or_not(tmp_path: Path, error: Any) -> None:
    begun = begin(tmp_path, ONE, 2)
    ends: dict[float, list[Path]] = {0.05: [], 0.4: []}
    for at in range(1, 100):
        run = Path(shutil.copytree(begun, tmp_path / f"runs/{at}"))
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, at, error)
            try:
                loop.resume(run, registry(GIVEN), overrides=["train.lr=0.4"], display=Silence()).dir.close()
            except (Killed, OSError, RLAlignError):
                pass
            else:
                assert len(calls) < at
                break
        again = loop.resume(run, registry(GIVEN), display=Silence())
        again.dir.close()
        known = again.pipeline.phases[0].train.lr
        ends[known].append(run)
        assert (len(changes(run)) == 1) == (known == 0.4) == (run / "inexact.jsonl").exists()
    assert len(ends[0.05]) > 3 and len(ends[0.4]) > 3
    plain, changed = (begin(tmp_path, ONE, 2, name) for name in ("plain", "changed"))
    assert outcome(go_on(ends[0.05][-1])[0]) == outcome(go_on(plain)[0])
    assert outcome(go_on(ends[0.4][0])[0]) == outcome(go_on(changed, "train.lr=0.4")[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".running"
    }


def test_what_a_lock_never_had_a_change_of_the_run_does_not_give_it() -> None:
    then, now = {"a": 1, "world": {"processes": 2}}, {"a": 2, "world": {"processes": 2}}
    assert merged({"a": 1}, then, now) == {"a": 2}
    assert merged({"a": 1}, {"a": 1}, now) == now
