"""Pipelines on a made-up device, each gone on with for one iteration more: elsewhere.py FOLDER JOBS.json.

The device is `elsewhere.cpp`, built beforehand into the folder that the variable ELSEWHERE names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

MODULE = "elsewhere_device"
_data: Any = torch._C.TensorBase.data


def build(folder: Path) -> None:
    """Compile it; takes half a minute."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_suffix(".cpp")
    load(MODULE, [str(source)], build_directory=str(folder), extra_cflags=["-O1"])


class Event:
    """Nothing here happens later."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> Event:
        return self

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


class Stream:
    """The only one."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record_event(self, _: Any = None) -> Event:
        return Event()


def register(folder: Path) -> None:
    """Let torch know of it, as `elsewhere`."""
    found = importlib.util.spec_from_file_location(MODULE, folder / f"{MODULE}.so")
    assert found is not None and found.loader is not None
    found.loader.exec_module(importlib.util.module_from_spec(found))
    torch.utils.rename_privateuse1_backend("elsewhere")
    torch.utils.generate_methods_for_privateuse1_backend()
    module: Any = ModuleType("torch.elsewhere")
    module.Stream, module.Event = Stream, Event
    module.current_stream = lambda *_: Stream()
    module.stream = module.device = lambda *_: nullcontext()
    module.current_device, module.device_count = lambda: 0, lambda: 1
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.set_device = module.synchronize = module.manual_seed_all = lambda *_: None
    module.get_rng_state, module.set_rng_state = lambda *_: torch.zeros(1, dtype=torch.uint8), lambda *_: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module("elsewhere", module)
    torch.Tensor.data = property(_data.__get__, _set_data)  # type: ignore[assignment]
    _talk_by_the_cpu()


def _set_data(x: Any, y: Any) -> None:
    """`x.data = y` from one device to another, which torch does for those that it knows itself."""
    if torch._has_compatible_shallow_copy_type(x, y):
        _data.__set__(x, y)
        return
    made = torch.nn.Parameter(y, x.requires_grad) if isinstance(x, torch.nn.Parameter) else y.detach().clone()
    torch.utils.swap_tensors(x, made)


def _talk_by_the_cpu() -> None:
    """gloo knows no such device."""
    gather, scatter = collectives.DefaultAllGather.__call__, collectives.DefaultReduceScatter.__call__
    reduce: Any = dist.all_reduce

    def gathered(
        self: Any, output_tensor: Any, input_tensor: Any, group: Any, async_op: bool = False
    ) -> None:
        out = torch.empty_like(output_tensor, device="cpu")
        gather(self, out, input_tensor.cpu(), group)
        output_tensor.copy_(out)

    def scattered(
        self: Any, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False
    ) -> None:
        out = torch.empty_like(output_tensor, device="cpu")
        scatter(self, out, input_tensor.cpu(), group, op)
        output_tensor.copy_(out)

    def reduced(x: Any, *given: Any, **named: Any) -> None:
        there = x.cpu()
        reduce(there, *given, **named)
        x.copy_(there)

    collectives.DefaultAllGather.__call__ = gathered  # type: ignore[method-assign]
    collectives.DefaultReduceScatter.__call__ = scattered  # type: ignore[assignment, method-assign]
    dist.all_reduce = reduced


if __name__ == "__main__":
    register(Path(os.environ["ELSEWHERE"]))
    import together

    import rlalign

    root, jobs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    together.main(root, jobs)
    for name in jobs:
        rlalign.resume(root / name, extend=1, display=False)
