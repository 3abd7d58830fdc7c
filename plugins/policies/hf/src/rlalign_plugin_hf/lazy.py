"""What the decoders of both kinds of model share: a token is computed only when its logits are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel


class LazyDecoder(ABC):
    """Rows that end with the token just taken are dropped before anything is computed for them."""

    policy: LanguageModel
    _hidden_nC: Tensor
    _pending_n: Tensor | None = None

    def logits(self) -> Tensor:
        if self._pending_n is not None:
            token_n, self._pending_n = self._pending_n, None
            self._take(token_n)
        with self.policy.acting(training=False):
            return self.policy.head(self._hidden_nC)

    def advance(self, tokens_n: Tensor) -> None:
        self._pending_n = tokens_n

    def select(self, rows: Tensor) -> None:
        self._keep(rows)
        if self._pending_n is not None:
            self._pending_n = self._pending_n[rows]

    @abstractmethod
    def _take(self, token_n: Tensor) -> None:
        """Run one step; its state goes to `_hidden_nC`."""

    @abstractmethod
    def _keep(self, rows: Tensor) -> None:
        """Go on with these rows of cache and state."""
