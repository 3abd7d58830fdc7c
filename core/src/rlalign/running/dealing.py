"""What is dealt out to the processes of a run and brought together again: sampling by prompts, rewards by groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rlalign.data.batch import Batch, Score
from rlalign.data.example import Example
from rlalign.data.packed import pack, unpack
from rlalign.data.rollout import START, Rollout, concat
from rlalign.running.members import Member
from rlalign.world.ranks import here

X = TypeVar("X")
_NOBODY = Example("", "")


def sampled(examples: Sequence[Example], device: torch.device, sample: Callable[[range], Rollout]) -> Rollout:
    """Responses to all examples; each rank samples those to a run of them."""
    world = here()
    if world.size == 1 or not examples:
        return sample(range(len(examples)))
    share = world.share(len(examples))

    def mine() -> bytes:
        if not share:
            return b""
        return _bytes(sample(share), examples, share)

    found = world.gather(mine, f"the sampling of responses to {len(examples)} prompts")
    whole = concat([unpack(data) for data in found if data])
    return _of(whole, examples).to(device)


def sampled_by_one(
    examples: Sequence[Example], device: torch.device, sample: Callable[[], Rollout], what: str
) -> Rollout:
    """Responses to all examples of a sampler elsewhere, which rank 0 asks for all."""
    world = here()
    if world.size == 1:
        return sample()
    given = world.lead(lambda: _bytes(sample(), examples, range(len(examples))), what)
    return _of(unpack(given), examples).to(device)


def _bytes(rollout: Rollout, examples: Sequence[Example], share: range) -> bytes:
    """Of the examples, which all ranks have, only what an episode began with, or what a turn was asked."""
    pairs = zip(rollout.examples, _asked(rollout, examples, share), strict=True)
    begun = [_NOBODY if own.prompt == known.prompt else Example("", own.prompt) for own, known in pairs]
    return pack(replace(rollout, examples=tuple(begun)))


def _of(rollout: Rollout, examples: Sequence[Example]) -> Rollout:
    pairs = zip(rollout.examples, _asked(rollout, examples, range(len(examples))), strict=True)
    return replace(
        rollout,
        examples=tuple(replace(known, prompt=own.prompt) if own.prompt else known for own, known in pairs),
    )


def _asked(rollout: Rollout, examples: Sequence[Example], share: range) -> list[Example]:
    """Which of the examples each group answers; several may be turns of episodes from one."""
    starts = rollout.columns.get(START)
    return [examples[i] for i in (share if starts is None else starts.tolist())]


def scored(member: Member, rollout: Rollout, ask: Callable[[Rollout], Score]) -> Score:
    """A reward of all responses; each rank asks for that of some groups, or rank 0 for all."""
    world = here()
    if world.size == 1 or len(rollout) == 0:
        return ask(rollout)
    groups = world.share(len(rollout.examples))
    if member.component.by_one:
        groups = range(len(rollout.examples) if world.leads else 0)
    here_N = (rollout.group_N >= groups.start) & (rollout.group_N < groups.stop)
    rows = here_N.nonzero()[:, 0]

    def mine() -> list[Any]:
        if not len(rows):
            return []
        score = ask(rollout.take(rows))
        return [rows, score.value, score.metrics]

    what = f"the reward `{member.name}` of {len(rollout)} responses"
    found = [one for one in world.gather(mine, what) if one]
    order = torch.cat([rows for rows, _, _ in found]).argsort()

    def whole(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(pieces))[order].to(rollout.group_N.device)

    said = {name: x for _, _, metrics in found for name, x in metrics.items()}
    metrics = {
        name: whole([known.get(name, _nothing(x, len(rows))) for rows, _, known in found])
        for name, x in said.items()
    }
    return Score(whole([value for _, value, _ in found]), member.name, metrics)


def _nothing(like: torch.Tensor, rows: int) -> torch.Tensor:
    """A metric of rows that have none."""
    return like.new_full((rows, *like.shape[1:]), torch.nan)


def asked(member: Member, ask: Callable[[], X]) -> X:
    """What a component answers; one that is elsewhere is asked by rank 0 for all."""
    if member.component.by_one:
        return here().lead(ask, f"what `{member.name}` measures")
    return ask()


def same_batch(batch: Batch, members: Sequence[Member]) -> None:
    """Stop where `advantage` made another batch on another rank."""
    whose = " and ".join(f"`{member.name}`" for member in members) or "the default"
    rollout = batch.rollout
    here().same(
        lambda: {
            "examples": [example.id for example in rollout.examples],
            "rows": rollout.group_N,
            "tokens": rollout.actions_NT,
            "reward": batch.reward.tokens_NT,
            "advantage": batch.advantage_NT,
            **{name: x for name, x in batch.columns.items() if isinstance(x, torch.Tensor)},
        },
        f"after `advantage` of {whose}",
    )
