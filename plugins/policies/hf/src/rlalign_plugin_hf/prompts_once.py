"""A prompt is computed once for all its responses, in training and scoring; the gradients are those of whole rows.

Prompts are read first, padded on the left as in sampling. Then each response is read over its prompt's keys and
values. Legend: N responses, G groups, T steps, L longest prompt, H heads, D width of a head, C width of the trunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlalign import Rollout
from rlalign_plugin_hf.batches import accepted, left_padded, with_actions

if TYPE_CHECKING:
    from rlalign_plugin_hf.causal import CausalLM


class PromptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values [G,H,L,D] of prompts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return self.keys, self.values


class ResponseLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A prompt's keys and values before those of each response to it. It keeps nothing of a response, so that a layer
    may be computed again in the backward pass."""

    def __init__(self, prompts: PromptLayer, group_N: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert prompts.keys is not None and prompts.values is not None
        self.lazy_initialization(prompts.keys, prompts.values)
        self.keys, self.values = prompts.keys, prompts.values
        self._group_N = group_N

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        keys = torch.cat([self.keys[self._group_N], key_states], -2)
        return keys, torch.cat([self.values[self._group_N], value_states], -2)


def plain_cache(config: Any) -> bool:
    """Whether all that a model keeps of a prompt are keys and values: no window, no state."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def features(policy: CausalLM, rollout: Rollout, last: bool) -> Tensor:
    """[M,C], with `last` [M+N,C], as `CausalLM.features`."""
    trunk, group_N = policy._trunk(), rollout.group_N
    prompts, responses = (DynamicCache(config=policy.network.config) for _ in range(2))
    layers = [PromptLayer() for _ in prompts.layers]
    prompts.layers = [*layers]
    ids_GL, real_GL = left_padded(rollout.inputs, policy._filler)
    even = len({len(prompt) for prompt in rollout.inputs}) == 1
    inputs = {} if even else _padded_inputs(real_GL)
    prompt_GLC: Tensor = trunk(
        input_ids=ids_GL, past_key_values=prompts, use_cache=True, **accepted(trunk, **inputs)
    ).last_hidden_state
    before_N1C = prompt_GLC[group_N, -1][:, None]

    row_M, step_M = rollout.chosen
    if last:
        row_M = torch.cat([row_M, torch.arange(len(rollout), device=row_M.device)])
        step_M = torch.cat([step_M, rollout.length_N])
    read_N = rollout.length_N if last else rollout.length_N - 1
    if rollout.steps == 1 and not last:
        return before_N1C[row_M, step_M]
    responses.layers = [ResponseLayer(layer, group_N) for layer in layers]
    ids_NT = with_actions(ids_GL[group_N, :0], torch.zeros_like(read_N), rollout, policy._filler, read_N)
    if not even:
        inputs = _padded_inputs(
            real_GL[group_N], torch.arange(ids_NT.shape[1], device=read_N.device) < read_N[:, None]
        )
    after_NTC: Tensor = trunk(
        input_ids=ids_NT, past_key_values=responses, use_cache=True, **accepted(trunk, **inputs)
    ).last_hidden_state
    return torch.cat([before_N1C, after_NTC], 1)[row_M, step_M]


def _padded_inputs(real_NL: Tensor, more_NT: Tensor | None = None) -> dict[str, Tensor]:
    """What a trunk is told of rows with padding; with `more_NT`, of the tokens behind them."""
    before = real_NL.shape[1] if more_NT is not None else 0
    real_NL = real_NL if more_NT is None else torch.cat([real_NL, more_NT], 1)
    position_NL = (real_NL.cumsum(1) - 1).clamp_min(0)
    return {"attention_mask": real_NL.long(), "position_ids": position_NL[:, before:]}
