"""The few figures a person looks at first, in words; metrics.jsonl holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGES = ("rollout", "score", "reward", "advantage", "update")
SLOW = 0.5
"""The share of an iteration above which one reward's time is told."""
TIED = 0.5
"""The share of groups without a difference above which it is told."""
_COUNTS = ("responses", "tokens", "length", "finished")


def of_iteration(metrics: Mapping[str, float]) -> dict[str, str]:
    """The reward and its parts, the KL, what responses are like; the loss of a log. Only what there is."""
    found = {
        "reward": _with_parts(metrics),
        "KL": kl(metrics),
        "loss": number(metrics["loss"]) if "loss" in metrics and _of_logs(metrics) else "",
        **_of_texts(metrics),
        "tied groups": percent(x) if (x := metrics.get("groups/tied", 0.0)) > TIED else "",
    }
    return {name: said for name, said in found.items() if said}


def of_evaluation(metrics: Mapping[str, float], first: Mapping[str, float], at: str) -> dict[str, str]:
    """The reward, each score, the KL and what responses are like; what they were at first stands in brackets.

    What components measure beside stands there where nothing is scored.
    """
    now, then = _evaluated(metrics), _evaluated(first)
    scores = {name: x for name, x in now.items() if "/" not in name or name.startswith("reward/")}
    scores = {
        name: x for name, x in scores.items() if name not in _COUNTS and f"{name}/per_response" not in now
    }
    rows = {
        ("reward" if name == "total" else name): name for name in sorted(scores, key=lambda n: n != "total")
    }
    if not rows:
        rows = {name: name for name in now if "/" in name and not _is_kl(name)}
    found = {said: number(now[name]) + _was(name, then, at) for said, name in rows.items()}
    return {**found, **({"KL": said} if (said := kl(now)) else {}), **_of_texts(now)}


def _of_logs(metrics: Mapping[str, float]) -> bool:
    """Whether nothing that was learned from was sampled: the rewards of a log stay what they are."""
    return "reward/total" not in metrics or "sampler/gap" not in metrics


def _evaluated(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval/"): x for name, x in metrics.items() if name.startswith("eval/")}


def _was(name: str, then: Mapping[str, float], at: str) -> str:
    return f" ({number(then[name])} at {at})" if name in then and at else ""


def _of_texts(metrics: Mapping[str, float]) -> dict[str, str]:
    said = {"length": number, "finished": percent}
    return {name: say(metrics[name]) for name, say in said.items() if name in metrics}


def _with_parts(metrics: Mapping[str, float]) -> str:
    """The total, and the parts where there is more than one: `0.71 (classifier 0.8, kl -0.09)`."""
    if "reward/total" not in metrics:
        return ""
    total = number(metrics["reward/total"])
    parts = {name.removeprefix("reward/"): x for name, x in metrics.items() if name.startswith("reward/")}
    del parts["total"]
    if len(parts) < 2:
        return total
    return f"{total} ({', '.join(f'{name} {number(x)}' for name, x in parts.items())})"


def _is_kl(name: str) -> bool:
    return name.startswith("kl/") or name.endswith(("/per_response", "/kl"))


def kl(metrics: Mapping[str, float]) -> str:
    """The KL, in words."""
    name = kl_name(metrics)
    return "" if name is None else number(metrics[name])


def kl_name(metrics: Mapping[str, float]) -> str | None:
    """What the KL of a response is logged as, or what a component calls its KL."""
    whole = [name for name in metrics if name.endswith("/per_response")]
    called = [
        name
        for name in metrics
        if name.endswith("/kl") and not name.startswith(("reward/", "sampler/", "replay/"))
    ]
    return next(iter(whole + called), None)


def speed(metrics: Mapping[str, float]) -> str:
    took = metrics.get("time/iteration", 0.0)
    return f"{metrics['tokens'] / took:,.0f} tokens/s" if "tokens" in metrics and took > 0 else ""


def times(metrics: Mapping[str, float]) -> str:
    """What share of an iteration each stage takes."""
    whole = metrics.get("time/iteration", 0.0)
    shares = {stage: metrics.get(f"time/{stage}", 0.0) / whole for stage in STAGES} if whole > 0 else {}
    return " · ".join(f"{stage} {percent(share)}" for stage, share in shares.items() if share >= 0.01)


def slow_reward(metrics: Mapping[str, float]) -> str:
    """The one reward that most of an iteration's time goes to, if there is one."""
    whole = metrics.get("time/iteration", 0.0)
    for name, took in metrics.items():
        if name.startswith("time/reward/") and whole > 0 and took / whole > SLOW:
            return f"{percent(took / whole)} of it in the reward {name.removeprefix('time/reward/')}"
    return ""


def sample(row: Mapping[str, Any], most: int) -> str:
    """A prompt and a response in a line, the end of the one and the beginning of the other."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = str(prompt[-1]["content"]) if prompt else ""
    prompt, response = (" ".join(text.split()) for text in (prompt, row["response"]))
    if len(prompt) > most // 3:
        prompt = "…" + prompt[-most // 3 :]
    left = most - len(prompt)
    response = response if len(response) <= left else response[:left] + "…"
    return f"{prompt} | {response}" if prompt else response


def number(value: Any) -> str:
    """Four digits; what rounding alone leaves of a zero is one."""
    return f"{value if abs(value) >= 1e-5 else 0.0:.4g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
