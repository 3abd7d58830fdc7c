"""Encoder–decoder models: the prompt is encoded, the response decoded.

Each distinct prompt of a piece is encoded once; its rows share the result. Prompts are padded on the right
under a mask, responses on the right without one, where a causal decoder never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlalign import Decoder, RLAlignError, Rollout
from rlalign_plugin_hf.batches import accepted, distinct, feature_places, right_padded, with_actions
from rlalign_plugin_hf.lazy import LazyDecoder
from rlalign_plugin_hf.model import LanguageModel
from rlalign_plugin_hf.native.decoder import NativeSeq2SeqDecoder
from rlalign_plugin_hf.options import Kind, ModelOptions, where
from rlalign_plugin_hf.saving import LOADING


class Seq2SeqLM(LanguageModel):
    """Any encoder–decoder text model of transformers (T5, BART, Pegasus, …)."""

    class Config(ModelOptions):
        """Options of `seq2seq-lm`."""

    kind: ClassVar[Kind] = "seq2seq"
    loading = LOADING.format("AutoModelForSeq2SeqLM")
    prompts_once = True
    _anatomy = ("_begin",)
    _begin: tuple[int, ...] = ()
    """What every response begins with and nobody chose: the decoder's start, and a forced first token."""

    def _by_forward(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        return Seq2SeqDecoder(self, inputs, k)

    def _natively(self, family: Any, inputs: Sequence[Tensor], k: int) -> Decoder:
        return NativeSeq2SeqDecoder(self, family, inputs, k)

    def _side_by_side(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return right_padded(inputs, 0)  # encoders may count positions from the left

    def _given(self, prompt: int) -> int:
        return len(self._begin)

    def _trunk(self) -> Any:
        decoder = self.network.get_decoder()
        return getattr(decoder, "base_model", decoder)  # of an EncoderDecoderModel it is a language model

    def encoded(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """(states [n,S,C], mask [n,S] or None where nothing is padded), one row per prompt."""
        ids_nS, real_nS = right_padded(prompts, 0)
        mask_nS = None if bool(real_nS.all()) else real_nS.long()
        states: Tensor = self.network.get_encoder()(
            input_ids=ids_nS, attention_mask=mask_nS
        ).last_hidden_state
        between = getattr(self.network, "enc_to_dec_proj", None)  # where the two are of different width
        return states if between is None else between(states), mask_nS

    def _features(self, rollout: Rollout, last: bool) -> Tensor:
        states_nSC, mask_nS, which_N = self._encoded_rows(rollout.inputs, rollout.group_N)
        begin = torch.tensor(self._begin, device=which_N.device)
        start_N = torch.full_like(which_N, len(begin))
        steps_N = rollout.length_N if last else rollout.length_N - 1
        ids_NL = with_actions(begin.expand(len(which_N), -1), start_N, rollout, 0, steps_N)
        hidden = self._hidden(ids_NL, states_nSC[which_N], None if mask_nS is None else mask_nS[which_N])
        return hidden[feature_places(rollout, start_N, last)]

    def _prompt_features(self, rollout: Rollout) -> Tensor:
        every = torch.arange(len(rollout.inputs), device=rollout.group_N.device)
        states_nSC, mask_nS, which_G = self._encoded_rows(rollout.inputs, every)
        ids_GL = torch.tensor(self._begin, device=every.device).expand(len(every), -1)
        hidden = self._hidden(ids_GL, states_nSC[which_G], None if mask_nS is None else mask_nS[which_G])
        return hidden[:, -1]

    def _prompt_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        prompts, which_G = distinct(rollout.inputs)
        states_nSC, mask_nS = self.encoded(prompts)
        real_nS = states_nSC.new_ones(states_nSC.shape[:2]) if mask_nS is None else mask_nS
        return states_nSC[which_G], real_nS.bool()[which_G]

    def _encoded_rows(
        self, inputs: Sequence[Tensor], group_N: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        prompts, which_G = distinct(inputs)
        states_nSC, mask_nS = self.encoded(prompts)
        return states_nSC, mask_nS, which_G[group_N]

    def _hidden(self, ids_NL: Tensor, states_NSC: Tensor, mask_NS: Tensor | None) -> Tensor:
        """[N,L,C] of the decoder, rows padded on the right."""
        found = self._trunk()(
            input_ids=ids_NL,
            encoder_hidden_states=states_NSC,
            encoder_attention_mask=mask_NS,
            use_cache=False,
        )
        hidden: Tensor = found.last_hidden_state
        return hidden

    def _forward_without_trunk(self, features: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        nothing = torch.zeros(1, 1, dtype=torch.long, device=features.device)
        encoded = BaseModelOutput(last_hidden_state=features.new_zeros(1, 1, features.shape[-1]))
        found = self.network(encoder_outputs=encoded, decoder_input_ids=nothing, use_cache=False)
        logits: Tensor = found.logits
        return logits

    def _find_trunk(self) -> None:
        network, generation = self.network, getattr(self.network, "generation_config", None)

        def named(token: str) -> int | None:
            for settings in (generation, network.config, self.tokenizer):
                if (found := getattr(settings, token, None)) is not None:
                    return int(found)
            return None

        start = named("decoder_start_token_id")
        start = named("bos_token_id") if start is None else start
        if start is None:
            raise RLAlignError(
                f"{where(self.config)}: nothing says what a response begins with; its config needs a "
                "`decoder_start_token_id`"
            )
        forced = getattr(generation, "forced_bos_token_id", None)
        self._begin = (start,) if forced is None else (start, int(forced))
        self.positions.begin = len(self._begin)
        try:
            states, _ = self.encoded([torch.zeros(2, dtype=torch.long, device=self.device)])
            ids = torch.tensor([self._begin], device=self.device)
            self.width = self._hidden(ids, states, None).shape[-1]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            raise RLAlignError(
                f"{where(self.config)}: a {type(network).__name__} has no encoder and decoder that run apart on text; "
                f"it cannot be trained here ({why})"
            ) from error

    def own_logits(self, prompt: Tensor, actions_T: Tensor) -> Tensor:
        row = torch.cat([torch.tensor(self._begin, device=prompt.device), actions_T[:-1]])
        found = self.network(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            decoder_input_ids=row[None],
            use_cache=False,
        )
        logits: Tensor = found.logits[0, len(self._begin) - 1 :]
        return logits


class Seq2SeqDecoder(LazyDecoder):
    """Responses in progress: each distinct prompt is encoded once, its cross-attention keys made once."""

    policy: Seq2SeqLM

    def __init__(self, policy: Seq2SeqLM, inputs: Sequence[Tensor], k: int) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        from rlalign_plugin_hf.cache import growing_cache

        self.policy = policy
        config = policy._trunk().config  # a T5's decoder may have more layers than its encoder
        prompts, which_G = distinct(inputs)
        with policy.acting(training=False):
            self._states_nSC, self._mask_nS = policy.encoded(prompts)
        self._cache: Any = EncoderDecoderCache(growing_cache(config), DynamicCache())
        begin = torch.tensor(policy._begin, device=which_G.device)
        self._forward(begin.expand(len(prompts), -1))
        if k > 1 or len(prompts) < len(inputs):
            self._keep(which_G.repeat_interleave(k))

    def _take(self, token_n: Tensor) -> None:
        self._forward(token_n[:, None])

    def _keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._states_nSC, self._hidden_nC = self._states_nSC[rows], self._hidden_nC[rows]
        if self._mask_nS is not None:
            self._mask_nS = self._mask_nS[rows]

    def _forward(self, ids_nL: Tensor) -> None:
        with self.policy.acting(training=False):
            trunk = self.policy._trunk()
            inputs = accepted(trunk, encoder_attention_mask=self._mask_nS)
            found = trunk(
                input_ids=ids_nL,
                encoder_hidden_states=self._states_nSC,
                past_key_values=self._cache,
                use_cache=True,
                **inputs,
            )
        self._hidden_nC = found.last_hidden_state[:, -1]
