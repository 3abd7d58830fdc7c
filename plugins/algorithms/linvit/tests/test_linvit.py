"""LINVIT on a small corridor: what it counts, what it tries, what it refuses, and that it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError, Environment, Episode, Example, Rollout, Turn
from rlalign.records import logs
from rlalign.records.result import Result
from rlalign.running import loop
from rlalign.testing import Bench, ComponentTests, registry, run
from rlalign.testing.bench import Silence, logged, run_until, session
from rlalign_plugin_linvit import LINVIT, exact

CELLS, TURNS = 3, 6
STATES = [f"{cell}{key}" for key in ("", " key") for cell in range(CELLS)]
ACTIONS = ["left", "right"]


def pipeline(
    options: Mapping[str, Any] = {}, table: Mapping[str, Any] = {}, **changes: Any
) -> dict[str, Any]:
    return {
        "task": {"toy-corridor": {"cells": CELLS, "steps": TURNS, "slip": 0.0}},
        "policy": {
            "table": {
                "actions": ACTIONS,
                "state": ["observation", "turn"],
                "turns": TURNS,
                "prompts": STATES,
                **table,
            }
        },
        "algorithm": {"linvit": {"c": 0.02, "lam": 0.01, "reward": [-0.02, 1.0], **options}},
        "train": {"iterations": 25},
        "evaluate": {"examples": 32, "generation": {"samples": 4}},
        **changes,
    }


class TestLINVIT(ComponentTests):
    component = "linvit"
    options = {"reward": [-0.02, 1.0]}
    pipeline = {**pipeline(), "rewards": ["played"], "train": {"iterations": 3}}


def component(bench: Bench) -> LINVIT:
    return next(c for c in bench.phase.plan.components if isinstance(c, LINVIT))


def corridor() -> tuple[torch.Tensor, torch.Tensor]:
    """(P [H,S,A,Z], r [H,S,A]) of the corridor, written out."""
    p_SAZ = torch.zeros(len(STATES), 2, len(STATES) + 1, dtype=torch.float64)
    r_SA = torch.full((len(STATES), 2), -0.02, dtype=torch.float64)
    for s in range(len(STATES)):
        cell, key = s % CELLS, s >= CELLS
        for a, way in enumerate((-1, 1)):
            to = max(0, min(CELLS - 1, cell + way))
            if to == 0 and not key:
                r_SA[s, a], p_SAZ[s, a, CELLS] = 0.5, 1
            elif key and to == CELLS - 1:
                r_SA[s, a], p_SAZ[s, a, -1] = 1.0, 1
            else:
                p_SAZ[s, a, to + CELLS * key] = 1
    return p_SAZ.expand(TURNS, -1, -1, -1), r_SA.expand(TURNS, -1, -1)


# -- learning ---------------------------------------------------------------------------------------------


def test_it_learns_the_corridor(tmp_path: Path) -> None:
    """From the uniform policy to within .1 of what is best, in 25 episodes; each start counts the same."""
    _, ended = run(tmp_path, pipeline())
    rows = [row["eval/played"] for row in Result(ended.dir.path).evaluations if "eval/played" in row]
    p, r = corridor()
    uniform = torch.full((TURNS, len(STATES), 2), 0.5, dtype=torch.float64)
    best = float(exact(p, r, uniform, 0.0)[1][0, :CELLS].mean())
    assert rows[0] < 0.8 and rows[-1] > best - 0.1
    widths = [
        row["linvit/width"] for row in logs.read(ended.dir.path / "metrics.jsonl") if "linvit/width" in row
    ]
    assert widths[0] > 5 and widths[-1] < 1


def test_it_ends_when_it_knows_enough(tmp_path: Path) -> None:
    _, ended = run(tmp_path, pipeline({"epsilon": 1.0}, evaluate=None))
    rows = [row for row in logs.read(ended.dir.path / "metrics.jsonl") if "linvit/width" in row]
    assert len(rows) < 25 and rows[-1]["linvit/width"] <= 1.0 < rows[-2]["linvit/width"]


def test_a_phase_knows_nothing_of_the_world_of_another(tmp_path: Path) -> None:
    other = {"name": "two", "task": {"toy-corridor": {"cells": CELLS, "steps": TURNS, "slip": 0.3}}}
    _, ended = run(
        tmp_path, pipeline(train={"iterations": 2}, evaluate=None, phases=[{"name": "one"}, other])
    )
    tried = [row["linvit/tried"] for row in logged(ended.dir.path)["metrics.jsonl"] if "linvit/tried" in row]
    assert tried[0] < tried[1] and tried[2] <= TURNS / (TURNS * len(STATES) * len(ACTIONS))


def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    short = pipeline(train={"iterations": 6}, evaluate={"every": 2, "examples": 4})
    whole, other = session(tmp_path / "a", short, {}), session(tmp_path / "b", short, {}, name="broken")
    whole.run()
    run_until(other, 3)
    again = loop.resume(tmp_path / "b/runs/broken", registry(), display=Silence())
    again.run()
    assert logged(whole.dir.path) == logged(again.dir.path)
    ours, theirs = whole.models.policy.state_dict(), again.models.policy.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- counting ---------------------------------------------------------------------------------------------


def seen(rollout: Rollout, row: int) -> list[tuple[int, int, int, float, int]]:
    """(turn, state, action, reward, next state) of an episode, read from its transcript."""
    found, at = [], STATES.index(str(rollout.answered[row].prompt))
    for h, (text, turn) in enumerate(rollout.columns["transcript"][row]):
        over = turn.done or h + 1 == TURNS
        to = len(STATES) if over else STATES.index(turn.say)
        found.append((h, at, ACTIONS.index(text), turn.reward, to))
        at = to
    return found


@pytest.mark.parametrize("samples", (1, 3))
def test_counts_are_the_transitions_that_were_seen(tmp_path: Path, samples: int) -> None:
    bench = Bench(tmp_path, pipeline(generation={"samples": samples}))
    steps: list[tuple[int, int, int, float, int]] = []
    kept: list[Rollout] = []
    own = bench.stages.iteration_done
    bench.stages.iteration_done = lambda run, rollout, *rest: (kept.append(rollout), own(run, rollout, *rest))  # type: ignore[assignment,method-assign,func-returns-value]
    for _ in range(8):
        bench.iterate()
    for rollout in kept:
        for row in range(len(rollout)):
            steps += seen(rollout, row)
    state = component(bench).state_dict()
    expected = Counter((h, s, a, z) for h, s, a, _, z in steps)
    assert int(state["transitions"].sum()) == len(steps)
    for place, count in expected.items():
        assert int(state["transitions"][place]) == count
    for h, s, a, _, _ in steps:
        paid = sum(r for hh, ss, aa, r, _ in steps if (hh, ss, aa) == (h, s, a))
        assert float(state["rewards"][h, s, a]) == pytest.approx(paid, abs=1e-6)
    assert int(state["starts"].sum()) == 8 * samples


def test_the_last_step_of_an_episode_that_was_cut_is_not_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(), {})
    bench.phase.plan.task.tokens = 4  # type: ignore[attr-defined]  # two turns, and what is told in between
    bench.iterate()
    state = component(bench).state_dict()
    assert int(state["transitions"].sum()) == 1 and int(state["starts"].sum()) == 1


# -- trying -----------------------------------------------------------------------------------------------


def test_one_action_is_tried_where_least_is_known(tmp_path: Path) -> None:
    """At the iteration's turn the widest, whatever the policy; elsewhere nothing is taken away; never in evaluation."""
    bench = Bench(tmp_path, pipeline())
    turns = set()
    for _ in range(15):
        linvit = component(bench)
        turn, width_XA = linvit.turn_tried(), linvit.width()
        rollout, _ = bench.rollout(1)
        turns.add(turn)
        policy = bench.run.models.policy
        states_M = policy.states_of(rollout)  # type: ignore[attr-defined]
        for state, step in zip(states_M.tolist(), rollout.chosen[1].tolist(), strict=True):
            one = torch.tensor([0])
            may = [True, True]
            if rollout.allowed is not None:
                may = rollout.allowed.mask(one, torch.tensor([step]))[0].tolist()
            if state % TURNS == turn:
                assert may.count(True) == 1 and may.index(True) == int(width_XA[state].argmax())
            else:
                assert may == [True, True]
        bench.iterate()
    assert len(turns) > 3


class Doors(Environment):
    """Two doors in the first room, of which one is locked; one in the second."""

    turns, tokens = 2, 8

    def examples(self, split: str) -> list[Example]:
        return [Example("0", "")]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return _Doors(), Turn("hall", choices=("red", "blue"))


class _Doors:
    def step(self, text: str) -> Turn:
        return Turn("attic", 0.5 if text == "red" else 0.0, choices=("green",))


def doors(options: Mapping[str, Any] = {}, **table: Any) -> dict[str, Any]:
    known = {"actions": ["red", "blue", "green"], "prompts": ["hall", "attic"], "turns": 2, **table}
    return pipeline(
        {"reward": [0.0, 1.0], **options}, known, task="doors", train={"iterations": 12}, evaluate=None
    )


def test_what_may_not_be_said_is_not_planned_for(tmp_path: Path) -> None:
    """The widest action may be a locked door: another one is tried, and once that is known it is out of the plan."""
    _, ended = run(tmp_path, doors(), {"doors": Doors})
    policy = ended.models.policy.table.detach().softmax(1).view(2, 2, 3)  # type: ignore[operator,union-attr]
    assert float(policy[0, 0, 2]) == 0 and float(policy[1, 1, 2]) == 1
    assert float(policy[0, 0, 0]) > 0.9


# -- the prior --------------------------------------------------------------------------------------------


def test_before_anything_is_known_the_policy_is_the_prior(tmp_path: Path) -> None:
    scores = {"0": {"right": 1.5}, "1 key": {"left": -0.5}}
    bench = Bench(tmp_path, pipeline(table={"scores": scores}))
    plan = component(bench).plan()
    policy = bench.run.models.policy.table.double()  # type: ignore[operator,union-attr]
    expected = policy.softmax(1).view(len(STATES), TURNS, 2).transpose(0, 1)
    torch.testing.assert_close(plan.log_pi_HSA.exp(), expected)


def test_a_prior_that_rules_out_what_is_possible_is_refused(tmp_path: Path) -> None:
    never = {state: {"left": -1000.0} for state in STATES}
    with pytest.raises(ComponentError, match=r"the prior of `left` at '.*' is 0.*say `floor: 0.01`"):
        run(tmp_path / "a", pipeline(table={"scores": never}))
    run(tmp_path / "b", pipeline({"floor": 0.01}, {"scores": never}, train={"iterations": 2}))


def test_a_prior_may_rule_out_what_cannot_be_said(tmp_path: Path) -> None:
    scores = {"hall": {"green": -1000.0}, "attic": {"red": -1000.0, "blue": -1000.0}}
    run(tmp_path, doors(scores=scores), {"doors": Doors})


def test_lam_by_the_rule(tmp_path: Path) -> None:
    options = {"lam": None, "epsilon": 0.2}
    assert component(Bench(tmp_path / "a", pipeline({**options, "kl": 2.0}))).lam == pytest.approx(0.05)
    known = component(Bench(tmp_path / "b", pipeline(options))).lam
    assert known == pytest.approx(0.2 / (2 * TURNS * 0.6931471805599453))


def test_a_bonus_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def none(visits, c):\n    return 0.0 * visits\n")
    bench = Bench(tmp_path, pipeline({"bonus": "mine.py:none"}))
    bench.iterate()
    found = component(bench).plan()
    (h, s, a), *_ = component(bench).state_dict()["transitions"].sum(3).nonzero().tolist()
    assert float(found.q_upper_HSA[h, s, a]) < float(found.q_upper_HSA[h, s].max()) or TURNS - h == 1


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    (
        ({"table": {"state": "observation"}}, "it needs `policy: .*state: \\[observation, turn\\]"),
        ({"table": {"steps": 2}}, "`steps` must be 1"),
        ({"generation": {"top_k": 1}}, "leave out `generation.temperature`"),
        ({"options": {"reward": [0.0, 1.0]}}, "a turn earned -0.02, and `reward` says"),
        ({"table": {"turns": 4}}, "more than 4 turns; raise the table's `turns`"),
        (
            {"models": {"prior": {"table": {"actions": ACTIONS, "state": "observation", "prompts": STATES}}}},
            "the model `prior` must be a table of the policy's",
        ),
    ),
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        run(tmp_path, pipeline(**changes, train={"iterations": 8}))
