"""ReST, RAFT and mixed sources: phases, filters and lists; no method of their own."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rlalign import Example, Task
from rlalign.running.loop import Session

from .conftest import Runs, component, metrics
from .methods import same


class Demonstrations(Task):
    """Three prompts, each with a logged response; one of them earns exactly 0.9."""

    def examples(self, split: str) -> Sequence[Example]:
        logged = (("4 5", 0.9), ("1 2", 0.3), ("5 5 3", 1.3))
        return [
            Example(id=f"demo-{i}", prompt=str(i), responses=(text,), scores=(score,))
            for i, (text, score) in enumerate(logged)
        ]


def improve(name: str, threshold: float, lr: float) -> dict[str, Any]:
    return {
        "name": name,
        "task": {"from": "grow", "with": ["original"]},
        "rewards": [],
        "algorithm": [
            "sft",
            {"at-least": {"threshold": threshold, "strict": True}},
            {"watch": {}, "as": f"see-{name}"},
        ],
        "train": {"passes": 8, "prompts": 27, "iterations": None, "lr": lr},
    }


REST: dict[str, Any] = {
    "task": "demonstrations",
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 7}},
    "rewards": ["token-sum"],
    "phases": [
        {
            "name": "grow",
            "algorithm": ["collect", {"watch": {}, "as": "see-grow"}],
            "train": {"iterations": 8},
        },
        improve("improve-1", 0.6, 0.2),
        improve("improve-2", 0.9, 0.1),
    ],
    "repeat": 2,
    "generation": {"samples": 4, "max_new_tokens": 4, "temperature": 0.8},
    "train": {"prompts": 3},
}


def _rows(session: Session, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (session.dir.path / f"rows/{name}.jsonl").read_text().splitlines()]


def test_rest(runs: Runs, calls: Counter[str]) -> None:
    session = runs(REST, demonstrations=Demonstrations)
    lines = metrics(session)
    phases = [(line["repeat"], line["phase"]) for line in lines]
    assert phases == [(r, p) for r in range(2) for p in ["grow"] * 8 + ["improve-1"] * 8 + ["improve-2"] * 8]
    assert calls == {"sample": 16}  # growing samples, improving does not, and nothing else is computed
    assert {line["lr"] for line in lines if line["phase"] == "improve-1"} == {0.2}
    assert {line["lr"] for line in lines if line["phase"] == "improve-2"} == {0.1}

    grown = [_rows(session, f"grow-{i}") for i in (1, 2)]
    assert [len(rows) for rows in grown] == [24, 24]
    assert grown[0] != grown[1]

    # Every improvement reads its own pass's rows and the original data, keeps what exceeds the threshold,
    # and the second's kept set lies within the first's.
    seen = {name: component(session, f"see-improve-{name}").batches for name in (1, 2)}
    for again in range(2):
        samples = [
            (r["prompt"], t, s)
            for r in grown[again]
            for t, s in zip(r["responses"], r["scores"], strict=True)
        ]
        demos = [
            (e.prompt, e.responses[0], e.scores[0]) for e in Demonstrations(Task.Config()).examples("train")
        ]
        kept = {}
        for name, threshold in ((1, 0.6), (2, 0.9)):
            batches = seen[name][8 * again : 8 * again + 8]
            kept[name] = [row for batch in batches for row in _triples(batch)]
            expected = [row for row in samples + demos if row[2] > torch.tensor(threshold)]
            assert Counter(kept[name]) == Counter(_rounded(expected * 8))
        assert Counter(kept[2]) <= Counter(kept[1])
        assert any(row[2] == pytest.approx(0.9) for row in kept[1])
        assert not any(row[2] == pytest.approx(0.9) for row in kept[2])  # > 0.9 is not ≥ 0.9
    assert _mean_score(grown[1]) > _mean_score(grown[0]) + 0.2


def _triples(batch: Any) -> list[tuple[Any, ...]]:
    rollout = batch.rollout
    prompts = [rollout.examples[g].prompt for g in rollout.group_N.tolist()]
    return _rounded(zip(prompts, rollout.texts, batch.reward.total_N.tolist(), strict=True))


def _rounded(rows: Any) -> list[tuple[Any, ...]]:
    return [(prompt, text, round(score, 5)) for prompt, text, score in rows]


def _mean_score(rows: list[dict[str, Any]]) -> float:
    scores = [s for row in rows for s in row["scores"]]
    return sum(scores) / len(scores)


SAMPLED: dict[str, Any] = {
    "task": {"numbers": {"size": 12, "prompts": 3, "logged": [2], "longest": 3, "vocabulary": 5}},
    "policy": {"logits": {"prompts": 3, "responses": 1, "steps": 4, "vocabulary": 6}},
    "rewards": ["token-sum"],
    "generation": {"samples": 4, "max_new_tokens": 4},
    "train": {"iterations": 20, "prompts": 12, "lr": 0.2},
}


def test_raft_is_sft_on_the_best(runs: Runs) -> None:
    session = runs({**SAMPLED, "algorithm": ["sft", "best-of", "watch"], "responses": "sampled"})
    lines = metrics(session)
    assert lines[-1]["reward/token-sum"] > lines[0]["reward/token-sum"] + 0.5
    for batch, line in zip(component(session, "watch").batches, lines, strict=True):
        assert len(batch) == len(batch.rollout.examples) == 12
        assert float(batch.reward.total_N.mean()) > line["reward/total"]
        assert line["responses"] == 48


def test_an_items_source_is_all_it_sees(runs: Runs) -> None:
    """SFT on the log and a policy gradient on the samples of the same groups, against each alone."""
    mixed = {
        **SAMPLED,
        "responses": {"mix": {"logged": 1, "sampled": 3}},
        "algorithm": [
            {"sft": {}, "source": "logged"},
            {"policy-gradient": {}, "source": "sampled", "weight": 0.5},
            "watch",
        ],
        "train": {**SAMPLED["train"], "iterations": 1, "budget": 40, "dtype": "float64"},
    }
    session = runs(mixed)
    (line,) = metrics(session)
    watch = component(session, "watch")
    rollout = watch.batches[0].rollout
    assert Counter(rollout.columns["source"]) == {"logged": 12, "sampled": 36}
    rows_GK, real_GK = rollout.groups()
    assert rows_GK.shape == (12, 4) and bool(real_GK.all())

    # By hand, from the first weights: token mean over the logged rows, response mean over the sampled ones.
    free = watch.started[0]["policy"]["free"].clone().requires_grad_()
    prompt_N = torch.cat(list(rollout.inputs))[rollout.group_N]
    logp_NTV = free[prompt_N, : rollout.steps].log_softmax(-1)
    logp_NT = logp_NTV.gather(2, rollout.actions_NT[..., None])[..., 0]
    logged_N = torch.tensor([name == "logged" for name in rollout.columns["source"]])
    sft = -logp_NT[rollout.mask_NT & logged_N[:, None]].mean()
    per_response_N = torch.where(rollout.mask_NT, logp_NT, 0.0).sum(1) * watch.batches[0].reward.total_N
    gradient = -per_response_N[~logged_N].mean()
    assert line["sft/loss"] == pytest.approx(sft.item(), rel=1e-12)
    assert line["policy-gradient/loss"] == pytest.approx(gradient.item(), rel=1e-12)
    assert line["loss"] == pytest.approx((sft + 0.5 * gradient).item(), rel=1e-12)


def test_rows_of_one_source_keep_what_only_they_have(runs: Runs) -> None:
    """A column over the logged data stands beside sampled rows as NaN."""
    mixed = {
        **SAMPLED,
        "responses": {"mix": {"logged": 1, "sampled": 3}},
        "algorithm": [{"a-lol": {"draw": False}, "source": "logged"}, "watch"],
        "models": {"value": "prompt-value"},
        "train": {**SAMPLED["train"], "iterations": 2},
    }
    session = runs(mixed)
    for batch in component(session, "watch").batches:
        logged_N = torch.tensor([name == "logged" for name in batch.rollout.columns["source"]])
        assert torch.equal(batch.rollout.columns["advantage"].isnan(), ~logged_N)
        torch.testing.assert_close(
            batch.rollout.columns["advantage"][logged_N], batch.reward.total_N[logged_N]
        )


def test_a_phase_that_only_collects_changes_nothing(runs: Runs) -> None:
    phases = [{**REST["phases"][0], "algorithm": ["collect", "watch"]}]
    session = runs({**REST, "phases": phases, "repeat": 1}, demonstrations=Demonstrations)
    watch = component(session, "watch")
    assert same(watch.started[0]["policy"], session.models["policy"].state_dict())
    assert session.step == 0
    assert len(_rows(session, "grow-1")) == 24  # for whoever reads them: `rlalign export --samples`


def test_what_was_grown_is_read_as_it_is_needed(runs: Runs) -> None:
    """Only 8 bytes an example stay in memory."""
    grown = {**REST["phases"][0], "algorithm": "collect", "train": {"iterations": 10, "prompts": 300}}
    reads = {**improve("improve", 0.6, 0.1), "algorithm": "sft", "train": {"iterations": 2, "prompts": 27}}
    session = runs({**REST, "phases": [grown, reads], "repeat": 1}, demonstrations=Demonstrations)
    tracemalloc.start()
    try:
        data = session.data.training(session.plans[1], 0)
        assert [e.id for e in data][-4:] == [data[2999].id, "demo-0", "demo-1", "demo-2"]
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        data = session.data.training(session.plans[1], 0)
        assert sum(len(e.responses) for e in data) == 4 * 3000 + 3
        assert tracemalloc.get_traced_memory()[1] < 3000 * 60
    finally:
        tracemalloc.stop()
    assert data[-1].id == "demo-2" and len(data) == 3003
