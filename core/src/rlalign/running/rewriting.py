"""Episodes whose history is rewritten: each turn is a response of its own, to what the environment says just then.

Legend: N rows (turns of all episodes), T steps; episodes count from 0, the k of an example one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlalign.config.pipeline import short
from rlalign.data.example import Example
from rlalign.data.rollout import EPISODE, START, SUMS, TO_GO, TRANSCRIPT, TURN, Rollout, concat
from rlalign.data.settings import Sampling
from rlalign.data.turn import Turn
from rlalign.decoding.interfaces import Constraint
from rlalign.decoding.play import started
from rlalign.errors import ComponentError
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy
from rlalign.running.members import once
from rlalign.running.plan import PhasePlan
from rlalign.running.playing import Playing


class OneTurn:
    """A response of each of some episodes; what comes back for it is asked when all have spoken."""

    turns = 1

    def __init__(self, examples: Sequence[Example], asks: Sequence[Turn], tokens: int) -> None:
        self.examples, self.asks, self.tokens = examples, asks, tokens

    def start(self, part: slice) -> tuple[Sequence[Example], Sequence[Turn]]:
        return self.examples[part], self.asks[part]

    def step(self, rows: Sequence[int], texts: Sequence[str]) -> Sequence[Turn]:
        return [Turn(done=True)] * len(rows)

    def close(self, rows: Sequence[int] | None = None) -> None:
        pass


class Uniforms(Protocol):
    """[examples, samples, steps] of a turn, which know of no other turn."""

    def __call__(self, turn: int, /, *, steps: int) -> Tensor: ...


def play_by_turns(
    policy: Policy,
    how: Sampling,
    game: Playing,
    uniforms: Uniforms,
    within: Constraint | None = None,
) -> Rollout:
    """Episodes of all examples of a game, a row a turn, the rows of an episode together."""
    steps = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
    once, rows, episodes = how.model_copy(update={"samples": 1}), [], []
    with started(game, slice(0, len(game.examples))) as (begun, firsts):
        going = list(range(len(begun) * how.samples))
        asks = {episode: firsts[episode // how.samples] for episode in going}
        for turn in range(game.turns):
            examples = [_asked(begun[e // how.samples], asks[e], turn, game) for e in going]
            uniform_N1T = uniforms(turn, steps=steps).flatten(0, 1)[going, None]
            one = OneTurn(examples, [asks[e] for e in going], steps)
            said = policy.play(examples, once, uniform_N1T, one, within)
            texts = [row[0][0] for row in said.columns[TRANSCRIPT]]
            back = game.step(going, texts)
            last = turn + 1 == game.turns
            rows.append(_answered(said, texts, back, turn, last))
            episodes += going
            over = [e for e, answer in zip(going, back, strict=True) if answer.over or last]
            game.close(over)
            asks.update(zip(going, back, strict=True))
            going = [e for e in going if e not in set(over)]
            if not going:
                break
    return _together(concat(rows), episodes, how.samples)


def _asked(example: Example, ask: Turn, turn: int, game: Playing) -> Example:
    if turn and not ask.say:
        raise ComponentError(
            f"environment `{game.environment.name}`, example `{example.id}`, turn {turn + 1}: it rewrites history, so "
            "that each turn says the whole next prompt, and this one says nothing"
        )
    return replace(example, prompt=ask.say or example.prompt)


def _answered(said: Rollout, texts: Sequence[str], back: Sequence[Turn], turn: int, last: bool) -> Rollout:
    """A turn of all that go on, with what came back for it."""
    rows_N, end_N = torch.arange(len(said), device=said.group_N.device), said.length_N - 1
    played_NT = torch.zeros_like(said.logprobs_NT)
    played_NT[rows_N, end_N] = played_NT.new_tensor([answer.reward for answer in back])
    cut_N = torch.tensor([answer.cut and not answer.done for answer in back], device=end_N.device)
    columns = {
        "played": played_NT,
        TURN: torch.full_like(said.actions_NT, turn),
        TRANSCRIPT: tuple(((text, answer),) for text, answer in zip(texts, back, strict=True)),
    }
    return replace(said, finished_N=~cut_N, columns=columns)


def _together(rows: Rollout, episodes: Sequence[int], samples: int) -> Rollout:
    """The rows of each episode one after the other, what came from each on, and how many there are."""
    order = sorted(range(len(rows)), key=lambda i: episodes[i])  # stable: turns are in their order
    taken, device = rows.take(torch.tensor(order)), rows.group_N.device
    episode_N = torch.tensor([episodes[i] for i in order], device=device)
    togo: list[float] = []
    sums: list[dict[str, float]] = []
    turns: list[int] = []
    for i in reversed(range(len(order))):
        (_, turn), following = taken.columns[TRANSCRIPT][i][0], order[i + 1 : i + 2]
        goes_on = bool(following) and episodes[following[0]] == episodes[order[i]]
        later: Mapping[str, float] = sums[-1] if goes_on else {}
        togo.append(turn.reward + (togo[-1] if goes_on else 0.0))
        sums.append(
            {name: turn.metrics.get(name, 0.0) + later.get(name, 0.0) for name in {**turn.metrics, **later}}
        )
        turns.append(turns[-1] if goes_on else int(taken.columns[TURN][i, 0]) + 1)
    return replace(
        taken,
        examples=tuple(rows.examples[i] for i in order),
        inputs=tuple(rows.inputs[i] for i in order),
        group_N=torch.arange(len(order), device=device),
    ).with_columns(
        **{
            EPISODE: episode_N,
            START: episode_N // samples,
            "turns": torch.tensor(turns[::-1], device=device),
            TO_GO: rows.logprobs_NT.new_tensor(togo[::-1]),
            SUMS: tuple(sums[::-1]),
        }
    )


def counted_from(rollout: Rollout, first: int, samples: int) -> Rollout:
    """Starts, and with them episodes, counted from this one on."""
    columns = rollout.columns
    return rollout.with_columns(
        **{START: columns[START] + first, EPISODE: columns[EPISODE] + first * samples}
    )


def named(rollout: Rollout, samples: int) -> Rollout:
    """Each row's example named by its start, sample and turn."""
    episodes, turns = rollout.columns[EPISODE].tolist(), rollout.columns[TURN][:, 0].tolist()
    rows = zip(rollout.examples, episodes, turns, strict=True)
    examples = (replace(one, id=f"{one.id}/{episode % samples}/{turn}") for one, episode, turn in rows)
    return replace(rollout, examples=tuple(examples))


def faults(plan: PhasePlan) -> Iterator[str]:
    """What cannot be where each turn of an episode is a row of its own."""
    settings, task = plan.settings, plan.task
    if not isinstance(task, Environment) or not task.rewrites or "sampled" not in plan.responses:
        return
    who = f"`{task.name}` rewrites history, so that each turn is a response of its own"
    if not plan.samples_only:
        yield f"{plan.source.item.place}: {who}, which `{plan.source.name}` would tear apart; leave it out"
    for name, asked in (
        ("refill", settings.train.refill),
        ("on_bad_reward", settings.train.on_bad_reward == "drop"),
    ):
        if asked:
            yield f"{settings.place_of(f'train.{name}')}: train.{name}: {who}, and episodes stay whole; leave it out"
    paid = {short(item.component): item.place for item in settings.rewards}
    adding = [member for member in once(plan.members) if member.component.adds_turns]
    if adding and "togo" in paid:
        yield (
            f"{paid['togo']}: `{adding[0].name}` adds up what later turns earned, as `togo` does already; say `played`"
        )
    elif plan.learns and "played" in paid and "togo" not in paid and not adding:
        yield (
            f"{paid['played']}: {who}, and `played` pays each for itself alone, whatever it leads to; say "
            "`rewards: [togo]`, which pays what came from a turn on, or take `rloo: {credit: turn}`"
        )
