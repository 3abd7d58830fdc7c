"""Responses that a sampler elsewhere gives while the policy learns: of which weights and draws, and what is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import (
    Batch,
    Component,
    ConfigError,
    Example,
    Learner,
    Policy,
    Reward,
    RLAlignError,
    Rollout,
    Run,
    Sampler,
    Sampling,
    Score,
    hookimpl,
)
from rlalign.config.load import load_pipeline
from rlalign.data.rollout import VERSION
from rlalign.records import checkpoint
from rlalign.running import loop
from rlalign.running.checked import check
from rlalign.testing import Bench, PolicyGradient, run, session
from rlalign.testing.bench import Silence, logged, registry, run_until, stop_early, stopped_and_resumed

from ..copying import Copy

PROMPTS = 4


class Aside(Copy):
    """A copy that remembers what it was asked, and where; it can be slow, and fail."""

    class Config(Sampler.Config):
        """Options of `aside`."""

        seconds: float = 0.0
        fails: int | None = None
        forgets: int | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.holds: int | None = None
        self.asked: list[tuple[int | None, list[str], list[list[int]]]] = []
        self.threads: list[str] = []
        self.given_up = threading.Event()
        self.at_work = threading.Lock()
        self.short: list[int | None] = []
        self.closed_with: list[str] = []

    def take(self, policy: Policy) -> None:
        assert not self.at_work.locked(), "it samples still"
        if policy.version != self.config.forgets:
            super().take(policy)
        self.holds = policy.version

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        if len(seeds) == PROMPTS and how.samples == 1:  # a short question
            self.short.append(self.holds)
            return super().sample(policy, examples, how, seeds)
        self.asked.append((self.holds, [example.id for example in examples], [list(row) for row in seeds]))
        self.threads.append(threading.current_thread().name)
        self.given_up.clear()
        with self.at_work:
            if self.given_up.wait(self.config.seconds):
                time.sleep(0.2)  # it takes a while to stop
                raise RuntimeError("given up")
        if len(self.asked) == self.config.fails:
            raise ValueError("no answer")
        return super().sample(policy, examples, how, seeds)

    def give_up(self) -> None:
        self.given_up.set()

    def close(self) -> None:
        self.closed_with += [one.name for one in threading.enumerate() if one.name.startswith("asks-ahead")]


class Alone(Aside):
    """One that needs the policy to stand still."""

    concurrent = False


class Gain(PolicyGradient):
    """Plain policy gradient, which keeps what it learns from."""

    responses = "sampled"
    needs = ("logprobs", "old_logprobs")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.learned: dict[int, Rollout] = {}
        self.old: dict[int, torch.Tensor] = {}
        self.weights: dict[int, torch.Tensor] = {}

    @hookimpl
    def loss(self, run: Run, batch: Any, now: Any) -> Any:
        self.learned[run.iteration], self.old[run.iteration] = batch.rollout, batch.old_logprobs_NT
        self.weights.setdefault(run.iteration, run.models.policy.table.detach().clone())
        return super().loss(batch, now)


class Vowels(Component):
    """The share of vowels."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([sum(c in "aeiou" for c in text) / 8 for text in rollout.texts]))


class LessMean(Component):
    """Advantages are rewards without the mean of their group."""

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        sums_G = torch.zeros(len(rollout.examples)).index_add_(0, rollout.group_N, reward.total_N)
        mean_G = sums_G / rollout.group_N.bincount()
        return Batch.of(rollout, reward, reward.total_N - mean_G[rollout.group_N])


class Slow(Gain):
    """One that takes its time to learn."""

    @hookimpl
    def loss(self, run: Run, batch: Any, now: Any) -> Any:
        time.sleep(0.2)
        return super().loss(run, batch, now)


class Tries(Component):
    """An `update` hook that asks for responses when it has learned."""

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> dict[str, float]:
        found = learner.learn(batch)
        rollout, _ = learner.respond(list(batch.rollout.examples))
        return {**found, "tried": float(rollout.columns[VERSION][0])}


class Ends(Gain):
    """One that ends the phase while the next responses are sampled."""

    @hookimpl
    def loss(self, run: Run, batch: Any, now: Any) -> Any:
        run.finish_phase("enough")
        return super().loss(run, batch, now)


COMPONENTS = {
    "aside": Aside,
    "alone": Alone,
    "gain": Gain,
    "slow": Slow,
    "ends": Ends,
    "vowels": Vowels,
    "less-mean": LessMean,
    "tries": Tries,
}


def pipeline(ahead: int = 1, sampler: str = "aside", iterations: int = 4, **said: Any) -> dict[str, Any]:
    options = {name: said.pop(name) for name in ("seconds", "fails", "forgets", "tolerance") if name in said}
    return {
        "task": {"numbers": {"size": 10}},
        "policy": "bytes",
        "rewards": ["length"],
        "algorithm": "gain",
        "models": {"sampler": {sampler: {"ahead": ahead, **options}}},
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": iterations, "prompts": PROMPTS, "lr": 0.5, "mismatch": {}},
        **said,
    }


def sampler_of(done: loop.Session) -> Aside:
    (one,) = done.samplers
    assert isinstance(one, Aside)
    return one


def rows_of(done: loop.Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]


def gain_of(done: loop.Session) -> Gain:
    return next(c for c in done.plans[0].components if isinstance(c, Gain))


EVALUATED = {"split": "val", "examples": 2, "every": 2}


def test_the_same_is_asked_with_weights_one_step_old(tmp_path: Path) -> None:
    asked = {}
    for ahead in (0, 1):
        _, done = run(tmp_path, pipeline(ahead), COMPONENTS, name=f"ahead-{ahead}")
        one = sampler_of(done)
        asked[ahead] = [(ids, seeds) for _, ids, seeds in one.asked]
        assert [version for version, _, _ in one.asked] == ([0, 0, 1, 2] if ahead else [0, 1, 2, 3])
        trained = [row for row in rows_of(done) if "sampler/version" in row]
        assert [row["sampler/behind"] for row in trained] == ([0, 1, 1, 1] if ahead else [0, 0, 0, 0])
        assert [row["sampler/version"] for row in trained] == ([0, 0, 1, 2] if ahead else [0, 1, 2, 3])
        assert (one.threads[0] == "MainThread") and all(
            name.startswith("asks-ahead") == bool(ahead) for name in one.threads[1:]
        )
    assert asked[0] == asked[1] and len(asked[1]) == 4  # nothing is asked for an iteration that does not come


def test_responses_are_those_of_the_weights_before_and_old_log_probs_of_those_now(tmp_path: Path) -> None:
    """By an explicit computation, from the weights that each iteration began with."""
    _, done = run(tmp_path, pipeline(), COMPONENTS)
    gain, policy = gain_of(done), done.models.policy
    for iteration, rollout in gain.learned.items():
        scored = {}
        for which in (max(0, iteration - 1), iteration):
            policy.load_state_dict({"table": gain.weights[which]})
            scored[which] = done.phase.engine.score("policy", rollout, ["logprobs"]).logprobs_NT
        then_NT, now_NT = scored[max(0, iteration - 1)], scored[iteration]
        mask_NT = rollout.mask_NT
        torch.testing.assert_close(rollout.logprobs_NT[mask_NT], then_NT[mask_NT], atol=1e-5, rtol=0)
        torch.testing.assert_close(gain.old[iteration][mask_NT], now_NT[mask_NT], atol=1e-5, rtol=0)
        assert bool((rollout.columns[VERSION] == max(0, iteration - 1)).all())
        if iteration:
            assert float((then_NT - now_NT)[mask_NT].abs().max()) > 1e-3
            policy.load_state_dict({"table": gain.weights[iteration - 1]})
            again = Copy(Copy.Config())
            again.take(policy)
            seeds = done.seeds.numbers("sample", 0, 0, iteration, positions=range(PROMPTS), samples=3)
            expected = again.sample(policy, rollout.examples, done.plans[0].settings.generation, seeds)
            assert torch.equal(expected.actions_NT, rollout.actions_NT)


def test_staleness_does_not_end_the_run(tmp_path: Path) -> None:
    """Log-probs of an old policy are not held against those of a new one."""
    said = pipeline(tolerance=1e-4)
    said["train"]["lr"] = 5.0
    _, done = run(tmp_path, said, COMPONENTS)
    assert max(row["sampler/gap"] for row in rows_of(done) if "sampler/gap" in row) > 1e-3
    assert sampler_of(done).short == [1, 2]  # the first weights answer the first iteration, at length


def test_weights_that_did_not_arrive_end_it_before_anything_is_learned_from_them(tmp_path: Path) -> None:
    started = session(tmp_path, pipeline(forgets=2, tolerance=1e-4), COMPONENTS)
    with pytest.raises(
        RLAlignError, match=r"given the weights of version 2 and .* held before \(version 1\)"
    ):
        started.run()
    one = sampler_of(started)
    assert one.asked[-1][0] == 1 and one.short == [1, 2] and started.models.policy.version == 2


def test_evaluations_are_of_the_weights_of_now_and_change_nothing(tmp_path: Path) -> None:
    learned = []
    for name, asked in (("not", None), ("evaluated", EVALUATED)):
        said = pipeline() if asked is None else pipeline(evaluate=asked)
        _, done = run(tmp_path, said, COMPONENTS, name=name)
        learned.append([row["loss"] for row in rows_of(done) if "loss" in row])
    assert learned[0] == learned[1]
    assert [version for version, ids, _ in sampler_of(done).asked if len(ids) == 2] == [0, 2, 4]


def test_responses_that_an_update_asks_for_are_of_the_weights_of_then(tmp_path: Path) -> None:
    """They wait for what is in flight, which stays what it is."""
    _, plain = run(tmp_path, pipeline(), COMPONENTS, name="plain")
    _, done = run(tmp_path, pipeline(algorithm=["gain", "tries"]), COMPONENTS, name="tries")
    found, before = ([row for row in rows_of(each) if "loss" in row] for each in (done, plain))
    assert [row["tried"] for row in found] == [1, 2, 3, 4]
    assert [row["sampler/version"] for row in found] == [0, 0, 1, 2]
    assert [row["loss"] for row in found] == [row["loss"] for row in before]


def test_sampling_and_learning_take_less_together(tmp_path: Path) -> None:
    """0.2 s each: no iteration takes less than 0.4 s one after the other, and one does side by side."""
    took = {}
    for ahead in (0, 1):
        _, done = run(
            tmp_path, pipeline(ahead, seconds=0.2, algorithm="slow"), COMPONENTS, name=f"ahead-{ahead}"
        )
        rows = [row for row in rows_of(done) if "time/rollout" in row]
        took[ahead] = min(row["time/iteration"] for row in rows)
        assert (min(row["time/rollout"] for row in rows) > 0.19) == (ahead == 0)
    assert took[0] > 0.4 > took[1] > 0.2, took


def test_it_learns(tmp_path: Path) -> None:
    """To write vowels, whose log-probs are weighed for the weights that sampled."""
    said = pipeline(iterations=20, rewards=["vowels"], algorithm=["gain", "less-mean"])
    said["generation"] = {"samples": 16, "max_new_tokens": 8}
    said["train"]["lr"] = 0.3
    _, done = run(tmp_path, said, COMPONENTS)
    shares = [row["reward/vowels"] for row in rows_of(done) if "reward/vowels" in row]
    assert shares[0] < 0.1 and min(shares[-3:]) > 0.25, shares


# -- stopped, resumed, ended --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"top_p": 0.8, "min_new_tokens": 2}], ids=["plain", "narrowed"])
def test_stopped_and_resumed_to_the_bit(how: dict[str, Any], tmp_path: Path) -> None:
    said = pipeline(generation={"samples": 3, "max_new_tokens": 5, **how}, evaluate=EVALUATED)
    _, whole = run(tmp_path, said, COMPONENTS, name="whole")
    again = stopped_and_resumed(tmp_path, said, COMPONENTS)
    assert logged(whole.dir.path) == logged(again.dir.path)
    for key, tensor in whole.models.policy.state_dict().items():
        assert torch.equal(tensor, again.models.policy.state_dict()[key])
    ids = [asked for _, asked, _ in sampler_of(whole).asked if len(asked) == PROMPTS]
    resumed = [asked for _, asked, _ in sampler_of(again).asked if len(asked) == PROMPTS]
    assert resumed == ids[2:]  # the second iteration's responses came with the checkpoint


def test_broken_off_and_resumed_to_the_bit(tmp_path: Path) -> None:
    """By a second Ctrl-C, while something is in flight; from a checkpoint that is older than that."""
    said = pipeline(checkpoints={"every": 2}, seconds=0.05)
    _, whole = run(tmp_path, said, COMPONENTS, name="whole")
    broken = session(tmp_path, said, COMPONENTS, name="broken")
    run_until(broken, 3)
    assert sampler_of(broken).closed_with == []
    again = loop.resume(broken.dir.path, registry(COMPONENTS), display=Silence())
    again.run()
    assert logged(whole.dir.path) == logged(again.dir.path)


def test_a_checkpoint_holds_what_was_in_flight_and_the_last_one_nothing(tmp_path: Path) -> None:
    stopped = session(tmp_path, pipeline(seconds=0.1), COMPONENTS, name="stopped")
    stop_early(stopped)
    held = checkpoint.read(stopped.dir.checkpoints, 1).loop["phase"]["ahead"]
    assert held["answer"].dtype == torch.uint8 and held["asked"]
    done = loop.resume(stopped.dir.path, registry(COMPONENTS), display=Silence())
    done.run()
    assert "ahead" not in checkpoint.read(done.dir.checkpoints, 4).loop["phase"]


def test_a_run_that_becomes_longer_is_another_one(tmp_path: Path) -> None:
    """Its last iteration asked for nothing: the next one begins with weights of now."""
    for ahead in (0, 1):
        run(tmp_path, pipeline(ahead), COMPONENTS, name=f"ahead-{ahead}")
        longer = loop.resume(
            tmp_path / f"runs/ahead-{ahead}", registry(COMPONENTS), extend=2, display=Silence()
        )
        longer.run()
        behind = [row["sampler/behind"] for row in rows_of(longer) if "sampler/behind" in row]
        assert behind == ([0, 1, 1, 1, 0, 1] if ahead else [0] * 6)
        (change,) = json.loads(longer.dir.lock.read_text())["changes"]
        assert bool(change["inexact"]) == bool(ahead)


def test_what_goes_wrong_in_the_thread_ends_the_run_and_no_thread_is_left(tmp_path: Path) -> None:
    failing = session(tmp_path, pipeline(fails=3), COMPONENTS)
    with pytest.raises(RLAlignError, match="sampler `aside` raised ValueError: no answer"):
        failing.run()
    assert sampler_of(failing).closed_with == [] and failing.models.policy.version == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("asks-ahead")]


def test_a_loss_that_fails_waits_for_nobody_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = session(tmp_path, pipeline(seconds=1.0), COMPONENTS)
    monkeypatch.setattr(failing.plans[0].training, "loss", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.run()
    one = sampler_of(failing)
    assert len(one.asked) == 2 and one.closed_with == [] and one.given_up.is_set()
    assert not [one for one in threading.enumerate() if one.name.startswith("asks-ahead")]


def test_a_phase_asks_nothing_of_the_next_one_s(tmp_path: Path) -> None:
    """Each has its own first draw, also where a component ended the one before while something was in flight."""
    first = {"name": "first", "algorithm": "ends", "train": {"iterations": 3}}
    said = pipeline(seconds=0.3)
    del said["algorithm"]
    phases = [first, {"name": "second", "algorithm": "gain", "train": {"iterations": 2}}]
    _, done = run(tmp_path, {**said, "phases": phases}, COMPONENTS)
    one = sampler_of(done)
    assert [row["sampler/behind"] for row in rows_of(done) if "sampler/behind" in row] == [0, 0, 1]
    assert [version for version, _, _ in one.asked] == [0, 0, 1, 1]  # the second was for nobody
    assert one.closed_with == []


# -- before the run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"sampler": "alone"}, "`alone` cannot sample while the policy learns"),
        ({"responses": {"mix": {"logged": 1, "sampled": 2}}}, "goes with `responses: sampled`"),
        ({"train": {"iterations": 2, "prompts": PROMPTS, "refill": 1}}, "train.refill draws again"),
        ({"ahead": 2}, "ahead"),
    ],
    ids=["alone", "mix", "refill", "two"],
)
def test_refused_before_the_run(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        session(tmp_path, pipeline(**said), COMPONENTS)


@pytest.mark.parametrize("train", [{}, {"mismatch": {}}], ids=["not", "weighed"])
def test_check_says_how_old_responses_are(train: dict[str, Any], tmp_path: Path) -> None:
    known = registry(COMPONENTS)
    said = pipeline(train={"iterations": 2, **train})
    told = check(load_pipeline(tmp_path / "p.yaml", registry=known, text=json.dumps(said)), known)
    assert "responses of weights one iteration old (`ahead`)" in told
    assert ("say `train.mismatch`" in told) == (not train)


def test_a_phase_that_samples_nothing_asks_nobody(tmp_path: Path) -> None:
    done = session(tmp_path, pipeline(responses="logged", sampler="alone"), COMPONENTS)
    done.run()
    assert sampler_of(done).asked == []


def test_a_batch_held_open_is_answered_as_in_a_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    assert [bench.iterate()["sampler/behind"] for _ in range(2)] == [0, 1]
    bench.phase.ahead.close()
