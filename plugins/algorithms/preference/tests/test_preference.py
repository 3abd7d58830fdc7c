"""Preference losses: by hand, against golden numbers through a real phase in every route, and the conformance kit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from rlalign import (
    Batch,
    Component,
    ComponentError,
    ConfigError,
    Example,
    Options,
    Rollout,
    Score,
    Task,
    hookimpl,
)
from rlalign.testing import Bench, ComponentTests, plain_gradient, run
from rlalign.testing.golden import GIVEN, golden, golden_gradient
from rlalign_plugin_preference import (
    kto_loss,
    pairs,
    pro_loss,
)

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
CASES, BY_LOGITS = GOLDEN["by_logprob"], GOLDEN["by_logits"]
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES: list[tuple[Any, int, int]] = [
    *(("A", 10**9, 10**9), ("A", 10**9, 4), ("B", 10**9, 2)),
    *(("T", 2, 3), (None, 1, 1)),
]
Table = list[list[float]]
Numbers3 = list[list[list[float]]]


# -- the kit: what every component must do ---------------------------------------------------------------------
# Its logged groups hold one to five responses, its sampled ones four.

SAMPLED = {"responses": "sampled"}
SKIP = {"unpaired": "skip"}


class TestDPO(ComponentTests):
    component = "dpo"
    options = SKIP


class TestDPOOfSamples(ComponentTests):
    component = "dpo"
    options = {"pairs": "all", "label_smoothing": 0.1, "robust": True}
    pipeline = SAMPLED


class TestIPO(ComponentTests):
    component = "ipo"
    options = SKIP


class TestSimPO(ComponentTests):
    component = "simpo"
    options = SKIP


class TestORPO(ComponentTests):
    component = "orpo"
    options = {"pairs": "all", **SKIP}


class TestRRHF(ComponentTests):
    component = "rrhf"


class TestPRO(ComponentTests):
    component = "pro"
    options = SKIP


class TestKTO(ComponentTests):
    component = "kto"
    options = {"undesirable": 1.33}


class TestKTOOfSamples(ComponentTests):
    component = "kto"
    pipeline = {"responses": "sampled", "generation": {"samples": 1, "max_new_tokens": 7}}


class TestRDO(ComponentTests):
    component = "rdo"
    pipeline = {"algorithm": [{"dpo": SKIP}, "rdo"], "responses": "logged"}


class TestRDOWithRRHF(ComponentTests):
    component = "rdo"
    pipeline = {"algorithm": ["rrhf", "rdo"], "responses": "logged"}


class TestRDOWithKTO(ComponentTests):
    component = "rdo"
    options = {"part": "length"}
    pipeline = {
        "algorithm": ["kto", {"rdo": {"part": "length"}}],
        "rewards": ["token-sum", "length"],
        "responses": "logged",
    }


# -- golden numbers --------------------------------------------------------------------------------------------


class Scored(Component):
    """A reward given by prompt and response."""

    class Config(Options):
        """Options of `scored`."""

        scores: tuple[tuple[float, ...], ...] = Field(description="by prompt and response")

    config: Config

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        slots = rollout.columns["slot"].tolist()
        prompts = [int(rollout.examples[g].id) for g in rollout.group_N.tolist()]
        return Score(f64([self.config.scores[p][s] for p, s in zip(prompts, slots, strict=True)]))


COMPONENTS: dict[str, type[Any]] = {**GIVEN, "scored": Scored}


def f64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def evenly(sums: Table, lengths: list[list[int]] | None = None) -> Numbers3:
    """Sequence log-probs as token log-probs of so many steps."""
    return [
        [[x / n] * n for x, n in zip(row, ns, strict=True)]
        for row, ns in zip(sums, lengths or [[1] * len(row) for row in sums], strict=True)
    ]


def cut(table: Table, mask: Table) -> Numbers3:
    """[row][token] without padding."""
    return [[x for x, m in zip(row, ms, strict=True) if m] for row, ms in zip(table, mask, strict=True)]


def turned(good: list[Any], bad: list[Any]) -> list[list[Any]]:
    """By prompt: the better response first, in every other prompt last."""
    return [[b, g] if i % 2 else [g, b] for i, (g, b) in enumerate(zip(good, bad, strict=True))]


def check(
    folder: Path,
    say: Mapping[str, Any],
    algorithm: Any,
    loss: float,
    gradient: Sequence[Sequence[Any]],
    **more: Any,
) -> dict[str, float]:
    """Loss and gradient of a step, by the component in the engine in every route. Returns the metrics."""
    bench = Bench(folder, {**say, "algorithm": algorithm, **more}, COMPONENTS)
    batch = bench.batch()
    by_logit = golden_gradient(bench.run.models["policy"], gradient)  # type: ignore[arg-type]
    metrics: dict[str, float] = {}
    for route, budget, chunk in ROUTES:
        metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert metrics["loss"] == pytest.approx(loss, **NEAR), (route, budget, chunk)
        torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)
    return metrics


def both(case: Mapping[str, Any]) -> tuple[Table, Table, list[list[int]], Table]:
    """(log-probs, reference log-probs, lengths, gradient) of pairs, the better response first or last."""
    inputs, grad = case["inputs"], case["expected"]["grad"]
    ones = [1.0] * len(inputs["chosen_logp"])
    lengths = turned(inputs.get("chosen_len", ones), inputs.get("rejected_len", ones))
    return (
        turned(inputs["chosen_logp"], inputs["rejected_logp"]),
        turned(inputs["ref_chosen_logp"], inputs["ref_rejected_logp"]),
        [[int(n) for n in row] for row in lengths],
        turned(grad["chosen_logp"], grad["rejected_logp"]),
    )


@pytest.mark.parametrize(
    "name, algorithm",
    [
        ("dpo", {"dpo": {"beta": 0.1}}),
        ("cdpo", {"dpo": {"beta": 0.1, "label_smoothing": 0.1}}),
        ("robust_dpo", {"dpo": {"beta": 0.1, "label_smoothing": 0.1, "robust": True}}),
        ("ipo_sequence_sum", {"ipo": {"tau": 0.1, "average": False}}),
        ("ipo_length_averaged", {"ipo": {"tau": 0.1}}),
    ],
)
@pytest.mark.parametrize("which", ["best-worst", "all"])  # the same of two responses
def test_pairs_golden(name: str, algorithm: Any, which: str, tmp_path: Path) -> None:
    case = CASES[name]
    logp, ref, lengths, grad = both(case)
    scores = turned([1.0] * 4, [0.0] * 4)
    say = golden(evenly(logp, lengths), evenly(ref, lengths), scores)
    spread = [[[g] * n for g, n in zip(gs, ns, strict=True)] for gs, ns in zip(grad, lengths, strict=True)]
    ((method, options),) = algorithm.items()
    found = check(tmp_path, say, {method: {**options, "pairs": which}}, case["expected"]["loss"], spread)
    assert found[f"{method}/pairs"] == 4
    assert found[f"{method}/unpaired"] == 0
    assert found[f"{method}/chosen_logprob"] == pytest.approx(sum(case["inputs"]["chosen_logp"]) / 4, **NEAR)
    assert found[f"{method}/rejected_logprob"] == pytest.approx(
        sum(case["inputs"]["rejected_logp"]) / 4, **NEAR
    )
    if method == "dpo":
        margins = case["expected"]["log_ratio_margin"]
        assert found["dpo/margin"] == pytest.approx(0.1 * sum(margins) / 4, **NEAR)
        # [0.2, 1.0, −1.3, 0.0]: two right, and of no margin at all nothing is counted as right
        assert found["dpo/accuracy"] == pytest.approx(sum(m > 1e-12 for m in margins) / 4)


@pytest.mark.parametrize(
    "name, algorithm",
    [("simpo", {"simpo": {"beta": 2.5, "gamma": 1.375}}), ("orpo", {"orpo": {"lam": 0.1}})],
)
def test_reference_free_golden(name: str, algorithm: Any, tmp_path: Path) -> None:
    case = CASES[name]
    inputs, grad = case["inputs"], case["expected"]["grad"]
    masks = inputs["chosen_mask"], inputs["rejected_mask"]
    say = golden(
        turned(cut(inputs["chosen_token_logp"], masks[0]), cut(inputs["rejected_token_logp"], masks[1])),
        scores=turned([1.0] * 2, [0.0] * 2),
    )
    by_token = turned(cut(grad["chosen_token_logp"], masks[0]), cut(grad["rejected_token_logp"], masks[1]))
    found = check(tmp_path, say, algorithm, case["expected"]["loss"], by_token)
    if name == "orpo":
        assert found["orpo/margin"] == pytest.approx(sum(case["expected"]["log_odds_ratio"]) / 2, **NEAR)
        assert found["loss"] == pytest.approx(found["orpo/nll"] + 0.1 * found["orpo/odds"], **NEAR)


@pytest.mark.parametrize(
    "name, algorithm",
    [
        ("pro", "pro"),
        ("rrhf", "rrhf"),
        ("rrhf_violated", "rrhf"),
        ("rdo_rrhf", ["rrhf", "rdo"]),
        ("rdo_rrhf_violated", ["rrhf", "rdo"]),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranked_golden(name: str, algorithm: Any, order: Sequence[int], tmp_path: Path) -> None:
    case = CASES[name]
    inputs, grad = case["inputs"], case["expected"]["grad"]["sum_logp"]
    if name == "pro":
        assert case["hyperparameters"]["sft_weight"] == pytest.approx(0.05 * 2**2)  # of three responses
    logp, reward, length, g = (
        [[row[i] for i in order]] for row in (inputs["sum_logp"], inputs["reward"], inputs["length"], grad)
    )
    lengths = [[int(n) for n in length[0]]]
    say = golden(evenly(logp, lengths), scores=reward)
    spread = [[[x] * n for x, n in zip(g[0], lengths[0], strict=True)]]
    check(tmp_path, say, algorithm, case["expected"]["loss"], spread)


def test_rdo_dpo_golden(tmp_path: Path) -> None:
    """The coefficients are differences of a second reward, which is no part of the sum."""
    case = CASES["rdo_dpo"]
    logp, ref, _, grad = both(case)
    coefficients = case["inputs"]["difference_coefficient"]
    say = golden(evenly(logp), evenly(ref), turned([1.0] * 4, [0.0] * 4))
    gains = [[d + 3.0, 3.0] if i % 2 == 0 else [3.0, d + 3.0] for i, d in enumerate(coefficients)]
    rewards = ["logged", {"scored": {"scores": gains}, "weight": 0.0}]
    algorithm = [{"dpo": {"beta": 0.1}}, {"rdo": {"part": "scored"}}]
    found = check(tmp_path, say, algorithm, case["expected"]["loss"], grad, rewards=rewards)
    assert found["dpo/coefficient"] == pytest.approx(sum(coefficients) / 4, **NEAR)
    assert found["dpo/weightless"] == 1 / 4


@pytest.mark.parametrize("algorithm", ["alone", "best-vs-worst"])
def test_online_iterative_dpo_golden(algorithm: str, tmp_path: Path) -> None:
    case = CASES["online_iterative_dpo_best_vs_worst"]
    inputs, grad = case["inputs"], case["expected"]["grad"]["logp"]
    dpo = {"dpo": {"beta": 0.1, "label_smoothing": 0.1}}
    say = golden(evenly(inputs["logp"]), evenly(inputs["ref_logp"]), inputs["reward"])
    listed = [dpo, "best-vs-worst"] if algorithm == "best-vs-worst" else [dpo]
    found = check(tmp_path, say, listed, case["expected"]["loss"], grad)
    assert found["dpo/pairs"] == 2
    assert found["dpo/unpaired"] == pytest.approx(0 if algorithm == "best-vs-worst" else 1 / 3)

    bench = Bench(tmp_path / "again", {**say, "algorithm": listed}, COMPONENTS)
    batch = bench.batch()
    chosen_P, rejected_P = pairs(batch, "best-worst")
    place = {
        int(batch.rollout.examples[g].id): i for i, g in enumerate(batch.rollout.group_N[chosen_P].tolist())
    }
    for prompt in case["expected"]["kept_prompts"]:
        i = place[prompt]
        slots = batch.rollout.columns["slot"]
        assert int(slots[chosen_P[i]]) == case["expected"]["chosen_index"][prompt]
        assert int(slots[rejected_P[i]]) == case["expected"]["rejected_index"][prompt]
    # Of what is in no pair, the gradient is nothing at all.
    _, gradients = bench.gradient(batch)
    left_out = [4 * g + i for g, row in enumerate(grad) for i, x in enumerate(row) if x == 0]
    assert len(left_out) == 8
    assert not gradients["policy/free"][left_out].any()


class Numbered(Task):
    """Prompt g's one response is the token g; every other one is good."""

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(g), str(g), (str(g),), (1.0 - g % 2,)) for g in range(4)]


def test_kto_golden(tmp_path: Path) -> None:
    """Response j has its own log-prob after prompt j and another after every other prompt."""
    case = CASES["kto"]
    inputs, hyper, expected = case["inputs"], case["hyperparameters"], case["expected"]
    assert inputs["label_desirable"] == [1, 0, 1, 0]

    def logits(own: list[float], after_others: list[float]) -> Tensor:
        logp = f64([[own[j] if p == j else after_others[j] for j in range(4)] for p in range(4)])
        rest = torch.log1p(-logp.exp().sum(1, keepdim=True))
        return torch.cat([logp, rest], 1)

    sizes = {"prompts": 4, "responses": 1, "steps": 1, "vocabulary": 5, "ending": False}
    options = {"beta": hyper["beta"], "desirable": hyper["lambda_D"], "undesirable": hyper["lambda_U"]}
    say = {
        "task": "numbered",
        "policy": {"logits": sizes},
        "algorithm": {"kto": options},
        "train": {"iterations": 1, "prompts": 4, "dtype": "float64"},
    }
    bench = Bench(tmp_path, say, {"numbered": Numbered})
    with torch.no_grad():
        bench.run.models["policy"].free[:, 0] = logits(inputs["logp"], inputs["kl_logp"])
        bench.run.models["reference"].free[:, 0] = logits(inputs["ref_logp"], inputs["kl_ref_logp"])
    batch = bench.batch()
    p = bench.run.models["policy"].free.detach()[:, 0].softmax(1)
    # No gradient reaches what stands after other prompts: by logit it is that of one token a prompt.
    by_logit = f64(expected["grad"]["logp"])[:, None] * (torch.eye(4, 5, dtype=torch.float64) - p)
    for route, budget, chunk in ROUTES:
        metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert metrics["loss"] == pytest.approx(expected["loss"], **NEAR)
        assert metrics["kto/kl"] == pytest.approx(expected["z_ref"], **NEAR)
        assert metrics["kto/desirable"] == 0.5
        torch.testing.assert_close(gradients["policy/free"][:, 0], by_logit, rtol=0, atol=1e-9)
    good = [0.1 * (a - b) for a, b in zip(inputs["logp"][::2], inputs["ref_logp"][::2], strict=True)]
    assert metrics["kto/desirable_reward"] == pytest.approx(sum(good) / 2, **NEAR)
    bad = [0.1 * (a - b) for a, b in zip(inputs["logp"][1::2], inputs["ref_logp"][1::2], strict=True)]
    assert metrics["kto/undesirable_reward"] == pytest.approx(sum(bad) / 2, **NEAR)


class Two(Task):
    """A prompt with two responses of the given tokens, scored."""

    class Config(Options):
        """Options of `two`."""

        texts: tuple[str, str] = Field(description="two responses")
        scores: tuple[float, float] = Field(description="their scores")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("0", "0", self.config.texts, self.config.scores)]


@pytest.mark.parametrize("name", BY_LOGITS)
def test_by_logits_golden(name: str, tmp_path: Path) -> None:
    """DPO with and without reference, and PRO, from logits: loss, implied rewards, and the gradient by hand."""
    case = BY_LOGITS[name]
    inputs, expected = case["inputs"], case["expected"]
    tokens, mask = inputs["tokens"], f64(inputs["mask"]).bool()
    texts = [
        " ".join(str(t) for t, m in zip(ts, ms, strict=True) if m)
        for ts, ms in zip(tokens, mask, strict=True)
    ]
    steps = mask.shape[1]
    sizes = {"prompts": 1, "responses": 2, "steps": steps, "vocabulary": 3, "ending": False}
    theirs, ours = f64(inputs["ref_logits"]), f64(inputs["policy_logits"])
    raw = inputs["raw_reward"]

    def started(folder: str, algorithm: Any) -> tuple[Bench, Batch]:
        say = {
            "task": {"two": {"texts": texts, "scores": raw}},
            "policy": {"logits": sizes},
            "algorithm": algorithm,
            "train": {"iterations": 1, "prompts": 1, "dtype": "float64"},
        }
        bench = Bench(tmp_path / folder, say, {"two": Two})
        with torch.no_grad():
            bench.run.models["policy"].free[:, :steps] = ours
            if "reference" in bench.run.models:
                bench.run.models["reference"].free[:, :steps] = theirs
        return bench, bench.batch()

    logp_NTV = ours.log_softmax(-1)
    hot_NTV = torch.nn.functional.one_hot(torch.tensor(tokens), 3).double()
    slope_NTV = (hot_NTV - logp_NTV.exp()) * mask[..., None]  # d (sum of log-probs) / d logits
    sums_N = (logp_NTV * hot_NTV).sum(-1).where(mask, torch.zeros(())).sum(1)

    def compare(folder: str, algorithm: Any, loss: float, by_sum: list[float]) -> dict[str, float]:
        bench, batch = started(folder, algorithm)
        metrics = {}
        for route, budget, chunk in ROUTES:
            metrics, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
            assert metrics["loss"] == pytest.approx(loss, **NEAR)
            by_logit = f64(by_sum)[:, None, None] * slope_NTV
            torch.testing.assert_close(gradients["policy/free"][:, :steps], by_logit, rtol=0, atol=1e-9)
        return metrics

    for beta in (0.1, 0.5):
        rewards = [expected[f"dpo_beta{beta}_implicit_reward_{which}"] for which in ("chosen", "rejected")]
        slope = -beta / (1 + math.exp(rewards[0] - rewards[1]))
        found = compare(f"d{beta}", {"dpo": {"beta": beta}}, expected[f"dpo_beta{beta}"], [slope, -slope])
        assert found["dpo/chosen_reward"] == pytest.approx(rewards[0], **NEAR)
        assert found["dpo/rejected_reward"] == pytest.approx(rewards[1], **NEAR)
        slope = -beta / (1 + math.exp(beta * float(sums_N[0] - sums_N[1])))
        free = {"dpo": {"beta": beta, "reference_free": True}}
        compare(f"f{beta}", free, expected[f"dpo_reffree_beta{beta}"], [slope, -slope])

    means, temperature = expected["pro_mean_logp"], expected["pro_temperature"]
    assert temperature == raw[0] - raw[1]
    # The released code adds 1e-10 inside the logarithm, which the file holds and the method does not.
    extra = math.log1p(1e-10 / sum(math.exp(s * temperature) for s in means))
    slope = -temperature / (1 + math.exp(temperature * (means[0] - means[1])))
    lengths = mask.sum(1).tolist()
    by_sum = [slope / lengths[0] - 0.05, -slope / lengths[1]]
    found = compare("pro", "pro", expected["pro_total"] - extra, by_sum)
    assert found["pro/ranking"] == pytest.approx(expected["pro_ranking_loss"] - extra, **NEAR)
    assert found["pro/sft"] == pytest.approx(expected["pro_sft_term"], **NEAR)

    # A published port scores tokens from the second on: a documented error, reproduced by its mask and by no other.
    if wrong := expected.get("pro_published_port_misaligned"):
        chosen_NT = (logp_NTV * hot_NTV).sum(-1)
        used = f64(wrong["mask_used"])
        shifted = (chosen_NT * used).sum(1) / used.sum(1)
        ranking = pro_loss(shifted[None], f64([raw]), torch.ones(1, 2, dtype=torch.bool))
        eps = math.log1p(1e-10 / sum(math.exp(float(s) * temperature) for s in shifted))
        assert float(ranking) == pytest.approx(wrong["ranking_loss"] - eps, **NEAR)
        assert abs(found["loss"] - wrong["total"]) > 1e-3


# -- in a pipeline ---------------------------------------------------------------------------------------------

PAIRWISE: dict[str, dict[str, Any]] = {
    "dpo": {"dpo": {}},
    "cdpo": {"dpo": {"label_smoothing": 0.1}},
    "free": {"dpo": {"reference_free": True}},
    "dpo-average": {"dpo": {"average": True}},
    "ipo": {"ipo": {}},
    "ipo-sum": {"ipo": {"average": False}},
    "simpo": {"simpo": {}},
    "orpo": {"orpo": {}},
}
METHODS: dict[str, Any] = {**PAIRWISE, "rrhf": "rrhf", "pro": "pro", "kto": "kto"}


class Preferences(Task):
    """Prompts with logged responses of 1 to 6 tokens, as many each as `sizes` says in turn; scores in the order."""

    class Config(Options):
        """Options of `preferences`."""

        sizes: tuple[int, ...] = Field((2,), description="responses of each prompt, in turn")
        scores: tuple[float, ...] = Field((1.0, 0.0), description="scores of the first, second … response")
        same: bool = Field(False, description="one prompt for all")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        texts = ("1 2 3", "4 4", "5 1 6 2 1", "3", "6 6 6 6")
        found = []
        for g in range(6):
            n = self.config.sizes[g % len(self.config.sizes)]
            own = (*texts[g % 5 :], *texts[: g % 5])[:n]
            prompt = "0" if self.config.same else str(g)
            found.append(Example(str(g), prompt, own, self.config.scores[:n]))
        return found


def say(algorithm: Any, task: Mapping[str, Any] = {}, **more: Any) -> dict[str, Any]:
    return {
        "task": {"preferences": task},
        "policy": {"logits": {"hidden": 8}},
        "algorithm": algorithm,
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64", "lr": 0.05},
        **more,
    }


EXTRA: dict[str, type[Any]] = {"preferences": Preferences, "scored": Scored}


def method_of(algorithm: Any) -> str:
    return algorithm if isinstance(algorithm, str) else next(iter(algorithm))


@pytest.mark.parametrize("name", METHODS)
def test_padding_appended_changes_nothing(name: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, say(METHODS[name], {"sizes": [2, 3], "scores": []}, rewards=["token-sum"]), EXTRA)
    batch = bench.batch()

    def wider(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, x.new_full((len(x), 1), value)], 1) if x.ndim == 2 else x

    def widened(rollout: Rollout) -> Rollout:
        return replace(
            rollout,
            actions_NT=wider(rollout.actions_NT, 3),
            mask_NT=wider(rollout.mask_NT, False),
            logprobs_NT=wider(rollout.logprobs_NT, 5.0),
            full_logprobs_NT=wider(rollout.full_logprobs_NT, 5.0),
            columns={k: wider(x, 7.0) if isinstance(x, Tensor) else x for k, x in rollout.columns.items()},
        )

    wide = replace(
        batch,
        rollout=widened(batch.rollout),
        reward=replace(batch.reward, tokens_NT=wider(batch.reward.tokens_NT, 0.0)),
        advantage_NT=wider(batch.advantage_NT, 9.0),
        columns={k: widened(x) for k, x in batch.columns.items()},
    )
    one, other = bench.gradient(batch), bench.gradient(wide)
    assert other[0] == pytest.approx(one[0], rel=1e-12)
    for key, gradient in one[1].items():
        torch.testing.assert_close(other[1][key], gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_at_the_reference_in_a_phase(name: str, tmp_path: Path) -> None:
    expected = {"dpo": math.log(2), "cdpo": math.log(2), "ipo": 25.0, "ipo-sum": 25.0, "kto": 0.5}
    bench = Bench(tmp_path, say(METHODS[name]), EXTRA)
    metrics, gradients = bench.gradient(bench.batch())
    if name in expected:
        assert metrics["loss"] == pytest.approx(expected[name], rel=1e-12)
    assert any(bool(g.any()) for g in gradients.values())
    if name in PAIRWISE:
        kind = method_of(METHODS[name])
        assert metrics[f"{kind}/pairs"] == 6 and metrics[f"{kind}/unpaired"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_step_prefers_what_is_better(name: str, tmp_path: Path) -> None:
    """Down the gradient the implied rewards of better and worse part."""
    bench = Bench(tmp_path, say(METHODS[name], {"sizes": [2, 3], "scores": [1.0, 0.0, -1.0]}), EXTRA)
    batch = bench.batch()
    before, gradients = bench.gradient(batch)
    with torch.no_grad():
        for key, parameter in bench.run.models["policy"].named_parameters():
            parameter -= (
                1e-3 * gradients[f"policy/{key}"] / max(1.0, float(gradients[f"policy/{key}"].norm()))
            )
    bench.run.models["policy"].version += 1
    after, _ = bench.gradient(batch)
    assert after["loss"] < before["loss"]
    if name != "kto":
        kind = method_of(METHODS[name])
        assert after[f"{kind}/margin"] > before[f"{kind}/margin"]


# Bad data: what is left out is counted, and is nothing to the gradient.


@pytest.mark.parametrize("name", [*PAIRWISE, "pro"])
def test_one_response_is_no_pair(name: str, tmp_path: Path) -> None:
    algorithm = METHODS[name]
    kind = method_of(algorithm)
    options = {} if isinstance(algorithm, str) else algorithm[kind]
    bench = Bench(tmp_path / "error", say(algorithm, {"sizes": [2, 1]}), EXTRA)
    with pytest.raises(
        ComponentError, match=rf"`{kind}` compares .* `[135]` has one response only; `unpaired: skip`"
    ):
        bench.gradient(bench.batch())

    skipping = {kind: {**options, "unpaired": "skip"}}
    bench = Bench(tmp_path / "skip", say(skipping, {"sizes": [2, 1]}, policy={"logits": {}}), EXTRA)
    batch = bench.batch()
    metrics, gradients = bench.gradient(batch)
    assert metrics[f"{kind}/pairs"] == 3
    assert metrics[f"{kind}/unpaired"] == 0.5
    free = gradients["policy/free"].view(6, 5, 8, -1)
    for g in range(6):
        assert bool(free[g].any()) is (g % 2 == 0)
    # The same loss without them, but for PRO, which is a mean over prompts.
    kept = batch.take(torch.tensor([g % 2 == 0 for g in _ids(batch)])).as_step()
    alone, _ = bench.gradient(kept)
    assert metrics["loss"] == pytest.approx(alone["loss"] / (2 if name == "pro" else 1), rel=1e-12)


def _ids(batch: Batch) -> list[int]:
    return [int(batch.rollout.examples[g].id) for g in batch.rollout.group_N.tolist()]


def test_rrhf_imitates_a_single_response(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say("rrhf", {"sizes": [1, 2]}), EXTRA)
    whole = bench.batch()
    sizes = whole.rollout.group_N.bincount()
    (alone, *_) = (sizes[whole.rollout.group_N] == 1).nonzero()[:, 0].split(1)
    batch = whole.take(alone).as_step()
    metrics, gradients = bench.gradient(batch)
    logp_NT = bench.run.score("policy", batch.rollout, ["full_logprobs"]).full_logprobs_NT
    assert metrics["loss"] == pytest.approx(-float(batch.sum_over_chosen(logp_NT).mean()), rel=1e-12)
    assert metrics["rrhf/pairs"] == 0 and metrics["rrhf/unpaired"] == 1
    assert metrics["rrhf/ranking"] == 0
    assert bool(gradients["policy/free"].any())


@pytest.mark.parametrize("name", PAIRWISE)
def test_equal_scores_make_no_pair(name: str, tmp_path: Path) -> None:
    """Nothing to learn: no loss, no gradient, every prompt counted as left out."""
    bench = Bench(tmp_path, say(METHODS[name], {"scores": [1.0, 1.0]}), EXTRA)
    metrics, gradients = bench.gradient(bench.batch())
    kind = method_of(METHODS[name])
    assert metrics["loss"] == 0 and metrics[f"{kind}/pairs"] == 0 and metrics[f"{kind}/unpaired"] == 1
    assert not any(bool(g.any()) for g in gradients.values())


def test_pro_of_equal_scores_only_imitates(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"pro": {"sft": 0.0}}, {"scores": [1.0, 1.0]}), EXTRA)
    metrics, gradients = bench.gradient(bench.batch())
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-12)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-15


def test_scores_must_be_there_and_finite(tmp_path: Path) -> None:
    """By the core: said once, and not again here."""
    with pytest.raises(ConfigError, match="the stored scores are the reward here"):
        Bench(tmp_path / "1", say("dpo", {"scores": []}), EXTRA).batch()

    class Infinite(Scored):
        """A reward that is not finite."""

        @hookimpl
        def reward(self, rollout: Rollout) -> Score:
            return Score(torch.full((len(rollout),), math.nan))

    with pytest.raises(ComponentError, match="`broken` is not finite"):
        run(
            tmp_path / "2",
            say("dpo", rewards=[{"broken": {"scores": []}}]),
            {**EXTRA, "broken": Infinite},
        )


def test_samples_come_in_twos(tmp_path: Path) -> None:
    for name in ("dpo", "ipo", "simpo", "orpo", "rrhf", "pro"):
        with pytest.raises(ConfigError, match=f"`{name}` needs at least 2 responses"):
            Bench(tmp_path / name, say(name, rewards=["token-sum"], **SAMPLED), EXTRA)


def test_all_pairs_count_alike_whatever_their_group(tmp_path: Path) -> None:
    """A group of three gives three pairs, one of two gives one: a mean over four."""
    task = {"sizes": [3, 2], "scores": [1.0, 0.5, 0.0]}
    bench = Bench(tmp_path, say({"dpo": {"pairs": "all", "beta": 0.5}}, task, policy={"logits": {}}), EXTRA)
    with torch.no_grad():
        bench.run.models["policy"].free.mul_(0.5)  # away from the reference
    bench.run.models["policy"].version += 1
    batch = bench.batch()
    metrics, _ = bench.gradient(batch)
    now_NT, reference_NT = (
        bench.run.score(m, batch.rollout, ["full_logprobs"]).full_logprobs_NT for m in ("policy", "reference")
    )
    rho, total = batch.sum_over_chosen(now_NT - reference_NT).tolist(), batch.reward.total_N.tolist()
    group = batch.rollout.group_N.tolist()
    losses = [
        math.log1p(math.exp(-0.5 * (rho[i] - rho[j])))
        for i in range(len(batch))
        for j in range(len(batch))
        if group[i] == group[j] and total[i] > total[j]
    ]
    assert len(losses) == metrics["dpo/pairs"] == 3 * 3 + 3 * 1
    assert metrics["loss"] == pytest.approx(sum(losses) / 12, rel=1e-12)


# RDO: coefficients.


@pytest.mark.parametrize("name", [*PAIRWISE, "rrhf", "kto"])
def test_a_difference_of_one_changes_nothing(name: str, tmp_path: Path) -> None:
    """Preferences scored 1 and 0 are all worth the same: the method itself. And a doubled difference counts double."""
    plain = Bench(tmp_path / "plain", say(METHODS[name]), EXTRA)
    metrics, gradients = plain.gradient(plain.batch())
    for factor in (1.0, 2.0):
        rewards = ["logged", {"scored": {"scores": [[factor, 0.0]] * 6}, "weight": 0.0}]
        listed = [METHODS[name], {"rdo": {"part": "scored"}}]
        bench = Bench(tmp_path / str(factor), say(listed, rewards=rewards), EXTRA)
        found, grads = bench.gradient(bench.batch())
        kind = method_of(METHODS[name])
        weighed = {"orpo": "orpo/odds", "rrhf": "rrhf/ranking"}.get(name, "loss")
        assert found[weighed] == pytest.approx(factor * metrics[weighed], rel=1e-12)
        assert found[f"{kind}/coefficient"] == factor and found[f"{kind}/weightless"] == 0
        if weighed == "loss":
            for key, gradient in gradients.items():
                torch.testing.assert_close(grads[key], factor * gradient, rtol=1e-12, atol=1e-14)


def test_a_coefficient_is_never_negative(tmp_path: Path) -> None:
    """Where the other reward says the opposite, the pair counts nothing, and is counted."""
    rewards = ["logged", {"scored": {"scores": [[-1.0, 0.0], [1.0, 0.0]] * 3}, "weight": 0.0}]
    listed = ["dpo", {"rdo": {"part": "scored"}}]
    bench = Bench(tmp_path, say(listed, rewards=rewards, policy={"logits": {}}), EXTRA)
    metrics, gradients = bench.gradient(bench.batch())
    assert metrics["loss"] == pytest.approx(math.log(2) / 2)
    assert metrics["dpo/weightless"] == 0.5
    free = gradients["policy/free"].view(6, 5, 8, -1)
    assert [bool(free[g].any()) for g in range(6)] == [False, True] * 3


def test_kto_s_coefficient_is_the_mean_distance_to_siblings(tmp_path: Path) -> None:
    task = {"sizes": [3, 1], "scores": [2.0, 0.5, -1.0]}
    bench = Bench(tmp_path, say(["kto", "rdo"], task), EXTRA)
    batch = bench.batch()
    expected = {2.0: (1.5 + 3.0) / 2, 0.5: 1.5, -1.0: (1.5 + 3.0) / 2}
    sizes = torch.bincount(batch.rollout.group_N)[batch.rollout.group_N].tolist()
    found = batch.columns["rdo.distance"].tolist()
    for total, size, distance in zip(batch.reward.total_N.tolist(), sizes, found, strict=True):
        assert distance == pytest.approx(expected[total] if size == 3 else 0.0)
    metrics, _ = bench.gradient(batch)
    assert metrics["kto/weightless"] == pytest.approx(3 / 12)


def test_what_rdo_cannot_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "1", say(["pro", "rdo"]), EXTRA)
    with pytest.raises(ComponentError, match="`pro` weighs responses by their rewards already"):
        bench.gradient(bench.batch())
    with pytest.raises(ComponentError, match="`rdo` weighs by `other`; the rewards are logged"):
        Bench(tmp_path / "2", say(["dpo", {"rdo": {"part": "other"}}]), EXTRA).batch()


# KTO: its point of reference.


def kto_bench(tmp_path: Path, **more: Any) -> Bench:
    task = {"numbers": {"size": 16, "prompts": 16, "logged": [4], "longest": 4, "vocabulary": 5}}
    policy = {"logits": {"prompts": 16, "responses": 1, "steps": 5, "vocabulary": 6, "hidden": 8}}
    whole = {
        "task": task,
        "policy": policy,
        "algorithm": {"kto": {"beta": 0.5}},
        "train": {"iterations": 2, "prompts": 16, "lr": 0.02, "dtype": "float64"},
        **more,
    }
    bench = Bench(tmp_path, whole, EXTRA)
    with torch.no_grad():
        bench.run.models["policy"].free.mul_(0.7)
    bench.run.models["policy"].version += 1
    return bench


def test_kto_in_64_rows_and_in_16_times_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = kto_bench(tmp_path)
    batch = bench.batch()
    assert len(batch) == 64
    others = batch.columns["mismatched"]
    assert torch.equal(others.actions_NT, batch.rollout.actions_NT)
    for mine, theirs in zip(batch.rollout.group_N.tolist(), others.group_N.tolist(), strict=True):
        assert batch.rollout.examples[mine].prompt != others.examples[theirs].prompt
    assert "reference.full_logprobs" not in others.columns

    scored: list[str] = []
    score = bench.engine.score
    monkeypatch.setattr(bench.engine, "score", lambda m, r, w: (scored.append(m), score(m, r, w))[1])
    longest = int(batch.rollout.cost_N.max())
    found = []
    for rows in (64, 4):
        scored.clear()
        again = replace(batch, columns={"mismatched": replace(others)})  # nothing remembered
        found.append(bench.gradient(again, budget=rows * longest))
        assert scored == ["policy", "reference"]
    (whole, gradients), (pieces, grads) = found
    assert whole["kto/kl"] > 0.01
    assert pieces == pytest.approx(whole, rel=1e-12)
    for key, gradient in gradients.items():
        torch.testing.assert_close(grads[key], gradient, rtol=0, atol=1e-14)


def test_kto_s_point_of_reference_is_a_number_to_the_gradient(tmp_path: Path) -> None:
    """The gradient is that of the formula with z given."""
    bench = kto_bench(tmp_path)
    batch = bench.batch()
    metrics, gradients = bench.gradient(batch)
    policy = bench.run.models["policy"]
    reference_NT = batch.rollout.columns["reference.full_logprobs"]
    row_M, step_M = batch.rollout.chosen
    logp_M = policy.head(policy.features(batch.rollout)).log_softmax(1)
    logp_M = logp_M.gather(1, batch.rollout.actions_NT[row_M, step_M][:, None])[:, 0]
    rho_N = torch.zeros(64, dtype=torch.float64).index_add(0, row_M, logp_M - reference_NT[row_M, step_M])
    loss = kto_loss(rho_N, batch.reward.total_N > 0, f64(metrics["kto/kl"]), 0.5).mean()
    assert float(loss.detach()) == pytest.approx(metrics["loss"], rel=1e-12)
    for key, parameter in policy.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        torch.testing.assert_close(gradients[f"policy/{key}"], expected, rtol=0, atol=1e-13)


def test_kto_wants_a_second_prompt(tmp_path: Path) -> None:
    message = (
        r"`kto` puts responses after other prompts, and the iteration has one prompt only.*`train.prompts`"
    )
    with pytest.raises(ComponentError, match=message):
        Bench(tmp_path / "1", say("kto", {"same": True}), EXTRA).batch()
    one = {"iterations": 1, "prompts": 1, "dtype": "float64"}
    with pytest.raises(ComponentError, match=message):
        Bench(tmp_path / "2", say("kto", train=one), EXTRA).batch()


def test_kto_s_threshold(tmp_path: Path) -> None:
    task = {"sizes": [3], "scores": [1.0, 0.5, 0.0]}
    for threshold, share in ((0.0, 2 / 3), (0.5, 1 / 3), (-0.1, 1.0)):
        bench = Bench(tmp_path / str(threshold), say({"kto": {"threshold": threshold}}, task), EXTRA)
        metrics, _ = bench.gradient(bench.batch())
        assert metrics["kto/desirable"] == pytest.approx(share)
    assert metrics["kto/undesirable_reward"] == 0  # there are none


# -- learning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_what_is_preferred(name: str, tmp_path: Path) -> None:
    """Logged responses, preferred for their large tokens: the policy comes to write large ones."""
    pipeline = say(
        METHODS[name],
        {"sizes": [3, 2, 4], "scores": []},
        rewards=["centred"],
        policy="logits",
        train={"passes": 40, "prompts": 6, "lr": 0.1},
        evaluate={"split": "train", "use": ["centred"], "generation": {"samples": 8, "max_new_tokens": 6}},
        checkpoints={"every": 1000},
    )
    finished, _ = run(tmp_path, pipeline, {**EXTRA, "centred": Centred})
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    before, after = (line["eval/centred"] for line in lines if "eval/centred" in line)
    assert after > before + 0.02
    kind = method_of(METHODS[name])
    steps = [line for line in lines if f"{kind}/loss" in line]
    assert len(steps) == 40
    assert steps[-1][f"{kind}/loss"] < steps[0][f"{kind}/loss"] / 2
    if name == "kto":
        assert steps[-1]["kto/desirable_reward"] > steps[-1]["kto/undesirable_reward"] + 1
    else:
        assert steps[-1][f"{kind}/accuracy"] == 1


class Centred(Component):
    """Good and bad tokens: the mean of a response's, the large ones good, between −1 and 1."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        def mean(text: str) -> float:
            tokens = [float(t) for t in text.split()]
            return (sum(tokens) / len(tokens) - 3.5) / 3.5 if tokens else -1.0

        return Score(f64([mean(text) for text in rollout.texts]))


ONLINE: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3}},
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6}},
    "rewards": ["token-sum"],
    "generation": {"samples": 4, "max_new_tokens": 4},
    "train": {"prompts": 12, "lr": 0.1},
}


@pytest.mark.parametrize("algorithm", [["dpo", "best-vs-worst"], ["kto", "rdo"], ["rrhf", "rdo"], ["pro"]])
def test_it_learns_online(algorithm: list[Any], tmp_path: Path) -> None:
    listed = [{"kto": {"threshold": 0.9}} if name == "kto" else name for name in algorithm]
    pipeline = {
        **ONLINE,
        "algorithm": listed,
        **SAMPLED,
        "train": {**ONLINE["train"], "iterations": 25, "epochs": 2},
    }
    finished, _ = run(tmp_path, pipeline)
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.4


@pytest.mark.parametrize("of", ["phase", "start"])
def test_rlhf_workflow(of: str, tmp_path: Path) -> None:
    """Rounds of sampling and learning from the best against the worst; the reference renewed, or the first one."""
    rounds = [
        {"name": "sample", "algorithm": "collect", "train": {"iterations": 3}},
        {
            "name": "learn",
            "task": {"from": "sample"},
            "responses": "logged",
            "rewards": None,
            "algorithm": [{"dpo": {"beta": 0.5}}, "best-vs-worst"],
            "train": {"passes": 6},
        },
    ]
    finished, _ = run(
        tmp_path, {**ONLINE, "phases": rounds, "repeat": 3, "models": {"reference": {"of": of}}}
    )
    lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    firsts = [line for line in lines if line["phase"] == "learn" and line["iteration"] == 1]
    assert len(firsts) == 3
    # What a round begins with: no margin to a reference renewed, what was learned before to the first one.
    for i, line in enumerate(firsts):
        fresh = of == "phase" or i == 0
        assert (abs(line["dpo/loss"] - math.log(2)) < 1e-6) is fresh
    sampled = [line["reward/token-sum"] for line in lines if line["phase"] == "sample"]
    assert sum(sampled[-3:]) / 3 > sum(sampled[:3]) / 3 + 0.4


# -- from files, and on language models ------------------------------------------------------------------------


def test_preferences_in_a_file(tmp_path: Path) -> None:
    """`chosen` and `rejected`, or `responses` and `scores`; a pair with one side is not let in."""
    pytest.importorskip("rlalign_plugin_dataset")
    texts = [("0", "1 2 3", "4 4"), ("1", "2 2", "5 1 4"), ("2", "3", "1 1")]
    asked = ("prompt", "chosen", "rejected")
    as_pairs = [dict(zip(asked, row, strict=True)) for row in texts]
    as_scores = [{"prompt": p, "responses": [bad, good], "scores": [-1.0, 2.5]} for p, good, bad in texts]
    found = []
    for name, rows in (("pairs", as_pairs), ("scores", as_scores)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pipeline = say("dpo", train={"iterations": 1, "prompts": 3, "dtype": "float64"})
        pipeline["policy"] = {"logits": {"responses": 1, "hidden": 8}}
        pipeline["task"] = {"dataset": {"path": str(folder / "d.jsonl"), "join": ""}}
        found.append(Bench(folder, pipeline))
    (one, grads), (other, grads2) = [bench.gradient(bench.batch()) for bench in found]
    assert one["dpo/pairs"] == other["dpo/pairs"] == 3
    assert one == pytest.approx(other, rel=1e-12)
    for key, gradient in grads.items():
        torch.testing.assert_close(grads2[key], gradient)

    broken = [*as_pairs, {"prompt": "3", "chosen": "1", "rejected": None}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
    pipeline["task"] = {"dataset": {"path": str(tmp_path / "d.jsonl"), "join": ""}}
    with pytest.raises(ConfigError, match=r"d\.jsonl:4"):
        Bench(tmp_path / "refused", pipeline)
    pipeline["task"]["dataset"]["bad_rows"] = "skip"
    with pytest.warns(UserWarning, match="1 of 4 rows left out"):
        assert len(Bench(tmp_path / "skipped", pipeline).phase.draw.data) == 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A random GPT-2 and a random T5 of twenty words."""
    testing = pytest.importorskip("rlalign_plugin_hf.testing")
    root = tmp_path_factory.mktemp("tiny")
    return {kind: testing.tiny_model(root / kind, kind) for kind in ("causal-lm", "seq2seq-lm")}


class Worded(Task):
    """Prompts of 1 to 5 words with two or three responses of 1 to 4."""

    def examples(self, split: str) -> Sequence[Example]:
        found = []
        for g in range(5):
            prompt = " ".join(f"w{i}" for i in range(g + 1))
            texts = (f"w{g} w7 w8 w9", f"w{g + 10}", "w1 w2")[: 2 + g % 2]
            found.append(Example(str(g), prompt, texts, (1.0, -0.5, 0.25)[: len(texts)]))
        return found


@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq-lm"])
@pytest.mark.parametrize(
    "listed", [["dpo", "simpo", "orpo", "rrhf", "pro"], ["ipo", "orpo"], ["kto", "rrhf", "rdo"]]
)
def test_language_models(
    listed: list[str], kind: str, tiny: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the reference as said; cut anyhow, the gradient is that of one plain graph, and a step down it helps."""
    pipeline = {
        "task": "worded",
        "policy": {kind: {"path": str(tiny[kind])}},
        "algorithm": listed,
        "train": {"iterations": 1, "prompts": 5, "dtype": "float64"},
    }
    bench = Bench(tmp_path, pipeline, {"worded": Worded})
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # T5's attention and norms would
    monkeypatch.setattr(torch, "float32", torch.float64)  # round to float32, whatever the weights are
    policy, batch = bench.run.models["policy"], bench.batch()
    expected = {"dpo": math.log(2), "ipo": 25.0}.get(listed[0])
    if expected is not None:
        assert bench.gradient(batch)[0][f"{listed[0]}/loss"] == pytest.approx(expected, rel=1e-10)
    generator = torch.Generator().manual_seed(0)

    def move(by: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for key, parameter in policy.named_parameters():
                parameter += by[f"policy/{key}"]
        policy.version += 1

    noise = {key: torch.randn(p.shape, generator=generator) * 0.1 for key, p in policy.named_parameters()}
    move({f"policy/{key}": x for key, x in noise.items()})
    metrics, gradients = plain_gradient(bench, batch)
    size = max(float(g.abs().max()) for g in gradients.values())
    for route, budget, chunk in (("B", 10**9, 3), ("T", 16, 3), (None, 1, 4)):
        found, grads = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert found == pytest.approx(metrics, rel=1e-10, abs=1e-10)
        for key, gradient in gradients.items():
            torch.testing.assert_close(grads[key], gradient, rtol=0, atol=1e-10 * size)
    move({key: -1e-4 * g / size for key, g in gradients.items()})
    assert bench.gradient(batch)[0]["loss"] < metrics["loss"]
