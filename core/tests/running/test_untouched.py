"""Components that misbehave: whatever they change is told with their name, or harms nobody."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from rlalign.data.batch import Batch, Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.records.weights import fingerprint
from rlalign.testing import PolicyGradient, run, session
from rlalign.testing.bench import logged, stopped_and_resumed

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "rewards": ["token-sum", "guest", "length"],
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.05, "epochs": 2},
    "evaluate": {"every": 1, "examples": 2, "use": ["token-sum", "guest"]},
}
Deed = Callable[..., Any]


def guest(hook: str, deed: Deed) -> type[Component]:
    """A component that takes part in every hook without a say, and does `deed` in one of them."""

    def doing(name: str, **given: Any) -> None:
        if name == hook:
            deed(**given)

    class Guest(Component):
        @hookimpl
        def phase_started(self, run: Any) -> None:
            doing("phase_started", run=run)

        @hookimpl
        def reward(self, run: Any, rollout: Rollout) -> Score:
            doing("reward", run=run, rollout=rollout)
            return Score(torch.zeros(len(rollout)))

        @hookimpl(wrapper=True)
        def advantage(self, run: Any, rollout: Rollout, reward: Any):
            doing("before advantage", run=run, rollout=rollout, reward=reward)
            batch = yield
            doing("advantage", run=run, rollout=rollout, reward=reward, batch=batch)
            return batch

        @hookimpl(wrapper=True)
        def update(self, run: Any, batch: Batch, learner: Any):
            doing("update", run=run, batch=batch, learner=learner)
            return (yield)

        @hookimpl
        def loss(self, run: Any, batch: Batch, now: Any) -> None:
            doing("loss", run=run, batch=batch, now=now)

        @hookimpl
        def step_started(self, run: Any, batch: Batch) -> None:
            doing("step_started", run=run, batch=batch)

        @hookimpl
        def step_ready(self, run: Any, metrics: Any) -> None:
            doing("step_ready", run=run, metrics=metrics)

        @hookimpl
        def evaluate(self, run: Any, rollout: Rollout) -> None:
            doing("evaluate", run=run, rollout=rollout)

        @hookimpl
        def evaluated(self, run: Any, metrics: Any) -> None:
            doing("evaluated", run=run, metrics=metrics)

        @hookimpl
        def iteration_done(self, run: Any, rollout: Rollout, reward: Any, metrics: Any) -> None:
            doing("iteration_done", run=run, rollout=rollout, reward=reward, metrics=metrics)

    Guest.needs = ("logprobs",)
    Guest.trains = ("policy",)
    return Guest


def outcome(folder: Path, hook: str, deed: Deed) -> tuple[str, Any]:
    """The weights and the logs of a run with such a guest."""
    finished, done = run(folder, PIPELINE, {"once": PolicyGradient, "guest": guest(hook, deed)})
    return fingerprint(done.models.policy), logged(finished.path)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    return outcome(tmp_path_factory.mktemp("honest"), "none", lambda: None)


def swallowed(change: Callable[[], Any]) -> None:
    """Make a change, and hide that a frozen record refused the end of it."""
    try:
        change()
    except (AttributeError, TypeError):
        pass


def _plus_one(record: Any, name: str) -> None:
    x = getattr(record, name)
    x += 1
    swallowed(lambda: setattr(record, name, x))


def _view(x: torch.Tensor) -> None:
    x.detach().numpy().reshape(-1)[0] += 1


def _data(x: torch.Tensor) -> None:
    x.data = x.data.clone() + 1


def _first(run: Any) -> torch.Tensor:
    return next(run.models.policy.parameters())


def _left_on() -> None:
    LEFT_ON.append(torch.inference_mode())
    LEFT_ON[0].__enter__()


LEFT_ON: list[Any] = []


@torch.no_grad()
def _add(x: torch.Tensor) -> None:
    x.add_(1)


TOLD: dict[str, tuple[str, Deed]] = {
    # what it is handed, five by one `+=`
    "actions": ("reward", lambda rollout, **_: _plus_one(rollout, "actions_NT")),
    "log-probs": ("reward", lambda rollout, **_: _plus_one(rollout, "logprobs_NT")),
    "full log-probs": ("evaluate", lambda rollout, **_: _plus_one(rollout, "full_logprobs_NT")),
    "groups": ("reward", lambda rollout, **_: _plus_one(rollout, "group_N")),
    "settings": ("reward", lambda rollout, **_: _plus_one(rollout, "setting_N")),
    "mask": ("reward", lambda rollout, **_: rollout.mask_NT.fill_(True)),
    "finished": ("reward", lambda rollout, **_: rollout.finished_N.logical_not_()),
    "prompt": ("reward", lambda rollout, **_: rollout.inputs[0].add_(1)),
    "lengths": ("reward", lambda rollout, **_: rollout.length_N.sub_(1)),
    "costs": ("iteration_done", lambda rollout, **_: rollout.cost_N.add_(1)),
    "texts": ("reward", lambda rollout, **_: object.__setattr__(rollout, "texts", ("",) * len(rollout))),
    "actions by a view": ("reward", lambda rollout, **_: _view(rollout.actions_NT)),
    "actions by data": ("reward", lambda rollout, **_: rollout.actions_NT.data.zero_()),
    "actions by other data": ("reward", lambda rollout, **_: _data(rollout.actions_NT)),
    "mask by a sort": ("reward", lambda rollout, **_: rollout.mask_NT.numpy().sort()),
    "prompt by a view": ("evaluate", lambda rollout, **_: _view(rollout.inputs[0])),
    "rollout before a wrapped hook": ("before advantage", lambda rollout, **_: rollout.actions_NT.add_(1)),
    "total": ("advantage", lambda reward, **_: reward.total_N.mul_(2)),
    "rewards": ("advantage", lambda reward, **_: reward.tokens_NT.mul_(2)),
    "part of a reward": ("advantage", lambda reward, **_: reward.parts["token-sum"].zero_()),
    "part by a view": ("iteration_done", lambda reward, **_: _view(reward.parts["token-sum"])),
    "advantage in the update": ("update", lambda batch, **_: batch.advantage_NT.mul_(2)),
    "advantage in the loss": ("loss", lambda batch, **_: batch.advantage_NT.mul_(2)),
    "advantage by a view": ("loss", lambda batch, **_: _view(batch.advantage_NT)),
    "leaves": ("loss", lambda now, **_: _add(now.logprobs_NT)),
    "a column of the step": ("loss", lambda batch, **_: batch.step.rollout.mask_NT.fill_(False)),
    "what now holds": ("loss", lambda now, **_: setattr(now, "logprobs_NT", None)),
    # what it finds on the run
    "weights": ("reward", lambda run, **_: _add(_first(run))),
    "weights by data": ("iteration_done", lambda run, **_: _first(run).data.mul_(0.9)),
    "weights by other data": ("evaluate", lambda run, **_: _data(_first(run))),
    "weights by a view": ("evaluated", lambda run, **_: _view(_first(run))),
    "weights before a wrapped hook": ("before advantage", lambda run, **_: _add(_first(run))),
    "weights in the loss": ("loss", lambda run, **_: _first(run).data.mul_(0.9)),
    "weights in the update": ("update", lambda run, **_: _add(_first(run))),
    "weights kept from learning": ("reward", lambda run, **_: run.models.policy.requires_grad_(False)),
    "other weights": (
        "iteration_done",
        lambda run, **_: setattr(run.models.policy, "free", torch.nn.Parameter(_first(run) + 1)),
    ),
    "version of the weights": ("reward", lambda run, **_: setattr(run.models.policy, "version", 0)),
    "step": ("reward", lambda run, **_: setattr(run._phase, "step", 7)),
    "iteration": ("step_ready", lambda run, **_: setattr(run._phase, "iteration", 2)),
    "advantages of a step": ("step_started", lambda batch, **_: _add(batch.advantage_NT)),
    "position of the draw": ("evaluate", lambda run, **_: setattr(run._phase.draw, "position", 0)),
    "step by assignment": ("reward", lambda run, **_: setattr(run, "step", 7)),
    "models": ("reward", lambda run, **_: run.models.update({})),
    "draw weights": ("reward", lambda run, **_: run.draw.weights(torch.ones(20), "example")),
    "length of the phase": ("evaluated", lambda run, **_: run.draw.scale(2.0)),
    "options": ("reward", lambda run, **_: setattr(run.generation, "temperature", 2.0)),
    # what holds others
    "columns": ("reward", lambda rollout, **_: rollout.columns.update(score=None)),
    "parts": ("advantage", lambda reward, **_: reward.parts.pop("length")),
    "metrics": ("iteration_done", lambda metrics, **_: metrics.clear()),
    "metrics of a step": ("step_ready", lambda metrics, **_: metrics.clear()),
    "examples": ("reward", lambda rollout, **_: rollout.examples[0].meta.update(seen=True)),
    "inference mode": ("reward", lambda **_: _left_on()),
    # how it ends
    "exit": ("reward", lambda **_: exit(0)),
    "_exit": ("loss", lambda **_: os._exit(0)),
    "exec": ("evaluate", lambda **_: os.execvp("true", ["true"])),
    "GeneratorExit": ("advantage", lambda **_: (_ for _ in ()).throw(GeneratorExit)),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_component_changes_in_silence_is_told_with_its_name(name: str, tmp_path: Path) -> None:
    hook, deed = TOLD[name]
    try:
        with pytest.raises(ComponentError, match=r"guest`") as told:
            outcome(tmp_path, hook, deed)
    finally:
        LEFT_ON.clear()
    assert f"`{hook.split()[-1]}`" in str(told.value)
    assert len(str(told.value)) < 700


HARMLESS: dict[str, tuple[str, Deed]] = {
    "torch's seed": ("reward", lambda **_: torch.manual_seed(0)),
    "all seeds": ("loss", lambda **_: (random.seed(0), numpy.random.seed(0), torch.manual_seed(0))),
    "draws": ("evaluate", lambda **_: (random.random(), numpy.random.rand(), torch.rand(3))),
    "directory": ("reward", lambda **_: os.chdir("/")),
    "dtype": ("loss", lambda **_: torch.set_default_dtype(torch.float64)),
    "threads": ("update", lambda **_: torch.set_num_threads(torch.get_num_threads() + 1)),
    "grad mode": ("reward", lambda **_: torch.set_grad_enabled(False)),
    "grad mode while learning": ("step_ready", lambda **_: torch.set_grad_enabled(False)),
    "device": ("advantage", lambda **_: torch.set_default_device("meta")),
    "deterministic": ("evaluated", lambda **_: torch.use_deterministic_algorithms(True)),
    "precision": ("phase_started", lambda **_: torch.set_float32_matmul_precision("medium")),
    "autocast": ("reward", lambda **_: torch.set_autocast_enabled("cpu", True)),
    "examples of the task": (
        "reward",
        lambda run, **_: swallowed(lambda: run.task.examples("train").clear()),
    ),
    "row starts": ("phase_started", lambda run, **_: run.draw.row_starts().fill_(0)),
    "outputs": (
        "reward",
        lambda run, rollout, **_: run.score("policy", rollout, ["logprobs"]).logprobs_NT.fill_(0),
    ),
    "scores of a wrapped hook": ("advantage", lambda batch, **_: batch.columns),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_component_leaves_behind_harms_nobody(
    name: str, tmp_path: Path, honest: tuple[str, Any]
) -> None:
    settings = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    assert outcome(tmp_path, *HARMLESS[name]) == honest
    assert settings == (os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), True)


def test_a_setting_that_is_set_back_is_noted_once(tmp_path: Path) -> None:
    started = session(
        tmp_path, PIPELINE, {"once": PolicyGradient, "guest": guest("reward", lambda **_: os.chdir("/"))}
    )
    started.run()
    notes = [note for note in started.display.notes if "directory" in note]  # type: ignore[attr-defined]
    here = os.getcwd()
    assert notes == [
        f"`reward` of `guest` changed the working directory from {here} to /; it is {here} again"
    ]


SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float16": lambda x: x.half(),
    "float64": lambda x: x.double(),
    "int": lambda x: x.long(),
    "bool": lambda x: x.bool(),
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "a view": lambda x: x[None].expand(3, -1)[1],
    "per step, NaN beyond the end": lambda x: x,
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_any_kind_of_number_are_the_same_scores(name: str, tmp_path: Path) -> None:
    class Plain(Component):
        @hookimpl
        def reward(self, rollout: Rollout) -> Score:
            return Score(self.shaped(rollout, (rollout.length_N % 2).float()))

        def shaped(self, rollout: Rollout, value: torch.Tensor) -> torch.Tensor:
            return value

    class Strange(Plain):
        def shaped(self, rollout: Rollout, value: torch.Tensor) -> torch.Tensor:
            if "NaN" not in name:
                return SCORES[name](value)
            value_NT = torch.where(rollout.mask_NT, 0.0, float("nan"))
            value_NT[torch.arange(len(rollout)), rollout.length_N - 1] = value
            return value_NT

    found = []
    for kind in (Plain, Strange):
        pipeline = {**PIPELINE, "rewards": ["odd"], "algorithm": "once", "evaluate": None}
        finished, done = run(tmp_path / kind.__name__, pipeline, {"once": PolicyGradient, "odd": kind})
        found.append((fingerprint(done.models.policy), logged(finished.path)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "value",
    [torch.ones(12, dtype=torch.complex64), torch.ones(12).to_sparse(), torch.ones(12, device="meta")],
)
def test_scores_that_are_no_numbers_are_told(value: torch.Tensor, tmp_path: Path) -> None:
    class Odd(Component):
        @hookimpl
        def reward(self) -> Score:
            return Score(value)

    with pytest.raises(ComponentError, match=r"`reward` of `odd`.*must be a tensor of numbers"):
        run(
            tmp_path,
            {**PIPELINE, "rewards": ["odd"], "evaluate": None},
            {"once": PolicyGradient, "odd": Odd},
        )


def test_a_score_that_its_component_changes_later_stays_what_it_was(tmp_path: Path) -> None:
    class Live(Component):
        @hookimpl
        def reward(self, rollout: Rollout) -> Score:
            self.live = rollout.length_N.float()
            return Score(self.live, metrics={"m": self.live})

        @hookimpl
        def step_ready(self) -> None:
            self.live.zero_()

    class Still(Live):
        @hookimpl
        def step_ready(self) -> None:
            return None

    found = []
    for kind in (Live, Still):
        pipeline = {**PIPELINE, "rewards": ["live"], "algorithm": "once", "evaluate": None}
        finished, done = run(tmp_path / kind.__name__, pipeline, {"once": PolicyGradient, "live": kind})
        found.append((fingerprint(done.models.policy), logged(finished.path)))
    assert found[0] == found[1]


class Lottery(Component):
    """A reward that draws from every global generator, unseeded."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        drawn = [random.random() + numpy.random.rand() + float(torch.rand(())) for _ in range(len(rollout))]
        return Score(torch.tensor(drawn))


def test_a_reward_that_draws_without_a_seed_is_exact_after_a_resume(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "rewards": ["lottery"], "algorithm": "once", "checkpoints": {"every": 1}}
    components = {"once": PolicyGradient, "lottery": Lottery, "guest": guest("none", lambda: None)}
    finished, whole = run(tmp_path, pipeline, components, name="whole")
    random.seed()
    again = stopped_and_resumed(tmp_path, pipeline, components)
    assert fingerprint(again.models.policy) == fingerprint(whole.models.policy)
    assert logged(again.dir.path) == logged(finished.path)
    rewards = {
        row["reward/lottery"] for row in logged(finished.path)["metrics.jsonl"] if "reward/lottery" in row
    }
    assert len(rewards) == 3  # not the same draws each time


def test_a_run_leaves_the_global_generators_as_they_were(tmp_path: Path) -> None:
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    run(
        tmp_path,
        {**PIPELINE, "rewards": ["lottery"], "algorithm": "once", "evaluate": None},
        {"once": PolicyGradient, "lottery": Lottery},
    )
    drawn = random.random(), numpy.random.rand(), float(torch.rand(()))
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    assert drawn == (random.random(), numpy.random.rand(), float(torch.rand(())))


def test_a_forked_child_may_leave_as_it_likes(tmp_path: Path, honest: tuple[str, Any]) -> None:
    def fork(**_: Any) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    before = os._exit
    assert outcome(tmp_path, "evaluate", fork) == honest
    assert os._exit is before


def test_threads_add_up_a_gradient_in_the_same_order_each_time(tmp_path: Path) -> None:
    """Rows of one matrix, each read thirty times: without torch's deterministic mode no two gradients are the same."""
    row_n, weight_nHD = torch.arange(90) % 3, torch.randn(90, 64, 64)
    x_GHD = torch.randn(3, 64, 64, requires_grad=True)
    found: list[torch.Tensor] = []

    def differentiate(**_: Any) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            found.extend(torch.autograd.grad(x_GHD[row_n], x_GHD, weight_nHD)[0] for _ in range(10))
        finally:
            torch.set_num_threads(threads)

    session(
        tmp_path, PIPELINE, {"once": PolicyGradient, "guest": guest("phase_started", differentiate)}
    ).run()
    assert len(found) == 10 and all(torch.equal(found[0], other) for other in found)
