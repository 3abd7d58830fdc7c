"""Every architecture that transformers can build tiny, and what our policies make of it.

`python plugins/policies/hf/tests/architectures.py` goes over all of them (minutes) and writes down what comes out
beside this file; with names of model types, over those alone.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from rlalign import Example, RLAlignError, Sampling
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign_plugin_hf import CausalLM, Seq2SeqLM

KNOWN = Path(__file__).with_name("architectures.json")
"""What came out last; `make docs` makes a table of it."""
VOCABULARY = 64
LARGEST = 16_000_000
"""Parameters of a model that is still tiny."""
CLOSE = 2e-4
"""Largest difference of log-probs. Float32 rounds at 6e-8 of a number, and up to a thousand of them, of size 10, meet
in a log-prob of these models: 1e-6 to 1e-4 is found where nothing is wrong, and more than 1e-2 where something is."""

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "emb_dim": 32,
    "num_hidden_layers": 4, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "attention_head_dim": 8,
    "intermediate_size": 48, "d_ff": 48, "ffn_dim": 48, "n_inner": 48, "dff": 48, "d_inner": 48,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_hidden_size": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_source_positions": 64, "max_seq_len": 64,
    "max_target_positions": 64, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "num_shared_experts": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_n_heads": 4, "index_head_dim": 16, "index_topk": 64,
    "sliding_window": 4, "initializer_range": 0.2, "init_std": 0.2, "initializer_factor": 3.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2,
    "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "ssm_state_size": 4,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_expand": 2, "expand": 2, "mamba_chunk_size": 4,
    "chunk_size": 4, "lru_width": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "time_step_rank": 4, "mamba_dt_rank": 4,
    "is_decoder": True, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "embedding_size": 32, "input_embedding_size": 32, "output_embedding_size": 32,
    "altup_num_inputs": 2, "laurel_rank": 4, "type_vocab_size": 2, "entity_vocab_size": 8,
}  # fmt: skip
"""Whatever a config has of these."""
OWN: Mapping[str, Mapping[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "feed_forward_size": 48},
    "xmod": {"default_language": "en_XX"},
    "gemma3n_text": {"num_kv_shared_layers": 1},
    "led": {"attention_window": [4, 4]},
    "encoder-decoder": {"encoder": {"is_decoder": False}, "decoder": {"add_cross_attention": True}},
    "kimi_linear": {
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 4,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        }
    },
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "bailing_hybrid": {"layer_group_size": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "cpmant": {"prompt_types": 2, "segment_types": 2, "prompt_length": 4, "position_bias_max_distance": 64},
}
"""What single architectures need beside."""


def kinds() -> list[tuple[str, str]]:
    """(kind, model type) of everything in the two mappings, in their order."""
    found = [("causal", name) for name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    return found + [("seq2seq", name) for name in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]


def tiny_config(model_type: str) -> Any:
    """A config of its kind with small sizes."""
    cls = type(AutoConfig.for_model(model_type))
    return _sized(cls, OWN.get(model_type, {}))


def _sized(cls: Any, own: Mapping[str, Any]) -> Any:
    plain = cls()
    has = plain.to_dict()
    said = {name: size for name, size in SIZES.items() if name in has or name in plain.attribute_map}
    said = {name: size for name, size in said.items() if plain.attribute_map.get(name, "") not in said}
    if "kv_lora_rank" in has:  # latent attention: as many keys as queries
        said["num_key_value_heads"] = 4
    for name in getattr(cls, "sub_configs", {}):
        inner = getattr(plain, name, None)
        if inner is not None and type(inner).__name__ != "AutoConfig":
            said[name] = _sized(type(inner), own.get(name, {}))
    parts = said.keys() & getattr(cls, "sub_configs", {}).keys()
    return cls(**{**said, **{name: value for name, value in own.items() if name not in parts}})


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(kind: str, model_type: str, folder: Path) -> Any:
    """Our policy over a tiny random network, loaded as a run loads it."""
    config = tiny_config(model_type)
    config.is_encoder_decoder = kind == "seq2seq"
    auto: Any = getattr(transformers, "AutoModelForCausalLM" if kind == "causal" else "AutoModelForSeq2SeqLM")
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    config.save_pretrained(folder)
    words = (
        folder / "words"
    )  # apart from the config, which may name a tokenizer that these words mean nothing to
    tokenizer().save_pretrained(words)
    cls = CausalLM if kind == "causal" else Seq2SeqLM
    options = {"path": str(folder), "tokenizer": str(words), "init": "random"}
    return cls(cls.Config.model_validate_json(json.dumps(options)))


PROMPTS = ("w3", "w5 w6 w7 w8", "w3 w20 w21 w22 w23 w24 w25", "w9 w10 w11 w12 w13 w14 w15 w16 w17")


def own_logprobs(policy: Any, prompt: Tensor, actions: Tensor) -> Tensor:
    """[T]: of one row alone, unpadded and uncached, by the network's own forward."""
    network = policy.network
    with torch.no_grad():
        if policy.kind == "causal":
            row = torch.cat([prompt, actions])[None]
            logits = network(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
        else:
            begin = torch.tensor(policy._begin)
            row = torch.cat([begin, actions[:-1]])[None]
            logits = network(
                input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), decoder_input_ids=row,
                use_cache=False,
            ).logits[0, len(begin) - 1 :]  # fmt: skip
    if policy.never is not None:
        logits[:, policy.never] = -torch.inf
    return logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]


def examine(policy: Any) -> dict[str, float]:
    """How far apart are what should be one number."""
    examples = [Example(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    how = Sampling(samples=6, max_new_tokens=14)
    u = Seeds(0).uniforms("test", positions=range(len(examples)), samples=6, steps=14)
    rollout = policy.sample(examples, how, u)
    engine = Engine({"policy": policy}, trains=["policy"], needs=["logprobs"])
    again = engine.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
    pieces = Engine({"policy": policy}, budget=40, head_chunk=5).score("policy", rollout, ["full_logprobs"])
    found = {"scored": 0.0, "in pieces": 0.0, "sampled": 0.0}
    for row in range(len(rollout)):
        length = int(rollout.length_N[row])
        own = own_logprobs(
            policy, rollout.inputs[int(rollout.group_N[row])], rollout.actions_NT[row, :length]
        )
        ways = (
            ("scored", again),
            ("in pieces", pieces.full_logprobs_NT),
            ("sampled", rollout.full_logprobs_NT),
        )
        for name, x_NT in ways:
            off = float((x_NT[row, :length] - own).abs().max())
            found[name] = max(found[name], off if off == off else float("inf"))
    alone = policy.sample(examples[:1], how, u[:1])
    found["beside others"] = float(alone.texts != rollout.texts[:6])
    greedy = Sampling(greedy=True, max_new_tokens=8)
    said = policy.sample(examples, greedy, u)
    different = 0
    for row, prompt in enumerate(said.inputs):
        theirs = policy.network.generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False, num_beams=1,
            max_new_tokens=8, pad_token_id=0, eos_token_id=list(policy.ends), forced_eos_token_id=None,
            **({} if policy.kind == "causal" else {"decoder_start_token_id": policy._begin[0]}),
        )[0]  # fmt: skip
        theirs = theirs[len(prompt) :] if policy.kind == "causal" else theirs[len(policy._begin) :]
        ours = said.actions_NT[row, : int(said.length_N[row])]
        different += theirs[: len(ours)].tolist() != ours.tolist()
    found["greedy"] = float(different)
    batch_NT = rollout.mask_NT
    policy.network.zero_grad()
    h = policy.features(rollout)
    logp = policy.head(h).log_softmax(-1).gather(1, rollout.actions_NT[batch_NT][:, None]).sum()
    logp.backward()
    bad = [
        n for n, p in policy.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    moved = [n for n, p in policy.named_parameters() if p.grad is not None and bool(p.grad.any())]
    found["gradients"] = float(len(bad)) if moved else float("inf")
    return found


def verdict(kind: str, model_type: str) -> tuple[str, str]:
    """`exact`, `refused`, `not built`, or else what is wrong; and why."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            policy = build(kind, model_type, Path(folder))
        except Exception:
            return "not built", ""
        try:
            policy.setup()
        except RLAlignError as error:
            return "refused", _shortened(str(error))
        except Exception as error:
            return "crashed", f"{type(error).__name__}: {error}"
        try:
            found = examine(policy)
        except Exception as error:
            return "crashed", f"{type(error).__name__}: {error}"
    wrong = {name: off for name, off in found.items() if not off <= CLOSE}
    note = "its padding token is never chosen" if policy.never is not None else ""
    return ("wrong", json.dumps(wrong)) if wrong else ("exact", note)


def _shortened(error: str) -> str:
    """A refusal without the folder, the class and figures, and without what differs between versions of torch."""
    what = error.partition(" cannot be trained here: ")[2] or error.partition(": ")[2]
    return re.sub(r"^a \w+ (?=has no )| by [\d.e+-]+(?= from)|; it cannot be trained here.*|: .*", "", what)


def examined(names: Sequence[str] = ()) -> Iterator[tuple[str, str, str, str]]:
    """(kind, model type, verdict, why) of all architectures, or of some."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    for kind, model_type in kinds():
        if not names or model_type in names:
            yield kind, model_type, *verdict(kind, model_type)


def main(names: Sequence[str]) -> None:
    found: dict[str, dict[str, list[str]]] = {"causal": {}, "seq2seq": {}}
    for kind, model_type, what, why in examined(names):
        found[kind][model_type] = [what, why]
        print(f"{kind}\t{model_type}\t{what}\t{why}", flush=True)
    if not names:
        KNOWN.write_text(json.dumps({"transformers": transformers.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
