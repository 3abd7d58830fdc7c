"""Weights that are cut over the processes of a run, by FSDP2: each holds a piece of every tensor.

A pass puts one block at a time together, on all ranks at once: so all must make as many passes, and an error on one
ends the run. At rest, between passes, all weights are cut. Nothing here is imported unless a model is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlalign.errors import ConfigError
from rlalign.world.joining import longest

_WHOLE = (Tensor, nn.Parameter)


class Parts(NamedTuple):
    """How a model is cut."""

    blocks: tuple[nn.Module, ...]
    """What is put together by itself; the rest is put together once a pass."""
    kept: tuple[nn.Parameter, ...]
    """What stays whole on every rank."""
    entries: tuple[str, ...]
    """The methods by which a pass enters the model."""


def shard(model: nn.Module, parts: Parts, device: torch.device, offload: bool = False) -> None:
    """Cut a model that is whole on every rank. Gradients are summed over the ranks, not averaged.

    `offload`: pieces and their gradients lie in the machine's memory between passes; the device has what is kept whole.
    """
    from torch.distributed import fsdp

    if not hasattr(fsdp.FSDPModule, "reset_iter_state"):
        raise ConfigError(f"distributed.shard: torch {torch.__version__} is too old for it; 2.13 will do")
    kept = {*parts.kept, *(p for p in model.parameters() if p.ndim == 0)}
    for parameter in kept:
        parameter.data = parameter.data.to(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # FSDP takes the present one
    lies = fsdp.CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else fsdp.OffloadPolicy()
    how: dict[str, Any] = {"mesh": _mesh(device.type), "ignored_params": kept, "offload_policy": lies}
    for block in parts.blocks:
        fsdp.fully_shard(block, **how)
    root: Any = fsdp.fully_shard(model, **how, reshard_after_forward=False)
    for part in _cut(root):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other, of float32
    root.set_reduce_scatter_unused_params(True)  # whether a weight is used differs from rank to rank
    for name in parts.entries:
        fsdp.register_fsdp_forward_method(root, name)
    root.through(lambda: None)  # only now does FSDP know which module is the root
    root.reset_iter_state()


@cache
def _mesh(kind: str) -> Any:
    """All ranks, in a group of their own: what is told in the middle of a pass meets nothing else."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if not dist.is_initialized():  # one process, whose weights lie in the machine's memory
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore
    return DeviceMesh.from_group(dist.new_group(timeout=longest()), kind)


def _cut(root: nn.Module) -> list[Any]:
    """The modules that are put together by themselves, `root` among them."""
    from torch.distributed.fsdp import FSDPModule

    return [m for m in root.modules() if isinstance(m, FSDPModule)]


@contextmanager
def whole(models: Iterable[Any]) -> Iterator[None]:
    """These models put together on every rank, for passes whose number differs from rank to rank.

    Gradients are each rank's own, and lie in the parameters that the models have meanwhile.
    """
    roots = [model for model in models if is_root(model)]
    for root in roots:
        _alone(root, True)
        for part in _cut(root):
            part.unshard()
    try:
        yield
    finally:
        for root in roots:
            _alone(root, False)
            root.set_reshard_after_forward(False, recurse=False)
            root.let_go()
        rest(roots)


def _alone(root: Any, alone: bool) -> None:
    """Whether passes are this rank's own: nothing is cut again after them, and no gradient added to those of others."""
    root.set_reshard_after_forward(not alone)
    root.set_reshard_after_backward(not alone)
    root.set_requires_gradient_sync(not alone)


def rest(models: Iterable[Any]) -> None:
    """After passes: what is still put together is cut again, and what FSDP noted of their order is forgotten."""
    for root in models:
        if is_root(root):
            root.reset_iter_state()


def is_root(model: Any) -> bool:
    """Whether it is cut, and does not compute with another's weights."""
    return bool(model.sharded) and hasattr(model, "reset_iter_state")


def is_cut(x: Tensor) -> bool:
    return type(x) not in _WHOLE and hasattr(x, "_local_tensor")


def local(x: Tensor) -> Tensor:
    """This rank's piece of a tensor that is cut, any other itself."""
    return x if type(x) in _WHOLE else getattr(x, "_local_tensor", x)


def offsets(x: Any) -> list[int]:
    """Where this rank's piece begins in the whole."""
    return list(x.__create_chunk_list__()[0].offsets)


def cut_like(x: Tensor, like: Any) -> Tensor:
    """A whole tensor, which every rank has, cut as another is; itself where that is whole."""
    if not is_cut(like):
        return x
    piece = x.narrow(0, offsets(like)[0], len(local(like)))
    return with_others(piece.to(local(like), copy=True), like)


def with_others(x: Tensor, like: Any) -> Tensor:
    """This rank's piece of a tensor that is cut as another is, as one with the pieces of all ranks."""
    if not is_cut(like) or x.shape != local(like).shape:
        return x
    # As FSDP does: `from_local` would bring it to the device, away from where the optimiser has it.
    return type(like)(x, like._spec, requires_grad=False)  # type: ignore[no-any-return]


def gathered(x: Any) -> Tensor:
    """A tensor put together, which every rank must call for."""
    return x.full_tensor() if is_cut(x) else x  # type: ignore[no-any-return]


def all_gathered(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Every tensor of a state put together, one after the other; only who keeps them holds more than one."""
    known: dict[int, Tensor] = {}
    for x in state.values():
        if is_cut(x) and id(x) not in known:
            made = gathered(x)
            known[id(x)] = made.cpu() if keep else made.new_empty(0)
    return {name: known.get(id(x), x) for name, x in state.items()}
