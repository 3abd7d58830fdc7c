"""The claims of README.md, each answered from the numbers by the rules named there; and the table of reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rlalign_study import report, stats
from rlalign_study.analysis import Found, Runs
from rlalign_study.report import p_value, signed
from rlalign_study.stats import Estimate, estimate

COPG, IPO, DPO = METHODS = ("copg", "ipo", "dpo")
FINAL, TRUE, WAY, KL = "last.learned", "last.truth", "way", "last.kl"
GROUP, SMALLEST, LARGEST = "beta", "smallest", "largest"
SURE = 0.05
Shown = tuple[Estimate, float]
"""Mean differences, and their corrected p."""


def answers(worlds: Sequence[Found]) -> list[str]:
    said = []
    for found in worlds:
        for claim, answer in (
            (
                "In final learned reward CoPG > IPO > DPO",
                _order(found, FINAL, ((COPG, IPO), (IPO, DPO), (COPG, DPO))),
            ),
            ("CoPG is faster", _order(found, WAY, ((COPG, IPO), (COPG, DPO)))),
            ("With too small a β learning is unstable", _unstable(found)),
            ("With too large a β the policy stays near the reference", _near(found)),
            ("The learned reward says too much", _too_much(found)),
        ):
            said += [f"- **{claim}.**", *(f"  - {line}" for line in answer or ["not run yet."])]
    return said


def before_world(found: Found) -> list[str]:
    """The table of preferences and reward models: a row for each seed that is reported, and their mean."""
    some = [(row.seed, row.metrics) for row in found.prepared.values() if row.seed < 1000]
    if not some:
        return []
    columns = {
        "right, training": "train.accuracy",
        "right, validation": "val.accuracy",
        "possible, training": "train.right",
        "possible, validation": "val.right",
        "correlation with the true reward": "correlation",
        "true reward of the log": "train.truth",
        "its standard deviation": "train.truth_sd",
        "grammar of the log": "train.grammar",
    }
    lines = [
        [str(seed), *(f"{m[key]:.3f}" for key in columns.values())]
        for seed, m in sorted(some, key=lambda x: x[0])
    ]
    means = (estimate([m[key] for _, m in some]) for key in columns.values())
    lines.append(["mean", *(f"{one.mean:.3f} ± {one.half:.3f}" for one in means if one is not None)])
    return ["Preferences and reward models:", "", *report.rows(["seed", *columns], lines)]


def tested(differences: Mapping[str, Sequence[float]]) -> dict[str, Shown]:
    """By name the mean of differences over seeds and its p, corrected by Holm over all of them."""
    some = {name: values for name, values in differences.items() if len(values) > 2}
    p = stats.holm({name: stats.paired_t(values) for name, values in some.items()})
    means = {name: estimate(list(values)) for name, values in some.items()}
    return {name: (one, p[name]) for name, one in means.items() if one is not None}


def verdict(mean: float, p: float, *, wanted: int) -> str:
    """What a difference shows of a claim that wants it above 0 (`wanted` 1) or below (−1)."""
    if not p < SURE:
        return "not shown"
    return "yes" if mean * wanted > 0 else "no, the opposite"


def _told(one: Shown) -> str:
    return f"{signed(one[0])}, p {p_value(one[1])}"


def _order(found: Found, measure: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    lines = []
    for a, b in pairs:
        one = found.family(measure).get((a, b))
        if one is not None:
            word = verdict(one.difference.mean, one.p_holm, wanted=1)
            lines.append(f"`{a}` above `{b}`: {word} ({_told((one.difference, one.p_holm))}).")
    return lines


def ends(found: Found, end: str) -> dict[str, Runs]:
    """By method its runs at an end of its grid; none where the best β is that end."""
    some = {}
    for arm in METHODS:
        grid = next(iter(found.study.arms[arm].grid["beta"].values()))
        value = grid[0 if end == SMALLEST else -1]
        if arm in found.chosen and value not in found.chosen[arm].set.values():
            some[arm] = found.ablated.get((arm, f"{GROUP}={end}"), {})
    return some


def _less_best(found: Found, end: str, measure: str) -> dict[str, Shown]:
    """By method: the measure at an end of the grid less that at the best β."""
    return tested(
        {
            arm: found.difference(runs, found.main.get(arm, {}), measure)
            for arm, runs in ends(found, end).items()
        }
    )


def _at_the_end(found: Found, end: str) -> list[str]:
    there = ends(found, end)
    return [
        f"`{arm}`: not shown: its best β is the {end}."
        for arm in METHODS
        if arm in found.chosen and arm not in there
    ]


def _unstable(found: Found) -> list[str]:
    lines = _at_the_end(found, SMALLEST)
    for arm, one in _less_best(found, SMALLEST, FINAL).items():
        runs = ends(found, SMALLEST)[arm]
        fell, count = found.fallen(runs.values())
        kl = found.mean(runs, KL)
        beside = f"KL {kl.mean:.2f}, collapsed {fell} of {count}" if kl else ""
        word = verdict(one[0].mean, one[1], wanted=-1)
        lines.append(f"`{arm}`: {word}. Learned reward less that at the best β {_told(one)}; {beside}.")
    return lines


def _near(found: Found) -> list[str]:
    lines = _at_the_end(found, LARGEST)
    reward, kl = (_less_best(found, LARGEST, measure) for measure in (FINAL, KL))
    for arm in reward.keys() & kl.keys() if reward else ():
        words = {verdict(one[0].mean, one[1], wanted=-1) for one in (reward[arm], kl[arm])}
        word = next((w for w in ("no, the opposite", "not shown") if w in words), "yes")
        lines.append(f"`{arm}`: {word}. Learned reward {_told(reward[arm])}; KL {_told(kl[arm])}.")
    return sorted(lines)


def gains(found: Found, arm: str) -> dict[int, tuple[float, float]]:
    """By seed, the gains of learned and of true reward over the log, in standard deviations of its responses."""
    logs = {row.seed: row.metrics for row in found.prepared.values()}
    some = {}
    for seed, row in found.main.get(arm, {}).items():
        if FINAL in row.metrics and seed in logs:
            log = logs[seed]
            learned = (row.metrics[FINAL] - log["learned"]) / log["learned_sd"]
            some[seed] = learned, (row.metrics[TRUE] - log["train.truth"]) / log["train.truth_sd"]
    return some


def _too_much(found: Found) -> list[str]:
    every = {arm: gains(found, arm) for arm in METHODS}
    shown = tested({arm: [a - b for a, b in some.values()] for arm, some in every.items()})
    lines = []
    for arm, one in shown.items():
        learned, true = (fmean(pair[i] for pair in every[arm].values()) for i in (0, 1))
        word = verdict(one[0].mean, one[1], wanted=1)
        lines.append(
            f"`{arm}`: {word}. Learned {learned:+.2f}, true {true:+.2f} standard deviations; {_told(one)}."
        )
    return lines
