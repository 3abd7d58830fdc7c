"""Copies that borrow a network for their adapters: whichever layers have one, and whoever changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from rlalign import Example, RLAlignError, Sampling
from rlalign_plugin_hf import Seq2SeqLM
from rlalign_plugin_hf.adapter import parameters

MakePolicy = Callable[..., Any]
HEAD = {"r": 4, "targets": ["q_proj", "lm_head"]}
TOKENS = {"r": 4, "targets": ["embed_tokens"]}


def moved(policy: Any, seed: int = 0) -> None:
    """Give its adapters other weights, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.adapter_weights().values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator).to(weight))
    policy.version += 1


def logits_of(policy: Any, rollout: Any) -> torch.Tensor:
    """Of scoring."""
    with torch.no_grad():
        found: torch.Tensor = policy.head(policy.features(rollout)).clone()
        return found


@pytest.mark.parametrize("lora", (HEAD, TOKENS), ids=("head", "tokens"))
@pytest.mark.parametrize("trained", (False, True), ids=("start", "later"))
def test_a_copy_scores_with_its_own_adapters(
    policy_of: MakePolicy, examples: Sequence[Example], lora: Any, trained: bool
) -> None:
    policy = policy_of("llama", lora=lora)
    rollout = policy.encode(examples)
    if trained:
        moved(policy)
    before = logits_of(policy, rollout)
    copy = policy.copy("frozen")
    moved(policy, 1)
    assert float((logits_of(policy, rollout) - before).abs().max()) > 0.1
    torch.testing.assert_close(logits_of(copy, rollout), before)
    how, uniforms = Sampling(samples=2, max_new_tokens=4), torch.rand(4, 2, 4, dtype=torch.float64)
    sampled = copy.sample(examples, how, uniforms)
    own = logits_of(copy, sampled).log_softmax(1).gather(1, sampled.actions_NT[sampled.chosen][:, None])[:, 0]
    torch.testing.assert_close(sampled.logprobs_NT[sampled.chosen], own, rtol=1e-4, atol=1e-5)


def test_adapters_of_an_encoder_decoder_s_embeddings_sample_as_they_score(
    folders: Mapping[str, Path], examples: Sequence[Example], tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    network: Any = AutoModelForSeq2SeqLM.from_pretrained(folders["bart"], tie_word_embeddings=False)
    network.save_pretrained(shutil.copytree(folders["bart"], tmp_path / "untied", dirs_exist_ok=True))
    said = {"path": str(tmp_path / "untied"), "lora": {"r": 4, "targets": ["q_proj", "embed_tokens"]}}
    policy = Seq2SeqLM(Seq2SeqLM.Config.model_validate_json(json.dumps(said)))
    policy.setup()
    how, uniforms = Sampling(samples=2, max_new_tokens=4), torch.rand(4, 2, 4, dtype=torch.float64)
    policy.sample(examples, how, uniforms)
    moved(policy)
    sampled = policy.sample(examples, how, uniforms)
    own = logits_of(policy, sampled).log_softmax(1).gather(1, sampled.actions_NT[sampled.chosen][:, None])
    torch.testing.assert_close(sampled.logprobs_NT[sampled.chosen], own[:, 0], rtol=1e-4, atol=1e-5)


def test_a_lagging_copy_may_be_changed_without_a_word(
    policy_of: MakePolicy, examples: Sequence[Example]
) -> None:
    """A component moves a `lagging` copy by itself, also one whose adapter did nothing until then."""
    policy = policy_of("gpt2", lora={"r": 4})
    rollout, copy = policy.encode(examples), policy.copy("lagging")
    logits_of(copy, rollout)
    moved(policy)
    with torch.no_grad():
        for mine, theirs in zip(
            copy.adapter_weights().values(), policy.adapter_weights().values(), strict=True
        ):
            mine.lerp_(theirs, 1.0)
    torch.testing.assert_close(logits_of(copy, rollout), logits_of(policy, rollout))


def test_an_adapter_of_shared_weights_is_refused(policy_of: MakePolicy) -> None:
    """Merged, it would change the embeddings with the head."""
    with pytest.raises(RLAlignError, match=r"`lm_head` shares its weights"):
        policy_of("gpt2", lora={"targets": ["c_attn", "lm_head"]})


def test_an_adapter_of_positions_is_refused(policy_of: MakePolicy) -> None:
    with pytest.raises(RLAlignError, match=r"lora.targets: `\S+embed_positions` looks up positions"):
        policy_of("bart", lora={"targets": ["q_proj", "embed_positions"]})


@pytest.mark.parametrize("lora", (HEAD, TOKENS), ids=("head", "tokens"))
def test_any_adapter_is_exported(
    policy_of: MakePolicy, examples: Sequence[Example], tmp_path: Path, lora: Any
) -> None:
    policy = policy_of("llama", lora=lora)
    assert any(lora["targets"][-1] in name for name in parameters(policy.model))
    moved(policy)
    rollout = policy.encode(examples)
    copy = policy.copy("frozen")
    moved(policy, 1)  # what is saved is the copy
    copy.save(tmp_path)
    plain = type(policy)(policy.config.model_copy(update={"path": str(tmp_path), "lora": None}))
    plain.setup()
    torch.testing.assert_close(logits_of(plain, rollout), logits_of(copy, rollout), rtol=1e-4, atol=1e-4)


def test_a_copy_that_does_nothing_is_saved_as_that(
    policy_of: MakePolicy, examples: Sequence[Example], tmp_path: Path
) -> None:
    """Without the learner's adapters, which stand in the same network."""
    policy = policy_of("gpt2", lora={"r": 4})
    start = policy.copy("frozen")
    moved(policy)
    start.save(tmp_path)
    plain = type(policy)(policy.config.model_copy(update={"path": str(tmp_path), "lora": None}))
    plain.setup()
    rollout = policy.encode(examples)
    torch.testing.assert_close(logits_of(plain, rollout), logits_of(start, rollout))


def test_a_copy_that_acts_within_another_s_acting(policy_of: MakePolicy) -> None:
    policy = policy_of("gpt2", lora={"r": 4})
    start = policy.copy("frozen")

    def off() -> list[bool]:
        return [layer.disable_adapters for layer in policy.slots._layers]

    with start.acting():
        with start.acting():
            assert all(off())
        assert all(off())
    assert not any(off())


@pytest.mark.parametrize("lora", ({}, HEAD, TOKENS), ids=("blocks", "head", "tokens"))
def test_an_adapter_alone_is_written_as_peft_reads_it(
    policy_of: MakePolicy, examples: Sequence[Example], tmp_path: Path, lora: Any
) -> None:
    """Nothing of the network goes with it."""
    from peft import PeftModel

    policy = policy_of("llama", lora={"alpha": 6, **lora, "r": 4})
    base = tmp_path / "base"
    base.mkdir()
    policy.save(base)  # its adapter does nothing yet
    moved(policy)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    policy.save_adapter(adapter)
    network = type(policy.network).from_pretrained(base, dtype=torch.float64)
    read = PeftModel.from_pretrained(network, adapter).eval()
    rollout = policy.encode(examples)
    prompt, actions_T = rollout.inputs[0], rollout.actions_NT[0, : int(rollout.length_N[0])]
    with torch.no_grad():
        theirs = read(input_ids=torch.cat([prompt, actions_T[:-1]])[None]).logits[0, len(prompt) - 1 :]
    ours = logits_of(policy, rollout.take(torch.tensor([0])))
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-5, atol=1e-5)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118
    written = sum(path.stat().st_size for path in adapter.iterdir())
    assert written < (base / "model.safetensors").stat().st_size
