"""Decoder-only models: prompt and response are one row.

Sampling pads prompts on the left, so that all rows grow at the same column; positions count real tokens
only. Training computes a prompt once for all its responses (`prompts_once`), or pads whole rows on the right,
where a causal model never looks: no mask, and the positions are those of the row alone. All give what the
unpadded row gives (tests/test_exact.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlalign import Decoder, RLAlignError, Rollout
from rlalign_plugin_hf.batches import (
    accepted,
    distinct,
    feature_places,
    left_padded,
    right_padded,
    with_actions,
    worth_prompts_once,
)
from rlalign_plugin_hf.heads import own_head
from rlalign_plugin_hf.lazy import LazyDecoder
from rlalign_plugin_hf.model import LanguageModel
from rlalign_plugin_hf.native.decoder import causal_decoder
from rlalign_plugin_hf.options import Kind, ModelOptions, where
from rlalign_plugin_hf.saving import LOADING
from rlalign_plugin_hf.selftest import computes_prompts_once


class CausalLM(LanguageModel):
    """Any decoder-only model of transformers (GPT-2, Llama, Qwen, Gemma, …)."""

    class Config(ModelOptions):
        """Options of `causal-lm`."""

    kind: ClassVar[Kind] = "causal"
    loading = LOADING.format("AutoModelForCausalLM")
    _anatomy = ("_trunk_name", "_filler", "prompts_once")
    _trunk_name = ""
    _filler = 0

    def _by_forward(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        return CausalDecoder(self, inputs, k)

    def _natively(self, family: Any, inputs: Sequence[Tensor], k: int) -> Decoder:
        return causal_decoder(self, family, inputs, k)

    def _side_by_side(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return left_padded(inputs, self._filler)

    def _given(self, prompt: int) -> int:
        return prompt

    def _trunk(self) -> Any:
        return self.network.get_submodule(self._trunk_name)

    def _features(self, rollout: Rollout, last: bool) -> Tensor:
        if self.prompts_once and worth_prompts_once(rollout):
            from rlalign_plugin_hf import prompts_once

            return prompts_once.features(self, rollout, last)
        return self._features_of_rows(rollout, last)

    def _features_of_rows(self, rollout: Rollout, last: bool) -> Tensor:
        """[M,C], each row computed whole."""
        prompt_GL, real_GL = right_padded(rollout.inputs, self._filler)
        start_N = real_GL.sum(1)[rollout.group_N]
        steps_N = rollout.length_N if last else rollout.length_N - 1
        ids_NL = with_actions(prompt_GL[rollout.group_N], start_N, rollout, self._filler, steps_N)
        return self._hidden(ids_NL)[feature_places(rollout, start_N, last)]

    def _prompt_features(self, rollout: Rollout) -> Tensor:
        ids_GL, real_GL = right_padded(rollout.inputs, self._filler)
        groups = torch.arange(len(ids_GL), device=ids_GL.device)
        return self._hidden(ids_GL)[groups, real_GL.sum(1) - 1]

    def _prompt_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        prompts, which_G = distinct(rollout.inputs)
        ids_nL, real_nL = right_padded(prompts, self._filler)
        return self._hidden(ids_nL)[which_G], real_nL[which_G]

    def _hidden(self, ids_NL: Tensor) -> Tensor:
        """[N,L,C] of rows padded on the right."""
        hidden: Tensor = self._trunk()(input_ids=ids_NL, use_cache=False).last_hidden_state
        return hidden

    def _forward_without_trunk(self, features: Tensor) -> Tensor:
        nothing = torch.zeros(1, 1, dtype=torch.long, device=features.device)
        logits: Tensor = self.network(input_ids=nothing, use_cache=False).logits
        return logits

    def _find_trunk(self) -> None:
        network = self.network
        names = {id(module): name for name, module in network.named_modules()}
        # A filler that is no padding token: rows carry no mask, and transformers would warn.
        pad = getattr(network.config, "pad_token_id", None)
        self._filler = 1 if pad == 0 else 0
        why = ""
        probe = torch.full((1, 2), 5, dtype=torch.long, device=self.device)
        for candidate in (network.base_model, network.get_decoder(), getattr(network, "model", None)):
            name = names.get(id(candidate))
            if not name:
                continue
            self._trunk_name = name
            try:
                hidden = self._hidden(probe)
                self.width = hidden.shape[-1]
                own_head(self, hidden[0])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # not this one: the head reads another module
                why = f" ({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})"
                continue
            self.prompts_once = computes_prompts_once(self)
            return
        raise RLAlignError(
            f"{where(self.config)}: a {type(network).__name__} has no trunk whose states its head reads; it cannot be "
            f"trained here{why}"
        )

    def own_logits(self, prompt: Tensor, actions_T: Tensor) -> Tensor:
        row = torch.cat([prompt, actions_T[:-1]])
        logits: Tensor = self.network(input_ids=row[None], use_cache=False).logits[0, len(prompt) - 1 :]
        return logits


class CausalDecoder(LazyDecoder):
    """Responses in progress over a key–value cache: each distinct prompt is read once."""

    policy: CausalLM

    def __init__(self, policy: CausalLM, inputs: Sequence[Tensor], k: int) -> None:
        from rlalign_plugin_hf.cache import growing_cache

        self.policy = policy
        prompts, which_G = distinct(inputs)
        ids_nL, real_nL = left_padded(prompts, policy._filler)
        self._cache: Any = growing_cache(policy.network.config)
        self._next_n = real_nL.sum(1)
        self._real_nL: Tensor | None = None if bool(real_nL.all()) else real_nL
        self._forward(ids_nL, (real_nL.cumsum(1) - 1).clamp_min(0))
        if k > 1 or len(prompts) < len(inputs):
            self._keep(which_G.repeat_interleave(k))

    def _take(self, token_n: Tensor) -> None:
        if self._real_nL is not None:
            self._real_nL = torch.cat([self._real_nL, self._real_nL.new_ones(len(token_n), 1)], 1)
        self._forward(token_n[:, None], self._next_n[:, None])
        self._next_n = self._next_n + 1

    def _keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._next_n, self._hidden_nC = self._next_n[rows], self._hidden_nC[rows]
        if self._real_nL is not None:
            self._real_nL = self._real_nL[rows]

    def _forward(self, ids_nL: Tensor, position_nL: Tensor) -> None:
        with self.policy.acting(training=False):
            trunk = self.policy._trunk()
            mask = None if self._real_nL is None else self._real_nL.long()
            inputs = accepted(
                trunk, attention_mask=mask, position_ids=position_nL, past_key_values=self._cache
            )
            if (
                "past_key_values" not in inputs
            ):  # Mamba: a state, in which no padding is left after the prompt
                inputs = {
                    "cache_params": self._cache,
                    "attention_mask": mask if ids_nL.shape[1] > 1 else None,
                }
            found = trunk(input_ids=ids_nL, use_cache=True, **inputs)
        self._hidden_nC = found.last_hidden_state[:, -1]
