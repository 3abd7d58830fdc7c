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
    found = turns_to_go(reward.tokens_NT, rollout.mask_NT, rollout.columns["turn"], torch.arange(2))
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


def rewritten(episodes: tuple[int, ...]) -> tuple[Rollout, Reward]:
    """The same episodes, each turn a row of its own: two starts of as many episodes, in any order."""
    rows = [(e, place, t, x) for place, e in enumerate(episodes) for t, x in enumerate(EPISODES[e])]
    rows = rows[::-1]
    examples = [Example(f"0/{place}/{t}", "", responses=("",)) for _, place, t, _ in rows]
    like = torch.zeros((), dtype=torch.float64)
    inputs = [torch.zeros(1)] * len(rows)
    rollout = logged_rollout(examples, inputs, [([0, 1], True)] * len(rows), like=like)
    place_N = torch.tensor([place for _, place, _, _ in rows])
    turn_NT = torch.tensor([t for _, _, t, _ in rows])[:, None].expand(-1, 2)
    reward_NT = torch.tensor([[0.0, x] for *_, x in rows], dtype=torch.float64)
    columns = {"turn": turn_NT, "episode": 7 + place_N, "start": 3 + place_N // 2}
    return rollout.with_columns(**columns), Reward(reward_NT, {})


@pytest.mark.parametrize("episodes", [*itertools.product(range(3), repeat=4)][::7])
def test_rows_of_single_turns_are_worth_what_turns_of_one_row_are(episodes: tuple[int, ...]) -> None:
    component = RLOO(RLOO.Config(credit="turn"))
    component.name = "rloo"
    found = component.advantage_of(*rewritten(episodes))
    columns = rewritten(episodes)[0].columns
    for start in (0, 1):
        pair = episodes[2 * start : 2 * start + 2]
        expected_NT = component.advantage_of(*rollout_of(pair))
        for i in range(2):
            for t in range(len(EPISODES[pair[i]])):
                here_N = (columns["episode"] == 7 + 2 * start + i) & (columns["turn"][:, 0] == t)
                assert found[here_N].flatten().tolist() == pytest.approx([float(expected_NT[i, 3 * t])] * 2)


def test_rows_of_single_turns_are_compared_by_turns_or_not_at_all() -> None:
    rollout, reward = rewritten((0, 2, 1, 1))
    rloo, grpo = RLOO(RLOO.Config()), RLOO(RLOO.Config(credit="turn", scale="group"))
    for component in (rloo, grpo):
        component.name = "rloo"
        with pytest.raises(
            ComponentError, match="each is a turn, to a prompt of its own: say `credit: turn`"
        ):
            component.advantage(None, rollout, reward)  # type: ignore[arg-type]
    alone = rollout.take(rollout.columns["episode"] != 8)
    component = RLOO(RLOO.Config(credit="turn"))
    with pytest.raises(ComponentError, match="example `0/0/0` has one response only"):
        component.advantage(None, alone, reward)  # type: ignore[arg-type]
