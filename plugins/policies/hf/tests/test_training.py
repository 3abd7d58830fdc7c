"""How language models are computed where they learn: a prompt once, layers again, heads in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from transformers.activations import NewGELUActivation

from rlalign import Example, Rollout, logged_rollout
from rlalign.testing import Bench, ComponentTests
from rlalign_plugin_hf import CausalLM, prompts_once
from rlalign_plugin_hf.batches import worth_prompts_once
from rlalign_plugin_hf.fused import fuse
from rlalign_plugin_hf.model import LanguageModel

MakePolicy = Callable[..., Any]
Pipeline = Callable[..., dict[str, Any]]


# -- prompts once ------------------------------------------------------------------------------------------


def answered(policy: Any, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> Rollout:
    """Random prompts of these lengths, with responses of these."""
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> Tensor:
        return torch.randint(3, policy.vocabulary, (length,), generator=generator)

    examples = [Example(str(i), "", responses=("",) * len(lengths)) for i, lengths in enumerate(responses)]
    rows = [(tokens(length).tolist(), False) for lengths in responses for length in lengths]
    return logged_rollout(examples, [tokens(length) for length in prompts], rows, like=policy._weight)


SHAPES: Mapping[str, tuple[list[int], list[list[int]]]] = {
    "one pad": ([8, 7], [[5, 3, 5], [4, 5]]),
    "many pads": ([1, 9, 4], [[2, 6], [1, 1, 3], [6]]),
    "none": ([6, 6], [[3, 3, 3], [3, 1]]),
    "single steps": ([5, 3], [[1, 1, 1], [1, 1]]),
    "as long as it reads": ([40, 2], [[8, 1], [46, 3]]),
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("last", (False, True), ids=("chosen", "last"))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family, lora", (("gpt2", None), ("llama", None), ("gpt2", {"r": 2})))
def test_a_prompt_computed_once_gives_the_states_and_gradients_of_whole_rows(
    exact_policy_of: MakePolicy, family: str, lora: Any, shape: str, last: bool
) -> None:
    policy = exact_policy_of(family, lora=lora)
    assert policy.prompts_once
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    rollout = answered(policy, *SHAPES[shape])
    found = []
    for compute in (
        lambda: prompts_once.features(policy, rollout, last),
        lambda: policy._features_of_rows(rollout, last),
    ):
        policy.zero_grad()
        h_MC = compute()
        (h_MC * torch.arange(h_MC.numel()).cos().view_as(h_MC)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        found.append({"states": h_MC.detach(), **gradients})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 8
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-10, atol=1e-10)


def test_a_prompt_is_computed_once_where_that_saves_enough(policy_of: MakePolicy) -> None:
    policy = policy_of("gpt2")
    tokens: list[int] = []
    embed = policy.network.get_input_embeddings()
    embed.register_forward_hook(lambda _, inputs, output: tokens.append(inputs[0].numel()))
    for prompts, responses, expected in (
        ([10, 10], [[4, 4, 4], [4, 4, 4]], [2 * 10, 6 * 3]),
        ([10, 10], [[4], [4]], [2 * 13]),
        ([2], [[20, 20]], [2 * 21]),
    ):
        rollout = answered(policy, prompts, responses)
        tokens.clear()
        with torch.no_grad():
            policy.features(rollout)
        assert tokens == expected
        assert worth_prompts_once(rollout) == (len(expected) == 2)


@pytest.mark.parametrize(
    "model, extra, once",
    [
        ("qwen2", {}, True),
        ("mistral", {"sliding_window": 4}, False),
        ("mamba", {"state_size": 4}, False),
        ("gemma3_text", {"head_dim": 8}, False),
    ],
)
def test_only_plain_caches_are_shared(
    folders: Mapping[str, Path], tmp_path: Path, model: str, extra: dict[str, Any], once: bool
) -> None:
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "eos_token_id": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    AutoConfig.for_model(model, **sizes, **extra).save_pretrained(tmp_path)
    say = {"path": str(tmp_path), "init": "random", "tokenizer": str(folders["llama"])}
    policy = CausalLM(CausalLM.Config.model_validate(say))
    policy.setup()
    assert policy.prompts_once == once
    rollout = answered(policy, *SHAPES["many pads"])
    assert policy.features(rollout).isfinite().all()


# -- layers again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, lora, value",
    [
        ("gpt2", None, None),
        ("llama", {"r": 2}, None),
        ("t5", None, None),
        ("bart", {"r": 2}, None),
        ("gpt2", {"r": 2}, "own"),
        ("llama", None, "own"),
    ],
)
def test_recomputed_layers_give_the_same_gradients(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any, value: Any
) -> None:
    """Also a value's adapters, which stand in the network only while it is computed."""
    algorithm = "ppo" if value else "rloo"
    models = {"models": {"value": {"value-head": {"trunk": value}}}} if value else {}
    say = pipeline_of(family, {"lora": lora}, algorithm=algorithm, **models)
    say["train"] = {**say["train"], "dtype": "float64"}
    bench = Bench(tmp_path, say, components)
    batch = bench.batch()
    ComponentTests().move(bench, 0)  # adapters begin at zero, which hides half of them
    metrics, gradients = bench.gradient(batch)
    for model in bench.engine.models.values():
        model.recomputes = True
    again, recomputed = bench.gradient(batch)
    assert again == pytest.approx(metrics, rel=1e-12, abs=1e-12)
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > 8
    for name, expected in gradients.items():
        torch.testing.assert_close(recomputed[name], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("family", ("gpt2", "llama", "t5"))
def test_recomputed_layers_keep_their_inputs_only(policy_of: MakePolicy, family: str) -> None:
    policy = policy_of(family)
    rollout = answered(policy, [9, 9], [[6] * 4] * 2)
    kept, sizes = {}, list[int]()

    def keep(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    for policy.recomputes in (False, True):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            policy.features(rollout)
        kept[policy.recomputes] = sum(sizes)
    assert kept[True] < kept[False] / 4


def test_a_run_recomputes_where_it_says_so(tmp_path: Path, pipeline_of: Pipeline, components: Any) -> None:
    say = pipeline_of("gpt2")
    for recompute in (True, False):
        say["train"] = {**say["train"], "recompute": recompute}
        bench = Bench(tmp_path / str(recompute), say, components)
        assert {model.recomputes for model in bench.engine.models.values()} == {recompute}


# -- kernels -------------------------------------------------------------------------------------------------


class Widest(TorchDispatchMode):
    """The most rows of anything as wide as the vocabulary, the head's weight apart, and what made it."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.weight = vocabulary, (width, vocabulary)
        self.most: tuple[int, str] = (0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            wide = isinstance(x, Tensor) and x.ndim and x.shape[-1] == self.vocabulary
            if wide and x.shape != self.weight:
                self.most = max(self.most, (x.numel() // self.vocabulary, str(func)))
        return out


@pytest.mark.thin(2)
@pytest.mark.parametrize("lora", (None, {"r": 2}), ids=("full", "lora"))
@pytest.mark.parametrize("algorithm", ("rloo", "ppo", "dpo"))
@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_nothing_as_wide_as_the_vocabulary_is_taller_than_a_chunk(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, algorithm: str, lora: Any
) -> None:
    """In whole training steps, and where frozen models score; BART's head adds a bias, so autograd computes it."""
    chunk = 7
    models: dict[str, Any] = {"models": {"value": {"value-head": {}}}} if algorithm == "ppo" else {}
    sources: dict[str, Any] = {"responses": "logged", "rewards": []} if algorithm == "dpo" else {}
    say = pipeline_of(family, {"lora": lora}, algorithm=algorithm, **models, **sources)
    bench = Bench(tmp_path, say, components)
    batch, policy = bench.batch(), bench.engine.policy("policy")
    assert isinstance(policy, LanguageModel)
    assert int(batch.rollout.mask_NT.sum()) > 3 * chunk
    bench.engine.head_chunk = chunk
    with Widest(policy.vocabulary, policy.width) as widest:
        bench.engine.score("policy", batch.rollout, ["logprobs", "entropy"])
        bench.learner.learn(batch)
    assert 0 < widest.most[0] <= chunk, widest.most


@pytest.mark.parametrize("count", [2001, 200_001])  # in one piece, and in several
@pytest.mark.parametrize("dtype, close", ((torch.float32, 3e-6), (torch.float64, 1e-14)))
def test_fused_gelu_is_the_same_function(dtype: torch.dtype, close: float, count: int) -> None:
    both = [nn.Sequential(NewGELUActivation()), nn.Sequential(NewGELUActivation())]
    fuse(both[1])
    assert isinstance(both[1][0], nn.GELU)
    x = torch.cat([torch.linspace(-12, 12, count), torch.tensor([0.0, 1e-30, 60.0, -60.0])]).to(dtype)
    found = []
    for module in both:
        at = x.clone().requires_grad_()
        y = module(at)
        (slope,) = torch.autograd.grad(y.sum(), at)
        found.append((y.detach(), slope))
    for written_out, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, written_out, rtol=close, atol=close)


def test_gpt2_learns_with_the_fused_gelu_and_is_saved_as_it_came(
    policy_of: MakePolicy, tmp_path: Path
) -> None:
    policy = policy_of("gpt2")
    assert not any(isinstance(module, NewGELUActivation) for module in policy.modules())
    policy.save(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).activation_function == "gelu_new"
