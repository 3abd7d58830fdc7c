"""A run once more, from what its lock says, and whether it comes out as it did."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlalign.cli.guarded import say
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.errors import ConfigError, RLAlignError, refusing
from rlalign.records.environment import differences
from rlalign.records.result import Row, is_evaluation
from rlalign.running import loop
from rlalign.running.callbacks import Callbacks, Watch, stoppable
from rlalign.running.display import closed_on_failure, make_display
from rlalign.running.figures import number
from rlalign.running.lock import lock_of
from rlalign_compare.difference import counted, figures, place, same
from rlalign_compare.runs import Run

TOLD = 20
"""Differences that are listed."""


class CameOutOtherwise(RLAlignError):
    """The run was made again, and its metrics are not what they were."""

    exit_code = 3


@dataclass
class Verdict:
    """What a run that was made again has in common with the first."""

    rows: list[int] = field(default_factory=lambda: [0, 0])
    """Iterations and evaluations that were compared."""
    figures: int = 0
    off: list[tuple[Row, str, float, float]] = field(default_factory=list)
    """Beyond the tolerance: where, which figure, what it was and what it is."""
    missing: list[str] = field(default_factory=list)
    """What was there, and is not there now."""
    furthest: float = 0.0
    """The largest deviation, as a share of the figure, of 1 at least."""


def reproduce(name: str, *, to: Path | None, iterations: int | None, tolerance: float, plain: bool) -> None:
    """Run it again, and say what came of it; CameOutOtherwise where a figure is off by more than the tolerance."""
    run = Run(name)
    asked = _asked(run, iterations)
    with refusing():
        registry = Registry(trust=True)
        pipeline = load_pipeline(
            run.folder / "pipeline.yaml", registry=registry, text=run.pipeline, said="lock.json"
        )
    pipeline = pipeline.model_copy(update={"stem": f"{run.name}-again"})
    root, called = (run.folder.parent, None) if to is None else (to.parent, to.name)
    torch.set_num_threads(run.lock["threads"])
    done, told = 0, False

    def look(row: Row) -> None:
        nonlocal done, told
        was = run.training[done] if done < len(run.training) else {}
        done += 1
        if done >= asked < _planned(run):
            session.stopping = True
        if not told and (off := next(_off(was, row, tolerance), None)):
            told = True
            watch.note(f"off since here: {_said(*off)}")

    watch = Watch(make_display(plain or None), [Callbacks(on_iteration=look)])
    with refusing(), closed_on_failure(watch):
        session = loop.start(
            pipeline, registry, root=root, name=called, display=watch, budgets=run.lock["budgets"]
        )
    watch.session = session
    changed = _changed(run, session)
    _tell(run, session.dir.path, changed, asked)
    try:
        with stoppable(session):
            session.run()
    except loop.Interrupted:
        if done < asked:
            raise
    again = Run(str(session.dir.path))
    _conclude(run, again, verdict(run.rows, again.rows, asked, tolerance), tolerance, changed)


def _asked(run: Run, iterations: int | None) -> int:
    """How many iterations are run again."""
    if given := run.lock["given"]:
        raise ConfigError(
            f"{run.folder}: this run was given components from Python, which its folder does not hold: "
            f"{', '.join(given)}; run it again from there, and compare with `rlalign diff`"
        )
    there = len(run.training)
    if there == 0:
        raise ConfigError(
            f"{run.folder}: has not come to its first iteration, so there is nothing to compare"
        )
    if iterations is not None and iterations > there:
        raise ConfigError(f"--iterations {iterations}: {run.folder} has {there}, so no more can be compared")
    return iterations or there


def _planned(run: Run) -> float:
    """The iterations after which the run ends by itself; infinity of one that did not come to its end."""
    return len(run.training) if run.finished else float("inf")


def _changed(run: Run, session: loop.Session) -> list[str]:
    """What is not as the lock says, a line each."""
    text = session.dir.pipeline.read_text(encoding="utf-8-sig")
    return differences(run.lock, lock_of(session, text, run.lock["budgets"], run.lock["environment"]))


def _tell(run: Run, folder: Path, changed: Sequence[str], asked: int) -> None:
    """What differs now, before anything is run."""
    if changed:
        more = [f"… and {len(changed) - TOLD} more"] if len(changed) > TOLD else []
        said = "".join(f"\n  {line}" for line in [*changed[:TOLD], *more])
        say(f"not as when {run.name} began:{said}", err=True)
    else:
        say(f"code, versions, data and machine are as when {run.name} began", err=True)
    for change in run.lock.get("changes", ()):
        keys = ", ".join(value["key"] for value in change["values"])
        inexact = " in a way that is not exact" if change["inexact"] else ""
        say(f"note: {keys} changed on the way{inexact}; what is run is the pipeline since then", err=True)
    if run.inexact:
        say(f"note: {run.name} is not what its pipeline alone would make of it (inexact.jsonl)", err=True)
    if not run.finished:
        say(f"note: {run.name} did not come to its end: its first {asked} iterations are run again", err=True)
    say(f"into {folder}", err=True)
    sys.stderr.flush()


# -- the verdict -----------------------------------------------------------------------------------------------


def verdict(was: Sequence[Row], now: Sequence[Row], iterations: int, tolerance: float) -> Verdict:
    """Every figure of the first iterations, times apart, and of the evaluations up to there."""
    found, known = Verdict(), {place(row): row for row in now}
    for row in was:
        other = known.get(place(row))
        found.rows[is_evaluation(row)] += 1
        if found.rows[0] > iterations:
            found.rows[0] -= 1
            break
        if other is None:
            found.missing.append(_where(row))
            continue
        lost = [name for name in figures(row) if name not in other]
        found.missing += [f"{name} in {_where(row)}" for name in lost]
        found.figures += len(figures(row)) - len(lost)
        found.off += _off(row, other, tolerance)
        found.furthest = max(
            [found.furthest, *(_deviation(row[n], other[n]) for n in figures(row) if n in other)]
        )
    return found


def _off(
    was: Mapping[str, Any], now: Mapping[str, Any], tolerance: float
) -> Iterator[tuple[Row, str, float, float]]:
    for name in figures(dict(was)):
        if (
            name in now
            and not same(was[name], now[name])
            and not _deviation(was[name], now[name]) <= tolerance
        ):
            yield dict(was), name, was[name], now[name]


def _deviation(was: float, now: float) -> float:
    return 0.0 if same(was, now) else abs(was - now) / max(1.0, abs(was), abs(now))


def _where(row: Mapping[str, Any]) -> str:
    what = "the evaluation after iteration" if is_evaluation(row) else "iteration"
    return f"{what} {row['iteration']} of {row['phase']}"


def _said(row: Mapping[str, Any], name: str, was: float, now: float) -> str:
    texts = (number(was), number(now)) if number(was) != number(now) else (repr(was), repr(now))
    return f"{_where(row)}: {name} {texts[0]} then, {texts[1]} now"


def _conclude(run: Run, again: Run, found: Verdict, tolerance: float, changed: Sequence[str]) -> None:
    what_of = f"{counted(found.rows)} of {run.name}"
    compared = f"{what_of}, {found.figures:,} figures in all"
    if not found.off and not found.missing:
        how = (
            "to the bit"
            if found.furthest == 0
            else (
                f"within {tolerance:g}; the furthest is {found.furthest:.2g} off, as a share of its size, of 1 at least"
            )
        )
        say(f"reproduced: {compared}, times apart, {how}")
        return
    what = [f"first off in {_said(*found.off[0])}"] if found.off else []
    what += [f"{len(found.off):,} of its {found.figures:,} figures are off"] * bool(found.off)
    what += [f"not there now: {', '.join(found.missing[:3])}"] if found.missing else []
    limit = f" by more than {tolerance:g}" if tolerance else ""
    why = "what is not as it was then is listed above" if changed else "nothing was otherwise than then"
    ways = [f"`rlalign diff {run.folder} {again.folder}` tells more"]
    if changed and found.off and found.furthest < 0.1:
        ways.append(f"`--tolerance {_above(found.furthest)}` would accept it")
    raise CameOutOtherwise(f"{run.name} came out otherwise{limit}: {'; '.join([*what, why, *ways])}")


def _above(share: float) -> str:
    """A tolerance of one digit that holds it."""
    for exponent in range(-15, 1):
        if share <= 10.0**exponent:
            return f"{10.0**exponent:g}"
    return f"{share:.1g}"
