"""A sampler that is short enough to be read whole: transformers' own `generate`, one response after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlalign import Example, Policy, Response, Rollout, Sampler, Sampling, sampled_rollout


class Generate(Sampler):
    """A network of its own, read from a folder, that `generate` samples from."""

    repeats = "a resumed run repeats its responses: each is drawn from its seed alone"

    def lacks(self, how: Sampling) -> Iterator[str]:
        if how.beams > 1:
            yield f"beams: `{self.name}` has no beam search"

    def take(self, policy: Policy) -> None:
        with tempfile.TemporaryDirectory() as folder:
            policy.save(Path(folder))
            self.network: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        responses = [
            self._response(prompt, how, seed, policy.ends)
            for prompt, row in zip(policy.prompts(examples), seeds, strict=True)
            for seed in row
        ]
        return sampled_rollout(policy, examples, how, responses)

    def _response(self, prompt: Tensor, how: Sampling, seed: int, ends: Sequence[int]) -> Response:
        drawn = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p, "min_p": how.min_p}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = self.network.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt[None]),
                max_new_tokens=how.max_new_tokens,
                min_new_tokens=how.min_new_tokens,
                eos_token_id=list(ends),
                pad_token_id=ends[0],
                do_sample=not how.greedy,
                **({} if how.greedy else drawn),
                output_scores=True,
                return_dict_in_generate=True,
            )
        tokens = found.sequences[0, len(prompt) :].tolist()
        log_TV = torch.stack([score[0] for score in found.scores]).log_softmax(1)
        logprobs = log_TV[range(len(tokens)), tokens].tolist()
        allowed = [log_V.isfinite().nonzero()[:, 0].tolist() for log_V in log_TV] if how.narrows else None
        return Response(tokens, logprobs, tokens[-1] in ends, allowed)
