"""LoRA: adapters in a network, and copies of them that borrow the network they were made for.

A copy (the reference, NLPO's mask, a value) holds adapter weights of its own and no network. While it
computes, its weights stand in the network in place of the learner's; one whose adapter still does nothing
switches the adapter off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rlalign import RLAlignError
from rlalign_plugin_hf.loading import LoRA, seeded

NAME = "default"


def require_peft() -> None:
    """Refuse adapters where the library that makes them is missing."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise RLAlignError(
            "`lora` needs peft, which is not installed: `pip install peft` (the extra `lora` of rlalign-plugin-hf)"
        ) from error


def inject(network: Any, options: LoRA, seed: int) -> None:
    """Give the network adapters; everything else is frozen. The second factor starts at zero."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = options.targets if isinstance(options.targets, str) else list(options.targets)
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha if options.alpha is not None else options.r,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=options.dropout,
        bias="none",
        fan_in_fan_out=_transposed(network),
    )
    try:
        with seeded(seed):
            inject_adapter_in_model(config, network, adapter_name=NAME)
    except ValueError as error:
        raise RLAlignError(f"lora: {error}") from error


def _transposed(network: Any) -> bool:
    """GPT-2's Conv1D keeps its weight the other way round."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in network.modules())


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights by name."""
    return {name: p for name, p in network.named_parameters() if ".lora_" in name}


def layers(network: nn.Module) -> list[Any]:
    """The modules that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def idle(weights: Mapping[str, Tensor]) -> bool:
    """Whether the adapters change nothing: every second factor is zero."""
    return not any(bool(weight.any()) for name, weight in weights.items() if ".lora_B." in name)


class Slots:
    """The places in a network where the adapters' weights stand."""

    def __init__(self, network: nn.Module) -> None:
        modules = dict(network.named_modules())
        self.names = list(parameters(network))
        cut = [name.rpartition(".") for name in self.names]
        self._owners = [(modules[owner], leaf) for owner, _, leaf in cut]
        self._layers = layers(network)

    @contextmanager
    def filled(self, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """These weights instead of the network's own."""
        own = [owner._parameters[leaf] for owner, leaf in self._owners]
        try:
            for (owner, leaf), name in zip(self._owners, self.names, strict=True):
                owner._parameters[leaf] = weights[name]
            yield
        finally:
            for (owner, leaf), weight in zip(self._owners, own, strict=True):
                owner._parameters[leaf] = weight

    @contextmanager
    def off(self) -> Iterator[None]:
        """No adapters at all. (peft's own switch would also move `requires_grad`.)"""
        try:
            for layer in self._layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer in self._layers:
                layer._disable_adapters = False


def merged(network: Any) -> Any:
    """A copy of the network with the adapters added into its weights: an ordinary model again."""
    twin = copy.deepcopy(network)
    modules = dict(twin.named_modules())
    for name, layer in [(n, m) for n, m in modules.items() if m in set(layers(twin))]:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, layer.get_base_layer())
    return twin


def added(layer: Any) -> tuple[Tensor | None, list[Tensor]]:
    """(what the adapter adds to its layer's weight, the factors that make it); nothing, where it is off."""
    if layer.disable_adapters:
        return None, []
    factors = [p for name, p in layer.named_parameters() if name.startswith("lora_")]
    delta: Tensor = layer.get_delta_weight(NAME)
    return delta.detach(), factors
