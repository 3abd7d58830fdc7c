"""`replay`: beside new responses, some of earlier iterations. Legend: N responses, G groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign import Component, ComponentError, Example, Options, Reward, Rollout, Run, concat, hookimpl
from rlalign.builtin.responses import Source
from rlalign.data.rollout import AGE, SAMPLED, SCORE_OF
from rlalign_plugin_replay.memory import Law, Memory, drawn

MIB = 2**20
OURS = (AGE, SAMPLED, "source")
"""Columns that are made anew."""


class Replay(Component):
    """Responses of earlier iterations, with the scores and log-probs that they had then."""

    paper = "Long-Ji Lin, Self-improving reactive agents based on reinforcement learning, planning and teaching, 1992"

    class Config(Options):
        """Options of `replay`."""

        groups: int = Field(
            16, gt=0, description="remembered groups an iteration, beside the new ones; not used in a `mix`"
        )
        keep: int = Field(1024, gt=0, description="groups remembered at most; the oldest are forgotten first")
        draw: Law = Field(
            "uniform",
            description="which are drawn: `uniform`: all alike; `recent`: the younger the likelier; `reward`: in "
            "proportion to exp(mean reward / temperature)",
        )
        half_life: float = Field(
            8.0, gt=0, description="`recent`: iterations after which a group is half as likely"
        )
        temperature: float = Field(1.0, gt=0, description="`reward`: how much of it makes e times as likely")
        at_least: float | None = Field(
            None, description="remember only responses that earned this; null: all of them"
        )
        in_memory: int = Field(
            256, ge=0, description="MiB of them held in memory; older ones are put into a file"
        )

    config: Config
    sources: Mapping[str, int] = {"sampled": 0}
    sure = False

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.memory = Memory(self.config.keep, self.config.in_memory * MIB)

    def setup(self, run: Run) -> None:
        self.memory.use(run.folder)

    def fewest(self, samples: int) -> int:
        return samples if self.config.at_least is None else 1

    # -- drawing ------------------------------------------------------------------------------------------

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        """New responses to the examples, and whole groups of earlier iterations beside them."""
        sampled = cast(Source, self.source_components["sampled"])
        new = _aged(0, _named("sampled", sampled.respond(run, examples, None)))
        if run.position:  # a refill: what is remembered is in the batch already
            return new
        places = drawn(
            self._log_weights(run), self.config.groups, run.rng("replay", self.name, run.iteration)
        )
        old = [_named(self.name, self._recalled(place, run, new.group_N.device)) for place in places]
        return concat([new, *old], fill=True)

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout:
        """In a `mix`: up to `count` remembered responses to each of these prompts, and none where there are none.

        They stand in other groups than they did, so rewards are asked for their scores again.
        """
        if run.iteration and not len(self.memory) and self.config.at_least is None:
            raise ComponentError(
                f"`{self.name}` brings back what the policy sampled, and nothing here samples: say `mix: {{sampled: 2, "
                f"{self.name}: …}}`"
            )
        bare = [replace(example, responses=(), scores=(), finished=()) for example in examples]
        empty = replace(run.models.policy.encode(bare), examples=tuple(examples))
        log_weight_E, found, group_n = self._log_weights(run), [], []
        for g, example in enumerate(examples):
            answers = self.memory.answers(example)
            log_weight_n = log_weight_E[[place for place, _ in answers]]
            rng = run.rng("replay", self.name, run.iteration, run.position + g)
            for n in sorted(drawn(log_weight_n, len(answers) if count is None else count, rng)):
                place, row = answers[n]
                found.append(_unscored(self._recalled(place, run, "cpu")).take(torch.tensor([row])))
                group_n.append(g)
        if not found:
            return _aged(0, empty)
        joined = concat(found).to(empty.group_N.device)
        group_N = torch.tensor(group_n, device=empty.group_N.device)
        return replace(joined, examples=empty.examples, inputs=empty.inputs, group_N=group_N)

    def _log_weights(self, run: Run) -> Tensor:
        c = self.config
        return self.memory.log_weights(c.draw, run.tick, c.half_life, c.temperature)

    def _recalled(self, place: int, run: Run, device: torch.device | str) -> Rollout:
        group = _aged(self.memory.age(place, run.tick), self.memory[place].to(device))
        # A reward of that name may be another one in another phase.
        return group if self.memory.phase(place) == run.phase else _unscored(group)

    # -- remembering --------------------------------------------------------------------------------------

    @hookimpl
    def iteration_done(self, run: Run, rollout: Rollout, reward: Reward) -> None:
        """Remember what was sampled in this iteration."""
        total_N = reward.total_N
        kept_N = rollout.new_N & ~(rollout.full_logprobs_NT.isnan() & rollout.mask_NT).any(1)
        if self.config.at_least is not None:
            kept_N = kept_N & (total_N >= self.config.at_least)
        known = _as_sampled(rollout.take(kept_N), reward.take(kept_N)).to("cpu")
        total_N = total_N[kept_N].double().cpu()
        for g, example in enumerate(known.examples):
            in_group_N = known.group_N == g
            try:
                value = float(total_N[in_group_N].mean())
                self.memory.add(known.take(in_group_N), run.tick - 1, run.phase, value)
            except TypeError as error:  # JSON's
                raise ComponentError(
                    f"`{self.name}` cannot keep example `{example.id}`, whose `meta` holds more than text and "
                    f"numbers: {error}"
                ) from error

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)


def _named(source: str, rollout: Rollout) -> Rollout:
    """With the name of the source, as in a `mix`."""
    return rollout.with_columns(source=(source,) * len(rollout))


def _aged(age: int, rollout: Rollout) -> Rollout:
    return rollout.with_columns(**{AGE: rollout.logprobs_NT.new_full((len(rollout),), float(age))})


def _as_sampled(rollout: Rollout, reward: Reward) -> Rollout:
    """Responses as the policy gave it, and the scores that were given to them; nothing that models said of them."""
    own = {
        name: x
        for name, x in rollout.columns.items()
        if "." not in name and name not in OURS and isinstance(x, Tensor | tuple)
    }
    scores = {SCORE_OF + name: x for name, x in reward.given.items()}
    return replace(rollout, texts=rollout.columns[SAMPLED], columns=own | scores)


def _unscored(group: Rollout) -> Rollout:
    return replace(
        group, columns={name: x for name, x in group.columns.items() if not name.startswith(SCORE_OF)}
    )
