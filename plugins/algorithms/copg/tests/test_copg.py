"""The component in the engine: golden numbers in every route, RLOO, IPO, old data, mixtures, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, ComponentError, ConfigError, Outputs
from rlalign.testing import Bench, ComponentTests, run
from rlalign.testing.golden import GIVEN, golden, golden_gradient
from rlalign_plugin_copg.pairs import refuse_incomparable

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]
NEAR = {"rel": 0, "abs": 1e-9}
ROUTES: list[tuple[Any, int, int]] = [
    *(("A", 10**9, 10**9), ("A", 10**9, 4), ("B", 10**9, 2)),
    *(("T", 2, 3), (None, 1, 1)),
]
FORMS = ("autodiff", "detached", "squared")
Table = list[list[float]]
Numbers3 = list[list[list[float]]]

# -- the kit: what every component must do ---------------------------------------------------------------------

SIZES = {"numbers": {"logged": [2, 3, 5, 2, 4]}}


class TestCoPG(ComponentTests):
    component = "copg"
    pipeline = {"task": SIZES}


class TestCoPGOfSamples(ComponentTests):
    component = "copg"
    exact_gradient = False  # `detached` has the objective's gradient, and another value
    options = {"beta": 0.5, "form": "detached"}
    pipeline = {"responses": "sampled"}


class TestCoPGAcrossSources(ComponentTests):
    component = "copg"
    options = {"beta": 0.5, "form": "squared", "pairs": "across", "ties": "drop"}
    pipeline = {"task": SIZES, "responses": {"mix": {"logged": 2, "sampled": 3}}}


# -- golden numbers --------------------------------------------------------------------------------------------


def each(table: Table) -> Numbers3:
    """[prompt][response] as responses of one step."""
    return [[[x] for x in row] for row in table]


def beside(one: Sequence[Any], other: Sequence[Any]) -> list[list[Any]]:
    """Two columns of pairs, by prompt; in every other prompt the second comes first."""
    return [[b, a] if i % 2 else [a, b] for i, (a, b) in enumerate(zip(one, other, strict=True))]


def cut(table: Table, mask: Table) -> Numbers3:
    """[row][token] without padding."""
    return [[x for x, m in zip(row, ms, strict=True) if m] for row, ms in zip(table, mask, strict=True)]  # type: ignore[misc]


def pairs_of(case: Mapping[str, Any]) -> tuple[Numbers3, Numbers3, Table, Numbers3]:
    """(log-probs, reference log-probs, rewards, gradient) of a case of pairs, by prompt, response and step."""
    inputs, grad = case["inputs"], case["expected"]["grad"]
    if "token_logp_1" in inputs:
        steps = [
            beside(*(cut(where[f"{key}_{i}"], inputs[f"mask_{i}"]) for i in (1, 2)))
            for where, key in ((inputs, "token_logp"), (inputs, "ref_token_logp"), (grad, "token_logp"))
        ]
    else:
        steps = [
            each(beside(where[f"{key}_1"], where[f"{key}_2"]))
            for where, key in ((inputs, "logp"), (inputs, "ref_logp"), (grad, "logp"))
        ]
    return steps[0], steps[1], beside(inputs["reward_1"], inputs["reward_2"]), steps[2]


def times(factor: float, by_step: Numbers3) -> Numbers3:
    return [[[factor * x for x in steps] for steps in row] for row in by_step]


def check(
    folder: Path, say: Mapping[str, Any], options: Mapping[str, Any], gradient: Numbers3
) -> dict[str, float]:
    """The gradient of a step by the component in the engine, in every route. Returns the metrics."""
    bench = Bench(folder, {**say, "algorithm": {"copg": options}}, GIVEN)
    batch = bench.batch()
    by_logit = golden_gradient(bench.run.models["policy"], gradient)  # type: ignore[arg-type]
    metrics: dict[str, float] = {}
    for route, budget, chunk in ROUTES:
        found, gradients = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        torch.testing.assert_close(gradients["policy/free"], by_logit, rtol=0, atol=1e-9)
        assert not metrics or found == pytest.approx(metrics, **NEAR), (route, budget, chunk)
        metrics = found
    return metrics


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["copg_pairs_beta0.5", "copg_pairs_beta0.06", "copg_ipo_equivalence", "copg_tokens"]
)
def test_pairs_golden(name: str, form: str, tmp_path: Path) -> None:
    """A mean over responses is half the paper's mean over pairs. All of a response's steps have one gradient (viii)."""
    case = CASES[name]
    logp, ref, reward, grad = pairs_of(case)
    beta = case["hyperparameters"]["beta"]
    steepness = 2 * beta if form == "squared" else 1.0
    found = check(
        tmp_path, golden(logp, ref, reward), {"beta": beta, "form": form}, times(steepness / 2, grad)
    )
    if form == "autodiff":
        assert found["loss"] == pytest.approx(case["expected"]["loss"] / 2, **NEAR)
    if form == "squared":
        assert found["loss"] == pytest.approx(found["copg/residual"] / 2, **NEAR)
    if gaps := case["expected"].get("regularised_reward_gap_R_beta"):
        assert found["copg/residual"] == pytest.approx(sum(gap**2 for gap in gaps) / 4, **NEAR)
        assert found["copg/ties"] == 1 / 4
        assert found["copg/accuracy"] == pytest.approx(1 / 3)  # of three; where Δρ is 0 none is right


@pytest.mark.parametrize("form", ["autodiff", "detached"])
@pytest.mark.parametrize("name", ["copg_pairs_beta0.5", "copg_pairs_beta0.06"])
def test_neither_wrong_form_is_ours(name: str, form: str, tmp_path: Path) -> None:
    """R_β differentiated would be CoPG with 2β, R_β/2 detached CoPG with β/2."""
    case = CASES[name]
    logp, ref, reward, _ = pairs_of(case)
    beta, data = case["hyperparameters"]["beta"], golden(logp, ref, reward)
    for wrong, factor in zip(case["expected"]["must_not_equal"].values(), (2.0, 0.5), strict=True):
        gradient = times(1 / 2, each(beside(wrong, [-g for g in wrong])))
        check(tmp_path / f"{factor}", data, {"beta": factor * beta, "form": form}, gradient)
        with pytest.raises(AssertionError, match="not close"):
            check(tmp_path / f"not {factor}", data, {"beta": beta, "form": form}, gradient)


@pytest.mark.parametrize("form", FORMS)
def test_four_completions_golden(form: str, tmp_path: Path) -> None:
    """RLOO's gradient. Command A's squared form is a mean over prompts, ours over responses: a fourth of it."""
    case, squared = CASES["copg_k4_equals_rloo_k4"], CASES["copg_k4_command_a_squared_form"]
    inputs = case["inputs"]
    say = golden(each(inputs["logp"]), each(inputs["ref_logp"]), inputs["reward"])
    expected, share = (squared["expected"], 1 / 4) if form == "squared" else (case["expected"], 1.0)
    gradient = times(share, each(expected["grad"]["logp"]))
    found = check(tmp_path, say, {"beta": case["hyperparameters"]["beta"], "form": form}, gradient)
    if form == "detached":  # the value of RLOO's own loss
        rloo = -sum(
            a * x
            for row, xs in zip(case["expected"]["rloo_advantages"], inputs["logp"], strict=True)
            for a, x in zip(row, xs, strict=True)
        )
        assert found["loss"] == pytest.approx(rloo / 8, **NEAR)
    else:
        assert found["loss"] == pytest.approx(share * expected["loss"], **NEAR)
    regularised = [x for row in case["expected"]["regularised_rewards"] for x in row]
    assert found["copg/regularised_reward"] == pytest.approx(sum(regularised) / 8, **NEAR)


def test_ties(tmp_path: Path) -> None:
    """Kept, equal rewards draw ρ together; dropped, they have no gradient, and all else is as it was."""
    case = CASES["copg_pairs_beta0.5"]
    logp, ref, reward, grad = pairs_of(case)
    assert reward[2] == [0.45, 0.45] and grad[2][0][0] != 0
    grad[2] = [[0.0], [0.0]]
    found = check(tmp_path, golden(logp, ref, reward), {"beta": 0.5, "ties": "drop"}, times(1 / 2, grad))
    ell = case["expected"]["ell_per_pair"]
    assert found["loss"] == pytest.approx(-(sum(ell) - ell[2]) / 8, **NEAR)
    assert found["copg/ties"] == 1 / 4


# -- what it is to other methods -------------------------------------------------------------------------------


def say(algorithm: Any, responses: Any = "logged", **more: Any) -> dict[str, Any]:
    return {
        "task": SIZES,
        "policy": {"logits": {"hidden": 5}},
        "rewards": ["token-sum"],
        "responses": responses,
        "algorithm": algorithm,
        "generation": {"samples": 4, "max_new_tokens": 6},
        "train": {"iterations": 3, "prompts": 6, "dtype": "float64", "lr": 0.01},
        **more,
    }


def moved(bench: Bench, *seeds: int) -> Bench:
    """Its weights elsewhere: each seed is a way to go."""
    weights = bench.learner.parameters()
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        weights = weights + 0.3 * torch.randn(len(weights), generator=generator, dtype=weights.dtype)
    bench.learner.assign(weights)
    return bench


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], factor: float = 1.0) -> bool:
    return all(torch.allclose(g, factor * other[key], rtol=1e-10, atol=1e-12) for key, g in one.items())


SOURCES: list[Any] = ["logged", "sampled", {"mix": {"logged": 2, "sampled": 3}}]


@pytest.mark.parametrize("responses", SOURCES, ids=["logged", "sampled", "mix"])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_rloo_on_regularised_rewards(form: str, responses: Any, tmp_path: Path) -> None:
    """(vii) For groups of all sizes at once, as long as the policy is the one the KL in RLOO's reward was taken of."""
    beta = 0.3
    rewards = ["token-sum", {"kl": {"coef": beta}}]
    rloo = moved(Bench(tmp_path / "rloo", say("rloo", responses, rewards=rewards)), 1)
    copg = moved(Bench(tmp_path / "copg", say({"copg": {"beta": beta, "form": form}}, responses)), 1)
    theirs, batch = rloo.batch(), copg.batch()
    assert torch.equal(theirs.rollout.actions_NT, batch.rollout.actions_NT)
    if responses == "logged":
        assert len(set(torch.bincount(batch.rollout.group_N).tolist())) > 2
    found, gradients = copg.gradient(batch)
    expected, rloos = rloo.gradient(theirs)
    assert same(gradients, rloos, 2 * beta if form == "squared" else 1.0)
    if form == "detached":
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-10)


def test_the_regularised_reward_follows_the_policy(tmp_path: Path) -> None:
    """Responses and columns are of an older policy: the gradient is RLOO's with the KL of the policy as it is now."""
    beta, rewards = 0.3, ["token-sum", {"kl": {"coef": 0.3}}]
    copg = moved(Bench(tmp_path / "copg", say({"copg": {"beta": beta}})), 1)
    old = copg.batch()
    _, gradients = moved(copg, 2).gradient(old)
    fresh = moved(Bench(tmp_path / "fresh", say("rloo", rewards=rewards)), 1, 2)
    assert same(gradients, fresh.gradient(fresh.batch())[1])
    stale = moved(Bench(tmp_path / "stale", say("rloo", rewards=rewards)), 1)
    batch = stale.batch()
    assert not same(gradients, moved(stale, 2).gradient(batch)[1])


def test_epochs_on_old_responses_are_iterations_on_new_ones(tmp_path: Path) -> None:
    """Of a log that is drawn whole: nothing is kept of the policy that an iteration began with."""
    ends = []
    for name, train in (("epochs", {"iterations": 2, "epochs": 4}), ("iterations", {"iterations": 8})):
        pipeline = say({"copg": {"beta": 0.3}}, train={"prompts": 6, "dtype": "float64", "lr": 0.05, **train})
        _, session = run(tmp_path / name, pipeline)
        ends.append(session.models["policy"].state_dict())
    for key, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][key], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("beta", [0.06, 0.5])
def test_quarters_make_it_ipo(beta: float, tmp_path: Path) -> None:
    """(vii) Preferred responses half a point above the others: β/2 of IPO's, and half for the mean over responses."""
    case = CASES["copg_pairs_beta0.5"]
    logp, ref, _, _ = pairs_of(case)
    data = golden(logp, ref, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # chosen 1, rejected 0
    halved = {"rewards": [{"logged": {}, "weight": 0.5}]}
    copg = Bench(tmp_path / "copg", {**data, **halved, "algorithm": {"copg": {"beta": beta}}}, GIVEN)
    ipo = Bench(tmp_path / "ipo", {**data, "algorithm": {"ipo": {"tau": beta, "average": False}}}, GIVEN)
    squared = {"copg": {"beta": beta, "form": "squared"}}
    other = Bench(tmp_path / "squared", {**data, **halved, "algorithm": squared}, GIVEN)
    found, gradients = copg.gradient(copg.batch())
    expected, ipos = ipo.gradient(ipo.batch())
    assert same(gradients, ipos, beta / 4)
    metrics, gradients = other.gradient(other.batch())
    assert same(gradients, ipos, beta**2 / 2)
    assert metrics["loss"] == pytest.approx(beta**2 / 2 * expected["loss"], **NEAR)
    assert found["copg/accuracy"] == expected["ipo/accuracy"]


def test_ranked_data_in_a_file(tmp_path: Path) -> None:
    """`chosen` and `rejected` half a point apart; ranks of more, 1 for the best and 0 for the worst."""
    pytest.importorskip("rlalign_plugin_dataset")
    pairs = [{"prompt": str(g), "chosen": "1 2 3", "rejected": "4"} for g in range(3)]
    ranked = [{"prompt": str(g), "responses": ["1", "2", "3"], "scores": [7, 9, -3]} for g in range(3)]
    half: dict[str, Any] = {"logged": {}, "weight": 0.5}
    ranks = {"normalise": {"by": "rank", "over": "group"}}
    for name, rows, rewards, expected in (
        ("pairs", pairs, [half], [0.0, 0.5]),
        ("ranked", ranked, ["logged", ranks], [0.0, 0.5, 1.0]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {"dataset": {"path": str(folder / "d.jsonl"), "join": ""}}
        bench = Bench(folder, say("copg", task=task, rewards=rewards, train={"iterations": 1, "prompts": 3}))
        batch = bench.batch()
        rows_GK, _ = batch.rollout.groups()
        assert batch.reward.total_N[rows_GK].sort(1).values.tolist() == [expected] * 3
        assert bench.gradient(batch)[0]["copg/ties"] == 0


# -- mixtures --------------------------------------------------------------------------------------------------

MIX = {"mix": {"logged": 2, "sampled": 3}}


def by_the_population_form(batch: Batch, rho_N: Tensor, beta: float) -> Tensor:
    """[N]: the weight of each ∇log π by a loop: R_β less its mean over the *other* source, over either's count."""
    regularised = (batch.reward.total_N - beta * rho_N).tolist()
    group, source = batch.rollout.group_N.tolist(), batch.rollout.columns["source"]
    weights = []
    for i in range(len(batch)):
        others = [j for j in range(len(batch)) if group[j] == group[i] and source[j] != source[i]]
        alike = [j for j in range(len(batch)) if group[j] == group[i] and source[j] == source[i]]
        baseline = sum(regularised[j] for j in others) / len(others)
        share = (len(alike) + len(others)) / 2 / len(alike)  # both sources count alike, and a pair counts 1
        weights.append(share * (regularised[i] - baseline) / len(batch))
    return torch.tensor(weights, dtype=torch.float64)


def test_pairs_across_sources_are_the_population_form(tmp_path: Path) -> None:
    """E_μ1[(R_β(y) − E_μ2 R_β)∇log π(y)] + E_μ2[(R_β(y') − E_μ1 R_β)∇log π(y')], μ1 the log and μ2 the policy."""
    beta = 0.3
    bench = moved(Bench(tmp_path, say({"copg": {"beta": beta, "pairs": "across"}}, MIX)), 1)
    batch = bench.batch()
    _, gradients = moved(bench, 2).gradient(batch)
    policy, rollout = bench.run.models["policy"], batch.rollout
    row_M, step_M = rollout.chosen
    logits_MV = policy.head(policy.features(rollout)).log_softmax(1)
    logp_M = logits_MV.gather(1, rollout.actions_NT[row_M, step_M][:, None])[:, 0]
    logp_N = torch.zeros(len(batch), dtype=torch.float64).index_add(0, row_M, logp_M)
    reference_N = batch.sum_over_chosen(rollout.columns["reference.full_logprobs"])
    weight_N = by_the_population_form(batch, (logp_N - reference_N).detach(), beta)
    parameters = dict(policy.named_parameters())
    expected = torch.autograd.grad(-(weight_N * logp_N).sum(), list(parameters.values()))
    assert same(gradients, {f"policy/{k}": g for k, g in zip(parameters, expected, strict=True)})


def test_of_one_response_a_source_all_pairs_are_across(tmp_path: Path) -> None:
    found = []
    for pairs in ("all", "across"):
        algorithm = {"copg": {"beta": 0.3, "pairs": pairs}}
        bench = moved(Bench(tmp_path / pairs, say(algorithm, {"mix": {"logged": 1, "sampled": 1}})), 1)
        found.append(bench.gradient(bench.batch())[1])
    assert same(*found)


def test_a_group_of_one_source_is_compared_with_none(tmp_path: Path) -> None:
    """As where nothing is remembered yet: no gradient, and it is counted."""
    bench = moved(Bench(tmp_path, say({"copg": {"beta": 0.3, "pairs": "across"}}, MIX)), 1)
    batch = bench.batch()
    metrics, _ = bench.gradient(batch)
    assert metrics["copg/alone"] == 0
    sampled = torch.tensor([s == "sampled" for s in batch.rollout.columns["source"]])
    metrics, gradients = bench.gradient(batch.take(sampled | (batch.rollout.group_N > 0)).as_step())
    assert metrics["copg/alone"] == pytest.approx(3 / 28)
    metrics, gradients = bench.gradient(batch.take(sampled).as_step())
    assert metrics["copg/alone"] == 1
    assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_remembered_responses(tmp_path: Path) -> None:
    """Groups of earlier iterations, and remembered responses beside new ones, are RLOO's with the KL taken now."""
    pytest.importorskip("rlalign_plugin_replay")
    for name, responses in (
        ("groups", {"replay": {"groups": 3}}),
        ("mix", {"mix": {"sampled": 2, "replay": 2}}),
    ):
        benches = []
        for algorithm, rewards in (
            ({"copg": {"beta": 0.3}}, ["token-sum"]),
            ("rloo", ["token-sum", {"kl": {"coef": 0.3}}]),
        ):
            kind = "copg" if "copg" in algorithm else "rloo"
            pipeline = say(algorithm, responses, rewards=rewards)
            pipeline["train"]["lr"] = 0.0
            bench = moved(Bench(tmp_path / f"{name}-{kind}", pipeline), 1)
            bench.iterate()
            benches.append(bench)
        copg, rloo = (moved(bench, 2) for bench in benches)
        batch, theirs = copg.batch(), rloo.batch()
        assert "replay" in batch.rollout.columns["source"]
        assert torch.equal(batch.rollout.actions_NT, theirs.rollout.actions_NT)
        assert same(copg.gradient(batch)[1], rloo.gradient(theirs)[1])


# -- what is refused -------------------------------------------------------------------------------------------


def test_a_response_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`copg` needs at least 2 responses"):
        Bench(tmp_path / "sampled", say("copg", "sampled", generation={"samples": 1}))
    bench = Bench(tmp_path / "logged", say("copg", task={"numbers": {"logged": [3, 1, 2, 2, 2, 2]}}))
    with pytest.raises(
        ComponentError, match="`copg` compares responses to one prompt, and example `1` has one"
    ):
        bench.gradient(bench.batch())


def test_across_needs_sources(tmp_path: Path) -> None:
    bench = Bench(tmp_path, say({"copg": {"pairs": "across"}}))
    with pytest.raises(
        ComponentError, match=r"there is one; say `responses: \{mix: \{logged: 1, sampled: 1\}\}`"
    ):
        bench.gradient(bench.batch())


def test_two_temperatures_are_two_policies(tmp_path: Path) -> None:
    warm = {"samples": 4, "max_new_tokens": 6, "temperature": 0.7}
    bench = Bench(tmp_path / "mix", say("copg", MIX, generation=warm))
    with pytest.raises(ComponentError, match=r"are taken at temperatures 0\.7 and 1;.*temperature: 1"):
        bench.gradient(bench.batch())
    bench = Bench(tmp_path / "sampled", say("copg", "sampled", generation=warm))
    assert bench.gradient(bench.batch())[0]["copg/log_ratio"] == 0


def test_prompts_may_differ_in_temperature(tmp_path: Path) -> None:
    """Remembered groups may be older than `generation` is; nothing is compared across prompts."""
    bench = Bench(tmp_path, table([[0.5, 1.5, -0.25, 1.5], [2.0, 0.0]]), GIVEN)
    batch = bench.batch()
    (setting,) = batch.rollout.settings
    settings = (setting, setting.model_copy(update={"temperature": 0.5}))
    for setting_N in (batch.rollout.group_N, 1 - batch.rollout.group_N):
        rollout = replace(batch.rollout, settings=settings, setting_N=setting_N)
        refuse_incomparable("copg", replace(batch, rollout=rollout), "all")


def test_a_kl_beside_it_is_refused_unless_told(tmp_path: Path) -> None:
    rewards = ["token-sum", {"kl": {"coef": 0.1}}]
    with pytest.raises(ConfigError, match="each penalise the KL to the reference"):
        Bench(tmp_path / "refused", say("copg", rewards=rewards))
    rewards = ["token-sum", {"kl": {"coef": 0.1, "together": True}}]
    Bench(tmp_path / "told", say("copg", rewards=rewards)).batch()


# -- invariances, in the engine --------------------------------------------------------------------------------


def table(rewards: Table, **options: Any) -> dict[str, Any]:
    """A golden pipeline with these rewards: two prompts, of four responses and of two."""
    logp = [[[-1.5], [-1.25, -0.5], [-3.0], [-2.0]], [[-2.5, -0.25, -0.5], [-1.0]]]
    ref = [[[-1.0], [-1.5, -0.75], [-2.5], [-2.25]], [[-2.0, -0.5, -0.25], [-1.75]]]
    return {**golden(logp, ref, rewards), "algorithm": {"copg": {"beta": 0.3, **options}}}


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_on_a_prompts_rewards_is_no_change(form: str, tmp_path: Path) -> None:
    """(iii)"""
    rewards = [[0.5, 1.5, -0.25, 1.5], [2.0, 0.0]]
    raised = [[x + 8 for x in rewards[0]], [x - 4 for x in rewards[1]]]
    found = []
    for name, scores in (("as they are", rewards), ("raised", raised)):
        bench = Bench(tmp_path / name, table(scores, form=form), GIVEN)
        found.append(bench.gradient(bench.batch()))
    (one, gradients), (other, others) = found
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
    assert same(gradients, others)


@pytest.mark.parametrize("ties", ["keep", "drop"])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_by_log_prob(form: str, ties: str, tmp_path: Path) -> None:
    """(iv, v, viii) It adds up to zero in a group, knows no constant on its log-probs, and is the same at all steps."""
    bench = Bench(tmp_path, table([[0.5, 1.5, -0.25, 1.5], [2.0, 0.0]], form=form, ties=ties), GIVEN)
    batch = bench.batch()
    (copg,) = [c for c in bench.phase.plan.components if c.name == "copg"]
    mask_NT, group_N = batch.rollout.mask_NT, batch.rollout.group_N
    start_NT = torch.where(
        mask_NT, bench.run.score("policy", batch.rollout, ["full_logprobs"]).full_logprobs_NT, 0.0
    )
    raised_NT = start_NT.clone()
    raised_NT[:, 0] += 3.0 * (group_N + 1)
    found = []
    for at_NT in (start_NT, raised_NT):
        leaf_NT = at_NT.clone().requires_grad_()
        loss = copg.loss(batch=batch, now=Outputs(full_logprobs_NT=leaf_NT)).value
        (by_NT,) = torch.autograd.grad(loss, leaf_NT)
        found.append((float(loss.detach()), by_NT))
    (one, by_NT), (other, others_NT) = found
    assert other == pytest.approx(one, rel=1e-12)
    torch.testing.assert_close(others_NT, by_NT, rtol=0, atol=1e-12)
    by_N = by_NT[:, 0]
    assert torch.equal(by_NT, torch.where(mask_NT, by_N[:, None], 0.0)) and bool((by_N != 0).all())
    for g in range(2):
        assert float(by_N[group_N == g].sum()) == pytest.approx(0, abs=1e-15)


def test_order_within_a_group_says_nothing(tmp_path: Path) -> None:
    """(ii)"""
    bench = Bench(tmp_path, table([[0.5, 1.5, -0.25, 1.5], [2.0, 0.0]]), GIVEN)
    batch = bench.batch()
    turned = batch.take(torch.arange(len(batch)).flip(0)).as_step()
    (one, gradients), (other, others) = bench.gradient(batch), bench.gradient(turned)
    assert one == pytest.approx(other, rel=1e-12)
    assert same(gradients, others)


def test_what_accuracy_means(tmp_path: Path) -> None:
    """The mean over responses of the share of each one's pairs, those with equal rewards left out, that are right."""
    ref = [[[-1.0], [-1.5], [-2.0], [-2.5]], [[-1.0], [-2.0]]]
    logp = [
        [[-1.1], [-1.4], [-2.2], [-2.8]],
        [[-1.5], [-1.5]],
    ]  # ρ: −0.1, 0.1, −0.2, −0.3; and no difference to see
    bench = Bench(
        tmp_path, {**golden(logp, ref, [[1.0, 1.0, 0.5, 0.75], [1.0, 1.0]]), "algorithm": "copg"}, GIVEN
    )
    metrics, _ = bench.gradient(bench.batch())
    right = [2 / 2, 2 / 2, 2 / 3, 2 / 3]
    assert metrics["copg/accuracy"] == pytest.approx(sum(right) / 4)
    assert metrics["copg/ties"] == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 6)


def test_what_explained_means(tmp_path: Path) -> None:
    """0 at the reference; 1 where βΔρ = ΔR; the share of ΔR² that βΔρ leaves is the rest."""
    beta = 0.5
    ref = [[[-1.5], [-1.0], [-2.0]]]
    at = {"reference": 0.0, "optimum": 1.0, "half way": 0.75}
    for (name, expected), way in zip(at.items(), (0.0, 1.0, 0.5), strict=True):
        logp = [[[-1.5 + way * 0.4], [-1.0 - way * 0.2], [-2.0]]]
        pipeline = golden(logp, ref, [[0.2, -0.1, 0.0]])
        bench = Bench(tmp_path / name, {**pipeline, "algorithm": {"copg": {"beta": beta}}}, GIVEN)
        metrics, gradients = bench.gradient(bench.batch())
        assert metrics["copg/explained"] == pytest.approx(expected, abs=1e-9)
        if name == "optimum":  # (vi)
            assert float(gradients["policy/free"].abs().max()) < 1e-12
            assert metrics["copg/residual"] == pytest.approx(0, abs=1e-12)
    same_rewards = {**golden(logp, ref, [[1.0, 1.0, 1.0]]), "algorithm": "copg"}
    bench = Bench(tmp_path / "ties", same_rewards, GIVEN)
    metrics, _ = bench.gradient(bench.batch())
    assert (metrics["copg/explained"], metrics["copg/accuracy"], metrics["copg/ties"]) == (0, 0, 1)
