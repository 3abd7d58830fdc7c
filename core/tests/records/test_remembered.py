"""A frozen model scores a logged response once per run: the same values as ever, cut with the logs, not for others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, Component, Example, Loss, Outputs, Rollout, Run, hookimpl, logged_rollout
from rlalign.learning.engine import Engine
from rlalign.records import remembered
from rlalign.records.logs import Logs
from rlalign.records.remembered import Places, Remembered, keys_of
from rlalign.running import loop
from rlalign.testing import Bench, registry, session
from rlalign.testing.bench import Silence, run_until


class Closer(Component):
    """(log π − log π_ref + 0.1)²: reads two outputs of the reference."""

    trains = ("policy",)
    unit = "response"
    responses = "logged"
    scored = False
    needs = ("full_logprobs", "reference.full_logprobs", "reference.entropy")

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        gap_NT = now.full_logprobs_NT - batch.rollout.columns["reference.full_logprobs"] + 0.1
        spread = batch.mean_over_tokens(batch.rollout.columns["reference.entropy"])
        return Loss(batch.mean_over_tokens(gap_NT**2), {"spread": spread})


OWN = {"closer": Closer}
PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 10}},
    "policy": {"logits": {"hidden": 5}},
    "algorithm": "closer",
    "generation": {"max_new_tokens": 7},
    "train": {"passes": 3, "prompts": 3, "lr": 0.05},
    "checkpoints": {"every": 1, "last": 20},
}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many rows of each model and output were scored."""
    found: Counter[str] = Counter()
    score = Engine._score

    def counted(self: Engine, model: str, rollout: Any, want: Any) -> Any:
        found.update({f"{model}.{name}": len(rollout) for name in want})
        return score(self, model, rollout, want)

    monkeypatch.setattr(Engine, "_score", counted)
    return found


def test_each_response_is_scored_once(scored: Counter[str], tmp_path: Path) -> None:
    started = session(tmp_path, PIPELINE, OWN)
    started.run()
    different = {(e.prompt, r) for e in started.data.split(started.plans[0], "train") for r in e.responses}
    assert scored["reference.full_logprobs"] == scored["reference.entropy"] == len(different)
    names = sorted(path.name for path in (started.dir.path / "remembered").iterdir())
    assert [name.split("-")[0] for name in names] == ["reference.entropy", "reference.full_logprobs"]


def test_what_is_read_back_is_what_was_computed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, OWN)
    for _ in range(4):
        rollout, _ = bench.rollout()
        fresh = bench.engine.score("reference", rollout, ["full_logprobs", "entropy"])
        for name in ("full_logprobs", "entropy"):
            found, expected = rollout.columns[f"reference.{name}"], getattr(fresh, f"{name}_NT")
            mask_NT = rollout.mask_NT
            torch.testing.assert_close(found[mask_NT], expected[mask_NT], rtol=0, atol=1e-6)


def test_a_response_that_is_drawn_twice_at_once_is_scored_once(scored: Counter[str], tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, OWN)
    bench.run.draw.weights(torch.eye(len(bench.run.draw.row_starts()) - 1)[0], "example")
    rollout, _ = bench.rollout(5)
    answers = len(rollout) // 5
    assert len({e.id for e in rollout.examples}) == 1
    assert scored["reference.full_logprobs"] == answers
    found = rollout.columns["reference.full_logprobs"].split(answers)
    assert all(torch.equal(part, found[0]) for part in found)
    assert bool((found[0][rollout.mask_NT[:answers]] < 0).all())


def test_sampled_responses_are_not_kept(scored: Counter[str], tmp_path: Path) -> None:
    pipeline = {
        **PIPELINE,
        "responses": "sampled",
        "rewards": ["token-sum"],
        "train": {"iterations": 2, "prompts": 3},
    }
    started = session(tmp_path, pipeline, OWN)
    started.run()
    assert scored["reference.full_logprobs"] == 6
    assert not (started.dir.path / "remembered").exists()


def test_what_the_sampler_said_of_the_policy_is_not_scored(scored: Counter[str], tmp_path: Path) -> None:
    class Ratio(Closer):
        needs = ("logprobs", "old_logprobs", "policy.full_logprobs", "reference.full_logprobs")

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            return Loss(-batch.mean_over_tokens((now.logprobs_NT - batch.old_logprobs_NT).exp()))

    pipeline = {
        **PIPELINE,
        "algorithm": "ratio",
        "responses": "sampled",
        "rewards": ["token-sum", "kl"],
        "generation": {"max_new_tokens": 7, "temperature": 0.7},
        "train": {"iterations": 2, "prompts": 3, "epochs": 2},
    }
    session(tmp_path, pipeline, {"ratio": Ratio}).run()
    assert scored == {"reference.full_logprobs": 6}


def test_a_mix_keeps_the_logged_ones(scored: Counter[str], tmp_path: Path) -> None:
    pipeline = {
        **PIPELINE,
        "task": {"numbers": {"size": 3, "logged": [2]}},
        "responses": {"mix": {"logged": 2, "sampled": 1}},
        "rewards": ["token-sum"],
        "train": {"iterations": 4, "prompts": 3},
    }
    session(tmp_path, pipeline, OWN).run()
    assert scored["reference.full_logprobs"] == 3 * 2 + 4 * 3


def test_a_model_that_is_renewed_is_asked_again(scored: Counter[str], tmp_path: Path) -> None:
    """Two phases: the reference is the policy as the phase begins, so the second has one of its own."""
    phases = [{"name": "one", "algorithm": "closer"}, {"name": "two", "algorithm": "closer"}]
    pipeline = {**{k: v for k, v in PIPELINE.items() if k != "algorithm"}, "phases": phases}
    started = session(tmp_path, pipeline, OWN)
    started.run()
    different = {(e.prompt, r) for e in started.data.split(started.plans[0], "train") for r in e.responses}
    assert scored["reference.full_logprobs"] == 2 * len(different)
    fixed = {**pipeline, "models": {"reference": {"of": "start"}}}
    scored.clear()
    session(tmp_path, fixed, OWN, name="fixed").run()
    assert scored["reference.full_logprobs"] == len(different)


def test_what_was_computed_in_one_precision_is_not_read_in_another(
    scored: Counter[str], tmp_path: Path
) -> None:
    """Three phases over the same responses and one reference: in float32, in bfloat16, in float32 again."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"float32": [], "bfloat16": []}

    class Watcher(Closer):
        @hookimpl
        def iteration_done(self, run: Run, rollout: Rollout) -> None:
            dtype = "bfloat16" if run.phase == "two" else "float32"
            fresh = run.score("reference", rollout, ("full_logprobs",)).full_logprobs_NT
            seen[dtype].append((rollout.columns["reference.full_logprobs"], fresh))

    phases = [
        {"name": name, "algorithm": "closer", "train": {"passes": 2, "prompts": 3, "dtype": dtype}}
        for name, dtype in (("one", "float32"), ("two", "bfloat16"), ("three", "float32"))
    ]
    pipeline = {
        **{k: v for k, v in PIPELINE.items() if k not in ("algorithm", "train")},
        "phases": phases,
        "models": {"reference": {"of": "start"}},
    }
    started = session(tmp_path, pipeline, {"closer": Watcher})
    started.run()
    assert len(list((started.dir.path / "remembered").iterdir())) == 4, "two outputs, two precisions"
    for pairs in seen.values():
        assert pairs
        for found, fresh in pairs:
            torch.testing.assert_close(found, fresh, rtol=0, atol=1e-6)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_resumed_run_has_what_it_had(after: int, tmp_path: Path) -> None:
    whole = session(tmp_path, PIPELINE, OWN, name="whole")
    whole.run()
    cut = session(tmp_path, PIPELINE, OWN, name="cut")
    run_until(cut, after)
    again = loop.resume(cut.dir.path, registry(OWN), display=Silence())
    again.run()
    assert files(again) == files(whole)
    mine, theirs = again.models.policy.state_dict(), whole.models.policy.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def files(session: loop.Session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (session.dir.path / "remembered").iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_store_gives_back_the_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    store = Remembered(tmp_path, logs, "some.output", dtype)
    rows: dict[bytes, Tensor] = {bytes([i]) * 16: torch.randn(i, dtype=dtype) for i in range(9)}
    for key, values in rows.items():
        store.add(key, values)
        store.add(key, values + 1)  # known: stays as it is
    for reader in (store, Remembered(tmp_path, logs, "some.output", dtype)):
        assert not reader.knows(b"x" * 16)
        assert torch.equal(reader.read(list(rows)), torch.cat(list(rows.values())))
        twice = [bytes([3]) * 16, bytes([5]) * 16, bytes([3]) * 16]
        assert torch.equal(reader.read(twice), torch.cat([rows[key] for key in twice]))
        assert len(reader.read([])) == 0


def test_keys_tell_prompts_and_responses_apart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PIPELINE, OWN)
    rollout, _ = bench.rollout(10)
    keys = keys_of(rollout, range(len(rollout)))
    prompts = [rollout.examples[g].prompt for g in rollout.group_N.tolist()]
    assert len(set(keys)) == len(set(zip(prompts, rollout.texts, strict=True)))
    few = torch.tensor([4, 1])
    assert keys_of(rollout.take(few), range(2)) == [keys[4], keys[1]]


def test_the_same_tokens_said_by_others_are_another_response() -> None:
    """A frozen model's values stand where the policy chose, and two episodes may share all tokens but not that."""
    example = Example("0", "", responses=("", ""))
    rollout = logged_rollout(
        [example],
        [torch.zeros(1, dtype=torch.long)],
        [([1, 2, 3, 4], True)] * 2,
        like=torch.zeros(()),
        chosen=[[True, False, True, True], [True, True, False, True]],
    )
    one, other = keys_of(rollout, (0, 1))
    assert one != other


def test_places_are_found_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of keys that begin alike, end with zeros, or are not there."""
    monkeypatch.setattr(remembered, "LATELY", 7)
    drawn = torch.Generator().manual_seed(1)
    bytes_n16 = torch.randint(0, 3, (400, 16), generator=drawn, dtype=torch.uint8)
    keys = list(dict.fromkeys(row.numpy().tobytes() for row in bytes_n16))
    known, unknown = keys[:300], keys[300:]
    places = Places()
    for start, key in enumerate(known):
        assert places.get(key) is None
        places.put(key, start)
    for found in (places, Places.of(*places.told())):
        assert [found.get(key) for key in known] == list(range(300))
        assert [found.get(key) for key in unknown] == [None] * len(unknown)
    assert Places.of(*Places().told()).get(known[0]) is None
