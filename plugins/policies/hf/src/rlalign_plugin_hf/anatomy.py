"""What a causal language model and an encoder–decoder do each in its own way; the rest is in model.py.

Legend: G groups, L longest prompt, T steps, m states, M of chosen steps, C width of the trunk, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from rlalign import Decoder, Policy, Rollout
from rlalign_plugin_hf.options import Kind


class Anatomy(Policy):
    """Where its trunk is, how rows are laid out for it, and how it decodes."""

    kind: ClassVar[Kind]
    _anatomy: tuple[str, ...] = ()
    """Attributes that `_find_trunk` sets."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """The transformers model it computes with."""

    @property
    def _weight(self) -> Tensor:
        """[V,·]: the embeddings of tokens."""
        weight: Tensor = self.network.get_input_embeddings().weight
        return weight

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self._weight)

    @abstractmethod
    def _find_trunk(self) -> None:
        """Learn how this architecture is built."""

    @abstractmethod
    def _trunk(self) -> Any:
        """The module whose last hidden state the head reads."""

    @abstractmethod
    def _forward_without_trunk(self, features: Tensor) -> Tensor:
        """[1,m,V]: the network's `forward` on the least input there is."""

    @abstractmethod
    def own_logits(self, prompt: Tensor, actions_T: Tensor) -> Tensor:
        """[T,V] before each action, by the network's own forward of this row alone: nothing padded, nothing cached."""

    @abstractmethod
    def _features(self, rollout: Rollout, last: bool) -> Tensor:
        """[M,C]: `features`, with this model's weights in the network."""

    @abstractmethod
    def _prompt_features(self, rollout: Rollout) -> Tensor:
        """[G,C]: the state before the first step of each group's responses; nothing but prompts is read."""

    @abstractmethod
    def _prompt_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`prompt_states`, with this model's weights in the network."""

    @abstractmethod
    def _by_forward(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        """By transformers' forward, whatever the architecture."""

    @abstractmethod
    def _natively(self, family: Any, inputs: Sequence[Tensor], k: int) -> Decoder:
        """By its family's step."""

    @abstractmethod
    def _side_by_side(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(ids_GL, real_GL) of prompts, padded where `generate` wants it."""

    @abstractmethod
    def _given(self, prompt: int) -> int:
        """How many leading tokens of what `generate` returns were not chosen."""
