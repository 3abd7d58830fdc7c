"""The leaderboard in Markdown, at most 100 columns wide, and the same numbers as JSON and CSV.

For the command: `table(ledger.entries, suite.bench.scores, ledger.missing)` gives by file name the texts to write:
`leaderboard.md` (everything), `readme.md` (a block to put under a README's own headline), `leaderboard.json` and
`leaderboard.csv`. Tasks stand in the order of `scores`. The same entries in any order give the same bytes. ConfigError
says in words what cannot be compared.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from rlalign_bench import plain
from rlalign_bench.entry import Entry
from rlalign_bench.standings import Cell, Standings
from rlalign_bench.suite import Score
from rlalign_study.core import duration
from rlalign_study.report import SURE, p_value
from rlalign_study.stats import Estimate

WIDTH = 100
BELOW = "▼"
ONE_RUN = "¹"
SEEDS_ONLY = "²"
MISSING = "–"

Lines = list[str]


def table(
    entries: Iterable[Entry], scores: Mapping[str, Score], missing: Sequence[str] = ()
) -> dict[str, str]:
    """By file name all texts of a leaderboard; `missing` names runs that are planned and not there."""
    standings = Standings(entries, scores, missing)
    lines = {"leaderboard.md": whole(standings), "readme.md": block(standings)}
    texts = {name: "\n".join(some).rstrip("\n") + "\n" for name, some in lines.items()}
    return texts | {"leaderboard.json": plain.as_json(standings), "leaderboard.csv": plain.as_csv(standings)}


def block(standings: Standings) -> Lines:
    """Overall and by task, and what the marks mean."""
    return [*overall(standings), *by_task(standings)]


def whole(standings: Standings) -> Lines:
    lines = [
        f"# Leaderboard of {standings.suite}",
        "",
        *wrapped(made(standings)),
        *block(standings),
        *pairs(standings),
    ]
    for task in standings.tasks:
        lines += [*details(standings, task), *against_best(standings, task), *other_metrics(standings, task)]
    lines += ["## How to read the tables of tasks", "", *wrapped(READ)]
    planned = [f"- {text}" for text in standings.not_there]
    return [*lines, *(["## Planned, and not there", "", *planned] if planned else [])]


READ = """\
Mean, and its interval over other seeds and other examples. SD: of the means of seeds. KL, tokens and seconds are of one
run, the mean over seeds. Frontier: no other algorithm has a better mean with at most this KL to the policy that
training began with. Differences are taken seed by seed and example by example; p is over other seeds and other
examples, p (Holm) is corrected for all pairs of all such tables, p (these runs), by flipping the signs of examples, is
over other examples alone: a small one says only that these very runs differ."""


def made(standings: Standings) -> str:
    every = [entry for cell in standings.cells.values() for entry in cell.entries]
    time, count = sum(entry.seconds for entry in every), sum(entry.tokens for entry in every)
    machines = {repr(sorted(entry.provenance.hardware.items())) for entry in every}
    said = f"{len(every)} runs, {duration(time)} of processor time, {tokens(count)} tokens."
    if len(machines) > 1:
        said += f" They were made on {len(machines)} kinds of machines, and so their seconds do not compare."
    return said


# -- over all tasks ---------------------------------------------------------------------------------------


def overall(standings: Standings) -> Lines:
    """Algorithms that have all tasks, and the names of the others."""
    gaps = [f"No runs of {_quoted(standings.untouched)}."] if standings.untouched else []
    gaps += [
        f"`{name}` has no runs of {_quoted(standings.missing(name))}, and so no overall score."
        for name in standings.algorithms
        if standings.missing(name)
    ]
    ranked = [name for name in standings.algorithms if name in standings.overall]
    if len(ranked) < 2:
        gaps.append(
            "Over all tasks there is nothing to compare: fewer than two algorithms have runs of every task."
        )
        return wrapped(" ".join(gaps))
    first = {one.theirs: one for one in standings.pairs if one.ours == ranked[0]}
    lines = []
    for name in ranked:
        one, pair = standings.overall[name], first.get(name)
        cells = [standings.cells[task, name] for task in standings.tasks]
        lines.append(
            [
                f"`{name}`",
                within(one.score, 2) + (f" {BELOW}" if pair and pair.p_holm < SURE else ""),
                within(one.rank, 1),
                str(sum(len(cell.seeds) for cell in cells)),
                tokens(sum(cell.tokens for cell in cells)),
                seconds(sum(cell.seconds for cell in cells)),
            ]
        )
    head = ["algorithm", "score [95 %]", "mean rank [95 %]", "runs", "tokens", "seconds"]
    n = len(standings.tasks)
    said = (
        f"Score: the interquartile mean over all runs of {'the task' if n == 1 else f'{n} tasks'}, each task on "
        "the suite's scale from 0 (worst) to 1 (best). Rank: by mean score, averaged over tasks. "
        f"{BELOW} shown to be below the first (p below {SURE:g}, corrected by Holm for all pairs). "
        "Tokens and seconds: of one run of every task."
    )
    return ["Over all tasks:", "", *fitted(*_turned(head, lines)), *wrapped(said), *wrapped(" ".join(gaps))]


def pairs(standings: Standings) -> Lines:
    lines = [
        [
            f"`{one.ours}` − `{one.theirs}`",
            within(one.difference, 2, "+"),
            within(one.improvement, 2),
            p_value(_known(one.p)),
            p_value(_known(one.p_holm)),
        ]
        for one in standings.pairs
    ]
    head = ["pair", "difference [95 %]", "wins [95 %]", "p", "p (Holm)"]
    said = (
        "Difference: of mean scaled scores, seed by seed and example by example. Wins: how often a run of the first "
        "is above a run of the second on the same task; 0.5 where they are alike."
    )
    return (
        ["Pair by pair, over all tasks:", "", *fitted(*_turned(head, lines)), *wrapped(said)] if lines else []
    )


# -- by task ----------------------------------------------------------------------------------------------


def by_task(standings: Standings) -> Lines:
    first = ["algorithm", "*metric*", *(f"`{name}`" for name in standings.algorithms)]
    columns = [_column(standings, task) for task in standings.tasks]
    cells = "".join(cell for column in columns for cell in column)
    marks = {
        "**": "**Bold**: the highest mean (↓: the lowest).",
        BELOW: f"{BELOW} shown to be below it (p below {SURE:g}, corrected by Holm for all such pairs of the table).",
        MISSING: f"{MISSING} no runs.",
        "/": "(2/3): two runs, where other algorithms have three.",
        ONE_RUN: f"{ONE_RUN} one run: the interval says nothing about other seeds.",
        SEEDS_ONLY: f"{SEEDS_ONLY} not a mean of examples: the interval says nothing about other examples.",
    }
    said = " ".join(said for mark, said in marks.items() if mark in cells)
    return ["By task, mean ± half of the 95 % interval:", "", *fitted(first, columns), *wrapped(said)]


def _column(standings: Standings, task: str) -> Lines:
    some = standings.of(task)
    most = max(len(cell.seeds) for cell in some)
    digits = _digits([cell.estimate for cell in some])
    metric = standings.scores[task].metric + (" ↓" if standings.less(task) else "")
    column = [task, f"*{metric}*" + (f" {SEEDS_ONLY}" if some[0].scores_SE.shape[1] == 1 else "")]
    for name in standings.algorithms:
        cell = standings.cells.get((task, name))
        if cell is None:
            column.append(MISSING)
            continue
        text = plus_minus(cell.estimate, digits)
        text = f"**{text}**" if cell is some[0] and len(some) > 1 else text
        text += f" {BELOW}" if _below(standings, cell) else ""
        text += (
            f" {ONE_RUN}"
            if len(cell.seeds) == 1
            else f" ({len(cell.seeds)}/{most})" * (len(cell.seeds) < most)
        )
        column.append(text)
    return column


def details(standings: Standings, task: str) -> Lines:
    some, frontier = standings.of(task), standings.frontier(task)
    digits = _digits([cell.estimate for cell in some])
    of_kl = _digits([cell.kl for cell in some if cell.kl], 2)
    columns = [
        ["mean", *(_number(cell.estimate.mean, digits) for cell in some)],
        ["95 % interval", *(bracket(cell.estimate, digits) or MISSING for cell in some)],
        ["SD", *(f"{cell.estimate.spread:.{digits}f}" if len(cell.seeds) > 1 else MISSING for cell in some)],
        ["runs", *(str(len(cell.seeds)) for cell in some)],
        ["KL", *(plus_minus(cell.kl, of_kl) if cell.kl else MISSING for cell in some)],
        ["frontier", *("yes" if cell.algorithm in frontier else "" for cell in some)],
        ["tokens", *(tokens(cell.tokens) for cell in some)],
        ["seconds", *(seconds(cell.seconds) for cell in some)],
    ]
    n = some[0].scores_SE.shape[1]
    said = f"Mean of {n} examples" if n > 1 else "One number for all examples"
    about = standings.scores[task]
    said += f", on the scale 0 is {about.worst:g} and 1 is {about.best:g}"
    said += "; less is better." if standings.less(task) else "."
    names = ["algorithm", *(f"`{cell.algorithm}`" for cell in some)]
    return [f"## {task}: {standings.scores[task].metric}", "", said, "", *fitted(names, columns)]


def against_best(standings: Standings, task: str) -> Lines:
    best, *others = standings.of(task)
    lines = []
    for cell in others:
        if (task, cell.algorithm) not in standings.behind:
            continue
        one, p_holm = standings.behind[task, cell.algorithm]
        digits = _digits([best.estimate, cell.estimate])
        ps = [p_value(_known(p)) for p in (one.p, p_holm, one.p_flips)]
        lines.append([f"`{cell.algorithm}`", within(one.estimate, digits, "+"), str(one.estimate.count), *ps])
    head = [f"`{best.algorithm}` less", "difference [95 %]", "seeds", "p", "p (Holm)", "p (these runs)"]
    return fitted(*_turned(head, lines)) if lines else []


def other_metrics(standings: Standings, task: str) -> Lines:
    some = standings.of(task)
    names = [name for name in some[0].metrics if name != standings.scores[task].metric]
    names = [name for name in names if all(name in cell.metrics for cell in some) and not _is_kl(some, name)]
    columns = []
    for name in names:
        found = [cell.metrics[name] for cell in some]
        columns.append([name, *(plus_minus(one, _digits(found)) for one in found)])
    return fitted(["algorithm", *(f"`{cell.algorithm}`" for cell in some)], columns)


def _is_kl(cells: Sequence[Cell], name: str) -> bool:
    """Whether a metric is the KL, which has its column already."""
    return all(entry.metrics[name] == entry.kl for cell in cells for entry in cell.entries)


def _below(standings: Standings, cell: Cell) -> bool:
    found = standings.behind.get((cell.task, cell.algorithm))
    return found is not None and found[1] < SURE


# -- cells ------------------------------------------------------------------------------------------------


def plus_minus(one: Estimate, digits: int) -> str:
    return f"{_number(one.mean, digits)}" + (f" ± {one.half:.{digits}f}" if math.isfinite(one.half) else "")


def within(one: Estimate, digits: int, sign: str = "") -> str:
    return f"{_number(one.mean, digits, sign)} {bracket(one, digits)}".rstrip()


def bracket(one: Estimate, digits: int) -> str:
    if not math.isfinite(one.half):
        return ""
    return f"[{_number(one.low, digits)}, {_number(one.high, digits)}]"


def tokens(count: float) -> str:
    scale, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= s), (1, ""))
    return f"{count / scale:.3g}{unit}" if count < 999.5 * scale else f"{count / scale:.0f}{unit}"


def seconds(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no "-0.00"


def _digits(some: Sequence[Estimate], small: int = 3) -> int:
    """Places after the point: fewer for larger numbers."""
    most = max((abs(one.mean) for one in some), default=0.0)
    return small if most < 10 else small - 1 if most < 100 else small - 2


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _known(p: float) -> float | None:
    return None if math.isnan(p) else p


# -- layout -----------------------------------------------------------------------------------------------


def fitted(first: Sequence[str], columns: Iterable[Sequence[str]]) -> Lines:
    """Columns beside the first one, in as many tables as the width needs; as plain text they are tables too."""
    groups: list[list[Lines]] = []
    names = _even(first, str.ljust)
    for column in columns:
        one = _even(column, str.rjust)
        if not groups or sum(len(some[0]) + 3 for some in (*groups[-1], one)) >= WIDTH:
            groups.append([names])
        groups[-1].append(one)
    lines: Lines = []
    for group in groups:
        head, *body = zip(*group, strict=True)
        rule = ["-" * len(head[0]), *("-" * (len(cell) - 1) + ":" for cell in head[1:])]
        lines += [*(f"| {' | '.join(line)} |" for line in (head, rule, *body)), ""]
    return lines


def _even(column: Sequence[str], put: Callable[[str, int], str]) -> Lines:
    size = max(3, *map(len, column))
    return [put(cell, size) for cell in column]


def _turned(head: Sequence[str], lines: Iterable[Sequence[str]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """A table by rows as its first column and the others."""
    first, *columns = zip(head, *lines, strict=True)
    return first, list(columns)


def wrapped(text: str) -> Lines:
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [*lines, ""] if lines else []
