"""From an online run to an offline one: what was sampled is exported once, whatever happens, and read as it was."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rlalign.cli.commands import program
from rlalign.records import logs
from rlalign.testing import Bench
from rlalign_plugin_dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent / "resume"))
from runs_for_resume import HERE, Interference, Runs, Server, outcome

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
KEEP = "train.keep_responses=true"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


def export(run: Path, file: Path) -> list[dict[str, Any]]:
    result = call("export", str(run), "--samples", str(file))
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in file.read_text().splitlines()]


# -- killed and resumed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


ROWS = "rows/rloo-1.jsonl"
INSTANTS: dict[str, tuple[Interference, int]] = {
    "in a row": (("die_in_log_line", {"log": ROWS, "at": 50, "bytes_written": 90}), 2),
    "in the first row": (("die_in_log_line", {"log": ROWS, "at": 1, "bytes_written": 1}), 0),
    "between rows and checkpoint": (
        ("signal_at_call", {"function": "rlalign.records.checkpoint:write", "at": 4, "when": "before"}),
        3,
    ),
    "after a checkpoint": (
        ("signal_at_call", {"function": "rlalign.records.checkpoint:write", "at": 5, "when": "after"}),
        5,
    ),
}


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, list[dict[str, Any]]]:
    """A run that nobody interrupts, and its export."""
    root = tmp_path_factory.mktemp("whole")
    runs = Runs(HERE / "on-policy.yaml", root, server, [KEEP])
    ended = runs.start()
    assert ended.code == 0, ended
    return runs, export(runs.path, root / "samples.jsonl")


@pytest.mark.parametrize(
    "instant",
    [pytest.param(each, marks=[pytest.mark.slow] if i else []) for i, each in enumerate(INSTANTS)],
)
def test_killed_and_resumed_it_exports_what_it_would_have(
    instant: str, whole: tuple[Runs, list[dict[str, Any]]], server: Server, tmp_path: Path
) -> None:
    undisturbed, rows = whole
    assert len(rows) == len({row["id"] for row in rows}) > 150
    interference, committed = INSTANTS[instant]
    runs = Runs(HERE / "on-policy.yaml", tmp_path, server, [KEEP])
    assert runs.start(("writes_at_once", {}), interference).code == -signal.SIGKILL
    # What is there of it now are the iterations that were committed, and nothing torn.
    if committed:
        early = export(runs.path, tmp_path / "early.jsonl")
        assert early == [row for row in rows if row["meta"]["rlalign"]["iteration"] <= committed]
    else:
        assert "nothing is saved yet" in call("export", str(runs.path), "--samples", "none.jsonl").stderr
    ended = runs.resume()
    assert ended.code == 0, ended
    assert export(runs.path, tmp_path / "samples.jsonl") == rows
    assert outcome(runs.path) == outcome(undisturbed.path)


# -- the round trip ---------------------------------------------------------------------------------------

WORLDS = {
    "toy-numbers": (0, 0),
    "algorithms/rloo": (0, 0),
    "toy-keywords": (0, 0.05),
    "toy-dates": (0.1, 0.9),
}
"""By example: the least and the largest share of its responses that are read as other tokens. The network of
toy-dates has not learned to write when it samples here, and writes what no tokenizer would."""


def online(world: str) -> dict[str, Any]:
    """Two iterations of an example that keep their responses and learn nothing."""
    made: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{world}.yaml").read_text())
    made.pop("evaluate")
    phases = made.pop("phases", None)
    if phases:
        made |= phases[-1]
        made.pop("name")
    made["train"] = {"iterations": 2, "prompts": 12, "lr": 0.0, "keep_responses": True}
    return made


@pytest.mark.parametrize("world", WORLDS)
def test_texts_scores_and_ends_come_back(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    say = online(world)
    Path("online.yaml").write_text(yaml.dump(say))
    assert call("run", "online.yaml", "--plain").exit_code == 0
    rows = {row["id"]: row for row in export(Path("runs/online"), Path("samples.jsonl"))}
    assert len(rows) == 24
    said = Dataset(Dataset.Config(path=tmp_path / "samples.jsonl", join="")).examples("train")
    assert [e.id for e in said] == list(rows)

    offline = {
        "task": {"dataset": {"path": str(tmp_path / "samples.jsonl"), "join": ""}},
        "policy": say["policy"],
        "algorithm": ["sft", "wbc"],
        "rewards": ["logged"],
        "train": {"iterations": 1, "prompts": 24, "lr": 0.0},
    }
    bench = Bench(tmp_path / "offline", offline)
    rollout, reward = bench.rollout()
    assert sorted(e.id for e in rollout.examples) == sorted(rows)
    full_NT = bench.run.score("policy", rollout, ["full_logprobs"]).full_logprobs_NT
    full = full_NT.double().where(rollout.mask_NT, 0.0).sum(1).tolist()
    others = 0
    for g, example in enumerate(rollout.examples):
        row, mine = rows[example.id], (rollout.group_N == g).nonzero()[:, 0].tolist()
        assert [rollout.texts[i] for i in mine] == row["responses"]
        assert [bool(rollout.finished_N[i]) for i in mine] == row["finished"]
        assert reward.total_N[mine].tolist() == pytest.approx(row["scores"], rel=1e-6, abs=1e-7)
        # The same weights: log-probs tell whether these are the same tokens.
        about = row["meta"]["rlalign"]
        for i, then, same in zip(mine, about["full_logprobs"], about["same_tokens"], strict=True):
            assert (full[i] == pytest.approx(then, rel=1e-4, abs=1e-4)) is same
            others += not same
    least, most = WORLDS[world]
    assert least <= others / len(rollout) <= most, others


def test_one_reward_of_several_can_be_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    say = online("toy-keywords")
    Path("online.yaml").write_text(yaml.dump(say))
    assert call("run", "online.yaml", "--plain").exit_code == 0
    rows = export(Path("runs/online"), Path("samples.jsonl"))
    scores = "meta.rlalign.rewards.toy-coverage"
    read = Dataset(Dataset.Config(path=tmp_path / "samples.jsonl", scores=scores, join="")).examples("train")
    for example, row in zip(read, rows, strict=True):
        assert list(example.scores) == row["meta"]["rlalign"]["rewards"]["toy-coverage"]


# -- the example ------------------------------------------------------------------------------------------


def three_commands(folder: Path, seed: int, *overrides: str) -> Path:
    """What logged.yaml says to do, from the first command to the last."""
    first, second = [
        line.removeprefix("#   rlalign ").split()
        for line in (EXAMPLES / "algorithms/logged.yaml").read_text().splitlines()
        if line.startswith("#   rlalign")
    ]
    assert first[0] == "run" and second == ["export", "rloo", "--samples", "runs/rloo.jsonl"]
    result = call("run", str(ROOT / first[1]), *first[2:], *overrides, "--plain", "--seed", str(seed))
    assert result.exit_code == 0, result.output
    assert call(*second).exit_code == 0
    path = f"task.dataset.path={folder / 'runs/rloo.jsonl'}"
    arguments = [
        "run",
        str(EXAMPLES / "algorithms/logged.yaml"),
        path,
        *overrides,
        "--plain",
        "--seed",
        str(seed),
    ]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return folder / "runs/logged"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = three_commands(tmp_path, 0, "train.iterations=2", "train.prompts=16", "evaluate.examples=8")
    lines = [line for line in logs.read(run / "metrics.jsonl") if "responses" in line]
    assert [line["responses"] for line in lines] == [16, 16]
    assert all(line["reward/logged"] > 0 for line in lines)  # drawn in proportion to it


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_what_one_run_sampled_teaches_another(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = three_commands(tmp_path, seed, "evaluate.every=null")
    measured = ["--task", "toy-reviews", "--split", "val", "--reward", "toy-sentiment", "--json"]
    after = json.loads(call("eval", str(run), *measured).stdout)["eval/toy-sentiment"]
    start = json.loads(
        call(
            *["eval", str(ROOT / "plugins/tasks/toy-tasks/src/rlalign_plugin_toy_tasks/models/toy-reviews")],
            *[*measured, "evaluate.generation.max_new_tokens=29"],
        ).stdout
    )["eval/toy-sentiment"]
    print(f"seed {seed}: {start:.3f} → {after:.3f}")
    assert after > start + 0.4
