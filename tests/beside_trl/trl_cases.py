"""One small model, one batch, and cases: TRL's side is computed by `record.py`, ours by `test_beside_trl.py`.

Imports neither library. Everything is the same on every machine: weights come from NumPy's `RandomState`, whose
numbers never change between versions, and responses are given, not sampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ("<pad>", "</s>", *(f"w{i}" for i in range(20)))
PAD, END = 0, 1
MAX_NEW = 6
"""No response has more tokens; one that has as many and no end is truncated."""

PROMPTS = ("w1 w2", "w3 w4 w5 w6", "w7", "w8 w9 w10")
RESPONSES = (
    ("w11 w3 w2", "w4", "w5 w6 w7 w8 w9 w10", "w12 w1"),
    ("w13 w14", "w2 w2 w2 w15 w16", "w17", "w18 w19 w1 w0"),
    ("w3 w1 w4 w1 w5", "w9 w2", "w6 w5 w3 w5 w8 w9", "w7 w9"),
    ("w0", "w19 w18 w17", "w16 w15 w14 w13 w12", "w11 w10"),
)
"""Four to a prompt; those of six words were cut, the others end with `</s>`."""
REWARDS = ((1.0, -0.5, 2.0, 0.25), (0.5, 0.75, -1.0, 1.5), (2.5, 0.0, -0.75, 1.0), (0.6, 0.6, 0.6, 0.6))
"""The last prompt's all alike: nothing to learn from."""
PAIRS = ((0, 1), (3, 2), (0, 1), (2, 3))
"""Of each prompt, which response is preferred and to which, for the losses over pairs; none of them was cut."""


def finished(response: str) -> bool:
    return len(response.split()) < MAX_NEW


def tokens(response: str) -> list[int]:
    return [WORDS.index(word) for word in response.split()] + [END] * finished(response)


@dataclass(frozen=True)
class Case:
    """A trainer of TRL's with its options, and what our pipeline says to compute the same."""

    trainer: str
    trl: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    """`algorithm` and what else differs."""
    sampler: bool = False
    """Whether the responses come with log-probs of another sampler, which are not the policy's own."""
    pieces: int = 1
    """Micro-batches that TRL makes of the batch, of equally many responses each."""
    times: float = 1.0
    """What our loss is multiplied by to be TRL's, where the two are means over different numbers."""


def grpo(ours: Any, sampler: bool = False, pieces: int = 1, times: float = 1.0, **trl: Any) -> Case:
    """A case of TRL's `GRPOTrainer`; where `trl` names no loss, that of the paper."""
    return Case("grpo", {"loss_type": "grpo", **trl}, ours, sampler, pieces, times)


def said(component: str, *below: str, rewards: Any = (), **options: Any) -> dict[str, Any]:
    """The part of a pipeline that names an algorithm, what stands below it, and rewards beside the given ones."""
    return {"algorithm": [{component: options}, *below], "rewards": ["given-score", *rewards]}


HIGHER = {"epsilon_high": 0.28}
UNWEIGHED = {"beta": 0.3, "use_bias_correction_kl": False}
NARROW = {"importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.08}
CAP = 1.2
COMPLETE = sum(finished(r) for group in RESPONSES for r in group) / sum(map(len, RESPONSES))
"""The share of the responses that were not cut."""


def sampled_elsewhere(mode: str, **importance: Any) -> Case:
    trl = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": CAP, **UNWEIGHED}
    return grpo(said("grpo", kl=0.3, importance={"cap": CAP, **importance}), sampler=True, **trl)


CASES: dict[str, Case] = {
    "grpo": grpo(said("grpo", kl=0.0)),
    "grpo-no-std": grpo(said("grpo", kl=0.0, scale="none"), scale_rewards="none"),
    "grpo-batch-std": grpo(said("grpo", kl=0.0, scale="rewards"), scale_rewards="batch"),
    "grpo-kl": grpo(said("grpo", kl=0.3), **UNWEIGHED),
    "grpo-kl-weighed": grpo(said("grpo", kl=0.3, weigh_kl=True), beta=0.3),
    "grpo-temperature": grpo(
        {**said("grpo", kl=0.3), "generation": {"temperature": 0.7}}, temperature=0.7, **UNWEIGHED
    ),
    "grpo-clip-higher": grpo(said("grpo", kl=0.0, clip=[0.2, 0.28]), **HIGHER),
    "grpo-two-sided": grpo(said("grpo", kl=0.0, largest=1.3), delta=1.3),
    "grpo-cut-masked": grpo(
        said("grpo", "drop-cut", kl=0.0), mask_truncated_completions=True, times=COMPLETE
    ),
    "grpo-pieces": grpo(said("grpo", kl=0.0), pieces=2),
    "bnpo": grpo(said("grpo", kl=0.0, mean="tokens"), loss_type="bnpo"),
    "dr-grpo": grpo(said("dr-grpo"), loss_type="dr_grpo", scale_rewards="none"),
    "dapo": grpo(said("dapo"), loss_type="dapo", **HIGHER),
    "dapo-cut-masked": grpo(
        said("dapo", "drop-cut"), loss_type="dapo", mask_truncated_completions=True, **HIGHER
    ),
    "dapo-pieces": grpo(said("dapo"), loss_type="dapo", pieces=2, **HIGHER),
    "gspo": grpo(said("gspo", clip=[0.05, 0.08]), **NARROW),
    "gspo-kl": grpo(said("gspo", clip=[0.05, 0.08], kl=0.3), **NARROW, **UNWEIGHED),
    "cispo": grpo(said("cispo", clip=[None, 0.2]), loss_type="cispo", epsilon_high=1.2),
    "importance-token": sampled_elsewhere("token_truncate", level="token"),
    "importance-sequence": sampled_elsewhere("sequence_truncate", level="sequence"),
    "importance-token-dropped": sampled_elsewhere("token_mask", level="token", beyond="drop"),
    "importance-sequence-dropped": sampled_elsewhere("sequence_mask", level="sequence", beyond="drop"),
    "rloo": Case("rloo", {"beta": 0.0}, said("rloo", ratio="sequence", clip=[0.2, 0.2])),
    "rloo-kl": Case(
        "rloo",
        {"beta": 0.05},
        said("rloo", ratio="sequence", clip=[0.2, 0.2], rewards=[{"kl": {"coef": 0.05}}]),
    ),
    "rloo-scaled": Case(
        "rloo",
        {"beta": 0.05, "normalize_advantages": True},
        said("rloo", ratio="sequence", clip=[0.2, 0.2], scale="responses", rewards=[{"kl": {"coef": 0.05}}]),
    ),
    "dpo": Case("dpo", {"loss_type": ["sigmoid"], "beta": 0.5}, said("dpo", beta=0.5)),
    "dpo-smoothed": Case(  # TRL 1.16 ignores the smoothing
        "dpo", {"loss_type": ["sigmoid"], "beta": 0.5, "label_smoothing": 0.1}, said("dpo", beta=0.5)
    ),
    "dpo-robust": Case(
        "dpo",
        {"loss_type": ["robust"], "beta": 0.5, "label_smoothing": 0.1},
        said("dpo", beta=0.5, robust=True, label_smoothing=0.1),
    ),
    "dpo-average": Case(
        "dpo", {"loss_type": ["sigmoid_norm"], "beta": 0.5}, said("dpo", beta=0.5, average=True)
    ),
    "ipo": Case("dpo", {"loss_type": ["ipo"], "beta": 0.5}, said("ipo", tau=0.5)),
    "simpo": Case(
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        said("simpo", beta=2.0, gamma=1.0),
    ),
    "kto": Case(
        "kto",
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.5},
        said("kto", beta=0.5, undesirable=1.5),
    ),
}

SCORED = ("grpo", "rloo")
"""Trainers that learn from what responses earned; the others compare pairs of them."""


SPREAD = {"reference": 0.0, "old": 0.008, "now": 0.01}
"""How far each model's weights stand from the reference's."""


def write_model(folder: Path, which: str) -> Path:
    """Write one of the three models, a Llama of one layer, and its tokenizer; returns the folder."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )  # fmt: skip
    return filled(LlamaForCausalLM(config), which, folder)


def write_gpt2(folder: Path) -> Path:
    """Write a GPT-2 of one layer: it counts positions from the left, and knows padding by nothing but the mask."""
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )  # fmt: skip
    return filled(GPT2LMHeadModel(config), "reference", folder)


def filled(network: PreTrainedModel, which: str, folder: Path) -> Path:
    """Fill a network with numbers that follow from the names of its weights, and save it with the tokenizer."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            mean, deviation = (1.0, 0.2) if weight.ndim == 1 and "norm" in name else (0.0, 0.4)
            base = mean + deviation * numbers(f"base {name}", weight.shape)
            weight.copy_(torch.tensor(base + SPREAD[which] * numbers(f"{which} {name}", weight.shape)))
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


def numbers(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that follow from a name."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))


def sampler_logprobs(old: list[list[float]]) -> list[list[float]]:
    """What the sampler of another library would have said: the old log-probs and an error of 0.1 or so."""
    return [list(x + 0.1 * numbers(f"sampler {i}", (len(x),))) for i, x in enumerate(map(np.array, old))]


DIRECTIONS = 4


def fingerprint(gradients: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """A gradient in few numbers, by weight: its norm and its products with some fixed directions of length 1."""
    return dict(_fingerprints(gradients))


def _fingerprints(gradients: Mapping[str, Tensor]) -> Iterator[tuple[str, list[float]]]:
    for name, gradient in sorted(gradients.items()):
        flat = gradient.detach().double().flatten().numpy()
        directions = numbers(f"direction {name}", (DIRECTIONS, flat.size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        yield name, [float(np.linalg.norm(flat)), *map(float, directions @ flat)]
