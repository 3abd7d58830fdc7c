"""Episodes in processes of their own: as in the run's own, and whatever goes wrong there ends no run by itself."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Component, Options, Rollout, Score, hookimpl
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Apart, Item
from rlalign.config.registry import Registry
from rlalign.data.turn import Turn
from rlalign.decoding.play import started
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.environment import Environment
from rlalign.randomness import Seeds
from rlalign.records.answers import Answers
from rlalign.records.result import Result
from rlalign.records.rundir import RunDir
from rlalign.running import loop
from rlalign.running.planning import plan_phases
from rlalign.running.playing import Playing, opening
from rlalign.running.recorded import Recorded
from rlalign.running.report import describe
from rlalign.serving.isolated import Isolated, isolated, unplayable
from rlalign.testing.bench import COMPONENTS, Silence, registry

HERE = Path(__file__).parent


def games() -> Any:
    if "misbehaving_games" not in sys.modules:
        spec = importlib.util.spec_from_file_location("misbehaving_games", HERE / "misbehaving_games.py")
        assert spec is not None and spec.loader is not None
        sys.modules["misbehaving_games"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["misbehaving_games"])
    return sys.modules["misbehaving_games"]


@contextmanager
def apart(
    name: str = "Game", *, at_start: str = "", marks: Path | None = None, **limits: Any
) -> Iterator[Any]:
    """The environment, isolated."""
    cls = getattr(games(), name)
    item = Item(
        name="game",
        component=f"misbehaving_games:{name}",
        options=cls.Config(at_start=at_start, marks=marks),
        cls=cls,
        place="p.yaml:1",
        apart=Apart(**{"seconds": 4.0, **limits}),
    )
    made = isolated(item, HERE, trust=True, seed=0)
    try:
        yield made
    finally:
        made.pool.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def forgiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One process for all that leave it alive."""
    with apart(marks=tmp_path_factory.mktemp("marks"), on_bad_episode="drop") as environment:
        yield environment


def inline(name: str = "Game") -> Environment:
    cls = getattr(games(), name)
    made: Environment = cls(cls.Config())
    made.name = "game"
    return made


def played(environment: Environment, *says: tuple[str, ...]) -> list[list[Turn]]:
    """The turns of two starts, two episodes of each; the first is told `says`, the others what harms nobody."""
    examples = list(environment.examples("train")[:2])
    said = [says or ("a", "bb", "ccc"), ("hello", "to", "you"), ("", "x", "yz"), ("d", "ee", "f")]
    game = Playing(environment, examples, 2, Seeds(0).rng)
    with started(game, slice(0, 2)) as (_, firsts):
        found = [[first] for first in firsts for _ in range(2)]
        for place in range(3):
            rows = [row for row in range(4) if not found[row][-1].over]
            texts = [(says[0] if says and row == 0 else said[row])[place] for row in rows]
            for row, turn in zip(rows, game.step(rows, texts), strict=True):
                found[row].append(turn)
                if turn.over:
                    game.close([row])
    return found


def test_games_that_begin_at_once_begin_elsewhere(tmp_path: Path) -> None:
    right = played(inline())
    with apart("AtOnce", workers=2) as environment:
        assert played(environment) == right
        assert len(environment.pool._slots) == 2
    recorded = Recorded(inline("AtOnce"), Answers(lambda: RunDir(tmp_path)), 0)
    example = recorded._real.examples("train")[0]
    _, first = recorded.start(example, Seeds(0).rng("start", 0), Seeds(0).rng("noise", 0, 0))
    assert first == right[0][0]


def test_the_same_game_as_in_the_run_s_own_process() -> None:
    with apart(workers=2) as environment:
        assert isinstance(environment, games().Game)
        right = played(inline())
        assert played(environment) == right
        pids = {slot.client.end._process.pid for slot in environment.pool._slots.values()}
        assert len(pids) == 2
        assert played(environment) == right  # a second time in the same processes
        assert {slot.client.end._process.pid for slot in environment.pool._slots.values()} == pids
    assert not any(Path(f"/proc/{pid}/task").exists() for pid in pids)


@pytest.mark.parametrize("what", ("dies", pytest.param("hangs", marks=pytest.mark.slow)))
def test_the_same_game_on_a_cluster_where_one_is_lost(nearby: None, tmp_path: Path, what: str) -> None:
    """Its episodes are played again in another process, and nobody notices."""
    expected = played(inline(), ("a", f"nice {what}", "c"))
    with apart(cluster="nearby", workers=2, marks=tmp_path) as environment:
        environment.setup(Silence())
        before = {slot.client.end for slot in environment.pool._slots.values()}
        assert len(before) == 2
        assert played(environment, ("a", f"once {what}", "c")) == expected
        assert (tmp_path / what).exists()
        assert len(before & {slot.client.end for slot in environment.pool._slots.values()}) == 1


def test_a_cluster_is_told_of_and_takes_no_memory_limit(nearby: None, tmp_path: Path) -> None:
    item = {"misbehaving_games:Game": None, "isolate": {"workers": 3, "cluster": {"nearby": {"code": 1}}}}
    loaded = pipeline(tmp_path, item)
    plans, _ = plan_phases(loaded, registry(COMPONENTS))
    assert re.search(
        r"^  episodes +in 3 processes of their own on nearby$", describe(loaded, plans), re.MULTILINE
    )
    with pytest.raises(ConfigError, match=r"`memory` limits a process on this machine; leave it out beside"):
        pipeline(tmp_path, {**item, "isolate": {"cluster": "nearby", "memory": 1}})
    with pytest.raises(ConfigError, match=r"no cluster named `near` is installed; did you mean `nearby`"):
        pipeline(tmp_path, {**item, "isolate": {"cluster": "near"}})


# -- a fault, and the game goes on elsewhere ----------------------------------------------------------------------

SAYS = {
    "raises": "raised LookupError: no such door (misbehaving_games.py:",
    "exits": "raised SystemExit: bye",
    "is not finite": "raised ValueError: `reward` of a Turn is nan",
    "measures infinity": "raised ValueError: `size` of a Turn is inf",
    "says no turn": "raised TypeError: a Turn is wanted, and this is a str",
    "says bytes": "raised TypeError: Object of type bytes is not JSON serializable",
    "hangs": "did not answer within 4 seconds",
    "dies": "was killed by SIGSEGV",
    "leaves": "ended its process with code 3",
    "says 10 MB": "raised ValueError: a Turn of 9.54 MiB, more than the 4 MiB that travel",
}


SLOW = ("leaves",)
"""Two processes, as those that hang or die."""


@pytest.mark.parametrize("what", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in SAYS])
def test_a_bad_episode_ends_alone(forgiving: Any, what: str) -> None:
    """It is begun again and fails again; the others, of the same process, are played as if nothing had happened."""
    found, right = played(forgiving, ("a", f"now {what}", "-")), played(inline())
    assert found[1:] == right[1:]
    assert found[0][:2] == right[0][:2] and len(found[0]) == 3
    bad = found[0][2]
    assert bad.cut and not bad.done and bad.reward == 0
    assert bad.failed.startswith(f"an episode of example `train-0` at turn 2, told 'now {what}': it ")
    assert SAYS[what] in bad.failed and bad.failed.endswith("(as it did before)")


@pytest.mark.parametrize("what", ("raises", "dies"))
def test_what_fails_once_is_played_again_elsewhere(forgiving: Any, what: str) -> None:
    """And nobody notices: the turns are those of a game where nothing went wrong."""
    expected = played(inline(), ("a", f"nice {what}", "c"))
    assert played(forgiving, ("a", f"once {what}", "c")) == expected
    assert (forgiving.config.marks / what).exists()


@pytest.mark.parametrize("what", ("prints", "seeds"))
def test_what_harms_nobody(forgiving: Any, what: str) -> None:
    """What it prints is no answer, and the run's generators are not its own."""
    random.seed(5), torch.manual_seed(5)
    expected = random.random(), float(torch.rand(()))
    random.seed(5), torch.manual_seed(5)
    found = played(forgiving, ("a", f"now {what}", "c"))
    assert found == played(inline(), ("a", f"nice {what[:-1]}", "c"))[:0] or len(found[0]) == 4
    assert found[1:] == played(inline())[1:]
    assert (random.random(), float(torch.rand(()))) == expected


def test_what_fails_twice_stops_the_run() -> None:
    with apart() as environment, pytest.raises(ComponentError) as failed:
        played(environment, ("to you", "now raises", "-"))
    said = str(failed.value)
    assert said.startswith(
        "environment `game` (isolated), p.yaml:1: an episode of example `train-0` at turn 2, told"
    )
    assert SAYS["raises"] in said and "(as it did before)\nSaid in it before:\n    1. 'to you'" in said
    assert not environment.pool._slots


def test_a_start_that_fails_once_is_begun_again_and_one_that_fails_twice_stops_the_run(
    tmp_path: Path,
) -> None:
    with apart(at_start="once dies", marks=tmp_path) as environment:
        assert played(environment) == played(inline())
    with (
        apart(at_start="now raises", on_bad_episode="drop") as environment,
        pytest.raises(
            ComponentError, match=r"example `train-0` at its start: it raised LookupError.*as it did"
        ),
    ):
        played(environment)


@pytest.mark.slow
def test_more_memory_than_it_may_take() -> None:
    with (
        apart(memory=1500 * 2**20, seconds=60.0) as environment,
        pytest.raises(ComponentError, match="of memory, more than"),
    ):
        played(environment, ("a", "now fills", "-"))


def test_what_cannot_be_played_again_is_not() -> None:
    """It is bad at once, and the others of a process that dies go with it."""
    with apart("Restless", on_bad_episode="drop") as environment:
        first, *others = played(environment, ("a", "now dies", "-"))
        assert "was killed by SIGSEGV" in first[-1].failed and "before)" not in first[-1].failed
        assert all(turns[-1].failed.endswith("it cannot be played again") for turns in others)
        first, *others = played(environment, ("a", "now raises", "-"))  # which its process outlives
        assert "no such door" in first[-1].failed and not any(turns[-1].failed for turns in others)


@pytest.mark.slow
def test_who_plays_otherwise_and_does_not_say_so_is_found_out() -> None:
    with (
        apart("Liar") as environment,
        pytest.raises(ComponentError, match="plays otherwise when it is played again"),
    ):
        played(environment, ("a", "now dies", "-"))


# -- whole runs --------------------------------------------------------------------------------------------------


def pipeline(folder: Path, task: Any, known: Registry | None = None, **changes: Any) -> Any:
    whole = {
        "task": task,
        "folder": str(HERE),
        "policy": "bytes",
        "rewards": ["played"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 3},
        "train": {"iterations": 3, "prompts": 32, "lr": 0.01},
        **changes,
    }
    games()
    known = known or registry(COMPONENTS)
    return load_pipeline(folder / "pipeline.yaml", registry=known, text=json.dumps(whole))


def finished(folder: Path, name: str, task: Any, **changes: Any) -> tuple[Result, Silence]:
    display, known = Silence(), registry(COMPONENTS)
    loaded = pipeline(folder, task, **changes)
    ended = loop.start(loaded, known, root=folder, name=name, display=display).run()
    return Result(ended.path), display


def numbers(result: Result) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in result.metrics]


def test_isolation_changes_no_number(tmp_path: Path) -> None:
    plain, _ = finished(tmp_path, "plain", "misbehaving_games:Game")
    item = {"misbehaving_games:Game": None, "isolate": {"workers": 2}}
    other, _ = finished(tmp_path, "isolated", item)
    assert numbers(plain) == numbers(other)


def test_a_check_says_where_episodes_are(tmp_path: Path) -> None:
    loaded = pipeline(tmp_path, {"misbehaving_games:Game": None, "isolate": {"workers": 3}})
    plans, builder = plan_phases(loaded, registry(COMPONENTS))
    assert re.search(r"^  episodes +in 3 processes of their own$", describe(loaded, plans), re.MULTILINE)
    (environment,) = (made for made in builder.built.values() if isinstance(made, Isolated))
    assert str(opening(environment, environment.examples("train")).say).startswith("game 0, ")
    assert not environment.pool._slots  # whoever only looks leaves no process behind


def test_groups_of_bad_episodes_are_left_out(tmp_path: Path) -> None:
    """One of 32 groups is forgiven, one of two is not."""
    item = {"misbehaving_games:Unlucky": None, "isolate": {"on_bad_episode": "drop"}}
    train = {"iterations": 2, "prompts": 32, "lr": 0.01}
    result, display = finished(tmp_path, "drops", item, train=train)
    (dropped,) = (json.loads(line) for line in (tmp_path / "drops/dropped.jsonl").read_text().splitlines())
    assert (dropped["environment"], dropped["examples"]) == ("Unlucky", ["train-5"])
    assert "at turn 2, told" in dropped["why"]["train-5"] and "no such door" in dropped["why"]["train-5"]
    assert {row["iteration"]: row["groups"] for row in result.metrics} == {
        iteration: 31 if iteration == dropped["iteration"] else 32 for iteration in (1, 2)
    }
    assert any("1 of the 32 groups of iteration" in note for note in display.notes)
    few = {"iterations": 32, "prompts": 2, "lr": 0.01}
    with pytest.raises(
        ComponentError, match=r"1 of the 2 groups of iteration \d+ hold a bad episode, more than the 5%"
    ):
        finished(tmp_path, "too-many", item, train=few)


def test_what_cannot_be_isolated_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"isolate: `Numbers` is no environment"):
        finished(tmp_path, "x", {"rlalign.testing.tasks:Numbers": None, "isolate": True})
    with pytest.raises(ConfigError, match=r"isolate.workers: expected more than 0"):
        pipeline(tmp_path, {"misbehaving_games:Game": None, "isolate": {"workers": 0}})
    with pytest.raises(ConfigError, match=r"isolate: only tasks and items of"):
        pipeline(tmp_path, "misbehaving_games:Game", algorithm={"policy-gradient": None, "isolate": True})
    at_once = type("AtOnce", (games().Game,), {"step_all": lambda self, episodes, texts: []})
    assert "step_all" in str(unplayable(at_once(at_once.Config())))


# -- what does not play the same game again -----------------------------------------------------------------------


SEEN: list[Rollout] = []
"""What the reward below was asked."""


class Crash(Component):
    """A reward that ends the run the first time, when all is sampled and nothing is learned."""

    class Config(Options):
        """No options."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        SEEN.append(rollout)
        if len(SEEN) == 1:
            raise RuntimeError("out of order")
        return Score(torch.zeros(len(rollout)))


def test_a_resumed_run_takes_its_turns_from_the_record(tmp_path: Path) -> None:
    """It was stopped after it had sampled, and meets the same turns: the record is the environment."""
    train = {"iterations": 2, "prompts": 4, "lr": 0.01}
    known, rewards = registry({**COMPONENTS, "crash": Crash}), ["played", "crash"]
    loaded = pipeline(tmp_path, "misbehaving_games:Restless", known, train=train, rewards=rewards)
    with pytest.raises(ComponentError, match="out of order"):
        loop.start(loaded, known, root=tmp_path, name="stopped", display=Silence()).run()
    loop.resume(tmp_path / "stopped", known, display=Silence()).run()
    first, second, third = SEEN
    assert first.columns["transcript"] == second.columns["transcript"] != third.columns["transcript"]
    assert torch.equal(first.actions_NT, second.actions_NT)


def test_the_record_ends_where_the_policy_says_something_else(tmp_path: Path) -> None:
    """The real episode is begun there, and told what was said up to there."""
    real, example = inline("Restless"), inline("Restless").examples("train")[0]
    answers = Answers(lambda: RunDir(tmp_path))
    says = (("a", "bb"), ("a", "bb"), ("a", "ccc"))
    found = []
    for texts in says:
        once_more = Recorded(real, answers, 0)
        episode, first = once_more.start(example, Seeds(0).rng("start"), Seeds(0).rng("noise"))
        found.append([first, *(once_more.step_all([episode], [text])[0] for text in texts)])
    assert found[0] == found[1] and found[2][:2] == found[0][:2]
    assert found[2][2].reward == 3 and str(found[2][2].say).startswith(" 2, ")
