"""`replay` in whole runs: what comes back, with what, and what is made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import (
    Batch,
    Component,
    ComponentError,
    ConfigError,
    Example,
    Loss,
    Outputs,
    Result,
    Reward,
    Rollout,
    Score,
    Task,
    hookimpl,
)
from rlalign.data.rollout import AGE
from rlalign.testing import Bench, ComponentTests, run, session

BASE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 16, "scale": 2.0}},
    "rewards": ["asked", {"kl": {"coef": 0.1}}],
    "algorithm": "seen",
    "responses": {"replay": {"groups": 4}},
    "generation": {"samples": 3, "max_new_tokens": 7},
    "train": {"iterations": 4, "prompts": 6, "lr": 0.05},
}


class Asked(Component):
    """Scores by the number of tokens; counts the responses it is asked for."""

    count = 0

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        self.count += len(rollout)
        return Score(rollout.length_N.float())


class Seen(Component):
    """A policy gradient that keeps what it learned from."""

    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.batches: list[Batch] = []

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        if batch.step not in self.batches:
            self.batches.append(batch.step)
        return Loss(-batch.mean_over_tokens(now.logprobs_NT * batch.advantage_NT))


class Third(Component):
    """Keeps a third of the new groups."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        rollout = batch.rollout
        return batch.take((rollout.group_N % 3 == 0) | ~rollout.new_N)


class Half(Component):
    """Keeps the first three groups."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        batch = yield
        return batch.take(batch.rollout.group_N < 3)


class Watched(Component):
    """Keeps the last batch."""

    @hookimpl(wrapper=True)
    def advantage(self) -> Generator[None, Batch, Batch]:
        self.batch = yield
        return self.batch


EXTRA: dict[str, type[Any]] = {
    "watched": Watched,
    "asked": Asked,
    "seen": Seen,
    "third": Third,
    "half": Half,
}


class TestReplay(ComponentTests):
    component = "replay"
    options = {"groups": 2}


def opened(folder: Path, **changes: Any) -> Bench:
    return Bench(folder, {**BASE, **changes}, EXTRA)


def part(bench: Bench, name: str) -> Any:
    return next(m.component for m in bench.phase.plan.members if m.name == name)


def batches(bench: Bench, iterations: int) -> list[Batch]:
    for _ in range(iterations):
        bench.iterate()
    found: list[Batch] = part(bench, "seen").batches
    assert len(found) == iterations
    return found


def responses(rollout: Rollout, new: bool) -> dict[tuple[str, ...], list[list[float]]]:
    """Of each group that is new, or is not: its example and texts, and what is known of its tokens."""
    found = {}
    for g, example in enumerate(rollout.examples):
        rows = (rollout.group_N == g).nonzero()[:, 0]
        if bool(rollout.new_N[rows].all()) == new:
            known = [
                [
                    *rollout.actions_NT[i, : rollout.length_N[i]].tolist(),
                    *rollout.logprobs_NT[i, : rollout.length_N[i]].tolist(),
                ]
                for i in rows
            ]
            found[example.id, *(rollout.texts[i] for i in rows)] = known
    return found


def ages(batch: Batch) -> list[float]:
    """How old each response is; new ones may have none."""
    found: list[float] = batch.rollout.columns[AGE].nan_to_num(0.0).tolist()
    return found


# -- beside new responses -----------------------------------------------------------------------------------


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    one, two, three = batches(opened(tmp_path), 3)
    assert [len(b.rollout.examples) for b in (one, two, three)] == [6, 10, 10]
    first, second = responses(one.rollout, True), responses(two.rollout, True)
    back = responses(two.rollout, False)
    assert len(back) == 4 and back.items() <= first.items()
    later = responses(three.rollout, False)
    assert len(later) == 4 and later.items() <= {**first, **second}.items()
    assert Counter(two.rollout.columns["source"]) == {"sampled": 18, "replay": 12}
    assert set(ages(two)) == {0.0, 1.0}
    assert set(ages(three)) <= {0.0, 1.0, 2.0}


def test_new_responses_are_those_of_a_run_without_replay(tmp_path: Path) -> None:
    with_it = batches(opened(tmp_path / "1"), 2)
    without = batches(opened(tmp_path / "2", responses="sampled"), 1)
    assert responses(with_it[0].rollout, True) == responses(without[0].rollout, True)


def test_scores_come_along_and_the_kl_is_that_of_now(tmp_path: Path) -> None:
    bench = opened(tmp_path)
    one, two = batches(bench, 2)
    assert part(bench, "asked").count == 36, "only new responses are scored"
    old_N = ~two.rollout.new_N
    assert torch.equal(two.reward.parts["asked"], two.rollout.length_N.float())
    assert float(one.reward.parts["kl"].abs().max()) < 1e-6  # the policy is the reference
    assert float(two.reward.parts["kl"][old_N].abs().max()) > 1e-3
    now_NT = bench.run.score("policy", two.rollout, ["logprobs"]).logprobs_NT
    assert not torch.allclose(two.rollout.logprobs_NT[old_N], now_NT[old_N], atol=1e-3), (
        "theirs, not the policy's"
    )
    assert torch.equal(two.old_logprobs_NT, torch.where(two.rollout.mask_NT, two.rollout.logprobs_NT, 0.0))


def test_what_is_logged(tmp_path: Path) -> None:
    """Rewards, lengths and counts of new responses alone; of the others how many, how old, how far off."""
    bench = opened(tmp_path)
    first = bench.iterate()
    assert {k: v for k, v in first.items() if k.startswith("replay/")} == {"replay/responses": 0}
    second = bench.iterate()
    batch = part(bench, "seen").batches[1]
    new_N = batch.rollout.new_N
    assert second["responses"] == 18 and second["groups"] == 10 and second["replay/responses"] == 12
    assert second["reward/asked"] == pytest.approx(float(batch.rollout.length_N[new_N].double().mean()))
    assert (second["replay/age"], second["replay/oldest"]) == (1.0, 1.0)
    assert second["sampler/gap"] < 1e-5 < second["replay/gap"]
    assert second["replay/kl"] > 0 and second["replay/ratio"] > 0
    third = bench.iterate()
    assert 1 <= third["replay/age"] <= third["replay/oldest"] == max(ages(part(bench, "seen").batches[2]))


class Centred(Seen):
    """Makes advantages."""

    @hookimpl
    def advantage(self, rollout: Rollout, reward: Reward) -> Batch:
        return Batch.of(rollout, reward, reward.total_N - reward.total_N.mean())


def test_what_was_learned_from_says_how_old_it_is(tmp_path: Path) -> None:
    evaluate = {"examples": 2, "every": 1, "show": 30, "use": ["asked"]}
    changes = {"algorithm": "centred", "evaluate": evaluate}
    _, done = run(tmp_path, {**BASE, **changes}, {**EXTRA, "centred": Centred})
    rows = Result(done.dir.path).learned
    assert Counter(row["iteration"] for row in rows) == {1: 18, 2: 30, 3: 30, 4: 30}
    assert Counter(row.get("age", 0) for row in rows if row["iteration"] == 2) == {0: 18, 1: 12}
    first = {(row["prompt"], row["response"]) for row in rows if row["iteration"] == 1}
    assert all(
        (row["prompt"], row["response"]) in first for row in rows if row["iteration"] - row.get("age", 0) == 1
    )


def test_only_what_earned_enough_is_remembered(tmp_path: Path) -> None:
    """The last successful episodes: responses one by one, whatever their groups earned."""
    replay = {"replay": {"groups": 100, "at_least": 6.0}}
    one, two = batches(opened(tmp_path, responses=replay, rewards=["asked"]), 2)
    good_N = one.reward.total_N >= 6
    assert 0 < int(good_N.sum()) < len(good_N)
    assert int((~two.rollout.new_N).sum()) == int(good_N.sum())
    assert float(two.reward.total_N[~two.rollout.new_N].min()) >= 6


def test_a_refill_does_not_bring_them_twice(tmp_path: Path) -> None:
    train = {**BASE["train"], "refill": 3}
    bench = opened(tmp_path, train=train, algorithm=["seen", "third"], rewards=["asked"])
    metrics = [bench.iterate() for _ in range(3)]
    assert max(m["refills"] for m in metrics) > 0
    assert all(m["replay/responses"] == 12 for m in metrics[1:])
    assert [m["groups"] for m in metrics] == [6, 10, 10], "six new ones are drawn, and four remembered"


def test_where_nothing_is_refilled_they_stay(tmp_path: Path) -> None:
    """The number of prompts that is wanted is of new ones."""
    bench = opened(tmp_path, train={**BASE["train"], "refill": 3}, rewards=["asked"])
    assert [len(b.rollout.examples) for b in batches(bench, 2)] == [6, 10]
    assert int((~part(bench, "seen").batches[1].rollout.new_N).sum()) == 12


def test_running_moments_count_them_once(tmp_path: Path) -> None:
    bench = opened(tmp_path, rewards=["asked", "normalise"])
    for _ in range(3):
        bench.iterate()
    assert part(bench, "normalise").seen["asked"][0] == 3 * 18


def test_rows_that_are_kept_are_new_ones(tmp_path: Path) -> None:
    finished, _ = run(tmp_path, {**BASE, "train": {**BASE["train"], "keep_responses": True}}, EXTRA)
    rows = [json.loads(line) for line in next((finished.path / "rows").iterdir()).read_text().splitlines()]
    assert len(rows) == 4 * 6
    assert all(row["meta"]["rlalign"]["source"] == ["sampled"] * 3 for row in rows)


TEXT = {"policy": "bytes"}


class Cut(Task):
    """Reads only the first number of a response."""

    def examples(self, split: str) -> list[Example]:
        return [Example(f"{split}-{i}", str(i)) for i in range(8)]

    def postprocess(self, text: str) -> str:
        return text.partition(" ")[2]


def test_texts_are_read_once_by_the_task(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**BASE, **TEXT, "task": "cut"}, {**EXTRA, "cut": Cut})
    one, two = batches(bench, 2)
    assert responses(two.rollout, False).items() <= responses(one.rollout, True).items()


class Odd(Cut):
    """Examples that JSON cannot say."""

    def examples(self, split: str) -> list[Example]:
        return [Example(f"{split}-{i}", str(i), meta={"odd": {1, 2}}) for i in range(8)]


def test_an_example_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"`replay` cannot keep example `train-.`, whose `meta` holds"):
        run(tmp_path, {**BASE, **TEXT, "task": "odd"}, {**EXTRA, "odd": Odd})


# -- in a mix -----------------------------------------------------------------------------------------------


def test_in_a_mix_they_answer_the_same_prompt(tmp_path: Path) -> None:
    mix = {"mix": {"logged": 1, "replay": {"samples": 2, "draw": "recent"}, "sampled": 2}}
    bench = opened(tmp_path, responses=mix, task="cut-logged", **TEXT, train={**BASE["train"], "prompts": 4})
    seen: dict[str, set[str]] = {}
    for batch in batches(bench, 4):
        rollout = batch.rollout
        for g, example in enumerate(rollout.examples):
            rows = (rollout.group_N == g).nonzero()[:, 0].tolist()
            texts = {
                s: [rollout.texts[i] for i in rows if rollout.columns["source"][i] == s] for s in mix["mix"]
            }
            assert (len(texts["logged"]), len(texts["sampled"])) == (1, 2)
            assert len(texts["replay"]) == min(2, len(seen.get(example.id, [])) and 2)
            assert set(texts["replay"]) <= seen.get(example.id, set())
            seen.setdefault(example.id, set()).update(texts["sampled"])
        assert rollout.new_N.tolist() == [source != "replay" for source in rollout.columns["source"]]


def test_in_a_mix_with_refills_they_are_still_remembered_ones(tmp_path: Path) -> None:
    """Where a round finds none, those of another are no new ones."""
    mix = {"mix": {"sampled": 2, "replay": 2}}
    train = {**BASE["train"], "refill": 3}
    pipeline = {"task": {"numbers": {"size": 18}}, "responses": mix, "train": train, "rewards": ["asked"]}
    bench = opened(tmp_path, **pipeline, algorithm=["seen", "half"])
    for _ in range(4):
        bench.iterate()
        rollout = part(bench, "seen").batches[-1].rollout
        new = [source != "replay" for source in rollout.columns["source"]]
        assert rollout.new_N.tolist() == new


def test_in_a_mix_their_order_does_not_matter(tmp_path: Path) -> None:
    """The examples are what the task made of them, with their logged responses."""
    mix = {"mix": {"replay": 1, "logged": 1, "sampled": 2}}
    bench = opened(tmp_path, responses=mix, task="cut-logged", **TEXT, train={**BASE["train"], "prompts": 4})
    for batch in batches(bench, 2):
        assert all(example.responses == ("1 2",) for example in batch.rollout.examples)


def test_a_mix_in_which_nothing_is_sampled_is_told(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"nothing here samples: say `mix: {sampled: 2, replay: …}`"):
        run(tmp_path, {**BASE, "rewards": ["asked"], "responses": {"mix": {"replay": 2}}}, EXTRA)


class Logged(Cut):
    def examples(self, split: str) -> list[Example]:
        return [Example(f"{split}-{i}", str(i), ("1 2",), (1.0,)) for i in range(4)]

    def postprocess(self, text: str) -> str:
        return text


EXTRA["cut-logged"] = Logged


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({"sampled": 2, "replay": {"samples": 2, "keeps": 3}}, "mix.replay.keeps: unknown.* `keep`"),
        ({"sampled": 2, "replay": {"samples": 2, "keep": 0}}, "mix.replay.keep: expected more than 0"),
        ({"sampled": 2, "replay": {"keep": 3}}, "replay: expected a positive number of responses per prompt"),
        ({"sampled": 2, "replay": True}, "replay: expected a positive number of responses per prompt"),
    ],
)
def test_wrong_options_in_a_mix_are_told(mix: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        session(tmp_path, {**BASE, "responses": {"mix": mix}}, EXTRA)


# -- what depends on where responses come from --------------------------------------------------------------


def test_a_loss_may_be_restricted_to_them(tmp_path: Path) -> None:
    algorithm = ["policy-gradient", {"seen": {}, "source": "replay"}]
    bench = opened(tmp_path, algorithm=algorithm)
    for _ in range(2):
        bench.iterate()
    first, *_ = [b for b in part(bench, "seen").batches if len(b)]
    assert set(first.rollout.columns["source"]) == {"replay"}


@pytest.mark.parametrize(
    ("responses", "source"), [({"mix": {"sampled": 2, "replay": 1}}, "mix"), ("replay", "logged")]
)
def test_a_loss_is_restricted_to_no_source_that_there_is_not(
    responses: Any, source: str, tmp_path: Path
) -> None:
    algorithm = ["policy-gradient", {"seen": {}, "source": source}]
    with pytest.raises(ConfigError, match=f"`source: {source}` needs .* from `sampled` and `replay`"):
        session(tmp_path, {**BASE, "algorithm": algorithm, "responses": responses}, EXTRA)


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        ({"replay": {"at_least": 1.0}}, "gets 1; with these options `replay` may bring no more"),
        ({"mix": {"sampled": 1, "replay": 3}}, "gets 1; `replay` may have none"),
    ],
)
def test_what_may_not_be_there_is_nothing_to_compare_with(
    responses: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    """Before the run, and not in its hundredth iteration."""
    with pytest.raises(ConfigError, match=f"`rloo` needs at least 2 responses per prompt and {said}"):
        session(tmp_path, {**BASE, "algorithm": "rloo", "responses": responses}, EXTRA)


def test_too_few_samples_are_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`rloo` needs at least 2 responses per prompt and gets 1"):
        session(tmp_path, {**BASE, "algorithm": "rloo", "generation": {"samples": 1}}, EXTRA)


@pytest.mark.parametrize(
    "algorithm", ["rloo", "dpo", ["dpo", "best-vs-worst"], {"gold": {"returns": "delta"}}, "ppo"], ids=str
)
def test_every_method_learns_from_them(algorithm: Any, tmp_path: Path) -> None:
    pipeline = {
        **BASE,
        "algorithm": algorithm,
        "rewards": ["asked"],
        "train": {"iterations": 3, "prompts": 4},
    }
    finished, _ = run(tmp_path, pipeline, EXTRA)
    last = json.loads((finished.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["replay/responses"] == 12


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_policy_gradient_weighs_them_by_their_log_probs(level: str, tmp_path: Path) -> None:
    importance = {"cap": 1.05, "level": level}
    bench = opened(tmp_path, algorithm=[{"rloo": {"importance": importance}}, "watched"])
    for _ in range(2):
        bench.iterate()
    batch = part(bench, "watched").batch
    rollout, weight = batch.rollout, batch.columns["weight"]
    gap_NT = torch.where(rollout.mask_NT, batch.columns["now"] - rollout.logprobs_NT, 0.0)
    expected = (gap_NT if level == "token" else gap_NT.sum(1)).exp().clamp(max=1.05)
    torch.testing.assert_close(weight, expected)
    assert float((weight[rollout.new_N] - 1).abs().max()) < 1e-5
    old = weight[~rollout.new_N]
    assert float(old.min()) < 0.99 and float(old.max()) == pytest.approx(1.05)


# -- a run that is taken up again ---------------------------------------------------------------------------


def test_the_memory_outlives_a_phase(tmp_path: Path) -> None:
    phases = [{"name": name, "train": {"iterations": 2}} for name in ("one", "two")]
    finished, _ = run(tmp_path, {**BASE, "phases": phases}, EXTRA)
    logged = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert [m["replay/responses"] for m in logged if "responses" in m] == [0, 12, 12, 12]
    assert logged[-1]["replay/oldest"] <= 3


class Longer(Asked):
    """Of the same name, and another reward."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(100.0 + rollout.length_N.float())


def test_another_phase_scores_them_with_its_own_rewards(tmp_path: Path) -> None:
    phases = [
        {"name": "one", "rewards": ["asked"], "train": {"iterations": 2}},
        {"name": "two", "rewards": [{"longer": {}, "as": "asked"}], "train": {"iterations": 2}},
    ]
    pipeline = {key: value for key, value in BASE.items() if key != "rewards"}
    _, session = run(tmp_path, {**pipeline, "phases": phases}, {**EXTRA, "longer": Longer})
    seen = next(m.component for m in session.plans[1].members if m.name == "seen").batches
    assert len(seen) == 4 and not bool(seen[2].rollout.new_N.all())
    assert float(seen[1].reward.total_N.max()) < 10 < 100 < float(seen[2].reward.total_N.min())
