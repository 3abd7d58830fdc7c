"""An observer that writes down every token of a run."""

from __future__ import annotations

import json

from rlalign import Component, Reward, Rollout, Run, hookimpl


class Tokens(Component):
    """All responses of each iteration, as `tokens.jsonl`: whose they are, what was chosen and what was given."""

    @hookimpl
    def iteration_done(self, run: Run, rollout: Rollout, reward: Reward) -> None:
        rows = zip(
            rollout.answered,
            rollout.actions_NT.tolist(),
            rollout.mask_NT.tolist(),
            rollout.length_N.tolist(),
            rollout.finished_N.tolist(),
            strict=True,
        )
        told = [
            {"example": one.id, "tokens": tokens[:n], "chosen": chosen[:n], "finished": finished}
            for one, tokens, chosen, n, finished in rows
        ]
        with (run.folder / "tokens.jsonl").open("a") as file:
            file.write(json.dumps({"tick": run.tick, "phase": run.phase, "responses": told}) + "\n")
