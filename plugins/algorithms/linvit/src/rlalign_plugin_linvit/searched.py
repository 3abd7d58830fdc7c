"""SLINVIT: a search for each next word of an episode, guided by what the policy finds likely. Nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pydantic import Field, computed_field
from torch import Generator, Tensor

from rlalign import (
    Component,
    ComponentError,
    Environment,
    Episode,
    Example,
    Options,
    Policy,
    Rollout,
    Run,
    Turn,
    hookimpl,
)
from rlalign.data.rollout import TRANSCRIPT, TURN
from rlalign.data.spoken import Spoken, messages_of
from rlalign.errors import attributed_to
from rlalign_plugin_function_reward.source import FunctionPath, digests, named

Transcript = tuple[tuple[str, Turn], ...]
Value = Callable[[Example, Transcript], float]


def earned(example: Example, transcript: Transcript) -> float:
    """All that was paid up to now."""
    return sum(turn.reward for _, turn in transcript)


@dataclass(frozen=True)
class Game:
    """An episode that can be begun again."""

    environment: Environment
    given: Example
    generators: Callable[[], tuple[Generator, Generator]]
    first: Turn

    @cached_property
    def example(self) -> Example:
        """As it begins."""
        return replace(self.given, prompt=self.first.say) if self.first.say else self.given

    def start(self) -> Episode:
        """From the beginning."""
        return self.environment.start(self.given, *self.generators())[0]

    def fork(self, episode: Episode, transcript: Transcript) -> Episode:
        """A copy that goes on alone: by the episode's own `fork`, or told again all that was said."""
        if hasattr(episode, "fork"):
            forked: Episode = episode.fork()
            return forked
        again = self.start()
        for text, _ in transcript:
            again.step(text)
        return again


@dataclass(frozen=True)
class Node:
    """A place in the tree of what may be said."""

    game: Game
    episode: Episode
    transcript: Transcript
    first: str = ""
    """What is said next on the way there."""
    likely: float = 0.0
    """Σ α p of the way there, discounted."""
    value: float = 0.0

    @property
    def turn(self) -> Turn:
        return self.transcript[-1][1] if self.transcript else self.game.first

    @property
    def over(self) -> bool:
        return self.turn.over or len(self.transcript) >= self.game.environment.turns

    @property
    def score(self) -> float:
        return self.likely + self.value

    def close(self) -> None:
        """The episode is not needed any more."""
        getattr(self.episode, "close", lambda: None)()


class Searched(Component):
    """Responses found by searching an environment: the first step of the best path, and then a search anew."""

    paper = "Shenao Zhang et al., How can LLM guide RL? A value-based approach, 2024"

    class Config(Options):
        """Options of `searched`."""

        depth: int = Field(2, gt=0, description="N: turns that a search looks ahead")
        width: int = Field(2, gt=0, description="k: of what may be said at a place, how many are followed")
        alpha: float = Field(
            0.1,
            ge=0,
            description="α: what a choice that is certain adds to a path's worth; 0: the policy has no say",
        )
        discount: float = Field(1.0, gt=0, le=1, description="γ: of what earlier choices added, at each turn")
        value: FunctionPath | None = Field(
            None,
            description="a function of (example, transcript) that says what a place is worth: `my_values.py:value`, or "
            "`package.module:value`; null: what was paid up to there",
        )

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.value])

    config: Config

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        return self.respond(run, examples, None)

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout:
        """An episode for each of `count` samples of each example, all searched side by side."""
        count = count or run.generation.samples
        with ExitStack() as begun:
            nodes = []
            for place, example in enumerate(examples):
                for root in self._begin(run, example, place, count):
                    begun.callback(root.close)
                    nodes.append(root)
            while going := [i for i, node in enumerate(nodes) if not node.over]:
                for i, text in zip(going, self._next(run, [nodes[i] for i in going]), strict=True):
                    nodes[i] = self._stepped(nodes[i], nodes[i].episode, text)
        return _rollout(run.models.policy, nodes, count)

    def _begin(self, run: Run, example: Example, place: int, count: int) -> Iterator[Node]:
        environment = run.task
        if not isinstance(environment, Environment):
            raise ComponentError(
                f"`{self.name}` searches an environment, and the task `{environment.name}` is none"
            )
        for sample in range(count):

            def generators(
                at: int = run.position + place, sample: int = sample
            ) -> tuple[Generator, Generator]:
                key = self.name, run.iteration
                return run.rng(*key, "start", at), run.rng(*key, "noise", at, sample)

            with attributed_to(f"environment `{environment.name}`, starting example `{example.id}`,"):
                episode, first = environment.start(example, *generators())
            yield Node(Game(environment, example, generators, first), episode, ())

    # -- a search -----------------------------------------------------------------------------------------

    def _next(self, run: Run, roots: Sequence[Node]) -> list[str]:
        """What is to be said at each of these."""
        best, edges = list(roots), [[root] for root in roots]
        ended: list[list[Node]] = [[] for _ in roots]
        with ExitStack() as forks:
            for _ in range(self.config.depth):
                likely = iter(self._likely(run, [node for edge in edges for node in edge]))
                for r, edge in enumerate(edges):
                    if not edge:
                        continue
                    found = [child for node in edge for child in self._children(node, next(likely), forks)]
                    ended[r] += [node for node in found if node.over]
                    edges[r] = [node for node in found if not node.over]
                    best[r] = max([*ended[r], *edges[r]], key=lambda node: node.score)
                    if best[r].over:  # there is nothing to find behind it
                        edges[r] = []
        return [node.first for node in best]

    def _children(self, node: Node, likely: Sequence[float], forks: ExitStack) -> list[Node]:
        """The best few places that follow, by what is likely on the way there and what they are worth."""
        c, found = self.config, []
        for text, p in zip(self._choices(node), likely, strict=True):
            child = self._stepped(node, node.game.fork(node.episode, node.transcript), text)
            forks.callback(child.close)
            child = replace(child, first=node.first or text, likely=c.discount * node.likely + c.alpha * p)
            found.append(replace(child, value=self._value(child)))
        return sorted(found, key=lambda child: -child.score)[: c.width]

    def _value(self, node: Node) -> float:
        with attributed_to(f"`{self.name}`: its value of example `{node.game.example.id}`"):
            return float(self._worth(node.game.example, node.transcript))

    @cached_property
    def _worth(self) -> Value:
        if self.config.value is None:
            return earned
        found: Value = named(self.config.value)
        return found

    def _choices(self, node: Node) -> tuple[str, ...]:
        if node.turn.choices is None:
            raise ComponentError(
                f"`{self.name}` tries what may be said, and the environment `{node.game.environment.name}` does not "
                "say what that is: its turns need `choices`"
            )
        return node.turn.choices

    def _stepped(self, node: Node, episode: Episode, text: str) -> Node:
        with attributed_to(f"environment `{node.game.environment.name}`, told {text!r},"):
            turn = episode.step(text)
        return replace(node, episode=episode, transcript=(*node.transcript, (text, turn)))

    def _likely(self, run: Run, nodes: Sequence[Node]) -> list[list[float]]:
        """By node, p of each choice: a softmax over the log-probs of whole responses that end with it."""
        choices = [self._choices(node) for node in nodes]
        if self.config.alpha == 0 or not nodes:
            return [[0.0] * len(some) for some in choices]
        policy = run.models.policy
        asked = [
            replace(
                node.game.example,
                responses=tuple(_spoken(policy, node.game.first, _said(node, text)) for text in some),
                scores=(),
                finished=(False,) * len(some),
            )
            for node, some in zip(nodes, choices, strict=True)
        ]
        rollout = policy.encode(asked)
        total_N = run.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT.double().sum(1)
        return [part.softmax(0).tolist() for part in total_N.cpu().split([len(some) for some in choices])]


def _said(node: Node, text: str) -> Transcript:
    return (*node.transcript, (text, Turn()))


# -- a rollout of it ----------------------------------------------------------------------------------------


def _rollout(policy: Policy, nodes: Sequence[Node], count: int) -> Rollout:
    """The episodes as responses, `count` to each example, with the columns of those that are sampled."""
    examples = []
    for group in (nodes[i : i + count] for i in range(0, len(nodes), count)):
        spoken = tuple(_spoken(policy, node.game.first, node.transcript) for node in group)
        finished = tuple(not node.turn.cut for node in group)
        examples.append(replace(group[0].game.example, responses=spoken, scores=(), finished=finished))
    rollout = policy.encode(examples)
    played_NT = torch.zeros_like(rollout.logprobs_NT)
    turn_NT = torch.zeros_like(rollout.actions_NT)
    for row, (node, ends) in enumerate(zip(nodes, _ends_of_turns(policy, nodes), strict=True)):
        begins = 0
        for place, (end, (_, turn)) in enumerate(zip(ends, node.transcript, strict=True)):
            turn_NT[row, begins:end] = place
            played_NT[row, end - 1] = turn.reward
            begins = end
    texts = ("\n".join(text for text, _ in node.transcript) for node in nodes)
    own = tuple(node.game.example for node in nodes[::count])
    return replace(rollout, examples=own, texts=tuple(texts)).with_columns(
        **{
            "played": played_NT,
            TURN: turn_NT,
            "turns": torch.tensor([len(node.transcript) for node in nodes], device=rollout.group_N.device),
            TRANSCRIPT: tuple(node.transcript for node in nodes),
        }
    )


def _ends_of_turns(policy: Policy, nodes: Sequence[Node]) -> list[list[int]]:
    """By episode, how many steps there are up to the end of each turn."""
    asked = []
    for node in nodes:
        parts = [node.transcript[: i + 1] for i in range(len(node.transcript))]
        spoken = tuple(_spoken(policy, node.game.first, part) for part in parts)
        asked.append(replace(node.game.example, responses=spoken, scores=(), finished=(False,) * len(parts)))
    length_N: Tensor = policy.encode(asked).length_N
    return [part.tolist() for part in length_N.split([len(node.transcript) for node in nodes])]


def _spoken(policy: Policy, first: Turn, transcript: Transcript) -> Spoken:
    """As the policy reads an episode. A choice has an end token behind it only where another goes on from it."""
    offered = [first, *(turn for _, turn in transcript)]
    ended = [_goes_on(policy, text, turn) for (text, _), turn in zip(transcript, offered, strict=False)]
    return Spoken(messages_of(transcript, ended))


def _goes_on(policy: Policy, text: str, turn: Turn) -> bool:
    """Whether another of a turn's choices begins with this one."""
    words = [tuple(word) for word in policy.words(turn.choices or ())]
    mine = words[(turn.choices or ()).index(text)]
    return any(word != mine and word[: len(mine)] == mine for word in words)
