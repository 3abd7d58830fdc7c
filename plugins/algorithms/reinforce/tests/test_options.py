"""What a file may say of the family: defaults by member, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError
from rlalign.config.load import load_pipeline
from rlalign.testing.bench import Bench, registry
from rlalign_plugin_reinforce import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    RLOO,
    DrGRPO,
    Reinforce,
    ReinforcePP,
    ReinforcePPBaseline,
)
from rlalign_plugin_reinforce.options import Family

from .conftest import MEMBERS, numbers

CLASSES = (Reinforce, RLOO, GRPO, DrGRPO, DAPO, GSPO, CISPO, ReinforcePP, ReinforcePPBaseline)


def load(folder: Path, algorithm: Any, **more: Any) -> Any:
    text = json.dumps(numbers(algorithm, **more))
    return load_pipeline(folder / "pipeline.yaml", registry=registry(), text=text).phases[0]


def test_a_preset_changes_defaults_and_nothing_else() -> None:
    changed = {c.__name__: c.Config().model_dump(exclude_defaults=False) for c in CLASSES}
    assert Family().ratio == "none" and Family().baseline == "none" and Family().clip is None
    assert changed["GRPO"] == {
        **Family().model_dump(),
        **{"baseline": "group", "scale": "group", "ratio": "token", "clip": (0.2, 0.2)},
        **{"mean": "response-means", "kl": 0.04},
    }
    assert changed["DAPO"] == {**changed["GRPO"], "clip": (0.2, 0.28), "mean": "tokens", "kl": 0.0}
    for cls in CLASSES:
        for name, field in cls.Config.model_fields.items():
            assert field.description == Family.model_fields[name].description
            assert getattr(cls.Config(), name) == field.default


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_takes_every_option_that_makes_sense_for_it(member: str, tmp_path: Path) -> None:
    """Whatever a member sets can be said otherwise: here, all of RLOO with a ratio of its own."""
    said = {
        **{"baseline": "others", "credit": "to-go", "scale": "batch", "bessel": False, "delta": 0.1},
        **{"ratio": "token", "clip": [None, 0.5], "clipped": "weight", "mean": "constant", "longest": 9},
        **{"kl": 0.01, "estimator": "k2", "importance": {"cap": None, "level": "sequence"}},
    }
    (item,) = load(tmp_path, {member: said}).algorithm
    assert json.loads(item.options.model_dump_json()) == said
    Bench(tmp_path, numbers({member: said})).iterate()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "clip of no ratio": (
        {"rloo": {"clip": [0.2, 0.2]}},
        "`clip` and `clipped` are about a ratio, and there is none",
    ),
    "weights of no ratio": ({"reinforce": {"clipped": "weight"}}, "about a ratio, and there is none"),
    "tokens of whole responses": (
        {"gspo": {"credit": "to-go"}},
        "one action with one advantage, and `credit: to-go` gives each token its own; use `ratio: token`",
    ),
    "length of whole responses": (
        {"dr-grpo": {"ratio": "sequence"}},
        "no length for `mean: constant` to divide by",
    ),
    "weights of tokens": (
        {"gspo": {"importance": {}}},
        "which has one weight; use `importance: {level: sequence}`",
    ),
    "a deviation of nothing": ({"dr-grpo": {"delta": 0.1}}, "nothing is divided by one; set `scale`"),
    "Bessel of nothing": ({"rloo": {"bessel": False}}, "nothing is divided by one; set `scale`"),
    "a length nobody reads": ({"grpo": {"longest": 9}}, "this is `mean: response-means`; leave it out"),
    "an estimator of nothing": ({"dapo": {"estimator": "k2"}}, "its weight `kl` is 0; set `kl`"),
    "k1 in a loss": ({"grpo": {"estimator": "k1"}}, "k1's gradient is zero on average"),
    "a bound below none": ({"grpo": {"clip": [-0.1, 0.2]}}, "two numbers of 0 or more"),
    "one bound": ({"grpo": {"clip": [0.2]}}, "clip"),
    "a cap of nothing": ({"grpo": {"importance": {"cap": 0}}}, "importance.cap"),
    "a word": ({"grpo": {"baseline": "mean"}}, "baseline"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    algorithm, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, algorithm)
    assert message in str(error.value)
    assert "pipeline.yaml:1" in str(error.value) and next(iter(algorithm)) in str(error.value)


def test_a_kl_in_the_loss_and_one_among_the_rewards_are_one_too_many(tmp_path: Path) -> None:
    rewards = ["token-sum", {"kl": {"coef": 0.1}}]
    with pytest.raises(ConfigError, match="grpo"):
        Bench(tmp_path, numbers("grpo", rewards=rewards))
    assert len(Bench(tmp_path / "dapo", numbers("dapo", rewards=rewards)).batch())
