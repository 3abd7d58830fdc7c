"""Rewards that misbehave: the run stops with the batch kept, or goes on without the prompts they are bad at."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file

from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.running import bad_rewards
from rlalign.running.display import PlainDisplay
from rlalign.testing import PolicyGradient, run, session
from rlalign.testing.bench import logged, stopped_and_resumed

PIPELINE: dict[str, Any] = {
    "task": {"numbers": {"size": 40, "logged": [1]}},
    "policy": {"logits": {}},
    "rewards": ["token-sum", "bad"],
    "algorithm": "once",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 3, "prompts": 20, "lr": 0.01},
}


def raises(rollout: Rollout) -> Score:
    raise KeyError("no such word")


def leaves(rollout: Rollout) -> Score:
    raise SystemExit(3)


def too_few(rollout: Rollout) -> Score:
    return Score(torch.zeros(len(rollout) - 1))


def no_tensor(rollout: Rollout) -> Any:
    return Score([0.0] * len(rollout))  # type: ignore[arg-type]


def no_score(rollout: Rollout) -> Any:
    return torch.zeros(len(rollout))


def complex_numbers(rollout: Rollout) -> Score:
    return Score(torch.zeros(len(rollout), dtype=torch.complex64))


def nan(rollout: Rollout) -> Score:
    return Score(torch.full((len(rollout),), torch.nan))


FAULTS: dict[str, tuple[Callable[[Rollout], Any], str]] = {
    "raises": (raises, "raised KeyError: 'no such word'"),
    "leaves": (leaves, "raised SystemExit: 3"),
    "too few": (too_few, "scored"),
    "no tensor": (no_tensor, "must give Score"),
    "no score": (no_score, "Score"),
    "complex": (complex_numbers, "must be a tensor of numbers"),
    "nan": (nan, "not finite"),
}


def bad(
    fault: Callable[[Rollout], Any], at: Callable[[Rollout], bool] = lambda rollout: True
) -> type[Component]:
    class Bad(Component):
        """Misbehaves."""

        class Config(Options):
            """Options of `bad`."""

            level: float = Field(1.0, description="what it gives otherwise")

        @hookimpl
        def reward(self, rollout: Rollout) -> Any:
            return fault(rollout) if at(rollout) else Score(torch.ones(len(rollout)))

    return Bad


def third(rollout: Rollout) -> bool:
    """One of the forty examples."""
    return any(example.id == "3" for example in rollout.examples)


def components(cls: type[Any]) -> dict[str, type[Any]]:
    return {"once": PolicyGradient, "bad": cls}


def train(**said: Any) -> dict[str, Any]:
    return {**PIPELINE, "train": {**PIPELINE["train"], **said}}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_stops_names_the_reward_and_keeps_the_batch(fault: str, tmp_path: Path) -> None:
    made, said = FAULTS[fault]
    with pytest.raises(ComponentError, match="`bad`") as caught:
        run(tmp_path, PIPELINE, components(bad(made)), name="r")
    assert said in str(caught.value) and "The batch is in" in str(caught.value)
    folder = tmp_path / "runs/r/bad-batch"
    kept = json.loads((folder / "texts.json").read_text())
    assert len(kept) == 40 and set(kept[0]) == {"example", "prompt", "response"}
    assert load_file(folder / "batch.safetensors")["token-sum"].shape == (40,)  # scored before it


@pytest.mark.parametrize("fault", FAULTS)
def test_drop_leaves_out_the_group_and_keeps_the_others(fault: str, tmp_path: Path) -> None:
    made, said = FAULTS[fault]
    seen: list[set[str]] = []

    class Look(PolicyGradient):
        @hookimpl
        def advantage(self, rollout, reward):
            seen.append({example.id for example in rollout.examples})
            assert bool((reward.parts["bad"] == 1).all()) and len(reward.total_N) == len(rollout)

    def only_third(rollout: Rollout) -> Any:
        if made is not nan:
            return made(rollout)
        ids = [rollout.examples[g].id for g in rollout.group_N.tolist()]
        return Score(torch.tensor([float("nan") if i == "3" else 1.0 for i in ids]))

    pipeline = {**train(on_bad_reward="drop", iterations=2), "algorithm": "look"}
    _, done = run(tmp_path, pipeline, {**components(bad(only_third, third)), "look": Look}, name="r")
    (line,) = [json.loads(x) for x in (done.dir.path / "dropped.jsonl").read_text().splitlines()]
    assert line["rewards"] == ["bad"] and line["examples"] == ["3"] and said in line["why"]["3"]
    assert (
        sorted(map(len, seen)) == [19, 20] and len(seen[0] | seen[1]) == 39 and "3" not in seen[0] | seen[1]
    )


def test_no_more_groups_are_asked_once_too_many_failed(tmp_path: Path) -> None:
    asked: list[int] = []

    def failing(rollout: Rollout) -> Score:
        asked.append(len(rollout.examples))
        raise ValueError("never")

    with pytest.raises(
        ComponentError, match=r"`bad` is bad for 10% .* `on_bad_reward: drop` forgives.*never"
    ):
        run(tmp_path, train(on_bad_reward="drop"), components(bad(failing)), name="r")
    assert asked == [20, 1, 1]
    (line,) = (tmp_path / "runs/r/dropped.jsonl").read_text().splitlines()
    assert len(json.loads(line)["examples"]) == 2


@pytest.mark.parametrize("how", ["stop", "drop"])
@pytest.mark.parametrize("then", ["answers", "raises"])
def test_a_reward_that_changes_what_it_is_given_ends_the_run_either_way(
    how: str, then: str, tmp_path: Path
) -> None:
    def changes(rollout: Rollout) -> Score:
        rollout.actions_NT.zero_()
        if then == "raises":
            raise ValueError("and fails")
        return Score(torch.ones(len(rollout)))

    with pytest.raises(ComponentError, match=r"`bad` changed `rollout.actions_NT` in place"):
        run(tmp_path, train(on_bad_reward=how), components(bad(changes)), name="r")
    kept = load_file(tmp_path / "runs/r/bad-batch/batch.safetensors")
    assert bool((kept["actions"] != 0).any())  # as it was before


def test_what_a_reward_does_to_the_process_moves_no_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def wild(rollout: Rollout) -> Score:
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
        os.chdir("/")
        print("loud " * 400_000)
        return Score(torch.ones(len(rollout)))

    here = os.getcwd()
    _, calm = run(tmp_path / "calm", PIPELINE, components(bad(lambda r: Score(torch.ones(len(r))))))
    _, done = run(tmp_path / "wild", PIPELINE, components(bad(wild)))
    assert logged(calm.dir.path) == logged(done.dir.path) and os.getcwd() == here
    assert torch.get_default_dtype() == torch.float32
    assert (done.dir.path / "metrics.jsonl").stat().st_size < 100_000


def test_an_evaluation_takes_the_same_path(tmp_path: Path) -> None:
    evaluated = {
        **train(on_bad_reward="drop", iterations=1),
        "evaluate": {"every": 1, "examples": 20, "use": ["bad"]},
        "rewards": ["token-sum"],
    }
    _, done = run(tmp_path, evaluated, components(bad(raises, third)), name="r")
    line = json.loads((done.dir.path / "dropped.jsonl").read_text().splitlines()[0])
    assert line["evaluation"] is True and line["examples"] == ["3"] and line["iteration"] == 0
    found = [json.loads(x) for x in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval/bad"] for row in found if "eval/bad" in row] == [1.0, 1.0]

    stopping = {**evaluated, "train": {**evaluated["train"], "on_bad_reward": "stop"}}
    with pytest.raises(ComponentError, match=r"`bad` .*raised KeyError.*The batch is in"):
        run(tmp_path, stopping, components(bad(raises, third)), name="s")
    assert len(json.loads((tmp_path / "runs/s/bad-batch/texts.json").read_text())) >= 20


def test_resume_is_exact_where_something_was_dropped(tmp_path: Path) -> None:
    pipeline, known = train(on_bad_reward="drop"), components(bad(raises, third))
    whole = session(tmp_path, pipeline, known, name="whole")
    whole.run()
    resumed = stopped_and_resumed(tmp_path, pipeline, known)
    assert logged(whole.dir.path) == logged(resumed.dir.path)
    for key, tensor in whole.models["policy"].state_dict().items():
        assert torch.equal(tensor, resumed.models["policy"].state_dict()[key])
    files = [x.dir.path / "dropped.jsonl" for x in (whole, resumed)]
    assert files[0].read_text() == files[1].read_text() != ""


def test_a_slow_reward_is_named_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    def slow(rollout: Rollout) -> Score:
        time.sleep(0.3)
        return Score(torch.ones(len(rollout)))

    monkeypatch.setattr(bad_rewards, "SLOW_SECONDS", 0.05)
    started = session(tmp_path, train(iterations=2), components(bad(slow)), name="r")
    notes: list[str] = []
    monkeypatch.setattr(started.display, "note", notes.append)
    started.run()
    (note,) = [n for n in notes if "scoring" in n]
    assert note.startswith("`bad` has been scoring for") and "isolate: {seconds:" in note


@pytest.mark.parametrize("how", ["stop", "drop"])
def test_a_wrapper_that_fails_ends_the_run_and_is_named(how: str, tmp_path: Path) -> None:
    class Wraps(Component):
        """Fails once it has the scores."""

        @hookimpl(wrapper=True)
        def reward(self, rollout):
            scores = yield
            raise ValueError(f"no {len(scores)}")

    wrapped = {**train(on_bad_reward=how), "rewards": ["token-sum", "bad"]}
    with pytest.raises(ComponentError, match=r"`bad`.*no 1.*The batch is in"):
        run(tmp_path, wrapped, components(Wraps), name="r")
    assert not (tmp_path / "runs/r/dropped.jsonl").exists()


def test_a_reward_that_fails_at_beginnings_is_named_and_dropped(tmp_path: Path) -> None:
    """`potential` asks it again, for responses nobody wrote: what goes wrong there is its own fault, too."""

    def short(rollout: Rollout) -> Score:
        if any(
            example.id == "3" and len(text) < 2
            for example, text in zip(rollout.answered, rollout.texts, strict=True)
        ):
            raise ValueError("too short")
        return Score(torch.ones(len(rollout)))

    rewards = ["bad", {"potential": {"every": "token"}}, "token-sum"]
    dropping = {**train(on_bad_reward="drop", iterations=2), "rewards": rewards}
    _, done = run(tmp_path, dropping, components(bad(short)), name="r")
    (line,) = [json.loads(x) for x in (done.dir.path / "dropped.jsonl").read_text().splitlines()]
    assert line["rewards"] == ["bad"] and line["examples"] == ["3"] and "too short" in line["why"]["3"]


def test_megabytes_are_cut_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[Any] = []

    def loud(rollout: Rollout) -> Score:
        print("quiet at first")
        for _ in range(100):
            print("loud " * 20_000)
        print("to the other", file=sys.stderr)
        kept.append(sys.stdout)
        return Score(torch.ones(len(rollout)))

    started = session(tmp_path, train(iterations=2), components(bad(loud)), name="r")
    notes: list[str] = []
    started.display.note = notes.append  # type: ignore[method-assign]
    out = sys.stdout
    started.run()
    shown = capsys.readouterr()
    assert shown.out.startswith("quiet at first") and 40_000 <= len(shown.out) < 50_000
    assert shown.err.count("to the other") == 2 and sys.stdout is out
    (note,) = [n for n in notes if "printed" in n]
    assert note.startswith("`reward` of `bad` printed 10,000,") and "first 20,000 are shown" in note
    print("x" * 30_000, file=kept[0])  # whoever kept the stream can go on
    assert len(capsys.readouterr().out) == 30_001


def test_the_run_s_own_words_are_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(Component):
        """Prints without end, then has something to say."""

        @hookimpl
        def reward(self, run, rollout):
            print("loud " * 20_000)
            run.note("that was loud")
            return Score(torch.ones(len(rollout)))

    display = PlainDisplay()
    session(tmp_path, train(iterations=1), components(Loud), display=display).run()
    assert "that was loud" in capsys.readouterr().out


def test_a_metric_of_all_responses_that_fails_leaves_the_batch(tmp_path: Path) -> None:
    class Corpus(Component):
        """Fails."""

        @hookimpl
        def evaluate(self, rollout):
            raise ZeroDivisionError("no responses")

    asked = {**PIPELINE, "rewards": ["token-sum"], "evaluate": {"examples": 4, "use": ["token-sum", "bad"]}}
    with pytest.raises(ComponentError, match=r"`evaluate` of `bad`.*no responses.*The batch is in"):
        run(tmp_path, asked, components(Corpus), name="r")
    assert len(json.loads((tmp_path / "runs/r/bad-batch/texts.json").read_text())) == 4
