"""NLPO's constraint: the nucleus of another model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlalign.decoding.logits import bad_logits, full_precision
from rlalign.decoding.sampler import Decoder
from rlalign.decoding.top_k_top_p import best, nucleus
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
        self._always: Tensor | None = None
        self._decoder: Decoder | None = None
        self._logits_nV = torch.empty(0, 0)
        self._step = 0

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
        self._decoder = self.policy.decoder(inputs, k)
        self._step = 0

    def allowed(self) -> Tensor:
        assert self._decoder is not None
        self._step += 1
        logits_nV = self._logits_nV = full_precision(self._decoder.logits())
        if not bool(logits_nV.amax(1).isfinite().all()):
            raise bad_logits(self.policy, f"step {self._step} of a response")
        return self.keeps(logits_nV)

    def keeps(self, logits_nV: Tensor) -> Tensor:
        """[n,V] bool: what the other model's logits leave."""
        kept_nV = nucleus(logits_nV, self.top_p)
        if self.top_k:
            kept_nV &= best(logits_nV, self.top_k)
        if self.min_keep > 1:
            best_nK = logits_nV.topk(min(self.min_keep, logits_nV.shape[1]), dim=1).indices
            kept_nV.scatter_(1, best_nK, True)
        if self._always is None or self._always.device != logits_nV.device:
            always = {*self.always, *self.policy.ends, *self.policy.specials}
            self._always = torch.tensor(sorted(always), dtype=torch.long, device=logits_nV.device)
        return kept_nV.index_fill_(1, self._always, True)

    def instead(self, banned_V: Tensor) -> Tensor:
        return self.instead_of(self._logits_nV, banned_V)

    def instead_of(self, logits_nV: Tensor, banned_V: Tensor) -> Tensor:
        """[n,V] bool: the `min_keep` most probable tokens of those that are not banned."""
        return best(logits_nV.masked_fill(banned_V, -math.inf), self.min_keep)

    def advance(self, tokens_n: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.advance(tokens_n)

    def select(self, rows: Tensor) -> None:
        assert self._decoder is not None
        self._decoder.select(rows)
