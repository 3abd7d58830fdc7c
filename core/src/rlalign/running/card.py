"""The README of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from rlalign.config.pipeline import Pipeline


def card(
    name: str,
    pipeline: Pipeline,
    metrics: Mapping[str, float],
    origin: str = "The pipeline and the exact environment lie beside this folder (`pipeline.yaml`, `lock.json`).",
) -> str:
    """What a stranger should know of an exported model."""
    methods = ", ".join(item.component for phase in pipeline.phases for item in phase.algorithm)
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    return (
        f"# {name}\n\nTrained with rlalign {metadata.version('rlalign')}: {methods}, seed {pipeline.seed}. "
        f"{origin}\n{table}"
    )
