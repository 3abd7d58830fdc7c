"""Prompts read for slots: each distinct one once, kept until the last of its responses has come in.

Legend: m rows that come in, n prompts, P columns of prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlalign_plugin_hf.batches import right_padded
from rlalign_plugin_hf.engine.slots import Model
from rlalign_plugin_hf.native.attention import Columns, Cross
from rlalign_plugin_hf.native.decoder import encoded, precisely
from rlalign_plugin_hf.native.family import EncoderDecoder

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel

TOGETHER = 16_384
"""Padded tokens of prompts that are read together."""


class Prompts:
    """The prompts of one model."""

    def __init__(self, policy: LanguageModel, model: Model) -> None:
        self._policy, self._model = policy, model
        self._inputs: Sequence[Tensor] = ()
        self._read: dict[int, tuple[Columns, Cross | None, int]] = {}
        """Where each that was read stands: buffers, and its row in them."""

    def open(self, inputs: Sequence[Tensor]) -> None:
        """Begin with these prompts, all different."""
        self._inputs, self._read = inputs, {}

    def starts(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(tokens, columns) of the first step of rows with these prompts."""
        device = self._model.columns.both.device
        begin = self._begin
        tokens = [begin[-1] if begin else int(self._inputs[i][-1]) for i in prompts]
        columns = [len(begin) - 1 if begin else len(self._inputs[i]) - 1 for i in prompts]
        return torch.tensor(tokens, device=device), torch.tensor(columns, device=device)

    def place(self, slots: Tensor, prompts: Sequence[int], still: Collection[int]) -> None:
        """Put each prompt into its slot; those `still` wanted are kept."""
        missing = list(dict.fromkeys(i for i in prompts if i not in self._read))
        while missing:
            longest = max(len(self._inputs[i]) for i in missing)
            now, missing = missing[: max(1, TOGETHER // longest)], missing[max(1, TOGETHER // longest) :]
            columns, cross = self._reading([self._inputs[i] for i in now])
            self._read |= {i: (columns, cross, row) for row, i in enumerate(now)}
        together: dict[int, list[int]] = {}
        for place, i in enumerate(prompts):
            together.setdefault(id(self._read[i][0]), []).append(place)
        for places in together.values():
            columns, cross, _ = self._read[prompts[places[0]]]
            rows = torch.tensor([self._read[prompts[place]][2] for place in places], device=slots.device)
            self._model.place(slots[torch.tensor(places, device=slots.device)], columns, cross, rows)
        self._read = {i: held for i, held in self._read.items() if i in still}

    @property
    def _begin(self) -> tuple[int, ...]:
        """What every response of an encoder–decoder begins with."""
        return tuple(getattr(self._policy, "_begin", ()))

    def _reading(self, inputs: Sequence[Tensor]) -> tuple[Columns, Cross | None]:
        family, policy = self._model.family, self._policy
        if isinstance(family, EncoderDecoder):
            reader: Any = policy
            columns, cross, _ = encoded(reader, family, inputs)
            return columns, cross
        ids_nP, real_nP = right_padded(inputs, 0)
        columns = family.columns(*ids_nP.shape)
        with precisely(ids_nP):
            family.prefill(columns, ids_nP, None if bool(real_nP.all()) else real_nP)
        return columns, None
