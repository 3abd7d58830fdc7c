"""Five families of tiny random models, with tokenizers of a hundred words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from rlalign import Example, Options, Score, Task, hookimpl
from rlalign.data.rollout import Rollout
from rlalign.interface.component import Component

WORDS = 60
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
PROMPTS = ("w1", "w2 w3 w4 w5", "w6 w7 w8 w9 w10 w11 w12 w13", "w1 w14 w15 w16 w17 w18 w19 w20 w21")
"""1, 4, 8 and 9 tokens: up to 8 pads."""
CAUSAL, SEQ2SEQ = ("gpt2", "llama"), ("t5", "bart", "bert2bert")
FAMILIES = CAUSAL + SEQ2SEQ


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *(f"w{i}" for i in range(WORDS))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    templates = {
        "gpt2": "$A",
        "llama": "<s> $A",
        "t5": "$A </s>",
        "bart": "<s> $A </s>",
        "bert2bert": "<s> $A </s>",
    }
    template = templates[family]
    named = [(word, i) for i, word in enumerate(SPECIALS)]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if family != "gpt2":
        tokens["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


ENDS = (2, 23, 33, 43, 53)
"""`</s>` and the words w19, w29, w39, w49: several tokens end a response, as with chat models."""


def network(family: str) -> Any:
    made = _network(family)
    made.generation_config.eos_token_id = list(ENDS)
    return made


def _network(family: str) -> Any:
    size = len(SPECIALS) + WORDS
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.2, **ids
            )
        )
    ids["pad_token_id"] = 0
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, **ids,
            )
        )  # fmt: skip
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=1.5,
                relative_attention_num_buckets=8, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
            )
        )  # fmt: skip
    if family == "bert2bert":
        halves = [
            BertConfig(
                vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=48, initializer_range=0.2, **ids,
            )
            for _ in range(2)
        ]  # fmt: skip
        config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves, decoder_start_token_id=1, **ids)
        return EncoderDecoderModel(config)
    made = BartForConditionalGeneration(
        BartConfig(
            vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=48,
            init_std=0.2, decoder_start_token_id=2, forced_eos_token_id=None, **ids,
        )
    )  # fmt: skip
    made.final_logits_bias.copy_(torch.randn(1, size))
    return made


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model folder a family."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        network(family).save_pretrained(root / family)
        tokenizer(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


class Sentences(Task):
    """Prompts of four lengths, with logged responses."""

    class Config(Options):
        """No options."""

    def examples(self, split: str) -> Sequence[Example]:
        return [
            Example(
                id=str(i),
                prompt=prompt,
                responses=(f"w{i + 1} w{i + 2} w5", f"w{i + 9}", "w2 w2 w3 w4 w5 w6"),
                scores=(1.0, 0.0, -0.5),
                finished=(True, True, False),
            )
            for i, prompt in enumerate(PROMPTS)
        ]


class Evens(Component):
    """The share of words with an even number."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        def share(text: str) -> float:
            numbers = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
            return sum(n % 2 == 0 for n in numbers) / max(1, len(numbers))

        return Score(torch.tensor([share(text) for text in rollout.texts]))


COMPONENTS: dict[str, type[Any]] = {"sentences": Sentences, "evens": Evens}


@pytest.fixture(scope="session")
def components() -> dict[str, type[Any]]:
    return COMPONENTS


@pytest.fixture(scope="session")
def examples() -> Sequence[Example]:
    return Sentences(Sentences.Config()).examples("train")


@pytest.fixture
def policy_of(folders: Mapping[str, Path]) -> Callable[..., Any]:
    """policy_of("gpt2", lora={"r": 4}): a policy, set up."""
    from rlalign_plugin_hf import CausalLM, Seq2SeqLM

    def make(family: str, **options: Any) -> Any:
        cls = CausalLM if family in CAUSAL else Seq2SeqLM
        config = cls.Config.model_validate_json(json.dumps({"path": str(folders[family]), **options}))
        policy = cls(config)
        policy.setup()
        return policy.eval()

    return make


class _Exactly(TorchFunctionMode):
    """What a network in float64 rounds to float32 inside (norms, softmaxes, rotations) stays in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and getattr(args[0], "dtype", None) is torch.float64:
            args = [torch.float64 if x is torch.float32 else x for x in args]
            kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in kwargs.items()}
            func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*args, **kwargs)


@pytest.fixture
def exactly() -> Iterator[None]:
    """What is exact by construction is so to 1e-10: float64 leaves room for any machine and number of threads."""
    with _Exactly():
        yield


@pytest.fixture
def exact_policy_of(exactly: None, policy_of: Callable[..., Any]) -> Callable[..., Any]:
    """As `policy_of`, all in float64."""
    return lambda family, **options: policy_of(family, **options).double()


@pytest.fixture
def pipeline_of(folders: Mapping[str, Path]) -> Callable[..., dict[str, Any]]:
    """A small pipeline for a family; keywords replace its parts, `policy` adds options."""

    def make(family: str, policy: Mapping[str, Any] = {}, **parts: Any) -> dict[str, Any]:
        kind = "causal-lm" if family in CAUSAL else "seq2seq-lm"
        return {
            "task": "sentences",
            "policy": {kind: {"path": str(folders[family]), **policy}},
            "rewards": ["evens"],
            "algorithm": "rloo",
            "generation": {"samples": 4, "max_new_tokens": 6},
            "train": {"iterations": 2, "prompts": 4, "lr": 1e-3},
            **parts,
        }

    return make
