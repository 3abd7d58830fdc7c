"""What the forms have in common and where they part; what is drawn; three phases; the conformance kit."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from rlalign import ComponentError, Example, Options, Outputs, Result, Task
from rlalign.learning.engine import Engine
from rlalign.records import logs
from rlalign.running import loop
from rlalign.running.view import open_phase
from rlalign.testing import Bench, ComponentTests, registry, run, session
from rlalign.testing.bench import Silence, run_until
from rlalign.testing.golden import GIVEN, golden
from rlalign_plugin_a_lol import first_of_each, fit_quality, importance_weight, kl_loss, weighted_logprob

from .conftest import FreeValue, GivenValue

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
OWN: dict[str, type[Any]] = {"given-value": GivenValue, "free-value": FreeValue, **GIVEN}
LOGGED = {"numbers": {"size": 12, "prompts": 6, "logged": [2, 4], "longest": 4, "vocabulary": 6}}
VALUES = {"value": {"given-value": {"values": [1.0, 0.5, 1.5, 1.0, 0.8, 1.2]}}}


LONGER = {"iterations": 8, "prompts": 4, "dtype": "float64", "lr": 0.01, "minibatches": 2}
"""What is left of it after the share that is kept is long enough to be interrupted."""


class _Kit(ComponentTests):
    @property
    def extra(self) -> dict[str, type[Any]]:
        return OWN


class TestALoL(_Kit):
    component = "a-lol"
    exact_gradient = False  # the importance ratio is a constant
    options = {"pool": "all"}
    pipeline = {"task": LOGGED, "models": VALUES, "train": LONGER}


class TestSeq(_Kit):
    component = "a-lol"
    exact_gradient = False  # the importance ratio is a constant
    options = {"form": "seq", "draw": "positive", "weighted": False}
    pipeline = {"task": LOGGED, "models": VALUES, "train": LONGER}


class TestKL(_Kit):
    component = "a-lol"
    options = {"form": "kl", "draw": "uniform", "pool": "all"}
    pipeline = {"task": LOGGED, "models": VALUES, "train": LONGER}


class TestRLoL(_Kit):
    component = "r-lol"
    exact_gradient = False  # the importance ratio is a constant
    pipeline = {"task": LOGGED, "train": LONGER}


class TestFitValue(_Kit):
    component = "fit-value"
    pipeline = {
        "task": LOGGED,
        "models": {"value": {"free-value": {}}},
        "train": {"iterations": 3, "prompts": 12, "dtype": "float64", "lr": 0.01, "minibatches": 2},
    }


# -- the formulas on literal numbers ------------------------------------------------------------------------


def test_the_objective_by_hand() -> None:
    """Padding, the 9s, is never read."""
    logprobs, mask = torch.tensor([[-1.0, -2.0], [-0.5, 9.0]]), torch.tensor([[True, True], [True, False]])
    gain, steps = torch.tensor([2.0, 4.0]), torch.tensor([[1.0, 0.5], [2.0, 9.0]])
    assert weighted_logprob(logprobs, mask, gain, None).tolist() == [-6.0, -2.0]
    assert weighted_logprob(logprobs, mask, gain, torch.tensor([0.5, 2.0])).tolist() == [-3.0, -4.0]
    assert weighted_logprob(logprobs, mask, gain, steps).tolist() == [-4.0, -4.0]
    assert kl_loss(torch.tensor([-3.0]), torch.tensor([-1.0]), torch.tensor([2.0]), 0.5).tolist() == [5.0]


def test_importance_weights_by_hand() -> None:
    ratio = torch.tensor([0.05, 0.5, 3.0])
    weight, acts = importance_weight(ratio.log(), 0.9)
    torch.testing.assert_close(weight, torch.tensor([0.1, 0.5, 1.9]))
    assert acts.tolist() == [1.0, 0.0, 1.0]
    weight, acts = importance_weight(ratio.log(), None)
    torch.testing.assert_close(weight, ratio)
    assert not acts.any()


def test_first_responses_and_the_fit() -> None:
    assert first_of_each(torch.tensor([0, 2, 2, 3])).tolist() == [True, False, True]
    found = fit_quality(torch.tensor([0.0, 2.0, 4.0, 6.0]), torch.tensor([0, 0, 1, 1]), 2.5)
    assert found == {"r2": 0.5, "r2_most": 1 - 2 / 5}
    assert fit_quality(torch.ones(3), torch.tensor([0, 0, 1]), 0.0) == {}


# -- the forms, on random rows ------------------------------------------------------------------------------

Row = tuple[list[float], list[float], float, float]
"""Log-probs, the reference's, reward, value."""
PROBABILITY = st.floats(0.02, 0.98).map(math.log)


@st.composite
def rows(draw: Any, same: bool = False) -> list[Row]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 4))
        mine = [draw(PROBABILITY) for _ in range(steps)]
        theirs = mine if same else [draw(PROBABILITY) for _ in range(steps)]
        found.append((mine, theirs, draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return found


def on_rows(rows: Sequence[Row], method: str, folder: Path, **options: Any) -> Bench:
    """A method's phase that draws all of these rows."""
    say = golden([[r[0]] for r in rows], [[r[1]] for r in rows], [[r[2]] for r in rows])
    options = {"draw": "uniform", **options}
    models = {"reference": say["models"]["reference"]} if options.get("form") != "ref-free" else {}
    if method == "a-lol":
        models["value"] = {"given-value": {"values": [r[3] for r in rows]}}
    pipeline = {**say, "models": models, "rewards": ["logged"], "algorithm": {method: options}}
    return Bench(folder, pipeline, OWN)


def computed(rows: Sequence[Row], method: str, folder: Path, **options: Any) -> tuple[float, torch.Tensor]:
    """(loss, gradient) of a method on these rows."""
    bench = on_rows(rows, method, folder, **options)
    metrics, gradients = bench.gradient(bench.batch())
    return metrics["loss"], gradients["policy/free"]


def equal(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=0, abs=1e-9)
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


FEW = settings(max_examples=6, deadline=None)


@FEW
@given(rows(same=True), st.sampled_from([None, 0.0, 0.2, 0.9]))
def test_at_the_reference_all_forms_are_one(folder: Path, rows: list[Row], clip: float | None) -> None:
    free = computed(rows, "a-lol", folder, form="ref-free")
    equal(computed(rows, "a-lol", folder, clip=clip), free)
    equal(computed(rows, "a-lol", folder, form="seq", clip=clip), free)
    equal(computed(rows, "r-lol", folder, clip=clip), computed(rows, "r-lol", folder, form="ref-free"))
    assert computed(rows, "a-lol", folder, form="kl")[0] == pytest.approx(free[0], abs=1e-9)


@FEW
@given(rows())
def test_where_forms_meet(folder: Path, rows: list[Row]) -> None:
    free = computed(rows, "a-lol", folder, form="ref-free")
    equal(computed(rows, "a-lol", folder, form="kl", beta=0.0), free)
    equal(computed(rows, "a-lol", folder, form="seq", clip=0.0), free)
    equal(computed(rows, "a-lol", folder, clip=0.0), free)
    nothing = [(*row[:3], 0.0) for row in rows]
    equal(computed(nothing, "a-lol", folder), computed(nothing, "r-lol", folder))
    short = [([row[0][0]], [row[1][0]], row[2], row[3]) for row in rows]
    equal(computed(short, "a-lol", folder, form="seq"), computed(short, "a-lol", folder))
    ones = [(*row[:2], 1.0, row[3]) for row in rows]
    nll = -sum(sum(row[0]) for row in rows) / len(rows)
    assert computed(ones, "r-lol", folder, form="ref-free")[0] == pytest.approx(nll, abs=1e-9)


@FEW
@given(rows(), st.sampled_from([None, 0.2, 0.9]))
def test_the_weight_is_a_constant_within_its_bounds(
    folder: Path, rows: list[Row], clip: float | None
) -> None:
    """Row by row, the gradient of `full` is the clipped ratio times that of `ref-free`; none is ever dead."""
    for row in rows:
        free, full = (
            computed([row], "a-lol", folder, form="ref-free"),
            computed([row], "a-lol", folder, clip=clip),
        )
        ratio = math.exp(sum(row[0]) - sum(row[1]))
        weight = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
        torch.testing.assert_close(full[1], weight * free[1], rtol=1e-9, atol=1e-12)


@FEW
@given(rows())
def test_what_earns_less_than_expected_learns_nothing(folder: Path, rows: list[Row]) -> None:
    poor = [(*row[:2], row[2] * row[3], row[3] + 1e-6) for row in rows]
    for form in ("full", "ref-free", "seq"):
        loss, gradient = computed(poor, "a-lol", folder, form=form)
        assert loss == 0
        assert not gradient.any()
    _, pushed = computed(poor, "a-lol", folder, form="kl", beta=0.2)
    _, cloned = computed([(*row[:2], 1.0, 0.0) for row in rows], "a-lol", folder, form="ref-free")
    torch.testing.assert_close(pushed, -0.2 * cloned, rtol=1e-9, atol=1e-12)


def test_the_kl_form_falls_without_bound(folder: Path) -> None:
    found = [computed([([-x], [-1.0], 0.6, 0.5)], "a-lol", folder, form="kl")[0] for x in (1.0, 10.0, 100.0)]
    assert found[0] > found[1] > found[2]
    assert found[2] < -9
    rising = [computed([([-x], [-1.0], 0.9, 0.5)], "a-lol", folder, form="kl")[0] for x in (1.0, 10.0)]
    assert rising[1] > rising[0]


@pytest.mark.parametrize("form", ["full", "seq", "kl", "ref-free"])
def test_what_is_worth_watching(form: str, folder: Path) -> None:
    """Two responses, of two tokens and of one; by token π is e, 1/e and e^½ times the reference."""
    rows: list[Row] = [([-1.0, -3.0], [-2.0, -2.0], 0.9, 0.5), ([-0.5], [-1.0], 0.5, 0.9)]
    bench = on_rows(rows, "a-lol", folder, form=form, clip=0.2)
    metrics, _ = bench.gradient(bench.batch(), budget=1)
    expected = {"nll": 4.5 / 3, "gain": 0.4 / 2, "kept": 1 / 2, "log_ratio": 0.5 / 2}
    expected |= {"clipped": 1 / 2 if form == "full" else 1.0}  # of responses; of tokens
    missing = {"ref-free": {"log_ratio", "clipped"}, "kl": {"clipped"}}.get(form, set())
    found = {key.removeprefix("a-lol/"): x for key, x in metrics.items() if not key.endswith("loss")}
    assert found == pytest.approx({k: x for k, x in expected.items() if k not in missing}, rel=1e-9)


def test_huge_ratios_do_not_overflow(folder: Path) -> None:
    row = ([-0.01] * 60, [-30.0] * 60, 1.0, 0.0)
    loss, gradient = computed([row], "a-lol", folder)
    assert loss == pytest.approx(1.9 * 0.6, abs=1e-9)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("route, budget, chunk", [("A", 10**9, 10**9), ("B", 10**9, 2), ("T", 8, 3)])
@pytest.mark.parametrize("form", ["full", "seq", "kl"])
def test_dropout_does_not_reach_the_weights(
    form: str, route: Any, budget: int, chunk: int, tmp_path: Path
) -> None:
    """The policy is its own reference, so every weight is 1, though dropout is on in what learns."""
    pipeline = {
        "task": LOGGED,
        "policy": {"logits": {"hidden": 5, "dropout": 0.5}},
        "algorithm": {"a-lol": {"form": form, "draw": "uniform", "pool": "all"}},
        "rewards": ["token-sum"],
        "models": VALUES,
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64", "dropout": True},
    }
    bench = Bench(tmp_path, pipeline, OWN)
    metrics, noisy = bench.gradient(bench.batch(), route=route, budget=budget, head_chunk=chunk)
    assert metrics["a-lol/log_ratio"] == pytest.approx(0, abs=1e-12)
    assert metrics.get("a-lol/clipped", 0.0) == 0
    bench.engine.dropout = False
    _, steady = bench.gradient(bench.batch(), route=route, budget=budget, head_chunk=chunk)
    assert any(not torch.equal(noisy[key], steady[key]) for key in noisy), "dropout does act where it learns"


def test_twenty_updates_on_all_responses(folder: Path) -> None:
    """The golden file's toy: logits [2,3] that all nine responses share, full-batch gradient descent at rate 1."""
    toy = GOLDEN["toy_training"]
    tokens = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    rewards = ((tokens == 2).double().sum(1) / 2).tolist()
    uniform = [-math.log(3)] * 2
    for name, (method, form) in {
        "a_lol": ("a-lol", "full"),
        "a_lol_ref_free": ("a-lol", "ref-free"),
        "a_lol_seq": ("a-lol", "seq"),
        "a_lol_kl": ("a-lol", "kl"),
        "r_lol": ("r-lol", "full"),
        "wbc": ("r-lol", "ref-free"),
    }.items():
        bench = on_rows([(uniform, uniform, reward, 1 / 3) for reward in rewards], method, folder, form=form)
        batch = bench.batch()
        drawn = tokens[[int(example.id) for example in batch.rollout.examples]]
        logits, found = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), []
        for k in range(max(toy["at_updates"]) + 1):
            if k in toy["at_updates"]:
                found.append(float(logits.detach().softmax(-1)[:, 2].mean()))
            shared = logits.log_softmax(-1)[torch.arange(2), drawn]
            loss, _ = bench.phase.losses(batch, Outputs(full_logprobs_NT=shared))
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits - gradient).detach().requires_grad_()
        assert found == pytest.approx(toy["expected_reward"][name], rel=0, abs=1e-9), name


# -- what is drawn -------------------------------------------------------------------------------------------


class Rows(Task):
    """Examples with responses of these scores; response j is token j."""

    class Config(Options):
        """Options of `rows`."""

        scores: tuple[tuple[float, ...], ...] = Field(description="by example and response")

    config: Config

    def examples(self, split: str) -> list[Example]:
        return [
            Example(str(g), str(g), tuple(str(j) for j in range(len(row))), row)
            for g, row in enumerate(self.config.scores)
        ]


def drawing(
    folder: Path, scores: Any, algorithm: Any, values: Any = None, **train: Any
) -> tuple[Any, list[str]]:
    """A phase that has started, and what it noted."""
    silence = Silence()
    pipeline = {
        "task": {"rows": {"scores": scores}},
        "policy": {"logits": {"prompts": len(scores), "responses": 4, "steps": 2}},
        "responses": "logged",
        "rewards": ["logged"],
        "algorithm": algorithm,
        "models": {"value": {"given-value": {"values": values or [0.0] * len(scores)}}}
        if "a-lol" in algorithm
        else {},
        "train": {"iterations": 10, "prompts": 4, "dtype": "float64", **train},
    }
    started = session(folder, pipeline, {**OWN, "rows": Rows}, display=silence)
    phase = open_phase(started, started.plans[0], 0, 0)
    phase.start()
    return phase, silence.notes


def test_draws_are_in_proportion_to_the_advantage(tmp_path: Path) -> None:
    gold = GOLDEN["priority_sampling"]
    scores = [[a + 1.0] for a in gold["advantage"]]
    phase, notes = drawing(tmp_path, scores, {"a-lol": {}}, [1.0] * 5)
    found = Counter(int(e.id) for e in phase.draw.next(30_000))
    for row, p in enumerate(gold["probability"]):
        assert found[row] / 30_000 == pytest.approx(p, abs=0.01)
    assert set(found) == set(gold["kept_indices"])
    assert phase.iterations == round(10 * gold["positive_fraction"])
    assert any("3 of 5 logged responses (60.0%)" in note for note in notes)


def test_it_learns_what_earns_more(tmp_path: Path) -> None:
    """From logged responses alone: what is sampled afterwards earns more than before."""
    pipeline = {
        "task": {"numbers": {"size": 80, "prompts": 6, "logged": [2, 4], "longest": 4, "vocabulary": 6}},
        "policy": {"logits": {"prompts": 6, "responses": 1, "steps": 5, "vocabulary": 7}},
        "rewards": ["token-sum"],
        "algorithm": "a-lol",
        "models": {"value": {"given-value": {"values": [0.6] * 6}}},
        "train": {"passes": 4, "prompts": 6, "lr": 0.2, "dtype": "float64"},
        "evaluate": {
            "examples": 60,
            "generation": {"temperature": 1.0, "max_new_tokens": 5},
            "use": ["token-sum"],
        },
    }
    finished, _ = run(tmp_path, pipeline, OWN)
    found = [
        row["eval/token-sum"] for row in logs.read(finished.path / "metrics.jsonl") if "eval/responses" in row
    ]
    before, after = found[0], found[-1]
    assert after > before + 0.15


def test_a_run_shows_the_advantages_of_what_it_learned_from(tmp_path: Path) -> None:
    """A = R − V(x), also where the loss clamps it; R-LoL has none."""
    pipeline = {
        "task": LOGGED,
        "policy": {"logits": {"hidden": 4}},
        "rewards": ["token-sum"],
        "algorithm": {"a-lol": {"pool": "all", "draw": "uniform"}},
        "models": VALUES,
        "train": {"iterations": 2, "prompts": 6},
        "evaluate": {"examples": 2, "every": 1, "show": 6, "use": ["token-sum"]},
    }
    _, done = run(tmp_path, pipeline, OWN)
    rows = Result(done.dir.path).learned
    values = VALUES["value"]["given-value"]["values"]
    assert {row["iteration"] for row in rows} == {1, 2} and any(row["advantage"] < 0 for row in rows)
    for row in rows:
        assert row["advantage"] == pytest.approx(row["reward"] - values[int(row["prompt"])], abs=1e-6)
        assert row["reward"] == pytest.approx(row["scores"]["token-sum"])
    _, done = run(tmp_path, {**pipeline, "algorithm": "r-lol", "models": {}}, OWN)
    assert Result(done.dir.path).learned == []


def test_what_each_way_of_drawing_expects(tmp_path: Path) -> None:
    """The mean ref-free loss of drawn rows, of the golden file's five."""
    gold = GOLDEN["priority_sampling"]
    scores = [[a + 1.0] for a in gold["advantage"]]
    for draw, name in (
        ("priority", "priority"),
        ("positive", "uniform_over_positive"),
        ("uniform", "uniform_over_all_with_clamp"),
    ):
        phase, _ = drawing(tmp_path, scores, {"a-lol": {"draw": draw}}, [1.0] * 5)
        drawn = [int(e.id) for e in phase.draw.next(30_000)]
        losses = [max(gold["advantage"][i], 0.0) * gold["seq_nll"][i] for i in drawn]
        expected = gold[f"expected_ref_free_loss_under_{name}"]
        assert sum(losses) / len(losses) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    "pool, kept, of",
    [("first", {(0, "0"), (2, "0")}, 3), ("all", {(0, "0"), (1, "1"), (2, "0"), (2, "2")}, 8)],
)
def test_the_pool(pool: str, kept: set[tuple[int, str]], of: int, tmp_path: Path) -> None:
    scores = [[0.9, 0.1, 0.0], [0.2, 0.8], [0.7, 0.3, 0.6]]
    phase, (note,) = drawing(tmp_path, scores, {"a-lol": {"pool": pool}}, [0.5] * 3)
    drawn = {(int(e.id), e.responses[0]) for e in phase.draw.next(500)}
    assert drawn == kept
    assert f"{len(kept)} of {of} logged responses" in note
    assert ("5 that are not first are left aside" in note) == (pool == "first")
    uniform, _ = drawing(tmp_path, scores, {"a-lol": {"pool": pool, "draw": "uniform"}}, [0.5] * 3)
    first = [e.responses for e in uniform.draw.next(300)]
    assert {len(r) for r in first} == ({1} if pool == "first" else {2, 3})


def test_passes_count_what_is_kept(tmp_path: Path) -> None:
    scores = [[float(g % 4 == 0)] for g in range(64)]
    phase, _ = drawing(tmp_path, scores, {"a-lol": {}}, [0.5] * 64, iterations=None, passes=2)
    assert phase.iterations == 8  # 16 rows twice, 4 a time


def test_nothing_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="no logged response of 2 earn more"):
        drawing(tmp_path, [[0.1], [0.2]], {"a-lol": {}}, [0.5, 0.5])
    with pytest.raises(ComponentError, match="1 of 2 rewards are negative"):
        drawing(tmp_path, [[0.1], [-0.2]], {"r-lol": {}})


def test_a_value_that_was_never_fitted_is_refused(tmp_path: Path) -> None:
    pipeline = {
        "task": {"rows": {"scores": [[1.0]]}},
        "policy": {"logits": {"prompts": 1, "responses": 1, "steps": 2}},
        "rewards": ["logged"],
        "algorithm": "a-lol",
        "models": {"value": {"free-value": {}}},
        "train": {"iterations": 1, "prompts": 1},
    }
    started = session(tmp_path, pipeline, {**OWN, "rows": Rows})
    with pytest.raises(ComponentError, match="put a phase with `fit-value` before"):
        started.run()


# -- three phases ---------------------------------------------------------------------------------------------

MODELS = "pkg:rlalign_plugin_toy_tasks/models"
TWO: dict[str, Any] = {
    "models": {"value": {"attention-value": {"min": -1.0, "heads": 4}}},
    "phases": [
        {
            "name": "value",
            "algorithm": "fit-value",
            "train": {"iterations": 1, "prompts": 24, "minibatches": 4},
        },
        {"name": "align", "algorithm": {"a-lol": {"pool": "all"}}, "train": {"iterations": 12}},
    ],
    "train": {"prompts": 16, "lr": 1e-3},
    "generation": {"samples": 2, "max_new_tokens": 12},
}
CAUSAL = {
    **TWO,
    "task": {"toy-reviews": {"size": 60}},
    "policy": {"causal-lm": {"path": f"{MODELS}/toy-reviews"}},
    "rewards": ["toy-sentiment"],
}
SEQ2SEQ = {
    **TWO,
    "task": {"toy-keywords": {"size": 60}},
    "policy": {"seq2seq-lm": {"path": f"{MODELS}/toy-keywords"}},
    "rewards": ["toy-coverage"],
}


@pytest.mark.parametrize("pipeline", [CAUSAL, SEQ2SEQ], ids=["causal", "seq2seq"])
def test_on_language_models(
    pipeline: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases; the first step's weights are exactly 1; the reference sees each drawn response once."""
    scored: Counter[str] = Counter()
    score = Engine._score

    def counted(self: Engine, model: str, rollout: Any, want: Any) -> Any:
        if model == "reference":
            scored.update(
                f"{e.row}" for g, e in enumerate(rollout.examples) if bool((rollout.group_N == g).any())
            )
        return score(self, model, rollout, want)

    monkeypatch.setattr(Engine, "_score", counted)
    started = session(tmp_path, pipeline, {})
    started.run()
    lines = [x for x in logs.read(started.dir.path / "metrics.jsonl") if "responses" in x]
    fit = next(x for x in lines if x["phase"] == "value")
    assert 0 <= fit["fit-value/mse"] < 1
    align = [x for x in lines if x["phase"] == "align"]
    assert len(align) == round(12 * align[0]["a-lol/kept"])
    assert align[0]["a-lol/log_ratio"] == pytest.approx(0, abs=1e-4)
    assert align[0]["a-lol/clipped"] == 0
    assert scored and max(scored.values()) == 1


@pytest.mark.slow
def test_a_changed_ingredient_makes_new_advantages(tmp_path: Path) -> None:
    """Reward, data and the seed of the value's fit each end in another column."""

    def columns(name: str, **changes: Any) -> set[str]:
        started = session(tmp_path, {**CAUSAL, **changes}, {}, name=name)
        started.run()
        return {path.name for path in (started.dir.path / "columns").iterdir()}

    first = columns("first")
    assert columns("again") == first
    assert columns("reward", rewards=[{"toy-sentiment": {}, "weight": 0.5}]).isdisjoint(first)
    assert columns("data", task={"toy-reviews": {"size": 61}}).isdisjoint(first)
    assert columns("model", seed=1).isdisjoint(first)


@pytest.mark.parametrize("after", [2, *(pytest.param(after, marks=pytest.mark.slow) for after in (1, 4))])
def test_resume_is_exact(after: int, tmp_path: Path) -> None:
    pipeline = {**CAUSAL, "checkpoints": {"every": 1, "last": 20}}
    whole = session(tmp_path, pipeline, {}, name="whole")
    whole.run()
    cut = session(tmp_path, pipeline, {}, name="cut")
    run_until(cut, after)
    again = loop.resume(cut.dir.path, registry(OWN), display=Silence())
    again.run()
    mine, theirs = again.models.policy.state_dict(), whole.models.policy.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert _remembered(again) == _remembered(whole)


def _remembered(session: loop.Session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (session.dir.path / "remembered").iterdir()}
