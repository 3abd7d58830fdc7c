"""Any of four processes is killed at any instant: all end, the lost one is named, and the run goes on to the bit."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "world"))
from commands import Command, bits, is_gone, wait_for
from comparing import EXAMPLES, metrics

COUNT = 4
ENDS = 60
"""Seconds after which nothing is left of a run that has lost a process."""
KILLS = {"whole": 8, "cut": 4}
WAYS = {
    "whole": (
        str(Path(__file__).parent / "world/bandit.yaml"),
        *("train.iterations=400", "evaluate.every=100"),
    ),
    "cut": (
        str(EXAMPLES / "algorithms/rloo.yaml"),
        *("distributed.shard=true", "train.iterations=30", "train.prompts=6", "train.dtype=float64"),
        *("evaluate=null", "checkpoints.every=1", "checkpoints.last=3"),
    ),
}


def wait_to_begin(run: Path, chance: random.Random) -> None:
    """Some instant of importing, meeting the others, opening the run, or of what follows."""
    time.sleep(chance.uniform(0, 12))


def wait_to_learn(run: Path, chance: random.Random) -> None:
    wait_for(run / f"checkpoints/{last(run) + chance.randint(1, 3):08}")
    time.sleep(chance.uniform(0, 0.5))


def wait_to_write(run: Path, chance: random.Random) -> None:
    """Until a checkpoint is being written."""
    wait_for(run / f"checkpoints/{last(run) + 1:08}")
    end = time.monotonic() + 120
    while not [*(run / "checkpoints").glob(".tmp-*")]:
        assert time.monotonic() < end
        time.sleep(0.002)


def last(run: Path) -> int:
    return max((int(path.name) for path in (run / "checkpoints").glob("[0-9]*")), default=0)


INSTANTS: tuple[Callable[[Path, random.Random], None], ...] = (wait_to_begin, wait_to_learn, wait_to_write)


def plan(kills: int, chance: random.Random) -> Iterator[tuple[int, Callable[[Path, random.Random], None]]]:
    """Whom to kill, and when: every rank as often as any other, at instants of every kind."""
    victims = [*range(COUNT)] * (kills // COUNT)
    chance.shuffle(victims)
    for turn, victim in enumerate(victims):
        yield victim, INSTANTS[turn % len(INSTANTS)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_instant_all_end_and_the_run_goes_on_to_the_bit(way: str, tmp_path: Path) -> None:
    begin = (*WAYS[way], "--processes", str(COUNT), "--name")
    code, said = Command(*begin, "undisturbed", runs=tmp_path).end()
    assert code == 0, said
    chance, run, took = random.Random(0), tmp_path / "killed", []
    for victim, wait in plan(KILLS[way], chance):
        command = Command(*begin, "killed", "--or-resume", runs=tmp_path)
        ranks = command.ranks(COUNT)
        wait(run, chance)
        began = time.monotonic()
        os.kill(ranks[victim], signal.SIGKILL)
        code, said = command.end()
        took.append(time.monotonic() - began)
        assert code == 1, said
        assert took[-1] < ENDS and all(map(is_gone, ranks)), took
        lost = re.findall(r"rank (\d) of 4 (?:on \S+ is gone|was ended by SIGKILL)", said)
        assert lost and {*lost} == {str(victim)}, said
        assert "Traceback" not in said and "advantage" not in said, said  # nobody is blamed
        print(f"rank {victim}, {wait.__name__}, iteration {last(run)}: {took[-1]:.1f} s")
    code, said = Command(*begin, "killed", "--or-resume", runs=tmp_path).end()
    assert code == 0, said
    assert metrics(run) == metrics(tmp_path / "undisturbed")
    assert bits(run) == bits(tmp_path / "undisturbed")
    assert not (run / "inexact.jsonl").exists()
