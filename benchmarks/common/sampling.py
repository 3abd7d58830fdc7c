"""Sampling of one policy, ours and transformers' `generate`: the same model, prompts and number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import shapes

from rlalign import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.randomness import Seeds


def open_policy(folder: Path, device: str = "cpu") -> Any:
    """A policy whose responses have all their steps: nothing ends one."""
    from rlalign_plugin_hf import CausalLM

    policy: Any = CausalLM(CausalLM.Config(path=str(folder), tokenizer=str(shapes.tokenizer_of(folder))))
    policy.setup()
    policy.to(device)
    policy.ends = ()
    return policy.eval()


def prompts(policy: Any, count: int, size: int) -> torch.Tensor:
    """[count,size]: ids of plain words."""
    words = min(policy.network.config.vocab_size, 900) - shapes.FIRST
    return shapes.FIRST + (7 * torch.arange(count)[:, None] + torch.arange(size)) % words


def ours(policy: Any, rows: int, k: int, prompt: int, new: int, within: Any = None) -> Callable[[], Rollout]:
    """Samples `rows` responses, k to each prompt."""
    texts = [" ".join(f"w{i}" for i in ids) for ids in prompts(policy, rows // k, prompt).tolist()]
    examples = [Example(id=str(i), prompt=text) for i, text in enumerate(texts)]
    uniforms = Seeds(0).uniforms("bench", positions=range(rows // k), samples=k, steps=new)
    how = Sampling(samples=k, max_new_tokens=new)

    def sampled() -> Rollout:
        with torch.no_grad():
            found: Rollout = policy.sample(examples, how, uniforms.to(policy.device), within)
        return found

    return sampled


def generated(policy: Any, rows: int, k: int, prompt: int, new: int) -> Callable[[], Any]:
    """The same of `generate`, with its own cache and sampler."""
    ids = prompts(policy, rows // k, prompt).to(policy.device)
    return torch.no_grad()(
        partial(
            policy.network.generate, input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True,
            num_return_sequences=k, top_k=0, top_p=1.0, min_new_tokens=new, max_new_tokens=new, pad_token_id=shapes.PAD,
        )
    )  # fmt: skip
