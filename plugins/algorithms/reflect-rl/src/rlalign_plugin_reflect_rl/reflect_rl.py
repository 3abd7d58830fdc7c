"""The policy's side of Reflect-RL: REINFORCE on what came from a turn on, and again on the last successes.

Legend: N responses (turns), E episodes, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import Batch, ComponentError, Learner, Reward, Rollout, Run, concat, hookimpl
from rlalign.data.rollout import EPISODE
from rlalign_plugin_reinforce.family import PolicyGradient
from rlalign_plugin_reinforce.options import preset
from rlalign_plugin_replay import Memory

EARNED, ADVANTAGE = "earned", "advantage"
"""The columns of what is remembered: its rewards and its advantages, as they were."""
IN_MEMORY = 2**28
"""Bytes of successes that are held in memory; older ones lie in a file."""


class ReflectRL(PolicyGradient):
    """REINFORCE on the return from each turn on; then a step of its own on episodes of the last successes."""

    equation = "−(return from the turn on) log π, a mean over turns"

    paper = (
        "Runlong Zhou, Simon S. Du and Beibin Li, Reflect-RL: two-player online RL fine-tuning for LMs, 2024"
    )

    @preset(credit="turn", mean="tokens")
    class Config(PolicyGradient.Config):
        """Options of `reflect-rl`."""

        keep: int = Field(
            50, gt=0, description="how many of the last successes are remembered, in this phase"
        )
        replayed: int = Field(
            4,
            ge=0,
            description="of these so many episodes an iteration, drawn with replacement; 0: no replay",
        )
        success: float = Field(0.0, description="an episode that earned more in its environment is a success")

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.memory = Memory(self.config.keep, IN_MEMORY)

    def setup(self, run: Run) -> None:
        self.memory.use(run.folder)

    @hookimpl
    def phase_started(self) -> None:
        """A stage of a curriculum begins with nothing to remember."""
        self.memory.load_state_dict({})

    # -- learning -----------------------------------------------------------------------------------------

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> dict[str, float]:
        """A step on what is new, and another on what is remembered, with the advantages that it had."""
        replays = len(self.memory) > 0 and self.config.replayed > 0
        remembered = self.replay(run, batch.rollout.group_N.device) if replays else None
        metrics = dict(learner.learn(batch))
        if remembered is not None:
            again = learner.learn(remembered)
            for name in ("optimiser_steps", "empty_steps"):
                metrics[name] = metrics.get(name, 0.0) + again.get(name, 0.0)
            metrics[f"{self.name}/replay_loss"] = again[f"{self.name}/loss"]
        return {**metrics, f"{self.name}/remembered": float(len(self.memory))}

    def replay(self, run: Run, device: torch.device) -> Batch:
        """Episodes of the memory, as a step. A ratio would be taken to who sampled them.

        `importance` weighs them by the policy as it is, so this is asked for when the iteration begins.
        """
        chance = run.rng(self.name, "replay", run.iteration)
        places = torch.randint(len(self.memory), (self.config.replayed,), generator=chance).tolist()
        rollout = concat([self.memory[place] for place in places]).to(device)
        if self.config.kl:
            reference = run.score("reference", rollout, ["full_logprobs"])
            rollout = rollout.with_columns(**{"reference.full_logprobs": reference.full_logprobs_NT})
        reward, advantage_NT = Reward(rollout.columns[EARNED], {}), rollout.columns[ADVANTAGE]
        batch = Batch.of(rollout, reward, advantage_NT, **self.weights(run, rollout))
        return replace(batch, old=rollout.logprobs_NT)

    # -- remembering --------------------------------------------------------------------------------------

    @hookimpl
    def iteration_done(self, run: Run, rollout: Rollout, reward: Reward) -> None:  # type: ignore[override]
        """Remember the successes among the new episodes."""
        advantage_NT = self.advantage_of(rollout, reward).expand(rollout.mask_NT.shape)
        for rows in successes(rollout, self.config.success):
            episode, earned_NT = rollout.take(rows), reward.tokens_NT[rows]
            length = int(episode.length_N.max())
            kept = _shortened(episode, length).with_columns(
                **{EARNED: earned_NT[:, :length].clone(), ADVANTAGE: advantage_NT[rows, :length].clone()}
            )
            self.memory.add(kept.to("cpu"), run.tick - 1, run.phase, float(earned_NT.sum()))
        super().iteration_done(rollout, reward)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state.get("memory", {}))


def successes(rollout: Rollout, more_than: float) -> list[Tensor]:
    """The rows of each new episode that earned more than this in its environment."""
    paid_NT = rollout.columns.get("played")
    if paid_NT is None:
        raise ComponentError(
            "`reflect-rl` remembers episodes that went well, and these responses were not sampled in an environment"
        )
    rows_N = torch.arange(len(rollout), device=rollout.group_N.device)
    _, place_N = rollout.columns.get(EPISODE, rows_N).unique(return_inverse=True)
    count = int(place_N.max()) + 1 if len(rollout) else 0
    earned_E = paid_NT.new_zeros(count).index_add(0, place_N, paid_NT.sum(1))
    new_N = rollout.new_N
    return [
        rows
        for e in (earned_E > more_than).nonzero()[:, 0].tolist()
        if bool(new_N[rows := (place_N == e).nonzero()[:, 0]].all())
    ]


def _shortened(rollout: Rollout, length: int) -> Rollout:
    """The same responses in as few steps as they need, and without columns."""
    names = ("actions_NT", "mask_NT", "logprobs_NT", "full_logprobs_NT")
    return replace(
        rollout, columns={}, **{name: getattr(rollout, name)[:, :length].clone() for name in names}
    )
