"""From a pipeline file to types: what it means, and what is said when it means nothing."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Literal

import pytest
from pydantic import Field, model_validator

import rlalign
from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Evaluate, Item, ModelSpec, Phase, Pipeline
from rlalign.config.registry import Registry
from rlalign.data.settings import Options, Sampling
from rlalign.errors import ConfigError
from rlalign.interface.component import Component, Task
from rlalign.interface.policy import Policy, Value


class Table(Policy):
    class Config(Options):
        size: int = Field(3, description="actions")


class Head(Value):
    class Config(Options):
        trunk: Literal["policy", "own"] = "policy"


class Toy(Task):
    class Config(Options):
        path: Path | None = None
        hub: str | Path = "some/hub"
        parts: list[Path] = []
        n: int = 1
        extra: dict[str, float] = {}


class KL(Component):
    class Config(Options):
        coef: float = Field(0.1, description="its factor")
        target: float | None = None

    def reward(self): ...


class Length(Component):
    class Config(Options):
        low: int = 0
        per: int | str = 1

    def reward(self): ...


class Model(Component):
    class Config(Options):
        path: str = Field(description="the model's folder")

    def reward(self): ...


class Diversity(Component):
    def evaluate(self): ...


class PPO(Component):
    class Config(Options):
        clip: float = Field(0.2, gt=0)
        form: Literal["seq", "token"] = "seq"
        betas: tuple[float, float] = (0.9, 0.99)
        nested: Sampling = Sampling()

        @model_validator(mode="after")
        def _together(self):
            if self.clip > 100:
                raise ValueError("clip makes no sense beyond 100")
            return self


class DPO(Component):
    responses = "logged"


class Fussy(Component):
    def __init__(self, config):
        raise ValueError("never content")


class Sampled(Component):
    def rollout(self): ...


class Logged(Component):
    def rollout(self): ...

    def reward(self): ...


class Mix(Component):
    class Config(Options):
        logged: int = 0
        sampled: int = 0

    def rollout(self): ...


COMPONENTS = {
    "table": Table,
    "value-head": Head,
    "toy": Toy,
    "kl": KL,
    "length": Length,
    "reward-model": Model,
    "diversity": Diversity,
    "ppo": PPO,
    "dpo": DPO,
    "fussy": Fussy,
    "sampled": Sampled,
    "logged": Logged,
    "mix": Mix,
}

ONE = """\
task: toy
policy: {table: {size: 4}}
rewards:
- length
- kl: {coef: 0.1}
  weight: 2
  as: penalty
algorithm: {ppo: {clip: 0.3}}
train: {iterations: 5}
"""

TWO = """\
task: toy
policy: table
rewards: [length]
generation: {samples: 4, top_p: 0.9}
train: {lr: 1e-3, prompts: 8}
phases:
- {name: warm, algorithm: dpo, train: {passes: 1}}
- name: align
  algorithm: {ppo: {clip: 0.3}}
  train: {iterations: 2, lr: 1e-4}
  generation: {samples: 8}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides, **options):
        path = tmp_path / "p.yaml"
        path.write_text(dedent(text))
        return load_pipeline(path, overrides, registry=Registry(COMPONENTS, trust=True), **options)

    return load


@pytest.fixture
def refusal(load, tmp_path):
    """What is said about a pipeline, with the file's folder left out."""

    def refusal(text, *overrides, **options):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, **options)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal


# --- what a file means ----------------------------------------------------------------------------


def test_one_phase(load, tmp_path):
    pipeline = load(ONE)
    (phase,) = pipeline.phases
    assert (pipeline.stem, pipeline.repeat, pipeline.seed, pipeline.device) == ("p", 1, 0, "auto")
    assert pipeline.deterministic is False
    assert pipeline.checkpoints.last == 2
    assert pipeline.policy.cls is Table
    assert pipeline.policy.options.size == 4
    assert phase.name == "ppo"
    assert phase.place == f"{tmp_path}/p.yaml:1"
    assert phase.task.cls is Toy
    assert phase.origin is None
    assert [(i.name, i.component, i.weight) for i in phase.rewards] == [
        ("length", "length", 1.0),
        ("penalty", "kl", 2.0),
    ]
    assert phase.rewards[1].place == f"{tmp_path}/p.yaml:5"
    assert phase.algorithm[0].options.clip == 0.3
    assert phase.generation == Sampling()
    assert phase.train.iterations == 5
    assert phase.evaluate is None
    assert phase.models == {}


def test_top_level_keys(load):
    text = ONE + "repeat: 3\nseed: 7\ndevice: cpu\ndeterministic: true\ncheckpoints: {every: 2, last: 5}\n"
    pipeline = load(text)
    assert (pipeline.repeat, pipeline.seed, pipeline.device, pipeline.deterministic) == (3, 7, "cpu", True)
    assert (pipeline.checkpoints.every, pipeline.checkpoints.last) == (2, 5)


def test_a_list_of_algorithms_and_one_reward(load):
    pipeline = load(
        ONE.replace("{ppo: {clip: 0.3}}", "[dpo, {ppo: {clip: 0.3}, as: second, source: logged}]")
    )
    dpo, ppo = pipeline.phases[0].algorithm
    assert (dpo.name, ppo.name, ppo.source, pipeline.phases[0].name) == ("dpo", "second", "logged", "dpo")
    one = "task: toy\npolicy: table\nrewards: length\nalgorithm: ppo\ntrain: {passes: 1}\n"
    assert [item.name for item in load(one).phases[0].rewards] == ["length"]


def test_null_options_are_no_options(load):
    assert load(ONE.replace("{ppo: {clip: 0.3}}", "{ppo: }")).phases[0].algorithm[0].options.clip == 0.2


def test_lists_fit_tuples_and_whole_numbers_fit_numbers(load):
    ppo = load(ONE.replace("{clip: 0.3}", "{betas: [1, 0.5], clip: 1}")).phases[0].algorithm[0]
    assert ppo.options.betas == (1.0, 0.5)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5),
        ("1E3", 1e3),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2.5e+1", -25.0),
        ("3", 3.0),
        ("1_000", 1000.0),
    ],
)
def test_numbers_as_people_write_them(load, text, value):
    assert load(ONE, f"rewards.penalty.coef={text}").phases[0].rewards[1].options.coef == value
    assert load(ONE.replace("coef: 0.1", f"coef: {text}")).phases[0].rewards[1].options.coef == value


@pytest.mark.parametrize("text", ["2026-11-20", "12:30", "010", "=", "0o7", "1e5x"])
def test_what_yaml_would_turn_into_something_else_is_text(text):
    assert places.value(text, "x") == text


def test_merge_keys_and_anchors(load):
    text = """\
        task: toy
        policy: table
        phases:
        - name: a
          algorithm: ppo
          train: &base {iterations: 2, prompts: 3}
        - name: b
          algorithm: ppo
          train: {<<: *base, prompts: 5}
        """
    a, b = load(text).phases
    assert (a.train.prompts, b.train.prompts, b.train.iterations) == (3, 5, 2)


def test_items_build(load):
    item = load(ONE).phases[0].rewards[1]
    assert item.build().name == "penalty"
    assert item.build().config.coef == 0.1


def test_own_component_from_a_module_beside_the_file(load, tmp_path):
    code = "from rlalign import Component\nclass Brief(Component):\n    def reward(self): ...\n"
    (tmp_path / "own_rewards.py").write_text(code)
    pipeline = load(ONE.replace("- length", "- own_rewards:Brief") + "evaluate: {use: [Brief]}\n")
    phase = pipeline.phases[0]
    assert (phase.rewards[0].name, phase.rewards[0].component) == ("Brief", "own_rewards:Brief")
    assert phase.evaluate.use == (phase.rewards[0],)


@pytest.mark.parametrize("name", ["[a]", "{a: b}"])
def test_a_reward_whose_name_is_no_text_is_told_where_evaluate_looks_for_it(load, name):
    text = ONE.replace("- length", f"- {{length: {{}}, as: {name}}}") + "evaluate: {use: [length]}\n"
    with pytest.raises(ConfigError, match="as: expected text"):
        load(text)


# --- phases and what they inherit -----------------------------------------------------------------


def test_sections_merge_key_by_key(load):
    warm, align = load(TWO).phases
    assert (warm.train.passes, warm.train.lr, warm.train.prompts) == (1, 1e-3, 8)
    assert (align.train.iterations, align.train.lr, align.train.prompts) == (2, 1e-4, 8)
    assert (warm.generation.samples, warm.generation.top_p) == (4, 0.9)
    assert (align.generation.samples, align.generation.top_p) == (8, 0.9)


def test_items_are_shared_by_the_phases_that_inherit_them(load):
    warm, align = load(TWO).phases
    assert warm.rewards[0] is align.rewards[0]


def test_entries_are_replaced_whole(load):
    text = TWO.replace("rewards: [length]", "rewards: [length]\nalgorithm: {ppo: {clip: 0.7}}").replace(
        "{ppo: {clip: 0.3}}", "{ppo: {form: token}}"
    )
    warm, align = load(text).phases
    assert (align.algorithm[0].options.clip, align.algorithm[0].options.form) == (0.2, "token")
    assert [item.name for item in warm.algorithm] == ["dpo"]


def test_null_takes_an_inherited_section_away(load):
    text = TWO + "  rewards: null\n  evaluate: null\nevaluate: {every: 1}\n"
    warm, align = load(text).phases
    assert warm.evaluate.every == 1
    assert (align.evaluate, align.rewards) == (None, ())


def test_passes_in_a_phase_displace_inherited_iterations(load):
    text = TWO.replace("{lr: 1e-3,", "{iterations: 9, minibatches: 4,").replace(
        "{passes: 1}", "{passes: 1, minibatch: 2}"
    )
    warm, align = load(text).phases
    assert (warm.train.iterations, warm.train.passes) == (None, 1)
    assert (warm.train.minibatch, warm.train.minibatches) == (2, 1)
    assert (align.train.iterations, align.train.passes, align.train.minibatches) == (2, None, 4)


def test_two_overrides_do_not_displace_each_other(load):
    with pytest.raises(ConfigError) as caught:
        load(ONE, "train.minibatch=1", "train.minibatches=2")
    assert str(caught.value) == (
        "command line (train.minibatches=2): `train.minibatch=1` says the same in another way; leave one of them out"
    )
    with pytest.raises(ConfigError, match=r"`phases.0.train.passes=1` says the same in another way"):
        load(TWO, "phases.0.train.passes=1", "phases.warm.train.iterations=2")
    (phase,) = load(ONE, "train.passes=null", "train.iterations=7", "train.iterations=8").phases
    assert (phase.train.iterations, phase.train.passes) == (8, None)


def test_models(load, tmp_path):
    (tmp_path / "old").mkdir()
    models = "models: {reference: {of: start}, value: {value-head: {trunk: own}}, mask: {of: ./old}}\n"
    warm, align = load(TWO + "  models: {reference: {of: iteration}, mask: null}\n" + models).phases
    assert (warm.models["reference"].of, align.models["reference"].of) == ("start", "iteration")
    assert warm.models["value"].item.cls is Head
    assert warm.models["value"].item is align.models["value"].item
    assert warm.models["mask"].of == str(tmp_path / "old")
    assert "mask" not in align.models


def test_a_copy_may_be_held_in_another_precision(load):
    models = "models: {reference: {dtype: bfloat16}, mask: {of: start, dtype: float32}}\n"
    warm, align = load(TWO + "  models: {mask: {dtype: bfloat16}}\n" + models).phases
    assert (warm.models["reference"].of, warm.models["reference"].dtype) == (None, "bfloat16")
    assert (warm.models["mask"].of, warm.models["mask"].dtype) == ("start", "float32")
    assert (align.models["mask"].of, align.models["mask"].dtype) == (None, "bfloat16")


def test_a_phase_learns_from_an_earlier_one(load):
    text = (
        TWO
        + "- {name: improve, algorithm: dpo, train: {passes: 1}, rewards: [], task: {from: align, with: [original]}}\n"
    )
    phase = load(text).phases[2]
    assert (phase.origin.phase, phase.origin.original) == ("align", True)
    assert phase.task.name == "toy"
    assert phase.rewards == (phase.responses,)
    assert not load(text.replace(", with: [original]", "")).phases[2].origin.original


# --- responses ------------------------------------------------------------------------------------


def test_responses_default_to_what_the_algorithm_wants(load):
    warm, align = load(TWO).phases
    assert (warm.responses.cls, align.responses.cls) == (Logged, Sampled)


def test_responses_as_the_file_says(load):
    assert load(ONE + "responses: logged\n").phases[0].responses.cls is Logged
    mix = load(ONE + "responses: {mix: {logged: 1, sampled: 3}}\n").phases[0].responses
    assert (mix.cls, mix.options.logged, mix.options.sampled) == (Mix, 1, 3)
    assert load(ONE + "responses: null\n").phases[0].responses.cls is Sampled


def test_logged_responses_bring_their_scores(load):
    text = "task: toy\npolicy: table\nalgorithm: dpo\ntrain: {passes: 1}\n"
    (phase,) = load(text).phases
    assert phase.rewards == (phase.responses,)
    (phase,) = load(text + "rewards: [length]\n").phases
    assert [item.name for item in phase.rewards] == ["length"]
    (phase,) = load(text + "rewards: [{logged: {}, weight: 2}]\n").phases
    assert phase.responses is phase.rewards[0]
    assert load(text + "responses: sampled\n").phases[0].rewards == ()


def test_two_algorithms_that_want_different_responses(refusal):
    class Online(Component):
        responses = "sampled"

    registry = Registry({**COMPONENTS, "online": Online})
    text = ONE.replace("{ppo: {clip: 0.3}}", "[dpo, online]")
    with pytest.raises(
        ConfigError, match="`dpo` learns from logged ones and `online` learns from sampled ones"
    ):
        load_pipeline("p.yaml", registry=registry, text=text)


def test_a_component_that_refuses_its_options(refusal):
    message = refusal(ONE.replace("{ppo: {clip: 0.3}}", "fussy"))
    assert message == "p.yaml:8: algorithm: `fussy` refuses its options: never content"


class Published(Component):
    """Sets what its paper set around it."""

    class Config(Options):
        epochs: int = 4
        minibatches: int = 2

    def __init__(self, config):
        super().__init__(config)
        train = {"epochs": config.epochs, "minibatches": config.minibatches}
        self.defaults = {"train": train, "generation": {"temperature": 0.7}}


def published(text):
    registry = Registry({**COMPONENTS, "published": Published})
    return load_pipeline("p.yaml", registry=registry, text=text).phases


def test_an_algorithm_sets_what_the_file_does_not_say():
    text = ONE.replace("{ppo: {clip: 0.3}}", "published")
    (phase,) = published(text)
    assert (phase.train.epochs, phase.train.minibatches, phase.generation.temperature) == (4, 2, 0.7)
    (phase,) = published(text.replace("iterations: 5", "iterations: 5, epochs: 1, minibatch: 8"))
    assert (phase.train.epochs, phase.train.minibatch, phase.train.minibatches) == (1, 8, 1)
    first, second = published(TWO.replace("{ppo: {clip: 0.3}}", "published"))
    assert (first.train.epochs, second.train.epochs, second.train.lr) == (1, 4, 1e-4)
    assert (second.generation.top_p, second.generation.temperature) == (0.9, 0.7)


def test_two_algorithms_that_set_the_same_differently():
    text = ONE.replace("{ppo: {clip: 0.3}}", "[published, {published: {epochs: 3}, as: other}]")
    with pytest.raises(
        ConfigError, match=r"train: `epochs` is missing: `published` sets 4 and `other` 3; say which"
    ):
        published(text)
    assert published(text.replace("iterations: 5", "iterations: 5, epochs: 2"))[0].train.epochs == 2


def test_a_task_sets_what_the_file_does_not_say_and_no_algorithm_may_differ():
    class Long(Task):
        defaults = {"generation": {"max_new_tokens": 9, "temperature": 0.7}}

    class Short(Task):
        defaults = {"generation": {"temperature": 0.5}}

    registry = Registry({**COMPONENTS, "published": Published, "long": Long, "short": Short})
    text = ONE.replace("{ppo: {clip: 0.3}}", "published")
    first = next(line for line in text.splitlines() if line.startswith("task:"))

    def generation(task):
        said = text.replace(first, f"task: {task}")
        return load_pipeline("p.yaml", registry=registry, text=said).phases[0].generation

    assert (generation("long").max_new_tokens, generation("long").temperature) == (9, 0.7)
    told = r"`temperature` is missing: `short` sets 0\.5 and `published` 0\.7; say which"
    with pytest.raises(ConfigError, match=told):
        generation("short")


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate(load):
    text = (
        ONE
        + "evaluate: {every: 10, split: test, examples: 5, use: [penalty, diversity], generation: {temperature: 0.7}}\n"
    )
    (phase,) = load(text).phases
    assert (phase.evaluate.every, phase.evaluate.split, phase.evaluate.examples) == (10, "test", 5)
    assert phase.evaluate.use[0] is phase.rewards[1]
    assert phase.evaluate.use[1].cls is Diversity
    assert phase.evaluate.generation.model_dump(exclude_unset=True) == {"temperature": 0.7}


def test_evaluate_defaults(load):
    (phase,) = load(ONE + "evaluate: {}\n").phases
    assert (phase.evaluate.every, phase.evaluate.split, phase.evaluate.examples) == (None, "val", 256)
    assert phase.evaluate.use == phase.rewards
    assert phase.evaluate.generation.model_fields_set == set()


def test_evaluate_uses_the_top_levels_reward_where_a_phase_has_none(load):
    text = (
        TWO.replace("[length]", "[{reward-model: {path: x}}]")
        + "  rewards: []\nevaluate: {use: reward-model}\n"
    )
    warm, align = load(text).phases
    assert align.rewards == ()
    assert align.evaluate.use == warm.evaluate.use == warm.rewards


def test_the_same_component_spelt_out_is_the_same_object(load):
    (phase,) = load(ONE + "evaluate: {use: [{length: {low: 0}}]}\n").phases
    assert phase.evaluate.use[0] is phase.rewards[0]


# --- interpolation --------------------------------------------------------------------------------


def test_interpolation(load, monkeypatch):
    monkeypatch.setenv("ITERATIONS", "12")
    text = ONE.replace(
        "iterations: 5", "iterations: '${oc.decode:${oc.env:ITERATIONS}}', prompts: '${policy.table.size}'"
    )
    pipeline = load(text, "policy.table.size=9", "seed=${.repeat}", "repeat=2")
    assert (pipeline.phases[0].train.iterations, pipeline.phases[0].train.prompts, pipeline.seed) == (
        12,
        9,
        2,
    )
    assert pipeline.resolved["train"] == {"iterations": "${oc.decode:${oc.env:ITERATIONS}}", "prompts": 9}
    assert pipeline.environment == ("ITERATIONS",)


def test_interpolating_a_whole_section(load):
    text = TWO + "  rewards: ${rewards}\n"
    assert [item.name for item in load(text).phases[1].rewards] == ["length"]


def test_environment_variables_are_text(refusal, monkeypatch):
    monkeypatch.setenv("ITERATIONS", "12")
    message = refusal(ONE.replace("5", "'${oc.env:ITERATIONS}'"))
    assert message == (
        "p.yaml:9: train.iterations: expected a whole number, found '${oc.env:ITERATIONS}' (text); "
        "`${oc.env:…}` is always text: write `${oc.decode:${oc.env:…}}`"
    )


def test_interpolations_that_lead_nowhere(refusal):
    text = ONE.replace("size: 4", "size: '${trian.lr}'").replace("0.1", "'${oc.env:NO_SUCH_VARIABLE}'")
    invalid, *others = refusal(text.replace("5}", "'${'}")).splitlines()
    assert invalid == (
        "p.yaml:9: train.iterations: '${' is no valid interpolation: no viable alternative at input '${'"
    )
    assert others == refusal(text).splitlines()
    first, second = others
    assert (
        first
        == "p.yaml:2: policy.table.size: '${trian.lr}' cannot be resolved: Interpolation key 'trian.lr' not found"
    )
    assert second.startswith("p.yaml:5: rewards[1].kl.coef: '${oc.env:NO_SUCH_VARIABLE}' cannot be resolved")
    assert "Environment variable 'NO_SUCH_VARIABLE' not found" in second


def test_interpolations_in_a_circle(refusal):
    text = ONE.replace("size: 4", "size: '${seed}'") + "seed: ${policy.table.size}\n"
    assert "Recursive interpolation" in refusal(text)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, where, value",
    [
        ("rewards.penalty.coef=0.2", lambda p: p.phases[0].rewards[1].options.coef, 0.2),
        ("rewards.penalty.kl.coef=0.2", lambda p: p.phases[0].rewards[1].options.coef, 0.2),
        ("rewards.1.kl.coef=0.2", lambda p: p.phases[0].rewards[1].options.coef, 0.2),
        ("rewards[1].coef=0.2", lambda p: p.phases[0].rewards[1].options.coef, 0.2),
        ("rewards.penalty.weight=3", lambda p: p.phases[0].rewards[1].weight, 3.0),
        ("rewards.penalty.as=fine", lambda p: p.phases[0].rewards[1].name, "fine"),
        ("rewards.length.low=3", lambda p: p.phases[0].rewards[0].options.low, 3),
        ("rewards.length.length.low=3", lambda p: p.phases[0].rewards[0].options.low, 3),
        ("rewards.length.weight=0.5", lambda p: p.phases[0].rewards[0].weight, 0.5),
        ("rewards.length=diversity-like", None, None),
        ("rewards=[]", lambda p: p.phases[0].rewards, ()),
        ("algorithm=dpo", lambda p: p.phases[0].algorithm[0].name, "dpo"),
        ("algorithm.ppo.clip=0.9", lambda p: p.phases[0].algorithm[0].options.clip, 0.9),
        ("algorithm.clip=0.9", lambda p: p.phases[0].algorithm[0].options.clip, 0.9),
        ("algorithm.ppo.nested.top_k=2", lambda p: p.phases[0].algorithm[0].options.nested.top_k, 2),
        ("policy.table.size=8", lambda p: p.policy.options.size, 8),
        ("task.toy.n=8", lambda p: p.phases[0].task.options.n, 8),
        ("task.toy.extra.a=8", lambda p: p.phases[0].task.options.extra, {"a": 8.0}),
        ("generation.temperature=1e-2", lambda p: p.phases[0].generation.temperature, 0.01),
        ("generation.stop=[a, b]", lambda p: p.phases[0].generation.stop, ("a", "b")),
        ("train.schedule.warmup=0.1", lambda p: p.phases[0].train.schedule.warmup, 0.1),
        ("train.lrs.value=1e-5", lambda p: p.phases[0].train.lrs, {"value": 1e-5}),
        ("train.passes=2", lambda p: (p.phases[0].train.passes, p.phases[0].train.iterations), (2, None)),
        ("evaluate.every=2", lambda p: p.phases[0].evaluate.every, 2),
        ("models.reference.of=start", lambda p: p.phases[0].models["reference"].of, "start"),
        ("seed=4", lambda p: p.seed, 4),
    ],
)
def test_overrides(load, override, where, value):
    if where is None:
        with pytest.raises(ConfigError, match="no component named `diversity-like`"):
            load(ONE, override)
    else:
        assert where(load(ONE, override)) == value


def test_overrides_of_what_is_only_named(load):
    text = ONE.replace("{ppo: {clip: 0.3}}", "ppo").replace("{table: {size: 4}}", "table")
    pipeline = load(
        text, "algorithm.ppo.clip=0.5", "policy.size=2", "models.value=value-head", "models.value.trunk=own"
    )
    assert pipeline.phases[0].algorithm[0].options.clip == 0.5
    assert pipeline.policy.options.size == 2
    assert pipeline.phases[0].models["value"].item.options.trunk == "own"


def test_overrides_of_evaluate_use(load):
    text = ONE + "evaluate: {use: [{reward-model: {path: x}}, diversity]}\n"
    assert load(text, "evaluate.use.reward-model.path=y").phases[0].evaluate.use[0].options.path == "y"


def test_overrides_of_copies_and_origins(load):
    copies = TWO + "models: {reference: {dtype: bfloat16}}\n"
    spec = (
        load(copies, "models.reference.of=start", "models.reference.dtype=float32")
        .phases[0]
        .models["reference"]
    )
    assert (spec.of, spec.dtype) == ("start", "float32")
    origin = load(TWO + "  task: {with: [], from: nobody}\n", "phases.align.task.from=warm").phases[1].origin
    assert origin.phase == "warm"


def test_overrides_of_phases_by_name_and_index(load):
    pipeline = load(
        TWO, "phases.align.algorithm.ppo.clip=0.5", "phases[0].train.lr=1", "phases.warm.generation.top_k=3"
    )
    warm, align = pipeline.phases
    assert align.algorithm[0].options.clip == 0.5
    assert (warm.train.lr, warm.generation.top_k) == (1, 3)


def test_overrides_come_before_inheritance(load):
    warm, align = load(TWO, "train.lr=0.5", "phases.warm.rewards=[]").phases
    assert (warm.train.lr, align.train.lr) == (0.5, 1e-4)
    assert align.rewards


def test_later_overrides_win(load):
    assert load(ONE, "seed=1", "seed=2").seed == 2
    assert load(ONE, "seed=1", seed=3).seed == 3
    assert load(ONE, seed=3).resolved["seed"] == 3


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=abc", "command line (train.lr=abc): train.lr: expected a number, found 'abc' (text)"),
        (
            "trian.lr=1",
            "command line (trian.lr=1): trian: unknown key; did you mean `train`? (keys: policy, phases, ",
        ),
        ("train.lrr=1", "command line (train.lrr=1): train.lrr: unknown option; did you mean `lr`?"),
        (
            "rewards.penalti.coef=1",
            "command line (rewards.penalti.coef=1): `rewards` has no item named `penalti`; "
            "did you mean `penalty`? (items: length, penalty)",
        ),
        ("rewards.5.coef=1", "`rewards` has 2 items, counted from 0; there is no 5"),
        (
            "rewards.penalty.coeff=1",
            "rewards[1].kl.coeff: unknown option; did you mean `coef`? (options: coef, target)",
        ),
        (
            "algorithm.ppo.clip.x=1",
            "command line (algorithm.ppo.clip.x=1): there is no `x` in 0.3 (a number)",
        ),
        ("responses.mix.logged=1", "there is no `responses` here to change"),
        ("phases.a.train.lr=1", "command line (phases.a.train.lr=1): the pipeline has no `phases`"),
        ("seed", "command line (seed): expected key=value, for instance train.lr=1e-5"),
        ("=3", "command line (=3): expected key=value"),
        ("seed=[1", "command line (seed=[1):1: not valid YAML"),
    ],
)
def test_overrides_that_lead_nowhere(refusal, override, message):
    assert message in refusal(ONE, override)


def test_overrides_of_unknown_phases(refusal):
    message = refusal(TWO, "phases.aling.train.lr=1")
    assert message == (
        "command line (phases.aling.train.lr=1): `phases` has no item named `aling`; "
        "did you mean `align`? (items: warm, align)"
    )


def test_overriding_what_a_phase_only_inherits(refusal):
    assert "where it is inherited, change the original" in refusal(TWO, "phases.align.rewards.length.low=2")


def test_overriding_an_interpolated_section(refusal):
    text = TWO + "  rewards: ${rewards}\n"
    assert "'${rewards}' stands here; change what it refers to" in refusal(
        text, "phases.align.rewards.length.low=2"
    )


def test_two_entries_of_one_name_cannot_be_addressed_by_it(refusal):
    text = ONE.replace("- length", "- length\n- length")
    assert "`rewards` has several items named `length`; say which by its index" in refusal(
        text, "rewards.length.low=1"
    )


@pytest.mark.parametrize(
    "override",
    [
        "train.iterations=1",
        "train.passes=1",
        "algorithm=ppo",
        "algorithm.ppo.clip=0.1",
        "train={iterations: 3}",
        "models.reference.of=start",
    ],
)
def test_an_override_that_every_phase_shadows(refusal, override):
    text = TWO + "  models: {reference: {of: phase}}\nalgorithm: ppo\n"
    text = text.replace("train: {passes: 1}", "train: {passes: 1}, models: {reference: {of: phase}}")
    message = refusal(text, override)
    assert f"command line ({override}): " in message
    assert f"every phase says this for itself, so nothing would change; say phases.NAME.{override}" in message


def test_an_override_that_one_phase_shadows_is_fine(load):
    warm, align = load(TWO, "train.lr=0.5", "train={lr: 0.25, prompts: 2}").phases
    assert (warm.train.lr, warm.train.prompts, align.train.lr) == (0.25, 2, 1e-4)


# --- errors: the file -----------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    (tmp_path / "bandit.yaml").touch()
    with pytest.raises(ConfigError, match=r"bandti.yaml: no such file; did you mean `.*/bandit.yaml`\?"):
        load_pipeline(tmp_path / "bandti.yaml")
    with pytest.raises(ConfigError, match="is a folder; name the pipeline file"):
        load_pipeline(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"task: \xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pipeline(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "p.yaml: the file is empty; a pipeline names a task, a policy and an algorithm"),
        ("# nothing\n", "p.yaml: the file is empty"),
        ("- a\n", "p.yaml:1: expected a mapping (`task: …`), found ['a'] (a list)"),
        ("task: toy\ntrain: {lr: 1\npolicy: x\n", "p.yaml:3: not valid YAML: "),
        (
            "task: toy\n\ttrain: 1\n",
            "p.yaml:2: not valid YAML: a tab stands where YAML takes spaces only; indent with spaces",
        ),
        ("a: 1\n---\nb: 2\n", "p.yaml:2: not valid YAML: but found another document"),
        ("task: \x07\n", "p.yaml: not valid YAML: "),
        ("train:\n  lr: 1\n  lr: 2\n", "p.yaml:3: train.lr: said twice; the first time at p.yaml:2"),
        ("task: toy\non: 3\n", "p.yaml:2: YAML reads the key `on` as a bool; quote it"),
        ("[a]: 3\n", "p.yaml:1: a key must be text, not a list or a mapping"),
        ("task: !!timestamp 2020-01-01\n", "found the YAML type !!timestamp"),
        (
            "task: !!binary aGk=\n",
            "p.yaml:1: task: expected text, a number, true, false, null, a list or a mapping",
        ),
        ("task: !!python/object:os.system x\n", "found the YAML type !!python/object:os.system"),
        ("task: &a [*a]\n", "p.yaml:1: task[0]: this part of the file contains itself"),
        ("a: &a 3\nb: {<<: *a}\n", "`<<` takes a mapping, or a list of mappings"),
    ],
)
def test_files_that_are_no_pipeline(refusal, text, message):
    assert message in refusal(text)


# --- errors: keys, sections and phases ------------------------------------------------------------


def test_everything_is_listed_at_once(refusal):
    text = (
        TWO.replace("samples: 4", "samplse: 4")
        .replace("clip: 0.3", "clipp: 0.3")
        .replace("passes: 1", "passes: -1")
    )
    assert refusal(text, "seed=x").splitlines() == [
        "command line (seed=x): seed: expected a whole number, found 'x' (text)",
        "p.yaml:4: generation.samplse: unknown option; did you mean `samples`? (options: samples, temperature, "
        "top_k, top_p, min_p, min_new_tokens, max_new_tokens, stop, greedy, beams, length_penalty)",
        "p.yaml:7: phases[0].train.passes: expected more than 0, found -1 (a whole number)",
        "p.yaml:9: phases[1].algorithm.ppo.clipp: unknown option; did you mean `clip`? "
        "(options: clip, form, betas, nested)",
    ]


def test_one_kind_of_fault_hides_no_other(refusal):
    text = """\
        task: toy
        policy: {table: {size: '${nowhere}'}}
        train: {prompts: 0, prompts: 2, lr: !!binary aGk=}
        rewards: [fussy-reward, lenght, {length: {low: x}}]
        phases:
        - {name: a, algorithm: [fussy, {ppo: {clip: 0}}], train: {passes: '${'}}
        - {algorithm: reinforse}
        - {algorithm: {fussy: }, models: {reference: {of: strat}}, evaluate: {use: [kll], evry: 1}}
        - {algorithm: ppo, train: {passes: 1}, task: {from: b}, on: 3}
        """
    overrides = (
        "phases.x.seed=1",
        "seed=[",
        "phases.a.train.lr=y",
        "rewards=[]",
        "phases.3.generation.top_k=z",
    )
    found = refusal(text, *overrides).splitlines()
    begins = [
        "p.yaml:3: train.prompts: said twice; the first time at p.yaml:3",
        "p.yaml:3: train.lr: expected text, a number, true, false, null, a list or a mapping, found",
        "p.yaml:9: phases[3]: YAML reads the key `on` as a bool; quote it",
        "command line (phases.x.seed=1): `phases` has no item named `x`",
        "command line (seed=[):1: not valid YAML",
        "p.yaml:6: phases[0].train.passes: '${' is no valid interpolation",
        "p.yaml:2: policy.table.size: '${nowhere}' cannot be resolved",
        "p.yaml:6: phases[0].algorithm[0]: `fussy` refuses its options: never content",
        "p.yaml:6: phases[0].algorithm[1].ppo.clip: expected more than 0",
        "command line (phases.a.train.lr=y): phases[0].train.lr: expected a number",
        "p.yaml:7: phases[1].algorithm.reinforse: no component named `reinforse`",
        "p.yaml:8: phases[2].algorithm: `fussy` refuses its options: never content",
        "p.yaml:8: phases[2].models.reference.of: expected start, phase, iteration or a folder",
        "p.yaml:8: phases[2].evaluate.evry: unknown option",
        "p.yaml:8: phases[2].evaluate.use[0].kll: no component named `kll`",
        "p.yaml:9: phases[3].task.from: no earlier phase is named `b`",
        "command line (phases.3.generation.top_k=z): phases[3].generation.top_k: expected a whole number",
    ]
    missing = [begin for begin in begins if not any(line.startswith(begin) for line in found)]
    assert not missing, "\n".join(found)
    assert len(found) == len(begins), "\n".join(found)


def test_a_reward_that_refuses_its_options_is_found_with_the_other_faults(refusal):
    class Picky(KL):
        def __init__(self, config):
            raise KeyError("nothing suits")

    registry = Registry({**COMPONENTS, "picky": Picky})
    text = ONE.replace("- length", "- picky").replace("clip: 0.3", "clip: 0")
    with pytest.raises(ConfigError) as caught:
        load_pipeline("p.yaml", registry=registry, text=text)
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "p.yaml:4: rewards[0]: `picky` refuses its options: KeyError: 'nothing suits' (test_load.py:"
    )
    assert second.startswith("p.yaml:8: algorithm.ppo.clip: expected more than 0")


def test_what_evaluates_by_an_unsound_reward_is_no_second_fault():
    text = ONE.replace("- length", "- kl: {coef: much}") + "evaluate: {use: [kl]}\n"
    with pytest.raises(ConfigError) as caught:
        load_pipeline("p.yaml", registry=Registry(COMPONENTS), text=text)
    assert "rewards[0].kl.coef" in str(caught.value) and "evaluate" not in str(caught.value)


def test_a_component_is_built_once():
    class Counted(PPO):
        built = 0

        def __init__(self, config):
            super().__init__(config)
            Counted.built += 1

    registry = Registry({**COMPONENTS, "counted": Counted})
    text = ONE.replace("{ppo: {clip: 0.3}}", "counted")
    (item,) = load_pipeline("p.yaml", registry=registry, text=text).phases[0].algorithm
    first = item.peek()
    assert item.build() is first and Counted.built == 1
    assert item.build() is not first, "each run has its own"


def test_a_long_list_is_cut(refusal):
    options = ", ".join(f"x{i}: 1" for i in range(25))
    lines = refusal(ONE.replace("clip: 0.3", options)).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "… and 5 more"


@pytest.mark.parametrize("key", ["policy", "algorithm", "task"])
def test_what_every_pipeline_needs(refusal, key):
    lines = [line for line in ONE.splitlines() if not line.startswith(key)]
    assert f"p.yaml:1: `{key}` is missing: " in refusal("\n".join(lines))


def test_how_long_must_be_said(refusal):
    assert (
        refusal(ONE.replace("iterations: 5", "lr: 1"))
        == "p.yaml:9: train: say how long: `iterations` or `passes`"
    )
    assert refusal(TWO.replace("{passes: 1}", "{lr: 1}")) == (
        "p.yaml:7: phases[0].train: say how long: `iterations` or `passes`"
    )
    assert (
        refusal(ONE.replace("5", "5, passes: 1")) == "p.yaml:9: train: say `iterations` or `passes`, not both"
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ("  policy: table", "p.yaml:12: phases[1].policy: a phase cannot name another policy"),
        ("  seed: 3", "p.yaml:12: phases[1].seed: is said once, at the top of the file, not in a phase"),
        (
            "  rewrads: []",
            "p.yaml:12: phases[1].rewrads: unknown key; did you mean `rewards`? (keys: name, task, ",
        ),
        ("  evaluate: 3", "p.yaml:12: phases[1].evaluate: expected a mapping, found 3 (a whole number)"),
        (
            "  evaluate: {evry: 3}",
            "p.yaml:12: phases[1].evaluate.evry: unknown option; did you mean `every`?",
        ),
        (
            "  evaluate: {generation: {topk: 3}}",
            "phases[1].evaluate.generation.topk: unknown option; did you mean `top_k`?",
        ),
        ("  models: {policy: {of: start}}", "phases[1].models.policy: the policy is named by `policy`"),
        (
            "  models: {reference: {of: strat}}",
            "expected start, phase, iteration or a folder, found 'strat' (text)",
        ),
        ("  models: {reference: {of: strat}}", "did you mean `start`?"),
        (
            "  models: {reference: {of: 3}}",
            "expected start, phase, iteration or a folder, found 3 (a whole number)",
        ),
        (
            "  models: {reference: {of: start, x: 1}}",
            "phases[1].models.reference: `of` and `dtype` describe a copy of the policy and stand alone, found x",
        ),
        (
            "  models: {value: {value-head: {trunk: own}, dtype: bfloat16}}",
            "phases[1].models.value: `of` and `dtype` describe a copy of the policy and stand alone, found value-head",
        ),
        (
            "  models: {reference: {dtype: float16}}",
            "phases[1].models.reference.dtype: expected 'float32' or 'bfloat16', found 'float16'",
        ),
        (
            "  models: {reference: {of: strat, dtype: bfloat16}}",
            "phases[1].models.reference.of: expected start, phase, iteration or a folder, found 'strat'",
        ),
        (
            "  models: {value: length}",
            "`models` takes a value, a policy or a sampler; `length` is a component",
        ),
        (
            "  task: {from: late}",
            "phases[1].task.from: no earlier phase is named `late` (earlier phases: warm)",
        ),
        ("  task: {from: align}", "phases[1].task.from: no earlier phase is named `align`"),
        (
            "  task: {from: warm, with: [other]}",
            "phases[1].task.with[0]: expected 'original', found 'other' (text)",
        ),
        (
            "  task: {from: warm, wiht: []}",
            "task.wiht: unknown option; did you mean `with`? (options: from, with)",
        ),
        ("- 3", "p.yaml:12: phases[2]: expected a mapping, found 3 (a whole number)"),
        (
            "- {name: a b, algorithm: ppo, train: {passes: 1}}",
            "phases[2].name: expected letters, digits, - and _",
        ),
        ("- {name: no, algorithm: ppo, train: {passes: 1}}", "YAML reads no and off so too; quote the word"),
        (
            "- {name: warm, algorithm: ppo, train: {passes: 1}}",
            "phases[2].name: another phase is called `warm` already",
        ),
        (
            "- {algorithm: ppo, train: {passes: 1}}\n- {algorithm: ppo, train: {passes: 1}}",
            "p.yaml:13: phases[3]: another phase is called `ppo`; give this one a `name`",
        ),
    ],
)
def test_phases_that_cannot_be(refusal, line, message):
    assert message in refusal(TWO + line + "\n")


def test_phases_must_be_a_list(refusal):
    assert "p.yaml:2: phases: expected a list of phases, found nothing (null)" in refusal(
        "task: toy\nphases:\n"
    )
    assert "expected a list of phases, found {'a': 1} (a mapping)" in refusal("task: toy\nphases: {a: 1}\n")


def test_a_task_from_a_phase_needs_one_at_the_top(refusal):
    text = (
        TWO.replace("task: toy\n", "").replace("name: warm,", "name: warm, task: toy,")
        + "  task: {from: warm}\n"
    )
    assert "p.yaml:11: phases[1].task: name a task at the top of the file too" in refusal(text)
    message = refusal(TWO.replace("task: toy", "task: {from: warm}"))
    assert message == "p.yaml:1: task: only a phase can learn `from` another phase; name a task here"


def test_what_every_phase_replaces_is_checked_too(refusal):
    assert "p.yaml:12: algorithm.ppo.clipp: unknown option" in refusal(TWO + "algorithm: {ppo: {clipp: 1}}\n")


def test_inherited_faults_are_reported_once(refusal):
    assert len(refusal(TWO.replace("lr: 1e-3", "prompts: 0").replace(", prompts: 8", "")).splitlines()) == 1


# --- errors: entries ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, message",
    [
        ("3", "p.yaml:4: rewards[0]: expected a component, `name` or `name: {…}`, found 3 (a whole number)"),
        ("no", "found false (YAML reads no and off so too; quote the word if it is text)"),
        ("{}", "p.yaml:4: rewards[0]: names no component"),
        ("{weight: 2}", "p.yaml:4: rewards[0]: names no component"),
        (
            "{length: 3}",
            "p.yaml:4: rewards[0].length: expected a mapping of options, found 3 (a whole number)",
        ),
        ("{length: {}, wieght: 2}", "one item names one component, found `length` and `wieght`"),
        ("{length: {}, wieght: 2}", "did you mean `weight`?"),
        ("{length: , low: 2}", "options go under the component's name"),
        ("{length: {}, weight: x}", "p.yaml:4: rewards[0].weight: expected a number, found 'x' (text)"),
        ("{length: {}, weight: .nan}", "rewards[0].weight: expected a finite number, found nan (a number)"),
        ("{length: {}, as: a b}", "rewards[0].as: expected text that matches"),
        (
            "lenght",
            "p.yaml:4: rewards[0].lenght: no component named `lenght` is installed; did you mean `length`",
        ),
        (
            "diversity",
            "`diversity` measures a whole set of responses and has no score of a single one, so nothing can be "
            "learned from it; it belongs under `evaluate.use`",
        ),
        ("toy", "`rewards` takes components with a `reward` hook; `toy` is a task"),
        ("reward-model", "p.yaml:4: rewards[0].reward-model: `path` is missing (the model's folder)"),
        ("{length: {low: '1'}}", "rewards[0].length.low: expected a whole number, found '1' (text)"),
        ("{length: {low: 1.0}}", "expected a whole number, found 1.0 (a number); write 1"),
        ("{length: {low: yes}}", "found true (YAML reads yes and on so too"),
        ("{length: {low: null}}", "expected a whole number, found nothing (null)"),
        (
            "{length: {per: [1]}}",
            "rewards[0].length.per: expected a whole number or text, found [1] (a list)",
        ),
        ("{length: {low: 2020-01-01}}", "expected a whole number, found '2020-01-01' (text)"),
    ],
)
def test_entries_that_cannot_be(refusal, entry, message):
    assert message in refusal(ONE.replace("- length", f"- {entry}"))


@pytest.mark.parametrize(
    "options, message",
    [
        ("form: sq", "algorithm.ppo.form: expected 'seq' or 'token', found 'sq' (text); did you mean 'seq'?"),
        ("clip: 0", "algorithm.ppo.clip: expected more than 0, found 0 (a whole number)"),
        ("clip: .inf", "algorithm.ppo.clip: expected a finite number, found inf (a number)"),
        ("clip: nan", "algorithm.ppo.clip: expected a finite number, found nan"),
        ("clip: -Inf", "algorithm.ppo.clip: expected a finite number, found -Inf"),
        ("clip: 101", "algorithm.ppo: clip makes no sense beyond 100"),
        ("betas: [1]", "algorithm.ppo.betas: too few entries: number 2 is missing"),
        ("betas: [1, 2, 3]", "algorithm.ppo.betas: expected at most 2 entries, found [1, 2, 3] (a list)"),
        ("betas: [1, x]", "algorithm.ppo.betas[1]: expected a number, found 'x' (text)"),
        ("betas: 3", "algorithm.ppo.betas: expected a list, found 3 (a whole number)"),
        ("nested: 3", "algorithm.ppo.nested: expected a mapping, found 3 (a whole number)"),
        (
            "nested: {topk: 3}",
            "algorithm.ppo.nested.topk: unknown option; did you mean `top_k`? (options: samples, ",
        ),
        ("nested: {greedy: 'on'}", "algorithm.ppo.nested.greedy: expected true or false, found 'on' (text)"),
    ],
)
def test_options_that_cannot_be(refusal, options, message):
    assert refusal(ONE.replace("clip: 0.3", options)).startswith(f"p.yaml:8: {message}")


def test_options_of_a_component_without_any(refusal):
    message = refusal(ONE.replace("{ppo: {clip: 0.3}}", "{dpo: {beta: 1}}"))
    assert message == "p.yaml:8: algorithm.dpo.beta: unknown option; there are none"


def test_the_place_of_an_option_is_its_own_line(refusal):
    text = ONE.replace("{ppo: {clip: 0.3}}", "\n  ppo:\n    form: seq\n    clipp: 3")
    assert refusal(text).startswith("p.yaml:11: algorithm.ppo.clipp: unknown option")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("policy: {table", "policy: {toy", "p.yaml:2: policy.toy: `policy` takes a policy; `toy` is a task"),
        ("task: toy", "task: length", "p.yaml:1: task.length: `task` takes a task; `length` is a component"),
        ("{ppo: {clip: 0.3}}", "table", "`algorithm` takes components with hooks; `table` is a policy"),
        (
            "task: toy",
            "task: [toy]",
            "p.yaml:1: task: expected a component, `name` or `name: {…}`, found ['toy']",
        ),
        (
            "task: toy",
            "task: {toy: {}, weight: 2}",
            "task.weight: only items of `rewards` and `algorithm` have one",
        ),
        (
            "task: toy",
            "task: toy\nresponses: kl",
            "`responses` takes a component with a `rollout` hook; `kl` is a",
        ),
        (
            "task: toy",
            "task: toy\nevaluate: {use: [ppo]}",
            "`evaluate.use` takes components that score or measure",
        ),
    ],
)
def test_components_in_the_wrong_place(refusal, old, new, message):
    assert message in refusal(ONE.replace(old, new))


def test_two_entries_of_one_name(refusal):
    text = ONE.replace("- length", "- length\n- length")
    message = "p.yaml:5: rewards[1]: the item at p.yaml:4 is named `length` too; give one of them `as: …`"
    assert refusal(text) == message
    message = "p.yaml:8: algorithm: the item at p.yaml:4 is named `length` too"
    assert message in refusal(ONE.replace("{ppo: {clip: 0.3}}", "length"))
    text = ONE + "evaluate: {use: [{length: {low: 2}}]}\n"
    assert "p.yaml:10: evaluate.use[0]: the item at p.yaml:4 is named `length` too" in refusal(text)


# --- paths, and reading a resolved pipeline back --------------------------------------------------


def test_paths_are_relative_to_the_file(load, tmp_path):
    text = ONE.replace("task: toy", "task: {toy: {path: data/x.jsonl, hub: ./local, parts: [a, /b]}}")
    options = load(text).phases[0].task.options
    assert options.path == tmp_path / "data/x.jsonl"
    assert options.hub == f"{tmp_path}/local"
    assert options.parts == [tmp_path / "a", Path("/b")]
    assert (
        load(ONE.replace("task: toy", "task: {toy: {hub: lv/gpt2}}")).phases[0].task.options.hub == "lv/gpt2"
    )


def test_data_inside_a_package(load, refusal):
    option = lambda path: ONE.replace("task: toy", f"task: {{toy: {{path: '{path}'}}}}")  # noqa: E731
    path = load(option("pkg:rlalign/py.typed")).phases[0].task.options.path
    assert path == Path(rlalign.__file__).parent / "py.typed"
    assert refusal(option("pkg:no_such_package/x")) == (
        "p.yaml:1: task.toy.path: 'pkg:no_such_package/x': there is no package `no_such_package`; is it installed?"
    )
    assert "the package `rlalign` holds no nothing.txt" in refusal(option("pkg:rlalign/nothing.txt"))


def test_folder_moves_what_is_relative(load, tmp_path):
    text = ONE.replace("task: toy", "folder: sub\ntask: {toy: {path: x}}")
    assert load(text).phases[0].task.options.path == tmp_path / "sub" / "x"


def meaning(part):
    """All that a pipeline says, without the lines it was read from, which a rewritten file cannot keep."""
    if isinstance(part, Item):
        return part.model_dump(exclude={"options", "place"}), part.options
    if isinstance(part, Pipeline | Phase | ModelSpec | Evaluate):
        return {key: meaning(value) for key, value in part if key not in ("stem", "place", "places")}
    if isinstance(part, dict):
        return {key: meaning(value) for key, value in part.items()}
    return [meaning(one) for one in part] if isinstance(part, tuple) else part


def test_a_resolved_pipeline_reads_back_equal(load, tmp_path, monkeypatch):
    monkeypatch.setenv("STOP", "1e-5")
    text = """\
        task: {toy: {path: data.jsonl, hub: 2026-11-20}}
        policy: table
        rewards: [length, {kl: {coef: 1e-7}, weight: 2}]
        generation: {stop: ['${oc.env:STOP}', '\\${x}', '010', 'on', "a\\n b", '\\\\\\${y}', '12:30']}
        evaluate: {use: [kl, diversity]}
        models: {value: value-head}
        phases:
        - {name: a, algorithm: dpo, train: {passes: 1}}
        - {name: b, algorithm: ppo, train: {iterations: 3, lr: '${rewards.1.kl.coef}'}, task: {from: a}}
        """
    pipeline = load(text, "rewards.kl.coef=1e-6", seed=5)
    assert pipeline.phases[0].generation.stop == ("1e-5", "${x}", "010", "on", "a\n b", "\\${y}", "12:30")
    run = tmp_path / "runs" / "p"
    run.mkdir(parents=True)
    (run / "pipeline.yaml").write_text(places.dump(places.escape(pipeline.resolved)))
    again = load_pipeline(run / "pipeline.yaml", registry=Registry(COMPONENTS, trust=True))
    assert again.seed == 5
    assert again.phases[0].task.options.path == tmp_path / "data.jsonl"
    assert meaning(again) == meaning(pipeline)


def test_text_stands_in_for_the_file(tmp_path):
    pipeline = load_pipeline(
        tmp_path / "never-written.yaml", text=ONE, registry=Registry(COMPONENTS, trust=True)
    )
    assert pipeline.stem == "never-written"
