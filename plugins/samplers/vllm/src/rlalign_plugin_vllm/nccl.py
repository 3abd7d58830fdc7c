"""NCCL, as its C interface has it: a group of this process, which sends, and of a server's GPUs.

Neither vLLM nor a second torch is needed for it, and nothing is pickled. torch has no call that gives a group up while
a broadcast waits for somebody who is gone; NCCL has one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rlalign_plugin_vllm.servers import Failed

ID_BYTES = 128
BYTE, FLOAT32, SUM = 1, 7, 0
"""`ncclUint8`, `ncclFloat32` and `ncclSum`."""


class _Id(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * ID_BYTES),)


_P, _INT, _COUNT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_CALLS: dict[str, list[Any]] = {
    "ncclGetVersion": [ctypes.POINTER(_INT)],
    "ncclGetUniqueId": [ctypes.POINTER(_Id)],
    "ncclCommInitRank": [ctypes.POINTER(_P), _INT, _Id, _INT],
    "ncclAllReduce": [_P, _P, _COUNT, _INT, _INT, _P, _P],
    "ncclBroadcast": [_P, _P, _COUNT, _INT, _INT, _P, _P],
    "ncclCommAbort": [_P],
}


def missing(library: str, device: torch.device) -> str | None:
    """What this process lacks to send from this device."""
    if device.type != "cuda":
        return f"the policy must be on a GPU, and is on `{device}`"
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"NCCL cannot be loaded, which a torch for CUDA brings ({error})"
    return None


class Group:
    """This process as rank 0, and a server's GPUs as those after it, once all have joined."""

    def __init__(self, library: str, device: torch.device) -> None:
        self.device = device
        self._library, self._handle = ctypes.CDLL(library), _P()
        for name, arguments in _CALLS.items():
            getattr(self._library, name).argtypes = arguments
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        found, number = _Id(), _INT()
        self._call("ncclGetVersion", ctypes.byref(number))
        self._call("ncclGetUniqueId", ctypes.byref(found))
        self._id = found
        major, rest = divmod(number.value, 10_000)
        self.version = f"{major}.{rest // 100}.{rest % 100}"

    @property
    def id(self) -> bytes:
        """What the others need to find this process."""
        return bytes(self._id)

    def join(self, count: int) -> None:
        """Wait until all are there. vLLM's side then adds up one number, and so must this."""
        with torch.cuda.device(self.device):
            handle = _P()
            self._call("ncclCommInitRank", ctypes.byref(handle), count, self._id, 0)
            self._handle, self._stream = handle, torch.cuda.Stream()
            with torch.cuda.stream(self._stream):
                one = torch.zeros(1, device=self.device)
                at = one.data_ptr()
                self._call("ncclAllReduce", at, at, 1, FLOAT32, SUM, self._handle, self._stream.cuda_stream)
            self._stream.synchronize()

    def send(self, parts: Iterable[Tensor]) -> None:
        """Bytes to all, part by part, wherever they lie; they are there when this returns. Parts are made on this
        group's stream."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            for part in parts:
                part = part.to(self.device)
                at, stream = part.data_ptr(), self._stream.cuda_stream
                self._call("ncclBroadcast", at, at, part.numel(), BYTE, 0, self._handle, stream)
                self._stream.synchronize()

    def abort(self) -> None:
        """Give it up; whoever waits in another thread for a broadcast waits no longer."""
        handle, self._handle = self._handle, _P()
        if handle:
            with torch.cuda.device(self.device):
                self._library.ncclCommAbort(handle)

    def _call(self, name: str, *given: Any) -> None:
        if said := getattr(self._library, name)(*given):
            raise Failed(f"{name}: {self._library.ncclGetErrorString(said).decode()}")
