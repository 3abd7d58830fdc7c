"""The search: which paths it follows, that its episodes are like any others, and what the policy's say is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError, Environment, Episode, Example, Turn
from rlalign.data.spoken import Spoken
from rlalign.records.result import Result
from rlalign.testing import Bench, ComponentTests, run
from rlalign_plugin_linvit.searched import Game, Node, _rollout
from rlalign_plugin_toy_tasks.blocks import Position, distances, pairs_of

GOAL = ("dcba",)
POSITIONS = distances(Position(GOAL))
MOVES = sorted({move for at in POSITIONS for move in at.moves()})
VALUE = "rlalign_plugin_toy_tasks.blocks:goal_pairs"


def scores(temperature: float = 1.0, sign: int = 1) -> dict[str, dict[str, float]]:
    """A policy that likes moves to positions of a higher value, or of a lower."""
    return {
        str(at): {move: sign * pairs_of(to, GOAL) / temperature for move, to in at.moves().items()}
        for at in POSITIONS
    }


def blocks(options: Mapping[str, Any] = {}, table: Mapping[str, Any] = {}, **changes: Any) -> dict[str, Any]:
    return {
        "task": {"toy-blocks": {"distance": 6, "steps": 6}},
        "policy": {
            "table": {"actions": MOVES, "state": "observation", "prompts": list(map(str, POSITIONS)), **table}
        },
        "responses": {"searched": {"value": VALUE, **options}},
        "algorithm": "collect",
        "train": {"iterations": 1, "prompts": 7},
        **changes,
    }


def solved(folder: Path, *args: Any, **changes: Any) -> int:
    """Of the seven starts that are six moves from the goal, those from where it is reached in six."""
    _, reward = Bench(folder, blocks(*args, **changes)).rollout(7)
    return int(reward.total_N.sum())


class TestSearched(ComponentTests):
    component = "searched"
    pipeline = {
        "task": {"toy-corridor": {"cells": 3, "steps": 4, "choices": True}},
        "policy": {
            "table": {
                "actions": ["left", "right"],
                "state": "observation",
                "prompts": [f"{cell}{key}" for key in ("", " key") for cell in range(3)],
            }
        },
        "rewards": ["played"],
        "algorithm": "collect",
    }


# -- blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", (0.0, 0.1, 1.0))
def test_a_search_solves_blocks(tmp_path: Path, alpha: float) -> None:
    """Whatever say the policy has, here one that knows nothing; who only follows it finds next to none."""
    assert solved(tmp_path / "a", {"alpha": alpha, "depth": 5, "width": 3}) == 7
    assert solved(tmp_path / "b", responses="sampled") < 2


def test_a_path_that_is_not_followed_is_not_found(tmp_path: Path) -> None:
    """As released: two places a node. From one start the way leads through one that looks worse than two others."""
    assert solved(tmp_path, {"alpha": 0.0, "depth": 5, "width": 2}) == 6


def test_without_alpha_the_policy_has_no_say(tmp_path: Path) -> None:
    """The same episodes with a policy that says the opposite; with α it matters."""

    def transcripts(name: str, alpha: float, sign: int) -> Any:
        made = blocks({"alpha": alpha, "depth": 1}, {"scores": scores(0.5, sign)})
        return Bench(tmp_path / name, made).rollout(7)[0].texts

    assert transcripts("a", 0.0, 1) == transcripts("b", 0.0, -1)
    assert transcripts("c", 10.0, 1) != transcripts("d", 10.0, -1)


def test_a_wrong_policy_misleads_a_search_that_listens(tmp_path: Path) -> None:
    wrong = {"scores": scores(0.2, -1)}
    assert solved(tmp_path / "a", {"alpha": 0.0, "depth": 5, "width": 3}, wrong) == 7
    assert solved(tmp_path / "b", {"alpha": 100.0, "depth": 5, "width": 3}, wrong) == 0


# -- which path is taken ----------------------------------------------------------------------------------


class Tree(Environment):
    """Three choices a turn; what is paid for a path stands in a table."""

    turns, tokens = 3, 64
    forks = False

    def examples(self, split: str) -> list[Example]:
        return [Example(str(i), "") for i in range(2)]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _Tree(()), Turn("go", choices=("a", "b", "c"))


class ForkingTree(Tree):
    """The same, which can be forked."""

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _ForkingTree(()), Turn("go", choices=("a", "b", "c"))


PAID = {
    path: float(torch.rand(1, generator=torch.Generator().manual_seed(7 * i)))
    for i, path in enumerate(path for n in (1, 2, 3) for path in product("abc", repeat=n))
}


class _Tree:
    opened = 0

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        _Tree.opened += 1

    def step(self, text: str) -> Turn:
        self.path += (text,)
        return Turn("go", PAID[self.path], choices=("a", "b", "c"))

    def close(self) -> None:
        _Tree.opened -= 1


class _ForkingTree(_Tree):
    def fork(self) -> _Tree:
        return _ForkingTree(self.path)


def tree(options: Mapping[str, Any], task: str = "tree") -> dict[str, Any]:
    policy = {
        "actions": ["a", "b", "c"],
        "state": "observation",
        "prompts": ["go"],
        "scores": {"go": {"a": 1.0, "c": -1.0}},
    }
    return {
        "task": task,
        "policy": {"table": policy},
        "responses": {"searched": options},
        "algorithm": "collect",
        "train": {"iterations": 1, "prompts": 2},
    }


def by_hand(depth: int, width: int, alpha: float, discount: float) -> tuple[str, ...]:
    """The same search, written out."""
    p = dict(zip("abc", torch.tensor([1.0, 0.0, -1.0]).double().softmax(0).tolist(), strict=True))
    path: tuple[str, ...] = ()
    for turn in range(3):
        edge = [(path, 0.0)]
        for _ in range(min(depth, 3 - turn)):
            found = []
            for at, likely in edge:
                next_ = [((*at, a), discount * likely + alpha * p[a]) for a in "abc"]

                def worth(one: tuple[tuple[str, ...], float]) -> float:
                    return one[1] + sum(PAID[one[0][:n]] for n in range(1, len(one[0]) + 1))

                found += sorted(next_, key=lambda one: -worth(one))[:width]
            edge = found
        best_path = max(edge, key=worth)[0]
        path = (*path, best_path[turn])
    return path


@pytest.mark.parametrize("task", ("tree", "forking"))
@pytest.mark.parametrize(
    "depth, width, alpha, discount",
    ((1, 1, 0.0, 1.0), (2, 2, 0.1, 1.0), (3, 1, 0.5, 0.5), (3, 3, 0.0, 1.0), (2, 3, 2.0, 0.9)),
)
def test_paths_by_hand(
    tmp_path: Path, task: str, depth: int, width: int, alpha: float, discount: float
) -> None:
    options = {"depth": depth, "width": width, "alpha": alpha, "discount": discount}
    bench = Bench(tmp_path, tree(options, task), {"tree": Tree, "forking": ForkingTree})
    before = _Tree.opened
    rollout, reward = bench.rollout(2)
    expected = by_hand(depth, width, alpha, discount)
    assert rollout.texts == ("\n".join(expected),) * 2
    paid = sum(PAID[expected[:n]] for n in (1, 2, 3))
    assert reward.total_N.tolist() == pytest.approx([paid] * 2)
    assert _Tree.opened == before  # all are closed, those that were played again too


# -- what it gives ----------------------------------------------------------------------------------------


def test_its_episodes_are_like_sampled_ones(tmp_path: Path) -> None:
    """Given steps masked, turns and rewards in their places; a later phase learns from them."""
    bench = Bench(tmp_path / "a", blocks({"depth": 5, "width": 3}))
    rollout, reward = bench.rollout(7)
    again, _ = Bench(tmp_path / "b", blocks(responses="sampled")).rollout(7)
    assert set(rollout.columns) >= set(again.columns) - {"sampled"}
    for one in (rollout, again):
        for i, transcript in enumerate(one.columns["transcript"]):
            chose = one.mask_NT[i, : int(one.length_N[i])].tolist()
            assert chose == [j % 2 == 0 for j in range(2 * len(transcript) - 1)]
            turns = one.columns["turn"][i, : len(chose)].tolist()
            assert turns == [(j + 1) // 2 for j in range(len(chose))]
            paid = one.columns["played"][i][one.mask_NT[i]].tolist()
            assert paid == [turn.reward for _, turn in transcript]
    assert reward.total_N.tolist() == [1.0] * 7 and bool(rollout.finished_N.all())
    assert rollout.flaw() is None


def test_what_it_found_is_kept_and_learned_from(tmp_path: Path) -> None:
    first = blocks({"depth": 5, "width": 3})
    both = {
        "task": first["task"],
        "policy": first["policy"],
        "phases": [
            {key: first[key] for key in ("responses", "algorithm", "train")},
            {
                "name": "sft",
                "task": {"from": "collect"},
                "algorithm": "sft",
                "train": {"iterations": 60, "prompts": 7, "lr": 0.3},
            },
            {
                "name": "play",
                "responses": "sampled",
                "algorithm": "collect",
                "train": {"iterations": 1, "prompts": 7},
            },
        ],
    }
    _, ended = run(tmp_path, both)
    (file,) = (ended.dir.path / "rows").glob("collect-*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 7 and all(all(row["meta"]["rlalign"]["same_tokens"]) for row in rows)
    played = [row for row in Result(ended.dir.path).metrics if row["phase"] == "play"]
    assert played[0]["reward/played"] > 0.5


class Words(Environment):
    """Three turns, in which one choice goes on from another."""

    turns, tokens = 3, 30

    def examples(self, split: str) -> list[Example]:
        return [Example(str(i), f"w{i}") for i in range(3)]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _Words(), Turn(str(example.prompt), choices=CHOICES)


CHOICES = ("w1", "w1 w2", "w3 w4")


class _Words:
    def step(self, text: str) -> Turn:
        return Turn(" w5 w6", len(text) / 10, choices=CHOICES)


@pytest.mark.parametrize("kind", ("bytes", "causal-lm", "seq2seq-lm"))
def test_a_policy_of_several_tokens_a_choice(tmp_path: Path, kind: str) -> None:
    """What was sampled, made again from its transcripts, is the same; and p is what the policy says of whole texts."""
    from rlalign_plugin_hf.testing import tiny_model

    policy: Any = "bytes" if kind == "bytes" else {kind: {"path": str(tiny_model(tmp_path / kind, kind))}}  # type: ignore[arg-type]
    made = {
        "task": "words",
        "policy": policy,
        "responses": "sampled",
        "algorithm": "collect",
        "generation": {"samples": 4, "max_new_tokens": 8},
        "train": {"iterations": 1, "prompts": 3},
    }
    bench = Bench(tmp_path / "a", made, {"words": Words})
    sampled, _ = bench.rollout(3)
    environment, first = bench.run.task, Turn("", choices=CHOICES)
    nodes = [
        Node(Game(environment, sampled.answered[i], None, first), None, transcript)  # type: ignore[arg-type]
        for i, transcript in enumerate(sampled.columns["transcript"])
    ]
    again = _rollout(bench.run.models.policy, nodes, 4)
    assert again.texts == sampled.texts and again.examples == sampled.examples
    for name in ("actions_NT", "mask_NT", "finished_N", "group_N"):
        T = int(sampled.length_N.max())
        one, other = getattr(again, name), getattr(sampled, name)
        assert torch.equal(one, other[:, :T] if name.endswith("NT") else other), name
    for name in ("played", "turn"):
        assert torch.equal(again.columns[name], sampled.columns[name][:, : again.steps]), name
    searched = Bench(tmp_path / "b", {**made, "responses": {"searched": {"alpha": 5.0}}}, {"words": Words})
    source = searched.phase.plan.source.component
    example = sampled.examples[1]
    root = Node(Game(environment, example, None, first), None, ())  # type: ignore[arg-type]
    (likely,) = source._likely(searched.run, [root])  # type: ignore[attr-defined]
    alone = [
        replace(example, responses=(Spoken([{"role": "assistant", "content": c, "cut": c != "w1"}]),))
        for c in CHOICES
    ]
    rows = [searched.run.models.policy.encode([replace(one, finished=(False,))]) for one in alone]
    totals = [float(searched.run.score("policy", row, ["logprobs"]).logprobs_NT.sum()) for row in rows]
    assert likely == pytest.approx(torch.tensor(totals).softmax(0).tolist(), rel=1e-5)
    found, _ = searched.rollout(3)
    assert found.flaw() is None and len(found) == 12


# -- what is refused --------------------------------------------------------------------------------------


def test_an_environment_without_choices_is_refused(tmp_path: Path) -> None:
    plain = {**TestSearched.pipeline, "responses": "searched", "train": {"iterations": 1, "prompts": 1}}
    plain["task"] = {"toy-corridor": {"cells": 3}}
    with pytest.raises(ComponentError, match="its turns need `choices`"):
        run(tmp_path, plain)


def test_a_task_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    plain = {
        "task": "numbers",
        "policy": {"table": {"actions": 3}},
        "rewards": ["token-sum"],
        "responses": "searched",
        "algorithm": "collect",
        "train": {"iterations": 1, "prompts": 1},
    }
    with pytest.raises(ComponentError, match="the task `numbers` is none"):
        run(tmp_path, plain)


def test_a_value_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="did you mean `goal_pairs`"):
        run(tmp_path, blocks({"value": "rlalign_plugin_toy_tasks.blocks:goal_pair"}))
