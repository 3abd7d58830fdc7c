"""`sampled`, `logged` (also as a reward), `mix`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from rlalign.data.batch import Batch, Loss, Outputs
from rlalign.data.example import Example
from rlalign.data.settings import Options
from rlalign.errors import ComponentError, ConfigError, RLAlignError
from rlalign.interface.component import Component, Task
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, ComponentTests, PolicyGradient, run, session

PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {}},
    "rewards": ["token-sum"],
    "algorithm": "once",
    "generation": {"samples": 4, "max_new_tokens": 7},
    "train": {"iterations": 2, "prompts": 6, "lr": 0.01, "dtype": "float64"},
}
EXTRA: dict[str, Any] = {"once": PolicyGradient}
MIX = {"mix": {"logged": 1, "sampled": 3}}


# -- sampled ----------------------------------------------------------------------------------------


def test_sampled_gives_every_prompt_its_samples_in_one_group(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, EXTRA)
    rollout, _ = bench.rollout()
    assert rollout.group_N.tolist() == [g for g in range(6) for _ in range(4)]
    assert bool(rollout.logprobs_NT[rollout.mask_NT].isfinite().all())


def test_sampled_tokens_depend_on_place_and_iteration_only(tmp_path: Path) -> None:
    """Nothing an earlier request drew, and not how many prompts are asked for, moves a token."""
    one = Bench(tmp_path / "1", PIPELINE, EXTRA)
    two = Bench(tmp_path / "2", PIPELINE, EXTRA)
    examples = one.phase.draw.next(6)
    whole = one.stages.rollout(one.run, examples)
    two.run.rng("anything")
    first = two.stages.rollout(two.run, examples[:2])
    assert first.texts == whole.texts[: len(first)]
    assert one.stages.rollout(one.run, examples).texts == whole.texts
    one.phase.iteration = 1
    assert one.stages.rollout(one.run, examples).texts != whole.texts


# -- logged -----------------------------------------------------------------------------------------


def test_logged_gives_all_responses_with_their_scores(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**PIPELINE, "responses": "logged", "rewards": None}, EXTRA)
    rollout, reward = bench.rollout()
    expected = [
        (e.id, text, s) for e in rollout.examples for text, s in zip(e.responses, e.scores, strict=True)
    ]
    found = [
        (rollout.examples[g].id, text, s)
        for g, text, s in zip(
            rollout.group_N.tolist(), rollout.texts, reward.parts["logged"].tolist(), strict=True
        )
    ]
    assert found == [(i, t, pytest.approx(s)) for i, t, s in expected]
    assert bool(rollout.logprobs_NT[rollout.mask_NT].isnan().all())


class Mail(Task):
    """Two examples with whatever scores the options say."""

    class Config(Options):
        scores: tuple[float, ...] = Field((), description="of both responses")

    def examples(self, split: str) -> list[Example]:
        return [Example(str(i), str(i), ("1", "2 3"), self.config.scores) for i in range(2)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "scores, said",
    [
        ((), "the first example of task `mail` has none; name `rewards`"),
        ((1.0,), "has 2 responses and 1 scores"),
    ],
)
def test_logged_refuses_scores_that_are_not_there(scores: Any, said: str, tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "task": {"mail": {"scores": scores}}, "responses": "logged", "rewards": None}
    with pytest.raises(RLAlignError, match=said):
        run(tmp_path, pipeline, {**EXTRA, "mail": Mail})


def test_logged_is_no_reward_of_sampled_responses(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="these were sampled and have no score"):
        run(tmp_path, {**PIPELINE, "rewards": ["logged"]}, EXTRA)


def test_logged_scores_stand_beside_other_rewards(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "responses": "logged", "rewards": [{"logged": None, "weight": 2}, "token-sum"]}
    _, reward = Bench(tmp_path, pipeline, EXTRA).rollout()
    assert list(reward.parts) == ["logged", "token-sum"]
    torch.testing.assert_close(reward.total_N, 2 * reward.parts["logged"] + reward.parts["token-sum"])


# -- mix --------------------------------------------------------------------------------------------


def test_mix_joins_all_sources_of_a_prompt_in_one_group(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**PIPELINE, "responses": MIX}, EXTRA)
    rollout, reward = bench.rollout()
    sources = rollout.columns["source"]
    assert len(rollout) == len(reward.total_N) == 24
    for g, example in enumerate(rollout.examples):
        rows = (rollout.group_N == g).nonzero()[:, 0].tolist()
        assert Counter(sources[i] for i in rows) == {"logged": 1, "sampled": 3}
        assert all(rollout.texts[i] in example.responses for i in rows if sources[i] == "logged")
    logged = torch.tensor([s == "logged" for s in sources])
    known = (rollout.logprobs_NT.isfinite() | ~rollout.mask_NT).all(1)
    assert torch.equal(known, ~logged)  # what a source lacks is NaN until somebody needs it
    assert torch.equal(rollout.columns["score"].isnan(), ~logged)


def test_mix_counts_stand_above_generation_samples(tmp_path: Path) -> None:
    pipeline = {**PIPELINE, "responses": {"mix": {"sampled": 2, "logged": 1}}, "generation": {"samples": 5}}
    rollout, _ = Bench(tmp_path, pipeline, EXTRA).rollout()
    assert len(rollout) == 18


def test_mix_takes_logged_responses_at_random_and_the_same_again(tmp_path: Path) -> None:
    class Many(Mail):
        def examples(self, split: str) -> list[Example]:
            return [Example(str(i), str(i), ("1", "2", "3", "4", "5")) for i in range(6)]

    pipeline = {**PIPELINE, "task": "many", "responses": {"mix": {"logged": 2}}}
    seen = []
    for name in ("1", "2"):
        bench = Bench(tmp_path / name, pipeline, {**EXTRA, "many": Many})
        examples = bench.phase.draw.next(6)
        first = bench.stages.rollout(bench.run, examples).texts
        bench.phase.iteration = 1
        seen.append((first, bench.stages.rollout(bench.run, examples).texts))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]
    assert len(set(seen[0][0])) > 2


def test_mix_fills_log_probs_where_they_are_needed(tmp_path: Path) -> None:
    class Needs(PolicyGradient):
        needs = ("logprobs", "old_logprobs", "policy.full_logprobs")

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            mask_NT = batch.rollout.mask_NT
            torch.testing.assert_close(batch.old_logprobs_NT[mask_NT], now.logprobs_NT.detach()[mask_NT])
            assert bool(batch.rollout.columns["policy.full_logprobs"][mask_NT].isfinite().all())
            return super().loss(batch, now)

    pipeline = {**PIPELINE, "responses": MIX, "algorithm": "needs"}
    run(tmp_path, {**pipeline, "train": {**PIPELINE["train"], "iterations": 1}}, {"needs": Needs})


def test_source_restricts_a_loss_and_its_denominators(tmp_path: Path) -> None:
    seen: list[tuple[str, set[str], int]] = []

    class Look(PolicyGradient):
        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            seen.append((self.name, set(batch.rollout.columns["source"]), len(batch.step)))
            assert len(now.logprobs_NT) == len(batch)
            return Loss(batch.mean_over_responses(0 * now.logprobs_NT.sum(1) + 1))

    algorithm = [
        {"look": None, "source": "logged", "as": "imitate"},
        {"look": None, "source": "sampled", "as": "reinforce"},
        {"look": None, "as": "both"},
    ]
    finished, _ = run(tmp_path, {**PIPELINE, "responses": MIX, "algorithm": algorithm}, {"look": Look})
    assert {(name, frozenset(s), n) for name, s, n in seen if s} == {
        ("imitate", frozenset({"logged"}), 6),
        ("reinforce", frozenset({"sampled"}), 18),
        ("both", frozenset({"logged", "sampled"}), 24),
    }
    for name in ("imitate", "reinforce", "both"):
        assert finished.metrics[f"{name}/loss"] == pytest.approx(1.0)


def test_a_source_of_which_nothing_survived_is_no_loss(tmp_path: Path) -> None:
    class OnlySampled(Component):
        @hookimpl(wrapper=True)
        def advantage(self):
            batch = yield
            rows = [i for i, s in enumerate(batch.rollout.columns["source"]) if s == "sampled"]
            return batch.take(torch.tensor(rows)).as_step()

    algorithm = [{"once": None, "source": "logged"}, "only"]
    pipeline = {**PIPELINE, "responses": MIX, "algorithm": algorithm}
    finished, _ = run(tmp_path, pipeline, {**EXTRA, "only": OnlySampled})
    assert finished.metrics["once/loss"] == 0.0


def test_mix_draws_on_any_component_with_respond(tmp_path: Path) -> None:
    """Its other hooks act as usual: here it stores what it will give again."""

    class Replay(Component):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.kept: list[Any] = []

        def respond(self, run: Any, examples: Any, count: Any) -> Any:
            rollout = run.models.policy.encode(examples)
            rows = [int((rollout.group_N == g).nonzero()[0, 0]) for g in range(len(examples))]
            return rollout.take(torch.tensor(rows).repeat_interleave(count))

        @hookimpl(wrapper=True)
        def advantage(self):
            batch = yield
            self.kept.append(batch)
            return batch

    pipeline = {**PIPELINE, "responses": {"mix": {"sampled": 1, "replay": 2}}}
    _, done = run(tmp_path, pipeline, {**EXTRA, "replay": Replay})
    (replay,) = [c for c in done.builder.built.values() if isinstance(c, Replay)]
    assert len(replay.kept) == 2
    assert Counter(replay.kept[0].rollout.columns["source"]) == {"sampled": 6, "replay": 12}


@pytest.mark.parametrize(
    "sources, said",
    [
        ({}, "`mix` refuses its options: name at least one source"),
        ({"logged": 0}, "logged: expected a positive number of responses per prompt, got 0"),
        ({"logged": True}, "logged"),
        ({"logged": 1.5}, "logged"),
        ({"token-sum": 1}, "`token-sum` is no source of responses"),
        ({"loged": 1}, "did you mean `logged`"),
    ],
)
def test_mix_refuses_what_gives_no_responses(sources: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        session(tmp_path, {**PIPELINE, "responses": {"mix": sources}}, EXTRA)


def test_rows_of_a_mixed_group_keep_their_settings(tmp_path: Path) -> None:
    generation = {"temperature": 0.5, "max_new_tokens": 7}
    rollout, _ = Bench(tmp_path, {**PIPELINE, "responses": MIX, "generation": generation}, EXTRA).rollout()
    temperature_N = rollout.setting("temperature").tolist()
    assert temperature_N == [1.0 if s == "logged" else 0.5 for s in rollout.columns["source"]]


class _Sources(ComponentTests):
    pipeline = {"rewards": ["token-sum"], "algorithm": "policy-gradient"}


class TestSampled(_Sources):
    component = "sampled"


class TestLogged(_Sources):
    component = "logged"
    pipeline = {"responses": "logged", "rewards": ["logged"], "algorithm": "policy-gradient"}


class TestMix(_Sources):
    component = "mix"
    options = {"logged": 1, "sampled": 2}
    pipeline = {"responses": {"mix": {"logged": 1, "sampled": 2}}, "algorithm": "policy-gradient"}
