"""How servers come by the policy's weights: as files of the whole model, or of its adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlalign import Policy
from rlalign.records.scratch import Scratch
from rlalign_plugin_vllm.servers import Server

NAME = "policy"
"""What servers call the policy: the model, or under `weights: adapter` the adapter."""


class Files:
    """The whole model, as files that servers read."""

    environment: Mapping[str, str] = {}
    """What servers that are started find set."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._scratch: Scratch | None = None

    @property
    def folder(self) -> Path:
        """A folder of this run's own."""
        if self._scratch is None:
            self._scratch = Scratch("rlalign-vllm", self.config.folder)
            if self.config.folder is not None:  # servers of another user may read what is there
                self._scratch.path.chmod(0o755)
        return self._scratch.path

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def refusal(self, policy: Policy, device: torch.device, beside: int) -> str | None:
        """Why servers cannot take the weights of this policy, which will be on this device.

        `beside`: how many processes of the run are on this machine.
        """
        return None

    def ready(self, policy: Policy, device: torch.device) -> None:
        """Its present weights are those that servers take from now on. `device`: where the run computes."""
        shutil.rmtree(self.weights, ignore_errors=True)
        self.weights.mkdir()
        self.write(policy)

    def write(self, policy: Policy) -> None:
        policy.save(self.weights)

    def arguments(self, policy: Policy) -> list[str]:
        """What servers are started with."""
        return [f"--model={self.weights}", f"--served-model-name={NAME}"]

    def give(self, server: Server, begun: bool) -> None:
        """Have a server take them. `begun`: it was started a moment ago, with the arguments above."""
        if not begun:
            said = {"method": "reload_weights", "kwargs": {"weights_path": str(self.weights)}}
            server.ask("/collective_rpc", said, self.config.seconds)
            server.ask("/reset_prefix_cache", {}, self.config.seconds)

    def moves_on(self) -> None:
        """The policy learns from now on, while servers sample with what they have taken."""

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()
        self._scratch = None


class AdapterFiles(Files):
    """The policy's adapter alone; the base is read once."""

    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}

    def refusal(self, policy: Policy, device: torch.device, beside: int) -> str | None:
        return (
            None
            if policy.shares and hasattr(policy, "save_adapter")
            else "the policy has none; say `lora` of it"
        )

    def write(self, policy: Policy) -> None:
        policy.save_adapter(self.weights)  # type: ignore[operator]  # `refusal` has looked

    def arguments(self, policy: Policy) -> list[str]:
        rank = f"--max-lora-rank={policy.config.lora.r}"
        return [f"--model={policy.base}", "--served-model-name=base", "--enable-lora", "--max-loras=1", rank]

    def give(self, server: Server, begun: bool) -> None:
        said = {"lora_name": NAME, "lora_path": str(self.weights), "load_inplace": not begun}
        server.ask("/v1/load_lora_adapter", said, self.config.seconds)
        if not begun:
            server.ask("/reset_prefix_cache", {}, self.config.seconds)
