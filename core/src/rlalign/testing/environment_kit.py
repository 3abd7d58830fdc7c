"""Tests to inherit: what every environment must do, beside what every task must."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch

from rlalign.data.example import Example
from rlalign.data.rollout import EPISODE, TRANSCRIPT, Rollout
from rlalign.data.settings import Sampling
from rlalign.data.turn import Episode, Turn
from rlalign.decoding.play import started
from rlalign.interface.environment import Environment
from rlalign.randomness import Seeds
from rlalign.running.playing import Playing
from rlalign.running.rewriting import play_by_turns
from rlalign.testing.bench import session
from rlalign.testing.task_kit import TaskTests

SAMPLES = 3
"""Episodes of each start."""


class EnvironmentTests(TaskTests):
    """Inherit, name the environment and pytest does the rest; `TaskTests` says what else may be declared.

    `sayings` are responses that somebody may give, one after the other, right and wrong ones among them.
    """

    sayings: ClassVar[Sequence[str]] = ("yes", "", "a\nb", "1", "no idea, really. " * 20)
    shared = ("prompts",)

    def whole_pipeline(self) -> dict[str, Any]:
        whole = super().whole_pipeline()
        return {**whole, "rewards": ["togo" if self.environment().rewrites else "played"], **self.pipeline}

    def environment(self) -> Environment:
        """A new one."""
        made = self.task()
        assert isinstance(made, Environment), (
            f"`{self.cls.__name__}` does not derive from rlalign.Environment"
        )
        return made

    def starts(self) -> list[Example]:
        """Some examples."""
        examples = self.environment().examples("train")
        return [examples[i] for i in range(min(3, len(examples)))]

    def played(
        self, which: Sequence[int], *, seed: int = 0, together: bool = True
    ) -> dict[int, list[list[Turn]]]:
        """The turns of the episodes of these examples, told all of `sayings`: side by side, or one after the other."""
        environment, examples, seeds = self.environment(), self.starts(), Seeds(seed)
        found: dict[int, list[list[Turn]]] = {}
        for group in [list(which)] if together else [[g] for g in which]:
            games = [Playing(environment, [examples[g]], SAMPLES, seeds.rng, g) for g in group]
            for g, game in zip(group, games, strict=True):
                _, firsts = game.start(slice(0, 1))
                found[g] = [[firsts[0]] for _ in range(SAMPLES)]
            for place in range(environment.turns):
                for g, game in zip(group, games, strict=True):
                    rows = [row for row in range(SAMPLES) if not found[g][row][-1].over]
                    texts = [self.said(found[g][row][-1], place + row) for row in rows]
                    turns = game.step(rows, texts) if rows else []
                    for row, turn in zip(rows, turns, strict=True):
                        found[g][row].append(turn)
            for game in games:
                game.close()
        return found

    def said(self, turn: Turn, place: int) -> str:
        """What is said to a turn: one of its choices, or the next saying."""
        return (
            turn.choices[place % len(turn.choices)]
            if turn.choices
            else self.sayings[place % len(self.sayings)]
        )

    # -- the same start plays the same game ---------------------------------------------------------------

    def _require_replays(self) -> None:
        if not self.environment().replays:
            pytest.skip(f"`{self.named}` does not play the same game again, and says so (`replays`)")

    def test_resume_is_exact(self, tmp_path: Path) -> None:
        self._require_replays()
        super().test_resume_is_exact(tmp_path)

    def test_the_same_start_plays_the_same_game(self) -> None:
        """From the generators alone: side by side with others or alone, whatever else was drawn in the process."""
        self._require_replays()
        every = range(len(self.starts()))
        random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
        first = self.played(every)
        random.seed(2), numpy.random.seed(2), torch.manual_seed(2)
        for again in (self.played(every), self.played(every, together=False), self.played([*every][::-1])):
            for g in every:
                for mine, other in zip(first[g], again[g], strict=True):
                    assert mine == other, (
                        f"example {g} played otherwise when it was played again: draw from the generators `start` and "
                        "`noise` and from nothing else, and keep what belongs to an episode in the episode"
                    )

    def test_global_generators_are_left_alone(self) -> None:
        environment, example = self.environment(), self.starts()[0]
        states = _drawn()
        episode, turn = environment.start(example, torch.Generator(), torch.Generator())
        for place in range(2):
            turn = turn if turn.over else episode.step(self.said(turn, place))
        getattr(episode, "close", lambda: None)()
        assert _drawn() == states, (
            "it seeds or draws from the generators of the whole process: others do too, and none of them knows"
        )

    # -- turns --------------------------------------------------------------------------------------------

    def test_turns_are_sound(self) -> None:
        """Whatever is said, a turn comes back, and what it says can be read."""
        for episodes in self.played(range(len(self.starts()))).values():
            for turns in episodes:
                for turn in turns:
                    assert isinstance(turn.reward, int | float) and abs(turn.reward) < float("inf"), turn
                    assert all(isinstance(choice, str) for choice in turn.choices or ()), turn.choices
                    assert all(isinstance(value, int | float) for value in turn.metrics.values()), (
                        turn.metrics
                    )
                    if not isinstance(turn.say, str):
                        assert all(isinstance(message.get("role"), str) for message in turn.say), turn.say

    def test_limits(self) -> None:
        environment = self.environment()
        assert environment.turns >= 1 and environment.tokens >= 1

    def test_it_is_played(self, tmp_path: Any) -> None:
        """By a policy that writes bytes: turns in their order, within the limits, rewards where they were paid."""
        opened = session(tmp_path, self.whole_pipeline(), {self.named: self.cls})
        opened.build_policy()
        environment = self.environment()
        rollout = self.sampled(opened.models.policy, environment)
        assert rollout.flaw() is None and int(rollout.length_N.max()) <= environment.tokens
        episode_N = rollout.columns.get(EPISODE, torch.arange(len(rollout)))
        paid_N = rollout.columns["played"].sum(1)
        paid = paid_N.new_zeros(int(episode_N.max()) + 1).index_add(0, episode_N, paid_N)
        said: dict[int, list[tuple[str, Turn]]] = {}
        for episode, row in zip(episode_N.tolist(), rollout.columns[TRANSCRIPT], strict=True):
            said.setdefault(episode, []).extend(row)
        assert [*said] == [*range(len(paid))]
        for episode, turns in said.items():
            assert 1 <= len(turns) <= environment.turns
            assert not any(turn.over for _, turn in turns[:-1])
            assert float(paid[episode]) == pytest.approx(sum(turn.reward for _, turn in turns), abs=1e-4)

    def sampled(self, policy: Any, environment: Environment) -> Rollout:
        """Episodes of a policy."""
        examples, seeds, how = self.starts(), Seeds(0), Sampling(samples=SAMPLES, max_new_tokens=5)
        uniforms = partial(seeds.uniforms, "u", positions=range(len(examples)), samples=SAMPLES)
        game = Playing(environment, examples, SAMPLES, seeds.rng)
        if environment.rewrites:
            return play_by_turns(policy, how, game, lambda turn, steps: uniforms("turn", turn, steps=steps))
        found: Rollout = policy.play(examples, how, uniforms(steps=environment.tokens), game)
        return found

    # -- the end --------------------------------------------------------------------------------------------

    def test_episodes_are_closed_once(self) -> None:
        """However they end; and one that has a `close` can be closed in the middle."""
        environment, examples, counts = self.environment(), self.starts(), Counter[int]()
        kept: list[Episode] = []

        class Counted(type(environment)):  # type: ignore[misc]
            def start(self, *args: Any) -> tuple[Episode, Turn]:
                episode, turn = super().start(*args)
                kept.append(episode)
                place = len(kept) - 1
                if hasattr(episode, "close"):
                    close = episode.close

                    def counted() -> None:
                        counts[place] += 1
                        close()

                    episode.close = counted
                return episode, turn

        environment.__class__ = Counted
        game = Playing(environment, examples, 1, Seeds(0).rng)
        with started(game, slice(0, len(examples))) as (begun, firsts):
            assert [example.id for example in begun] == [example.id for example in examples]
            turn = firsts[0]
            if not turn.over:
                game.step([0], [self.said(turn, 0)])
            game.close([0])
        assert set(counts.values()) <= {1}
        assert len(counts) in (0, len(kept))

    def test_several_runs_of_one_environment_do_not_meet(self) -> None:
        """One object starts all episodes of a run, in training and in evaluation."""
        self._require_replays()
        examples = [replace(example) for example in self.starts()]
        environment = self.environment()
        one, other = (Playing(environment, examples, 1, Seeds(seed).rng) for seed in (0, 1))
        first = one.start(slice(0, 1))[1][0]
        other.start(slice(0, 1))
        alone = Playing(self.environment(), examples, 1, Seeds(0).rng)
        assert alone.start(slice(0, 1))[1][0] == first
        if not first.over:
            said = self.said(first, 0)
            assert one.step([0], [said]) == alone.step([0], [said])
        for game in (one, other, alone):
            game.close()


def _drawn() -> tuple[Any, ...]:
    """Where the generators of the process stand."""
    numbers = numpy.random.get_state(legacy=False)["state"]
    return random.getstate(), numbers["pos"], numbers["key"].tolist(), torch.get_rng_state().tolist()
