"""How components are built and connected: sharing, models, needs, units, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from rlalign.config.load import load_pipeline
from rlalign.data.batch import Batch, Loss, Outputs, Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.errors import ConfigError
from rlalign.interface.component import Component, Lagging
from rlalign.interface.hooks import hookimpl
from rlalign.running.plan import PhasePlan
from rlalign.running.planning import Builder, plan_phases
from rlalign.running.report import describe
from rlalign.testing import PolicyGradient, registry


class Reads(Component):
    class Config(Options):
        models: dict[str, str | int] = Field(
            {}, description="models and their roles; a number: renewed so often"
        )
        needs: tuple[str, ...] = Field((), description="what it needs")
        trains: tuple[str, ...] = Field((), description="what it trains")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.models = {
            name: Lagging(every=role) if isinstance(role, int) else role
            for name, role in config.models.items()
        }
        self.needs, self.trains = config.needs, config.trains

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout)))


class Unit(PolicyGradient):
    class Config(Options):
        unit: str = Field("response", description="its unit")
        min_samples: int = Field(1, description="how many it needs")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.unit, self.min_samples = config.unit, config.min_samples


class ValueLoss(Component):
    needs = ("values",)
    trains = ("value",)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        return Loss(batch.mean_over_tokens(now.values_NT**2))


EXTRA: dict[str, Any] = {"once": PolicyGradient, "reads": Reads, "unit": Unit, "value-loss": ValueLoss}
BASE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {}},
    "rewards": ["token-sum"],
    "algorithm": "once",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 1, "prompts": 2},
}


def wired(**change: Any) -> tuple[list[PhasePlan], Builder]:
    known = registry(EXTRA)
    text = json.dumps({**BASE, **change})
    return plan_phases(load_pipeline(Path("p.yaml"), registry=known, text=text), known)


def one(**change: Any) -> PhasePlan:
    (plan,), _ = wired(**change)
    return plan


# -- objects ----------------------------------------------------------------------------------------


def test_one_name_and_the_same_options_are_one_object_through_all_phases() -> None:
    phases = [
        {"name": "a", "rewards": ["token-sum", {"clip": {"high": 1.0}}]},
        {"name": "b", "rewards": ["token-sum", {"clip": {"high": 2.0}}]},
        {"name": "c", "rewards": [{"token-sum": None, "as": "sum"}, {"clip": {"high": 1.0}}]},
    ]
    (a, b, c), _ = wired(phases=phases)

    def of(plan: PhasePlan) -> dict[str, Component]:
        return {m.name: m.component for m in plan.members}

    assert of(a)["once"] is of(b)["once"] is of(c)["once"]
    assert of(a)["token-sum"] is of(b)["token-sum"] is not of(c)["sum"]
    assert of(a)["clip"] is of(c)["clip"] is not of(b)["clip"]
    assert of(c)["sum"].name == "sum"


def test_roles_say_who_acts_where() -> None:
    plan = one(
        rewards=["token-sum", "kl"], algorithm=["once", "best-of"], evaluate={"use": ["token-sum", "length"]}
    )
    assert plan.acting() == {
        "rollout": ["sampled"],
        "reward": ["token-sum", "kl"],
        "advantage": ["best-of"],
        "loss": ["once"],
        "iteration_done": ["kl"],
        "evaluate": ["token-sum", "length"],
    }


def test_components_that_neither_learn_nor_update_teach_nothing() -> None:
    assert one(algorithm="collect").learns is False
    assert one().learns is True


# -- models and needs -------------------------------------------------------------------------------


def test_models_follow_from_needs_and_trains() -> None:
    plan = one(rewards=[{"reads": {"needs": ["reference.logprobs", "value.values", "policy.entropy"]}}])
    assert plan.models == {"reference": "frozen", "value": "value"}
    assert plan.columns == (("reference", "logprobs"), ("value", "values"), ("policy", "entropy"))
    assert plan.live == {"logprobs"} and plan.trains == ("policy",)
    both = one(algorithm=["once", "value-loss"])
    assert both.models == {"value": "value"} and both.trains == ("policy", "value")
    assert both.live == {"logprobs", "values"}


def test_what_only_evaluation_needs_is_no_column_of_training() -> None:
    plan = one(evaluate={"use": [{"reads": {"needs": ["reference.logprobs"]}}]})
    assert plan.columns == () and plan.evaluation_columns == (("reference", "logprobs"),)
    assert plan.models == {"reference": "frozen"}


@pytest.mark.parametrize(
    "reads, said",
    [
        ({"needs": ["reference.perplexity"]}, "needs `reference.perplexity`, which no model gives"),
        ({"needs": ["state_values"]}, "needs `state_values`, which no model gives"),
        ({"needs": ["perplexity"]}, "needs `perplexity`, which no model gives"),
        ({"needs": ["judge.logprobs"]}, "model `judge` without saying its role"),
        ({"needs": ["policy.values"]}, "`policy.values` is needed, but `policy` is no value"),
        ({"needs": ["reference.values"]}, "`reference.values` is needed, but `reference` is no value"),
        ({"needs": ["value.logprobs"]}, "`value` is a value, which gives `values` and `state_values` only"),
        (
            {"models": {"reference": "lagging"}},
            "`reads` wants .* `reference` as lagging, but `kl` .* as frozen",
        ),
        (
            {"models": {"reference": 5}},
            "`reads` wants .* `reference` as lagging, renewed after every 5 iterations, but `kl` .* as frozen",
        ),
        ({"trains": ["reference"]}, "trains `reference`, which is frozen here"),
        ({"models": {"mask": "lagging"}, "trains": ["mask"]}, "trains `mask`, which is lagging here"),
    ],
)
def test_needs_that_nothing_meets(reads: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        one(rewards=["kl", {"reads": reads}])


@pytest.mark.parametrize(
    "declared, said",
    [
        ({"unit": "responses"}, "declares `unit = 'responses'`; there are response, group, step"),
        ({"needs": "logprobs"}, r"declares `needs` as one text; it is a list: `needs = \('logprobs',\)`"),
        ({"trains": "policy"}, r"declares `trains` as one text; it is a list: `trains = \('policy',\)`"),
    ],
)
def test_declarations_that_mean_nothing(
    declared: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, value), *_ = declared.items()
    monkeypatch.setattr(PolicyGradient, name, value)
    with pytest.raises(ConfigError, match=f"`once` {said}"):
        one()


def test_roles_that_agree_share_a_model() -> None:
    plan = one(rewards=["kl", {"reads": {"models": {"reference": "frozen", "mask": "lagging"}}}])
    assert plan.models == {"reference": "frozen", "mask": "lagging"}
    assert plan.lagging == {}


def test_a_lagging_copy_says_how_often_it_is_renewed() -> None:
    plan = one(rewards=[{"reads": {"models": {"mask": 5}}}])
    assert plan.models == {"mask": "lagging"}
    assert plan.lagging == {"mask": 5}
    with pytest.raises(ValueError, match="after 1 iteration or more"):
        Lagging(every=0)


def test_a_learning_rate_of_what_does_not_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lrs\.polcy: no model `polcy` learns; did you mean `policy`\?"):
        one(train={"iterations": 1, "lrs": {"polcy": 0.1}})
    one(train={"iterations": 1, "lrs": {"policy": 0.1}})


def test_models_that_no_phase_uses_are_refused_those_of_another_phase_are_not() -> None:
    with pytest.raises(ConfigError, match=r"models\.judge: no component uses a model `judge`"):
        one(models={"judge": {"of": "start"}})
    phases = [{"name": "a"}, {"name": "b", "rewards": ["kl"]}]
    (a, b), _ = wired(models={"reference": {"of": "start"}}, phases=phases)
    assert a.models == {} and b.models == {"reference": "frozen"}
    with pytest.raises(ConfigError, match=r"models\.judge: no component of any phase uses"):
        wired(models={"judge": {"of": "start"}}, phases=phases)


# -- units, samples, sources ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "units, unit",
    [
        (["response"], "response"),
        (["response", "group"], "group"),
        (["step", "group"], "step"),
        ([], "response"),
    ],
)
def test_the_coarsest_unit_rules(units: list[str], unit: str) -> None:
    algorithm = [{"unit": {"unit": u}, "as": f"u{i}"} for i, u in enumerate(units)] or ["collect"]
    assert one(algorithm=algorithm).unit == unit


@pytest.mark.parametrize(
    "change, enough",
    [
        ({"generation": {"samples": 3}}, True),
        ({"generation": {"samples": 2}}, False),
        ({"responses": {"mix": {"sampled": 2, "logged": 1}}}, True),
        ({"responses": {"mix": {"sampled": 1, "logged": 1}}, "generation": {"samples": 9}}, False),
        ({"responses": "logged"}, True),  # only the data can tell
    ],
)
def test_samples_that_a_component_cannot_do_without(change: dict[str, Any], enough: bool) -> None:
    change = {**change, "algorithm": {"unit": {"min_samples": 3}}}
    if enough:
        one(**change)
    else:
        with pytest.raises(ConfigError, match="`unit` needs at least 3 responses per prompt and gets 2"):
            one(**change)


def test_greedy_is_for_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"generation\.greedy"):
        one(generation={"greedy": True})
    one(generation={"greedy": True}, responses="logged")
    one(generation={"greedy": True}, algorithm="collect")


def test_source_names_a_part_of_the_mix() -> None:
    mix = {"mix": {"sampled": 1, "logged": 1}}
    one(responses=mix, algorithm=[{"once": None, "source": "logged"}])
    with pytest.raises(ConfigError, match=r"`source: replay` needs .* they come from `sampled` and `logged`"):
        one(responses=mix, algorithm=[{"once": None, "source": "replay"}])
    with pytest.raises(ConfigError, match="they come from `sampled`"):
        one(algorithm=[{"once": None, "source": "sampled"}])
    with pytest.raises(ConfigError, match="`source` restricts a loss, and `token-sum` has none"):
        one(responses=mix, rewards=[{"token-sum": None, "source": "logged"}])


# -- what `check` prints ----------------------------------------------------------------------------


def test_the_description_of_two_phases() -> None:
    known = registry(EXTRA)
    pipeline = {
        **BASE,
        "repeat": 2,
        "phases": [
            {"name": "warm", "responses": "logged", "rewards": ["logged"]},
            {"name": "align", "rewards": ["token-sum", "kl"], "train": {"passes": 3, "epochs": 2}},
        ],
    }
    loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline))
    plans, _ = plan_phases(loaded, known)
    assert describe(loaded, plans) == (
        "p: 2 phases, repeated 2 times; policy logits, seed 0\n"
        "\n"
        "warm:\n"
        "  task     numbers\n"
        "  rollout  logged\n"
        "  reward   logged\n"
        "  loss     once\n"
        "  models   policy built\n"
        "  trains   policy\n"
        "  needs    logprobs\n"
        "  length   1 iteration of 2 prompts, 1 optimiser step\n"
        "\n"
        "align:\n"
        "  task            numbers\n"
        "  rollout         sampled\n"
        "  reward          token-sum, kl\n"
        "  loss            once\n"
        "  iteration_done  kl\n"
        "  models          policy kept, reference built\n"
        "  trains          policy\n"
        "  needs           logprobs, policy.full_logprobs, reference.full_logprobs\n"
        "  length          3 passes of 2 prompts, 2 epochs of 1 optimiser step\n"
    )


def test_an_evaluation_that_measures_nothing_is_told() -> None:
    known = registry(EXTRA)
    pipeline = {**BASE, "rewards": None, "algorithm": "collect", "evaluate": {"every": 1}}
    loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline))
    plans, _ = plan_phases(loaded, known)
    assert re.search(r"^  evaluate +nothing but samples$", describe(loaded, plans), re.MULTILINE)


def test_all_faults_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    """Of four phases none hides another's, and what is written on a line is reported there."""
    text = """
task: numbers
policy: logits
rewards: [token-sum]
generation: {max_new_tokens: 4}
train: {iterations: 1}
phases:
- name: first
  algorithm:
  - unit: {min_samples: 3}
  generation: {samples: 1}
- name: second
  algorithm: unit
  generation:
    samples: 4
    greedy: true
- name: third
  algorithm:
  - unit
  - gate: {by: token-sum, at_least: 1}
- name: fourth
  algorithm: unit
  rewards:
  - token-sum
  - reads: {needs: [policy.values]}
"""
    known = registry({"unit": Unit, "reads": Reads})
    with pytest.raises(ConfigError) as error:
        plan_phases(load_pipeline(tmp_path / "p.yaml", registry=known, text=text), known)
    lines = str(error.value).splitlines()
    for line, part in (
        (10, "at least"),
        (16, "generation.greedy"),
        (20, "has a `reward` hook"),
        (25, "`policy.values`"),
    ):
        assert any(f"p.yaml:{line}:" in found and part in found for found in lines), (line, str(error.value))


class CountsDown(Component):
    """Fewer is better."""

    higher_is_better = False

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout)))


@pytest.mark.parametrize(
    "rewards, said",
    [
        (["counts-down"], "say `weight: -1`"),
        ([{"counts-down": None, "weight": 2.5, "as": "distance"}], "say `weight: -2.5`"),
        ([{"counts-down": None, "weight": -1}], None),
        (["token-sum", {"counts-down": None, "weight": 0}], None),
    ],
)
def test_what_counts_down_is_a_reward_under_a_negative_weight_only(
    rewards: list[Any], said: str | None
) -> None:
    pipeline: dict[str, Any] = {
        "task": "numbers",
        "policy": "logits",
        "rewards": rewards,
        "algorithm": "once",
        "train": {"iterations": 1},
        "evaluate": {"split": "train", "use": ["counts-down"]},  # as a metric it may count as it does
    }
    known = registry({"counts-down": CountsDown, "once": PolicyGradient})
    loaded = load_pipeline("p.yaml", registry=known, text=json.dumps(pipeline))
    if said is None:
        assert plan_phases(loaded, known)[0]
        return
    with pytest.raises(ConfigError) as refused:
        plan_phases(loaded, known)
    assert "counts down: a smaller score is better" in str(refused.value) and said in str(refused.value)
