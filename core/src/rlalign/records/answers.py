"""What served rewards answered, so that an iteration that is done again meets the same scores.

    served/00000012.jsonl      what was asked after 12 iterations of the whole run

A run that was killed goes on from its last checkpoint, and its logs are cut back to there; these files stay, for what
comes after the checkpoint is what they are for. A file goes once no kept checkpoint stands before it. A line is a
checksum and JSON: the hash of what was asked (of whom, when, about which responses) and the answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlalign.errors import CheckpointError, RLAlignError
from rlalign.records.files import read_bytes
from rlalign.records.rundir import RunDir
from rlalign.world.ranks import here

_OURS = re.compile(r"[0-9]{8,18}\.jsonl")
_SUM = 16
"""Characters of a line's checksum."""


class Answers:
    """Those of one run. Only what belongs to one place of the run is held in memory."""

    def __init__(self, run: Callable[[], RunDir]) -> None:
        self._run = run
        self._tick = -1
        self._known: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        return self._run().served

    def known(self, tick: int) -> Mapping[str, Any]:
        """All answers to what was asked after so many iterations, by the hash of the question."""
        if tick != self._tick and here().leads:
            self._known, self._tick = self._read(tick), tick
        return self._known

    def add(self, tick: int, answers: Mapping[str, Any]) -> None:
        """Write answers down, all of them in one write."""
        known = self.known(tick)
        new = {key: answer for key, answer in answers.items() if key not in known}
        if not new or not here().leads:
            return
        run = self._run()
        run.require_mine()
        lines = b"".join(map(_line, new, new.values()))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        try:
            self.folder.mkdir(exist_ok=True)
            with os.fdopen(os.open(self._path(tick), flags, 0o644), "ab") as file:
                file.write(lines)
        except OSError as error:
            raise RLAlignError(
                f"{self._path(tick)}: what the reward answered cannot be written: {error.strerror}. The last "
                f"checkpoint is intact: go on from it with `rlalign run --resume {run.path}`"
            ) from error
        self._known |= new

    def forget(self, tick: int) -> None:
        """Delete what was answered after so many iterations: a run that stopped at it asks again."""
        self._tick = -1
        if not here().leads:
            return
        with suppress(FileNotFoundError):
            self._path(tick).unlink()

    def drop(self, before: int) -> None:
        """Delete what was asked before a checkpoint that every later one is resumed after."""
        for path in self.folder.glob("*.jsonl") if self.folder.is_dir() else ():
            if _OURS.fullmatch(path.name) and int(path.stem) < before and not path.is_symlink():
                path.unlink()

    def _path(self, tick: int) -> Path:
        return self.folder / f"{tick:08d}.jsonl"

    def _read(self, tick: int) -> dict[str, Any]:
        path = self._path(tick)
        if not os.path.lexists(path):
            return {}
        data = read_bytes(path)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # its writer was killed
            os.truncate(path, len(whole))
        found = {}
        for number, line in enumerate(whole.splitlines(), 1):
            said = line[_SUM + 1 :]
            if line[:_SUM] != _sum(said):
                raise CheckpointError(
                    f"{path}:{number}: is not what was written: it was edited or damaged. Put the file back, or delete "
                    "it: the reward is then asked again, and may answer otherwise"
                )
            key, answer = json.loads(said)
            found[key] = answer
        return found


def _line(key: str, answer: Any) -> bytes:
    said = json.dumps([key, answer], allow_nan=False).encode()
    return _sum(said) + b" " + said + b"\n"


def _sum(said: bytes) -> bytes:
    return hashlib.sha256(said).hexdigest()[:_SUM].encode()
