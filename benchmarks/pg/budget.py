"""A component that keeps generated tokens equal, and the measure of how many there were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field

from rlalign import Component, Options, Rollout, Run, hookimpl

SPENT = "spent-{phase}.json"


class Budget(Component):
    """Ends a phase once so many tokens have been sampled in it; what is logged costs nothing."""

    class Config(Options):
        """Options of `budget`."""

        tokens: int = Field(gt=0, description="tokens sampled")

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.spent = 0

    @hookimpl
    def phase_started(self) -> None:
        self.spent = 0

    @hookimpl
    def iteration_done(self, run: Run, rollout: Rollout) -> None:
        source = rollout.columns.get("source", ("sampled",) * len(rollout))
        fresh_N = torch.tensor([name == "sampled" for name in source], device=rollout.mask_NT.device)
        self.spent += int(rollout.mask_NT[fresh_N].sum())
        if self.spent >= self.config.tokens:
            (run.folder / SPENT.format(phase=run.phase)).write_text(json.dumps(self.spent))
            run.finish_phase(f"{self.spent} tokens are sampled")

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spent = int(state["spent"])


def of_run(run: Any) -> dict[str, float]:
    """The tokens a run sampled to learn from, all phases together."""
    files = run.folder.glob(SPENT.format(phase="*"))
    return {"sampled_tokens": sum(json.loads(file.read_text()) for file in files)}


components = {"budget": Budget}
