"""results/table.md with every number and the answers, a block for each plugin's README, and the curves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.common import tables
from benchmarks.common.comparisons import estimate
from benchmarks.offline import logs, plan
from benchmarks.offline.analysis import (
    BEST,
    DIVERSITY,
    FAMILIES,
    FINAL,
    Measure,
    Seeds,
    Studied,
    answers,
    family,
    stability,
    studied,
    values,
)
from benchmarks.offline.measures import End

PLUGINS: Mapping[str, Collection[str]] = {
    "a-lol": plan.ARMS,
    "imitation": ("sft", "wbc", "gold", "raft", "rest"),
    "preference": ("dpo", "ipo", "kto", "pro", "iterative-dpo"),
}
"""The arms that each plugin's README shows."""


def write(folder: Path, names: Sequence[str]) -> None:
    """Tables and curves of what is there; says what is not."""
    from benchmarks.offline import figures

    folder.mkdir(parents=True, exist_ok=True)
    studies = [studied(logs.LOGS[name], folder) for name in names]
    for study in studies:
        there = sum(len(runs) for runs in study.main.values())
        planned = len(plan.main(study.log, dict.fromkeys(plan.ARMS, plan.Trial(0, None))))
        print(
            f"{study.log.name}: {len(study.chosen)} of {len(plan.ARMS)} arms are tuned, {there} of {planned} runs"
        )
    studies = [study for study in studies if study.main]
    if not studies:
        return
    (folder / "table.md").write_text("\n".join(table(studies)) + "\n")
    print(folder / "table.md")
    for plugin in PLUGINS:
        (folder / f"readme-{plugin}.md").write_text("\n".join(short(studies, plugin)) + "\n")
        print(folder / f"readme-{plugin}.md")
    for name in figures.draw(studies, folder):
        print(folder / name)


def table(studies: Sequence[Studied]) -> list[str]:
    lines = [
        "# Learning from logged data: the numbers",
        "",
        "Written by `study.py report`. What each column is, README.md beside this folder says; ± is half the 95 % "
        "t-interval over seeds.",
        "",
        *_provenance(studies),
        "## The claims",
        "",
        *answers(studies),
        "",
    ]
    for study in studies:
        lines += [f"## {study.log.name}", "", *_logs(study), *_settings(study)]
        lines += [*_results(study), *_diversity(study), *_work(study)]
        for measure in FAMILIES:
            lines += _comparisons(study, measure)
        lines += _stability(study)
    return lines


def _provenance(studies: Sequence[Studied]) -> list[str]:
    records = [record for study in studies for record in study.records]
    grounds = [ground for study in studies for ground in study.grounds.values()]
    hours = (sum(r.seconds for r in records) + sum(g.seconds for g in grounds)) / 3600
    said = f"{len(records)} runs on {len(grounds)} logs, {hours:.1f} hours of processor time."
    return [said, "", *tables.made_with([record.code for record in records])]


def _logs(study: Studied) -> list[str]:
    found = [ground for seed, ground in study.grounds.items() if seed < plan.MORE_SEEDS]
    if not found:
        return []
    rows = []
    for kind in dict.fromkeys(kind for ground in found for kind in ground.kinds):
        some = [ground.kinds[kind] for ground in found if kind in ground.kinds]
        count, score, grammar = (fmean(column) for column in zip(*some, strict=True))
        rows.append([kind, f"{count:.0f}", f"{score:.3f}", f"{grammar:.3f}"])
    ends = [ground.reference for ground in found]
    rows.append(["the reference's", str(ends[0].texts), *(f"{fmean(x):.3f}" for x in _both(ends))])
    head = ["responses", "a log", "reward", "grammar"]
    return [f"The logs, means over {len(found)} seeds:", "", *tables.rows(head, rows)]


def _both(ends: Sequence[End]) -> tuple[list[float], list[float]]:
    return [end.reward for end in ends], [end.grammar for end in ends]


def _settings(study: Studied) -> list[str]:
    rows = []
    for arm, trial in study.chosen.items():
        tried = study.tried(arm)
        fit = sum(plan.qualifies(records) for records in tried.values())
        what = f"{plan.ARMS[arm].tuned} = {trial.value}"
        none = " (none qualified)" if fit == 0 else ""
        rows.append([f"`{arm}`", f"{trial.lr:g}", what + none, f"{fit}/{len(tried)}"])
    return ["Chosen in tuning:", "", *tables.rows(["arm", "lr", "its own", "trials that qualified"], rows)]


def _results(study: Studied) -> list[str]:
    rows = [
        [
            f"`{arm}`",
            tables.mean(estimate(list(values(runs, FINAL).values()))),
            tables.mean(estimate(list(values(runs, BEST).values()))),
            _average(runs, lambda end: end.sentiment, "+.3f"),
            _average(runs, lambda end: end.grammar),
            _average(runs, lambda end: end.kl, ".2f"),
            _average(runs, lambda end: end.length, ".1f"),
            str(len(runs)),
        ]
        for arm, runs in study.main.items()
    ]
    head = ["arm", "final reward", "at its best", "sentiment", "grammar", "KL a text", "words", "seeds"]
    return [
        f"On {plan.FINAL['examples'] * plan.FINAL['samples']} texts to prompts of `test`:",
        "",
        *tables.rows(head, rows),
    ]


def _diversity(study: Studied) -> list[str]:
    rows = [
        [
            f"`{arm}`",
            tables.mean(estimate(list(values(runs, DIVERSITY).values()))),
            *(_average(runs, _distinct(n)) for n in (1, 2, 3)),
            _average(runs, lambda end: end.distinct),
        ]
        for arm, runs in study.main.items()
    ]
    head = ["arm", "distinct-3, grammatical", "distinct-1", "distinct-2", "distinct-3", "different texts"]
    return ["Diversity:", "", *tables.rows(head, rows)]


def _distinct(n: int) -> Callable[[End], float]:
    return lambda end: float(getattr(end, f"distinct_{n}"))


def _work(study: Studied) -> list[str]:
    rows = []
    for arm, runs in study.main.items():
        records = list(runs.values())
        discarded = fmean(r.discarded for r in records)
        figures = [fmean(r.responses for r in records), fmean(r.sampled for r in records)]
        tokens, seconds = fmean(r.tokens for r in records) / 1000, fmean(r.seconds for r in records)
        counted = [f"{x:.0f}" for x in figures]
        rows.append([f"`{arm}`", *counted, f"{tokens:.1f}", f"{discarded:.1%}", f"{seconds:.1f}"])
    head = ["arm", "responses learned from", "sampled", "thousand tokens sampled", "left out", "CPU s"]
    return ["Work, a run:", "", *tables.rows(head, rows)]


def _average(runs: Seeds, of: Callable[[End], float], form: str = ".3f") -> str:
    found = [of(r.last) for r in runs.values() if r.last is not None]
    return format(fmean(found), form) if found else "–"


def _comparisons(study: Studied, measure: Measure) -> list[str]:
    found = family(study, measure)
    return [f"Comparisons by {measure.name}:", "", *tables.comparisons(found)] if found else []


def _stability(study: Studied) -> list[str]:
    rows = [
        [
            f"`{s.arm}`",
            f"{s.spread:.3f}",
            tables.mean(s.fall),
            tables.of(s.collapsed),
            tables.of(s.collapsed_tuning),
            tables.p_value(s.p_collapsed),
        ]
        for s in stability(study)
    ]
    head = ["arm", "SD over seeds", "fall from best to last", "collapsed", "in tuning", "p (Holm)"]
    return [f"Stability; each p against `{plan.ALOL}`:", "", *tables.rows(head, rows)]


def short(studies: Sequence[Studied], plugin: str) -> list[str]:
    """A block for a plugin's README: its arms on each log; all of them, and what was claimed, for A-LoL's."""
    rows = []
    for study in studies:
        against = {c.other: c for c in family(study, FINAL)}
        for s in stability(study):
            if s.arm not in PLUGINS[plugin]:
                continue
            runs, found = study.main[s.arm], against.get(s.arm)
            rows.append(
                [
                    study.log.name,
                    f"`{s.arm}`",
                    tables.mean(estimate(list(values(runs, FINAL).values()))),
                    ""
                    if found is None
                    else f"{tables.signed(found.difference)}, p {tables.p_value(found.p_holm)}",
                    _average(runs, lambda end: end.grammar, ".2f"),
                    _average(runs, lambda end: end.kl, ".2f"),
                    tables.mean(estimate(list(values(runs, DIVERSITY).values()))),
                    tables.of(s.collapsed),
                ]
            )
    head = ["log", "arm", "final reward", "A-LoL's less this", "grammar", "KL", "distinct-3", "collapsed"]
    last = (
        "Means over seeds with 95 % t-intervals; p of the paired t-test after Holm's correction. Each arm at the best "
        "of eight settings, chosen on other seeds; protocol and all numbers: "
        "[benchmarks/offline](../../../benchmarks/offline/README.md)."
    )
    claims = [*answers(studies), ""] if plugin == plan.ALOL else []
    return [*tables.rows(head, rows), *claims, last]
