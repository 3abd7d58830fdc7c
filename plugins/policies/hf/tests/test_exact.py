"""Sampling and scoring against transformers itself, row by row, without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlalign import Example, Nucleus, Policy, Rollout, Sampling, sample
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign.records.weights import hold

FAMILIES = ("gpt2", "llama", "t5", "bart", "bert2bert")
SETTINGS = {
    "plain": Sampling(samples=3, max_new_tokens=10),
    "truncated": Sampling(
        samples=3, max_new_tokens=16, temperature=0.9, top_k=30, top_p=0.9, min_new_tokens=3
    ),
}
MakePolicy = Callable[..., Any]


def uniforms(count: int, how: Sampling, seed: int = 0) -> Tensor:
    return Seeds(seed).uniforms("test", positions=range(count), samples=how.samples, steps=how.max_new_tokens)


def sampled(policy: Policy, examples: Sequence[Example], how: Sampling) -> Rollout:
    return policy.sample(examples, how, uniforms(len(examples), how))


def own_logits(policy: Any, prompt: Tensor, actions: Tensor) -> Tensor:
    """[T,V] before each action: transformers' own forward of this one row, nothing padded, nothing cached."""
    network = policy.network
    with torch.no_grad():
        if policy.kind == "causal":
            row = torch.cat([prompt, actions])[None]
            return network(input_ids=row).logits[0, len(prompt) - 1 : -1]
        begin = torch.tensor([network.config.decoder_start_token_id])
        return network(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            decoder_input_ids=torch.cat([begin, actions[:-1]])[None],
        ).logits[0]


def own_logprobs(policy: Any, rollout: Rollout, row: int, how: Sampling) -> tuple[Tensor, Tensor]:
    """(log-probs sampled from, full log-probs) [T], by transformers' own processors."""
    prompt = rollout.inputs[int(rollout.group_N[row])]
    actions = rollout.actions_NT[row, : int(rollout.length_N[row])]
    logits = own_logits(policy, prompt, actions)
    ends = list(policy.ends)
    processors = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
    processors.append(MinNewTokensLengthLogitsProcessor(0, how.min_new_tokens, ends))
    if how.top_k:
        processors.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        processors.append(TopPLogitsWarper(how.top_p))
    narrowed = [
        processors(actions[None, :t], logits[None, t].clone()).log_softmax(-1)[0, actions[t]]
        for t in range(len(actions))
    ]
    full = (logits / how.temperature).log_softmax(-1).gather(1, actions[:, None])[:, 0]
    return torch.stack(narrowed), full


def scored(policy: Any, rollout: Rollout, **engine: Any) -> Any:
    return Engine({"policy": policy}, **engine).score(
        "policy", rollout, ("logprobs", "full_logprobs", "entropy")
    )


@pytest.mark.thin(1)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_unpadded_row(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str, setting: str
) -> None:
    """Prompts of 1, 4, 8 and 9 words in one batch: 8, 5, 1 and 0 pads; sampled, and scored again in pieces."""
    policy, how = exact_policy_of(family), SETTINGS[setting]
    rollout = sampled(policy, examples, how)
    again = scored(policy, rollout)
    pieces = scored(policy, rollout, budget=40, head_chunk=5)
    assert len(set(rollout.length_N.tolist())) > 1, "responses of one length prove less"
    for row in range(len(rollout)):
        length = int(rollout.length_N[row])
        narrowed, full = own_logprobs(policy, rollout, row, how)
        for found in (rollout, again, pieces):
            torch.testing.assert_close(found.logprobs_NT[row, :length], narrowed, atol=1e-10, rtol=0)
            torch.testing.assert_close(found.full_logprobs_NT[row, :length], full, atol=1e-10, rtol=0)


@pytest.mark.thin(1)
@pytest.mark.parametrize("pads", (0, 1, 4, 8))
@pytest.mark.parametrize("family", FAMILIES)
def test_pads_move_nothing(exact_policy_of: MakePolicy, family: str, pads: int) -> None:
    """One prompt beside another that is longer by so many tokens."""
    policy, how = exact_policy_of(family), SETTINGS["plain"]
    short = Example("short", "w5 w6")
    long = Example("long", " ".join(f"w{i}" for i in range(2 + pads)))
    both = sampled(policy, [short, long], how)
    assert len(both.inputs[1]) - len(both.inputs[0]) == pads
    for row in range(len(both)):
        expected, _ = own_logprobs(policy, both, row, how)
        torch.testing.assert_close(both.logprobs_NT[row, : len(expected)], expected, atol=1e-10, rtol=0)
    alone = sampled(policy, [short], how)
    assert alone.texts == both.texts[: how.samples]


@pytest.mark.parametrize("family", FAMILIES)
def test_logged_responses_are_scored_as_they_stand(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str
) -> None:
    policy = exact_policy_of(family)
    rollout = policy.encode(examples)
    assert rollout.flaw() is None
    assert rollout.logprobs_NT[rollout.mask_NT].isnan().all()
    outputs = scored(policy, rollout)
    for row in range(len(rollout)):
        expected, _ = own_logprobs(policy, rollout, row, Sampling())
        torch.testing.assert_close(outputs.logprobs_NT[row, : len(expected)], expected, atol=1e-10, rtol=0)
        ended = int(rollout.actions_NT[row, int(rollout.length_N[row]) - 1]) in policy.ends
        assert ended == bool(rollout.finished_N[row])
        text = policy.text(rollout.actions_NT[row, : int(rollout.length_N[row])])
        assert text == rollout.texts[row]


@pytest.mark.thin(1)
@pytest.mark.parametrize("least", (0, 5))
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str, least: int
) -> None:
    policy = exact_policy_of(family)
    how = Sampling(greedy=True, max_new_tokens=16, min_new_tokens=least)
    rollout = sampled(policy, examples, how)
    for row, prompt in enumerate(rollout.inputs):
        found = policy.network.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            max_new_tokens=16,
            min_new_tokens=least,
            pad_token_id=0,
        )[0]
        expected = found[len(prompt) :] if policy.kind == "causal" else found[1:]
        length = int(rollout.length_N[row])
        assert rollout.actions_NT[row, :length].tolist() == expected.tolist()
        kept = expected[:-1] if expected[-1] in policy.ends else expected
        assert rollout.texts[row] == policy.tokenizer.decode(kept, skip_special_tokens=True)


@pytest.mark.thin(1)
@pytest.mark.parametrize("penalty", (1.0, -2.0))
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_generate(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str, penalty: float
) -> None:
    """The search over all prompts at once finds what it finds for each alone."""
    policy = exact_policy_of(family)
    how = Sampling(samples=2, beams=4, max_new_tokens=10, length_penalty=penalty)
    rollout = sampled(policy, examples, how)
    assert rollout.flaw() is None
    assert rollout.group_N.tolist() == [g for g in range(len(examples)) for _ in range(2)]
    for g, prompt in enumerate(rollout.inputs):
        found = policy.network.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            num_beams=4,
            length_penalty=penalty,
            num_return_sequences=2,
            max_new_tokens=10,
            pad_token_id=0,
        )
        for j, tokens in enumerate(found[:, len(prompt) :] if policy.kind == "causal" else found[:, 1:]):
            row = 2 * g + j
            length = int(rollout.length_N[row])
            assert rollout.actions_NT[row, :length].tolist() == tokens[:length].tolist()
            assert bool(rollout.finished_N[row]) == (int(tokens[length - 1]) in policy.ends)
            assert rollout.texts[row] == policy.text(rollout.actions_NT[row, :length])


@pytest.mark.thin(1)
@pytest.mark.parametrize("k", (1, 4))
@pytest.mark.parametrize("constrained", (False, True), ids=("free", "constrained"))
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_and_compaction_change_no_token(
    exact_policy_of: MakePolicy, family: str, constrained: bool, k: int
) -> None:
    """Nor any mask, where a lagging copy that differs from the policy constrains it."""
    policy, mask = exact_policy_of(family), exact_policy_of(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    within = Nucleus("mask", top_p=0.8) if constrained else None
    if within is not None:
        within.resolve({"mask": mask})
    how = Sampling(samples=k, max_new_tokens=12)
    many = [
        Example(str(i), " ".join(f"w{(3 * i + j) % 60}" for j in range(1 + i % 7))) for i in range(128 // k)
    ]
    u = uniforms(len(many), how)
    with torch.no_grad():
        whole = policy.sample(many, how, u, within)
        kept = sample(policy, many, how, u, within, compact=False)
        step = max(1, 16 // k)
        parts = [
            policy.sample(many[i : i + step], how, u[i : i + step], within) for i in range(0, len(many), step)
        ]
    assert whole.texts == kept.texts
    assert whole.texts == tuple(text for part in parts for text in part.texts)
    assert 0 < int(whole.finished_N.sum()) < len(whole)
    mask_NT = whole.mask_NT
    torch.testing.assert_close(
        whole.logprobs_NT[mask_NT], kept.logprobs_NT[:, : whole.steps][mask_NT], atol=1e-10, rtol=0
    )
    if constrained:
        assert whole.allowed is not None
        assert kept.allowed is not None
        allowed_MV = whole.allowed.mask(*whole.chosen)
        assert not bool(allowed_MV.all())
        assert torch.equal(allowed_MV, kept.allowed.mask(*kept.chosen))
        apart = [part.allowed.mask(*part.chosen) for part in parts if part.allowed is not None]
        assert torch.equal(allowed_MV, torch.cat(apart))


class Counter:
    """Rows a module read, call by call."""

    def __init__(self, module: Any) -> None:
        self.rows: list[int] = []
        self._handle = module.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.rows.append(len(kwargs["input_ids"]))

    def taken(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows


@pytest.mark.parametrize("family", ("t5", "bart"))
def test_each_prompt_is_encoded_once(policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    policy = policy_of(family)
    encoder = Counter(policy.network.get_encoder())
    drawn = [*examples, examples[0]]
    rollout = sampled(policy, drawn, SETTINGS["plain"])
    assert encoder.taken() == [len(examples)], "an example drawn twice is one prompt"
    for last in (False, True):
        policy.features(rollout, last=last)
        assert encoder.taken() == [len(examples)]
    scored(policy, rollout, budget=100)
    parts = encoder.taken()
    assert len(parts) > 1 and sum(parts) <= len(drawn)


def test_each_prompt_is_read_once(policy_of: MakePolicy, examples: Sequence[Example]) -> None:
    policy = policy_of("gpt2")
    trunk = Counter(policy._trunk())
    sampled(policy, [*examples, examples[0]], SETTINGS["plain"])
    first, second = trunk.taken()[:2]
    assert first == len(examples)
    assert len(examples) < second <= 3 * (len(examples) + 1), "rows that ended at once may be gone"


@pytest.mark.parametrize("family", FAMILIES)
def test_states_after_the_responses(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str
) -> None:
    """`last` gives N rows more: what the next step would read."""
    policy = exact_policy_of(family)
    rollout = policy.encode(examples)
    with torch.no_grad():
        steps, more = policy.features(rollout), policy.features(rollout, last=True)
        torch.testing.assert_close(more[: len(steps)], steps, atol=1e-10, rtol=0)
        for row in range(len(rollout)):
            prompt = rollout.inputs[int(rollout.group_N[row])]
            actions = rollout.actions_NT[row, : int(rollout.length_N[row])]
            after = own_logits(policy, prompt, torch.cat([actions, actions[:1]]))[-1]
            found = policy.head(more[len(steps) + row][None])[0]
            torch.testing.assert_close(found, after, atol=1e-10, rtol=0)
        first = rollout.chosen[1] == 0
        torch.testing.assert_close(
            policy.prompt_features(rollout)[rollout.group_N], steps[first], atol=1e-10, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_in_half_precision(policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    """Its log-probs are near, as far as a row goes: rotary frequencies are not rounded."""
    policy = policy_of(family)
    half = hold(policy.copy("frozen"), torch.bfloat16)
    prompt = " ".join(f"w{i}" for i in range(30))
    rollout = policy.encode([*examples, Example("long", prompt, responses=("w5 w4 w3 w2 w1",))])
    exact, near = (scored(model, rollout) for model in (policy, half))
    assert near.full_logprobs_NT.dtype == torch.float32
    off_NT = (near.full_logprobs_NT - exact.full_logprobs_NT).abs()
    assert 0 < off_NT[rollout.mask_NT].mean() < 0.05
    assert off_NT[rollout.mask_NT].max() < 0.4
    if family == "llama":
        assert half._trunk().rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_holds_all_logits(policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    policy = policy_of(family)
    rollout = sampled(policy, examples, SETTINGS["plain"])
    rows: list[int] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                rows.extend([len(out)] * (out.shape[1] == policy.vocabulary))
            return out

    with Products():
        scored(policy, rollout, head_chunk=7)
    assert max(rows) == 7
    assert sum(rows) == int(rollout.mask_NT.sum()), "the head reads chosen steps only"


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    policy, how = policy_of(family), SETTINGS["truncated"]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = sampled(policy, examples, how)
    assert half.logprobs_NT.dtype == torch.float32
    again = scored(policy, half, dtype="bfloat16")
    assert float((half.logprobs_NT - again.logprobs_NT)[half.mask_NT].abs().max()) < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_float64(exact_policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    policy = exact_policy_of(family)
    double = sampled(policy, examples, SETTINGS["truncated"])
    assert double.logprobs_NT.dtype == torch.float64
    torch.testing.assert_close(double.logprobs_NT, scored(policy, double).logprobs_NT, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_as_near_as_transformers_own(
    policy_of: MakePolicy, examples: Sequence[Example], family: str
) -> None:
    """How far float32 rounds is a matter of the machine: what transformers computes of a row alone is off as much."""
    policy, how = policy_of(family), SETTINGS["plain"]
    rollout = sampled(policy, examples, how)
    again = scored(policy, rollout)

    def own() -> Tensor:
        return torch.cat([own_logprobs(policy, rollout, row, how)[1] for row in range(len(rollout))]).double()

    theirs = own()
    policy.double()
    exact = own()
    most = 4 * float((theirs - exact).abs().max())
    for ours in (rollout, again):
        assert float((ours.full_logprobs_NT[rollout.mask_NT] - exact).abs().max()) <= most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(policy_of: MakePolicy, examples: Sequence[Example], family: str) -> None:
    policy, how = policy_of(family).cuda(), SETTINGS["truncated"]
    rollout = policy.sample(examples, how, uniforms(len(examples), how).cuda())
    again = scored(policy, rollout)
    torch.testing.assert_close(rollout.logprobs_NT, again.logprobs_NT, atol=1e-4, rtol=0)


OTHERS = {
    "mistral": {"sliding_window": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "num_key_value_heads": 2, "final_logit_softcapping": 5.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 0},
    "bloom": {},
    "gpt_neox": {},
    "mamba": {"state_size": 4, "expand": 2},
    "pegasus": {"encoder_layers": 2, "decoder_layers": 2, "d_model": 32, "decoder_start_token_id": 0},
    "mt5": {
        "d_model": 32,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 48,
        "decoder_start_token_id": 0,
    },
}


@pytest.mark.parametrize("model", OTHERS)
def test_other_families(
    tmp_path: Any, folders: Any, examples: Sequence[Example], exactly: None, model: str
) -> None:
    """Sliding windows, caps, ALiBi, projections, states instead of attention."""
    import json

    from transformers import AutoConfig

    from rlalign_plugin_hf import CausalLM, Seq2SeqLM

    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 64, "max_position_embeddings": 64, "eos_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    seq2seq = model in ("pegasus", "mt5")
    if seq2seq:
        sizes = {k: v for k, v in sizes.items() if k in ("vocab_size", "eos_token_id")}
    AutoConfig.for_model(model, **{**sizes, **OTHERS[model]}).save_pretrained(tmp_path)
    cls, tokenizer = (Seq2SeqLM, "t5") if seq2seq else (CausalLM, "llama")
    options = {"path": str(tmp_path), "init": "random", "tokenizer": str(folders[tokenizer])}
    policy = cls(cls.Config.model_validate_json(json.dumps(options)))
    policy.setup()
    policy.double()
    how = SETTINGS["plain"]
    rollout = sampled(policy, examples, how)
    again = scored(policy, rollout)
    for row in range(len(rollout)):
        length = int(rollout.length_N[row])
        narrowed, _ = own_logprobs(policy, rollout, row, how)
        for found in (rollout, again):
            torch.testing.assert_close(found.logprobs_NT[row, :length], narrowed, atol=1e-10, rtol=0)
