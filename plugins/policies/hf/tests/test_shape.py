"""What a policy says of its shape, from a config.json alone; and `check --machine` of a folder that holds no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlalign import Example
from rlalign.cli.commands import program
from rlalign_plugin_hf import CausalLM

QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}


def model(folder: Path, config: Mapping[str, Any], **options: Any) -> CausalLM:
    (folder / "config.json").write_text(json.dumps(config))
    return CausalLM(CausalLM.Config(path=str(folder), **options))


def test_seven_billion_weights_of_a_file_of_a_few_lines(tmp_path: Path) -> None:
    """Qwen2.5-7B's: 7.62 billion weights, of which 545 million are a table and as many the head."""
    found = model(tmp_path, QWEN).shape()
    assert found is not None
    assert found.weights == found.learned == 7_615_616_512
    assert found.head == 152_064 * 3584
    assert found.response == pytest.approx(found.weights - 2 * found.head, rel=1e-4)
    assert found.cache == 28 * 2 * 4 * 128
    assert found.attention == 28 * 3584
    assert (found.layers, found.width, found.vocabulary, found.resting) == (28, 3584, 152_064, 0)
    adapted = model(tmp_path, QWEN, lora={"r": 16}).shape()
    assert adapted is not None
    assert found.adapters == pytest.approx(40_370_176)
    assert adapted.learned == pytest.approx(found.adapters, rel=0.1)


def test_experts_that_a_token_does_not_meet(tmp_path: Path) -> None:
    """Six of eight rest: of 8 × 3 × 64 × 32 weights a layer."""
    found = model(tmp_path, EXPERTS).shape()
    assert found is not None
    assert found.resting == 2 * 6 * 3 * 64 * 32
    assert found.touched(1) == found.response + found.head
    assert found.touched(1000) == pytest.approx(found.response + found.head + found.resting)


@pytest.mark.parametrize("family", ("gpt2", "llama", "t5", "bart", "bert2bert"))
def test_every_family_says_its_own(policy_of: Callable[..., Any], family: str) -> None:
    """The weights it has, and as many of a token's keys and values as its decoder caches."""
    policy = policy_of(family)
    found = policy.shape()
    assert found.weights == sum(p.numel() for p in policy.network.parameters())
    heads = 2 if family == "llama" else 4
    assert found.cache == 2 * 2 * heads * 8
    assert found.once == (family in ("gpt2", "llama"))
    assert 0 < found.response < found.weights
    assert (found.prompt == found.response) == (family in ("gpt2", "llama"))


def test_lengths_of_prompts_and_logged_responses(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("gpt2")
    example = Example("0", "w1 w2 w3", responses=("w4 w5", "w6"))
    assert policy.lengths([example]) == [(3, [3, 2])]
    assert policy.prompts([example])[0].numel() == 3
    assert policy.encode([example]).length_N.tolist() == [3, 2]


def test_a_machine_is_told_of_a_folder_without_weights_or_tokenizer(tmp_path: Path) -> None:
    model(tmp_path, QWEN)
    file = tmp_path / "lm.yaml"
    pipeline = {
        "policy": {"causal-lm": {"path": str(tmp_path)}},
        "task": {"toy-numbers": {"prompt": "w1 w2"}},
        "algorithm": "rloo",
        "rewards": ["increasing-numbers", {"kl": {"coef": 0.05}}],
        "generation": {"samples": 8, "max_new_tokens": 1024},
        "train": {"iterations": 400, "prompts": 128, "dtype": "bfloat16"},
    }
    file.write_text(yaml.dump(pipeline, sort_keys=False))
    done = CliRunner().invoke(program, ["check", str(file), "--machine", "8xH100"])
    assert done.exit_code == 0, done.output
    for part in (
        "machine: 8 × H100 (each 79.1 GiB, 989 TFLOP/s in bfloat16, 3.35 TB/s)",
        "policy: 7.62 billion weights, all learn; 28 layers, vocabulary 152,064, 56 KiB of keys and values a token",
        "does not fit as it is, all of it on each device. What would:",
        "lora: {r: 16} in the policy",
        "on this machine it cannot run: ",
    ):
        assert part in done.output
    assert CliRunner().invoke(program, ["check", str(file)]).exit_code == 2
    wrong = CliRunner().invoke(program, ["check", str(file), "--machine", "8xH10"])
    assert wrong.exit_code == 2


def test_prompts_are_measured_uncut_and_shown_cut(policy_of: Callable[..., Any]) -> None:
    """With the special tokens in sight."""
    examples = [Example("0", "w1 w2 w3 w4"), Example("1", "w5")]
    policy = policy_of("llama", max_prompt_tokens=3, too_long="truncate")
    found = policy.reading(examples, True)
    assert found.tokens == [5, 2]
    assert (found.limit, found.said, found.becomes) == (3, "`max_prompt_tokens: 3`", "cut on the left")
    assert found.first == policy.tokenizer.decode(policy.prompts(examples)[0].tolist())
    whole = policy_of("llama").reading(examples, False)
    assert whole.first == "<s> w1 w2 w3 w4"
    assert (whole.limit, whole.becomes) == (None, "refused")
