"""Copies of the policy in processes of their own sample what it would sample itself."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign import ComponentError, Example, Run, Sampling, hookimpl
from rlalign.config.pipeline import Elsewhere
from rlalign.errors import ConfigError
from rlalign.randomness import Draws, Seeds, global_seeds_kept
from rlalign.records.scratch import Scratch
from rlalign.running import loop
from rlalign.serving import copies
from rlalign.serving.answering import answering
from rlalign.serving.child import Child
from rlalign.serving.copies import Copies
from rlalign.serving.host import Answering, Recipe
from rlalign.serving.questions import example_written
from rlalign.testing import PolicyGradient, SamplerTests
from rlalign.testing.bench import Bench, run, session

BYTES = "rlalign.testing.text:Bytes"
ONE_AT_A_TIME = threading.Lock()
"""Global random numbers are this process's."""


class Near:
    """A copy in this very process; what it is asked and answers travels as JSON all the same."""

    def __init__(self, recipe: Recipe, limits: Elsewhere, log: Path | None) -> None:
        self.recipe = recipe
        self.made: Any = None

    def ready(self) -> None:
        with ONE_AT_A_TIME, global_seeds_kept():
            self.made = answering(self.recipe)
        assert isinstance(self.made, Answering), self.made

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        with ONE_AT_A_TIME, global_seeds_kept():
            answer: dict[str, Any] = json.loads(
                json.dumps(self.made.answer(json.loads(json.dumps(question))))
            )
        return answer

    def how_it_ended(self) -> str:
        return ""

    def last_words(self) -> str:
        return ""

    def close(self) -> None: ...


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "process", Near)


@pytest.mark.usefixtures("near")
class TestCopies(SamplerTests):
    """What every sampler must do."""

    component = "copies"
    options: ClassVar[dict[str, Any]] = {"devices": ["cpu", "cpu", "cpu"]}
    pipeline: ClassVar[dict[str, Any]] = {"policy": {BYTES: {"seed": 1}}}


def pipeline(iterations: int = 4, **options: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"size": 10}},
        "policy": {BYTES: {"seed": 1}},
        "rewards": ["length"],
        "algorithm": "policy-gradient",
        "models": {"sampler": {"copies": options}},
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": iterations, "prompts": 4, "lr": 0.5, "dtype": "float64"},
        "evaluate": {"every": 2, "split": "train", "examples": 4},
    }


def alone(iterations: int = 4) -> dict[str, Any]:
    """The same, where the policy samples itself."""
    return {name: said for name, said in pipeline(iterations).items() if name != "models"}


def told(done: loop.Session) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: x for name, x in row.items() if name.partition("/")[0] not in ("time", "sampler", "worked")}
        for row in rows
    ]


def same(one: loop.Session, other: loop.Session) -> None:
    """They said the same, evaluations too, and learned the same, up to rounding of float64."""
    for ours, theirs in zip(told(one), told(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            known = theirs[name]
            assert x == (pytest.approx(known, rel=1e-12, abs=1e-12) if isinstance(known, float) else known), (
                name
            )
    for ours_, theirs_ in zip(one.models.policy.parameters(), other.models.policy.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=1e-11)


# -- what it samples ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_is_what_it_is_without_them(count: int, tmp_path: Path) -> None:
    _, plain = run(tmp_path, alone(), name="plain")
    _, done = run(tmp_path, pipeline(devices=["cpu"] * count), name="copied")
    same(done, plain)


@pytest.mark.usefixtures("near")
def test_each_samples_a_run_of_the_prompts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pipeline(devices=["cpu"] * 3), {})
    sampler: Any = bench.phase.sampler
    policy, examples = bench.phase.models.policy, bench.phase.draw.next(2)
    how = Sampling(samples=2, max_new_tokens=4, top_k=5, min_new_tokens=2, stop=("a", "e"))
    draws = Draws(3, ("x",), range(7, 9), 2)
    sampler.take(policy)
    found = sampler.sample(policy, examples, how, draws)
    own = policy.sample(examples, how, Seeds(3).uniforms("x", positions=range(7, 9), samples=2, steps=4))
    for name in ("actions_NT", "mask_NT", "finished_N", "group_N", "logprobs_NT", "full_logprobs_NT"):
        torch.testing.assert_close(getattr(found, name), getattr(own, name), equal_nan=True)
    assert found.examples == own.examples and found.texts == own.texts
    assert [client.end is not None for client in sampler._clients] == [True, True, False]
    sampler.close()


def phases(first: str, **more: Any) -> dict[str, Any]:
    """Twice: responses are sampled and kept, then learned from."""
    sampled: dict[str, Any] = {"name": "sampled", "algorithm": first}
    learned: dict[str, Any] = {
        "name": "learned",
        "task": {"from": "sampled"},
        "responses": "logged",
        "rewards": None,
    }
    said = {name: x for name, x in pipeline(2, **more).items() if name not in ("algorithm", "evaluate")}
    learned |= {"algorithm": "policy-gradient", "models": {"sampler": None}}
    return {**said, "repeat": 2, "phases": [sampled, learned]}


@pytest.mark.usefixtures("near")
def test_a_phase_that_learns_nothing_samples_with_the_weights_of_now(tmp_path: Path) -> None:
    """Those that stand still in it have learned since they were taken last."""
    _, done = run(tmp_path, phases("collect"))
    rows = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["sampler/version"], row["sampler/largest"]) for row in rows if "sampler/version" in row]
    assert [version for version, _ in found] == [0, 0, 2, 2]
    assert all(largest < 1e-9 for _, largest in found)


class Ends(PolicyGradient):
    """Ends the phase while the next iteration's prompts are with the sampler."""

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        run.finish_phase("it is enough")


@pytest.mark.usefixtures("near")
def test_a_phase_that_is_ended_leaves_the_sampler_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Near.ask

    def slowly(self: Near, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        time.sleep(0.3)
        return answer(self, question, seconds)

    monkeypatch.setattr(Near, "ask", slowly)
    said = {**pipeline(4, ahead=1), "evaluate": None, "repeat": 2, "algorithm": "ends"}
    _, done = run(tmp_path, said, {"ends": Ends})
    assert len((done.dir.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_sent_is_told(tmp_path: Path) -> None:
    example = Example(id="7", prompt="a", meta={"day": datetime.date(2026, 1, 1)})
    with pytest.raises(
        ComponentError, match=r"example `7` holds a date, .*; have the task write it as text$"
    ):
        example_written(example, "have the task write it as text")
    with pytest.raises(ComponentError, match=r"leave out `isolate`$"):
        example_written(example)


def test_draws_are_those_of_the_policy() -> None:
    seeds, draws = Seeds(7), Draws(7, ("sample", 2), range(3, 9), 4)
    assert list(draws) == seeds.numbers("sample", 2, positions=range(3, 9), samples=4)
    whole = seeds.uniforms("sample", 2, positions=range(3, 9), samples=4, steps=5)
    assert torch.equal(draws.uniforms(5), whole) and torch.equal(draws[2:4].uniforms(5), whole[2:4])
    assert draws[2:4][1] == draws[3] and len(draws[2:]) == 4


# -- what it refuses ----------------------------------------------------------------------------------------------


def test_a_policy_that_nobody_else_can_import_is_refused(tmp_path: Path) -> None:
    said = {**pipeline(), "policy": "bytes"}
    with pytest.raises(
        ConfigError, match=r"copies.*was handed over from Python, and other processes need code"
    ):
        session(tmp_path, said, {})


def test_a_cluster_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cluster named `nowhere` is installed"):
        session(tmp_path, pipeline(cluster="nowhere"), {})


@pytest.mark.usefixtures("near")
def test_what_goes_wrong_there_is_told(tmp_path: Path) -> None:
    started = session(tmp_path, pipeline(devices=["nowhere"], retries=0), {}, name="one")
    with pytest.raises(ComponentError, match=r"sampler `copies`: .*nowhere"):
        started.run()


# -- the folder ---------------------------------------------------------------------------------------------------


def test_what_a_killed_one_left_goes_when_the_next_begins(tmp_path: Path) -> None:
    held = Scratch("some", tmp_path)
    left = tmp_path / "some-left"
    left.mkdir()
    (left / "lock").touch()
    other = Scratch("some", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([held.path, other.path])
    held.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("near")
def test_what_does_not_learn_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, pipeline(folder=str(tmp_path / "files")), {})
    sampler, policy = bench.phase.sampler, bench.phase.models.policy
    assert isinstance(sampler, Copies)
    policy.register_parameter("still", torch.nn.Parameter(torch.ones(3), requires_grad=False))
    names = []
    for _ in range(3):
        sampler.take(policy)
        names.append({path.name for path in sampler._scratch.path.glob("*.safetensors")})  # type: ignore[union-attr]
    assert [len(one) for one in names] == [2, 2, 2] and len(set.intersection(*names)) == 1
    sampler.close()
    assert list((tmp_path / "files").iterdir()) == []


# -- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    found: list[int] = []
    begin = Child._start

    def started(*given: Any) -> Any:
        process = begin(*given)
        found.append(process.pid)
        return process

    monkeypatch.setattr(Child, "_start", staticmethod(started))
    yield found
    assert not any(_lives(pid) for pid in found), "a copy outlives its run"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_is_killed_is_begun_anew(tmp_path: Path, children: list[int]) -> None:
    _, plain = run(tmp_path, alone(), name="plain")
    started = session(tmp_path, pipeline(folder=str(tmp_path / "files"), threads=1), {}, name="copied")
    take, times = Copies.take, []

    def taken(self: Copies, policy: Any) -> None:
        times.append(len(children))
        if len(times) == 3:
            os.kill(children[-1], signal.SIGKILL)
        take(self, policy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Copies, "take", taken)
        started.run()
    assert len(children) == 2
    same(started, plain)
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    said = pipeline(100_000, folder=str(tmp_path / "files"), devices=["cpu", "cpu"], ahead=1)
    (tmp_path / "p.json").write_text(json.dumps(said))
    code = (
        "import json; from rlalign.testing.bench import session; "
        "session('.', json.load(open('p.json')), {}, name='one').run()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True) as process:
        rows = tmp_path / "runs/one/metrics.jsonl"
        until = time.monotonic() + 120
        while not rows.is_file() or rows.read_text().count("\n") < 5:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        copies_of = [int(pid) for pid in _children(process.pid)]
        assert len(copies_of) == 2
        process.kill()
    until = time.monotonic() + 10
    while any(map(_lives, copies_of)):
        assert time.monotonic() < until, "copies go on"
        time.sleep(0.1)
    assert len(list((tmp_path / "files").iterdir())) == 1
    Scratch("rlalign-copies", tmp_path / "files").close()
    assert list((tmp_path / "files").iterdir()) == []


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.slow
def test_sampling_ahead_stopped_and_resumed_to_the_bit(tmp_path: Path) -> None:
    from rlalign.testing.bench import Silence, registry, stop_early

    said = pipeline(threads=1, ahead=1)
    _, whole = run(tmp_path, said, name="whole")
    stop_early(session(tmp_path, said, {}, name="stopped"))
    again = loop.resume(tmp_path / "runs/stopped", registry({}), display=Silence())
    again.run()
    assert told(again) == told(whole)
    for ours, theirs in zip(whole.models.policy.parameters(), again.models.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
