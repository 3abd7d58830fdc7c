"""A sampler elsewhere: who is asked, with which weights, what is learned from it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

import rlalign
from rlalign import (
    Component,
    ConfigError,
    Example,
    Nucleus,
    Policy,
    Response,
    RLAlignError,
    Rollout,
    Sampler,
    Sampling,
    sample,
    sampled_rollout,
)
from rlalign.config.load import load_pipeline
from rlalign.data.rollout import VERSION
from rlalign.randomness import Seeds
from rlalign.running import loop
from rlalign.running.checked import check
from rlalign.testing import Bench, PolicyGradient, run, session
from rlalign.testing.bench import COMPONENTS as rlalign_testing
from rlalign.testing.bench import Silence, logged, registry, stop_early, stopped_and_resumed

from ..copying import Copy


class Elsewhere(Copy):
    """One that can be told to go wrong."""

    class Config(Sampler.Config):
        """Options of `elsewhere`."""

        off: float = Field(0.0, description="what is added to its log-probs")
        forgets: int | None = Field(
            None, description="of this version it takes no weights, and does not say so"
        )
        short: bool = Field(False, description="it leaves the last response out")
        repeats: bool = Field(True, description="the same seeds give the same tokens")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.asked: list[tuple[int, Sampling]] = []
        self.taken: list[int] = []
        self.closed = 0
        if config.repeats:
            self.repeats = "the same tokens"

    def lacks(self, how: Sampling) -> Iterator[str]:
        if how.min_p:
            yield f"min_p: `{self.name}` knows nothing of it"

    def take(self, policy: Policy) -> None:
        self.taken.append(policy.version)
        if policy.version != self.config.forgets:
            super().take(policy)

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        self.asked.append((policy.version, how))
        if self.config.short:
            examples, seeds = examples[:-1], seeds[:-1]
        return super().sample(policy, examples, how, seeds)

    def response(self, found: Rollout, row: int) -> Response:
        right = super().response(found, row)
        off = [x + self.config.off * (-1) ** step for step, x in enumerate(right.logprobs)]
        return right._replace(logprobs=off)

    def close(self) -> None:
        self.closed += 1


class Gain(PolicyGradient):
    """Plain policy gradient of sampled responses."""

    responses = "sampled"


class Ratio(Gain):
    """One that asks for the log-probs that ratios are taken to."""

    needs = ("logprobs", "old_logprobs")


class Narrow(Component):
    """What NLPO does."""

    constraint = Nucleus("mask", top_p=0.9)
    models = {"mask": "lagging"}


COMPONENTS = {"elsewhere": Elsewhere, "gain": Gain, "ratio": Ratio, "narrow": Narrow}


def pipeline(options: dict[str, Any] | None = None, **said: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"size": 24}},
        "policy": "bytes",
        "rewards": ["length"],
        "algorithm": "gain",
        "models": {"sampler": {"elsewhere": options or {}}},
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.5},
        **said,
    }


def sampler_of(done: loop.Session) -> Elsewhere:
    (one,) = done.samplers
    assert isinstance(one, Elsewhere)
    return one


def rows_of(done: loop.Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]


NARROWED = {"samples": 3, "max_new_tokens": 5, "top_p": 0.8, "min_new_tokens": 2, "temperature": 0.9}


def test_it_is_asked_in_the_policy_s_place_with_the_weights_of_now(tmp_path: Path) -> None:
    _, done = run(
        tmp_path, pipeline(evaluate={"split": "val", "examples": 4, "every": 3}), COMPONENTS, name="one"
    )
    one = sampler_of(done)
    assert [version for version, _ in one.asked] == [0, 0, 1, 2, 3]  # the first and the last are evaluations
    assert one.taken == [0, 1, 2, 3] and one.closed == 1
    assert one.asked[0][1].greedy and not one.asked[1][1].greedy
    trained = [row for row in rows_of(done) if "sampler/version" in row]
    assert [row["sampler/version"] for row in trained] == [0, 1, 2]
    assert all(0 <= row["sampler/gap"] <= row["sampler/largest"] < 1e-5 for row in trained)


def test_an_opened_run_samples_with_its_policy(tmp_path: Path) -> None:
    _, done = run(tmp_path, pipeline(evaluate={"split": "val", "examples": 4}), COMPONENTS, name="one")
    opened = rlalign.open(done.dir.path, components={**rlalign_testing, **COMPONENTS}, trust=True)
    assert opened.evaluate()["eval/length"] > 0
    assert all(isinstance(one, Elsewhere) and not one.asked for one in opened.samplers)


def test_the_policy_says_again_what_was_sampled(tmp_path: Path) -> None:
    """Ratios are taken to what the policy itself says; the sampler's own stays beside it."""
    bench = Bench(tmp_path, pipeline({"off": 0.05}, algorithm="ratio", generation=NARROWED), COMPONENTS)
    batch = bench.batch()
    rollout, mask_NT = batch.rollout, batch.rollout.mask_NT
    exact = bench.run.score("policy", rollout, ["logprobs", "full_logprobs"])
    torch.testing.assert_close(batch.old_logprobs_NT, exact.logprobs_NT)
    gap_NT = (rollout.logprobs_NT - exact.logprobs_NT).abs()
    torch.testing.assert_close(gap_NT[mask_NT], torch.full_like(gap_NT[mask_NT], 0.05), atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.full_logprobs_NT, exact.full_logprobs_NT)  # it does not know them
    assert bool((rollout.columns[VERSION] == 0).all())
    assert bench.iterate()["sampler/largest"] == pytest.approx(0.05, abs=1e-5)


def test_a_reward_reads_the_policy_s_own_log_probs(tmp_path: Path) -> None:
    said = pipeline({"off": 0.05}, rewards=["length", {"kl": {"coef": 0.1}}])
    (row, *_) = [row for row in rows_of(run(tmp_path, said, COMPONENTS)[1]) if "sampler/version" in row]
    assert row["kl/k1"] == pytest.approx(0, abs=1e-6)  # the reference is the policy still


def test_of_a_mix_the_sampled_ones_come_from_it(tmp_path: Path) -> None:
    """Logged responses have no version and no log-probs of a sampler; the policy says both of all."""
    mixed = {"mix": {"logged": 1, "sampled": 2}}
    said = pipeline(
        {"off": 0.05}, algorithm="ratio", responses=mixed, rewards=["length", {"kl": {"coef": 0.1}}]
    )
    bench = Bench(tmp_path, said, COMPONENTS)
    batch = bench.batch()
    rollout, mask_NT = batch.rollout, batch.rollout.mask_NT
    exact = bench.run.score("policy", rollout, ["logprobs", "full_logprobs"])
    torch.testing.assert_close(batch.old_logprobs_NT, exact.logprobs_NT)
    for name in ("policy.full_logprobs", "reference.full_logprobs"):  # the reference is the policy still
        torch.testing.assert_close(rollout.columns[name][mask_NT], exact.full_logprobs_NT[mask_NT])
    assert rollout.columns[VERSION].isnan().sum() == 4
    metrics = bench.iterate()
    assert metrics["sampler/largest"] == pytest.approx(0.05, abs=1e-5)
    assert metrics["sampler/gap"] == pytest.approx(0.05, abs=1e-5) and metrics["sampler/version"] == 0


def test_what_was_removed_and_where_texts_stop(tmp_path: Path) -> None:
    """As the policy's own loop says it, from the same numbers."""
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    policy, one = bench.phase.models.policy, sampler_of(bench.session)
    examples = bench.phase.draw.next(4)
    how = Sampling(**NARROWED, stop=("l", "N", "D"))
    seeds = Seeds(3).numbers("x", positions=range(4), samples=3)
    one.take(policy)
    found = one.sample(policy, examples, how, seeds)
    again = sample(policy, examples, how, one.numbers(seeds, 5))
    for name in ("actions_NT", "mask_NT", "finished_N", "logprobs_NT", "group_N"):
        torch.testing.assert_close(getattr(found, name), getattr(again, name))
    assert found.texts == again.texts and bool(found.finished_N.any())
    assert found.allowed is not None and again.allowed is not None
    assert torch.equal(found.allowed.mask(*found.chosen), again.allowed.mask(*again.chosen))
    longer = sampled_rollout(
        policy, examples[:1], Sampling(stop=("b",)), [Response([97, 98, 99], [0.0] * 3, False)]
    )
    assert longer.texts == ("a",) and longer.mask_NT.tolist() == [[True, True]] and bool(longer.finished_N[0])


def test_an_end_that_is_none_of_the_policy_s_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    policy, examples = bench.phase.models.policy, bench.phase.draw.next(1)
    how = Sampling(stop=("b",), max_new_tokens=4)
    with pytest.raises(RLAlignError, match="at token 99, which ends none of the policy's"):
        sampled_rollout(policy, examples, how, [Response([97, 99], [0.0] * 2, True)])
    ended = [Response([97, policy.ends[0]], [0.0] * 2, True)]
    assert bool(sampled_rollout(policy, examples, how, ended).finished_N[0])
    cut = sampled_rollout(policy, examples, how, [Response([97, 99], [0.0] * 2, False)])
    assert not bool(cut.finished_N[0])


def test_another_order_of_positions_has_the_same_seeds() -> None:
    seeds = Seeds(7)
    whole = seeds.numbers("sample", 2, positions=range(10), samples=4)
    assert seeds.numbers("sample", 2, positions=range(6, 8), samples=2) == [row[:2] for row in whole[6:8]]
    assert len({seed for row in whole for seed in row}) == 40 and all(0 <= s < 2**63 for s in whole[0])


# -- what must not be learned from ------------------------------------------------------------------------------


def test_old_weights_end_the_run_and_both_versions_are_named(tmp_path: Path) -> None:
    started = session(tmp_path, pipeline({"forgets": 2}), COMPONENTS, name="one")
    with pytest.raises(
        RLAlignError, match=r"given the weights of version 2 and .* held before \(version 1\)"
    ):
        started.run()
    assert [row["sampler/version"] for row in rows_of(started)] == [0, 1]
    assert sampler_of(started).closed == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"off": 0.2}, "lie 0.2 from the policy's"),
        ({"short": True}, "groups have"),
        ({"off": float("nan")}, "NaN"),
    ],
    ids=["off", "short", "nan"],
)
def test_what_is_not_as_it_should_be_is_not_learned_from(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    off = options.pop("off", 0.0)
    bench = Bench(tmp_path, pipeline(options), COMPONENTS)
    one = sampler_of(bench.session)
    object.__setattr__(one.config, "off", off)
    with pytest.raises(RLAlignError, match=f"`elsewhere`.*{said}"):
        bench.iterate()
    assert bench.phase.models.policy.version == 0


# -- before the run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"generation": {"min_p": 0.1}}, "generation.min_p: `elsewhere` knows nothing of it"),
        (
            {"evaluate": {"generation": {"min_p": 0.1}}},
            "evaluate.generation.min_p: `elsewhere` knows nothing of it",
        ),
        ({"algorithm": ["gain", "narrow"]}, "`narrow` has a second model narrow what is sampled"),
        ({"models": {"judge": "elsewhere"}}, "models.judge: `elsewhere` is a sampler, and stands under"),
        (
            {"models": {"sampler": {"of": "start"}}},
            "models.sampler: expected a sampler, such as `vllm`; a copy",
        ),
        (
            {"models": {"sampler": "linear-value"}},
            "models.sampler: expected a sampler.*`linear-value` is none",
        ),
        ({"models": {"sampler": "gain"}}, "takes a value, a policy or a sampler; `gain` is a component"),
    ],
    ids=["generation", "evaluation", "constraint", "name", "copy", "value", "component"],
)
def test_refused_before_the_run(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        session(tmp_path, pipeline(**said), COMPONENTS)


def test_a_phase_that_samples_nothing_asks_nobody(tmp_path: Path) -> None:
    done = session(tmp_path, pipeline(responses="logged", generation={"min_p": 0.1}), COMPONENTS)
    done.run()
    assert sampler_of(done).asked == []


def test_check_says_who_samples(tmp_path: Path) -> None:
    known = registry(COMPONENTS)
    for train, advised in (({}, True), ({"mismatch": {}}, False)):
        said = pipeline()
        said["train"] |= train
        loaded = load_pipeline(tmp_path / "p.yaml", registry=known, text=json.dumps(said))
        told = check(loaded, known)
        assert "sampler  elsewhere: the same tokens" in told
        assert ("say `train.mismatch`" in told) == advised


# -- resumed ------------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_to_the_bit(tmp_path: Path) -> None:
    _, whole = run(tmp_path, pipeline(), COMPONENTS, name="whole")
    again = stopped_and_resumed(tmp_path, pipeline(), COMPONENTS)
    assert logged(whole.dir.path) == logged(again.dir.path)
    for key, tensor in whole.models.policy.state_dict().items():
        assert torch.equal(tensor, again.models.policy.state_dict()[key])
    assert sampler_of(again).taken == [1, 2]  # a new process has no weights
    assert json.loads((again.dir.lock).read_text())["samplers"] == {"elsewhere": "the same tokens"}


def test_one_that_repeats_something_else_is_another_run(tmp_path: Path) -> None:
    stop_early(session(tmp_path, pipeline(), COMPONENTS, name="stopped"))
    lock = tmp_path / "runs/stopped/lock.json"
    lock.write_text(lock.read_text().replace("the same tokens", "other tokens"))
    with pytest.raises(RLAlignError, match=r"samplers\.elsewhere"):
        loop.resume(tmp_path / "runs/stopped", registry(COMPONENTS), display=Silence())
