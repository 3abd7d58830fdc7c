"""`wbc` and `gold`: golden numbers through a real phase, what the papers promise, and the conformance kit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from torch import Tensor, nn

from rlalign import Batch, ComponentError, ConfigError, Example, Options, Outputs, Reward, Task
from rlalign.testing import Bench, ComponentTests
from rlalign.testing.golden import GIVEN, golden, golden_gradient
from rlalign.testing.logits import Logits
from rlalign_plugin_imitation import (
    GOLD,
    gold_loss,
    gold_return,
    look_ahead,
    negative_log_likelihood,
    nll_and_perplexity,
    wbc_loss,
)

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
CASES = {case["id"]: case for case in GOLDEN["cases"]}
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES = [("A", 10**9, 10**9), ("A", 4, 2), ("B", 10**9, 2), ("T", 2, 3), (None, 1, 1)]
SUMS = {"sft": {"mean": "sums"}}
R_GOLD = {"gold": {"returns": "reward", "refresh": None}}

routes = pytest.mark.parametrize("route, budget, chunk", ROUTES)


class FreeLogits(Logits):
    """A `logits` policy whose logits are given, one row a response."""

    class Config(Logits.Config):
        """Options of `free-logits`; the sizes are those of `logits`."""

        logits: tuple[tuple[tuple[float, ...], ...], ...] = Field(description="by prompt and step")

    config: Config

    def setup(self) -> None:
        super().setup()
        free = torch.zeros(self.free.shape, dtype=torch.float64)
        given = torch.tensor(self.config.logits, dtype=torch.float64)
        free[:, : given.shape[1]] = given
        self.free = nn.Parameter(free)


class Sequences(Task):
    """Responses of given tokens, each to a prompt of its own unless all share the first one's."""

    class Config(Options):
        """Options of `sequences`."""

        tokens: tuple[tuple[int, ...], ...] = Field(description="by response")
        scores: tuple[float, ...] = Field(description="by response")
        shared: bool = Field(False, description="one prompt for all")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        c = self.config
        return [
            Example(str(i), "0" if c.shared else str(i), (" ".join(map(str, tokens)),), (score,))
            for i, (tokens, score) in enumerate(zip(c.tokens, c.scores, strict=True))
        ]


COMPONENTS: dict[str, type[Any]] = {**GIVEN, "free-logits": FreeLogits, "sequences": Sequences}


def sequences(
    logits: Sequence[Sequence[Sequence[float]]],
    tokens: Sequence[Sequence[int]],
    scores: Sequence[float],
    algorithm: Any,
    **more: Any,
) -> dict[str, Any]:
    """A pipeline over responses with logits of their own."""
    sizes = {"prompts": len(logits), "responses": 1, "steps": len(logits[0]), "ending": False}
    given = [[list(step) for step in row] for row in logits]
    return {
        "task": {"sequences": {"tokens": [list(t) for t in tokens], "scores": list(scores)}},
        "policy": {"free-logits": {**sizes, "vocabulary": len(logits[0][0]), "logits": given}},
        "algorithm": algorithm,
        "train": {"iterations": 1, "prompts": len(tokens), "dtype": "float64", "lr": 0.0},
        **more,
    }


def of_case(name: str, algorithm: Any, **more: Any) -> dict[str, Any]:
    """A case of A-LoL's file. Steps that are masked there do not exist here."""
    inputs = GOLDEN["sequences"][name]["inputs"]
    tokens = [t[: int(sum(m))] for t, m in zip(inputs["tokens"], inputs["mask"], strict=True)]
    return sequences(inputs["policy_logits"], tokens, inputs["reward"], algorithm, **more)


# -- golden numbers ---------------------------------------------------------------------------------------


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", GOLDEN["sequences"])
@pytest.mark.parametrize("key, algorithm", [("nll", SUMS), ("wbc", "wbc"), ("r_gold_u0.1", R_GOLD)])
@routes
def test_losses_over_sequences(
    key: str, algorithm: Any, name: str, route: Any, budget: int, chunk: int, tmp_path: Path
) -> None:
    expected = GOLDEN["sequences"][name]["expected"][key]
    bench = Bench(tmp_path, of_case(name, algorithm), COMPONENTS)
    metrics, gradients = bench.gradient(bench.batch(), route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    wanted = torch.tensor(expected["grad_policy_logits"], dtype=torch.float64)
    torch.testing.assert_close(gradients["policy/free"][:, :-1], wanted, rtol=0, atol=1e-9)


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("gold")])
@pytest.mark.parametrize("past_end", [False, True])
@routes
def test_gold(name: str, past_end: bool, route: Any, budget: int, chunk: int, tmp_path: Path) -> None:
    case = CASES[name]
    inputs, expected, how = case["inputs"], case["expected"], case["hyperparameters"]
    if past_end and how["kind"] == "delta":
        pytest.skip("nothing is summed")
    others = [golden([[[math.log(p) for p in inputs[key]]]]) for key in ("pi_tilde_prob", "p_mle_prob")]
    options = {"returns": how["kind"], "floor": how["u"], "look_ahead": how["suffix_k"], "past_end": past_end}
    if how["c"] is not None:
        options |= {"least": how["c"], "baseline": how["b"]}
    say = {**golden([[inputs["token_logp"]]]), "algorithm": {"gold": options}}
    say["models"] = {"lagging": others[0]["policy"]}
    if how["kind"] != "delta":
        say["models"]["reference"] = others[1]["policy"]
    bench = Bench(tmp_path, say, COMPONENTS)
    batch = bench.batch()
    (gold,) = [c for c in bench.phase.plan.components if c.name == "gold"]
    assert isinstance(gold, GOLD)
    returns = expected["Q_official_code_fill_prob_1_after_end"] if past_end else expected["Q"]
    assert gold.returns(batch)[0].tolist() == pytest.approx(returns, **NEAR)
    weights = expected["importance_weights"]
    gradient = [-w * q for w, q in zip(weights, returns, strict=True)]
    loss = sum(g * x for g, x in zip(gradient, inputs["token_logp"], strict=True))
    if not past_end:
        assert gradient == pytest.approx(expected["grad"]["token_logp"], **NEAR)
        assert loss == pytest.approx(expected["loss"], **NEAR)
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(loss, **NEAR)
    tilde, logp = inputs["pi_tilde_prob"], inputs["token_logp"]
    watched = {"weight": weights, "return": returns, "floored": [p < how["u"] for p in tilde]}
    for metric, values in {**watched, "nll": [-x for x in logp]}.items():
        assert metrics[f"gold/{metric}"] == pytest.approx(sum(values) / len(values), **NEAR), metric
    by_logit = golden_gradient(bench.run.models.policy, [[gradient]])  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


@routes
def test_raft_imitates_the_best_of_k(route: Any, budget: int, chunk: int, tmp_path: Path) -> None:
    case = CASES["raft_best_of_k_nll"]
    inputs, expected = case["inputs"], case["expected"]
    steps = [
        [row[: int(sum(mask))] for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in zip(inputs["token_logp"], inputs["mask"], strict=True)
    ]
    # A probability of exactly 1 has no logit here; these rows are not chosen anyway.
    steps = [[[min(x, -1e-3) for x in row] for row in rows] for rows in steps]
    say = {**golden(steps, scores=inputs["reward"]), "algorithm": [SUMS, "best-of"]}
    bench = Bench(tmp_path, say, COMPONENTS)
    batch = bench.batch()
    chosen = {
        int(batch.rollout.examples[int(g)].id): int(slot)
        for g, slot in zip(batch.rollout.group_N, batch.rollout.columns["slot"], strict=True)
    }
    assert [chosen[0], chosen[1]] == expected["selected_index"]
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
    by_logit = golden_gradient(bench.run.models.policy, expected["grad"]["token_logp"])  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rest")])
@routes
def test_rest_imitates_what_is_above_the_threshold(
    name: str, route: Any, budget: int, chunk: int, tmp_path: Path
) -> None:
    """The golden loss divides by all of the data, ours by what was kept: the usual practice of minibatches."""
    case = CASES[name]
    inputs, expected = case["inputs"], case["expected"]
    threshold = {"threshold": case["hyperparameters"]["tau"], "strict": True}
    say = golden([[[x]] for x in inputs["logp"]], scores=[[r] for r in inputs["reward"]])
    bench = Bench(tmp_path, {**say, "algorithm": [SUMS, {"at-least": threshold}]}, COMPONENTS)
    batch = bench.batch()
    kept = [int(example.id) for example in batch.rollout.examples]
    assert sorted(kept) == [i for i, k in enumerate(expected["kept"]) if k]
    metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
    share = len(kept) / len(inputs["logp"])
    assert metrics["loss"] == pytest.approx(expected["loss_if_normalised_by_kept"], **NEAR)
    assert metrics["loss"] * share == pytest.approx(expected["loss"], **NEAR)
    spread = [[[g / share]] for g in expected["grad"]["logp"]]
    by_logit = golden_gradient(bench.run.models.policy, spread)  # type: ignore[arg-type]
    torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("key, algorithm", [("nll", SUMS), ("wbc", "wbc"), ("r_gold", R_GOLD)])
def test_twenty_updates_on_all_sequences(key: str, algorithm: Any, tmp_path: Path) -> None:
    toy = GOLDEN["toy_training"]
    tokens = list(itertools.product(range(3), repeat=2))
    say = sequences([[[0.0] * 3] * 2], tokens, [t.count(2) / 2 for t in tokens], algorithm)
    say["task"]["sequences"]["shared"] = True
    bench = Bench(tmp_path, say, COMPONENTS)
    free = bench.run.models.policy.free
    assert isinstance(free, nn.Parameter)
    batch, found = bench.batch(), []
    for _ in range(21):
        found.append(float(free.detach()[0, :2].softmax(-1)[:, 2].mean()))
        _, gradients = bench.gradient(batch)
        with torch.no_grad():
            free -= gradients["policy/free"]
    expected = toy["expected_reward"][key]
    assert [found[k] for k in toy["at_updates"]] == pytest.approx(expected, **NEAR)


# -- what the papers promise ------------------------------------------------------------------------------


def outcome(folder: Path, say: dict[str, Any]) -> tuple[float, Tensor]:
    bench = Bench(folder, say, COMPONENTS)
    metrics, gradients = bench.gradient(bench.batch())
    return metrics["loss"], gradients["policy/free"]


def same(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], **NEAR)
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-9)


def random_say(
    algorithm: Any, scale: float = 1.0, scores: Sequence[float] = (0.9, 0.2, 0.5)
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * scale).tolist()
    tokens = [[0, 1, 2, 3], [4, 4], [2]]
    return sequences(logits, tokens, scores, algorithm)


def test_where_every_reward_is_one_wbc_is_the_likelihood(tmp_path: Path) -> None:
    ones = (1.0, 1.0, 1.0)
    same(
        outcome(tmp_path, random_say("wbc", scores=ones)),
        outcome(tmp_path, random_say(SUMS, scores=ones)),
    )


@pytest.mark.parametrize("refresh", [None, 3])
def test_gold_of_full_weights_is_the_likelihood(refresh: int | None, tmp_path: Path) -> None:
    gold = {"gold": {"returns": "delta", "floor": 1.0, "refresh": refresh}}
    same(outcome(tmp_path, random_say(gold)), outcome(tmp_path, random_say(SUMS)))


def test_r_gold_of_certain_tokens_is_wbc(tmp_path: Path) -> None:
    """As p → 1: every token has all the mass but e⁻²⁰."""
    tokens = [[0, 1, 2, 3], [4, 4], [2]]
    certain = torch.zeros(3, 4, 5, dtype=torch.float64)
    for i, row in enumerate(tokens):
        for t, token in enumerate(row):
            certain[i, t, token] = 20.0
    scores = (0.9, 0.2, 0.5)
    losses = []
    for algorithm in (R_GOLD, "wbc"):
        loss, gradient = outcome(tmp_path, sequences(certain.tolist(), tokens, scores, algorithm))
        losses.append((loss, gradient))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-7)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-7, atol=0)
    assert losses[0][0] > 0


@given(
    logprobs=st.lists(st.floats(-12, -1e-6), min_size=1, max_size=6),
    floor=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_a_weight_lies_between_the_floor_and_one(logprobs: list[float], floor: float) -> None:
    """The gradient of −Σ w·log π by log π is −w: exactly the floor where p is below it, p elsewhere."""
    rollout = Logits(Logits.Config(prompts=1, responses=1, steps=6, ending=False))
    rollout.setup()
    encoded = rollout.encode([Example("0", "0", (" ".join("1" for _ in logprobs),))])
    reward = Reward(torch.zeros(1, len(logprobs), dtype=torch.float64), {})
    batch = Batch.of(encoded, reward, torch.ones(1, dtype=torch.float64))
    now = torch.tensor([logprobs], dtype=torch.float64, requires_grad=True)
    gold = GOLD(GOLD.Config(returns="delta", floor=floor, refresh=None))
    run: Any = SimpleNamespace(models=SimpleNamespace(policy=rollout.eval()))
    gold.loss(run=run, batch=batch, now=Outputs(logprobs_NT=now)).value.backward()
    assert now.grad is not None
    for weight, logprob in zip((-now.grad)[0].tolist(), logprobs, strict=True):
        p = math.exp(logprob)
        assert weight == (floor if p < floor else pytest.approx(p, rel=1e-12))
        assert floor <= weight <= 1


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    k=st.integers(0, 7),
    beyond=st.sampled_from([0.0, 1.0]),
    data=st.data(),
)
def test_look_ahead_by_a_loop(lengths: list[int], k: int, beyond: float, data: Any) -> None:
    terms = [data.draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n)) for n in lengths]
    term_NT = torch.full((len(lengths), max(lengths)), torch.nan, dtype=torch.float64)
    for i, row in enumerate(terms):
        term_NT[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    mask_NT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    found = look_ahead(term_NT, mask_NT, k, beyond)
    for i, row in enumerate(terms):
        for t in range(len(row)):
            expected = sum(row[t + j] if t + j < len(row) else beyond for j in range(k + 1))
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("algorithm", ["wbc", R_GOLD, {"gold": {"returns": "s", "refresh": 2}}])
def test_steps_that_do_not_exist_change_nothing(algorithm: Any, tmp_path: Path) -> None:
    """Other logits there, and more padding behind."""
    say = random_say(algorithm)
    loss, gradient = outcome(tmp_path, say)
    logits = say["policy"]["free-logits"]["logits"]
    for row in (1, 2):
        logits[row][-1] = [9.0, -9.0, 3.0, 0.0, 1.0]
    longer = {**say["policy"]["free-logits"], "steps": 6}
    longer["logits"] = [[*row, [5.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 5] for row in logits]
    say["policy"] = {"free-logits": longer}
    padded_loss, padded = outcome(tmp_path, say)
    assert padded_loss == pytest.approx(loss, **NEAR)
    torch.testing.assert_close(padded[:, :4], gradient[:, :4], rtol=0, atol=1e-9)
    assert not padded[:, 4:].any()


def test_gold_has_the_papers_bounds_by_return() -> None:
    assert (GOLD.Config(returns="p").floor, GOLD.Config(returns="p").least) == (0.0, 1.0)
    assert (GOLD.Config(returns="s").floor, GOLD.Config(returns="s").least) == (0.1, 0.0)
    assert GOLD.Config(returns="p", floor=0.3).floor == 0.3


def test_only_what_reads_rewards_wants_scores(tmp_path: Path) -> None:
    def scored(**options: Any) -> bool:
        return GOLD(GOLD.Config(**options)).scored

    assert scored(returns="reward") and scored(returns="s", priority=True)
    assert not scored(returns="s") and not scored(returns="delta")
    say = {"task": "unscored", "policy": "logits", "train": {"iterations": 1, "prompts": 1}}
    known = {"unscored": Unscored}
    with pytest.raises(ConfigError, match="the stored scores are the reward here"):
        Bench(tmp_path / "wbc", {**say, "algorithm": "wbc"}, known).batch()
    Bench(tmp_path / "gold", {**say, "algorithm": {"gold": {"returns": "s"}}}, known).batch()


class Unscored(Task):
    """A response without a score."""

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("0", "0", ("1 2",))]


# -- the lagging copy -------------------------------------------------------------------------------------


def logged_say(algorithm: Any, **train: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"logged": [2]}},
        "policy": {"logits": {"responses": 2}},
        "algorithm": algorithm,
        "rewards": ["token-sum"],
        "train": {"iterations": 6, "prompts": 6, "lr": 0.1, "dtype": "float64", **train},
    }


def test_the_copy_lags_and_catches_up(tmp_path: Path) -> None:
    say = logged_say({"gold": {"returns": "reward", "refresh": 3}})
    bench = Bench(tmp_path, say)
    policy, lagging = bench.run.models["policy"], bench.run.models["lagging"]
    start = policy.state_dict()["free"].clone()
    for iteration in range(1, 7):
        before = lagging.state_dict()["free"].clone()
        bench.iterate()
        caught_up = torch.equal(lagging.state_dict()["free"], policy.state_dict()["free"])
        assert caught_up is (iteration % 3 == 0)
        if not caught_up:
            assert torch.equal(lagging.state_dict()["free"], before)
    assert not torch.equal(start, policy.state_dict()["free"])


def test_weights_are_the_copys(tmp_path: Path) -> None:
    """Another π̃ than the policy: the gradient by log π is that copy's probability times the reward."""
    say = random_say({"gold": {"returns": "reward", "floor": 0.05}})
    other = random_say("wbc", scale=2.0)["policy"]
    bench = Bench(tmp_path, {**say, "models": {"lagging": other}}, COMPONENTS)
    batch = bench.batch()
    tilde = torch.tensor(other["free-logits"]["logits"], dtype=torch.float64).log_softmax(-1)
    free = bench.run.models.policy.free
    assert isinstance(free, nn.Parameter)
    logp = free[:, :-1].log_softmax(-1)
    loss = torch.zeros((), dtype=torch.float64)
    for i, (tokens, score) in enumerate(zip([[0, 1, 2, 3], [4, 4], [2]], (0.9, 0.2, 0.5), strict=True)):
        for t, token in enumerate(tokens):
            weight = max(0.05, float(tilde[i, t, token].exp()))
            loss = loss - weight * torch.tensor(score).double() * logp[i, t, token] / 3
    loss.backward()
    expected = free.grad
    assert expected is not None
    metrics, gradients = bench.gradient(batch)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(gradients["policy/free"], expected, rtol=1e-6, atol=1e-9)


def test_dropout_does_not_reach_the_weights(tmp_path: Path) -> None:
    """π̃ is the policy itself, so the mean weight is that of the policy without dropout, though it learns with it."""
    say = {
        "task": {"numbers": {"size": 6}},
        "policy": {"logits": {"hidden": 5, "dropout": 0.5}},
        "algorithm": {"gold": {"returns": "delta", "refresh": None, "floor": 0.0}},
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64", "dropout": True},
    }
    bench = Bench(tmp_path, say)
    batch = bench.batch()
    noisy, _ = bench.gradient(batch)
    bench.engine.dropout = False
    steady, _ = bench.gradient(batch)
    assert noisy["gold/weight"] == pytest.approx(steady["gold/weight"], rel=1e-9)
    assert noisy["gold/nll"] != pytest.approx(steady["gold/nll"], rel=1e-3)


# -- priority ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm", [{"wbc": {"priority": True}}, {"gold": {**R_GOLD["gold"], "priority": True}}]
)
def test_priority_draws_in_proportion_to_the_reward(algorithm: Any, tmp_path: Path) -> None:
    scores = [0.0, 0.1, 0.3, 0.6]
    say = sequences([[[0.0] * 3] * 2] * 4, [[0], [1], [2], [0, 1]], scores, algorithm)
    bench = Bench(tmp_path, say, COMPONENTS)
    drawn = torch.bincount(torch.tensor([e.row for e in bench.phase.draw.next(20000)]), minlength=4)
    assert drawn[0] == 0
    assert (drawn / 20000).tolist() == pytest.approx(scores, abs=0.015)
    # A row that was drawn is weighted by its reward once more.
    batch = bench.batch(8)
    rows = torch.tensor([e.row for e in batch.rollout.examples])
    torch.testing.assert_close(batch.advantage_NT[:, 0], torch.tensor(scores, dtype=torch.float64)[rows])


def test_negative_rewards_cannot_be_drawn_by(tmp_path: Path) -> None:
    say = random_say({"wbc": {"priority": True}}, scores=(0.5, -0.25, 1.0))
    with pytest.raises(
        ComponentError, match=r"1 of 3 rewards are negative, and `priority` of `wbc` draws .*; bound them"
    ):
        Bench(tmp_path, say, COMPONENTS)
    bench = Bench(tmp_path / "bounded", {**say, "rewards": ["logged", {"clip": {"low": 0.0}}]}, COMPONENTS)
    assert {e.row for e in bench.phase.draw.next(200)} == {0, 2}


@pytest.mark.parametrize("baseline", [None, -10.0, 0.5])
@pytest.mark.parametrize("least", [0.0, 1.0, 2.0])
def test_past_the_end_stand_certain_tokens(least: float, baseline: float | None) -> None:
    """What the released code's padding is worth: as much as tokens of probability 1 that do stand there."""
    mle = torch.tensor([[-0.5, -3.0, 0.0, 0.0]])
    ended, longer = torch.tensor([[True, True, False, False]]), torch.ones(1, 4, dtype=torch.bool)
    found, expected = (gold_return(mle, mask, 2, least, baseline, True)[:, :2] for mask in (ended, longer))
    torch.testing.assert_close(found, expected)


# -- the formulas on literal numbers ------------------------------------------------------------------------


def test_the_losses_by_hand() -> None:
    """Padding, the 9s, is never read."""
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 9.0]])
    weight, reward = torch.tensor([[0.5, 0.25], [1.0, 9.0]]), torch.tensor([[2.0, 2.0], [-4.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert wbc_loss(logprobs, reward, mask).tolist() == [6.0, -2.0]
    assert gold_loss(logprobs, weight, reward, mask).tolist() == [1.0 + 1.0, -2.0]
    assert negative_log_likelihood(logprobs, mask).tolist() == [3.0, 0.5]
    assert negative_log_likelihood(logprobs, mask, average=True).tolist() == [1.5, 0.5]
    nll, perplexity = nll_and_perplexity(logprobs, mask)
    assert nll == 3.5 / 3
    assert perplexity == math.exp(nll)
    assert nll_and_perplexity(1000 * logprobs, mask)[1] == math.inf


# -- what every component must do -------------------------------------------------------------------------


class TestWBC(ComponentTests):
    component = "wbc"


class TestPriorityWBC(ComponentTests):
    component = "wbc"
    options = {"priority": True}


class TestGold(ComponentTests):
    component = "gold"
    options = {"returns": "p", "refresh": 2}


class TestGoldByProbability(ComponentTests):
    component = "gold"
    options = {"returns": "s", "refresh": 1, "past_end": True, "look_ahead": 2}


class TestRGold(ComponentTests):
    component = "gold"
    exact_gradient = False  # the weight of a token is a constant
    options = {"returns": "reward", "refresh": None, "priority": True}
