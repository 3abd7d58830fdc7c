"""Responses that bring their scores along are not scored again; wrappers, and what reads models, see them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Component, Rollout, Score, concat, hookimpl
from rlalign.data.rollout import AGE, SCORE_OF
from rlalign.testing import Bench


class Asked(Component):
    """Scores by the number of tokens; remembers how many it was asked for."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.asked: list[int] = []

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        self.asked.append(len(rollout))
        length_N = rollout.length_N.float()
        return Score(length_N, metrics={"twice": 2 * length_N, "steps": rollout.mask_NT.float()})


class AskedOfSteps(Asked):
    """The same, step by step."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        self.asked.append(len(rollout))
        return Score(rollout.mask_NT.float())


def opened(folder: Path, cls: type[Any] = Asked, *more: Any, steps: int = 7) -> Bench:
    say = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 16, "scale": 2.0}},
        "rewards": ["asked", *more],
        "algorithm": "policy-gradient",
        "generation": {"samples": 3, "max_new_tokens": steps},
        "train": {"iterations": 2, "prompts": 5},
    }
    return Bench(folder, say, {"asked": cls})


def component(bench: Bench) -> Any:
    return next(m.component for m in bench.phase.plan.members if m.name == "asked")


@pytest.mark.parametrize("cls", [Asked, AskedOfSteps])
def test_only_what_is_unknown_is_asked_for(cls: type[Any], tmp_path: Path) -> None:
    bench = opened(tmp_path, cls)
    rollout, reward = bench.rollout()
    given = {SCORE_OF + name: x + 100.0 for name, x in reward.given.items()}
    old = rollout.take(rollout.group_N < 2)
    old = old.with_columns(**{name: x[: len(old)] for name, x in given.items()})
    new = rollout.take(rollout.group_N >= 2)
    again = bench.stages.reward(bench.run, concat([new, old], fill=True))
    assert component(bench).asked == [len(rollout), len(new)]
    value = again.parts["asked"]
    assert torch.equal(value[: len(new)], reward.parts["asked"][len(old) :])
    kept = reward.parts["asked"][: len(old)]
    shown = torch.where(old.mask_NT, kept + 100.0, 0.0) if kept.ndim == 2 else kept + 100.0
    assert torch.equal(value[len(new) :], shown)
    if cls is Asked:
        assert torch.equal(
            again.metrics["asked/twice"][len(new) :], reward.metrics["asked/twice"][: len(old)] + 100
        )
    assert set(again.given) == set(reward.given)


@pytest.mark.parametrize("steps", [(3, 7), (7, 3)])
@pytest.mark.parametrize("cls", [Asked, AskedOfSteps])
def test_lengths_may_differ(cls: type[Any], steps: tuple[int, int], tmp_path: Path) -> None:
    """What was given to shorter or longer responses than the new ones stands at their own steps."""
    benches = [opened(tmp_path / str(n), cls, steps=n) for n in steps]
    (old, known), (new, _) = (bench.rollout() for bench in benches)
    old = old.with_columns(**{SCORE_OF + name: x for name, x in known.given.items()})
    both = concat([new, old], fill=True)
    assert (old.steps, new.steps, both.steps) == (*steps, 7)
    again = benches[1].stages.reward(benches[1].run, both)
    assert component(benches[1]).asked == [len(new), len(new)]
    whole = cls(None).reward(both)
    assert torch.equal(again.parts["asked"], whole.value)
    for name, x in whole.metrics.items():
        assert torch.equal(again.metrics[f"asked/{name}"], x)


def test_a_group_in_which_one_is_unknown_is_scored_whole(tmp_path: Path) -> None:
    bench = opened(tmp_path)
    rollout, _ = bench.rollout()
    known_N = torch.full((len(rollout),), 50.0)
    known_N[4] = float("nan")
    found = bench.stages.reward(bench.run, rollout.with_columns(**{f"{SCORE_OF}asked": known_N}))
    assert component(bench).asked[-1] == 3
    again_N = rollout.group_N == rollout.group_N[4]
    assert bool((found.parts["asked"][~again_N] == 50.0).all()) and bool(
        (found.parts["asked"][again_N] < 50).all()
    )


def test_wrappers_see_them_anew(tmp_path: Path) -> None:
    """What is known is what the component gave, not what a wrapper made of it."""
    bench = opened(tmp_path, Asked, {"clip": {"low": -1.0, "high": 2.0}})
    rollout, reward = bench.rollout()
    assert float(reward.parts["asked"].max()) == 2.0 < float(reward.given["asked"].max())
    known = rollout.with_columns(**{SCORE_OF + name: x for name, x in reward.given.items()})
    again = bench.stages.reward(bench.run, known)
    assert torch.equal(again.parts["asked"], reward.parts["asked"])
    assert len(component(bench).asked) == 1


def test_what_reads_models_is_asked_again(tmp_path: Path) -> None:
    """The KL of a response from an earlier iteration is that of the policy as it is."""
    bench = opened(tmp_path, Asked, {"kl": {"coef": 1.0}})
    rollout, reward = bench.rollout()
    assert set(reward.given) == {"asked", "asked/twice", "asked/steps"}
    assert float(reward.parts["kl"].abs().max()) < 1e-5  # policy and reference are one
    bench.iterate()
    old = rollout.with_columns(**{AGE: torch.ones(len(rollout))})
    bare = {name: x for name, x in old.columns.items() if "." not in name}
    read = bench.phase.outputs.with_columns(
        type(old)(**{**vars_of(old), "columns": bare}), bench.phase.plan.columns
    )
    now = bench.stages.reward(bench.run, read)
    by_hand_NT = (
        bench.run.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
        - bench.run.score("reference", rollout, ["full_logprobs"]).full_logprobs_NT
    )
    assert float(by_hand_NT.abs().max()) > 1e-4
    torch.testing.assert_close(now.parts["kl"], -torch.where(rollout.mask_NT, by_hand_NT, 0.0))


def vars_of(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}
