"""results/table.md with every number, results/readme.md for the plugin's README, and the curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.common import tables
from benchmarks.common.comparisons import estimate
from benchmarks.nlpo import plan
from benchmarks.nlpo.analysis import (
    AT_KL,
    FAMILIES,
    FINAL,
    NUCLEUS,
    Measure,
    Studied,
    against_base,
    fallen,
    family,
    stability,
    studied,
    values,
)
from benchmarks.nlpo.measures import Point, Record


def write(folder: Path, worlds: Sequence[str]) -> None:
    """Tables and curves of the worlds whose tuning is done; says which are not."""
    from benchmarks.nlpo import figures

    folder.mkdir(parents=True, exist_ok=True)
    studies = [study for name in worlds if (study := studied(plan.WORLDS[name], folder)) is not None]
    for name in sorted(set(worlds) - {study.world.name for study in studies}):
        print(f"{name}: its tuning is not complete, left out")
    if not studies:
        return
    (folder / "table.md").write_text("\n".join(table(studies)) + "\n")
    (folder / "readme.md").write_text("\n".join(short(studies)) + "\n")
    for name in figures.draw(studies, folder):
        print(folder / name)
    print(folder / "table.md", folder / "readme.md", sep="\n")


# -- formats ------------------------------------------------------------------------------------------------


def _average(records: Iterable[Record], of: Callable[[Point], float], *, nucleus: bool = False) -> str:
    points = [r.nucleus if nucleus else r.final for r in records]
    found = [of(at) for at in points if at is not None]
    return f"{fmean(found):.2f}" if found else "–"


# -- table.md -----------------------------------------------------------------------------------------------


def table(studies: Sequence[Studied]) -> list[str]:
    lines = [
        "# NLPO and PPO: the numbers",
        "",
        "Written by `study.py report`. What each column is, README.md",
    ]
    lines[-1] += " beside this folder says; ± is half the 95 % t-interval over seeds."
    lines += ["", *_provenance(studies)]
    for study in studies:
        lines += [f"## {study.world.name}", "", *_settings(study), *_results(study)]
        for measure in FAMILIES:
            lines += _comparisons(study, measure)
        lines += [*_stability(study), *_ablations(study)]
    return lines


def _provenance(studies: Sequence[Studied]) -> list[str]:
    records = [record for study in studies for record in study.records]
    tokens = sum(record.curve[-1].tokens for record in records)
    hours = sum(record.seconds for record in records) / 3600
    lines = [
        f"{len(records)} runs, {tokens / 1e6:.1f} million tokens generated for training, {hours:.1f} hours of "
        "processor time.",
        "",
    ]
    return [*lines, *tables.made_with([record.code for record in records])]


def _settings(study: Studied) -> list[str]:
    rows = []
    for arm, trial in study.chosen.items():
        tried: dict[str, list[Record]] = {}
        for key, record in study.tuning.items():
            _, _, name, setting, _ = key.split("/")
            if name == arm:
                tried.setdefault(setting, []).append(record)
        fit = [setting for setting, records in tried.items() if plan.qualifies(study.world, records)]
        how = "" if str(trial) in fit else " (none qualified: smallest KL)"
        rows.append([f"`{arm}`", f"{trial.lr:g}", f"{trial.coef:g}{how}", f"{len(fit)}/{len(tried)}"])
    return [
        "Chosen in tuning:",
        "",
        *tables.rows(["arm", "lr", "KL coefficient", "trials that qualified"], rows),
    ]


def _results(study: Studied) -> list[str]:
    world, rows = study.world, []
    for arm, runs in study.main.items():
        records = list(runs.values())
        at_kl = values(world, runs, AT_KL)
        rows.append(
            [
                f"`{arm}`",
                tables.mean(estimate(list(values(world, runs, FINAL).values()))),
                _average(records, lambda at: at.kl),
                _average(records, lambda at: at.grammar) if world.grammar else "–",
                _average(records, lambda at: at.length),
                tables.mean(estimate(list(values(world, runs, NUCLEUS).values()))),
                _average(records, lambda at: at.grammar, nucleus=True) if world.grammar else "–",
                f"{tables.mean(estimate(list(at_kl.values())))} ({len(at_kl)}/{len(runs)})",
                f"{fmean(r.curve[-1].tokens for r in records) / 1000:.1f}",
                f"{fmean(r.seconds for r in records):.0f}",
            ]
        )
    start = (
        fmean(r.curve[0].reward for runs in study.main.values() for r in runs.values()) if study.main else 0.0
    )
    head = ["arm", "final reward", "KL", "grammar", "length", "reward, p = 0.9", "grammar, p = 0.9"]
    head += [f"reward at KL {world.kl_at:g}", "thousand tokens", "s"]
    said = f"Reward: `{world.reward}` on `test`; {start:.3f} before training."
    return [said, "", *tables.rows(head, rows)]


def _comparisons(study: Studied, measure: Measure) -> list[str]:
    found = family(study, measure)
    return [f"Comparisons by {measure.name}:", "", *tables.comparisons(found)] if found else []


def _stability(study: Studied) -> list[str]:
    rows = [
        [
            f"`{s.arm}`",
            f"{s.spread:.3f}",
            tables.p_value(s.p_spread),
            tables.of(s.collapsed),
            tables.of(s.collapsed_tuning),
            tables.p_value(s.p_collapsed),
            tables.of(s.collapsed_own),
        ]
        for s in stability(study)
    ]
    head = ["arm", "SD over seeds", "p (Holm)", "collapsed", "in tuning", "p (Holm)", "in its own samples"]
    return ["Stability; each p against `ppo`:", "", *tables.rows(head, rows)] if rows else []


def _ablations(study: Studied) -> list[str]:
    if not study.ablation:
        return []
    bases = dict(reversed([(arm, setting) for arm, setting in plan.BASES]))
    lines = ["Ablations; the difference is that of final reward to the arm's own setting, seed by seed:", ""]
    rows = []
    for group in plan.ABLATIONS.values():
        for arm, setting in group:
            runs = study.ablation.get((arm, setting), {})
            if not runs:
                continue
            records = list(runs.values())
            own = (arm, setting) in plan.BASES
            rows.append(
                [
                    f"`{arm}`",
                    _named(setting) + (" (its own)" if own else ""),
                    tables.mean(estimate(list(values(study.world, runs, FINAL).values()))),
                    "" if own else tables.signed(against_base(study, arm, setting, bases[arm])),
                    _average(records, lambda at: at.kl),
                    _average(records, lambda at: at.grammar),
                    tables.mean(estimate(list(values(study.world, runs, NUCLEUS).values()))),
                    _average(records, lambda at: at.grammar, nucleus=True),
                    tables.of(fallen(study.world, records)),
                ]
            )
    head = ["arm", "setting", "final reward", "difference", "KL", "grammar", "reward, p = 0.9"]
    return [*lines, *tables.rows([*head, "grammar, p = 0.9", "collapsed"], rows)]


def _named(setting: str) -> str:
    return setting.replace("=", " = ").replace(str(plan.NEVER), "never").replace("_", "-")


# -- readme.md ----------------------------------------------------------------------------------------------


def short(studies: Sequence[Studied]) -> list[str]:
    """A block for the plugin's README: the arms of each world, and the verdicts on NLPO."""
    lines: list[str] = []
    rows = []
    for study in studies:
        verdict = {(c.arm, c.other): c for c in family(study, FINAL)}
        for s in stability(study):
            runs = study.main[s.arm]
            found = verdict.get((s.arm, plan.PPO))
            rows.append(
                [
                    study.world.name,
                    f"`{s.arm}`",
                    tables.mean(estimate(list(values(study.world, runs, FINAL).values()))),
                    ""
                    if found is None
                    else f"{tables.signed(found.difference)}, p {tables.p_value(found.p_holm)}",
                    tables.mean(estimate(list(values(study.world, runs, NUCLEUS).values()))),
                    _average(runs.values(), lambda at: at.kl),
                    tables.of(s.collapsed),
                ]
            )
    head = ["world", "arm", "final reward", "less PPO's", "reward, p = 0.9", "KL", "collapsed"]
    lines += tables.rows(head, rows)
    lines.append(
        "Means over seeds with 95 % t-intervals; p of the paired t-test after Holm's correction. Each arm at the best "
        "of the same eight settings, chosen on other seeds; protocol and all numbers: "
        "[benchmarks/nlpo](../../../benchmarks/nlpo/README.md)."
    )
    return lines
