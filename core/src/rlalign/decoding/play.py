"""Episodes of several turns in the one sampling loop: at each step a row chooses a token, or takes the next given one.

A row whose turn has ended hands its text to its episode, and takes what it is told, token by token, while others still
speak. The decoder never notices: keys and values live through the whole episode, and nothing is read again. Legend:
N responses, n of them being computed, T steps, V vocabulary, B bytes of V bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed, pack
from rlalign.data.example import Example, Prompt
from rlalign.data.rollout import TRANSCRIPT, TURN, Rollout
from rlalign.data.turn import Turn
from rlalign.decoding.choosing import Chosen
from rlalign.decoding.interfaces import Decodable
from rlalign.decoding.stopping import Stops
from rlalign.decoding.trace import Trace
from rlalign.errors import RLAlignError


class Game(Protocol):
    """The other side of the episodes of some examples, k each; rows count from the first that was started last."""

    turns: int
    tokens: int

    def start(self, part: slice) -> tuple[Sequence[Example], Sequence[Turn]]:
        """Begin k episodes of each of these examples: the prompts as they begin, and the first turn of each."""

    def step(self, rows: Sequence[int], texts: Sequence[str]) -> Sequence[Turn]:
        """What comes back in these rows for their responses."""

    def close(self, rows: Sequence[int] | None = None) -> None:
        """End the episodes of these rows, or all that go on."""


@contextmanager
def started(game: Game, part: slice) -> Iterator[tuple[Sequence[Example], Sequence[Turn]]]:
    """Episodes that all have ended afterwards."""
    try:
        yield game.start(part)
    finally:
        game.close()


def prompts_of(policy: Decodable, examples: Sequence[Example], steps: int) -> tuple[Tensor, ...]:
    """The prompts of episodes of up to so many tokens."""
    inputs = policy.prompts(examples)
    for example, tokens in zip(examples, inputs, strict=True):
        policy.check_row(
            example,
            len(tokens),
            steps,
            "have the environment say less, or lower its `tokens` (or `generation.max_new_tokens`)",
        )
    return inputs


Trie = dict[int, Any]
"""What each token leads to; nothing, where it ends a choice."""


def trie(words: Sequence[Sequence[int]], ends: Sequence[int]) -> Trie:
    """The tokens that go on with one of some choices."""
    root: Trie = {}
    lasts = []
    for word in words:
        node = root
        for token in word:
            node = node.setdefault(token, {})
        lasts.append(node)
    for node in lasts:
        if node:  # it begins another choice: an end tells them apart
            if not ends:
                raise RLAlignError("one choice begins another, and no token of this policy ends a response")
            node[ends[0]] = {}
    return root


class Choices:
    """How far a row has come in a trie."""

    def __init__(self, root: Trie) -> None:
        self.node = root

    def next(self) -> list[int]:
        """What may be chosen."""
        return list(self.node)

    def advance(self, token: int) -> bool:
        """Take a token; whether a choice is whole. One that is no choice comes of logits that are no numbers, which
        are refused once all is sampled."""
        self.node = self.node.get(token, {})
        return not self.node


@dataclass
class Seat:
    """A row: what it is about to be told, and what it has said."""

    choices: Choices | None
    given: deque[int] = field(default_factory=deque)
    words: list[int] = field(default_factory=list)
    """The tokens of the turn in progress."""
    said: list[tuple[str, Turn]] = field(default_factory=list)
    chose: list[bool] = field(default_factory=list)
    """Of each step: whether the policy chose."""
    turn: list[int] = field(default_factory=list)
    """Of each step: which turn it belongs to; what is told belongs to the turn that it begins."""
    over: bool = False
    paid: dict[int, float] = field(default_factory=dict)
    """By step."""
    bits: dict[int, Tensor] = field(default_factory=dict)
    """By step, packed [B]: what could be chosen, where that was not everything."""


class Play(Trace):
    """Episodes in progress."""

    notes_bans = True

    def __init__(
        self, *args: Any, game: Game, firsts: Sequence[Turn], least: int, most: int, like_nV: Tensor
    ) -> None:
        super().__init__(*args, like_nV=like_nV)
        self.game, self.least, self.most = game, least, most
        """A response has so many tokens at least, and at most."""
        self._stops = Stops(self.how.stop, self.policy.text, least)
        self._tries: dict[tuple[str, ...], Trie] = {}
        self._given: dict[tuple[str, bool], list[int]] = {}
        """The tokens of what was said already: environments repeat themselves."""
        self.seats = [Seat(self._choices(first.choices)) for first in firsts for _ in range(self.how.samples)]
        self._rows: list[int] = self.rows_n.tolist()
        self._end_tokens = frozenset(self.policy.ends)

    def _choices(self, choices: Sequence[str] | None) -> Choices | None:
        if choices is None:
            return None
        if (key := tuple(choices)) not in self._tries:
            self._tries[key] = trie(self.policy.words(key), self.policy.ends)
        return Choices(self._tries[key])

    def _told(self, say: Prompt, closed: bool) -> list[int]:
        """The tokens of what the environment says."""
        if not isinstance(say, str):
            return self.policy.given(say, closed).tolist()
        if (key := (say, closed)) not in self._given:
            self._given[key] = self.policy.given(say, closed).tolist()
        return self._given[key]

    # -- a step ---------------------------------------------------------------------------------------

    def may(self, step: int, like_nV: Tensor) -> Tensor | None:
        limited = [(n, seat) for n, seat in self._speaking() if seat.choices is not None or self._early(seat)]
        if not limited:
            return None
        may_nV = torch.ones_like(like_nV, dtype=torch.bool)
        early = [n for n, seat in limited if seat.choices is None]
        may_nV[self._tensor(early)[:, None], self.ends] = False
        nexts = [(n, seat.choices.next()) for n, seat in limited if seat.choices is not None]
        may_nV[self._tensor([n for n, _ in nexts])] = False
        pairs = [(n, token) for n, tokens in nexts for token in tokens]
        may_nV[self._tensor([n for n, _ in pairs]), self._tensor([token for _, token in pairs])] = True
        return may_nV

    def _speaking(self) -> list[tuple[int, Seat]]:
        """The rows that choose at this step."""
        seats = ((n, self.seats[row]) for n, row in enumerate(self._rows))
        return [(n, seat) for n, seat in seats if not seat.over and not seat.given]

    def _early(self, seat: Seat) -> bool:
        return seat.choices is None and len(seat.words) < self.least and bool(self._end_tokens)

    def add(self, chosen: Chosen, kept_nV: Tensor | None) -> Tensor:
        step, tokens, speaking = self._written + len(self._new), chosen.token_n.tolist(), self._speaking()
        self._note_allowed(step, speaking, kept_nV)
        spoke = {n for n, _ in speaking}
        over: list[tuple[int, str]] = []
        for n, row in enumerate(self._rows):
            seat = self.seats[row]
            if n in spoke:
                seat.words.append(tokens[n])
                if self._ended(seat):
                    text = self.policy.text(self._tensor(seat.words))
                    over.append((n, text if seat.choices else self._stops.cut(text)))
            elif seat.given:
                tokens[n] = seat.given.popleft()
            seat.chose.append(n in spoke)
            seat.turn.append(len(seat.said))
        token_n = self._tensor(tokens)
        self._new.append(chosen._replace(token_n=token_n))
        self._answer(step, over)
        return token_n

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.rows_n.device)

    def _note_allowed(self, step: int, speaking: Sequence[tuple[int, Seat]], kept_nV: Tensor | None) -> None:
        if kept_nV is None or not speaking:
            return
        kept_mV = kept_nV[[n for n, _ in speaking]]
        for (_, seat), bits_B, all_of_it in zip(
            speaking, pack(kept_mV).cpu(), kept_mV.all(1).tolist(), strict=True
        ):
            if not all_of_it:
                seat.bits[step] = bits_B

    def _ended(self, seat: Seat) -> bool:
        """Whether a turn has ended with the token just chosen."""
        words = seat.words
        if seat.choices is not None:
            return seat.choices.advance(words[-1])
        if words[-1] in self._end_tokens or len(words) >= self.most:
            return True
        return bool(self.how.stop) and self._stops.length(torch.tensor(words), len(words) - 1) is not None

    def _answer(self, step: int, over: Sequence[tuple[int, str]]) -> None:
        """Hand over what was said, and see how each row goes on."""
        if not over:
            return
        rows = [self._rows[n] for n, _ in over]
        turns = self.game.step(rows, [text for _, text in over])
        for (n, text), row, turn in zip(over, rows, turns, strict=True):
            seat = self.seats[row]
            seat.said.append((text, turn))
            seat.paid[step] = turn.reward
            last = len(seat.said) >= self.game.turns
            closed = seat.words[-1] in self._end_tokens
            given = [] if turn.over or last else self._told(turn.say, closed)
            # A row is cut before it would be told more than it has room for, and for an answer to it.
            if turn.over or last or step + 1 + len(given) >= self.actions_NT.shape[1]:
                self._leave(n, row, step + 1, finished=turn.done or (last and not turn.cut))
                continue
            seat.given.extend(given)
            seat.words, seat.choices = [], self._choices(turn.choices)

    def _leave(self, n: int, row: int, length: int, *, finished: bool) -> None:
        self.length_N[row], self.finished_N[row], self.alive_n[n] = length, finished, False
        self.seats[row].over = True
        self._going -= 1
        self.game.close([row])

    def look(self) -> int:
        return self._going

    def keep(self, places: Tensor) -> None:
        super().keep(places)
        self._rows = self.rows_n.tolist()

    def close(self) -> None:
        self.write()
        for n, row in enumerate(self._rows):
            seat = self.seats[row]
            if not seat.over:  # in the middle of a turn, of which nobody hears
                seat.said.append((self.policy.text(self._tensor(seat.words)), Turn(cut=True)))
                self._leave(n, row, self._written, finished=False)

    # -- rollouts ---------------------------------------------------------------------------------------

    def rollout(self, groups: Tensor | None = None) -> Rollout:
        plain = super().rollout(groups)
        rows, device = self.rows_of(groups).tolist(), plain.mask_NT.device
        mask_NT = torch.zeros_like(plain.mask_NT)
        turn_NT = torch.zeros_like(plain.actions_NT)
        played_NT = torch.zeros_like(plain.logprobs_NT)
        for i, row in enumerate(rows):
            seat, length = self.seats[row], int(self.length_N[row])
            mask_NT[i, :length] = torch.tensor(seat.chose[:length], device=device)
            turn_NT[i, :length] = self._tensor(seat.turn[:length])
            for step, reward in seat.paid.items():
                played_NT[i, step] = reward
        return replace(
            plain,
            mask_NT=mask_NT,
            logprobs_NT=torch.where(mask_NT, plain.logprobs_NT, 0),
            full_logprobs_NT=torch.where(mask_NT, plain.full_logprobs_NT, 0),
            columns={
                "played": played_NT,
                TURN: turn_NT,
                "turns": self._tensor([len(self.seats[row].said) for row in rows]),
                TRANSCRIPT: tuple(tuple(self.seats[row].said) for row in rows),
            },
        )

    def _text(self, row: int) -> str:
        return "\n".join(text for text, _ in self.seats[row].said)

    def _allowed(self, rows: Tensor) -> Allowed | None:
        allowed = Allowed.of(self.vocabulary, (self._bits(row) for row in rows.tolist()))
        return allowed if any(row is not None for row in allowed.rows) else None

    def _bits(self, row: int) -> Tensor | None:
        """[T,B] of a row; one bit at a step that was given, where nobody asks."""
        seat, length = self.seats[row], int(self.length_N[row])
        if not seat.bits:
            return None
        any_B = pack(torch.ones(1, self.vocabulary, dtype=torch.bool))[0]
        one_B = torch.zeros_like(any_B)
        one_B[0] = 1
        return torch.stack(
            [seat.bits.get(step, any_B) if seat.chose[step] else one_B for step in range(length)]
        )
