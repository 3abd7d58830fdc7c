"""Whole runs on tiny models: ratios, roles, resuming, saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rlalign import Batch, Component, Example, Loss, Outputs, Run, hookimpl
from rlalign.errors import ConfigError
from rlalign.learning.engine import Engine
from rlalign.testing import run, session
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign_plugin_nlpo import NLPO
from rlalign_plugin_ppo import PPO

FAMILIES = ("gpt2", "llama", "t5", "bart", "bert2bert")
Pipeline = Callable[..., dict[str, Any]]
FULL, LORA = {}, {"lora": {"r": 3}}


class Watched:
    """Remembers the largest |log ratio| and the clip fraction of each iteration's first optimiser step."""

    @hookimpl
    def loss(self, run: Run, batch: Batch, now: Outputs) -> Loss:
        first, largest, clipped = self.__dict__.setdefault("seen", {}).get(
            run.iteration, (run.step, 0.0, 0.0)
        )
        loss: Loss = super().loss(run, batch, now)  # type: ignore[misc]
        if run.step == first:
            x_NT = torch.where(batch.rollout.mask_NT, now.logprobs_NT - batch.old_logprobs_NT, 0.0)
            (fraction,) = [v for k, v in loss.metrics.items() if k == "clip_fraction"]
            largest, clipped = max(largest, float(x_NT.detach().abs().max())), clipped + float(fraction)
            self.__dict__["seen"][run.iteration] = (first, largest, clipped)
        return loss


class Clipped(Watched, PPO):
    """`ppo`, watched."""


class Masked(Watched, NLPO):
    """`nlpo`, watched."""


EXTRA = {"clipped": Clipped, "masked": Masked}
ALGORITHMS = {"clipped": "clipped", "masked": {"masked": {"top_p": 0.8, "refresh": 1}}}


@pytest.mark.thin(2)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", FAMILIES)
def test_first_ratio_is_one_without_scoring(
    tmp_path: Path,
    pipeline_of: Pipeline,
    components: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    lora: Any,
    algorithm: str,
) -> None:
    scored: list[str] = []
    own = Engine.score

    def score(self: Engine, model: str, *args: Any) -> Outputs:
        scored.append(model)
        return own(self, model, *args)

    monkeypatch.setattr(Engine, "score", score)
    generation = {
        "samples": 4,
        "max_new_tokens": 8,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_new_tokens": 2,
    }
    train = {"iterations": 2, "prompts": 4, "epochs": 2, "minibatches": 2, "lr": 1e-3}
    pipeline = pipeline_of(
        family,
        lora,
        rewards=["evens", {"kl": {"coef": 0.1}}],
        algorithm=ALGORITHMS[algorithm],
        generation=generation,
        train=train,
    )
    finished, done = run(tmp_path, pipeline, {**components, **EXTRA})
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Watched)]
    assert len(component.seen) == 2
    for _, largest, clipped in component.seen.values():
        assert largest < 1e-5
        assert clipped == 0
    assert "policy" not in scored, "the sampler's log-probs are the old ones"
    assert sorted(scored) == ["reference", "reference", "value", "value"]
    assert finished.metrics["kl/k3"] > 1e-6, "the reference is not the policy any more"
    if algorithm == "masked":
        mask, policy = done.models["mask"], done.models.policy
        for example in components["sentences"](None).examples("train"):
            (prompt,) = policy.prompts([example])
            with torch.no_grad():
                found = [p.decoder([prompt], 1).logits() for p in (mask, policy)]  # type: ignore[attr-defined]
            torch.testing.assert_close(*found)


@pytest.mark.thin(1)
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_reference_stays_where_the_phase_began(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any
) -> None:
    """Two phases: the second's reference is what the first has learned (under LoRA: a second adapter)."""
    seen: list[torch.Tensor] = []

    class Witness(Component):
        models = {"reference": "frozen"}

        def logits(self, run: Run, name: str) -> torch.Tensor:
            policy: Any = run.models[name]
            with torch.no_grad():
                return torch.as_tensor(policy.decoder(policy.prompts([Example("x", "w1 w2")]), 1).logits())

        @hookimpl
        def phase_started(self, run: Run) -> None:
            torch.testing.assert_close(self.logits(run, "reference"), self.logits(run, "policy"))
            seen.append(self.logits(run, "reference"))

        @hookimpl
        def iteration_done(self, run: Run) -> None:
            assert torch.equal(self.logits(run, "reference"), seen[-1])
            assert not torch.allclose(self.logits(run, "policy"), seen[-1], atol=1e-4)

    pipeline = pipeline_of(family, lora)
    pipeline["algorithm"] = ["rloo", "witness"]
    pipeline["rewards"] = ["evens", {"kl": {"coef": 0.1}}]
    pipeline["train"] = {**pipeline["train"], "lr": 1e-2}
    pipeline["phases"] = [{"name": "one"}, {"name": "two"}]
    _, done = run(tmp_path, pipeline, {**components, "witness": Witness})
    assert len(seen) == 2 and not torch.allclose(seen[0], seen[1], atol=1e-4)
    reference: Any = done.models["reference"]
    if lora:
        assert reference.network is done.models.policy.network  # type: ignore[attr-defined]
        size = sum(p.numel() for p in reference.parameters())
        assert size == sum(p.numel() for p in done.models.policy.parameters() if p.requires_grad)


def test_an_untrained_adapter_is_switched_off(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("gpt2", **LORA)
    reference = policy.copy("frozen")
    assert reference.switched_off()
    with reference.acting():
        assert all(layer.disable_adapters for layer in policy.slots._layers)
    assert not any(layer.disable_adapters for layer in policy.slots._layers)
    with torch.no_grad():
        for weight in policy.adapter_weights().values():
            weight.add_(0.1)
    reference.sync(policy)
    assert not reference.switched_off()
    assert not policy.copy("lagging").switched_off()


@pytest.mark.thin(1)
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "t5"))
def test_resume_is_exact(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any
) -> None:
    """Stopped after one iteration and resumed: the same weights and metrics, to the bit. With dropout."""
    pipeline = pipeline_of(family, {**lora, "seed": 3} if lora else {})
    pipeline["rewards"] = ["evens", {"kl": {"coef": 0.1, "target": 0.1}}]
    pipeline["algorithm"] = "masked"
    pipeline["train"] = {"iterations": 3, "prompts": 4, "lr": 1e-2, "minibatches": 2, "dropout": True}
    extra = {**components, **EXTRA}
    whole = session(tmp_path, pipeline, extra, name="whole")
    whole.run()
    resumed = stopped_and_resumed(tmp_path, pipeline, extra)
    for name, model in whole.models.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, resumed.models[name].state_dict()[key]), f"{name}/{key}"
    assert logged(whole.dir.path) == logged(resumed.dir.path)
    if lora:
        kept = max((tmp_path / "runs/whole/checkpoints").iterdir()) / "models"
        whole_size = sum(p.numel() * 4 for p in whole.models.policy.parameters())
        assert (kept / "policy.safetensors").stat().st_size < whole_size / 2, "checkpoints hold adapters only"


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "t5",
        *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "bart", "bert2bert")),
    ],
)
def test_copies_in_half_precision(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str
) -> None:
    """NLPO within a bfloat16 mask, and a KL to a bfloat16 reference: exact ratios, and exact resuming."""
    pipeline = pipeline_of(family, rewards=["evens", {"kl": {"coef": 0.1}}], algorithm=ALGORITHMS["masked"])
    pipeline["train"] = {"iterations": 3, "prompts": 4, "lr": 1e-2}
    extra = {**components, **EXTRA}
    full = session(tmp_path, pipeline, extra, name="full")
    full.run()
    pipeline["models"] = {"mask": {"dtype": "bfloat16"}, "reference": {"of": "start", "dtype": "bfloat16"}}
    whole = session(tmp_path, pipeline, extra, name="whole")
    whole.run()
    (component,) = [c for c in whole.builder.built.values() if isinstance(c, Watched)]
    assert all(largest < 1e-5 and clipped == 0 for _, largest, clipped in component.seen.values())
    policy, mask, reference = (whole.models[name] for name in ("policy", "mask", "reference"))
    for name, model in whole.models.items():
        dtype = torch.bfloat16 if name in ("mask", "reference") else torch.float32
        assert {p.dtype for p in model.parameters()} == {dtype}, name
    for mine, theirs in zip(mask.parameters(), policy.parameters(), strict=True):
        assert torch.equal(mine, theirs.bfloat16()), "it has followed"
    resumed = stopped_and_resumed(tmp_path, pipeline, extra)
    for name, model in whole.models.items():
        for key, tensor in model.state_dict().items():
            found = resumed.models[name].state_dict()[key]
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), f"{name}/{key}"
    first, other = (
        json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("full", "whole")
    )
    assert first["kl/k3"] < 1e-6 and other["kl/k3"] < 1e-2, "at first the policy is the reference"
    assert reference.network is not policy.network  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ("mask", "reference"))
def test_adapters_have_no_precision_of_their_own(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, model: str
) -> None:
    pipeline = pipeline_of("gpt2", LORA, rewards=["evens", "kl"], algorithm=ALGORITHMS["masked"])
    pipeline["models"] = {model: {"dtype": "bfloat16"}}
    with pytest.raises(
        ConfigError, match=rf"models\.{model}\.dtype: copies of this policy share its network"
    ):
        session(tmp_path, pipeline, {**components, **EXTRA})


@pytest.mark.thin(1)
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_is_an_ordinary_model(
    tmp_path: Path,
    pipeline_of: Pipeline,
    components: Any,
    examples: Sequence[Example],
    family: str,
    lora: Any,
) -> None:
    pipeline = pipeline_of(family, lora)
    pipeline["train"] = {**pipeline["train"], "lr": 1e-2}
    finished, done = run(tmp_path, pipeline, components)
    folder, policy = finished.path / "model", done.models.policy
    assert sorted(f.name for f in folder.glob("*.safetensors")) == ["model.safetensors"]
    assert not (folder / "adapter_config.json").exists()
    auto = AutoModelForCausalLM if family in ("gpt2", "llama") else AutoModelForSeq2SeqLM
    plain, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    how = {"greedy": True, "max_new_tokens": 12}
    from rlalign import Sampling

    with torch.no_grad():
        rollout = policy.sample(examples, Sampling(**how), torch.full((len(examples), 1, 12), 0.5))
    for row, example in enumerate(examples):
        inputs = tokenizer(example.prompt, return_tensors="pt")
        found = plain.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)[0]
        new = found[inputs["input_ids"].shape[1] :] if family in ("gpt2", "llama") else found[1:]
        length = int(rollout.length_N[row])
        assert new.tolist() == rollout.actions_NT[row, :length].tolist()


def test_a_run_begins_with_another_one_s_model(
    tmp_path: Path, pipeline_of: Pipeline, components: Any
) -> None:
    """It measures what the other one measured last, and its reference is that model."""
    parts = {
        "rewards": ["evens", {"kl": {"coef": 0.1}}],
        "train": {"iterations": 3, "prompts": 4, "lr": 1e-2},
        "evaluate": {"examples": 3, "split": "train", "use": ["evens"]},
    }
    first, _ = run(tmp_path, pipeline_of("gpt2", **parts), components, name="first")
    model = {"path": str(first.path / "model")}
    run(tmp_path, pipeline_of("gpt2", model, **parts), components, name="second")
    rows = {name: logged(tmp_path / "runs" / name)["metrics.jsonl"] for name in ("first", "second")}
    before, after = rows["first"][-1], rows["second"][0]
    assert {n: x for n, x in before.items() if n.startswith("eval/")} == {
        n: x for n, x in after.items() if n.startswith("eval/")
    }
    assert rows["first"][0] != after
    assert abs(rows["second"][1]["kl/k1"]) < 1e-5 < abs(rows["first"][-2]["kl/k1"])


@pytest.mark.thin(1)
@pytest.mark.parametrize("trunk", ("policy", "reference", "own"))
@pytest.mark.parametrize("family", ("gpt2", "t5"))
def test_values_learn(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, trunk: str
) -> None:
    """Frozen policy, constant reward to come: the value finds it, from any trunk."""

    class FitValue(Component):
        trains = ("value",)
        models = {"reference": "frozen"}
        needs = ("values", "value.state_values")
        unit = "response"
        responses = "sampled"

        @hookimpl
        def loss(self, batch: Batch, now: Outputs) -> Loss:
            assert batch.rollout.columns["value.state_values"].shape[1] == batch.rollout.steps + 1
            return Loss(batch.mean_over_tokens((now.values_NT - 0.7) ** 2))

    pipeline = pipeline_of(family, algorithm="fit-it", models={"value": {"value-head": {"trunk": trunk}}})
    pipeline["train"] = {"iterations": 25, "prompts": 4, "lr": 1e-2}
    finished, _ = run(tmp_path, pipeline, {**components, "fit-it": FitValue})
    assert finished.metrics["loss"] < 0.1, "it was 0.49 at first"


@pytest.mark.slow
def test_a_model_learns(tmp_path: Path, pipeline_of: Pipeline, components: Any) -> None:
    pipeline = pipeline_of("gpt2")
    pipeline["generation"] = {"samples": 8, "max_new_tokens": 6}
    pipeline["train"] = {"iterations": 40, "prompts": 4, "lr": 5e-3}
    finished, _ = run(tmp_path, pipeline, components)
    assert finished.metrics["reward/evens"] > 0.9


@pytest.mark.thin(2)
@pytest.mark.parametrize("dtype", ("bfloat16", "float64"))
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", FAMILIES)
def test_other_precisions(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any, dtype: str
) -> None:
    """A whole run with a value and a reference; under autocast the weights stay float32."""
    pipeline = pipeline_of(family, lora, algorithm="clipped", rewards=["evens", {"kl": {"coef": 0.1}}])
    pipeline["train"] = {**pipeline["train"], "dtype": dtype}
    finished, done = run(tmp_path, pipeline, {**components, **EXTRA})
    kept = torch.float64 if dtype == "float64" else torch.float32
    assert {p.dtype for model in done.models.values() for p in model.parameters()} == {kept}
    assert finished.metrics["grad_norm"] > 0
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Watched)]
    for _, largest, _ in component.seen.values():
        assert largest < (0.2 if dtype == "bfloat16" else 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, algorithm: str, dtype: str
) -> None:
    """Whole runs there: on-policy at first, all weights on the device, and something learned."""
    pipeline = pipeline_of(family, algorithm=ALGORITHMS[algorithm], rewards=["evens", {"kl": {"coef": 0.1}}])
    pipeline |= {"device": "cuda", "train": {**pipeline["train"], "dtype": dtype, "epochs": 2}}
    finished, done = run(tmp_path, pipeline, {**components, **EXTRA})
    assert {p.device.type for model in done.models.values() for p in model.parameters()} == {"cuda"}
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Watched)]
    for _, largest, _ in component.seen.values():
        assert largest < (0.3 if dtype == "bfloat16" else 1e-3)
    assert finished.metrics["grad_norm"] > 0


@pytest.mark.thin(1)
@pytest.mark.parametrize("lora", (FULL, LORA), ids=("full", "lora"))
@pytest.mark.parametrize("family", FAMILIES)
def test_logged_responses(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any
) -> None:
    """Groups of three logged responses; the old log-probs are scored once, and the likely become likelier."""
    pipeline = pipeline_of(
        family, lora, algorithm={"clipped": {"whiten": "none"}}, responses="logged", rewards=["logged"]
    )
    pipeline["train"] = {"iterations": 12, "prompts": 4, "lr": 1e-2, "epochs": 2}
    _, done = run(tmp_path, pipeline, {**components, **EXTRA})
    (component,) = [c for c in done.builder.built.values() if isinstance(c, Watched)]
    assert max(largest for _, largest, _ in component.seen.values()) < 1e-4  # of log-probs far below zero
    policy = done.models.policy
    logged = policy.encode(components["sentences"](None).examples("train"))
    logprobs_NT = Engine({"policy": policy}).score("policy", logged, ["logprobs"]).logprobs_NT
    best_N, _, worst_N = (logprobs_NT.sum(1)[i::3] for i in range(3))
    assert bool((best_N > worst_N + 1).all())
