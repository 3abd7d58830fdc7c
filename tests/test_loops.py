"""RAFT and ReST are compositions of what is there, and do what their papers say; the examples learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlalign import Batch, Component, Run, hookimpl
from rlalign.config.load import load_pipeline
from rlalign.interface.policy import Policy
from rlalign.records import logs
from rlalign.records.checkpoint import load_tensors
from rlalign.running.loop import Session
from rlalign.testing import bench
from rlalign.testing.bench import Silence, run

EXAMPLES = Path(__file__).resolve().parents[1] / "examples/algorithms"
SEEDS = (0, 1)


def read(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return made


class Watch(Component):
    """Remembers the batches that were learned from, by (phase, repeat)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.batches: list[tuple[tuple[str, int], Batch]] = []

    @hookimpl(wrapper=True)
    def advantage(self, run: Run) -> Generator[None, Batch, Batch]:
        batch = yield
        self.batches.append(((run.phase, run.repeat), batch))
        return batch

    def of(self, phase: str, repeat: int) -> list[Batch]:
        return [batch for where, batch in self.batches if where == (phase, repeat)]


def watched(session: Session) -> Watch:
    (watch,) = (c for c in session.builder.built.values() if isinstance(c, Watch))
    return watch


# -- ReST -------------------------------------------------------------------------------------------------


def small_rest(**changes: Any) -> dict[str, Any]:
    """The example with a small task, a table's policy and a watch on every phase; its phases as they are."""
    made = read("rest")
    digits = [*map(str, range(6)), "end"]
    made |= {
        "task": {"toy-numbers": {"size": 20}},
        "policy": {"table": {"actions": digits, "end": "end", "steps": 6, "state": "previous"}},
        "rewards": ["increasing-numbers"],
        "models": None,
        "evaluate": None,
        **changes,
    }
    for phase in made["phases"]:
        listed = phase["algorithm"] if isinstance(phase["algorithm"], list) else [phase["algorithm"]]
        phase["algorithm"] = [*listed, "watch"]
        if phase["name"] != "grow":
            phase["algorithm"][1]["at-least"]["threshold"] /= 2  # a table that begins with nothing earns less
            phase["task"] = {"from": "grow"}  # this task has no logged responses of its own
    return made


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the policy sampled."""
    counted: Counter[int] = Counter()
    sample = Policy.sample

    def counting(self: Policy, *arguments: Any) -> Any:
        counted[0] += 1
        return sample(self, *arguments)

    monkeypatch.setattr(Policy, "sample", counting)
    return counted


IMPROVE = ("improve-1", "improve-2", "improve-3")


def test_the_thresholds_of_rest_rise_and_its_learning_rates_fall() -> None:
    phases = {phase.name: phase for phase in load_pipeline(EXAMPLES / "rest.yaml").phases}
    assert tuple(phases) == ("grow", *IMPROVE)
    for name in IMPROVE:
        origin = phases[name].origin
        assert origin is not None and origin.phase == "grow" and origin.original
    wrappers = [phases[name].algorithm[1].options.model_dump() for name in IMPROVE]
    thresholds, rates = [w["threshold"] for w in wrappers], [phases[name].train.lr for name in IMPROVE]
    assert all(w["strict"] for w in wrappers)
    assert thresholds == sorted(set(thresholds))
    assert rates == sorted(set(rates), reverse=True)


def test_an_improve_step_of_rest_samples_nothing_and_keeps_less_than_the_one_before(
    sampled: Counter[int], tmp_path: Path
) -> None:
    _, session = run(tmp_path, small_rest(), {"watch": Watch})
    watch = watched(session)
    growing = [line for line in logs.read(session.dir.path / "metrics.jsonl") if line["phase"] == "grow"]
    assert sampled[0] == len(growing) == 8  # one draw an iteration, and none in any other phase
    improving = {phase.name: phase for phase in session.pipeline.phases if phase.name in IMPROVE}
    for repeat in range(2):
        grown = [
            (row["id"], j, text, score)
            for row in logs.read(session.dir.path / f"rows/grow-{repeat + 1}.jsonl")
            for j, (text, score) in enumerate(zip(row["responses"], row["scores"], strict=True))
        ]
        assert len(grown) == 4 * 64 * 8
        before = {(id, text) for id, _, text, _ in grown}
        for name in IMPROVE:
            threshold = improving[name].algorithm[1].options.model_dump()["threshold"]
            kept = {
                (batch.rollout.examples[g].id, text)
                for batch in watch.of(name, repeat)
                for g, text in zip(batch.rollout.group_N.tolist(), batch.rollout.texts, strict=True)
            }
            assert kept == {(id, text) for id, _, text, score in grown if score > threshold}
            assert kept < before
            before = kept
        assert before, "the last threshold kept something"


def test_a_step_that_keeps_nothing_says_so_and_changes_nothing(tmp_path: Path) -> None:
    made = small_rest(repeat=1)
    made["phases"] = [phase for phase in made["phases"] if phase["name"] in ("grow", "improve-1")]
    made["phases"][1]["algorithm"][1] = {"at-least": {"threshold": 1e6, "strict": True}}
    display = Silence()
    started = bench.session(tmp_path, made, {"watch": Watch}, display=display)
    before = started.models.policy.table.detach().clone()  # type: ignore[operator]
    started.run()
    lines = [r for r in logs.read(started.dir.path / "metrics.jsonl") if r["phase"] == "improve-1"]
    assert lines and all(line["empty_steps"] == 1 and line["groups"] == 0 for line in lines)
    assert any("no responses left to learn from" in note for note in display.notes)
    assert torch.equal(started.models.policy.table.detach(), before)  # type: ignore[operator]


# -- RAFT -------------------------------------------------------------------------------------------------


def small_raft(**changes: Any) -> dict[str, Any]:
    made = read("raft")
    digits = [*map(str, range(6)), "end"]
    made |= {
        "task": {"toy-numbers": {"size": 20}},
        "policy": {"table": {"actions": digits, "end": "end", "steps": 6, "state": "previous"}},
        "rewards": ["increasing-numbers"],
        "models": None,
        "evaluate": None,
        "train": {**made["train"], "prompts": 16, "lr": 0.05},
        **changes,
    }
    made["phases"][0]["algorithm"] = [*made["phases"][0]["algorithm"], "watch"]
    return made


def test_raft_imitates_the_best_of_each_prompts_samples(tmp_path: Path) -> None:
    made = small_raft()
    made["train"]["keep_responses"] = True
    _, session = run(tmp_path, made, {"watch": Watch})
    samples = made["generation"]["samples"]
    for repeat in range(made["repeat"]):
        rows = list(logs.read(session.dir.path / f"rows/rank-{repeat + 1}.jsonl"))
        batches = watched(session).of("rank", repeat)
        assert len(rows) == sum(map(len, batches)) == made["train"]["iterations"] * 16
        chosen = [
            (t, x) for b in batches for t, x in zip(b.rollout.texts, b.reward.total_N.tolist(), strict=True)
        ]
        for row, (text, score) in zip(rows, chosen, strict=True):
            assert len(row["scores"]) == samples
            assert score == max(row["scores"]) and row["responses"][row["scores"].index(score)] == text


def weights(folder: Path, made: dict[str, Any]) -> dict[str, torch.Tensor]:
    finished, _ = run(folder, made, {"watch": Watch})
    return load_tensors(finished.path / "model/model.safetensors")


def test_raft_only_knows_ranks(tmp_path: Path) -> None:
    """A reward four times as large, exact in binary: the same weights to the bit."""
    one = weights(tmp_path / "1", small_raft())
    four = weights(tmp_path / "4", small_raft(rewards=[{"increasing-numbers": {}, "weight": 4}]))
    assert all(torch.equal(one[name], four[name]) for name in one)


def test_raft_of_one_sample_imitates_its_own_samples(tmp_path: Path) -> None:
    alone = small_raft(generation={"samples": 1, "max_new_tokens": 6})
    plain = small_raft(generation={"samples": 1, "max_new_tokens": 6})
    plain["phases"][0]["algorithm"] = ["sft", "watch"]
    one, other = weights(tmp_path / "1", alone), weights(tmp_path / "2", plain)
    assert all(torch.equal(one[name], other[name]) for name in one)


# -- learning ---------------------------------------------------------------------------------------------

MEASURED = {"wbc": "toy-sentiment", "gold": "toy-coverage", "raft": "toy-sentiment", "rest": "toy-sentiment"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MEASURED)
def test_learns(name: str, seed: int, tmp_path: Path) -> None:
    finished, _ = run(tmp_path, {**read(name), "seed": seed})
    rows = [row for row in logs.read(finished.path / "metrics.jsonl") if "eval/responses" in row]
    before, after = (row[f"eval/{MEASURED[name]}"] for row in (rows[0], rows[-1]))
    kl = rows[-1]["eval/kl/per_response"]
    print(f"{name} seed {seed}: {before:.3f} → {after:.3f}, KL {kl:.2f}")
    assert after > before + 0.25
    assert kl < 8
    assert rows[-1]["eval/toy-grammar"] > 0.7


class Shuffled(Component):
    """The scores of the items above, dealt out anew among all responses of the batch."""

    @hookimpl(wrapper=True)
    def reward(self, run: Run, rollout: Any) -> Generator[None, Any, Any]:
        scores = yield
        order_N = torch.randperm(len(rollout), generator=run.rng("shuffled", run.iteration))
        return [replace(score, value=score.value[order_N]) for score in scores]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wbc", "raft"])
def test_learns_nothing_from_shuffled_rewards(name: str, tmp_path: Path) -> None:
    made = read(name)
    made["rewards"].insert(1, "shuffled")
    finished, _ = run(tmp_path, made, {"shuffled": Shuffled})
    rows = [row for row in logs.read(finished.path / "metrics.jsonl") if "eval/responses" in row]
    before, after = (row[f"eval/{MEASURED[name]}"] for row in (rows[0], rows[-1]))
    print(f"{name} shuffled: {before:.3f} → {after:.3f}")
    assert abs(after - before) < 0.12
