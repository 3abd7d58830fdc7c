"""Rewrites `pipeline.yaml` and `lock.json` of a run together: whenever the machine stops, it has both or neither.

What both shall say is written into one file first, `.change`; from then on the change stands, and whoever takes up
the run next completes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from rlalign.errors import RLAlignError
from rlalign.records.files import read_json
from rlalign.records.rundir import RunDir, lock_text, sync, write_atomic


class _Change(BaseModel):
    pipeline: str
    lock: str


def rewrite(run: RunDir, pipeline: str, lock: Mapping[str, Any]) -> None:
    """Give the run this pipeline and this lock."""
    run.require_mine()
    try:
        write_atomic(run.change, json.dumps({"pipeline": pipeline, "lock": lock_text(lock)}) + "\n")
        complete(run)
    except OSError as error:
        stands = run.change.exists()
        then = (
            "The change stands: free some space and go on without saying it again"
            if stands
            else "Free some space"
        )
        raise RLAlignError(
            f"{run.path}: the change could not be written: {error.strerror}. {then}: "
            f"`rlalign run --resume {run.path}{'' if stands else ' …'}`."
        ) from error


def complete(run: RunDir) -> None:
    """Finish what a killed process began to rewrite, if one did."""
    if not run.change.exists():
        return
    said = read_json(run.change, _Change, "Delete it: the run then stays as it was.")
    write_atomic(run.pipeline, said["pipeline"])
    write_atomic(run.lock, said["lock"])
    run.change.unlink()
    sync(run.path)
