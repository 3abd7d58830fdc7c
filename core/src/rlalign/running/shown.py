"""Responses as rows of samples.jsonl and learned.jsonl: texts, scores, and what each of their tokens was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import ADVANTAGE, Batch, Reward
from rlalign.data.rollout import AGE, TRANSCRIPT, TURN, Rollout
from rlalign.data.spoken import messages_of
from rlalign.decoding.pieces import pieces
from rlalign.running.phase import RunningPhase

CHARACTERS = 1000
"""Of a prompt or a response that TensorBoard gets."""
TOKENS = 256
"""Of a response, the first ones, that are shown one by one."""


def sampled(phase: RunningPhase, rollout: Rollout, reward: Reward, count: int) -> list[dict[str, Any]]:
    """The first responses as samples.jsonl shows them."""
    return [_row(phase, rollout, reward, row) for row in range(min(count, len(rollout)))]


def learned(phase: RunningPhase, batch: Batch) -> list[dict[str, Any]]:
    """Some of what was learned from, as learned.jsonl shows it, group by group; nothing without advantages."""
    asked = phase.settings.evaluate
    if asked is None or not len(batch):
        return []
    few = batch.take(_first_groups(batch.rollout, asked.show))
    made = phase.plan.training.makes_advantages
    rows = []
    for row, group in enumerate(few.rollout.group_N.tolist()):
        if (given := _advantage(few, row, made)) is None:
            continue
        one = len(given.unique()) == 1
        age_N = few.rollout.columns.get(AGE)
        rows.append(
            {
                "group": group,
                "reward": float(few.reward.total_N[row]),
                **({ADVANTAGE: float(given[0])} if one else {}),
                **({AGE: int(age_N[row])} if age_N is not None and age_N[row] > 0 else {}),
                **_row(
                    phase, few.rollout, few.reward, row, {} if one else {ADVANTAGE: few.advantage_NT[row]}
                ),
            }
        )
    return rows


def _first_groups(rollout: Rollout, count: int) -> Tensor:
    """The first rows, group by group: as many groups as fit, whole ones; of a first group that does not fit, a part."""
    order = rollout.row_order()
    group_N = rollout.group_N[order]
    if len(order) <= count:
        return order
    whole_N = group_N < group_N[count]
    return order[whole_N] if whole_N.any() else order[:count]


def _advantage(batch: Batch, row: int, made: bool) -> Tensor | None:
    """The advantage of each step that the policy chose; of a logged response one, computed over the data."""
    logged_N = batch.rollout.columns.get(ADVANTAGE)
    if isinstance(logged_N, Tensor) and logged_N.ndim == 1 and not logged_N[row].isnan():
        return logged_N[row : row + 1]
    return batch.advantage_NT[row][batch.rollout.mask_NT[row]] if made else None


def _row(
    phase: RunningPhase,
    rollout: Rollout,
    reward: Reward,
    row: int,
    more: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """A response with its scores; token by token what scores more than one of them, and `more`.

    Of an episode token by token only where there may be `more`: trackers take a sample's transcript as it stands.
    """
    mask_T, parts = rollout.mask_NT[row], reward.parts
    steps = {
        name: part[row]
        for name, part in parts.items()
        if part.ndim == 2 and int(part[row][mask_T].count_nonzero()) > 1
    }
    tell = partial(
        _tokens, phase.models.policy.text, rollout.actions_NT[row], mask_T, {**steps, **(more or {})}
    )
    said = {
        "prompt": rollout.examples[int(rollout.group_N[row])].prompt,
        "response": rollout.texts[row],
        "scores": {name: float(part[row].sum()) for name, part in parts.items()},
    }
    if TRANSCRIPT not in rollout.columns:
        return {**said, **tell(torch.arange(min(int(rollout.length_N[row]), TOKENS)))}
    transcript = rollout.columns[TRANSCRIPT][row]
    messages = messages_of(transcript, [True] * len(transcript))
    if more is not None:
        _tell_turns(messages, rollout, row, tell)
    return {**said, TRANSCRIPT: messages}


def _tokens(
    text: Callable[[Tensor], str], actions_T: Tensor, mask_T: Tensor, steps: Mapping[str, Tensor], at: Tensor
) -> dict[str, Any]:
    """The tokens at these places, and what each of them was given; nothing of those that the policy did not choose."""
    if not steps or not len(at):
        return {}
    own = mask_T[at].tolist()
    return {
        "tokens": pieces(text, actions_T[at].cpu()),
        "steps": {
            name: [
                float(f"{value:.4g}") if mine else None
                for value, mine in zip(values_T[at].tolist(), own, strict=True)
            ]
            for name, values_T in steps.items()
        },
    }


def _tell_turns(
    messages: Sequence[dict[str, Any]],
    rollout: Rollout,
    row: int,
    tell: Callable[[Tensor], Mapping[str, Any]],
) -> None:
    """Beside each of the policy's texts in an episode, its tokens with what they were given."""
    mine_C = rollout.mask_NT[row].nonzero()[:TOKENS, 0]
    turn_C = rollout.columns[TURN][row][mine_C]
    own = [message for message in messages if message["role"] == "assistant"]
    for message, turn in zip(
        own, turn_C.unique_consecutive(), strict=False
    ):  # the last turns may have none left
        message |= tell(mine_C[turn_C == turn])


def in_words(row: Mapping[str, Any]) -> str:
    """Such a response as text to look at."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
    scores = ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
    said = [
        f"{'→ ' if message['role'] == 'assistant' else ''}{_cut(str(message['content']))}"
        for message in row.get(TRANSCRIPT, [{"role": "assistant", "content": row["response"]}])
    ]
    return "\n".join([_cut(prompt), *said, f"({scores})"])


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"
