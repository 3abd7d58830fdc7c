"""The report of a study in Markdown: table.md with every number, and the blocks for READMEs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlalign_study import plan
from rlalign_study.analysis import Comparison, Count, Found, Runs, qualifies
from rlalign_study.core import ConfigError
from rlalign_study.file import Study
from rlalign_study.rows import Results
from rlalign_study.stats import Estimate

Lines = list[str]


def write(study: Study, results: Results, folder: Path) -> Lines:
    """Write all files of the report; what there is to say about it."""
    worlds = [Found(study, world, results) for world in study.worlds]
    said = [*results.notes]
    for found in worlds:
        if found.waiting:
            some = ", ".join(f"`{arm}` ({n} runs)" for arm, n in found.waiting.items())
            said.append(f"{found.name}: left out, as their tuning is not complete: {some}")
    if not any(found.main for found in worlds):
        return [*said, "there is no reported run yet, so that there is nothing to write"]
    folder.mkdir(parents=True, exist_ok=True)
    files = {"table.md": table(study, worlds, results.notes)}
    files |= {name: block(study, worlds, name) for name in study.blocks}
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        said.append(str(folder / name))
    if study.plots:
        try:
            from rlalign_study import figures
        except ImportError:
            said.append("no figures, as matplotlib is not there: `pip install matplotlib`")
        else:
            said += [str(path) for path in figures.draw(study, worlds, folder)]
    return said


def table(study: Study, worlds: Sequence[Found], notes: Iterable[str] = ()) -> Lines:
    how = "its 95 % t-interval" if study.interval == "t" else "its 95 % bootstrap interval (BCa)"
    lines = [
        f"# {study.title}",
        "",
        f"Written by `rlalign study {study.path.name} report`. ± is half of {how} over seeds.",
        "",
        *_made_with(worlds),
        *_list("Named twice in the results, with different numbers", notes),
    ]
    if study.hooks.answers is not None:
        lines += ["## Answers", "", *study.hooks.answers(worlds), ""]
    for found in worlds:
        lines += [f"## {found.name}", ""]
        if study.hooks.before_world is not None:
            lines += study.hooks.before_world(found)
        lines += [*_failed(found), *_settings(found), *_results(found)]
        for name, metric in study.compare.by.items() if study.compare else ():
            lines += comparisons(name, found.family(metric).values())
        lines += [*_stability(found), *_ablations(found)]
    return lines


def block(study: Study, worlds: Sequence[Found], name: str) -> Lines:
    """A table for a README: a row for each world and arm."""
    about = study.blocks[name]
    lines = [
        [cell(found, arm, runs, column) for column in about.columns.values()]
        for found in worlds
        for arm, runs in found.main.items()
        if arm in (about.arms or study.arms)
    ]
    answers = [*study.hooks.answers(worlds), ""] if study.hooks.answers and about.answers else []
    return [*rows(list(about.columns), lines), *answers, about.text]


# -- parts ------------------------------------------------------------------------------------------------


def _made_with(worlds: Sequence[Found]) -> Lines:
    """How much there is, and what it was made with; counted where that differs."""
    every = [row for found in worlds for row in found.rows]
    prepared = [row for found in worlds for row in found.prepared.values()]
    hours = sum(row.metrics.get("seconds", 0.0) for row in [*every, *prepared]) / 3600
    names = dict.fromkeys(name for row in every for name in row.code)
    counts = {name: Counter(row.code[name] for row in every if name in row.code) for name in names}
    lines = [
        [f"`{name}`", ", ".join(f"{k} ({n} runs)" if len(c) > 1 else k for k, n in c.items())]
        for name, c in counts.items()
    ]
    return [f"{len(every)} runs, {hours:.1f} hours of processor time.", "", *rows(["made with", ""], lines)]


def _list(title: str, said: Iterable[str]) -> Lines:
    lines = [f"- {text}" for text in said]
    return [f"{title}:", "", *lines, ""] if lines else []


def _failed(found: Found) -> Lines:
    said = [f"`{row.key}`: {row.why}" for row in found.rows if row.status == "failed"]
    return _list("Runs that could not be made, and are missing below", said)


def _settings(found: Found) -> Lines:
    if not found.tuning:
        return []
    lines = []
    for arm, setting in found.chosen.items():
        tried = found.tried[arm].values()
        fit = sum(qualifies(found.study, found.name, runs) for runs in tried)
        cells = [f"`{arm}`", *setting.cells.values(), f"{fit}/{len(tried)}"]
        lines.append([*cells[:-2], cells[-2] + ("" if fit else " (none qualified)"), cells[-1]])
    axes = list(next(iter(found.chosen.values())).cells) if found.chosen else []
    return ["Chosen in tuning:", "", *rows(["arm", *axes, "trials that qualified"], lines)] if lines else []


def _results(found: Found) -> Lines:
    lines: Lines = []
    starts = [row.curve for runs in found.main.values() for row in runs.values() if row.curve]
    if starts:
        names = [
            name for name in found.study.metrics_of(found.name) if all(name in curve for curve in starts)
        ]
        means = {name: math.fsum(curve[name][0] for curve in starts) / len(starts) for name in names}
        lines = [
            "Before training: " + ", ".join(f"{k} {round(v, 3) + 0.0:.3f}" for k, v in means.items()) + ".",
            "",
        ]
    for title, columns in found.study.tables.items():
        made = [
            [f"`{arm}`", *(cell(found, arm, runs, spec) for spec in columns.values())]
            for arm, runs in found.main.items()
        ]
        head = plan.fill(["arm", *columns], **found.given)
        lines += [f"{title}:", "", *rows(head, made)] if made else []
    return lines


def comparisons(name: str, found: Iterable[Comparison]) -> Lines:
    """A row for each pair of arms."""
    head = ["pair", "difference", "seeds", "p (paired t)", "p (Holm)", "p (sign flips)", "found with 80 %"]
    lines = [
        [
            f"`{c.arm}` − `{c.other}`",
            signed(c.difference),
            str(c.difference.count),
            *map(p_value, (c.p_t, c.p_holm, c.p_flips)),
            f"{c.detectable:.3f}",
        ]
        for c in found
    ]
    return [f"Comparisons by {name}:", "", *rows(head, lines)] if lines else []


def _stability(found: Found) -> Lines:
    about = found.study.stability
    if about is None or not found.main:
        return []
    spread = ["p (Holm)"] if about.spread else []
    head = ["arm", "SD over seeds", *spread, *about.columns, "collapsed", "in tuning", "p (Holm)"]
    lines = []
    for arm, one in found.steadiness.items():
        extra = [cell(found, arm, found.main[arm], spec) for spec in about.columns.values()]
        cells = [f"`{arm}`", f"{one.spread:.3f}", *([p_value(one.p_spread)] if about.spread else []), *extra]
        cells += [of(one.collapsed), of(one.in_tuning), p_value(one.p_collapsed)]
        lines.append([*cells, of(one.own)] if about.own else cells)
    head += ["in its own samples"] if about.own else []
    return [f"Stability; each p against `{about.against}`:", "", *rows(head, lines)]


def _ablations(found: Found) -> Lines:
    about, lines = found.study.ablations, []
    if about is None or not found.ablated:
        return []
    for group, arms in about.groups.items():
        for arm, varied in arms.items():
            for name, changed in varied.items():
                runs = found.ablation(group, arm, name, changed)
                if runs:
                    own = "" if changed else " (its own)"
                    cells = [cell(found, arm, runs, spec) for spec in about.columns.values()]
                    lines.append([f"`{arm}`", f"{group} = {name}{own}", *cells])
    title = "Ablations; a difference is that to the arm's own setting, seed by seed:"
    return [title, "", *rows(["arm", "setting", *about.columns], lines)]


# -- cells ------------------------------------------------------------------------------------------------


def cell(found: Found, arm: str, runs: Runs, spec: str) -> str:
    """What a column says of an arm's runs.

    `world`, `arm`, `seeds`, `collapsed`; `METRIC FORMAT`, a mean, or with `±` (and `±n`) before the format its
    interval (and how many runs have the metric), and with `/1000` behind it divided by that; `METRIC less ARM` and
    `METRIC of ARM less`, a tested comparison with another arm; `METRIC less own`, the difference to the arm's main
    runs.
    """
    words = {"world": found.name, "arm": f"`{arm}`", "seeds": str(len(runs))}
    if spec in words:
        return words[spec]
    if spec == "collapsed":
        return of(found.fallen(runs.values()))
    name, _, form = spec.partition(" ")
    if form == "less own":
        same = all(found.main.get(arm, {}).get(seed) == row for seed, row in runs.items())
        return "" if same else signed(_estimate(found, found.difference(runs, found.base(arm), name)))
    if other := re.fullmatch(r"(?:of (\S+) )?less ?(\S*)", form):
        pair = (other[1], arm) if other[1] else (arm, other[2])
        one = found.family(name).get(pair)
        return f"{signed(one.difference)}, p {p_value(one.p_holm)}" if one else ""
    known = re.fullmatch(r"(±n?)?([+.\w%]+)(?:/(\d+))?", form)
    if known is None:
        raise ConfigError(
            f"{found.study.path}: the column `{spec}` says no format, for instance `{name} ±.3f`"
        )
    estimated = found.mean(runs, name)
    if estimated is None:
        return "–"
    scale = float(known[3] or 1)
    text = format(estimated.mean / scale, known[2])
    if known[1]:
        text += f" ± {estimated.half / scale:{known[2]}}" if math.isfinite(estimated.half) else ""
    return text + (f" ({estimated.count}/{len(runs)})" if known[1] == "±n" else "")


def _estimate(found: Found, values: Sequence[float]) -> Estimate | None:
    from rlalign_study.stats import estimate

    return estimate(values, found.study.interval)


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Lines:
    """A table, and the empty line that ends it."""
    every = [head, ["---"] * len(head), *lines]
    return [*(f"| {' | '.join(line)} |" for line in every), ""]


def signed(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.mean:+.3f} ± {found.half:.3f}"


SURE = 0.05
"""A corrected p below it shows something."""


def verdict(found: Comparison) -> str:
    """What a comparison shows, in words."""
    if found.p_holm >= SURE:
        return "not shown"
    return "yes" if found.difference.mean > 0 else "no, the opposite"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def of(count: Count) -> str:
    return f"{count[0]}/{count[1]}"
