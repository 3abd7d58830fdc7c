"""transformers' continuous batching as a sampler: requests join and leave a batch as they come and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rlalign import Example, Policy, Response, RLAlignError, Rollout, Sampling, sampled_rollout

from .generating import Generate


class Continuous(Generate):
    """As `Generate`, all responses at once. One seed is for all of them: which tokens come follows from the batch."""

    repeats = "what it samples may be other tokens"

    def lacks(self, how: Sampling) -> Iterator[str]:
        yield from super().lacks(how)
        for name in ("top_k", "top_p", "min_p", "min_new_tokens"):
            if getattr(how, name) != Sampling.model_fields[name].default:
                yield f"{name}: `{self.name}` does not say which tokens were left"

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        pairs = zip(policy.prompts(examples), seeds, strict=True)
        asked = [prompt.tolist() for prompt, row in pairs for _ in row]
        said = GenerationConfig(
            max_new_tokens=how.max_new_tokens,
            do_sample=not how.greedy,
            eos_token_id=list(policy.ends),
            pad_token_id=policy.ends[0],
            **({} if how.greedy else {"temperature": how.temperature, "top_k": 0, "top_p": 1.0}),
        )
        engine = ContinuousBatchingConfig(
            return_logprobs=True, seed=seeds[0][0], page_size=32, num_blocks=256, max_batch_tokens=512
        )
        with torch.random.fork_rng():
            found = self.network.generate_batch(
                asked,
                generation_config=said,
                continuous_batching_config=engine,
                progress_bar=False,
                warmup=False,
            )
        answers = [found.get(f"req_{i}") for i in range(len(asked))]
        if bad := [
            i for i, one in enumerate(answers) if one is None or one.error or not one.generated_tokens
        ]:
            raise RLAlignError(
                f"sampler `{self.name}`: {len(bad)} of {len(asked)} requests were not answered"
            )
        return sampled_rollout(
            policy,
            examples,
            how,
            [
                Response(one.generated_tokens, one.logprobs, one.generated_tokens[-1] in policy.ends)
                for one in answers
            ],
        )
