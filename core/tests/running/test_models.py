"""Models are built when a phase needs them, live on, and change only where they are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file
from torch import nn

from rlalign import (
    Batch,
    Component,
    Lagging,
    Options,
    RLAlignError,
    Rollout,
    Run,
    Score,
    hookimpl,
)
from rlalign.config.pipeline import ModelSpec
from rlalign.errors import CheckpointError, ConfigError
from rlalign.records.weights import fingerprint, hold
from rlalign.running import loop
from rlalign.testing import Logits, PolicyGradient, ValueFit, registry, run, session
from rlalign.testing.bench import Silence, run_until


class Watches(Component):
    """Asks for models, writes down what all of them are, and may write to one."""

    class Config(Options):
        """Options of `watches`."""

        frozen: tuple[str, ...] = Field((), description="models it reads")
        lagging: tuple[str, ...] = Field((), description="copies it may change")
        every: int | None = Field(None, description="iterations after which its copy `slow` is renewed")
        spoils: str | None = Field(None, description="a model it writes to in the second iteration")

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.models = {
            **dict.fromkeys(self.config.frozen, "frozen"),
            **dict.fromkeys(self.config.lagging, "lagging"),
            **({"slow": Lagging(every=self.config.every)} if self.config.every else {}),
        }
        self.seen: list[dict[str, str]] = []
        self.learning: list[dict[str, bool]] = []

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self.seen.append({name: fingerprint(model) for name, model in run.models.items()})

    @hookimpl
    def loss(self, run: Run, batch: Batch) -> None:
        self.learning.append({name: model.training for name, model in run.models.items()})

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        if self.config.spoils and run.iteration == 2:
            with torch.no_grad():
                next(run.models[self.config.spoils].parameters()).add_(0.5)
        self.seen.append({name: fingerprint(model) for name, model in run.models.items()})

    trains = ("policy",)


class OnlyWatches(Watches):
    """In a phase that trains no policy."""

    trains = ()
    loss = None  # type: ignore[assignment]


class ReadsValue(OnlyWatches):
    """Where the value is not learnt but read."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.models = {"value": "value"}


class Stored(Logits):
    """Logits that may come from a folder."""

    class Config(Logits.Config):
        """Options of `stored`."""

        path: str | None = Field(None, description="a saved model")

    def setup(self) -> None:
        super().setup()
        if self.config.path is not None:
            self.load_state_dict(load_file(Path(self.config.path) / "model.safetensors"))


COMPONENTS = {
    "learns": PolicyGradient,
    "fits-value": ValueFit,
    "watches": Watches,
    "only-watches": OnlyWatches,
    "reads-value": ReadsValue,
    "stored": Stored,
}
ITERATIONS = 3


def pipeline(**watches: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 4}},
        "rewards": ["token-sum"],
        "algorithm": ["learns", {"watches": watches}],
        "generation": {"samples": 2, "max_new_tokens": 5},
        "train": {"iterations": ITERATIONS, "prompts": 4, "lr": 0.05},
    }


def phases(count: int, **changes: Any) -> dict[str, Any]:
    return {"phases": [{"name": f"p{i}", **changes} for i in range(count)]}


def watched(folder: Path, given: Mapping[str, Any], named: str = "watches") -> tuple[Any, Any]:
    """(what was seen: a row at each phase's start and after each iteration, the session)."""
    _, done = run(folder, given, COMPONENTS)
    return next(c for c in done.builder.built.values() if c.name == named), done


# -- built, kept, renewed ----------------------------------------------------------------------------


def test_the_reference_is_renewed_at_every_phase_and_others_are_kept(tmp_path):
    watch, _ = watched(tmp_path, pipeline(frozen=["reference", "anchor"], lagging=["slow"]) | phases(3))
    seen, starts = watch.seen, range(0, 12, ITERATIONS + 1)
    assert len({row["policy"] for row in seen}) == 1 + 3 * ITERATIONS
    for start in starts:
        assert {row["reference"] for row in seen[start : start + ITERATIONS + 1]} == {seen[start]["policy"]}
    assert {row["anchor"] for row in seen} == {row["slow"] for row in seen} == {seen[0]["policy"]}


@pytest.mark.parametrize(
    "of, expected",
    [
        ("start", [0] * 8),
        ("phase", [0, 0, 0, 0, 4, 4, 4, 4]),
        # Seen before a phase's first and after each of its iterations: the weights before that iteration.
        ("iteration", [0, 0, 1, 2, 4, 4, 5, 6]),
    ],
)
@pytest.mark.parametrize("name", ["reference", "anchor"])
def test_a_model_is_of_the_moment_that_is_asked_for(tmp_path, name, of, expected):
    given = pipeline(frozen=[name]) | phases(2) | {"models": {name: {"of": of}}}
    seen = watched(tmp_path, given)[0].seen
    assert [row[name] for row in seen] == [seen[i]["policy"] for i in expected]


def test_a_model_may_come_from_a_folder(tmp_path):
    _, first = run(tmp_path, {**pipeline(), "policy": {"stored": {"hidden": 4}}}, COMPONENTS)
    folder = str(first.dir.model)
    given = pipeline(frozen=["reference"]) | {"policy": {"stored": {"hidden": 4, "seed": 9}}}
    watch, _ = watched(tmp_path, given | {"models": {"reference": {"of": folder}}} | phases(2))
    assert {row["reference"] for row in watch.seen} == {fingerprint(first.models.policy)}
    assert watch.seen[0]["policy"] != watch.seen[0]["reference"]


def test_a_copy_of_the_start_that_follows_takes_nobody_with_it(tmp_path):
    models = {"reference": {"of": "start"}, "slow": {"of": "start"}}
    given = pipeline(frozen=["reference"], lagging=["slow"], spoils="slow") | {"models": models}
    seen = watched(tmp_path, given)[0].seen
    assert seen[-1]["slow"] != seen[0]["slow"]
    assert {row["reference"] for row in seen} == {seen[0]["policy"]}


def test_a_value_lives_on_where_a_later_phase_only_reads_it(tmp_path):
    """Whether that phase says anything of it or not."""
    value = {"value": {"linear-value": {}}}
    for name, said in (("for all", [{}, {}]), ("where it learns", [{"models": value}, {}])):
        phases = [
            {"name": "fit", "algorithm": ["fits-value", "only-watches"], **said[0]},
            {"name": "read", "algorithm": ["learns", "reads-value"], **said[1]},
        ]
        given = {**pipeline(), "phases": phases, "models": value if name == "for all" else None}
        seen = watched(tmp_path / name, given, "reads-value")[0].seen
        fitted = watched(tmp_path / f"{name} again", given, "only-watches")[0].seen
        assert fitted[0]["value"] != fitted[-1]["value"]
        assert {row["value"] for row in seen} == {fitted[-1]["value"]}


def test_the_trunk_of_a_value_is_a_model_though_nobody_asks_for_it(tmp_path):
    given = pipeline() | {"algorithm": "fits-value", "train": {"iterations": 10, "prompts": 6, "lr": 0.05}}
    given["models"] = {"value": {"linear-value": {"trunk": "reference"}}}
    _, done = run(tmp_path, given, COMPONENTS)
    lines = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["fits-value/loss"] < lines[0]["fits-value/loss"]
    assert "reference" in done.models


def test_a_policy_without_a_path_has_no_model_in_a_folder(tmp_path):
    given = pipeline(frozen=["reference"]) | {"models": {"reference": {"of": str(tmp_path)}}}
    with pytest.raises(ConfigError, match=r"reference\.of: a `logits` policy is not loaded from a folder"):
        run(tmp_path, given, COMPONENTS)


def test_what_was_said_of_each_model(tmp_path):
    started = session(tmp_path, pipeline(frozen=["reference", "anchor"]) | phases(2), COMPONENTS)
    roles = {"reference": "frozen", "anchor": "frozen", "slow": "lagging"}
    models = started.models
    assert models.prepare(roles, {}) == dict.fromkeys(roles, "built")
    assert models.prepare(roles, {}) == {"reference": "renewed", "anchor": "kept", "slow": "kept"}
    assert models.prepare({"anchor": "lagging"}, {}) == {"anchor": "built"}, "another role, another model"


def test_an_unknown_model_is_named(tmp_path):
    started = session(tmp_path, pipeline(), COMPONENTS)
    with pytest.raises(RLAlignError, match="no model `judge`; a component that reads one declares it"):
        started.models["judge"]


class Drawn(Logits):
    """First weights as torch's own modules draw them."""

    def setup(self) -> None:
        super().setup()
        self.mixing = nn.Parameter(nn.Linear(4, 4).weight.detach().clone())


def test_first_weights_follow_from_the_seed(tmp_path):
    def drawn(seed: int) -> str:
        given = pipeline() | {"policy": {"drawn": {"hidden": 4}}, "seed": seed}
        return fingerprint(session(tmp_path, given, {**COMPONENTS, "drawn": Drawn}).models.policy)

    assert drawn(1) == drawn(1) != drawn(2)


# -- in another precision ----------------------------------------------------------------------------


def held(bits: str, **spec: Any) -> dict[str, Any]:
    return {"models": {name: {**spec, "dtype": bits} for name in ("reference", "slow")}}


@pytest.mark.parametrize("of", [None, "start", "phase", "iteration"])
def test_a_copy_is_held_in_the_precision_that_is_asked_for(tmp_path, of):
    spec = {} if of is None else {"of": of}
    given = pipeline(frozen=["reference"], lagging=["slow"]) | phases(2) | held("bfloat16", **spec)
    watch, done = watched(tmp_path, given)
    dtypes = {name: {p.dtype for p in model.parameters()} for name, model in done.models.items()}
    assert dtypes == {"policy": {torch.float32}, "reference": {torch.bfloat16}, "slow": {torch.bfloat16}}
    full = watched(tmp_path, pipeline(frozen=["reference"], lagging=["slow"]) | phases(2) | spec_of(of))[
        0
    ].seen
    for name in ("reference", "slow"):
        ages = [[row[name] for row in seen] for seen in (watch.seen, full)]
        same = [[one == other for other in column] for column in ages for one in column]
        assert same[: len(full)] == same[len(full) :], "renewed at the same moments"


def spec_of(of: str | None) -> dict[str, Any]:
    return {} if of is None else {"models": {name: {"of": of} for name in ("reference", "slow")}}


def test_a_held_copy_is_the_policy_rounded(tmp_path):
    started = session(tmp_path, pipeline(frozen=["anchor"], lagging=["slow"]), COMPONENTS)
    models, specs = started.models, {"slow": ModelSpec(dtype="bfloat16")}
    models.prepare({"slow": "lagging"}, specs)
    with torch.no_grad():
        models.policy.free.add_(1 / 3)
    models["slow"].sync(models.policy)
    for mine, theirs in zip(models["slow"].parameters(), models.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs.bfloat16())
    assert models.prepare({"slow": "lagging"}, specs) == {"slow": "kept"}
    assert models.prepare({"slow": "lagging"}, {"slow": ModelSpec(of="phase")}) == {"slow": "built"}
    assert models["slow"].free.dtype == torch.float32


def test_two_copies_of_the_start_in_two_precisions(tmp_path):
    given = pipeline(frozen=["reference", "anchor"]) | phases(2)
    given["models"] = {"reference": {"of": "start", "dtype": "bfloat16"}, "anchor": {"of": "start"}}
    watch, done = watched(tmp_path, given)
    assert {row["anchor"] for row in watch.seen} == {watch.seen[0]["policy"]}
    assert len({row["reference"] for row in watch.seen}) == 1
    assert torch.equal(done.models["reference"].free, done.models["anchor"].free.bfloat16())


def test_what_is_no_weight_keeps_its_precision():
    policy = Logits(Logits.Config(hidden=4))
    policy.setup()
    policy.register_buffer("saved", torch.ones(2))
    policy.register_buffer("frequencies", torch.ones(2) / 3, persistent=False)
    policy.register_buffer("counts", torch.ones(2, dtype=torch.long))
    policy.tied = policy.mixing
    hold(policy, torch.bfloat16)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16} and policy.tied is policy.mixing
    assert (policy.saved.dtype, policy.frequencies.dtype) == (torch.bfloat16, torch.float32)
    assert policy.counts.dtype == torch.long


def test_a_copy_in_half_precision_is_guarded_too(tmp_path):
    given = pipeline(frozen=["reference"], spoils="reference") | {
        "models": {"reference": {"dtype": "bfloat16"}}
    }
    with pytest.raises(RLAlignError, match="changed the weights `free` of the model `reference`"):
        run(tmp_path, given, COMPONENTS)


def test_a_value_has_no_precision_of_its_own(tmp_path):
    given = pipeline() | {"algorithm": ["fits-value", "learns"]}
    with pytest.raises(
        ConfigError, match=r"pipeline.yaml.*models\.value\.dtype: only frozen and lagging copies"
    ):
        run(tmp_path, given | {"models": {"value": {"dtype": "bfloat16"}}}, COMPONENTS)


class Shares(Logits):
    """Its copies would compute with its own weights."""

    shares = True


def test_copies_that_share_the_network_have_no_precision_of_their_own(tmp_path):
    given = pipeline(frozen=["reference"]) | {"policy": {"shares": {"hidden": 4}}}
    given |= {"models": {"reference": {"dtype": "bfloat16"}}}
    with pytest.raises(
        ConfigError, match=r"models\.reference\.dtype: copies of this policy share its network"
    ):
        run(tmp_path, given, {**COMPONENTS, "shares": Shares})


def test_the_kl_to_a_reference_in_half_precision_is_near(tmp_path):
    def kl(**models: Any) -> list[float]:
        given = pipeline() | {"rewards": ["token-sum", "kl"], "models": models}
        given["policy"] = {"logits": {"hidden": 4, "scale": 0.5}}
        _, done = run(tmp_path, given, COMPONENTS)
        lines = (done.dir.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["kl/k1"] for line in lines]

    full, half = kl(), kl(reference={"dtype": "bfloat16"})
    assert full != half
    assert half == pytest.approx(full, abs=0.02)


# -- what trains and what does not -------------------------------------------------------------------


def test_only_what_trains_has_gradients_and_that_ends_with_the_phase(tmp_path):
    given = pipeline(frozen=["reference"]) | {
        "models": {"value": {"linear-value": {"trunk": "policy"}}},
        "phases": [
            {"name": "learn"},
            {"name": "fit", "algorithm": ["fits-value", {"only-watches": {"frozen": ["reference"]}}]},
            {"name": "again"},
        ],
    }
    started = session(tmp_path, given, COMPONENTS)
    needing: list[dict[str, set[str]]] = []
    train_only = started.models.train_only

    def note(trains: Any) -> None:
        train_only(trains)
        needing.append(
            {
                name: {key for key, p in model.named_parameters() if p.requires_grad}
                for name, model in started.models.items()
            }
        )

    started.models.train_only = note  # type: ignore[method-assign]
    started.run()
    everything = {"free", "mixing", "output"}
    assert needing == [
        {"policy": everything, "reference": set()},
        {"policy": set(), "reference": set(), "value": {"weight"}},
        {"policy": everything, "reference": set(), "value": set()},
    ]


class PartlyFrozen(Logits):
    """A policy that never trains its head."""

    def setup(self) -> None:
        super().setup()
        self.output.requires_grad_(False)


def test_what_a_policy_froze_itself_stays_frozen(tmp_path):
    given = pipeline() | {"policy": {"partly": {"hidden": 4}}} | phases(2)
    _, done = run(tmp_path, given, {**COMPONENTS, "partly": PartlyFrozen})
    fresh = PartlyFrozen(PartlyFrozen.Config(hidden=4))
    fresh.setup()
    assert torch.equal(done.models.policy.output, fresh.output)
    assert not torch.equal(done.models.policy.free, fresh.free)


@pytest.mark.parametrize("name", ["reference", "anchor"])
def test_writing_to_a_frozen_model_is_caught_and_the_model_named(tmp_path, name):
    given = pipeline(frozen=[name], spoils=name)
    with pytest.raises(RLAlignError, match=f"of `watches` changed the weights `free` of the model `{name}`"):
        run(tmp_path, given, COMPONENTS)


def test_writing_to_the_policy_where_it_does_not_train_is_caught(tmp_path):
    given = pipeline() | {"algorithm": ["collect", {"only-watches": {"spoils": "policy"}}]}
    with pytest.raises(RLAlignError, match="changed the weights `free` of the model `policy`"):
        run(tmp_path, given, COMPONENTS)


def test_writing_to_a_lagging_copy_is_what_it_is_for(tmp_path):
    watch, _ = watched(tmp_path, pipeline(lagging=["slow"], spoils="slow"))
    slow = [row["slow"] for row in watch.seen]
    assert slow[0] == slow[1] != slow[2] == slow[3]


def test_a_lagging_copy_takes_the_weights_when_it_says(tmp_path):
    """After every second iteration of a phase, before `iteration_done`; between them it stays."""
    watch, _ = watched(tmp_path, pipeline(every=2) | phases(2))
    slow, policy = ([row[name] for row in watch.seen] for name in ("slow", "policy"))
    assert len(slow) == 2 * (1 + ITERATIONS)
    for start in (0, 1 + ITERATIONS):
        assert slow[start] == slow[start + 1] != policy[start + 1]
        assert slow[start + 2] == slow[start + 3] == policy[start + 2] != policy[start + 3]
    assert slow[1 + ITERATIONS] == slow[ITERATIONS], "it lives on in the next phase"


@pytest.mark.parametrize("stop", range(1, 2 * ITERATIONS))
def test_a_run_with_a_lagging_copy_resumes_exactly(tmp_path, stop):
    given = pipeline(every=2) | phases(2)
    whole = session(tmp_path, given, COMPONENTS, name="whole")
    whole.run()
    broken = session(tmp_path, given, COMPONENTS, name="broken")
    run_until(broken, stop)
    resumed = loop.resume(tmp_path / "runs/broken", registry(COMPONENTS), display=Silence())
    resumed.run()
    for name, model in whole.models.items():
        assert fingerprint(model) == fingerprint(resumed.models[name]), name
        assert model.version == resumed.models[name].version, name


def test_versions_rise_where_weights_change(tmp_path):
    given = pipeline(frozen=["reference", "anchor"], lagging=["slow"]) | phases(2)
    _, done = run(tmp_path, given, COMPONENTS)
    versions = {name: model.version for name, model in done.models.items()}
    assert versions["policy"] == 2 * ITERATIONS and versions["anchor"] == 0 and versions["reference"] == 1
    assert versions["slow"] >= 2 * ITERATIONS, "a component may write to it without a word"


# -- dropout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_acts_in_what_trains_while_it_learns_if_asked_for(tmp_path, dropout):
    given = pipeline(frozen=["reference"])
    given |= {
        "policy": {"logits": {"hidden": 4, "dropout": 0.5}},
        "train": {**given["train"], "dropout": dropout},
    }
    watch, done = watched(tmp_path, given)
    assert watch.learning == [{"policy": dropout, "reference": False}] * ITERATIONS
    assert not any(model.training for model in done.models.values())


def test_dropout_leaves_sampling_and_scoring_alone(tmp_path):
    """What was sampled with dropout could neither be scored again nor resumed."""
    outside: list[bool] = []

    class Notices(Logits):
        def trunk(self, free: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                outside.append(self.training)
            return super().trunk(free)

    class Scores(Component):
        @hookimpl
        def reward(self, run: Run, rollout: Rollout) -> Score:
            return Score(run.score("policy", rollout, ["entropy"]).entropy_NT)

    given = pipeline(frozen=["reference"])
    given |= {"policy": {"notices": {"hidden": 4, "dropout": 0.5}}, "evaluate": {"examples": 3}}
    given["rewards"] = ["token-sum", "kl", "scores"]
    given["train"] = {**given["train"], "dropout": True}
    run(tmp_path, given, {**COMPONENTS, "notices": Notices, "scores": Scores})
    assert outside and not any(outside)


# -- checkpoints -------------------------------------------------------------------------------------


def test_a_model_that_lost_a_tensor_is_refused(tmp_path):
    started = session(tmp_path, pipeline(), COMPONENTS)
    states = {name: dict(state) for name, (_, state) in started.models.state().items()}
    del states["policy"]["output"]
    with pytest.raises(CheckpointError, match=r"model `policy`.*output"):
        started.models.load_state(started.models.recipes, {}, states, {"policy": 0}, tmp_path)
