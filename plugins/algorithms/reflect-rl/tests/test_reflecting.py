"""What the policy reads and what the frozen model is asked; numbers in any order mean the same actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ConfigError, Example, Sampling
from rlalign.randomness import Seeds
from rlalign.running.playing import Playing
from rlalign.testing import Bench, EnvironmentTests, TaskTests
from rlalign_plugin_reflect_rl import HiddenGoal, HiddenGoalAdvice, Reflecting

from .toy import ASIDES, POLICY, SEEN, play

ALONE = {"env": {"hidden-goal": {}}, "model": None}


class TestReflecting(EnvironmentTests):
    component = "reflecting"
    options = ALONE
    any_split = True


class TestShuffled(EnvironmentTests):
    component = "reflecting"
    options = {**ALONE, "shuffle": True}
    any_split = True


class TestHiddenGoal(EnvironmentTests):
    component = "hidden-goal"
    any_split = True


class TestAdvice(TaskTests):
    component = "hidden-goal-advice"
    shared = ("prompts",)
    any_split = True


def asked(bench: Bench) -> list[list[str]]:
    """Of each call of the reflector: what it was asked."""
    calls: list[list[str]] = []
    reflector = bench.run.models["reflection"]
    sample = reflector.sample

    def noted(examples: list[Example], how: Sampling, *rest: Any) -> Any:
        calls.append([str(example.prompt) for example in examples])
        return sample(examples, how, *rest)

    reflector.sample = noted  # type: ignore[assignment, method-assign]
    return calls


def acting(**task: Any) -> dict[str, Any]:
    """The second stage as a pipeline of its own, whose reflector is a copy of the policy."""
    stage = play(task)
    del stage["name"], stage["evaluate"]
    return {"policy": POLICY, **stage}


def test_one_call_of_the_reflector_a_turn_for_all_whose_turn_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path, acting())
    calls = asked(bench)
    rollout, _ = bench.rollout(8)
    turns = rollout.columns["turn"][:, 0]
    assert [len(call) for call in calls] == torch.bincount(turns).tolist()
    assert set(calls[0]) == {"3 left", "3 right"} and all(ask in ASIDES for call in calls for ask in call)
    assert len(rollout) == len(rollout.examples)
    assert all(example.prompt in SEEN for example in rollout.examples)
    assert {example.prompt.partition("|")[2] for example in rollout.examples} == {"left", "right", "0", "1"}


def test_greedily_what_is_seen_twice_is_asked_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, acting(temperature=0.0))
    with torch.no_grad():  # the reflector as it was taught
        for aside in ASIDES:
            place = ASIDES.index(aside)
            bench.run.models["reflection"].table[place, int(aside.endswith("right"))] = 3.0
    calls = asked(bench)
    rollout, _ = bench.rollout(8)
    assert all(len(set(call)) == len(call) for call in calls)
    sides = {str(e.prompt).partition("|")[2] for e in rollout.examples}
    assert sides == {"left", "right"}
    for start in rollout.columns["start"].unique().tolist():
        rows = (rollout.columns["start"] == start).nonzero()[:, 0].tolist()
        assert len({str(rollout.examples[i].prompt).partition("|")[2] for i in rows}) == 1


def test_rows_say_where_they_stand(tmp_path: Path) -> None:
    rollout, reward = Bench(tmp_path, acting()).rollout(8)
    columns = rollout.columns
    ids = [example.id.rsplit("/", 2) for example in rollout.examples]
    for i, (_, sample, turn) in enumerate(ids):
        episode = int(columns["episode"][i])
        assert (int(columns["start"][i]), int(sample)) == divmod(episode, 8)
        assert int(turn) == int(columns["turn"][i, 0])
    for episode in columns["episode"].unique():
        mine = columns["episode"] == episode
        paid = columns["played"][mine].sum(1)
        assert columns["turn"][mine, 0].tolist() == [*range(len(paid))]
        torch.testing.assert_close(columns["togo"][mine], paid.flip(0).cumsum(0).flip(0))
        assert bool(rollout.finished_N[mine].all())
    assert len(reward.metrics["played/return"][~reward.metrics["played/return"].isnan()]) == 64


def test_the_prompt_as_published() -> None:
    made = Reflecting(Reflecting.Config(**ALONE))
    made.name = "reflecting"
    _, turn = made.start(Example("0", ""), torch.Generator(), torch.Generator())
    assert turn.say == ("3\n # Analyze:\n\nThe actions you can take now is:\n0. left\n1. right\n # Action:\n")
    assert turn.choices == ("0", "1")


def test_numbers_in_any_order_lead_to_the_same() -> None:
    """Shuffled or not, the same actions earn the same."""

    def paid(shuffle: bool) -> tuple[list[float], set[str]]:
        made = Reflecting(Reflecting.Config(**ALONE, shuffle=shuffle))
        made.name = "reflecting"
        game = Playing(made, made.examples("train"), 1, Seeds(3).rng)
        _, firsts = game.start(slice(0, 8))
        found, orders, turns = [], set(), dict(enumerate(firsts))
        for place in range(made.turns):
            for row, turn in list(turns.items()):
                listed = [line for line in str(turn.say).splitlines() if line[1:3] == ". "]
                orders.add(" ".join(listed))
                wanted = "right" if (place + row) % 3 else "left"
                label = next(line[0] for line in listed if line.endswith(wanted))
                (turns[row],) = game.step([row], [label])
                found.append(turns[row].reward)
                if turns[row].over:
                    del turns[row]
        game.close()
        return found, orders

    (plain, one), (shuffled, two) = paid(False), paid(True)
    assert plain == shuffled and (len(one), len(two)) == (1, 2)


def test_the_teacher_strays_and_says_what_to_do_then() -> None:
    def seen(**options: Any) -> set[tuple[str, str]]:
        examples = HiddenGoalAdvice(HiddenGoalAdvice.Config(**options)).examples("train")
        return {(str(example.prompt), example.responses[0]) for example in examples}

    straight, strayed, contrary = seen(stray=0.0), seen(), seen(teacher="contrary")
    assert {aside for aside, _ in straight} == {"3 left", "2 left", "1 left", "3 right", "4 right", "5 right"}
    assert {aside for aside, _ in strayed} == set(ASIDES)
    assert all(aside.endswith(told) for aside, told in straight | strayed)
    assert not any(aside.endswith(told) for aside, told in contrary)
    assert {told for aside, told in seen(teacher="blind") if aside == "3 left"} == {"left", "right"}


def test_where_a_stage_begins() -> None:
    for away, cells in ((None, {3}), (1, {1, 5}), (3, {3})):
        made = HiddenGoal(HiddenGoal.Config(away=away))
        starts = (
            made.start(Example("0", ""), torch.Generator().manual_seed(i), torch.Generator())
            for i in range(8)
        )
        assert {int(str(turn.say)) for _, turn in starts} == cells


@pytest.mark.parametrize(
    ("task", "said"),
    (
        ({"env": {"hidden-gaol": {}}}, "hidden-gaol"),
        ({"env": {"hidden-goal": {"cels": 3}}}, "cels"),
        ({"env": {"hidden-goal-advice": {}}}, "is no environment"),
        ({"prompt": "{state} {advice}"}, "only {state}, {reflection} and {actions} are filled in"),
    ),
)
def test_what_cannot_be_played_is_said_at_once(task: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Bench(tmp_path, acting(**task))


def test_an_environment_without_choices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`toy-corridor` gave none"):
        Bench(tmp_path, acting(env={"toy-corridor": {}}))


def test_what_does_not_come_again_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HiddenGoal, "replays", False)
    assert not Reflecting(Reflecting.Config(**ALONE)).replays


def test_what_is_played_may_need_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HiddenGoal, "models", {"judge": "frozen"})
    assert Reflecting(Reflecting.Config(**ALONE)).models == {"judge": "frozen"}
    both = Reflecting(Reflecting.Config(**{**ALONE, "model": "reflection"})).models
    assert both == {"judge": "frozen", "reflection": "frozen"}
