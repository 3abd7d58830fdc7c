"""What stands for `nccl.Group` where there is no GPU: files in a folder, whose path is the group's id."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from rlalign_plugin_vllm.servers import Failed


class FileGroup:
    """The stand-in's `Transfer` is the other side."""

    version = "2.29.7"
    made: list[FileGroup]
    """All that a test has made."""

    def __init__(self, library: str, device: torch.device) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="group-"))
        self.sent = 0
        self.aborted = False
        self.count = 0
        type(self).made.append(self)

    @property
    def id(self) -> bytes:
        return str(self.folder).encode().ljust(128, b"\0")

    def join(self, count: int) -> None:
        self.count = count
        (self.folder / "joined").touch()
        until = time.monotonic() + 10
        while not (self.folder / "all").exists():
            if self.aborted or time.monotonic() > until:
                raise Failed("ncclCommInitRank: remote process exited or there was a network error")
            time.sleep(0.002)

    def send(self, parts: Iterable[Tensor]) -> None:
        for part in parts:
            if self.aborted:
                raise Failed("ncclBroadcast: invalid argument")
            assert part.dtype == torch.uint8 and part.dim() == 1
            new = self.folder / "new"
            new.write_bytes(part.numpy().tobytes())
            new.rename(self.folder / f"part-{self.sent}")
            self.sent += 1

    def abort(self) -> None:
        self.aborted = True
        (self.folder / "aborted").touch()
