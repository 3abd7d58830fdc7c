"""The stages: wrappers and what they wrap, training and evaluation kept apart, the right one blamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.data.batch import Batch, Reward, Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.testing import Bench, PolicyGradient, run, session

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "rewards": ["token-sum"],
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 3, "lr": 0.05, "epochs": 2},
}


class Adds(Component):
    """Notes which names it met, and adds one to each score."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.met: list[list[str]] = []

    @hookimpl(wrapper=True)
    def reward(self):
        scores = yield
        self.met.append([s.name for s in scores])
        return [Score(s.value + 1, s.name) for s in scores]


class Counts(Component):
    """A reward that counts its calls and the components that were loaded."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.calls: list[int] = []

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        self.calls.append(len(rollout))
        return Score(torch.ones(len(rollout)))


EXTRA: dict[str, Any] = {"once": PolicyGradient, "adds": Adds, "counts": Counts}


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def built(done: Any, cls: type[Any]) -> list[Any]:
    return [c for c in done.builder.built.values() if isinstance(c, cls)]


# -- reward wrappers --------------------------------------------------------------------------------


def test_a_wrapper_wraps_what_stands_above_it_and_nothing_below(tmp_path: Path) -> None:
    rewards = [
        {"token-sum": None, "weight": 3},
        {"length": None, "weight": 5},
        {"adds": None, "as": "inner"},
        "counts",
        {"adds": None, "as": "outer"},
        {"counts": None, "as": "free"},
    ]
    bench = Bench(tmp_path, {**PIPELINE, "rewards": rewards}, EXTRA)
    rollout, reward = bench.rollout()
    inner, outer = built(bench.session, Adds)
    assert inner.met == [["token-sum", "length"]]
    assert outer.met == [["token-sum", "length", "counts"]]
    assert list(reward.parts) == ["token-sum", "length", "counts", "free"]
    words = [text.split() for text in rollout.texts]
    raw = torch.tensor([sum(map(float, w)) / 10 for w in words])
    count = torch.tensor([float(len(w)) for w in words])
    torch.testing.assert_close(reward.parts["token-sum"], raw + 2)
    torch.testing.assert_close(reward.parts["length"], count + 2)
    assert reward.parts["counts"].tolist() == [2.0] * 12 and reward.parts["free"].tolist() == [1.0] * 12
    torch.testing.assert_close(reward.total_N, 3 * (raw + 2) + 5 * (count + 2) + 2 + 1)
    assert [c.calls for c in built(bench.session, Counts)] == [[12], [12]]  # wrapped twice, called once


def test_weights_are_not_seen_by_wrappers(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Look(Component):
        @hookimpl(wrapper=True)
        def reward(self):
            scores = yield
            seen.append(scores[0].value.tolist())
            return scores

    for name, weight in (("1", 1), ("2", -7)):
        rewards = [{"token-sum": None, "weight": weight}, "look"]
        _, reward = Bench(
            tmp_path / name, {**PIPELINE, "rewards": rewards}, {**EXTRA, "look": Look}
        ).rollout()
        assert torch.equal(reward.total_N, weight * torch.tensor(seen[-1]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("inner_fails", [True, False])
@pytest.mark.parametrize("stage", ["reward", "advantage"])
def test_whoever_raised_is_blamed_however_deep(stage: str, inner_fails: bool, tmp_path: Path) -> None:
    class Inner(PolicyGradient):
        pass

    class Outer(Component):
        pass

    def inner_reward(self: Any, rollout: Rollout) -> Score:
        if inner_fails:
            raise KeyError("inside")
        return Score(torch.zeros(len(rollout)))

    def inner_advantage(self: Any, rollout: Rollout, reward: Reward) -> Batch:
        if inner_fails:
            raise KeyError("inside")
        return Batch.of(rollout, reward, reward.total_N)

    def outer(self: Any) -> Any:
        result = yield
        if not inner_fails:
            raise KeyError("outside")
        return result

    if stage == "reward":
        Inner = type("Inner", (Component,), {"reward": hookimpl(inner_reward)})  # type: ignore[misc]
    else:
        Inner.advantage = hookimpl(inner_advantage)  # type: ignore[attr-defined]
    setattr(Outer, stage, hookimpl(wrapper=True)(outer))
    place = {"reward": {"rewards": ["inner", "outer"]}, "advantage": {"algorithm": ["inner", "outer"]}}[stage]
    guilty = "inner" if inner_fails else "outer"
    with pytest.raises(ComponentError, match=f"^`{stage}` of `{guilty}` "):
        run(tmp_path, {**PIPELINE, **place}, {**EXTRA, "inner": Inner, "outer": Outer})


# -- advantage wrappers -----------------------------------------------------------------------------


def test_advantage_wrappers_apply_top_down(tmp_path: Path) -> None:
    class Times(Component):
        factor = 1.0

        @hookimpl(wrapper=True)
        def advantage(self):
            batch = yield
            return Batch.of(batch.rollout, batch.reward, 10 * batch.advantage_NT + float(self.name[-1]))

    algorithm = ["once", {"times": None, "as": "t1"}, {"times": None, "as": "t2"}]
    bench = Bench(tmp_path, {**PIPELINE, "algorithm": algorithm}, {**EXTRA, "times": Times})
    rollout, reward = bench.rollout()
    batch = bench.stages.advantage(bench.run, rollout, reward)
    expected = 10 * (10 * reward.total_N + 1) + 2
    at = rollout.mask_NT
    torch.testing.assert_close(batch.advantage_NT[at], expected[:, None].expand_as(at)[at])


# -- training and evaluation ------------------------------------------------------------------------


def test_a_reward_listed_only_under_evaluate_never_reaches_training(tmp_path: Path) -> None:
    evaluate = {"every": 1, "examples": 4, "use": ["counts"]}
    finished, done = run(tmp_path, {**PIPELINE, "evaluate": evaluate}, EXTRA)
    (counts,) = built(done, Counts)
    assert counts.calls == [4] * 4  # before, and after each iteration; never on the 12 of training
    for row in lines(done.dir.path):
        assert not any(name.startswith("reward/counts") for name in row)
    assert finished.metrics["eval/counts"] == 1.0 and "eval/token-sum" not in finished.metrics


def test_a_bare_name_under_evaluate_is_that_very_reward(tmp_path: Path) -> None:
    rewards = [{"counts": None, "as": "mine", "weight": 4}, "token-sum"]
    evaluate = {"examples": 4, "use": ["mine", "length"]}
    finished, done = run(tmp_path, {**PIPELINE, "rewards": rewards, "evaluate": evaluate}, EXTRA)
    (counts,) = built(done, Counts)
    assert counts.calls == [4, 12, 12, 12, 4]
    assert finished.metrics["eval/mine"] == 1.0


def test_evaluation_without_use_measures_the_rewards_wrappers_included(tmp_path: Path) -> None:
    rewards = ["token-sum", {"clip": {"high": 0.0}}]
    finished, _ = run(tmp_path, {**PIPELINE, "rewards": rewards, "evaluate": {"examples": 4}}, EXTRA)
    assert finished.metrics["eval/token-sum"] == 0.0 == finished.metrics["eval/total"]


@pytest.mark.parametrize("dropout", [False, True])
def test_evaluation_touches_no_training_state(dropout: bool, tmp_path: Path) -> None:
    """With evaluation and without: weights, optimiser, every component's state, draws and metrics, to the bit."""
    pipeline = {
        **PIPELINE,
        "policy": {"logits": {"hidden": 5, "dropout": 0.3}},
        "rewards": ["token-sum", "normalise", {"kl": {"target": 0.1}}],
        "train": {**PIPELINE["train"], "dropout": dropout},
        "checkpoints": {"every": 1},
    }
    evaluate = {"every": 1, "examples": 4, "use": ["token-sum", "length"], "generation": {"temperature": 0.7}}
    _, without = run(tmp_path, pipeline, EXTRA, name="without")
    torch.manual_seed(12345)
    _, with_it = run(tmp_path, {**pipeline, "evaluate": evaluate}, EXTRA, name="with")
    for name, model in without.models.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, with_it.models[name].state_dict()[key]), f"{name}/{key}"
    trained = [row for row in lines(with_it.dir.path) if not any(k.startswith("eval/") for k in row)]
    assert trained == lines(without.dir.path)
    states = [{k: c.state_dict() for k, c in s.components.keyed.items()} for s in (without, with_it)]
    assert states[0] == {k: v for k, v in states[1].items() if k in states[0]}

    def saved(done: Any) -> dict[str, bytes]:
        (folder, *_) = sorted(done.dir.checkpoints.iterdir(), reverse=True)
        return {p.name: p.read_bytes() for p in folder.rglob("*.safetensors")}

    assert saved(without) == saved(with_it)


def test_every_evaluation_of_the_same_weights_is_the_same(tmp_path: Path) -> None:
    evaluate = {"every": 1, "examples": 4, "generation": {"temperature": 1.0, "samples": 3}}
    pipeline = {**PIPELINE, "evaluate": evaluate, "train": {**PIPELINE["train"], "lr": 0.0}}
    _, done = run(tmp_path, pipeline, EXTRA)
    rows = [{k: v for k, v in r.items() if k.startswith("eval/")} for r in lines(done.dir.path)]
    measured = [row for row in rows if row]
    assert len(measured) == 4 and all(row == measured[0] for row in measured)


# -- who may stand where ----------------------------------------------------------------------------


class Both(PolicyGradient):
    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N)


@pytest.mark.parametrize(
    "algorithm, said",
    [
        (
            [{"both": None, "as": "a"}, {"both": None, "as": "b"}],
            "only one component may implement `advantage`",
        ),
        (["best-of", "once"], "wraps the items above it in `algorithm`, and there are none"),
        (["once", "best-of", "both"], "`best-of` .* wraps `advantage`, which `both` .* implements below it"),
        (["both", {"best-of": {"n": 2}, "weight": 2}], "takes no weight"),
    ],
)
def test_places_that_make_no_sense(algorithm: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        session(tmp_path, {**PIPELINE, "algorithm": algorithm}, {**EXTRA, "both": Both})
