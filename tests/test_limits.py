"""Files that others wrote neither hang the command line nor fill the memory: one sentence, exit code 2, no run.

Every case is a real file and a real process, with little memory and 40 seconds. What each module refuses is tested
beside it; here that the whole ends as it must.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlalign.data import limits

pytestmark = pytest.mark.slow

GOOD = {
    "task": "bandit",
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout"],
    "algorithm": "rloo",
    "generation": {"samples": 4, "max_new_tokens": 1},
    "train": {"iterations": 1, "prompts": 4},
}


def rlalign(folder: Path, *arguments: str, memory: int = 4) -> subprocess.CompletedProcess[str]:
    """A command in a process that may take 4 GiB and 40 seconds."""
    bounds = (memory * 2**30,) * 2
    return subprocess.run(
        [sys.executable, "-m", "rlalign.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=40,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, bounds),
    )


def refused(found: subprocess.CompletedProcess[str], folder: Path, *parts: str) -> None:
    assert found.returncode == 2, (found.returncode, found.stderr)
    assert found.stderr.startswith("error: ") and "Traceback" not in found.stderr
    for part in parts:
        assert part in found.stderr
    assert len(found.stderr) < 2_000
    assert not (folder / "runs").exists() or not list((folder / "runs").glob("*/pipeline.yaml"))


def laugh(first: str, each: str) -> str:
    return f"a0: {first}\n" + "".join(each.format(i=i, j=i - 1) + "\n" for i in range(1, 60))


FILES = {
    "aliases": (laugh("&a0 [1, 1]", "a{i}: &a{i} [*a{j}, *a{j}]"), "keys and values"),
    "merges": (laugh("&a0 {x: 1}", "a{i}: &a{i} {{<<: [*a{j}, *a{j}]}}"), "keys and values"),
    "interpolations": (laugh("xx", "a{i}: ${{a{j}}}${{a{j}}}"), "stand for too much"),
    "a list of 10 MB": (f"a: [{'1,' * 5_000_000}]\n", "is longer than 2 MiB"),
    "200,000 keys": ("".join(f"k{i}: 1\n" for i in range(200_000)), "keys and values"),
    "deep": (f"a: {'[' * 100_000}", "within each other"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("command", ["check", "run"])
def test_pipelines_that_never_end(tmp_path, case, command):
    text, said = FILES[case]
    (tmp_path / "p.yaml").write_text(text)
    refused(rlalign(tmp_path, command, "p.yaml"), tmp_path, "p.yaml", said)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipelines_that_are_no_file(tmp_path, kind):
    if kind == "pipe":
        os.mkfifo(tmp_path / "p.yaml")
    else:
        (tmp_path / "p.yaml").symlink_to("/dev/zero")
    refused(rlalign(tmp_path, "run", "p.yaml"), tmp_path, "p.yaml: is no regular file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.prompts=1000000000000", "at most 1000000"),
        ("generation.samples=1000000000", "at most 100000"),
        ("train.iterations=" + "9" * 50_000, "a number of 50,000 digits"),
        ("policy.table.actions=1000000000", "at most 1000000"),
        ("policy.table={actions: 1000000, steps: 10000000, state: step}", "of memory, this machine has"),
        ("train={iterations: 1, prompts: 1000000} generation.samples=100000", "more than 10,000,000"),
        ("train.lr=[" + "[" * 50_000, "within each other"),
    ],
)
def test_numbers_that_no_machine_holds(tmp_path, change, said):
    (tmp_path / "p.yaml").write_text(yaml.dump(GOOD))
    changes = change.split(" gen")
    changes = [changes[0], *("gen" + rest for rest in changes[1:])]
    refused(rlalign(tmp_path, "run", "p.yaml", *changes), tmp_path, said)


@pytest.mark.parametrize("name", ["..yaml", "...yaml", ".yaml"])
def test_a_file_after_which_no_folder_can_be_called(tmp_path, name):
    (tmp_path / name).write_text(yaml.dump(GOOD))
    refused(rlalign(tmp_path, "run", name), tmp_path, "is no name; rename the file, or say --name")
    assert rlalign(tmp_path, "run", name, "--name", "mine", "--plain").returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine"]


def test_a_line_of_300_megabytes(tmp_path):
    with (tmp_path / "d.jsonl").open("wb") as file:
        file.write(b'{"prompt": "')
        file.seek(300_000_000)
        file.write(b'"}\n')
    (tmp_path / "p.yaml").write_text(yaml.dump({**GOOD, "task": {"dataset": {"path": "d.jsonl"}}}))
    refused(rlalign(tmp_path, "run", "p.yaml", memory=8), tmp_path, "d.jsonl:1: a line of more than")


def test_a_pipeline_of_500_phases_runs(tmp_path):
    phases = [
        {"name": f"p{i}", "train": {"iterations": 1, "prompts": 2, "lr": "${rate}"}} for i in range(500)
    ]
    top = {key: value for key, value in GOOD.items() if key != "train"}
    pipeline = yaml.dump({**top, "phases": phases}, sort_keys=False).replace("${rate}", "${train.eps}")
    (tmp_path / "p.yaml").write_text(pipeline + "train: {eps: 1e-8}\n")
    found = rlalign(tmp_path, "check", "p.yaml")
    assert found.returncode == 0, found.stderr
    assert "500 phases" in found.stdout and len(pipeline) < limits.PIPELINE_BYTES
