"""NLPO's constraint: the nucleus of another model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlalign.decoding.interfaces import Decoder
from rlalign.decoding.logits import bad_logits, full_precision
from rlalign.decoding.nucleus import nucleus
from rlalign.decoding.sampler import steps_between_looks
from rlalign.decoding.truncation import best
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Model, Policy


class Nucleus:
    """NLPO's constraint: the top-p set of another model, which decodes in lock-step with the sampler.

    `always` are tokens never removed; the policy's `ends` and `specials` are added to them.
    """

    def __init__(
        self, model: str, top_p: float = 0.9, top_k: int = 0, min_keep: int = 1, always: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.top_p = top_p
        self.top_k = top_k
        self.min_keep = min_keep
        self.always = tuple(always)
        self._policy: Policy | None = None
        self._decoder: Decoder | None = None
        self._always: Tensor | None = None
        self._logits_nV = torch.empty(0, 0)
        self._step = 0
        self._sound: list[Tensor] = []
        """Of the steps since the last look: whether all logits were numbers."""

    def resolve(self, models: Mapping[str, Model]) -> None:
        model = models[self.model]
        if not isinstance(model, Policy):
            raise RLAlignError(f"a nucleus needs a policy, and `{self.model}` is a {type(model).__name__}")
        self._policy, self._always = model, None

    @property
    def policy(self) -> Policy:
        """The other model."""
        assert self._policy is not None, "a constraint is resolved when its phase starts"
        return self._policy

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        self._decoder = None  # makes room for the next
        self._decoder = self.policy.decoder(inputs, k)
        self._step, self._sound = 0, []

    def allowed(self) -> Tensor:
        assert self._decoder is not None
        logits_nV = self._logits_nV = full_precision(self._decoder.logits())
        self._step += 1
        self._sound.append(logits_nV.amax(1).isfinite().all())
        if len(self._sound) == steps_between_looks(logits_nV.device):
            self._look()
        return self.keeps(logits_nV)

    def keeps(self, logits_nV: Tensor) -> Tensor:
        """[n,V] bool: what logits of the other model leave; no device is waited for."""
        if self._always is None or self._always.device != logits_nV.device:
            always = [*self.always, *self.policy.ends, *self.policy.specials]
            self._always = torch.tensor(always, dtype=torch.long, device=logits_nV.device)
        kept_nV = nucleus(logits_nV, self.top_p)
        if self.top_k:
            kept_nV &= best(logits_nV, self.top_k)
        if self.min_keep > 1:
            best_nK = logits_nV.topk(min(self.min_keep, logits_nV.shape[1]), dim=1).indices
            kept_nV.scatter_(1, best_nK, True)
        # Nothing is left where logits are no numbers; the sampler refuses that if nobody has looked before.
        kept_nV[:, self._always] = logits_nV.amax(1, keepdim=True).isfinite()
        return kept_nV

    def _look(self) -> None:
        first = self._step - len(self._sound) + 1
        sound = torch.stack(self._sound).tolist()
        self._sound = []
        if not all(sound):
            raise bad_logits(self.policy, f"step {first + sound.index(False)} of a response")

    def instead(self, banned_nV: Tensor) -> Tensor:
        """[n,V] bool: the `min_keep` most probable tokens of those that are not banned."""
        return self.instead_of(self._logits_nV, banned_nV)

    def instead_of(self, logits_nV: Tensor, banned_nV: Tensor) -> Tensor:
        """`instead`, by logits of the other model; what is banned may be the same in all rows, [V]."""
        return best(logits_nV.masked_fill(banned_nV, -math.inf), self.min_keep)

    def advance(self, tokens_n: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.advance(tokens_n)

    def select(self, rows: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.select(rows)
