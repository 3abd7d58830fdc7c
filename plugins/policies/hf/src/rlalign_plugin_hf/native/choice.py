"""Which decoder a policy uses: a family's native step where it gives what transformers gives, else its forward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlalign_plugin_hf.native.decoder import refresh
from rlalign_plugin_hf.native.layers import Unfit
from rlalign_plugin_hf.selftest import fault, padding_token

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel
    from rlalign_plugin_hf.native.family import Family

FAMILIES = {
    "bart": "rlalign_plugin_hf.native.bart:Bart",
    "gpt2": "rlalign_plugin_hf.native.gpt2:GPT2",
    "llama": "rlalign_plugin_hf.native.llama:Llama",
    "mistral": "rlalign_plugin_hf.native.llama:Llama",
    "mt5": "rlalign_plugin_hf.native.t5:T5",
    "qwen2": "rlalign_plugin_hf.native.llama:Llama",
    "qwen3": "rlalign_plugin_hf.native.llama:Llama",
    "t5": "rlalign_plugin_hf.native.t5:T5",
}
"""The family of each `model_type`."""
GROUP = "rlalign.decoders"
"""Entry points of more: a `model_type`, and where its family is."""
_log = logging.getLogger("rlalign")


def family_of(config: Any) -> Family:
    """The family of a network with this configuration; raises `Unfit`."""
    model_type = config.model_type
    place = FAMILIES.get(model_type)
    for point in entry_points(group=GROUP, name=model_type):
        place = point.value
    if place is None:
        raise Unfit(f"there is no native step for `{model_type}`")
    if getattr(config, "quantization_config", None) is not None:
        raise Unfit("its weights are quantised")
    found: Family = resolve_name(place)(config)
    return found


class Decoding:
    """How one policy decodes, and why."""

    def __init__(self, config: Any) -> None:
        self._config, self._why, self._verified = config, "", False
        self._family: Family | None = None
        try:
            self._family = family_of(config)
        except Unfit as why:
            self._why = str(why)

    def __str__(self) -> str:
        if self._family is None:
            return f"by transformers' forward: {self._why}"
        window = self._family.window
        short = "" if window is None else f", where prompt and response are no longer than {window} tokens"
        return f"by the native {type(self._family).__name__} step{short}"

    @property
    def has_native(self) -> bool:
        """Whether there is a native step, as far as is known."""
        return self._family is not None

    def twin(self) -> Decoding:
        """The same, for a policy of the same architecture."""
        made = Decoding(self._config)
        made._why, made._verified = self._why, self._verified
        if self._family is None:
            made._family = None
        return made

    def verify(self, policy: LanguageModel) -> None:
        """Go on natively only if that gives the network's own logits; says so once where it does not."""
        self._verified = True
        self.settle(policy)
        if self._family is None:
            return
        pad = None if policy.never is not None else padding_token(policy)
        if (why := fault(policy, pad)) is not None:
            self._family, self._why = None, f"natively, {why}"
            _log.warning("%s decodes %s", policy.config.path, self)

    def settle(self, policy: LanguageModel) -> None:
        """Move the parameters of a network, which was just made or moved, to where no copies are needed."""
        if self._family is None or not self._verified or policy.sharded:
            return
        try:
            refresh(self._family, policy, join=True)
        except Unfit as unfit:
            self._family, self._why = None, str(unfit)

    def forget(self) -> None:
        """Keep no weights, nor copies of them."""
        if self._family is not None:
            self._family.forget()

    def native(self, policy: LanguageModel, inputs: Sequence[Tensor]) -> Family | None:
        """The family that decodes these prompts, or None."""
        family = self._family
        if family is None or not self._verified or _watched(policy.network):
            return None
        if family.window is not None:
            longest = max(map(len, inputs)) + policy.new_tokens
            if not policy.new_tokens or longest > family.window:
                return None
        return family


def _watched(network: nn.Module) -> bool:
    """Whether something hangs on a module's `forward`, which a native step does not call.

    What only puts weights together that are cut over processes does not count.
    """
    for module in network.modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if "forward" in module.__dict__ or any(
            ".fsdp." not in getattr(hook, "__module__", "") for hook in hooks
        ):
            return True
    return False
