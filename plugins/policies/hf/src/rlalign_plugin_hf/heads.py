"""A network's head: what its own `forward` makes of the trunk's states, and whether that is one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlalign import RLAlignError
from rlalign_plugin_hf.bypass import bypassed

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel


def logits(policy: LanguageModel, features: Tensor, bare: bool) -> Tensor:
    """[n,V] of states [n,C]; `bare`: the output layer is all there is."""
    if not bare:
        return own_head(policy, features)
    found: Tensor = policy.network.get_output_embeddings()(features)
    return found


def own_head(policy: LanguageModel, features: Tensor) -> Tensor:
    """The network's own `forward` from the features on: scales, biases and caps are where it puts them."""
    with bypassed(policy._trunk(), features[None]) as bypass:
        logits: Tensor = policy._forward_without_trunk(features)
    if not bypass.used:
        raise RLAlignError("the trunk was not called")
    return logits[0]


def is_bare(policy: LanguageModel) -> bool:
    """Whether the plain head, which is faster, is all there is: far from zero a cap or a scale shows, there a bias."""
    lm_head = policy.network.get_output_embeddings()
    if lm_head is None:
        return False
    generator = torch.Generator().manual_seed(0)
    far = 50 * torch.randn(4, policy.width, generator=generator, device="cpu").to(policy._weight)
    for features in (far, torch.zeros_like(far)):
        bare = lm_head(features)
        own, most = own_head(policy, features), float(bare.abs().max())
        if not torch.allclose(bare, own, rtol=1e-5, atol=1e-5 * most):
            return False
    return True


def matrix_of(lm_head: nn.Module | None) -> Tensor | None:
    """[V,C]: the weight of a bare head that adds nothing to it; an adapter on it would."""
    return lm_head.weight if type(lm_head) is nn.Linear and lm_head.bias is None else None


def forget(policy: LanguageModel) -> None:
    """Keep the trunk only, of a copy that serves as a value's body and has a network of its own."""
    if policy.config.lora is not None:
        return
    network = policy.network
    head = network.get_output_embeddings()
    for name, module in list(network.named_modules()):
        if module is head and module is not network.get_input_embeddings():
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
