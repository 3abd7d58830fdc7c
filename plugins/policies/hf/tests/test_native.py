"""The native steps against transformers: each family and what its configurations vary, in float32."""

from __future__ import annotations

import gc
import json
import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from rlalign import Example, Nucleus, Rollout, Sampling
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign.records.weights import hold
from rlalign_plugin_hf import CausalLM, Seq2SeqLM
from rlalign_plugin_hf.batches import left_padded, right_padded
from rlalign_plugin_hf.causal import CausalDecoder
from rlalign_plugin_hf.native import choice, layers
from rlalign_plugin_hf.native.attention import hiding
from rlalign_plugin_hf.native.decoder import ROOM, NativeDecoder, SharedCausalDecoder, refresh
from rlalign_plugin_hf.native.gpt2 import GPT2
from rlalign_plugin_hf.testing import WORDS, tiny_model

V = len(WORDS)
GPT: Mapping[str, Any] = {
    "vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ROTARY: Mapping[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
T5S: Mapping[str, Any] = {
    "vocab_size": V, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "decoder_start_token_id": 0,
    "pad_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
BARTS: Mapping[str, Any] = {
    "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
    "init_std": 0.3, "decoder_start_token_id": 2, "forced_eos_token_id": None, "bos_token_id": 1, "eos_token_id": 0,
    "pad_token_id": 3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
NETWORKS: Mapping[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT)),
    "gpt2 untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT, tie_word_embeddings=False, n_inner=40)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY)),
    "llama tied, biases": lambda: LlamaForCausalLM(
        LlamaConfig(**ROTARY, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12)
    ),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY, rope_parameters=LLAMA3)),
    "llama, yarn": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY, rope_parameters=YARN)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**ROTARY)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**ROTARY, head_dim=12)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5S)),
    "t5 gated, untied": lambda: T5ForConditionalGeneration(
        T5Config(**T5S, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1)
    ),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**T5S)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BARTS)),
    "bart scaled": lambda: BartForConditionalGeneration(BartConfig(**BARTS, scale_embedding=True)),
}
MakePolicy = Callable[..., Any]


def made(name: str, network: Any = None) -> Any:
    """A network whose biases and norms are no longer zeros and ones."""
    torch.manual_seed(0)
    network = NETWORKS[name]() if network is None else network()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if hasattr(network, "final_logits_bias"):
            network.final_logits_bias.copy_(torch.randn(1, V))
    return network


@pytest.fixture
def policy_from(tmp_path: Path) -> MakePolicy:
    """policy_from("qwen3", lora={"r": 4}), or of a network of one's own."""

    def make(name: str, network: Any = None, new_tokens: int = 0, **options: Any) -> Any:
        causal = not name.startswith(("t5", "mt5", "bart"))
        words = tiny_model(
            tmp_path / "words", "causal-lm"
        )  # a tokenizer apart: some configs ask for their own kind
        made(name, network).save_pretrained(folder := tmp_path / name)
        options = {"path": str(folder), "tokenizer": str(words), **options}
        cls = CausalLM if causal else Seq2SeqLM
        policy = cls(cls.Config.model_validate_json(json.dumps(options)))
        policy.new_tokens = new_tokens
        policy.setup()
        return policy

    return make


def words(count: int) -> str:
    return " ".join(f"w{(3 * i + 2) % 20}" for i in range(count))


def sampled(policy: Any, lengths: tuple[int, ...], how: Sampling, within: Any = None) -> Rollout:
    examples = [Example(str(i), words(length)) for i, length in enumerate(lengths)]
    u = Seeds(0).uniforms("t", positions=range(len(examples)), samples=how.samples, steps=how.max_new_tokens)
    with torch.no_grad():
        found: Rollout = policy.sample(examples, how, u, within)
    return found


def assert_exact(policy: Any, rollout: Rollout, atol: float = 1e-5) -> None:
    """Log-probs are those of transformers' own forward of each row, unpadded and without a cache."""
    for row in range(len(rollout)):
        actions = rollout.actions_NT[row, : int(rollout.length_N[row])]
        with torch.no_grad():
            logits = policy.own_logits(rollout.inputs[int(rollout.group_N[row])], actions)
        own = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        torch.testing.assert_close(rollout.full_logprobs_NT[row, : len(own)], own, atol=atol, rtol=0)


def decoder_of(policy: Any) -> Any:
    return policy.decoder(policy.prompts([Example("a", words(3))]), 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_families_are_exact_natively(policy_from: MakePolicy, name: str) -> None:
    """Beside prompts that are longer by 0, 1, 4 and 8 tokens; greedy responses are those of `generate`."""
    policy = policy_from(name)
    assert str(policy.decoding).startswith("by the native")
    assert isinstance(decoder_of(policy), NativeDecoder)
    for pads in (0, 1, 4, 8):
        rollout = sampled(policy, (2, 2 + pads), Sampling(samples=3, max_new_tokens=14))
        assert_exact(policy, rollout)
    greedy = sampled(policy, (1, 4, 8, 9), Sampling(greedy=True, max_new_tokens=12))
    for row, prompt in enumerate(greedy.inputs):
        found = policy.network.generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False,
            max_new_tokens=12, eos_token_id=0, pad_token_id=0,
        )[0]  # fmt: skip
        expected = found[len(prompt) if policy.kind == "causal" else 1 :]
        assert greedy.actions_NT[row, : int(greedy.length_N[row])].tolist() == expected.tolist()


@pytest.mark.parametrize("name", ("gpt2", "qwen3", "t5", "bart"))
def test_responses_outgrow_their_buffers(policy_from: MakePolicy, name: str) -> None:
    policy = policy_from(name)
    rollout = sampled(policy, (2, 5), Sampling(samples=2, max_new_tokens=ROOM + 10, min_new_tokens=ROOM + 9))
    assert int(rollout.length_N.min()) > ROOM
    assert_exact(policy, rollout, atol=5e-5)


@pytest.mark.parametrize("name", ("gpt2", "qwen3", "t5", "bart"))
def test_rows_may_stand_at_columns_of_their_own(policy_from: MakePolicy, name: str) -> None:
    """The step that a captured graph runs: columns are a tensor, and a bias hides what comes after them."""
    policy = policy_from(name)
    family, L = policy.decoding.native(policy, []), 16
    prompts = [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([10, 11])]
    actions_nT = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        own = torch.stack([policy.own_logits(p, a) for p, a in zip(prompts, actions_nT, strict=True)])
        cross = None
        if policy.kind == "causal":
            ids_nP, real_nP = right_padded(prompts, 0)
        else:
            states, mask = policy.encoded(prompts)
            cross = family.cross(states, mask.bool())
            ids_nP, real_nP = torch.tensor([policy._begin] * 2), torch.ones(2, 1, dtype=torch.bool)
        columns = family.columns(2, L)
        hidden = family.prefill(columns, ids_nP, real_nP, cross)
        column_n = real_nP.sum(1)
        for t in range(4):
            torch.testing.assert_close(family.logits(hidden), own[:, t], atol=2e-5, rtol=0)
            bias = hiding(torch.arange(L) <= column_n[:, None], family.dtype)
            hidden = family.step(columns, actions_nT[:, t], column_n, column_n, bias, cross)
            column_n = column_n + 1


@pytest.mark.parametrize("name", ("gpt2", "qwen3"))
def test_long_prompts_are_shared(policy_from: MakePolicy, name: str) -> None:
    """While rows and whole prompts leave, and where one prompt was drawn twice; no token differs from the loop's."""
    policy, how = policy_from(name), Sampling(samples=3, max_new_tokens=30)
    lengths = (90, 97, 90, 98, 5)
    prompts = policy.prompts([Example("a", words(length)) for length in lengths])
    assert isinstance(policy.decoder(prompts, 3), SharedCausalDecoder)
    assert not isinstance(policy.decoder(prompts, 1), SharedCausalDecoder)
    rollout = sampled(policy, lengths, how)
    assert len(set(rollout.length_N.tolist())) > 4
    assert_exact(policy, rollout)
    policy.decoding._family = None
    assert torch.equal(sampled(policy, lengths, how).actions_NT, rollout.actions_NT)


def test_each_prompt_is_read_once(policy_from: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, read = policy_from("gpt2"), []
    own = GPT2.prefill

    def prefill(self: GPT2, columns: Any, ids_nP: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read.append(tuple(ids_nP.shape))
        return own(self, columns, ids_nP, *args, **kwargs)

    monkeypatch.setattr(GPT2, "prefill", prefill)
    sampled(policy, (3, 7, 3, 3), Sampling(samples=4, max_new_tokens=3))
    assert read == [(2, 7)]


def test_a_constraint_of_a_copy_is_decoded_natively(policy_from: MakePolicy) -> None:
    policy = policy_from("llama")
    mask = policy.copy("lagging")
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert isinstance(decoder_of(mask), NativeDecoder)
    within = Nucleus("mask", top_p=0.7)
    within.resolve({"mask": mask})
    native = sampled(policy, (2, 6), Sampling(samples=4, max_new_tokens=8), within)
    for model in (policy, mask):
        model.decoding._family = None
    generic = sampled(policy, (2, 6), Sampling(samples=4, max_new_tokens=8), within)
    assert torch.equal(native.actions_NT, generic.actions_NT)
    assert native.allowed is not None and generic.allowed is not None
    assert torch.equal(native.allowed.mask(*native.chosen), generic.allowed.mask(*generic.chosen))


# -- weights -------------------------------------------------------------------------------------------


def moved(policy: Any) -> None:
    """An update as the core makes it: fused, which leaves no trace on tensors, and the version raised."""
    chosen = [p for p in policy.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(chosen, lr=0.03, fused=True)
    torch.manual_seed(1)
    for parameter in chosen:
        parameter.grad = torch.randn_like(parameter)
    adam.step()
    policy.version += 1
    policy.zero_grad()


@pytest.mark.parametrize("lora", (None, {"r": 4, "alpha": 8}), ids=("full", "lora"))
@pytest.mark.parametrize("name", ("gpt2", "qwen2", "t5", "bart"))
def test_updates_are_seen_and_nothing_is_changed(policy_from: MakePolicy, name: str, lora: Any) -> None:
    """Adapters are merged into copies: what is trained stays what it was, to the bit."""
    policy = policy_from(name, lora=lora)
    frozen = policy.copy("frozen")
    how = Sampling(samples=3, max_new_tokens=8)
    first = sampled(policy, (2, 5), how)
    for _ in range(2):
        moved(policy)
        before = {key: weight.clone() for key, weight in policy.state_dict().items()}
        rollout = sampled(policy, (2, 5), how)
        assert all(torch.equal(weight, before[key]) for key, weight in policy.state_dict().items())
        again = Engine({"policy": policy}).score("policy", rollout, ("logprobs",))
        off = (again.logprobs_NT - rollout.logprobs_NT)[rollout.mask_NT].abs().max()
        assert off < 1e-5
        assert_exact(policy, rollout) if lora is None else None
    still = sampled(frozen, (2, 5), how)
    assert torch.equal(still.actions_NT, first.actions_NT)
    torch.testing.assert_close(still.logprobs_NT, first.logprobs_NT, atol=2e-6, rtol=0)
    assert isinstance(decoder_of(frozen), NativeDecoder)


def test_copies_with_adapters_of_their_own(policy_from: MakePolicy) -> None:
    """The learner's weights, a lagging copy's and the bare network's, one after the other on one network."""
    policy = policy_from("llama", lora={"r": 4})
    start = policy.copy("frozen")
    moved(policy)
    lagging = policy.copy("lagging")
    moved(policy)
    how = Sampling(samples=2, max_new_tokens=6)
    for _ in range(2):
        for model in (policy, start, lagging):
            assert isinstance(decoder_of(model), NativeDecoder)
            rollout = sampled(model, (2, 5), how)
            again = Engine({"policy": model}).score("policy", rollout, ("logprobs",))
            assert float((again.logprobs_NT - rollout.logprobs_NT)[rollout.mask_NT].abs().max()) < 1e-5
        lagging.sync(policy)
    assert torch.equal(sampled(lagging, (2,), how).actions_NT, sampled(policy, (2,), how).actions_NT)


@pytest.mark.parametrize("name", ("qwen2", "t5 gated, untied", "bart"))
def test_joint_weights_are_the_parameters(policy_from: MakePolicy, tmp_path: Path, name: str) -> None:
    """No copies in the network's precision; what is saved, copied and loaded is what it was."""
    policy = policy_from(name)
    policy.decoder(policy.prompts([Example("a", words(3))]), 2)
    for model in (policy, policy.copy("frozen"), policy.copy("frozen").double()):
        model.decoding.native(model, [])
        copies = model.decoding._family._weights._copies
        assert {key for key in copies if not isinstance(key, str)} == set()
        assert isinstance(decoder_of(model), NativeDecoder)
        copies = model.decoding._family._weights._copies
        assert {key for key in copies if not isinstance(key, str)} == set()
    policy.save(tmp_path / "saved")
    cls = AutoModelForCausalLM if policy.kind == "causal" else type(policy.network)
    saved = cls.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(weight, saved[key]) for key, weight in policy.network.state_dict().items())


def test_half_precision_has_copies_that_follow(policy_from: MakePolicy) -> None:
    """Matrices are multiplied in bfloat16, sums and norms stay in float32; addresses stay too."""
    policy = policy_from("qwen2")
    how, places = Sampling(samples=3, max_new_tokens=8), []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rollout = sampled(policy, (2, 5), how)
        family = policy.decoding._family
        assert family.dtype == torch.bfloat16
        assert family.columns(1, 1).both.dtype == torch.bfloat16
        places.append([layer.qkv.weight_IO.data_ptr() for layer in family._blocks])
        again = Engine({"policy": policy}).score("policy", rollout, ("logprobs",))
        off_NT = (again.logprobs_NT - rollout.logprobs_NT)[rollout.mask_NT].abs()
        assert 0 < float(off_NT.mean()) < 0.03
        moved(policy)
    assert places[0] == places[1]


# -- what is not decoded natively -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "network", "why"),
    [
        (
            "gpt2",
            lambda: GPT2LMHeadModel(GPT2Config(**GPT, scale_attn_by_inverse_layer_idx=True)),
            "scaled by layer",
        ),
        (
            "gpt2",
            lambda: GPT2LMHeadModel(GPT2Config(**GPT, activation_function="tanh")),
            "activation is `tanh`",
        ),
        (
            "llama",
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    **ROTARY, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
                )
            ),
            "of the type `dynamic`",
        ),
    ],
)
def test_what_is_not_computed_here(policy_from: MakePolicy, name: str, network: Any, why: str) -> None:
    policy = policy_from(name, network)
    assert str(policy.decoding).startswith("by transformers' forward: ")
    assert why in str(policy.decoding)
    assert_exact(policy, sampled(policy, (2, 6), Sampling(samples=2, max_new_tokens=6)))


def test_a_window_that_no_row_outgrows(policy_from: MakePolicy) -> None:
    """How long rows become is known from the prompt and what the run asks for; else transformers decides."""
    network = lambda: MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=12))  # noqa: E731
    unknown, policy = (policy_from("mistral", network, new_tokens=n) for n in (0, 8))
    assert "no longer than 12 tokens" in str(policy.decoding)
    prompts = {n: policy.prompts([Example("a", words(n))]) for n in (4, 5)}
    assert isinstance(policy.decoder(prompts[4], 1), NativeDecoder)
    assert isinstance(policy.decoder(prompts[5], 1), CausalDecoder)
    assert isinstance(unknown.decoder(prompts[4], 1), CausalDecoder)
    assert isinstance(policy.copy("frozen").decoder(prompts[4], 1), NativeDecoder)
    assert_exact(policy, sampled(policy, (3, 9), Sampling(samples=2, max_new_tokens=8)))


def test_a_hook_on_a_module_is_called(policy_from: MakePolicy) -> None:
    policy, called = policy_from("llama"), []
    handle = policy.network.model.layers[1].register_forward_hook(lambda *args: called.append(1))
    assert isinstance(decoder_of(policy), CausalDecoder)
    assert called
    handle.remove()
    assert isinstance(decoder_of(policy), NativeDecoder)


class Misplaced(GPT2):
    """Positions count columns, padding or not: right for a row alone, wrong beside a longer one."""

    def hidden(self, token_M: Tensor, position_M: Tensor, attention: Any) -> Tensor:
        return super().hidden(token_M, torch.full_like(position_M, 1), attention)


def test_a_step_that_differs_is_not_used_and_it_is_said_once(
    policy_from: MakePolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(choice.FAMILIES, "gpt2", f"{__name__}:Misplaced")
    with caplog.at_level(logging.WARNING, logger="rlalign"):
        policy = policy_from("gpt2")
        twin = policy.copy("frozen")
        assert_exact(policy, sampled(policy, (2, 6), Sampling(samples=2, max_new_tokens=6)))
    said = [record.getMessage() for record in caplog.records if "decodes" in record.getMessage()]
    assert len(said) == 1
    assert "by transformers' forward: natively, token by token, beside a longer prompt" in said[0]
    assert str(twin.decoding) == str(policy.decoding)
    assert isinstance(decoder_of(policy), CausalDecoder)


def test_a_package_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, found when a model of that type is loaded."""
    site = tmp_path / "site"
    (site / "more-1.0.dist-info").mkdir(parents=True)
    (site / "more-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (site / "more-1.0.dist-info" / "entry_points.txt").write_text(
        "[rlalign.decoders]\ngpt_of_mine = more_families:Mine\n"
    )
    (site / "more_families.py").write_text(
        "from rlalign_plugin_hf.native.gpt2 import GPT2\n\n\nclass Mine(GPT2):\n    pass\n"
    )
    config = GPT2Config(**GPT)
    config.model_type = "gpt_of_mine"
    assert "no native step for `gpt_of_mine`" in str(choice.Decoding(config))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert str(choice.Decoding(config)) == "by the native Mine step"


def test_padding_on_either_side_is_hidden(policy_from: MakePolicy) -> None:
    policy = policy_from("qwen3")
    family = policy.decoding.native(policy, [])
    prompts = [torch.arange(3, 3 + n) for n in (9, 8, 5, 1)]
    with torch.no_grad():
        sides = [
            family.prefill(family.columns(4, 9), *padded)
            for padded in (left_padded(prompts, 0), right_padded(prompts, 7))
        ]
        alone = torch.cat([family.prefill(family.columns(1, len(p)), p[None]) for p in prompts])
    for side in sides:
        torch.testing.assert_close(side, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ("llama", "t5"))
def test_weights_held_in_half_precision_are_joined_and_nothing_else_is_held(
    policy_from: MakePolicy, name: str
) -> None:
    policy = policy_from(name)
    before = [weakref.ref(p.untyped_storage()) for p in policy.parameters()]
    copy = policy.copy("frozen")
    for model in (policy, copy):
        hold(model, torch.bfloat16)
    gc.collect()
    assert all(storage() is None for storage in before)
    for model in (policy, copy):
        refresh(model.decoding._family, model)
        assert {key for key in model.decoding._family._weights._copies if not isinstance(key, str)} == set()


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_a_head_in_pieces_has_the_bits_of_a_whole_one(rows: int) -> None:
    x_MI, weight_IO = torch.randn(rows, 24), torch.randn(layers.WIDE + 100, 24).T
    assert torch.equal(layers.Linear(weight_IO, None)(x_MI), torch.mm(x_MI, weight_IO))
