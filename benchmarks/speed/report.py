"""The tables of measured speed, from the files under benchmarks/results; `make docs` puts them into the READMEs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
LABELS = {"tiny": "GPT-2, 2 × 128, V 1,000", "qwen": "Qwen2, 4 × 256, V 8,000", "gpt2": "GPT-2 small's shape"}
LABELS |= {"real": "a real model of 135M"}
_GROUPED = {
    "float32": {"tiny": 3.5, "qwen": 2.6, "gpt2": 1.85, "real": 2.0},
    "bfloat16": {"tiny": 3.5, "qwen": 4.5},
}
ROLLOUT_AIM = {"V": 5.0}
"""How many times as fast sampling should be, of a scenario's rows in float32."""
CHECKPOINT_AIM = 0.05
"""The share of a step that a checkpoint after each may take, of a model of 135 M weights and more."""
SHORT_HEAD = "times as fast as TRL: processor time of a whole step, median, float32 unless said"


def aim(row: str) -> float | None:
    """How many times as fast as TRL a row's step should be."""
    model, algorithm, scenario, dtype = row.split("/")
    if algorithm in ("rloo", "grpo"):
        if scenario == "L" and dtype == "float32":
            return 4.0
        if scenario == "S":
            return _GROUPED[dtype].get(model)
    return 2.5 if scenario == "S" and dtype == "float32" and algorithm in ("ppo", "dpo") else None


def latest(kind: str) -> Mapping[str, Any]:
    """What the newest results file of a kind holds; nothing where there is none."""
    found = sorted(RESULTS.glob(f"{kind}-[0-9]*.json"))
    return json.loads(found[-1].read_text()) if found else {}


def times(ratio: Mapping[str, float], wanted: float | None = None) -> str:
    """`2.41 [2.2, 2.6]`, in bold where it misses what is wanted."""
    middle = f"{ratio['median']:.2f}"
    if wanted is not None and ratio["median"] < wanted:
        middle = f"**{middle}**"
    return f"{middle} [{ratio['least']:.2f}, {ratio['most']:.2f}]"


def done(part: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were measured."""
    return {name: one for name, one in part.items() if "failed" not in one}


def beside_trl(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """A line a row: seconds of a step, how many times as long TRL took, and of the sampling alone."""
    heads = "model, algorithm, scenario, precision, s a step, TRL's, × (processor), × (clock), aim, rollout ×, n, load"
    lines: list[Sequence[str]] = [heads.split(", ")]
    for name, one in done(data.get("rows", {})).items():
        model, algorithm, scenario, dtype = name.split("/")
        cpu, wall, wanted = one["step"]["cpu"], one["step"]["wall"], aim(name)
        least = ROLLOUT_AIM.get(scenario) if dtype == "float32" else None
        cells = [LABELS.get(model, model), algorithm, scenario, dtype]
        cells += [f"{cpu['ours']['median']:.3f}", f"{cpu['other']['median']:.3f}"]
        cells += [times(cpu["ratio"], wanted), times(wall["ratio"]), f"{wanted:g}" if wanted else ""]
        cells += [times(one["rollout"]["cpu"]["ratio"], least) if "rollout" in one else ""]
        lines.append([*cells, str(one["n"]), f"{max(one['load']):.1f}"])
    return lines


def short(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Models down, algorithms across: how many times as fast as TRL on equal prompts."""
    rows = done(data.get("rows", {}))
    columns = {a.upper(): f"{a}/S/float32" for a in ("rloo", "grpo", "ppo", "dpo")}
    if any(name.endswith("bfloat16") for name in rows):
        columns["RLOO, bfloat16"] = "rloo/S/bfloat16"
    lines: list[Sequence[str]] = [(SHORT_HEAD, *columns)]
    for model, label in LABELS.items():
        names = [f"{model}/{column}" for column in columns.values()]
        if any(name in rows for name in names):
            cells = [f"{rows[n]['step']['cpu']['ratio']['median']:.2f}" if n in rows else "" for n in names]
            lines.append((label, *cells))
    return lines


def profile(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Where a step of ours goes, and how fast it would be if only its matrix products were left."""
    lines: list[Sequence[str]] = [
        (
            "row",
            "matrix products",
            "attention",
            "other kernels",
            "their rate",
            "a large one's",
            "× with nothing else",
        )
    ]
    rows = done(data.get("rows", {}))
    for name, one in done(data.get("profile", {})).items():
        shares = [one[part] / one["step"] for part in ("products", "attention", "other")]
        rates = one["operations"] / one["products"], one["large product's rate"]
        most = f"{rows[name]['step']['cpu']['ratio']['median'] / shares[0]:.1f}" if name in rows else ""
        cells = [f"{share:.0%}" for share in shares] + [f"{rate / 1e9:.0f} G/s" for rate in rates]
        lines.append((f"`{name}`", *cells, most))
    return lines


def memory(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Peak memory of each side, in a process of its own."""
    held = done(data.get("memory", {}))
    lines: list[Sequence[str]] = [("row", "GB at most", "TRL's", "share")]
    for name in held:
        row, _, side = name.rpartition("/")
        if side == "ours" and f"{row}/trl" in held:
            ours, theirs = held[name]["peak_gb"], held[f"{row}/trl"]["peak_gb"]
            lines.append((f"`{row}`", f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"))
    return lines


def checkpoints(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """What a checkpoint after every step takes of the processor, and how long the run stands still for it."""
    heads = (
        "row, s a step, a checkpoint's, share of the processor, aim, × beside one (processor), × (clock), "
    )
    heads += "stands still s, MB it holds, n, load"
    lines: list[Sequence[str]] = [heads.split(", ")]
    for name, one in done(data.get("checkpoints", {})).items():
        cpu, share, large = one["step"]["cpu"], one["share"], name.startswith(("real/", "gpt2/"))
        middle = f"{share['median']:.1%}"
        if large and share["median"] > CHECKPOINT_AIM:
            middle = f"**{middle}**"
        cells = [f"`{name}`", f"{cpu['ours']['median']:.3f}", f"{one['checkpoint']['cpu']['median']:.3f}"]
        cells += [f"{middle} [{share['least']:.1%}, {share['most']:.1%}]"]
        cells += [
            f"{CHECKPOINT_AIM:.0%}" if large else "",
            *(times(x["ratio"]) for x in one["step"].values()),
        ]
        cells += [f"{one['stands still']['median']:.3f}", f"{one['bytes'] / 1e6:,.0f}", str(one["n"])]
        lines.append([*cells, f"{max(one['load']):.1f}"])
    return lines


def scoring(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """A reward inline beside the same one isolated, and sampling beside one in a thread."""
    heads = (
        "references, reward over sampling, s inline (clock), isolated, × (clock), s of the processor inline, "
    )
    heads += (
        "isolated, its process's, sampling alone s (clock), and scoring after it, and in a thread meanwhile"
    )
    lines: list[Sequence[str]] = [heads.split(", ")]
    for name, one in done(data.get("scoring", {})).get("all", {}).get("references", {}).items():
        cpu, wall = one["iteration"]["cpu"], one["iteration"]["wall"]
        cells = [name, f"{one['reward over sampling']['median']:.2f}"]
        cells += [f"{wall[x]['median']:.3f}" for x in ("other", "ours")] + [times(wall["ratio"])]
        cells += [f"{cpu[x]['median']:.3f}" for x in ("other", "ours")] + [f"{one['served']:.3f}"]
        lines.append([*cells, *(f"{x['median']:.3f}" for x in one["thread"]["wall"].values())])
    return lines


def parity(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """How far the gradients of both sides are from each other, and how far padding moves TRL's log-probs."""
    lines: list[Sequence[str]] = [
        (
            "row",
            "gradients apart",
            "prompt + response tokens, both",
            "nats that 1, 4, 8 pads move TRL's log-probs",
        )
    ]
    for name, one in done(data.get("parity", {})).items():
        ours, moved = one["ours"], one.get("moved by padding", {})
        pads = ", ".join(f"{moved[p]:.1g}" for p in ("1", "4", "8")) if moved else ""
        lines.append(
            (f"`{name}`", f"{one['far']:.0e}", f"{ours['prompt tokens']} + {ours['response tokens']}", pads)
        )
    return lines


def further(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """What has no counterpart in TRL: each beside what it is made of."""
    lines: list[Sequence[str]] = [("what", "beside", "s", "its s", "costs × (processor)", "n")]
    for one in done(data.get("further", {})).get("all", {}).get("pairs", []):
        cpu = one["cpu"]
        seconds = f"{cpu['other']['median']:.3f}", f"{cpu['ours']['median']:.3f}"
        lines.append((one["what"], one["beside"], *seconds, times(cpu["ratio"]), str(one["n"])))
    return lines


def rl4lms(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Rows A, B and S beside RL4LMs' recorded runs, from the benchmark of that name."""
    from benchmarks.rl4lms.bench import AIMS, RECORDED, ratios

    on = f"row, measured {data['date']}" if data else "row"
    lines: list[Sequence[str]] = [(on, "s an iteration", "recorded", "×", "aim")]
    for row, one in data.get("rows", {}).items():
        if row.rpartition("-")[0] in ("A", "B", "S"):
            ratio, wanted = ratios(row, one)["iteration"], AIMS[row.rpartition("-")[0]]
            shown = f"{ratio:.1f}" if ratio >= wanted else f"**{ratio:.1f}**"
            recorded = RECORDED["rows"][row]["iteration_s"]
            lines.append((row, f"{one['iteration_s']:.2f}", f"{recorded:.1f}", shown, f"{wanted}"))
    return lines


def growth(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Tokens a processor second as one size grows and the others stay."""
    lines: list[Sequence[str]] = [
        ("what grows", "from", "to", "tokens/s at first", "most", "at", "at last", "knee")
    ]
    for what, one in done(data.get("growth", {})).get("all", {}).get("axes", {}).items():
        sizes, speed = one["sizes"], one["tokens/s"]
        best = max(range(len(speed)), key=speed.__getitem__)
        numbers = sizes[0], sizes[-1], speed[0], speed[best], sizes[best], speed[-1]
        knee = "none" if one["knee"] is None else f"{one['knee']:,}"
        lines.append((what, *(f"{number:,.0f}" for number in numbers), knee))
    return lines


def gpu_sampling(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Tokens a second on a GPU, their share of the floor, and how many times as long other ways take."""
    others = ("generate", "generate_batch", "engine: slots", "engine: loop", "transformers' forward")
    lines: list[Sequence[str]] = [
        ("model, rows", "tokens/s", "of the floor", "GiB", *(f"× {x}" for x in others))
    ]
    for name, one in done(_by_name(data, "sampling")).items():
        if "tokens/s" in (ours := one["ways"]["ours"]):
            faster = one["times as fast"]
            cells = [name.replace("/", ", "), f"{ours['tokens/s']:,.0f}", f"{ours['share of the floor']:.0%}"]
            cells += [f"{ours['peak GiB']:.1f}" if "peak GiB" in ours else ""]
            lines.append([*cells, *(f"{faster[x]['median']:.1f}" if x in faster else "" for x in others)])
    return lines


def gpu_iterations(data: Mapping[str, Any]) -> list[Sequence[str]]:
    """Iterations on a GPU by parts, and the share of the card's rate that an update reaches."""
    parts = ("rollout", "score", "reward", "update", "iteration")
    lines: list[Sequence[str]] = [
        ("model, algorithm", "tokens", *(f"{x} s" for x in parts), "update at", "each prompt once", "GiB")
    ]
    for name, one in [*done(_by_name(data, "training")).items(), *done(_by_name(data, "runs")).items()]:
        seconds = [f"{one[f'time/{x}']['median']:.3f}" if f"time/{x}" in one else "" for x in parts]
        shares = "share of the card's rate in the update", "share of what must be computed"
        peak = f"{one['peak GiB']:.1f}" if "peak GiB" in one else ""
        lines.append(
            [
                name.replace("/", ", "),
                f"{one['tokens']:,}",
                *seconds,
                *(f"{one[x]:.0%}" if x in one else "" for x in shares),
                peak,
            ]
        )
    return lines


def _by_name(data: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """A part of a results file; nothing of one from before the parts had names."""
    held = data.get(part, {})
    return held if isinstance(held, Mapping) else {}


TABLES = {
    "speed, short": ("speed", short),
    "speed": ("speed", beside_trl),
    "speed, profile": ("speed", profile),
    "speed, memory": ("speed", memory),
    "speed, checkpoints": ("speed", checkpoints),
    "speed, parity": ("speed", parity),
    "speed, further": ("speed", further),
    "speed, growth": ("speed", growth),
    "speed, scoring": ("speed", scoring),
    "rl4lms": ("rl4lms", rl4lms),
    "gpu, sampling": ("gpu", gpu_sampling),
    "gpu, iterations": ("gpu", gpu_iterations),
}


def measured(name: str) -> list[Sequence[str]]:
    """The rows of a table by its name; none below its head where nothing is measured yet."""
    kind, way = TABLES[name]
    return way(latest(kind))


def as_text(lines: Sequence[Sequence[str]]) -> str:
    first, *others = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(first), *others))


def tables(data: Mapping[str, Any]) -> list[str]:
    """All that a results file holds."""
    made = [way(data) for kind, way in TABLES.values() if kind == "speed"]
    return [as_text(lines) for lines in made if len(lines) > 1]
