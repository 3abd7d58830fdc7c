"""The schema of pipelines: what is valid is valid, and what is broken fails at the right place."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jsonschema
import pytest
from click.testing import CliRunner
from pydantic import Field

from rlalign import Component, Options, Score, hookimpl
from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.errors import ConfigError
from rlalign_authoring import schema as of
from rlalign_authoring.command import schema

ROOT = Path(__file__).resolve().parents[2]


class Odd(Component):
    """Takes options of every kind. And more."""

    class Config(Options):
        """Options of `odd`."""

        share: float = Field(0.5, ge=0, le=1, description="a share")
        many: int | None = Field(None, gt=0, description="how many")
        mode: Literal["a", "b"] = Field("a", description="one of two")
        pair: tuple[int, float] = Field((1, 2.0), description="two numbers")
        words: tuple[str, ...] = Field((), description="some words")
        by_name: dict[str, bool] = Field({}, description="truth by name")

    config: Config
    bounds: ClassVar[Any] = (0.0, 1.0)

    @hookimpl
    def reward(self, rollout: Any) -> Score:
        raise NotImplementedError


class Asking(Odd):
    """Has an option that must be said."""

    class Config(Options):
        """Options of `asking`."""

        by: str = Field(description="what it goes by")

    config: Config  # type: ignore[assignment]


@pytest.fixture(scope="module")
def found() -> of.Schema:
    known = Registry({"odd": Odd, "asking": Asking}, trust=True)
    for package in sorted(ROOT.glob("examples/plugins/*")):  # examples, which need not be installed
        offers = tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"]["rlalign"]
        for name, value in offers.items():
            known.extra[name] = known.load(value, package / "src").cls
    whole, broken = of.pipelines(known)
    assert broken == []
    jsonschema.Draft7Validator.check_schema(whole)
    assert '"enum": []' not in of.written(whole)  # which editors refuse
    return whole


def wrong(found: of.Schema, data: Any) -> set[str]:
    """Where a pipeline fails: of alternatives, the one that came furthest."""
    errors = jsonschema.Draft7Validator(found).iter_errors(data)
    return {places.dotted(tuple(furthest(error).absolute_path)) for error in errors}


def furthest(error: Any) -> Any:
    return max([error, *map(furthest, error.context or ())], key=lambda one: len(one.absolute_path))


def pipelines() -> Iterator[Any]:
    """Every file that is a whole pipeline, and every block of the manual that is."""
    for pattern in ("examples", "benchmarks", "recipes", "tests", "study", "bench"):
        for path in sorted(ROOT.glob(f"{pattern}/**/*.yaml")):
            text = path.read_text()
            if "runs" not in path.parts and re.search(r"^policy:", text, re.MULTILINE):
                yield pytest.param(text, id=path.relative_to(ROOT).as_posix())
    for page in [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("**/README.md"))]:
        for i, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        ):
            if re.search(r"^policy:", text, re.MULTILINE) and "templates" not in page.parts:
                yield pytest.param(text, id=f"{page.relative_to(ROOT).as_posix()}:{i}")


@pytest.mark.parametrize("text", list(pipelines()))
def test_whatever_the_repository_says_is_valid(text: str, found: of.Schema) -> None:
    assert wrong(found, places.read(text, "a.yaml").data) == set()


GOOD: dict[str, Any] = {
    "task": "toy-numbers",
    "policy": {"table": {"actions": ["1", "2"], "steps": 3}},
    "rewards": [{"kl": {"coef": 0.1}}, {"odd": {"share": 0.5}, "as": "short", "weight": 2}],
    "algorithm": ["rloo", {"best-of": {"n": 2}}],
    "train": {"iterations": 3, "lr": 0.1, "schedule": {"shape": "linear"}},
    "evaluate": {"use": ["short"], "generation": {"samples": 2}},
}


def with_(path: str, value: Any) -> dict[str, Any]:
    """The good pipeline with one thing else; a path that ends in `-` takes it away."""
    data: Any = copy.deepcopy(GOOD)
    node, [*above, last] = data, [int(key) if key.isdigit() else key for key in path.rstrip("-").split(".")]
    for key in above:
        node = node[key]
    if path.endswith("-"):
        del node[last]
    else:
        node[last] = value
    return dict(data)


@pytest.mark.parametrize(
    "path, value",
    [
        ("rewards.1.odd", None),
        (
            "rewards.1.odd",
            {"share": "${train.lr}", "mode": "${oc.env:MODE}", "pair": "${oc.decode:${oc.env:P}}"},
        ),
        (
            "rewards.1.odd",
            {"many": None, "mode": "b", "pair": [2, 0.5], "words": ["a"], "by_name": {"x": True}},
        ),
        ("rewards.1", {"asking": {"by": "x"}, "isolate": True}),
        ("rewards.1", {"odd": {}, "isolate": {"memory": "4 GiB", "seconds": 3}}),
        ("rewards", "kl"),
        ("rewards", None),
        ("rewards", "${oc.decode:${oc.env:REWARDS}}"),
        ("rewards.0", "mine:Brevity"),
        ("rewards.0", {"mine:Brevity": {"anything": 1}, "as": "brevity"}),
        ("rewards.0", "rlalign:kl"),
        ("algorithm", {"rloo": {}, "weight": 0.5}),
        ("observers", ["mine:Watch"]),
        ("models", {"reference": {"of": "start", "dtype": "bfloat16"}, "mask": None, "value": "value-head"}),
        ("train", "${oc.decode:${oc.env:TRAIN}}"),
        ("train.lr", "${oc.env:LR}"),
        ("train.clip", None),
        ("evaluate", None),
        ("checkpoints", {"best": {"eval/odd": "low"}}),
        (
            "phases",
            [
                {"name": "a", "algorithm": "collect"},
                {"task": {"from": "a"}, "algorithm": "sft", "rewards": None},
            ],
        ),
    ],
)
def test_what_is_valid(path: str, value: Any, found: of.Schema) -> None:
    assert wrong(found, with_(path, value)) == set()


@pytest.mark.parametrize(
    "path, value, where",
    [
        ("trian", {"lr": 1}, ""),
        ("policy-", None, ""),
        ("algorithm-", None, ""),
        ("train.learning_rate", 0.1, "train"),
        ("train.lr", "fast", "train.lr"),
        ("train.lr", -1, "train.lr"),
        ("train.prompts", 1.5, "train.prompts"),
        ("train.schedule.shape", "round", "train.schedule.shape"),
        ("generation", {"samples": 0}, "generation.samples"),
        ("generation", "many", "generation"),
        ("algorithm", "reinforse", "algorithm"),
        ("algorithm", "token-f1", "algorithm"),
        ("algorithm.0", {"reinforse": {}}, "algorithm[0]"),
        ("rewards.0.kl.coef", "much", "rewards[0].kl.coef"),
        ("rewards.0.kl", {"coeff": 0.1}, "rewards[0].kl"),
        ("rewards.0", {"kl": {}, "odd": {}}, "rewards[0]"),
        ("rewards.0", {"as": "nobody"}, "rewards[0]"),
        ("rewards.0", {}, "rewards[0]"),
        ("rewards.0", "sft", "rewards[0]"),
        ("rewards.0", "asking", "rewards[0]"),
        ("rewards.0", {"asking": {}}, "rewards[0].asking"),
        ("rewards.0", {"asking": None}, "rewards[0].asking"),
        ("rewards.1.odd.share", 2, "rewards[1].odd.share"),
        ("rewards.1.odd.many", 0, "rewards[1].odd.many"),
        ("rewards.1.odd.mode", "c", "rewards[1].odd.mode"),
        ("rewards.1.odd.pair", [1], "rewards[1].odd.pair"),
        ("rewards.1.odd.pair", ["x", 1], "rewards[1].odd.pair[0]"),
        ("rewards.1.odd.by_name", {"x": 1}, "rewards[1].odd.by_name.x"),
        ("rewards.1.weight", "heavy", "rewards[1].weight"),
        ("rewards.1.as", "no name", "rewards[1].as"),
        ("task", "rloo", "task"),
        ("task", {"toy-numbers": {"size": "many"}}, "task.toy-numbers.size"),
        ("policy", {"table": {"steps": 3}}, "policy.table"),
        ("policy", {"table": {"actions": 2}, "weight": 1}, "policy"),
        ("models", {"policy": "table"}, "models.policy"),
        ("models", {"reference": {"of": "start", "dtype": "int8"}}, "models.reference.dtype"),
        ("evaluate.use", [{"odd": {"shaer": 1}}], "evaluate.use[0].odd"),
        ("evaluate.generation", {"beam": 2}, "evaluate.generation"),
        ("checkpoints", {"evry": 1}, "checkpoints"),
        ("phases", [], "phases"),
        ("phases", [{"algorithm": "rloo", "seed": 1}], "phases[0]"),
        ("phases", [{"algorithm": "rloo", "train": {"lr": "x"}}], "phases[0].train.lr"),
        ("phases", [{"task": {"from": "a", "with": ["another"]}}], "phases[0].task.with[0]"),
    ],
)
def test_what_is_broken_fails_at_its_place(path: str, value: Any, where: str, found: of.Schema) -> None:
    assert wrong(found, GOOD) == set()
    assert wrong(found, with_(path, value)) == {where}
    if (
        "odd" not in str(value) + path and value != "token-f1"
    ):  # which does nothing there; and it is what the program refuses, too
        text = (
            json.dumps(with_(path, value)).replace('"odd"', '"text-length"').replace('{"share": 0.5}', "{}")
        )
        with pytest.raises(ConfigError):
            load_pipeline(Path("p.yaml"), registry=Registry({"asking": Asking}, trust=True), text=text)


def test_every_option_says_what_it_is(found: of.Schema) -> None:
    assert {"kl", "odd", "asking"} <= set(of.names(found, "rewards"))
    kl = found["definitions"]["component kl"]["anyOf"][0]
    assert kl["description"] and kl["properties"]["coef"]["default"] == 0.1
    assert found["definitions"]["component odd"]["anyOf"][0]["description"] == "Takes options of every kind."
    for name in of.names(found, "rewards"):
        part = found["definitions"][f"component {name}"]
        for option, about in (part.get("anyOf") or [part])[0].get("properties", {}).items():
            assert about.get("description"), f"{name}: {option}"


def test_the_command_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "schema.json"
    done = CliRunner().invoke(schema, ["-o", str(out)])
    assert done.exit_code == 0 and f"schema: {out}" in done.output
    told = json.loads(out.read_text())
    assert told["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "rloo" in of.names(told, "algorithm")
