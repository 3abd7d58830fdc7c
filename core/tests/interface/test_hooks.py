"""Every hook: when it is called, with what, how often, in which order, and what happens to what it returns.

`test_every_hook_has_a_test_of_its_own` fails for a new hook specification without a test here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign.builtin.responses import Sampled
from rlalign.data.batch import Batch, Loss, Outputs, Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError, RLAlignError
from rlalign.interface import hooks
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Learner, Run
from rlalign.running.members import HOOKS
from rlalign.running.updating import Update
from rlalign.running.view import RunView
from rlalign.testing import Bench, PolicyGradient, run, session
from rlalign.testing.bench import plain_gradient

TYPES: dict[str, Any] = {
    "learner": Update,
    "run": RunView,
    "examples": list,
    "rollout": Rollout,
    "reward": Reward,
    "batch": Batch,
    "now": Outputs,
    "metrics": Mapping,
    "error": type(None),
}


def arguments(hook: str) -> list[str]:
    return list(inspect.signature(getattr(hooks, hook)).parameters)


class Plain(Sampled):
    """Does what each hook asks in the plainest way; what it was given stands in `calls`."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def setup(self, run: Run) -> None:
        self.run = run

    def answer(self, hook: str, given: dict[str, Any]) -> Any:
        self.calls.append((hook, given))
        return getattr(self, f"do_{hook}", lambda **_: None)(**given)

    def do_rollout(self, examples: Any = None, run: Any = None) -> Rollout:
        if run is None:
            return self.run.models.policy.encode(self.run.task.examples("train")[1:4])
        return self.respond(run, examples, None)

    def do_reward(self, rollout: Any = None, run: Any = None) -> Score:
        return Score(torch.zeros(12 if rollout is None else len(rollout)))

    def do_loss(self, batch: Any = None, now: Any = None, run: Any = None) -> Loss | None:
        if batch is None:
            return None
        return Loss(-batch.mean_over_responses(batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)))


def having(*hooks: str, takes: Callable[[str], list[str]] = arguments, **extra: Any) -> type[Component]:
    """A component with these hooks, each asking for the arguments that `takes` names."""
    methods: dict[str, Any] = {"rollout": None, **extra}  # `Sampled` brings one
    for hook in hooks:
        names = takes(hook)
        given = ", ".join(f"{name!r}: {name}" for name in names)
        source = f"def {hook}({', '.join(['self', *names])}):\n    return self.answer({hook!r}, {{{given}}})"
        scope: dict[str, Any] = {}
        exec(source, scope)
        methods[hook] = hookimpl(scope[hook])
    return type("Recorder", (Plain,), methods)


PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "rewards": ["token-sum"],
    "algorithm": ["once"],
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 2, "prompts": 3, "lr": 0.01, "epochs": 2, "minibatches": 2},
    "evaluate": {"every": 1, "split": "val", "examples": 4, "use": ["length"]},
}
CALLS = {
    "rollout": 2,
    "reward": 2,
    "advantage": 2,
    "loss": 8,
    "evaluate": 3,
    "phase_started": 1,
    "update": 2,
    "step_started": 8,
    "step_ready": 8,
    "iteration_done": 2,
    "evaluated": 3,
    "run_ended": 1,
}
"""In PIPELINE: two iterations of two epochs of two minibatches; evaluation before, between and after."""


def placed(*hooks: str) -> dict[str, Any]:
    """PIPELINE with the recorder wherever its hooks belong."""
    pipeline = {**PIPELINE, "evaluate": dict(PIPELINE["evaluate"])}
    if "rollout" in hooks:
        pipeline["responses"] = "recorder"
    if "reward" in hooks:
        pipeline["rewards"] = ["token-sum", "recorder"]
    if "evaluate" in hooks:
        pipeline["evaluate"]["use"] = ["recorder"]
    if not {"rollout", "reward", "evaluate"} & set(hooks):
        pipeline["algorithm"] = ["once", "recorder"]
    return pipeline


def recorded(folder: Path, cls: type[Component], *hooks: str) -> list[tuple[str, dict[str, Any]]]:
    _, done = run(folder, placed(*hooks), {"recorder": cls, "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    return recorder.calls


# -- all hooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_of_its_own(hook: str) -> None:
    assert any(name.startswith(f"test_{hook}_") for name in vars(sys.modules[__name__]))
    assert hook in CALLS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_gets_what_its_specification_says(hook: str, tmp_path: Path) -> None:
    calls = recorded(tmp_path, having(hook), hook)
    assert [name for name, _ in calls] == [hook] * CALLS[hook]
    for _, given in calls:
        assert list(given) == arguments(hook)
        for name, value in given.items():
            assert isinstance(value, TYPES[name]), name


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_may_leave_out_arguments(hook: str, tmp_path: Path) -> None:
    calls = recorded(tmp_path, having(hook, takes=lambda _: []), hook)
    assert calls == [(hook, {})] * CALLS[hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_that_raises_is_named(hook: str, tmp_path: Path) -> None:
    def fail(self: Any, **given: Any) -> None:
        raise KeyError("deep inside")

    with pytest.raises(ComponentError) as error:
        recorded(tmp_path, having(hook, **{f"do_{hook}": fail}), hook)
    for part in (f"`{hook}` of `recorder` (", "KeyError: 'deep inside'", "test_hooks.py:"):
        assert part in str(error.value)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_of_a_component_passes_with_its_name(hook: str, tmp_path: Path) -> None:
    def fail(self: Any, **given: Any) -> None:
        raise RLAlignError("the server is away; start it")

    with pytest.raises(RLAlignError, match=f"`{hook}` of `recorder` .*: the server is away; start it"):
        recorded(tmp_path, having(hook, **{f"do_{hook}": fail}), hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_needs_its_mark(hook: str, tmp_path: Path) -> None:
    cls = having(hook)
    unmarked = type("Unmarked", (cls,), {hook: lambda self: None})
    with pytest.raises(ConfigError, match=f"method `{hook}` without `@hookimpl`"):
        session(tmp_path, placed(hook), {"recorder": unmarked, "once": PolicyGradient})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_refuses_arguments_it_does_not_give(hook: str, tmp_path: Path) -> None:
    cls = having(hook, takes=lambda _: ["tokenizer"])
    with pytest.raises(
        ConfigError, match=f"`{hook}` of `recorder` .* asks for `tokenizer`; the hook gives run"
    ):
        session(tmp_path, placed(hook), {"recorder": cls, "once": PolicyGradient})


WRONG: dict[str, Any] = {
    "rollout": [],
    "reward": 1.0,
    "advantage": torch.zeros(12),
    "loss": torch.zeros(()),
    "evaluate": 0.5,
    "update": 0.5,
    "step_ready": 1,
}


@pytest.mark.parametrize("hook", WRONG)
def test_every_result_is_checked(hook: str, tmp_path: Path) -> None:
    cls = having(hook, **{f"do_{hook}": lambda self, **_: WRONG[hook]})
    with pytest.raises(ComponentError, match=f"`{hook}` of `recorder` .* must return a "):
        recorded(tmp_path, cls, hook)


def test_all_hooks_in_order(tmp_path: Path) -> None:
    """One recorder in several places is one object, whose hooks take part once each."""
    cls = having(*HOOKS)
    pipeline = {**placed("rollout", "reward", "evaluate"), "algorithm": ["once"]}
    _, done = run(tmp_path, pipeline, {"recorder": cls, "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    order = [hook for hook, given in recorder.calls if not (hook == "reward" and len(given["rollout"]) == 4)]
    iteration = [
        "rollout",
        "reward",
        "advantage",
        "update",
        *["step_started", "loss", "step_ready"] * 4,
        "iteration_done",
    ]
    measured = ["evaluate", "evaluated"]
    assert order == ["phase_started", *measured, *iteration, *measured, *iteration, *measured, "run_ended"]


# -- one by one -------------------------------------------------------------------------------------


def test_rollout_answers_the_examples_that_were_drawn(tmp_path: Path) -> None:
    calls = recorded(tmp_path, having("rollout"), "rollout")
    drawn = [e for _, given in calls for e in given["examples"]]
    assert all(isinstance(e, Example) for e in drawn)
    assert sorted(e.id for e in drawn) == [str(i) for i in range(6)]


def test_rollout_with_a_flaw_is_refused(tmp_path: Path) -> None:
    def shorten(self: Any, run: Any, examples: Any) -> Rollout:
        rollout = self.respond(run, examples, None)
        return replace(rollout, texts=rollout.texts[1:])

    with pytest.raises(ComponentError, match=r"`rollout` of `recorder` .* texts"):
        recorded(tmp_path, having("rollout", do_rollout=shorten), "rollout")


def test_reward_sees_texts_and_columns(tmp_path: Path) -> None:
    cls = having("reward", needs=("policy.full_logprobs", "reference.logprobs", "policy.entropy"), trains=())
    for _, given in recorded(tmp_path, cls, "reward"):
        rollout = given["rollout"]
        assert {"policy.full_logprobs", "reference.logprobs", "policy.entropy"} <= set(rollout.columns)
        assert len(rollout.texts) == len(rollout) == 12
        at = rollout.mask_NT
        for name in ("policy.full_logprobs", "reference.logprobs"):
            assert rollout.columns[name][at].isfinite().all()
        torch.testing.assert_close(rollout.columns["policy.full_logprobs"][at], rollout.full_logprobs_NT[at])


def test_reward_is_paid_at_the_last_step_or_at_each(tmp_path: Path) -> None:
    class PerStep(Component):
        @hookimpl
        def reward(self, rollout: Rollout) -> Score:
            return Score(torch.full(rollout.mask_NT.shape, 0.5))

    seen: list[tuple[Rollout, Reward]] = []

    class Look(Component):
        @hookimpl
        def advantage(self, rollout: Rollout, reward: Reward) -> None:
            seen.append((rollout, reward))

    rewards = [{"token-sum": None, "weight": 2}, {"per-step": None, "weight": -1}]
    pipeline = {**PIPELINE, "rewards": rewards, "algorithm": ["once", "look"]}
    run(tmp_path, pipeline, {"once": PolicyGradient, "look": Look, "per-step": PerStep})
    for rollout, reward in seen:
        assert list(reward.parts) == ["token-sum", "per-step"]
        for i, text in enumerate(rollout.texts):
            steps = int(rollout.length_N[i])
            raw = sum(map(float, text.split())) / 10
            assert reward.parts["token-sum"][i] == pytest.approx(raw)
            expected = [-0.5] * steps + [0.0] * (rollout.steps - steps)
            expected[steps - 1] += 2 * raw
            assert reward.tokens_NT[i].tolist() == pytest.approx(expected, abs=1e-6)
            assert reward.total_N[i] == pytest.approx(sum(expected), abs=1e-5)


def test_advantage_without_an_implementation_is_the_total_reward(tmp_path: Path) -> None:
    batches = []

    class See(PolicyGradient):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            batches.append(batch.step)
            return super().loss(batch, now)

    run(tmp_path, {**PIPELINE, "algorithm": "see"}, {"see": See})
    for batch in batches:
        mask_NT = batch.rollout.mask_NT
        assert torch.equal(batch.advantage_NT, torch.where(mask_NT, batch.reward.total_N[:, None], 0.0))


def test_advantage_none_leaves_it_to_the_default(tmp_path: Path) -> None:
    calls = recorded(tmp_path, having("advantage"), "advantage")
    assert len(calls) == 2
    for _, given in calls:
        assert given["reward"].tokens_NT.shape == given["rollout"].mask_NT.shape


def test_loss_sees_leaves_of_its_needs_and_its_step(tmp_path: Path) -> None:
    def look(self: Any, batch: Batch, now: Outputs, run: Run) -> Loss:
        assert now.logprobs_NT.is_leaf and now.logprobs_NT.requires_grad
        assert now.logprobs_NT.shape == batch.rollout.mask_NT.shape
        assert "values_NT" not in now
        self.steps = [*getattr(self, "steps", []), (run.iteration, len(batch.step.rollout.examples))]
        return Plain.do_loss(self, batch, now)

    pipeline = {**PIPELINE, "algorithm": "recorder"}
    _, done = run(tmp_path, pipeline, {"recorder": having("loss", do_loss=look)})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    # Three groups make minibatches of two and one, twice an iteration.
    assert sorted(recorder.steps) == [(0, 1), (0, 1), (0, 2), (0, 2), (1, 1), (1, 1), (1, 2), (1, 2)]


def test_loss_of_several_components_is_weighted_and_added(tmp_path: Path) -> None:
    one, _ = run(
        tmp_path, {**PIPELINE, "algorithm": ["once"], "evaluate": None}, {"once": PolicyGradient}, name="one"
    )
    two, _ = run(
        tmp_path,
        {
            **PIPELINE,
            "evaluate": None,
            "algorithm": [{"once": None, "weight": 0.75}, {"once": None, "weight": 0.25, "as": "again"}],
        },
        {"once": PolicyGradient},
        name="two",
    )
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-5)
    assert (
        two.metrics["again/loss"]
        == two.metrics["once/loss"]
        == pytest.approx(one.metrics["once/loss"], rel=1e-5)
    )


def test_evaluate_names_its_metrics(tmp_path: Path) -> None:
    class Distinct(Component):
        @hookimpl
        def evaluate(self, rollout: Rollout) -> dict[str, float]:
            return {"distinct": len(set(rollout.texts)), "all": torch.tensor(float(len(rollout)))}  # type: ignore[dict-item]

    pipeline = {**PIPELINE, "evaluate": {**PIPELINE["evaluate"], "use": [{"distinct": None, "as": "d"}]}}
    finished, _ = run(tmp_path, pipeline, {"once": PolicyGradient, "distinct": Distinct})
    assert finished.metrics["eval/d/all"] == 4.0
    assert 1 <= finished.metrics["eval/d/distinct"] <= 4


def test_phase_started_comes_once_a_phase_after_setup(tmp_path: Path) -> None:
    events: list[str] = []

    class Notes(PolicyGradient):
        def setup(self, run: Run) -> None:
            events.append(f"setup {run.phase}")

        @hookimpl
        def phase_started(self, run: Run) -> None:
            events.append(f"started {run.phase} {run.iteration} {run.progress}")

    pipeline = {**PIPELINE, "algorithm": "notes", "phases": [{"name": "a"}, {"name": "b"}], "repeat": 2}
    run(tmp_path, pipeline, {"notes": Notes})
    a, b = "started a 0 0.0", "started b 0 0.0"
    assert events == ["setup a", a, b, a, b]


def test_update_replaces_the_loops_own(tmp_path: Path) -> None:
    cls = having("update", do_update=lambda self, **_: {"trust": 0.5})
    finished, done = run(
        tmp_path,
        {**PIPELINE, "evaluate": None, "algorithm": ["once", "recorder"]},
        {"recorder": cls, "once": PolicyGradient},
    )
    assert finished.metrics["trust"] == 0.5
    assert "loss" not in finished.metrics
    assert done.step == 2  # an update of its own counts as one step


def test_update_may_take_steps_of_its_own(tmp_path: Path) -> None:
    def descend(self: Any, run: Run, batch: Batch, learner: Learner) -> dict[str, float]:
        before, gradient = learner.loss(batch), learner.gradient(batch)
        learner.assign(learner.parameters() - 0.1 * gradient)
        return {"before": before, "after": learner.loss(batch)}

    finished, _ = run(
        tmp_path,
        {**PIPELINE, "evaluate": None, "algorithm": ["once", "recorder"]},
        {"recorder": having("update", do_update=descend), "once": PolicyGradient},
    )
    assert finished.metrics["after"] < finished.metrics["before"]


def test_update_may_be_wrapped(tmp_path: Path) -> None:
    class Timed(Component):
        @hookimpl(wrapper=True)
        def update(self):
            metrics = yield
            return {**metrics, "wrapped": 1.0}

    cls = having("update", do_update=lambda self, **_: {"trust": 0.5})
    finished, _ = run(
        tmp_path,
        {**PIPELINE, "evaluate": None, "algorithm": ["once", "recorder", "timed"]},
        {"recorder": cls, "once": PolicyGradient, "timed": Timed},
    )
    assert (finished.metrics["trust"], finished.metrics["wrapped"]) == (0.5, 1.0)


def test_step_started_is_told_of_the_whole_step(tmp_path: Path) -> None:
    """What it asked a model is there for the losses of all pieces: nobody computes it again, and nobody else's is."""
    scored: list[tuple[int, torch.Tensor]] = []

    def ask(self: Any, run: Any, batch: Any) -> None:
        forwards = run._phase.engine.forwards
        rollout = batch.step.rollout
        gone = run.score("policy", rollout, ["logprobs"]).logprobs_NT
        scored.append((run._phase.engine.forwards - forwards, gone))

    cls = having(
        "step_started",
        "loss",
        do_step_started=ask,
        do_loss=lambda self, run, batch, **_: ask(self, run, batch),
    )
    pipeline = {**placed("step_started", "loss"), "train": {**PIPELINE["train"], "budget": 30}}
    _, done = run(tmp_path, pipeline, {"recorder": cls, "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    told = [given["batch"] for hook, given in recorder.calls if hook == "step_started"]
    assert len(told) == done.step == 8 and all(batch.step is batch for batch in told)
    first: list[torch.Tensor] = []
    for (hook, _), (forwards, gone) in zip(recorder.calls, scored, strict=True):
        first = [gone] if hook == "step_started" else first
        assert (forwards > 0) == (hook == "step_started") and torch.equal(gone, first[0])
    assert len(recorder.calls) > 16


def test_step_started_is_told_of_the_step_that_its_loss_sees(tmp_path: Path) -> None:
    """Of a component for one source: of that source's rows, and nothing where there are none."""
    cls = having("step_started", "loss")
    pipeline: dict[str, Any] = {
        **placed("step_started", "loss"),
        "task": {"numbers": {"logged": [2, 3]}},
        "responses": {"mix": {"sampled": 1, "logged": 1}},
        "algorithm": ["once", {"recorder": None, "source": "logged"}],
        "train": {**PIPELINE["train"], "budget": 10},
        "evaluate": None,
    }
    _, done = run(tmp_path, pipeline, {"recorder": cls, "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    steps: list[Batch] = []
    for hook, given in recorder.calls:
        if hook == "step_started":
            steps.append(given["batch"])
            assert set(given["batch"].rollout.columns["source"]) == {"logged"}
        else:
            assert given["batch"].step is steps[-1]
    assert len(steps) == 8 < len(recorder.calls) - 8


def test_what_step_started_draws_is_another_each_time_and_the_same_on_any_number_of_pieces(
    tmp_path: Path,
) -> None:
    """Losses draw, too, and each process has other pieces."""

    def draws(budget: int) -> list[float]:
        found: list[float] = []

        class Draws(PolicyGradient):
            @hookimpl
            def step_started(self) -> None:
                found.append(float(torch.rand(())))

            @hookimpl
            def step_ready(self) -> None:
                found.append(float(torch.rand(())))

            @hookimpl
            def loss(self, batch: Batch, now: Outputs) -> Loss:
                torch.rand(())
                return super().loss(batch, now)

        train = {**PIPELINE["train"], "budget": budget}
        run(tmp_path / str(budget), {**PIPELINE, "algorithm": "draws", "train": train}, {"draws": Draws})
        return found

    assert draws(10**6) == draws(20) and len({*draws(40)}) == 16


def test_what_begins_with_a_step_has_begun_for_the_kit(tmp_path: Path) -> None:
    class Begins(PolicyGradient):
        @hookimpl
        def step_started(self, batch: Batch) -> None:
            self.size = float(len(batch))

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            return Loss(super().loss(batch, now).value * self.size)

    bench = Bench(tmp_path, {**PIPELINE, "algorithm": "begins", "evaluate": None}, {"begins": Begins})
    batch = bench.batch()
    one, other = bench.gradient(batch)[1], plain_gradient(bench, batch)[1]
    assert all(torch.allclose(g, other[name], atol=1e-6) for name, g in one.items())


@pytest.mark.parametrize("said, steps", [(None, 8), (True, 8), (False, 0)])
def test_step_ready_false_drops_the_step_and_ends_the_update(said: Any, steps: int, tmp_path: Path) -> None:
    cls = having("step_ready", do_step_ready=lambda self, **_: said)
    _, done = run(tmp_path, placed("step_ready"), {"recorder": cls, "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    assert done.step == steps
    assert len(recorder.calls) == (2 if said is False else 8)
    for _, given in recorder.calls:
        assert isinstance(given["metrics"]["loss"], float) and "once/loss" in given["metrics"]


def test_step_ready_asks_everybody(tmp_path: Path) -> None:
    asked: list[str] = []

    class Stop(Component):
        @hookimpl
        def step_ready(self) -> bool:
            asked.append(self.name)
            return self.name != "first"

    pipeline = {
        **PIPELINE,
        "algorithm": ["once", {"stop": None, "as": "first"}, {"stop": None, "as": "second"}],
    }
    run(tmp_path, pipeline, {"once": PolicyGradient, "stop": Stop})
    assert asked == ["first", "second"] * 2


def test_iteration_done_comes_after_learning_with_its_metrics(tmp_path: Path) -> None:
    calls = recorded(tmp_path, having("iteration_done"), "iteration_done")
    for _, given in calls:
        assert {"reward/total", "reward/token-sum", "responses", "loss", "grad_norm"} <= set(given["metrics"])
        assert given["metrics"]["responses"] == 12.0


def test_iteration_done_sees_the_responses_of_all_refills(tmp_path: Path) -> None:
    """Also of those that a wrapper of `advantage` left out."""
    seen: list[tuple[int, int, float, bool]] = []

    class Watch(PolicyGradient):
        @hookimpl
        def iteration_done(self, rollout: Rollout, reward: Reward, metrics: Mapping[str, float]) -> None:
            total = float(reward.total_N.double().mean())
            same = total == pytest.approx(metrics["reward/total"], rel=1e-6)
            seen.append((len(rollout), len(reward.total_N), metrics["responses"], same))

    class KeepsNone(Component):
        @hookimpl(wrapper=True)
        def advantage(self) -> Any:
            batch = yield
            return batch.take(torch.zeros(len(batch), dtype=torch.bool))

    pipeline = {**PIPELINE, "algorithm": ["watch", "keeps-none"], "train": {**PIPELINE["train"], "refill": 2}}
    run(tmp_path, pipeline, {"watch": Watch, "keeps-none": KeepsNone})
    assert seen == [(36, 36, 36.0, True)] * 2, "three rounds of three prompts and four responses"


def test_iteration_done_may_finish_the_phase(tmp_path: Path) -> None:
    class Enough(Component):
        @hookimpl
        def iteration_done(self, run: Run) -> None:
            assert run.iteration == 1 and run.step == 4
            run.finish_phase("enough")

    _, done = run(
        tmp_path, {**PIPELINE, "algorithm": ["once", "enough"]}, {"once": PolicyGradient, "enough": Enough}
    )
    assert done.step == 4
    assert "enough" in " ".join(done.display.notes)  # type: ignore[attr-defined]


def test_evaluated_may_end_a_phase_that_no_longer_improves(tmp_path: Path) -> None:
    class Stop(Component):
        seen: ClassVar[list[tuple[int, float]]] = []

        @hookimpl
        def evaluated(self, run: Run, metrics: Mapping[str, float]) -> None:
            self.seen.append((run.iteration, metrics["eval/length"]))
            if run.iteration == 1:
                run.finish_phase("held out no better")

    _, done = run(
        tmp_path, {**PIPELINE, "algorithm": ["once", "stop"]}, {"once": PolicyGradient, "stop": Stop}
    )
    assert [iteration for iteration, _ in Stop.seen] == [0, 1]
    assert "held out no better" in " ".join(done.display.notes)  # type: ignore[attr-defined]


# -- the run a hook sees ----------------------------------------------------------------------------


def test_hooks_cannot_assign_to_the_run(tmp_path: Path) -> None:
    class Assigns(Component):
        @hookimpl
        def iteration_done(self, run: Run) -> None:
            for name in ("phase", "beta", "_phase"):
                with pytest.raises(AttributeError, match="a component keeps its state on itself"):
                    setattr(run, name, 1)
            with pytest.raises(TypeError):
                run.models["policy"] = None  # type: ignore[index]

    run(
        tmp_path, {**PIPELINE, "algorithm": ["once", "assigns"]}, {"once": PolicyGradient, "assigns": Assigns}
    )


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(PolicyGradient):
        @hookimpl
        def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
            seen.append(run.progress)
            return super().loss(batch, now)

        @hookimpl
        def iteration_done(self, run: Run) -> None:
            seen.append(run.progress)

    run(tmp_path, {**PIPELINE, "algorithm": "watch", "evaluate": None}, {"watch": Watch})
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 1.0
    assert seen[4] == 0.5  # after the first of two iterations


def test_run_ended_comes_once_to_a_component_of_two_phases(tmp_path: Path) -> None:
    pipeline = {k: v for k, v in placed("run_ended").items() if k != "algorithm"}
    algorithm = PIPELINE["algorithm"]
    pipeline["phases"] = [
        {"name": name, "algorithm": [*algorithm, "recorder"] if name != "c" else algorithm} for name in "abc"
    ]
    _, done = run(tmp_path, pipeline, {"recorder": having("run_ended"), "once": PolicyGradient})
    (recorder,) = [c for c in done.builder.built.values() if isinstance(c, Plain)]
    assert [(hook, given["error"]) for hook, given in recorder.calls] == [("run_ended", None)]


def test_run_ended_is_told_what_stopped_the_run(tmp_path: Path) -> None:
    class Fails(Component):
        @hookimpl
        def iteration_done(self) -> None:
            raise ValueError("enough")

    pipeline = {**PIPELINE, "algorithm": ["once", "recorder", "fails"]}
    extra = {"recorder": having("run_ended"), "once": PolicyGradient, "fails": Fails}
    started = session(tmp_path, pipeline, extra)
    with pytest.raises(ComponentError, match="enough") as stopped:
        started.run()
    (recorder,) = [c for c in started.builder.built.values() if isinstance(c, Plain)]
    assert [given["error"] for _, given in recorder.calls] == [stopped.value]


def test_run_ended_that_fails_too_hides_nothing(tmp_path: Path) -> None:
    class Fails(Component):
        @hookimpl
        def iteration_done(self) -> None:
            raise ValueError("the first")

        @hookimpl
        def run_ended(self) -> None:
            raise ValueError("the second")

    started = session(
        tmp_path, {**PIPELINE, "algorithm": ["once", "fails"]}, {"once": PolicyGradient, "fails": Fails}
    )
    with pytest.raises(ComponentError, match="the first"):
        started.run()
    assert any("the second" in note for note in started.display.notes)  # type: ignore[attr-defined]
