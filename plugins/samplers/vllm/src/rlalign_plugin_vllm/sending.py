"""Weights over NCCL, from the policy's GPU to those of servers, by vLLM's own protocol of four phases.

Its endpoints were read in the source of vLLM 0.33.0 (`entrypoints/rl/online/api_router.py`, `v1/worker/gpu_worker.py`,
`distributed/weight_transfer/`), and names compared with 0.30.0 to 0.32.0. Of the two ways that it has to find a group,
this is the one that pickles nothing: NCCL's own id, as base64.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlalign import Policy, RLAlignError
from rlalign_plugin_vllm import nccl
from rlalign_plugin_vllm.servers import HEALTH_SECONDS, Failed, Server
from rlalign_plugin_vllm.threads import each
from rlalign_plugin_vllm.weights import Files

PART = 256 * 2**20
"""Bytes that are sent at one time, about."""


class Held(NamedTuple):
    """What a server was last given, and the group by which it was."""

    group: nccl.Group
    version: str


class Sent(Files):
    """The whole model, from GPU to GPU. Each server has a group of its own: one that fails stops no other."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._policy: Policy | None = None
        self._device = torch.device("cpu")
        self._run, self._times = secrets.token_hex(8), 0
        self._held: dict[Server, Held] = {}
        self._sending = threading.Lock()

    def refusal(self, policy: Policy, device: torch.device, beside: int) -> str | None:
        if policy.shares:
            return "the policy has an adapter, which is a few MB: say `weights: adapter`"
        if not hasattr(policy, "saved_tensors"):
            return f"a {type(policy).__name__} cannot say which tensors it saves; say `weights: folder`"
        if wrong := nccl.missing(self.config.nccl, device):
            return f"{wrong}; say `weights: folder`"
        taken = own_gpus(device, beside) & {str(gpu) for gpus in self.config.gpus for gpu in gpus}
        if taken and self.config.python is not None:
            return (
                f"GPU {', '.join(sorted(taken))} is the policy's own, and NCCL has one process of a group on each; say "
                "other `gpus`, or `weights: folder`"
            )
        return None

    def ready(self, policy: Policy, device: torch.device) -> None:
        self._policy, self._times, self._device = policy, self._times + 1, device
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # other threads and streams read them now
        if self.config.python is not None and not self.weights.exists():  # they begin with these
            super().ready(policy, device)

    def moves_on(self) -> None:
        self._policy = None

    def arguments(self, policy: Policy) -> list[str]:
        return [*super().arguments(policy), '--weight-transfer-config={"backend": "nccl"}']

    @property
    def version(self) -> str:
        """What servers call the present weights."""
        return f"{self._run}-{self._times}"

    def give(self, server: Server, begun: bool) -> None:
        """One that failed a request may have them still; one that was started again knows of none, and of no group."""
        held = self._held.get(server)
        says = json.loads(server.ask("/weight_info", None, self.config.seconds))["weight_version"]
        if held is not None and says != held.version:
            self._let_go(server)
            held = None
        if says == self.version:
            return
        if self._policy is None:
            raise Failed("it has lost its weights, and the policy has others already (`ahead`)")
        with self._sending:
            group = self._met(server) if held is None else held.group
            try:
                self._update(server, group, self._policy)
            except BaseException:
                self._let_go(server)
                raise

    def _met(self, server: Server) -> nccl.Group:
        """A group with a server's GPUs."""
        seconds = self.config.seconds
        gpus = int(json.loads(server.ask("/get_world_size", None, seconds))["world_size"])
        group = nccl.Group(self.config.nccl, self._device)
        said = {
            "rank_offset": 1,
            "world_size": 1 + gpus,
            "nccl_unique_id_b64": base64.b64encode(group.id).decode(),
            "packed": True,
            "packed_buffer_size_bytes": PART,
            "packed_num_buffers": 2,
        }
        try:
            _together(
                lambda: server.ask("/init_weight_transfer_engine", {"init_info": said}, seconds),
                lambda: group.join(1 + gpus),
            )
        except Failed as error:
            group.abort()
            raise Failed(f"{error} (NCCL is {group.version} here, and must be the same there)") from error
        self._held[server] = Held(group, "")
        return group

    def _update(self, server: Server, group: nccl.Group, policy: Policy) -> None:
        seconds = self.config.seconds
        tensors = in_order(policy.saved_tensors())  # type: ignore[operator]  # `refusal` has looked
        said = {
            "names": list(tensors),
            "dtype_names": [str(dtype).removeprefix("torch.") for _, dtype in tensors.values()],
            "shapes": [list(tensor.shape) for tensor, _ in tensors.values()],
        }
        server.ask("/pause?mode=abort", {}, seconds)  # what nobody waits for any more may still be sampled
        server.ask("/start_weight_update", {}, seconds)
        _together(
            lambda: server.ask("/update_weights", {"update_info": said}, seconds),
            lambda: group.send(packed(tensors.values(), PART)),
        )
        server.ask("/finish_weight_update", {"weight_version": self.version}, seconds)
        server.ask("/reset_prefix_cache", {}, seconds)
        server.ask("/resume", {}, seconds)
        self._held[server] = Held(group, self.version)

    def _let_go(self, server: Server) -> None:
        if (held := self._held.pop(server, None)) is not None:
            held.group.abort()

    def close(self) -> None:
        for server in list(self._held):
            if self.config.python is None:  # it lives on; before vLLM 0.32 it cannot be told
                with suppress(Failed, RLAlignError):
                    server.ask("/shutdown_weight_transfer_engine", {}, HEALTH_SECONDS)
            self._let_go(server)
        self._policy = None
        super().close()


def in_order(tensors: Mapping[str, tuple[Tensor, torch.dtype]]) -> dict[str, tuple[Tensor, torch.dtype]]:
    """The widest numbers first, so that in any part each tensor begins where vLLM may look at its bytes as numbers."""
    return dict(sorted(tensors.items(), key=lambda named: -named[1][1].itemsize))


def packed(tensors: Iterable[tuple[Tensor, torch.dtype]], most: int) -> Iterator[Tensor]:
    """Their bytes, in parts as vLLM cuts them: a part ends with the tensor that brings it above `most`."""
    part: list[Tensor] = []
    for tensor, dtype in tensors:
        part.append(tensor.detach().to(dtype).contiguous().view(-1).view(torch.uint8))
        if sum(map(len, part)) > most:
            yield torch.cat(part)
            part = []
    if part:
        yield torch.cat(part)


def own_gpus(device: torch.device, beside: int) -> set[str]:
    """The GPUs of this machine that the run itself is on, as `CUDA_VISIBLE_DEVICES` calls them."""
    places = range(beside) if beside > 1 else [device.index or 0]
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {shown[place] if place < len(shown) else str(place) for place in places}


def _together(*works: Callable[[], object]) -> None:
    """All at one time. The first error is raised, and nobody waits for the others."""
    for _ in each(lambda work: work(), works, len(works), SimpleQueue()):
        pass
