"""`missing-eos`, `gate`, `clip`, `normalise`: worked by hand, and part by part as in one go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlalign.builtin.rewards import Clip, Gate, MissingEos, Normalise
from rlalign.data.batch import Reward, Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, ComponentTests, Logits, PolicyGradient, run

ONE = Example("0", "0", ("1", "2 3", "4"), finished=(True, False, True))


def rollout() -> Rollout:
    policy = Logits(Logits.Config())
    policy.setup()
    return policy.encode([ONE])


def scores(**values: list[Any]) -> list[Score]:
    return [Score(torch.tensor(value), name) for name, value in values.items()]


def wrapped(cls: type[Component], given: list[Score], **options: Any) -> dict[str, list[Any]]:
    component = cls(cls.Config(**options))
    component.name = cls.__name__.lower()
    return through(component, given)


def through(component: Any, given: list[Score]) -> dict[str, list[Any]]:
    takes = component.reward.__code__.co_argcount > 1
    wrapper = component.reward(rollout()) if takes else component.reward()
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send(given)
    return {str(s.name): s.value.tolist() for s in stopped.value.value}


STEPS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


# -- missing-eos ------------------------------------------------------------------------------------


def test_missing_eos_replaces_the_score_of_an_unfinished_response() -> None:
    given = scores(a=[1.0, 2.0, 3.0], steps=STEPS)
    assert wrapped(MissingEos, given) == {"a": [1.0, -1.0, 3.0], "steps": STEPS}
    assert wrapped(MissingEos, given, score=0.5)["a"] == [1.0, 0.5, 3.0]


# -- gate -------------------------------------------------------------------------------------------


def test_gate_lets_scores_pass_where_the_key_opens_it() -> None:
    given = scores(key=[0.5, 0.4, 0.9], a=[1.0, 2.0, 3.0], steps=STEPS)
    found = wrapped(Gate, given, by="key", at_least=0.5)
    assert found["key"] == given[0].value.tolist()  # the key itself stays
    assert found["a"] == [1.0, 0.0, 3.0]
    assert found["steps"] == [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]
    assert wrapped(Gate, given, by="key", at_least=0.5, otherwise=-2.0)["a"] == [1.0, -2.0, 3.0]


def test_gate_opened_by_a_score_per_step_takes_its_sum_over_chosen_steps() -> None:
    given = scores(steps=[[3.0, 9.0], [1.0, 1.0], [1.0, 9.0]], a=[1.0, 1.0, 1.0])
    # The first and last response have two and two chosen steps: their token and the end.
    found = wrapped(Gate, given, by="steps", at_least=3.0)
    assert found["a"] == [1.0, 0.0, 1.0]


def test_gate_names_the_scores_there_are() -> None:
    with pytest.raises(ComponentError, match="`gate` is opened by `key`; the scores above it are a, b"):
        wrapped(Gate, scores(a=[1.0] * 3, b=[1.0] * 3), by="key", at_least=0.0)


# -- clip -------------------------------------------------------------------------------------------


def test_clip_holds_scores_between_its_bounds() -> None:
    given = scores(a=[-9.0, 0.5, 9.0], steps=STEPS)
    assert wrapped(Clip, given, low=-1.0, high=3.0) == {
        "a": [-1.0, 0.5, 3.0],
        "steps": [[1.0, 2.0], [3.0, 3.0], [3.0, 3.0]],
    }
    assert wrapped(Clip, given, low=0.0)["a"] == [0.0, 0.5, 9.0]


@pytest.mark.parametrize(
    "options, said", [({}, "give `low`, `high` or both"), ({"low": 1.0, "high": 0.0}, "`low` is above")]
)
def test_clip_refuses_bounds_that_bound_nothing(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Clip.Config(**options)


# -- normalise --------------------------------------------------------------------------------------


def done(component: Normalise, given: list[Score], seen: list[float]) -> None:
    """Tell it, as the loop would, that an iteration with these raw scores is over."""
    x = torch.tensor(seen, dtype=torch.float64)
    wrapper = component.reward(rollout())
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send(given)
    (name,) = stopped.value.value[0].metrics
    responses = rollout().take(torch.zeros(len(x), dtype=torch.long))
    component.iteration_done(responses, Reward(x[:, None], {}, {f"a/{name}": x}))


def test_normalise_uses_finished_iterations_only() -> None:
    component = Normalise(Normalise.Config())
    component.name = "normalise"
    given = scores(a=[1.0, 2.0, 6.0])
    assert through(component, given)["a"] == [1.0, 2.0, 6.0]
    done(component, given, [1.0, 2.0, 6.0])
    mean, std = 3.0, (14 / 3) ** 0.5
    assert through(component, given)["a"] == pytest.approx([(x - mean) / std for x in (1.0, 2.0, 6.0)])
    assert through(component, given)["a"] == through(component, given)["a"]
    done(component, given, [3.0])
    std = (14 / 4) ** 0.5
    assert through(component, given)["a"] == pytest.approx([(x - mean) / std for x in (1.0, 2.0, 6.0)])


def test_normalise_without_shift_and_of_a_constant() -> None:
    component = Normalise(Normalise.Config(shift=False))
    component.name = "normalise"
    given = scores(a=[1.0, 2.0, 6.0], steps=STEPS)
    done(component, given, [1.0, 2.0, 6.0])
    assert through(component, given)["a"] == pytest.approx([x / (14 / 3) ** 0.5 for x in (1.0, 2.0, 6.0)])
    assert through(component, given)["steps"] == STEPS
    constant = Normalise(Normalise.Config())
    constant.name = "normalise"
    done(constant, given, [2.0, 2.0])
    assert through(constant, scores(a=[2.0, 2.0, 2.0]))["a"] == pytest.approx([0.0, 0.0, 0.0])


def test_normalise_between_the_least_and_the_largest_of_finished_iterations() -> None:
    component = Normalise(Normalise.Config(by="min-max"))
    component.name = "normalise"
    given = scores(a=[1.0, 2.0, 6.0], steps=STEPS)
    assert through(component, given) == {"a": [1.0, 2.0, 6.0], "steps": STEPS}
    done(component, given, [2.0, 2.0])
    assert through(component, given)["a"] == [0.5, 0.5, 0.5]
    done(component, given, [1.0, 5.0])
    assert through(component, given) == {"a": [0.0, 0.25, 1.25], "steps": STEPS}
    again = Normalise(component.config)
    again.name = "normalise"
    again.load_state_dict(json.loads(json.dumps(component.state_dict())))
    assert through(again, given)["a"] == [0.0, 0.25, 1.25]


TWO = [Example("0", "0", ("1", "2", "3", "4")), Example("1", "1", ("5",)), Example("2", "2", ("6", "7"))]


@pytest.mark.parametrize(
    "by, expected",
    [
        ("rank", [0.5, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0]),
        ("min-max", [0.5, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0]),
        ("z-score", [0.0, -(2**0.5), 2**0.5, 0.0, 0.0, -1.0, 1.0]),
    ],
)
def test_normalise_within_groups(by: str, expected: list[float]) -> None:
    """Four responses of which two are tied, one alone, and two."""
    policy = Logits(Logits.Config())
    policy.setup()
    component = Normalise(Normalise.Config(by=by, over="group"))
    component.name = "normalise"
    given = torch.tensor([2.0, 1.0, 3.0, 2.0, 9.0, -1.0, 1.0])
    rows = torch.tensor([6, 0, 5, 3, 1, 4, 2])  # groups need not lie side by side
    wrapper = component.reward(policy.encode(TWO).take(rows))
    next(wrapper)
    with pytest.raises(StopIteration) as stopped:
        wrapper.send([Score(given[rows], "a")])
    (score,) = stopped.value.value
    assert score.value.tolist() == pytest.approx([expected[i] for i in rows], abs=1e-6)
    assert torch.equal(score.metrics["normalise/raw"], given[rows])


def test_ranks_are_not_moved_by_an_infinite_spread() -> None:
    """Ranks know no distances, and a score of another size is the same rank."""
    assert wrapped(Normalise, scores(a=[1e30, -5.0, 0.0]), by="rank")["a"] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"by": "rank", "over": "run"}, "compares the responses of a group; leave out `over: run`"),
        ({"by": "rank", "eps": 1.0}, "`shift` and `eps` belong to `by: z-score`, not to `by: rank`"),
        ({"by": "min-max", "shift": False}, "not to `by: min-max`"),
    ],
)
def test_normalise_refuses_what_would_do_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Normalise.Config(**options)


PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {}},
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.01, "dtype": "float64"},
}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_normalise_in_a_run_follows_the_scores_it_saw(tmp_path: Path) -> None:
    """The mean and deviation are those of every response of the iterations before."""
    seen: list[list[float]] = []

    class Watch(Component):
        @hookimpl(wrapper=True)
        def reward(self):
            result = yield
            seen.append(result[0].value.tolist())
            return result

    rewards = ["token-sum", {"watch": None, "as": "before"}, "normalise", {"watch": None, "as": "after"}]
    run(tmp_path, {**PIPELINE, "rewards": rewards}, {"once": PolicyGradient, "watch": Watch})
    raw, scaled = seen[0::2], seen[1::2]
    assert scaled[0] == raw[0]
    for i in (1, 2):
        before = torch.tensor([x for part in raw[:i] for x in part], dtype=torch.float64)
        expected = (torch.tensor(raw[i], dtype=torch.float64) - before.mean()) / before.std(unbiased=False)
        assert scaled[i] == pytest.approx(expected.tolist(), rel=1e-5)


def test_two_normalisers_do_not_mix_their_figures(tmp_path: Path) -> None:
    rewards = ["token-sum", "normalise", {"normalise": {"shift": False}, "as": "again"}]
    _, session = run(tmp_path, {**PIPELINE, "rewards": rewards}, {"once": PolicyGradient})
    inner, outer = [c for c in session.builder.built.values() if isinstance(c, Normalise)]
    _alone, single = run(tmp_path, {**PIPELINE, "rewards": rewards[:2]}, {"once": PolicyGradient})
    (only,) = [c for c in single.builder.built.values() if isinstance(c, Normalise)]
    first = lines(session.dir.path)[0]
    assert first["reward/token-sum"] == lines(single.dir.path)[0]["reward/token-sum"]
    count, total, *_ = inner.seen["token-sum"]
    assert count == only.seen["token-sum"][0] == 36
    # It saw raw scores, which are positive and about two; the outer one saw normalised ones.
    assert total / count > 1.0
    assert outer.seen["token-sum"] != inner.seen["token-sum"]


@pytest.mark.parametrize(
    "wrapper",
    [
        "normalise",
        {"normalise": {"by": "rank"}},
        "per-length",
        {"potential": {"every": 2}},
        "missing-eos",
        {"clip": {"high": 1.0}},
        {"gate": {"by": "length", "at_least": 3.0}},
    ],
)
def test_parts_are_the_whole(wrapper: Any, tmp_path: Path) -> None:
    """Whatever way a batch is cut into whole groups, a response earns the same."""
    rewards = ["token-sum", "length", wrapper]
    bench = Bench(tmp_path, {**PIPELINE, "rewards": rewards}, {"once": PolicyGradient})
    for _ in range(2):
        rollout, reward = bench.rollout()
        parts = [bench.stages.reward(bench.run, rollout.take(rollout.group_N == g)) for g in range(3)]
        for name, whole in reward.parts.items():
            assert torch.equal(whole, torch.cat([p.parts[name] for p in parts]))
        assert torch.equal(reward.total_N, torch.cat([p.total_N for p in parts]))
        bench.iterate()


def test_wrappers_name_one_thing_each_and_nest(tmp_path: Path) -> None:
    """Below the list they wrap, in order; weights apply afterwards."""
    rewards = [
        {"token-sum": None, "weight": 2},
        {"clip": {"high": 1.0}},
        {"length": None, "weight": -1},
        {"clip": {"high": 2.0}, "as": "clip-all"},
    ]
    bench = Bench(tmp_path, {**PIPELINE, "rewards": rewards}, {"once": PolicyGradient})
    rollout, reward = bench.rollout()
    assert list(reward.parts) == ["token-sum", "length"]
    for i, text in enumerate(rollout.texts):
        words = text.split()
        a, b = min(1.0, sum(map(float, words)) / 10), min(2.0, len(words))
        assert reward.parts["token-sum"][i] == pytest.approx(a)
        assert reward.parts["length"][i] == b
        assert reward.total_N[i] == pytest.approx(2 * a - b)


class TestMissingEos(ComponentTests):
    component = "missing-eos"


class TestGate(ComponentTests):
    component = "gate"
    options = {"by": "token-sum", "at_least": 1.0}


class TestClip(ComponentTests):
    component = "clip"
    options = {"low": 0.0, "high": 1.5}


class TestNormalise(ComponentTests):
    component = "normalise"


class TestNormaliseByMinMax(ComponentTests):
    component = "normalise"
    options = {"by": "min-max"}


class TestNormaliseByRank(ComponentTests):
    component = "normalise"
    options = {"by": "rank"}
