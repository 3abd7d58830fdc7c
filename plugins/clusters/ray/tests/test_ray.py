"""Runs, rewards, episodes and studies on a cluster of Ray that is this machine: the same numbers as without it."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
BANDIT, CORRIDOR = HERE / "bandit.yaml", HERE / "corridor.yaml"
SUITE = HERE.parents[3] / "bench/tests/small.yaml"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'ray[train]'"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One cluster for all: to start it takes longer than most of what is done there."""
    with cluster("4") as (said, _):
        yield said


@contextmanager
def cluster(*cores: str) -> Iterator[tuple[str, IO[str]]]:
    """Its address, and where a line takes its last machine away."""
    begun = subprocess.Popen(
        [sys.executable, str(HERE / "cluster_of_this_machine.py"), *cores],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert begun.stdin is not None and begun.stdout is not None
    said = begun.stdout.readline().strip()
    assert said, "Ray did not begin"
    yield said, begun.stdin
    begun.stdin.close()
    assert begun.wait() == 0


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # of the cluster that these tests begin
}
ENVIRONMENT.pop("RAY_ADDRESS", None)


def rlalign(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "rlalign", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def logged(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in rows]


def same(one: Path, other: Path) -> None:
    """Both runs have logged and learned the same, to the bit."""
    assert logged(one) == logged(other) != []
    files = [file.relative_to(one) for file in one.rglob("*.safetensors")]
    assert len(files) > 2
    for file in files:
        here, there = load_file(one / file), load_file(other / file)
        assert here.keys() == there.keys() and all(here[name].equal(there[name]) for name in here), file


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "dies").touch()
    rlalign(folder, "run", str(BANDIT), "--processes", "2")
    return folder / "runs/bandit"


@needs_ray
@pytest.mark.slow
def test_a_run_is_torchrun_s_to_the_bit(tmp_path: Path, torchrun: Path, address: str) -> None:
    (tmp_path / "dies").touch()
    rlalign(tmp_path, "run", str(BANDIT), "--processes", "2", "--on", f"ray://{address}")
    same(torchrun, tmp_path / "runs/bandit")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dies", "runs"]


@needs_ray
@pytest.mark.slow
def test_a_run_goes_on_where_a_process_was_killed(tmp_path: Path, torchrun: Path, address: str) -> None:
    rlalign(tmp_path, "run", str(BANDIT), "--processes", "2", "--on", f"ray: {{address: '{address}'}}")
    assert (tmp_path / "dies").exists()
    same(torchrun, tmp_path / "runs/bandit")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("alone", "failures"), [(True, 3), (True, 0), (False, 3)])
def test_an_error_of_a_run_s_own_ends_it_at_once(
    tmp_path: Path, address: str, alone: bool, failures: int
) -> None:
    """Also one that a single process has: the others would wait for it for half an hour, and have it again."""
    errs = f"algorithm=[rloo, {{'faults:Errs': {{alone: {alone}}}}}]"
    on = f"ray: {{address: '{address}', failures: {failures}}}"
    (tmp_path / "dies").touch()
    told = rlalign(tmp_path, "run", str(BANDIT), errs, "--processes", "2", "--on", on, code=2)
    assert told.count("error: ") == 1 and "an error of its own" in told
    assert told.count("Started training worker group of size 2") == 1


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_without_a_crash(tmp_path: Path, address: str, asked: signal.Signals) -> None:
    begun = going(tmp_path, address)
    begun.send_signal(asked)
    told, _ = begun.communicate(timeout=300)
    assert begun.returncode == 128 + asked and "\nstopped. The last checkpoint stands" in told, told
    assert "***" not in told and not [*tmp_path.glob(".ray-*")]


@needs_ray
@pytest.mark.slow
def test_a_run_that_loses_what_starts_its_processes_was_not_asked_to_stop(
    tmp_path: Path, address: str
) -> None:
    """Its exit code is not that of a signal, after which a scheduler's script queues it again."""
    begun = going(tmp_path, address)
    [controller] = processes("TrainController")
    os.kill(controller, signal.SIGKILL)
    told, _ = begun.communicate(timeout=300)
    assert begun.returncode == 1 and "error: ray: what starts the processes was lost" in told, told
    assert "\nstopped" not in told and not [*tmp_path.glob(".ray-*")]


def going(folder: Path, address: str) -> subprocess.Popen[str]:
    """A run of two processes that would not end, and has a checkpoint."""
    (folder / "dies").touch()
    said = (str(BANDIT), "train.iterations=100000", "--processes", "2", "--on", f"ray://{address}")
    begun = subprocess.Popen(
        [sys.executable, "-m", "rlalign", "run", *said],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 300
    while not [*folder.glob("runs/bandit/checkpoints/0*")]:
        assert begun.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return begun


def processes(title: str) -> list[int]:
    """Those with this in their titles that these tests have begun, of whatever generation."""
    parents: dict[int, int] = {}
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if title in (each / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(each.name))

    def ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and ours(parents[process]))

    return [process for process in found if ours(process)]


@needs_ray
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes_where_a_machine_is_gone(tmp_path: Path) -> None:
    # In float64: of gradients that are zero but for rounding AdamW makes steps.
    said = str(BANDIT), "rewards=[{'faults:Waits': {waits: waits}}]", "train.dtype=float64"
    with cluster("1", "1") as (address, lose):
        on = f"ray: {{address: '{address}', least: 1}}"
        with ThreadPoolExecutor() as aside:
            asked = "run", *said, "--processes", "2", "--on", on
            # Ray may not know yet that the machine is gone, and wait for it so many seconds.
            soon = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
            done = aside.submit(rlalign, tmp_path, *asked, **soon)
            while not (tmp_path / "waits").exists():
                assert not done.done(), done.result()
                time.sleep(0.2)
            print("less", file=lose)
            told = done.result()
    assert "worker group of size 2" in told and "worker group of size 1" in told
    rlalign(tmp_path, "run", *said, "--name", "alone")
    alone, fewer = (logged(tmp_path / "runs" / name) for name in ("alone", "bandit"))
    assert [row.keys() for row in alone] == [row.keys() for row in fewer]
    for row, other in zip(alone, fewer, strict=True):
        close = {name: x for name, x in other.items() if isinstance(x, float)}
        assert row == other | {name: pytest.approx(x, rel=1e-9, abs=1e-12) for name, x in close.items()}


@needs_ray
@pytest.mark.slow
def test_rewards_by_actors_that_die_and_hang_are_those_of_one_process(tmp_path: Path, address: str) -> None:
    fails = f"'faults:Fails': {{folder: '{tmp_path}'}}"
    isolate = "isolate: {cluster: ray, workers: 2, seconds: 10}"
    rlalign(
        tmp_path,
        "run",
        str(BANDIT),
        f"rewards=[{{{fails}, {isolate}}}]",
        "--name",
        "pool",
        RAY_ADDRESS=address,
    )
    assert (tmp_path / "died").exists() and (tmp_path / "hung").exists()
    rlalign(tmp_path, "run", str(BANDIT), f"rewards=[{{{fails}}}]", "--name", "inline")
    same(tmp_path / "runs/inline", tmp_path / "runs/pool")


@needs_ray
@pytest.mark.slow
def test_a_reward_has_more_actors_while_parts_wait_and_as_many_as_there_is_room_for(
    tmp_path: Path, address: str
) -> None:
    """One to begin with, of four at most; a second one finds room, and the two that do not hold nobody up."""
    slow = f"'faults:Slow': {{folder: '{tmp_path}'}}"
    isolate = f"isolate: {{cluster: {{ray: {{address: '{address}', cpus: 2}}}}, workers: {{most: 4}}}}"
    rlalign(tmp_path, "run", str(BANDIT), f"rewards=[{{{slow}, {isolate}}}]", "--name", "pool")
    assert len([*tmp_path.glob("process-*")]) == 2
    rlalign(tmp_path, "run", str(BANDIT), f"rewards=[{{{slow}}}]", "--name", "inline")
    same(tmp_path / "runs/inline", tmp_path / "runs/pool")


@needs_ray
@pytest.mark.slow
def test_ray_brings_a_machine_for_an_actor_that_waits_and_takes_it_back(tmp_path: Path) -> None:
    """There is room for one; the first batch is done once the other is there."""
    slow = f"'faults:Slow': {{folder: '{tmp_path}', present: 2}}"
    isolate = "isolate: {cluster: ray, workers: {most: 2}, seconds: 200, retries: 0}"
    with cluster("1", "+1") as (address, _):
        told = rlalign(tmp_path, "run", str(BANDIT), f"rewards=[{{{slow}, {isolate}}}]", RAY_ADDRESS=address)
    assert len([*tmp_path.glob("process-*")]) == 2, told


@needs_ray
@pytest.mark.slow
def test_episodes_in_actors_that_die_and_hang_are_those_of_one_process(tmp_path: Path, address: str) -> None:
    loses = f"'faults:Loses': {{folder: '{tmp_path}'}}"
    isolate = "isolate: {cluster: ray, workers: 2, seconds: 15}"
    task = f"task={{{loses}, {isolate}}}"
    rlalign(tmp_path, "run", str(CORRIDOR), task, "--name", "actors", RAY_ADDRESS=address)
    assert (tmp_path / "died").exists() and (tmp_path / "hung").exists()
    rlalign(tmp_path, "run", str(CORRIDOR), f"task={{{loses}}}", "--name", "inline")
    same(tmp_path / "runs/inline", tmp_path / "runs/actors")


STUDY = """
pipeline:
  task: {bandit: {payouts: [2.5, 2.0, 1.0]}}
  policy: {table: {actions: 3}}
  rewards: [bandit-payout]
  algorithm: rloo
  generation: {samples: 2}
  train: {iterations: 2, prompts: 4}
  evaluate: {every: 1, examples: 8, use: [bandit-payout]}
metrics: {reward: bandit-payout}
worlds: {three: {}}
arms: {rloo: {}}
seeds: 2
final: {final: {evaluate: {examples: 16}}}
"""


@needs_ray
@pytest.mark.slow
def test_copies_of_the_policy_as_actors_sample_what_it_would(tmp_path: Path, address: str) -> None:
    (tmp_path / "dies").touch()

    def copied(name: str, **options: Any) -> Path:
        said = json.dumps({"sampler": {"copies": {"devices": ["cpu", "cpu"], **options}}})
        rlalign(tmp_path, "run", str(BANDIT), "--name", name, f"models={said}", RAY_ADDRESS=address)
        return tmp_path / "runs" / name

    there = copied("there", cluster="ray", ahead=1)
    same(there, copied("here", ahead=1))
    assert not list(tmp_path.glob("*copies*"))


@needs_ray
@pytest.mark.slow
def test_a_copy_of_the_policy_that_is_killed_is_begun_anew_and_samples_the_same(
    tmp_path: Path, address: str
) -> None:
    (tmp_path / "dies").touch()
    policy = json.dumps({"faults:Perishes": {"actions": 3, "folder": str(tmp_path)}})

    def copied(name: str, **options: Any) -> Path:
        said = json.dumps({"sampler": {"copies": {"devices": ["cpu", "cpu"], **options}}})
        asked = str(BANDIT), f"policy={policy}", f"models={said}", "--name", name
        rlalign(tmp_path, "run", *asked, RAY_ADDRESS=address)
        return tmp_path / "runs" / name

    killed = copied("killed", cluster="ray", ahead=1)
    assert (tmp_path / "died").exists()
    same(killed, copied("here", ahead=1))


@needs_ray
@pytest.mark.slow
def test_a_study_s_runs_are_those_of_this_machine(tmp_path: Path, address: str) -> None:
    rows = []
    for name, jobs in (("here", "1"), ("there", f"ray://{address}")):
        (tmp_path / f"{name}.yaml").write_text(STUDY)
        said = rlalign(tmp_path, "study", f"{name}.yaml", "plan", "run", "--jobs", jobs, "--memory", "4")
        assert "2 runs are left" in said
        lines = (tmp_path / f"{name}-results/{name}.jsonl").read_text().splitlines()
        rows.append({row["seed"]: row for row in map(json.loads, lines)})
    here, there = rows
    assert here.keys() == there.keys() and len(here) == 2
    for seed, row in here.items():
        assert row["status"] == there[seed]["status"] == "done"
        for part in ("curve", "own"):
            assert row[part] == there[seed][part]
        assert row["metrics"]["final.reward"] == there[seed]["metrics"]["final.reward"]


@needs_ray
@pytest.mark.slow
def test_a_suite_s_entries_are_those_of_this_machine(tmp_path: Path, address: str) -> None:
    """Each value of each example, and a leaderboard is made of them."""
    measured = []
    for name, jobs in (("here", "1"), ("there", f"ray://{address}")):
        (tmp_path / name).mkdir()
        suite = shutil.copy(SUITE, tmp_path / name)
        only = "run", "--only", "flat", "--memory", "4"
        said = rlalign(tmp_path / name, "bench", suite, *only, "--jobs", jobs)
        assert "2 runs are left" in said
        rows = map(json.loads, (tmp_path / name / "small-results/small.jsonl").read_text().splitlines())
        measured.append({(row["world"], row["arm"], row["seed"]): row["measured"] for row in rows})
        board = rlalign(tmp_path / name, "bench", suite, "table")
        assert "| `reinforce` |" in board and "flat/" not in board
    assert measured[0] == measured[1] and len(measured[0]) == 2
    assert all(one["final"]["per_example"]["payout"] for one in measured[0].values())
