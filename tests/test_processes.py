"""A pipeline on several processes is the same pipeline: the same tokens, and numbers up to rounding.

`world/together.py` runs many pipelines in one process group; `world/odd.py` holds components that differ from process
to process. All over gloo, on one machine.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "world"))
from commands import BANDIT, BEGUN, Command, bits, is_gone, wait_for
from comparing import (
    EXAMPLES,
    REWARD_MODEL,
    ROOT,
    algorithms,
    apart,
    job,
    learners,
    lines,
    metrics,
    run,
    tiny_encoder,
)

from rlalign.records import logs
from rlalign.running.callbacks import SAME_REQUEST

HERE = Path(__file__).parent / "world"
METRICS, WEIGHTS = 1e-12, 1e-11
COARSE = 1e-5
"""For what does not compute all in float64, or learns from rounding alone."""
ODD = {
    "as it is": {},
    "7 prompts": {"overrides": ["train.prompts=7", "train.minibatches=3", "train.epochs=2"]},
    "1 group": {"overrides": ["train.prompts=1"]},
    "refilled": {"overrides": ["algorithm=[rloo,drop-ties]", "train.refill=2", "generation.samples=2"]},
    "nothing left": {"overrides": ["algorithm=[rloo,'odd:Nothing']"]},
    "one piece": {"overrides": ["algorithm=[rloo,'odd:Whole']"]},
    "asked again": {"overrides": ["algorithm=[rloo,'odd:Again']"]},
    "counted": {"overrides": ["rewards=['odd:Counts']"]},
    "told of few": {"overrides": ["rewards=['odd:Tells']", "train.prompts=40"]},
    "episodes": {"file": str(HERE / "corridor.yaml")},
    "rewritten episodes": {
        "file": str(HERE / "corridor.yaml"),
        "overrides": [
            "task={toy-corridor: {rewrites: true}}",
            "policy.table.state=prompt",
            "algorithm=[{rloo: {credit: turn}}]",
        ],
    },
    "large data": {"overrides": ["task='odd:Known'"], "large": 32},
    "a sampler elsewhere": {"overrides": ["models.sampler='odd:Elsewhere'"]},
    "asked ahead": {"overrides": ["models.sampler={'odd:Elsewhere': {ahead: 1}}"]},
}
DIFFERENT = {
    "process": (["algorithm=[rloo,'odd:Process']"], "after `advantage` of", "`Process`", "`advantage`"),
    "half": (["algorithm=[rloo,'odd:Half']"], "after `advantage` of", "`Half`", "`examples"),
    "state": (["algorithm=[rloo,'odd:Kept']"], "at checkpoint 1", "Kept/process"),
    "weights": (["algorithm=[rloo,'odd:Drifts']"], "at checkpoint 1", "weights/policy/"),
    "reward": (["rewards=['odd:Fussy']"], "`reward` of `Fussy`", "raised ValueError: not these"),
}


def outcome(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-rank{rank}.json").read_text())
    return found


def equal(folder: Path, names: list[str], counts: list[int], exact: bool = True) -> None:
    """All as on one process, and nothing written but by rank 0."""
    for name in names:
        for count in counts:
            assert not (said := outcome(folder / str(count), name, 0)["said"]), f"{name}, {count}: {said}"
            figure, which, number, where = apart(folder / "1" / name, folder / str(count) / name)
            assert figure <= (METRICS if exact else COARSE), f"{name} on {count}: {which} by {figure}"
            assert number <= (WEIGHTS if exact else COARSE), f"{name} on {count}: {where} by {number}"
            for rank in range(1, count):
                assert outcome(folder / str(count), name, rank)["written"] == [], name


def test_two_processes_do_what_one_does_and_refuse_to_differ(tmp_path: Path) -> None:
    """One group for all of it: a start takes longer than the runs."""
    jobs = {name: {"file": BANDIT, "overrides": [], **one} for name, one in ODD.items()}
    jobs["text"] = job("toy-numbers.yaml")
    different = {name: {"file": BANDIT, "overrides": said} for name, (said, *_) in DIFFERENT.items()}
    run(tmp_path / "1", jobs, 1)
    run(tmp_path / "2", {**jobs, **different}, 2)
    equal(tmp_path, list(jobs), [2])
    assert outcome(tmp_path / "2", "text", 0)["written"] != []
    assert [row["tick"] for row in lines(tmp_path / "2/as it is", "tokens.jsonl")] == [1, 2, 3, 4]
    shown = [json.loads(line) for line in (tmp_path / "2/as it is/learned.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in shown] == [2] * 8 + [4] * 8
    alone = [json.loads((tmp_path / count / "alone.json").read_text()) for count in "12"]
    assert alone[0] == alone[1] != {}
    for name, (_, *parts) in DIFFERENT.items():
        for rank in (0, 1):
            said = outcome(tmp_path / "2", name, rank)["said"]
            assert all(part in said for part in parts), said
    lock = json.loads((tmp_path / "2/text/lock.json").read_text())
    assert lock["world"] == {"processes": 2, "backend": "gloo"}
    assert "world" not in json.loads((tmp_path / "1/text/lock.json").read_text())


SERVED = {
    "served": ["rewards=[{bandit-payout: {}, isolate: true}]"],
    "dropped": ["rewards=[bandit-payout,{'odd:Unlucky': {}, isolate: true}]", "train.on_bad_reward=drop"],
    "drops": ["rewards=[bandit-payout,'odd:Unlucky']", "train.on_bad_reward=drop"],
    "copies": ["models.sampler={copies: {devices: [cpu, cpu], threads: 1, ahead: 1}}"],
}


@pytest.mark.slow
def test_served_rewards_and_bad_ones(tmp_path: Path) -> None:
    """What is elsewhere is asked by rank 0 for all; a group that a reward fails at is left out on every process."""
    many = "train.prompts=40"  # of which a reward may fail at two
    present = f"'odd:Present': {{folder: '{tmp_path / 'present'}'}}"
    grows = {"grows": [f"rewards=[{{{present}, isolate: {{workers: {{least: 1, most: 2}}}}}}]"]}
    jobs = {name: {"file": BANDIT, "overrides": [*said, many]} for name, said in {**SERVED, **grows}.items()}
    for count in (1, 3):
        run(tmp_path / str(count), jobs, count)
    equal(tmp_path, list(jobs), [3])
    for count in (1, 3):  # those of the whole run, not of each rank
        assert len([*(tmp_path / "present" / str(count)).iterdir()]) == 2
    for name in ("dropped", "drops"):
        found = [list(logs.read(tmp_path / str(count) / name / "dropped.jsonl")) for count in (1, 3)]
        assert found[0] and [row["examples"] for row in found[0]] == [row["examples"] for row in found[1]]


# The first compute some parts in float32; the last begins with nothing but rounding to learn from.
COARSER = ("seq2seq", "gold", "r-lol", "toy-keywords", "toy-dates")
PARTS = 4


FILES = sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("algorithms/*.yaml"), EXAMPLES / REWARD_MODEL])
JOBS = {
    file.stem: job(str(file.relative_to(EXAMPLES)))
    for file in FILES
    if file.stem != "logged"  # it reads what another run kept
}


def test_every_algorithm_is_in_one_of_these_examples() -> None:
    assert learners() - algorithms(JOBS.values()) == set()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_example_on_two_and_on_four_processes(part: int, tmp_path: Path) -> None:
    jobs = {name: JOBS[name] for name in [*JOBS][part::PARTS]}
    if "reward-model" in jobs:
        jobs["reward-model"] = job(REWARD_MODEL, *tiny_encoder())
    for count in (1, 2, 4):
        run(tmp_path / str(count), jobs, count)
    for name in jobs:
        equal(tmp_path, [name], [2, 4], exact=not any(part in name for part in COARSER))


# -- real commands: killed, stopped, failing, started again -----------------------------------------------------


@pytest.mark.slow
def test_four_processes_do_what_one_does(tmp_path: Path) -> None:
    jobs = {name: {"file": BANDIT, "overrides": [], **one} for name, one in ODD.items()}
    for count in (1, 4):
        run(tmp_path / str(count), jobs, count)
    equal(tmp_path, list(jobs), [4])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on_to_the_bit(
    victim: int, whole: Path, tmp_path: Path
) -> None:
    command = Command(*BEGUN["whole"], "--processes", "2", "--name", "killed", runs=tmp_path)
    wait_for(tmp_path / "killed/checkpoints/00000003")
    os.kill(command.rank(victim), signal.SIGKILL)
    code, said = command.end()
    assert code == 1
    assert f"rank {victim} of 2 was ended by SIGKILL" in said and "--resume" in said
    if victim == 1:
        assert "rank 1 of 2 on" in said and "is gone" in said
    assert "advantage" not in said and "rollout" not in said  # nobody is blamed
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    again = Command("--processes", "2", "--resume", "killed", runs=tmp_path)
    assert again.end()[0] == 0
    assert metrics(tmp_path / "killed") == metrics(whole)
    assert bits(tmp_path / "killed") == bits(whole)
    assert not (tmp_path / "killed/inexact.jsonl").exists()
    if victim == 1:
        code, said = Command("--resume", "alone", runs=tmp_path).end()
        assert code == 0 and "2 processes when the run began, 1 now" in said
        figure, _, number, _ = apart(whole, tmp_path / "alone")
        assert figure <= METRICS and number <= WEIGHTS
        (row,) = logs.read(tmp_path / "alone/inexact.jsonl")
        assert row["changed"] == [] and len(row["said"]) == 1


@pytest.mark.slow
def test_one_of_four_that_is_killed_is_told_of_once(tmp_path: Path) -> None:
    said = (BANDIT, "train.iterations=100000", "evaluate=null", "--processes", "4")
    command = Command(*said, "--name", "four", runs=tmp_path)
    wait_for(tmp_path / "four/checkpoints/00000003")
    os.kill(command.rank(2), signal.SIGKILL)
    code, told = command.end()
    assert code == 1 and told.count("is gone: it was killed, or it crashed") == 1 and "rank 2 of 4 on" in told


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_sigterm_stops_all_after_one_iteration_and_or_resume_goes_on(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole: Path = request.getfixturevalue(which)
    start = (*BEGUN[which], "--processes", "2", "--name", "stopped", "--or-resume")
    command = Command(*start, runs=tmp_path)
    wait_for(tmp_path / "stopped/checkpoints/00000003")
    command.signal(signal.SIGTERM)
    code, said = command.end()
    assert code == 128 + signal.SIGTERM and said.count("stopped after iteration") == 1
    last = max(int(path.name) for path in (tmp_path / "stopped/checkpoints").glob("[0-9]*"))
    assert 3 <= last < metrics(whole)[-1]["iteration"]
    assert metrics(tmp_path / "stopped")[-1]["iteration"] == last
    assert Command(*start, runs=tmp_path).end()[0] == 0
    assert metrics(tmp_path / "stopped") == metrics(whole)
    assert bits(tmp_path / "stopped") == bits(whole)


SLOWLY = (BANDIT, "rewards=['odd:Takes']", "train.iterations=1000", "evaluate=null", "--processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_all_is_one_request(asked: str, tmp_path: Path) -> None:
    number = signal.Signals[asked]
    command = Command(*SLOWLY, "--name", "stopped", runs=tmp_path)
    wait_for(tmp_path / "stopped/checkpoints/00000002")
    command.signal_all(number, 2)
    code, said = command.end()
    assert code == 128 + number and said.count("stopped after iteration 3 of") == 1, said
    assert "at once" not in said.replace("once more to stop at once", "")
    assert (tmp_path / "stopped/checkpoints/00000003").is_dir()


@pytest.mark.slow
def test_a_second_signal_later_ends_all_at_once(tmp_path: Path) -> None:
    command = Command(*SLOWLY, "rewards=[{'odd:Takes': {seconds: 6}}]", "--name", "stopped", runs=tmp_path)
    wait_for(tmp_path / "stopped/checkpoints/00000001")
    command.signal(signal.SIGTERM)
    time.sleep(SAME_REQUEST + 0.5)
    command.signal(signal.SIGTERM)
    code, said = command.end()
    assert code == 128 + signal.SIGTERM and said.count("stopped at once; the last checkpoint stands") == 1
    assert not (tmp_path / "stopped/checkpoints/00000002").exists()


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_finish_the_iteration(tmp_path: Path) -> None:
    command = Command(*SLOWLY, "--name", "left", runs=tmp_path)
    wait_for(tmp_path / "left/checkpoints/00000002")
    ranks = [command.rank(0), command.rank(1)]
    command.signal(signal.SIGKILL)
    code, said = command.end()  # once nobody can print any more
    assert code == -signal.SIGKILL and "stopped after iteration 3 of" in said, said
    end = time.monotonic() + 30
    while not all(is_gone(rank) for rank in ranks):
        assert time.monotonic() < end, ranks
        time.sleep(0.1)
    assert (tmp_path / "left/checkpoints/00000003").is_dir()


@pytest.mark.slow
def test_an_error_on_one_process_is_told_with_its_rank(tmp_path: Path) -> None:
    odd = "algorithm=[rloo,'odd:Fails']"
    code, said = Command(BANDIT, odd, "--processes", "2", "--name", "odd", runs=tmp_path).end()
    assert code == 1
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert told and all("rank 1 of 2 on" in line for line in told), said
    assert "`Fails`" in told[0] and "raised ValueError: only here" in told[0]
    assert (tmp_path / "odd/checkpoints/00000001").is_dir()


@pytest.mark.slow
def test_torchrun_starts_a_run_that_was_killed_again(whole: Path, tmp_path: Path) -> None:
    arguments = [
        "-m",
        "rlalign",
        "run",
        *BEGUN["whole"],
        "--name",
        "again",
        "--runs",
        str(tmp_path),
        "--plain",
    ]
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*begin, "--max-restarts", "1", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    wait_for(tmp_path / "again/checkpoints/00000003")
    held = (tmp_path / "again/.running").read_bytes()
    os.kill(int(held.split()[0]), signal.SIGKILL)  # rank 0, which writes
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()
    assert metrics(tmp_path / "again") == metrics(whole) and bits(tmp_path / "again") == bits(whole)


@pytest.mark.slow
def test_killed_at_any_instant_again_and_again(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    command = Command(*BEGUN["whole"], "--processes", "2", "--name", "killed", runs=tmp_path)
    for _ in range(3):
        last = len(metrics(tmp_path / "killed")) if (tmp_path / "killed/metrics.jsonl").exists() else 0
        wait_for(tmp_path / f"killed/checkpoints/{last + chance.randint(1, 12):08}")
        time.sleep(chance.random() * 0.2)
        os.kill(command.rank(chance.randint(0, 1)), signal.SIGKILL)
        assert command.end()[0] == 1
        command = Command("--processes", "2", "--resume", "killed", runs=tmp_path)
    assert command.end()[0] == 0
    assert metrics(tmp_path / "killed") == metrics(whole) and bits(tmp_path / "killed") == bits(whole)


ENDLESS = (BANDIT, "train.iterations=100000")
WAIT = 10


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_who_stands_still_is_not_waited_for_without_end(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLALIGN_WAIT", str(WAIT))
    endless = (*BEGUN[which], "train.iterations=100000")
    command = Command(*endless, "--processes", "3", "--name", "stalled", runs=tmp_path)
    wait_for(tmp_path / "stalled/checkpoints/00000003")
    os.kill(command.rank(1), signal.SIGSTOP)
    began = time.monotonic()
    code, said = command.end()
    assert code == 1 and time.monotonic() - began < WAIT + 120  # torchrun gives it 30 seconds to end
    assert said.count("rank 1 of 3 on") == 1 and "stands still, or cannot be reached" in said, said


@pytest.mark.slow
def test_who_stands_still_in_a_group_that_somebody_else_began() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    said = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"),
            *(str(ROOT / "tests/world/begun.py"), port),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RLALIGN_WAIT": "4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    for rank in (0, 2):
        assert f"{rank} says: rank 1 of 3 on" in said.stdout, said
    assert said.stdout.count("stands still, or cannot be reached") == 2 and "rank 2 of 3" not in said.stdout


@pytest.mark.slow
@pytest.mark.parametrize("which, rank", [("whole", 0), ("cut", 0), ("cut", 1)])
def test_a_full_disk_stops_all(which: str, rank: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Rank 0 writes what all have, and each process its part of weights that are cut."""
    whole: Path = request.getfixturevalue(which)
    command = Command(*BEGUN[which], "--processes", "2", "--name", "full", runs=tmp_path)
    wait_for(tmp_path / "full/checkpoints/00000003")
    _, most = resource.prlimit(writer := command.rank(rank), resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (1, most))
    code, said = command.end()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and "File too large" in said, said
    assert Command("--processes", "2", "--resume", "full", runs=tmp_path).end()[0] == 0
    assert metrics(tmp_path / "full") == metrics(whole) and bits(tmp_path / "full") == bits(whole)


@pytest.mark.slow
def test_a_run_of_one_process_is_extended_by_two(tmp_path: Path) -> None:
    assert Command(BANDIT, "--name", "longer", runs=tmp_path).end()[0] == 0
    assert Command("--resume", "longer", "--extend", "2", "--processes", "2", runs=tmp_path).end()[0] == 0
    assert metrics(tmp_path / "longer")[-1]["iteration"] == 6


@pytest.mark.slow
def test_the_longest_wait_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLALIGN_WAIT", "soon")
    code, said = Command(BANDIT, "--processes", "2", runs=tmp_path).end()
    assert code == 1 and "RLALIGN_WAIT=soon is no number of seconds" in said


@pytest.mark.slow
def test_two_processes_are_two_where_a_scheduler_says_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, left in {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, left)
    code, said = Command(BANDIT, "--processes", "2", "--name", "two", runs=tmp_path).end()
    assert code == 0 and json.loads((tmp_path / "two/lock.json").read_text())["world"]["processes"] == 2, said


def test_one_of_several_processes_starts_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, said = Command(BANDIT, "--processes", "2", runs=tmp_path).end()
    assert (
        code == 2
        and "WORLD_SIZE=4: this process is one of several already" in said
        and not [*tmp_path.iterdir()]
    )


def test_or_resume_and_processes_are_checked(tmp_path: Path) -> None:
    code, said = Command(BANDIT, "--or-resume", runs=tmp_path).end()
    assert code == 2 and "--or-resume goes with --name" in said
