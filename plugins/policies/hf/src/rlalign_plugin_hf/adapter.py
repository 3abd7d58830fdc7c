"""LoRA: adapters in a network, and copies of them that borrow the network they were made for.

A copy (the reference, NLPO's mask, a value) holds adapter weights of its own and no network. While it
computes, its weights stand in the network in place of the learner's; one whose adapter still does nothing
switches the adapter off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlalign import RLAlignError
from rlalign_plugin_hf.loading import seeded
from rlalign_plugin_hf.options import LoRA

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel

NAME = "default"
ZERO_AT_FIRST = (".lora_B.", ".lora_embedding_A.")
"""The factors whose zeros make an adapter do nothing: of linear layers, and of embeddings."""


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
    _require_unshared(network)
    for name, layer in named_layers(network):
        base = layer.get_base_layer()
        if isinstance(base, nn.Embedding) and len(signature(base.forward).parameters) > 1:
            raise RLAlignError(
                f"lora.targets: `{name}` looks up positions, and an adapter would stand in its way; leave it out"
            )


def _require_unshared(network: Any) -> None:
    """Refuse an adapter of a weight that two modules have: merged, it would change the other module too."""
    with_adapter = {id(layer.get_base_layer()): name for name, layer in named_layers(network)}
    owners: dict[int, list[Any]] = {}
    for module in network.modules():
        for weight in module._parameters.values():
            if weight is not None:
                owners.setdefault(id(weight), []).append(module)
    for sharing in owners.values():
        found = [with_adapter[id(module)] for module in sharing if id(module) in with_adapter]
        if found and len(sharing) > 1:
            raise RLAlignError(
                f"lora.targets: `{found[0]}` shares its weights with another layer (`tie_word_embeddings`), which "
                "would change with it once the adapter is merged; leave it out"
            )


def _transposed(network: Any) -> bool:
    """GPT-2's Conv1D keeps its weight the other way round."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in network.modules())


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights by name."""
    return {name: p for name, p in network.named_parameters() if ".lora_" in name}


def named_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """The modules that have an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]


def save(policy: LanguageModel, folder: Path) -> None:
    """Write a policy's adapter, and nothing of its network, as peft and what serves adapters load it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    with policy.acting():
        found = get_peft_model_state_dict(policy.network, adapter_name=NAME, save_embedding_layers=False)
        kept = {f"base_model.model.{name}": x.detach().cpu().contiguous() for name, x in found.items()}
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    policy.network.peft_config[NAME].save_pretrained(folder)


def idle(weights: Mapping[str, Tensor]) -> bool:
    """Whether the adapters change nothing."""
    return not any(
        bool(weight.any()) for name, weight in weights.items() if any(at in name for at in ZERO_AT_FIRST)
    )


class Slots:
    """The places in a network where the adapters' weights stand."""

    def __init__(self, network: nn.Module) -> None:
        modules = dict(network.named_modules())
        self.names = list(parameters(network))
        cut = [name.rpartition(".") for name in self.names]
        self._owners = [(modules[owner], leaf) for owner, _, leaf in cut]
        self._layers = [layer for _, layer in named_layers(network)]

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
        before = [layer._disable_adapters for layer in self._layers]
        try:
            for layer in self._layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer, off in zip(self._layers, before, strict=True):
                layer._disable_adapters = off


class Loan:
    """A network that a copy borrows from its maker, while adapters of the copy's own stand in it."""

    def __init__(self, lender: LanguageModel, own: nn.ParameterDict, changes: bool) -> None:
        """`changes`: whether anybody may write to the copy's adapters without a word to it."""
        self.lender, self._own, self._changes = lender, own, changes
        self._idle: bool | None = None

    @property
    def network(self) -> Any:
        return self.lender.model

    @property
    def _slots(self) -> Slots:
        assert self.lender.slots is not None
        return self.lender.slots

    def weights(self) -> dict[str, nn.Parameter]:
        """The copy's adapters, by their names in the network."""
        return {name: self._own[_key(name)] for name in self._slots.names}

    def idle(self) -> bool:
        """Whether they do nothing and never will."""
        if self._idle is None:
            self._idle = not self._changes and idle(self.weights())
        return self._idle

    def renewed(self) -> None:
        """The copy has got other weights."""
        self._idle = None

    def acting(self) -> AbstractContextManager[None]:
        """While this lasts, the network computes as the copy."""
        return self._slots.off() if self.idle() else self._slots.filled(self.weights())


def copied(weights: Mapping[str, Tensor]) -> nn.ParameterDict:
    """Adapters of a copy's own."""
    return nn.ParameterDict({_key(name): nn.Parameter(w.detach().clone()) for name, w in weights.items()})


def _key(name: str) -> str:
    """A parameter's name without dots, which a ParameterDict does not take."""
    return name.replace(".", "/")


def merged(network: Any) -> Any:
    """A copy of the network with the adapters, if they are on, added into its weights: an ordinary model again."""
    twin = copy.deepcopy(network)
    modules = dict(twin.named_modules())
    for name, layer in named_layers(twin):
        if not layer.disable_adapters:
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
