"""Credit by turns: unbiased where episodes end at different turns, and what would not be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from rlalign import ComponentError, Example, Reward, Rollout, logged_rollout
from rlalign_plugin_reinforce import RLOO
from rlalign_plugin_reinforce.advantages import turns_to_go

GO_ON = (0.6, 0.5)
"""The chance to go on at the first and at the second turn."""
EPISODES = ((0.3,), (0.05, 0.2), (0.05, 0.5))
"""The rewards of each turn: of who stops at once, at the second turn, and not at all."""
CHANCE = (0.4, 0.6 * 0.5, 0.6 * 0.5)
TRUTH = (0.024, 0.045)
"""The gradient of the expected return by the logits of going on."""


def rollout_of(episodes: tuple[int, ...]) -> tuple[Rollout, Reward]:
    """One group; a turn is two tokens, with one given token between turns."""
    rows = [[0, 1, 2] * len(EPISODES[e]) for e in episodes]
    chosen = [[True, True, False] * len(EPISODES[e]) for e in episodes]
    for row, own in zip(rows, chosen, strict=True):
        row.pop(), own.pop()
    example = Example("0", "", responses=("",) * len(episodes))
    like = torch.zeros((), dtype=torch.float64)
    rollout = logged_rollout(
        [example], [torch.zeros(1)], [(row, True) for row in rows], like=like, chosen=chosen
    )
    turn_NT = ((torch.arange(rollout.steps) + 1) // 3).expand(len(rows), -1).clone()
    reward_NT = torch.zeros(rollout.mask_NT.shape, dtype=torch.float64)
    for i, e in enumerate(episodes):
        for place, reward in enumerate(EPISODES[e]):
            reward_NT[i, 3 * place + 1] = reward
    return rollout.with_columns(turn=turn_NT), Reward(reward_NT, {})


def gradient(credit: str) -> list[float]:
    """E over all pairs of episodes of Σ A ∇log π at the first token of each of the two turns that decide."""
    component = RLOO(RLOO.Config(credit=credit))
    component.name = "rloo"
    total = [0.0, 0.0]
    for pair in itertools.product(range(3), repeat=2):
        rollout, reward = rollout_of(pair)
        advantage_NT = component.advantage_of(rollout, reward).expand(rollout.mask_NT.shape)
        for i, e in enumerate(pair):
            for place in range(len(EPISODES[e])):
                score = (1.0 if e > place else 0.0) - GO_ON[place]
                weight = CHANCE[pair[0]] * CHANCE[pair[1]] / 2
                total[place] += weight * float(advantage_NT[i, 3 * place]) * score
    return total


@pytest.mark.parametrize("credit", ("response", "turn"))
def test_the_expected_gradient_is_that_of_the_return(credit: str) -> None:
    assert gradient(credit) == pytest.approx(TRUTH, abs=1e-9)


def test_a_mean_taken_away_at_every_turn_would_favour_stopping() -> None:
    """The trap: each turn's reward less that turn's mean, summed over the row's own later turns."""
    total = [0.0, 0.0]
    for pair in itertools.product(range(3), repeat=2):
        for i, e in enumerate(pair):
            mine, other = EPISODES[e], EPISODES[pair[1 - i]]
            less = [r - (other[t] if t < len(other) else 0.0) for t, r in enumerate(mine)]
            for place in range(len(EPISODES[e])):
                score = (1.0 if e > place else 0.0) - GO_ON[place]
                total[place] += CHANCE[pair[0]] * CHANCE[pair[1]] / 2 * sum(less[place:]) * score
    assert total == pytest.approx((-0.0264, 0.045), abs=1e-9)


def test_turns_to_go_by_hand() -> None:
    rollout, reward = rollout_of((0, 2))
    found = turns_to_go(reward.tokens_NT, rollout.mask_NT, rollout.columns["turn"])
    torch.testing.assert_close(found, torch.tensor([[0.3, 0], [0.55, 0.5]], dtype=torch.float64))
    component = RLOO(RLOO.Config(credit="turn"))
    advantage_NT = component.advantage_of(rollout, reward)
    expected = [[-0.25, -0.25, 0, 0, 0], [0.25, 0.25, 0, 0.5, 0.5]]
    torch.testing.assert_close(advantage_NT, torch.tensor(expected, dtype=torch.float64))


def test_where_there_are_no_turns_it_says_so() -> None:
    rollout, reward = rollout_of((0, 1))
    component = RLOO(RLOO.Config(credit="turn"))
    component.name = "rloo"
    columns = {name: column for name, column in rollout.columns.items() if name != "turn"}
    with pytest.raises(ComponentError, match=r"`rloo: \{credit: turn\}` goes by the turns of episodes"):
        component.advantage_of(replace(rollout, columns=columns), reward)


def test_what_makes_one_action_of_a_response_has_no_turns() -> None:
    with pytest.raises(ValueError, match="`credit: turn` gives each turn its own"):
        RLOO.Config(credit="turn", ratio="sequence")
