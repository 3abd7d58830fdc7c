"""Transformers' beam search, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rlalign import Example, RLAlignError, Rollout, Sampling, logged_rollout
from rlalign.decoding.logits import bad_logits
from rlalign.decoding.stopping import Stops

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel


def searched(policy: LanguageModel, examples: Sequence[Example], how: Sampling) -> Rollout:
    """The best responses of the search; it draws nothing, and constraints do not reach it."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    if how.samples > how.beams:
        raise RLAlignError(
            f"generation: {how.samples} samples from {how.beams} beams; ask for no more than beams"
        )
    inputs = policy.prompts(examples)
    ids_GL, real_GL = policy._side_by_side(inputs)
    network = policy.network
    own = network.generation_config
    forced = policy.positions.begin - 1  # a forced first token, which `generate` counts as new
    plan = GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=how.beams,
        length_penalty=how.length_penalty,
        num_return_sequences=how.samples,
        do_sample=False,
        min_new_tokens=how.min_new_tokens + forced,
        max_new_tokens=how.max_new_tokens + forced,
        eos_token_id=list(policy.ends),
        pad_token_id=policy.end,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        suppress_tokens=None if policy.never is None else [policy.never],
    )
    given = policy._given(ids_GL.shape[1])
    stops = Stops(how.stop, policy.text, how.min_new_tokens)
    stopped = [_Stopped(stops, given)] if how.stop else []
    watch = _Watch()
    with policy.acting(training=False):
        network.generation_config = plan  # or it would add whatever penalties the model's own file holds
        try:
            found_NL = network.generate(
                input_ids=ids_GL,
                attention_mask=real_GL.long(),
                generation_config=plan,
                logits_processor=LogitsProcessorList([watch]),
                stopping_criteria=StoppingCriteriaList(stopped),
            )
        finally:
            network.generation_config = own
    if bool(torch.as_tensor(watch.bad)):
        raise bad_logits(policy, f"a beam search from example `{examples[0].id}` on")
    rows = [_until_end(tokens, policy.ends, stops) for tokens in found_NL[:, given:].tolist()]
    texts = [stops.cut(policy.text(torch.tensor(tokens))) for tokens, _ in rows]
    k = how.samples
    answered = [
        replace(example, responses=tuple(texts[g * k : (g + 1) * k])) for g, example in enumerate(examples)
    ]
    return replace(logged_rollout(answered, inputs, rows, like=policy._weight), examples=tuple(examples))


class _Watch:
    """Sees the scores of each step; on their device it remembers whether one was NaN."""

    bad: Any = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.bad = self.bad | scores.isnan().any()
        return scores


class _Stopped:
    """Says which beams a stop string ends; to the search that is an end like any other."""

    def __init__(self, stops: Stops, given: int) -> None:
        self.stops, self.given = stops, given

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        actions_NT = input_ids[:, self.given :].cpu()
        seen = actions_NT.shape[1] - 1
        stopped = [self.stops.length(actions_T, seen) is not None for actions_T in actions_NT]
        return torch.tensor(stopped, device=input_ids.device)


def _until_end(tokens: list[int], ends: Sequence[int], stops: Stops) -> tuple[list[int], bool]:
    """What was generated, up to the token that ends it or completes a stop string, and whether there is one."""
    length = next((t + 1 for t, token in enumerate(tokens) if token in ends), None)
    if stops.strings:
        length = stops.length(torch.tensor(tokens[:length]), 0) or length
    return tokens[:length], length is not None
