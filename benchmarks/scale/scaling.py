"""How an iteration would scale over devices, by the cost model of docs/machines.md: no machine of that size was there.

python -m benchmarks.scale.scaling              # the tables of README.md: `rlalign check --machine` asked nine times
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
"""Qwen2.5-7B's, as it is published."""
PIPELINE: dict[str, Any] = {
    "task": {"dataset": {"path": "rows.jsonl", "prompt": "prompt"}},
    "policy": {"causal-lm": {"path": "."}},
    "rewards": [{"kl": {"coef": 0.05}}],
    "algorithm": "rloo",
    "generation": {"samples": 8, "max_new_tokens": 1024},
    "train": {"iterations": 100, "prompts": 128, "dtype": "bfloat16", "lr": 1e-6},
}
DEVICES = (8, 16, 32, 64, 128)
PROMPTS, EACH = 128, 16
"""Prompts of an iteration where they stay the same, and those of each device where they grow with devices."""
STAGES = ("rollout", "score", "update", "exchange")
HEAD = (
    "H100",
    "prompts",
    *(f"{stage}, s" for stage in STAGES),
    "iteration, s",
    "tokens a second",
    "of the ideal",
)


def seconds(folder: Path, devices: int, prompts: int) -> dict[str, float]:
    """Of an iteration in shards over all devices."""
    asked = [sys.executable, "-m", "rlalign.cli", "check", "pipeline.yaml", "--json"]
    asked += ["--machine", f"{devices}xH100", f"train.prompts={prompts}"]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True)
    (phase,) = json.loads(done.stdout)["phases"].values()
    (way,) = (way for name, way in phase["costs"].items() if name.endswith("shards"))
    if not way["fits"]:
        raise SystemExit(f"it does not fit on {devices}")
    found: dict[str, float] = way["seconds"]
    return found


def table(known: dict[tuple[int, int], dict[str, float]], each: int | None) -> str:
    """Rows by devices; the ideal is the tokens a second and device that the smallest machine has."""
    lines, first = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"], 0.0
    for devices in DEVICES:
        prompts = each * devices if each else PROMPTS
        took = known[devices, prompts]
        rate = prompts * PIPELINE["generation"]["samples"] * PIPELINE["generation"]["max_new_tokens"] / 2
        rate /= took["iteration"]
        first = first or rate / devices
        cells = [f"{took[stage]:.2g}" for stage in STAGES]
        row = (str(devices), f"{prompts:,}", *cells, f"{took['iteration']:.1f}", f"{rate:,.0f}")
        lines.append("| " + " | ".join((*row, f"{rate / devices / first:.0%}")) + " |")
    return "\n".join(lines)


def tables() -> tuple[str, str]:
    """With the same batch on more devices, and with a batch that grows with them."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "config.json").write_text(json.dumps(QWEN))
        (folder / "pipeline.yaml").write_text(json.dumps(PIPELINE))
        points = {(devices, prompts) for devices in DEVICES for prompts in (PROMPTS, EACH * devices)}
        known = {point: seconds(folder, *point) for point in sorted(points)}
    return table(known, None), table(known, EACH)


if __name__ == "__main__":
    strong, weak = tables()
    print(f"The same batch on more devices:\n\n{strong}\n\nA batch that grows with them:\n\n{weak}")
