"""The claims of README.md, each answered from the numbers by the rules named there; and the table of logs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlalign_study import report, stats
from rlalign_study.analysis import Found
from rlalign_study.report import SURE, p_value, signed, verdict

ALOL, WBC, KL = "a-lol", "wbc", "a-lol-kl"
FAMILY = (ALOL, "a-lol-ref-free", "a-lol-seq", KL)
FINAL, DIVERSITY = "last.reward", "last.distinct_grammatical"
THIRD = (0.28, 0.38)
"""About a third: the interval of the mean share lies within."""


def answers(worlds: Sequence[Found]) -> list[str]:
    said = []
    for found in worlds:
        where = f"`{found.name}`" + (", the primary log" if found.name == "noisy" else "")
        for claim, answer in (
            ("A-LoL earns more than reward-weighted cloning", _better),
            ("It leaves out about a third of the log", _third),
            ("It keeps the highest diversity", _diverse),
            ("It is stable where its KL form can collapse", _stable),
        ):
            text = answer(found)
            if text is not None:
                said.append(f"- **{claim}** ({where}): {text}")
    return said


def before_world(found: Found) -> list[str]:
    """The table of a log: its kinds of responses, and the reference's."""
    logs = [row.metrics for row in found.prepared.values() if row.seed < 10]
    if not logs:
        return []
    kinds = dict.fromkeys(key.partition(".")[0] for log in logs for key in log if key.endswith(".responses"))
    lines = []
    for kind in kinds:
        count, score, grammar = (
            fmean(log[f"{kind}.{what}"] for log in logs if f"{kind}.{what}" in log)
            for what in ("responses", "score", "grammar")
        )
        lines.append([kind, f"{count:.0f}", f"{score:.3f}", f"{grammar:.3f}"])
    ends = [fmean(log[f"reference.{what}"] for log in logs) for what in ("texts", "reward", "grammar")]
    lines.append(["the reference's", f"{ends[0]:.0f}", *(f"{x:.3f}" for x in ends[1:])])
    head = ["responses", "a log", "reward", "grammar"]
    return [f"The logs, means over {len(logs)} seeds:", "", *report.rows(head, lines)]


def _better(found: Found) -> str | None:
    one = found.family(FINAL).get((ALOL, WBC))
    if one is None:
        return None
    said = f"{verdict(one)}. {signed(one.difference)} over {one.difference.count} seeds, corrected p "
    said += p_value(one.p_holm)
    if one.p_holm >= SURE:
        said += f"; before correction, {one.detectable:.3f} would have been found four times in five"
    return f"{said}."


def _third(found: Found) -> str | None:
    one = found.mean(found.main.get(ALOL, {}), "left_out")
    if one is None or one.count < 2:
        return None
    word = "yes" if THIRD[0] <= one.low and one.high <= THIRD[1] else "not shown"
    if one.low > THIRD[1] or one.high < THIRD[0]:
        word = "no, more" if one.low > THIRD[1] else "no, less"
    return f"{word}. {one.mean:.1%} ± {one.half:.1%} have no advantage."


def _diverse(found: Found) -> str | None:
    compared = [c for c in found.family(DIVERSITY).values() if c.other not in FAMILY]
    if not compared:
        return None
    above = [c.other for c in compared if c.difference.mean < 0 and c.p_holm < SURE]
    open_ = [c.other for c in compared if c.p_holm >= SURE]
    below = [c.other for c in compared if c.difference.mean > 0 and c.p_holm < SURE]
    word = "no" if above else "not shown" if open_ else "yes"
    said = [f"{word}. A-LoL is more diverse than {_list(below)}"]
    if above:
        said.append(f"less than {_list(above)}")
    if open_:
        said.append(f"not told apart from {_list(open_)}")
    unmeasured = [a for a in found.main if a not in FAMILY and a not in {c.other for c in compared}]
    if unmeasured:
        said.append(f"{_list(unmeasured)} left too few grammatical texts to be compared")
    if not above:
        return f"{'; '.join(said)}."
    more = [arm for arm in above if arm in _as_much(found)]
    return f"{'; '.join(said)}. Of those above it, earning as much or more: {_list(more)}."


def _as_much(found: Found) -> set[str]:
    """Arms whose mean final reward is at least A-LoL's."""
    means = {arm: one.mean for arm, runs in found.main.items() if (one := found.mean(runs, FINAL))}
    return {arm for arm, mean in means.items() if mean >= means[ALOL]}


def _stable(found: Found) -> str | None:
    if ALOL not in found.main or KL not in found.main:
        return None
    some = {arm: found.steadiness[arm] for arm in (ALOL, KL)}
    full, kl = ([a + b for a, b in zip(s.collapsed, s.in_tuning, strict=True)] for s in some.values())
    p = stats.fisher(kl[0], kl[1], full[0], full[1])
    fewer = full[0] / full[1] < kl[0] / kl[1]
    word = "not shown" if p >= SURE else "yes" if fewer else "no, the opposite"
    counts = f"{full[0]} of {full[1]} runs collapsed, tuning included, of the KL form {kl[0]} of {kl[1]}"
    return f"{word}. {counts} (p {p_value(p)})."


def _list(arms: Sequence[str]) -> str:
    return ", ".join(f"`{arm}`" for arm in arms) or "none"
