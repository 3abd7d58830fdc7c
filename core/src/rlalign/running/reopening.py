"""A run that is taken up again: what is not as it was, what is lost of it, and what is said anew of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlalign.config import places
from rlalign.errors import CheckpointError
from rlalign.records import checkpoint
from rlalign.records.environment import differences, merged, processes, read_lock
from rlalign.records.rewriting import rewrite
from rlalign.records.rundir import RunDir, lock_text, write_atomic
from rlalign.records.sums import Saved
from rlalign.running.changes import noted, since
from rlalign.running.checkpointing import fingerprint_of_lock, is_whole
from rlalign.running.lock import lock_of
from rlalign.running.workspace import Workspace


def note_down(
    space: Workspace,
    saved: checkpoint.Checkpoint | None,
    changed: list[str],
    lost: list[str],
    said: list[str],
) -> None:
    """Write down, and say, why the run is not what it would have been."""
    if changed or lost or said:
        at = saved.index if saved else None
        space.logs.append("inexact.jsonl", {"checkpoint": at, "changed": changed, "lost": lost, "said": said})
    for line in lost:
        space.display.note(f"lost: {line}")
    if said:
        space.display.note(f"inexact from here on, and noted so in inexact.jsonl: {'; '.join(said)}")


def differing(
    space: Workspace, was: Workspace, saved: checkpoint.Checkpoint | None, *, inexact: bool
) -> tuple[list[str], list[str]]:
    """What is not as it was when the run began, a line each; `was` has the pipeline as it lies there.

    Apart from it, what only moves rounding: another number of processes, and with it of their threads.
    """
    was.models = was.data.models = space.models
    run, text = space.dir, _pipeline_of(space.dir)
    try:
        old = read_lock(run.lock)
    except CheckpointError:
        if not inexact:
            raise
        write_atomic(run.lock, lock_text(lock_of(was, text, {})))
        return ["lock.json: was damaged, and is made anew: nothing could be compared"], []
    now = lock_of(was, text, old["budgets"], old["environment"])
    changed, elsewhere = differences(old, now), []
    if (before := processes(old)) != processes(now):
        elsewhere = [f"{before} processes when the run began, {processes(now)} now: equal up to rounding"]
        changed = [line for line in changed if not line.startswith(("world.", "threads:"))]
    if saved is None:
        return changed, elsewhere
    found = since(old, fingerprint_of_lock(run), saved.loop["lock"])
    if found is None:
        changed.append("lock.json: it was edited since the checkpoint was written")
    for one in found or ():
        if one["checkpoint"] is not None and one["checkpoint"] > saved.index:
            keys = ", ".join(value["key"] for value in one["values"])
            changed.append(f"{keys}: changed at checkpoint {one['checkpoint']} then, at {saved.index} now")
    return changed, elsewhere


def change(space: Workspace, was: Workspace, saved: checkpoint.Checkpoint | None, inexact: list[str]) -> None:
    """Let the run's files say the pipeline of `space`; `inexact` tells why that is not as if it was begun so."""
    run, text = space.dir, places.dump(places.escape(space.pipeline.resolved))
    old = read_lock(run.lock)
    locks = [
        lock_of(each, said, old["budgets"], old["environment"])
        for each, said in ((was, _pipeline_of(run)), (space, text))
    ]
    lock = noted(
        merged(old, *locks),
        old,
        fingerprint=fingerprint_of_lock(run),
        checkpoint=saved.index if saved else None,
        inexact=inexact,
    )
    if lock["changes"][-1]["values"]:
        rewrite(run, text, lock)


def changes_since(run: RunDir, saved: checkpoint.Checkpoint | None) -> list[dict[str, Any]]:
    """What was said anew of the run since a checkpoint was written."""
    try:
        lock = read_lock(run.lock)
    except CheckpointError:
        return []
    if saved is None:
        return []
    found = since(lock, fingerprint_of_lock(run), saved.loop["lock"])
    return [c for c in lock.get("changes", []) if c["checkpoint"] == saved.index] if found is None else found


def _pipeline_of(run: RunDir) -> str:
    return run.pipeline.read_text(encoding="utf-8-sig")


def logs_of(
    space: Workspace, saved: checkpoint.Checkpoint | None, *, inexact: bool
) -> tuple[Mapping[str, Saved], list[str]]:
    """The logs to go on with, and what is lost of them, which only an inexact run goes on without."""
    logs = saved.logs if saved else {}
    wrong = space.logs.damage(logs)
    if saved is None or not wrong:
        return logs, []
    lost = [f"{space.dir.path / name}: the log {told}" for name, told in wrong.items()]
    repeat = saved.loop["repeat"]
    needed = {
        space.data.rows_file(repeat, plan.settings.origin.phase)
        for plan in space.plans[saved.loop["place"] + saved.loop["done"] :]
        if plan.settings.origin is not None
    }
    if inexact and needed.isdisjoint(wrong):
        return space.logs.mend(logs, wrong), lost
    resume = f"`rlalign run --resume {space.dir.path}"
    ways = ["put it back"]
    earlier = [i for i in checkpoint.find(space.dir.checkpoints) if i < saved.index]
    if any(is_whole(space.dir, i, space.logs) for i in earlier):
        ways.append(f"go on from an earlier checkpoint: {resume} --previous`")
    if needed.isdisjoint(wrong):
        ways.append(f"go on with what can be read of it: {resume} --inexact`")
    else:
        ways.append("start the run again, as a later phase learns from it")
    raise CheckpointError("\n".join(lost) + f".\nTo go on: {', or '.join(ways)}.")
