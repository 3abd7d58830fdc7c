"""Runs with served rewards: checked, ended in every way, killed and taken up again. Real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlalign import api
from rlalign.errors import ComponentError, ConfigError
from rlalign.running.callbacks import SAME_REQUEST

sys.path.insert(0, str(Path(__file__).parent))
from serving_bench import HERE

PIPELINE = f"""\
folder: {HERE}
"""
PIPELINE += """\
task: {toy-numbers: {size: 40}}
policy: {table: {actions: 6, steps: 6, state: previous}}
rewards:
  - "served_rewards:%s": %s
    as: mine
    isolate: %s
algorithm: rloo
generation: {samples: 2, max_new_tokens: 6}
train: {iterations: %d, prompts: 4, lr: 0.1}
checkpoints: {every: 3, last: %d}
evaluate: {every: 2, examples: 4}
"""


def write(
    folder: Path, name: str, isolate: str = "true", *, options: str = "{}", iterations: int = 7, last: int = 2
) -> Path:
    file = folder / "p.yaml"
    file.write_text(PIPELINE % (name, options, isolate, iterations, last))
    return file


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlalign.cli", "run", *arguments, "--plain"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(what: Callable[[], Any], seconds: float = 240) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """What is logged, without times; a line that is being written does not count."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [{key: x for key, x in line.items() if not key.startswith("time/")} for line in lines]


def children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                found += map(int, (thread / "children").read_text().split())
    return found


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# -- checked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("- sampled: {}\n  isolate: true", "`rewards` takes"),
        (
            "- kl: {coef: 0.1}\n  isolate: true",
            "isolate: `kl` declares `",
        ),
        (
            "- dates\n- clip: {low: 0}\n  isolate: true",
            "isolate: `clip` wraps `reward` of what stands above it",
        ),
        ('- "served_rewards:Stateful": {}\n  isolate: true', "isolate: `Stateful` keeps a state"),
        ("- dates: {}\n  isolate: {seconds: 0}", "isolate.seconds: expected more than 0, found 0"),
        (
            "- dates: {}\n  isolate: {memory: 4 gigs}",
            "isolate.memory: expected bytes, or a number with KiB, MiB",
        ),
        ("- dates: {}\n  isolate: {at: nowhere}", "isolate.at: expected text that matches"),
        ('- dates: {}\n  isolate: {at: "a:1", memory: 1 GiB}', "`memory` limits a process on this machine"),
        ("- dates: {}\n  isolate: {second: 1}", "isolate.second"),
        ("- dates: {}\n  isolate: 3", "isolate: expected a mapping, found 3"),
    ],
)
def test_what_a_check_refuses(tmp_path: Path, reward: str, said: str) -> None:
    text = f"folder: {HERE}\ntask: toy-numbers\npolicy: {{table: {{actions: 6}}}}\nalgorithm: rloo\n"
    text += f"train: {{iterations: 1}}\ngeneration: {{samples: 2}}\nrewards:\n{reward}\n"
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        api.load(tmp_path / "p.yaml").check()
    assert said in str(caught.value) and "p.yaml:" in str(caught.value)


def test_it_stands_beside_rewards_metrics_and_tasks_only(tmp_path: Path) -> None:
    text = "task: {toy-numbers: {}, isolate: true}\npolicy: {table: {actions: 2}, isolate: true}\n"
    (tmp_path / "p.yaml").write_text(text + "rewards: dates\nalgorithm: {rloo: {}, isolate: true}\n")
    with pytest.raises(ConfigError) as caught:
        api.load(tmp_path / "p.yaml")
    assert str(caught.value).count("only tasks and items of `rewards` and `evaluate.use`") == 2


def test_a_function_of_a_notebook_is_refused() -> None:
    def mine(texts: list[str]) -> list[float]:
        return [0.0 for _ in texts]

    said = {
        **{"task": "toy-numbers", "policy": {"table": {"actions": 6}}, "algorithm": "rloo"},
        **{"train": {"iterations": 1}, "generation": {"samples": 2}},
        "rewards": [{mine: {}, "isolate": True}],
    }
    with pytest.raises(ConfigError, match="`mine` was handed over from Python; `isolate` needs code"):
        api.load(said).check()


def test_a_check_starts_no_process(tmp_path: Path) -> None:
    file = write(tmp_path, "Misbehaves", "{seconds: 1.5, memory: 1.5 GiB, retries: 0}")
    before = children(os.getpid())
    pipeline = api.load(file)
    pipeline.check()
    assert children(os.getpid()) == before


# -- the same as inline, and resumed ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_the_same_inline_and_served(tmp_path: Path) -> None:
    before = set(children(os.getpid()))  # of other tests
    file = write(tmp_path, "Misbehaves", "true")
    api.run(api.load(file), root=tmp_path, name="served")
    api.run(api.load(file, ["rewards.mine.isolate=false"]), root=tmp_path, name="inline")
    assert rows(tmp_path / "served") == rows(tmp_path / "inline")
    assert len(rows(tmp_path / "served")) == 12
    names = [p.relative_to(tmp_path / "served") for p in (tmp_path / "served/model").rglob("*.safetensors")]
    assert names
    for name in names:
        assert (tmp_path / "served" / name).read_bytes() == (tmp_path / "inline" / name).read_bytes()
    assert wait_until(lambda: not [c for c in children(os.getpid()) if c not in before and not is_gone(c)])
    # What the checkpoints that are kept, 6 and 7, may need.
    assert sorted(p.name for p in (tmp_path / "served/served").glob("*.jsonl")) == [
        "00000006.jsonl",
        "00000007.jsonl",
    ]


@pytest.mark.slow
def test_killed_between_checkpoints_and_resumed_it_meets_the_same_scores(tmp_path: Path) -> None:
    """The reward answers at random each time, so nothing but the record can make them equal."""
    write(tmp_path, "AtRandom", iterations=40)
    process, run = command(tmp_path, "p.yaml"), tmp_path / "runs/p"
    wait_until(lambda: len(rows(run)) >= 12)
    (child,) = wait_until(lambda: children(process.pid))
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(child))
    before = rows(run)
    saved = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    again = [row for row in before if row["iteration"] > saved]
    resumed = command(tmp_path, "--resume", "runs/p")
    assert resumed.wait(120) == 0, resumed.stdout and resumed.stdout.read()
    assert rows(run)[: len(before)] == before
    assert rows(run)[-1]["iteration"] == 40
    assert len({row["reward/mine"] for row in rows(run) if "reward/mine" in row}) > 20
    print(f"{len(again)} rows were computed again")


@pytest.mark.slow
def test_a_run_that_goes_back_meets_the_same_scores_to_its_end(tmp_path: Path) -> None:
    """An uninterrupted run beside one that has lost all after its first checkpoint: equal, and the model too."""
    file = write(tmp_path, "AtRandom", last=100)
    api.run(api.load(file), root=tmp_path, name="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "back")
    for later in ("00000006", "00000007"):
        shutil.rmtree(tmp_path / "back/checkpoints" / later)
    shutil.rmtree(tmp_path / "back/model")
    api.resume(tmp_path / "back")
    assert rows(tmp_path / "back") == rows(tmp_path / "whole")
    for file in (tmp_path / "whole/model").rglob("*.safetensors"):
        there = tmp_path / "back" / file.relative_to(tmp_path / "whole")
        assert file.read_bytes() == there.read_bytes()
    shutil.rmtree(tmp_path / "back/checkpoints/00000007")
    shutil.rmtree(tmp_path / "back/checkpoints/00000006")
    shutil.rmtree(tmp_path / "back/served")
    shutil.rmtree(tmp_path / "back/model")
    api.resume(tmp_path / "back")  # without the record it is another run
    assert rows(tmp_path / "back") != rows(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_goes_on_served_stays_exact(tmp_path: Path) -> None:
    """Where a reward is computed changes no number."""
    file = write(tmp_path, "Misbehaves", iterations=2)
    api.run(api.load(file, ["rewards.mine.isolate=false"]), root=tmp_path, name="changed")
    said = ["train.iterations=5", "rewards.mine.isolate={seconds: 30, retries: 0}"]
    api.resume(tmp_path / "changed", said)
    api.run(api.load(file, said), root=tmp_path, name="whole")
    assert rows(tmp_path / "changed") == rows(tmp_path / "whole")
    assert not (tmp_path / "changed/inexact.jsonl").exists()


@pytest.mark.slow
def test_a_resumed_run_leaves_out_what_failed_although_it_would_not_again(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    file = write(
        tmp_path, "Recovers", "{retries: 0}", options=f"{{mended: {mended}}}", iterations=4, last=100
    )
    said = [
        "train.prompts=20",
        "evaluate.examples=20",
        "train.on_bad_reward=drop",
        "task.toy-numbers.size=20",
    ]
    api.run(api.load(file, said), root=tmp_path, name="whole")
    assert len((tmp_path / "whole/dropped.jsonl").read_text().splitlines()) > 4
    shutil.copytree(tmp_path / "whole", tmp_path / "back")
    shutil.rmtree(tmp_path / "back/checkpoints/00000004")
    shutil.rmtree(tmp_path / "back/model")
    mended.touch()
    api.resume(tmp_path / "back")
    for log in ("dropped.jsonl", "samples.jsonl"):
        assert (tmp_path / "back" / log).read_text() == (tmp_path / "whole" / log).read_text()
    assert rows(tmp_path / "back") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_stopped_at_a_score_asks_for_it_again(tmp_path: Path) -> None:
    """Else it could never go on."""
    once = tmp_path / "once"
    once.touch()
    file = write(tmp_path, "Misbehaves", options=f"{{once: {once}, always: nan}}", iterations=1)
    api.run(api.load(file, ["evaluate=null"]), root=tmp_path, name="r")
    once.unlink()
    with pytest.raises(ComponentError, match="`mine` is not finite"):
        api.resume(tmp_path / "r", ["train.iterations=3"])
    api.resume(tmp_path / "r")
    assert rows(tmp_path / "r")[-1]["iteration"] == 3


# -- ended with the run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["SIGKILL", *(pytest.param(each, marks=pytest.mark.slow) for each in ("SIGTERM", "Ctrl-C twice"))]
)
def test_no_process_outlives_its_run(tmp_path: Path, how: str) -> None:
    asked, hangs = tmp_path / "asked", how == "Ctrl-C twice"
    options = f"{{calls: {asked}, always: {'hangs' if hangs else 'null'}}}"
    write(tmp_path, "Misbehaves", "{seconds: 1000}", options=options, iterations=10**6)
    process, run = command(tmp_path, "p.yaml"), tmp_path / "runs/p"
    wait_until(lambda: asked.exists() if hangs else len(rows(run)) >= 2)
    (child,) = children(process.pid)
    if hangs:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(SAME_REQUEST + 1)
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[how])
    assert process.wait(60) != 0
    wait_until(lambda: is_gone(child), 5)


@pytest.mark.slow
def test_a_reward_that_hangs_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """Even where it holds Python's lock and reads nothing."""
    write(tmp_path, "Misbehaves", "{seconds: 1000}", options='{always: "hangs in C"}')
    process, run = command(tmp_path, "p.yaml"), tmp_path / "runs/p"
    (child,) = wait_until(lambda: children(process.pid))
    wait_until(lambda: "hangs in C" in _printed(run))
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(child), 5)


def _printed(run: Path) -> str:
    log = run / "served/mine.log"
    return log.read_text() if log.exists() else ""


def test_an_error_names_it_and_ends_its_process(tmp_path: Path) -> None:
    file = write(tmp_path, "Misbehaves", "{retries: 0}", options="{always: segfaults}")
    before = set(children(os.getpid()))  # of other tests
    with pytest.raises(ComponentError) as caught:
        api.run(api.load(file), root=tmp_path, name="r")
    assert "`mine` in a process of its own, " in str(caught.value)
    assert "p.yaml:5: it was killed by SIGSEGV; the last that it printed:\n    Fatal Python error" in str(
        caught.value
    )
    assert "served_rewards.py" in str(caught.value)
    assert wait_until(lambda: not [c for c in children(os.getpid()) if c not in before and not is_gone(c)])
    assert "Segmentation fault" in _printed(tmp_path / "r")
