"""The attention head by the golden file's numbers, whatever the padding; what `fit-value` learns and tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlalign import ComponentError, Rollout
from rlalign.records import logs
from rlalign.records.weights import fingerprint
from rlalign.running import loop
from rlalign.testing import Bench, ValueTests, session
from rlalign_plugin_a_lol import AttentionValue, fit_quality

from .conftest import FreeValue

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())["value_head"]
MODELS = "pkg:rlalign_plugin_toy_tasks/models"
CAUSAL: dict[str, Any] = {
    "task": {"toy-reviews": {"size": 60}},
    "policy": {"causal-lm": {"path": f"{MODELS}/toy-reviews"}},
    "rewards": ["toy-sentiment"],
    "models": {"value": {"attention-value": {"min": -1.0, "heads": 4}}},
    "algorithm": {"fit-value": {"epochs": 4}},
    "generation": {"samples": 4, "max_new_tokens": 12},
    "train": {"iterations": 1, "prompts": 30, "minibatches": 5, "lr": 3e-3},
}
SEQ2SEQ = {
    **CAUSAL,
    "task": {"toy-keywords": {"size": 60}},
    "policy": {"seq2seq-lm": {"path": f"{MODELS}/toy-keywords"}},
    "rewards": ["toy-coverage"],
    "models": {"value": {"attention-value": {"heads": 4}}},
}


class _Wide(nn.Module):
    """Only the width of a policy, a weight of it, and where it is."""

    device = torch.device("cpu")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))


class _Rows:
    """Only the groups of a rollout."""

    def __init__(self, count: int) -> None:
        self.group_N = torch.arange(count)


def _waves(shift: float, rows: int, columns: int) -> Tensor:
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return 0.3 * torch.sin(shift + i * columns + j).double()


def golden_head(**options: Any) -> AttentionValue:
    """The head with the golden file's weights."""
    width = GOLDEN["hidden"]
    head = AttentionValue(AttentionValue.Config(heads=GOLDEN["heads"], **options))
    head.setup(_Wide(width))  # type: ignore[arg-type]
    with torch.no_grad():
        head.query.copy_(0.5 * torch.cos(torch.arange(width).double()))
        head.attention.in_proj_weight.copy_(torch.cat([_waves(s, width, width) for s in (1, 2, 3)]))
        head.attention.in_proj_bias.zero_()
        head.attention.out_proj.weight.copy_(_waves(4, width, width))
        head.attention.out_proj.bias.zero_()
        head.out.weight.copy_(_waves(5, 1, width))
        head.out.bias.fill_(0.1)
    return head.eval()


def golden_states() -> Tensor:
    b, t, j = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(8), indexing="ij")
    return 0.5 * torch.cos((100 * b + 8 * t + j).double())


def seen(head: AttentionValue, states: Tensor, real: Tensor) -> list[float]:
    rollout: Rollout = _Rows(len(states))  # type: ignore[assignment]
    found: list[float] = head.values(rollout, (states, real)).tolist()
    return found


def test_golden_head() -> None:
    states, real = golden_states(), torch.tensor(GOLDEN["pad_mask"]) > 0
    everything = torch.ones_like(real)
    assert seen(golden_head(), states, everything) == pytest.approx(
        GOLDEN["value_no_padding_mask_max1"], abs=1e-9
    )
    assert seen(golden_head(max=5.0), states, everything) == pytest.approx(
        GOLDEN["value_no_padding_mask_max5"], abs=1e-9
    )
    assert seen(golden_head(), states, real) == pytest.approx(
        GOLDEN["value_with_padding_mask_max1"], abs=1e-9
    )
    shifted = [2 * v - 1 for v in GOLDEN["value_with_padding_mask_max1"]]
    assert seen(golden_head(min=-1.0), states, real) == pytest.approx(shifted, abs=1e-9)


def test_padding_is_not_seen() -> None:
    head, states = golden_head(), golden_states()
    real = torch.ones(2, 4, dtype=torch.bool)
    before = seen(head, states, real)
    for side in (0, 1):
        junk, none = torch.full((2, 3, 8), 7.0, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
        more = torch.cat([(junk, states)[side], (states, junk)[side]], 1)
        mask = torch.cat([(none, real)[side], (real, none)[side]], 1)
        assert seen(head, more, mask) == pytest.approx(before, abs=1e-12)


def test_dropout_acts_only_in_training() -> None:
    head, states = golden_head(dropout=0.5), golden_states()
    real = torch.ones(2, 4, dtype=torch.bool)
    assert seen(head, states, real) == seen(head, states, real)
    head.train()
    assert seen(head, states, real) != seen(head, states, real)


@pytest.mark.parametrize("pipeline", [CAUSAL, SEQ2SEQ], ids=["causal", "seq2seq"])
def test_a_prompt_alone_has_the_value_it_has_in_a_batch(pipeline: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline)
    examples = bench.phase.draw.next(6)
    cut = [" ".join(str(e.prompt).split()[: 1 + i]) for i, e in enumerate(examples)]
    texts = [replace(e, prompt=prompt, row=-1) for e, prompt in zip(examples, cut, strict=True)]
    rollout = bench.session.models.policy.encode(texts)
    together = bench.engine.score("value", rollout, ["values"]).values_NT[:, 0]
    assert len(set(map(len, rollout.inputs))) > 1, "prompts of several lengths"
    assert float(together.std()) > 0
    for i in range(0, len(rollout), 3):
        alone = bench.engine.score("value", rollout.take(torch.tensor([i])), ["values"]).values_NT[0, 0]
        assert float(alone) == pytest.approx(float(together[i]), abs=1e-5)


@pytest.mark.parametrize("pipeline", [CAUSAL, SEQ2SEQ], ids=["causal", "seq2seq"])
def test_the_head_can_fit_and_moves_nothing_else(pipeline: dict[str, Any], tmp_path: Path) -> None:
    """Eight prompts to an error below 10⁻³; policy and reference stay as they are, to the bit."""
    bench = Bench(tmp_path, {**pipeline, "train": {**pipeline["train"], "prompts": 8}})
    models = bench.session.models
    prompts = {str(e.prompt): e for e in bench.phase.draw.next(40)}
    rollout = models.policy.encode([prompts[p] for p in sorted(prompts)[:8]])
    rollout = rollout.take(rollout.groups()[0][:, 0])
    before = {name: fingerprint(models[name]) for name in ("policy", "reference")}
    value = models["value"]
    assert isinstance(value, AttentionValue)
    least = value.config.min
    target = least + (1 - least) * torch.linspace(0.1, 0.9, len(rollout))
    adam = torch.optim.Adam(value.parameters(), lr=3e-3)
    states = bench.engine.policy("reference").prompt_states(rollout)
    for _ in range(500):
        adam.zero_grad()
        found = value.values(rollout, (states[0].detach(), states[1]))
        loss = ((found - target) ** 2).mean()
        loss.backward()
        adam.step()
    assert float(loss.detach()) < 1e-3
    assert bool(((found > least) & (found < 1)).all())
    assert {name: fingerprint(models[name]) for name in before} == before


def test_engine_and_plain_graph_agree(tmp_path: Path) -> None:
    from rlalign.testing.bench import plain_gradient

    bench = Bench(tmp_path, {**CAUSAL, "train": {**CAUSAL["train"], "prompts": 6, "dtype": "float64"}})
    batch = bench.batch()
    loss, expected = plain_gradient(bench, batch)
    for route, budget, chunk in (("A", 10**9, 10**9), ("T", 60, 16)):
        metrics, found = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
        assert metrics["loss"] == pytest.approx(loss["loss"], abs=1e-9)
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-9)


# -- fit-value -------------------------------------------------------------------------------------------------

FREE: dict[str, Any] = {
    "task": {"numbers": {"size": 40, "prompts": 40}},
    "policy": {"logits": {"prompts": 40, "responses": 1, "steps": 5}},
    "rewards": ["token-sum"],
    "models": {"value": {"free-value": {"prompts": 40}}},
    "generation": {"samples": 8, "max_new_tokens": 5},
    "train": {"iterations": 1, "prompts": 40, "dtype": "float64", "lr": 0.1},
}


def fitted(folder: Path, **options: Any) -> tuple[dict[str, Any], loop.Session]:
    started = session(folder, {**FREE, "algorithm": {"fit-value": options}}, {"free-value": FreeValue})
    started.run()
    (line,) = [x for x in logs.read(started.dir.path / "metrics.jsonl") if "responses" in x]
    return line, started


def test_free_numbers_say_nothing_of_other_prompts(tmp_path: Path) -> None:
    """What was set aside stays at 0: no epoch betters it, so the first weights are kept."""
    line, started = fitted(tmp_path, held_out=0.25)
    free = started.models["value"].free
    assert not free.any()
    assert line["fit-value/epochs"] == 2


def test_each_iteration_sets_other_prompts_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlalign_plugin_a_lol import FitValue

    aside: list[set[str]] = []
    monkeypatch.setattr(
        FitValue, "_mse", lambda self, run, batch: aside.append({e.id for e in batch.rollout.examples}) or 1.0
    )
    bench = Bench(tmp_path, {**FREE, "algorithm": {"fit-value": {"patience": 1}}}, {"free-value": FreeValue})
    for _ in range(2):
        bench.iterate()
    first, again, second, _ = aside
    assert first == again != second
    assert len(first) == len(second) == 8


def test_r2_by_hand(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**FREE, "algorithm": "fit-value"}, {"free-value": FreeValue})
    batch = bench.batch()
    total_N, group_N = batch.reward.total_N, batch.rollout.group_N
    found = fit_quality(total_N, group_N, float((total_N**2).mean()))
    variance = float(total_N.var(correction=0))
    assert found["r2"] == pytest.approx(1 - float((total_N**2).mean()) / variance, abs=1e-9)
    within = sum(float(total_N[group_N == g].var()) for g in range(40)) / 40
    assert found["r2_most"] == pytest.approx(1 - within / variance, abs=1e-9)


def test_early_stopping_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlalign_plugin_a_lol import FitValue

    errors = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 9.0])
    seen: list[Tensor] = []

    def error(self: FitValue, run: Any, batch: Any) -> float:
        seen.append(run.models["value"].free.detach().clone())
        return next(errors)

    monkeypatch.setattr(FitValue, "_mse", error)
    line, started = fitted(tmp_path, patience=3)
    assert line["fit-value/mse"] == 3.0
    assert line["fit-value/epochs"] == 5
    assert torch.equal(started.models["value"].free, seen[2])
    assert not torch.equal(seen[2], seen[-1])


def test_rewards_out_of_range_are_refused(tmp_path: Path) -> None:
    started = session(tmp_path, {**CAUSAL, "models": {"value": {"attention-value": {"heads": 4}}}}, {})
    with pytest.raises(ComponentError, match=r"rewards lie outside \[0, 1\].*set its `min` and `max`"):
        started.run()


def test_too_few_prompts_to_set_aside(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="of 40 prompts, 1 would be set aside"):
        fitted(tmp_path, held_out=0.03)


class TestAttentionValue(ValueTests):
    component = "attention-value"
    options = {"min": -1.0, "heads": 4}
    pipeline = {name: CAUSAL[name] for name in ("task", "policy", "rewards")}
