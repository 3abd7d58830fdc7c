"""What `rlalign check` finds before anything is loaded, and how soon."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from rlalign.cli.commands import program

OWN = '''
import json
import re
from pathlib import Path
from rlalign import ConfigError, Example, LazyExamples, Options, Task, hookimpl
from rlalign.testing import Logits, PolicyGradient, TokenSum


class Lines(Task):
    """A file a split; prompts are numbers."""

    class Config(Options):
        folder: Path
        answers: int = 0

    def examples(self, split):
        file = self.config.folder / f"{split}.txt"
        if not file.exists():
            raise ConfigError(f"{file}: there is no such file")
        answers = ("1 2",) * self.config.answers
        return [Example(line, line, responses=answers) for line in file.read_text().split()]


class Many(LazyExamples):
    read = 0

    def __len__(self):
        return 10**9

    def example(self, index):
        Many.read += 1
        return Example(str(index), str(index % 6))


class Large(Task):
    def examples(self, split):
        return Many()


class Elsewhere(Task):
    here = False

    def examples(self, split):
        raise AssertionError("what is not here is not read")


class Reading(Logits):
    """Reads every prompt that it is asked about."""

    def refuse(self, examples, responses=()):
        return {i: "is five" for i, e in enumerate(examples) if e.prompt == "5"}


class Remote(Reading):
    here = False

    def open(self):
        raise AssertionError("what is not here is not opened")


class FromLog(PolicyGradient):
    responses = "logged"


class Brief(TokenSum):
    class Config(Options):
        factor: float = 1.0


class Compares(FromLog):
    min_samples = 2


class Fails(TokenSum):
    @hookimpl
    def reward(self, run, rollout):
        return rollout.scores["toxicity"]
'''
PIPELINE: dict[str, Any] = {
    "task": {"own:Lines": {"folder": "data"}},
    "policy": {"own:Reading": {}},
    "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 1, "prompts": 2, "lr": 0.01},
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("data").mkdir()
    Path("data/train.txt").write_text("1 2 3")
    Path("data/val.txt").write_text("4")


def check(*overrides: str, **parts: Any) -> Result:
    Path("toy.yaml").write_text(yaml.dump({**PIPELINE, **parts}, sort_keys=False))
    return CliRunner().invoke(program, ["check", "toy.yaml", *overrides], prog_name="rlalign")


def told(result: Result) -> list[str]:
    assert result.exit_code == 2, result.output
    return result.stderr.partition("error: ")[2].splitlines()


def at(text: str) -> str:
    """The first line of toy.yaml that says this."""
    lines = Path("toy.yaml").read_text().splitlines()
    return f"toy.yaml:{next(i for i, line in enumerate(lines, 1) if text in line)}"


# -- what costs no import of a component -------------------------------------------------------------------

WRONG = """
task: nothing-of-this-name
policy: {rlalign.testing:Logits: {}, table: {}}
rewards: [kl: [1], gate]
algorithm: reinforcee
trian: {iterations: 3}
train: {iterations: many, prompts: 2}
generation: {samples: 0}
evaluate: {evry: 2, generation: {temperature: hot}}
device: [cpu]
models: {reference: {of: nowhere}}
"""
FOUND = (
    "wrong.yaml:2: task.nothing-of-this-name: no component named",
    "wrong.yaml:3: policy: one item names one component",
    "wrong.yaml:4: rewards[0].kl: expected a mapping of options",
    "wrong.yaml:5: algorithm.reinforcee: no component named `reinforcee` is installed; did you mean `reinforce",
    "wrong.yaml:6: trian: unknown key; did you mean `train`?",
    "wrong.yaml:7: train.iterations: expected a whole number, found 'many' (text)",
    "wrong.yaml:8: generation.samples: expected more than 0",
    "wrong.yaml:9: evaluate.evry: unknown option; did you mean `every`?",
    "wrong.yaml:9: evaluate.generation.temperature: expected a number",
    "wrong.yaml:10: device: expected text",
    "wrong.yaml:11: models.reference.of: expected start, phase, iteration or a folder",
)
ALONE = """
import json, sys
from click.testing import CliRunner
from rlalign.cli.commands import program
result = CliRunner().invoke(program, sys.argv[1:], prog_name="rlalign")
print(json.dumps([result.exit_code, result.stderr, sorted({"torch", "transformers", "numpy"} & set(sys.modules))]))
"""


def alone(*arguments: str) -> tuple[int, str, list[str]]:
    """In a process of its own: the exit code, standard error, and which heavy modules were imported."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=True
    )
    code, stderr, heavy = json.loads(done.stdout)
    return code, stderr, heavy


@pytest.mark.parametrize("command", ["check", "run"])
def test_keys_types_and_names_are_told_together_and_import_nothing_heavy(command: str) -> None:
    Path("wrong.yaml").write_text(WRONG)
    code, stderr, heavy = alone(command, "wrong.yaml")
    assert (code, heavy) == (2, [])
    for line in FOUND:
        assert line in stderr
    assert len(stderr.splitlines()) == len(FOUND)


def test_own_code_is_looked_for_and_not_run() -> None:
    Path("own.py").write_text("raise SystemExit('it was run')\nclass Other: pass")
    wrong = {**PIPELINE, "train": {"iterations": "many"}}
    Path("wrong.yaml").write_text(yaml.dump(wrong))
    code, stderr, heavy = alone("check", "wrong.yaml")
    assert (code, heavy) == (2, [])
    assert "`own:Lines`: the module `own` has no `Lines`" in stderr
    assert "train.iterations: expected a whole number" in stderr


def test_what_an_algorithm_may_set_is_not_missed_before_it_is_known() -> None:
    """`iterations` may come with it."""
    Path("own.py").write_text(
        OWN + '\n\nclass Brief(PolicyGradient):\n    defaults = {"train": {"iterations": 3}}\n'
    )
    Path("toy.yaml").write_text(yaml.dump({**PIPELINE, "algorithm": "own:Brief", "train": {"prompts": 2}}))
    code, stderr, heavy = alone("check", "toy.yaml")
    assert code == 0, stderr
    assert "torch" in heavy


def test_once_keys_are_right_options_are_told() -> None:
    Path("wrong.yaml").write_text(yaml.dump({**PIPELINE, "rewards": [{"kl": {"coeff": 1}}]}))
    code, stderr, _ = alone("check", "wrong.yaml")
    assert code == 2
    assert "rewards[0].kl.coeff: unknown option; did you mean `coef`?" in stderr


# -- data, models and the machine --------------------------------------------------------------------------


def test_sound_data_is_counted() -> None:
    result = check(evaluate={"split": "val"}, train={"iterations": 1, "prompts": 3})
    assert result.exit_code == 0, result.output
    assert "  data      train 3, val 1\n" in result.output


def test_all_of_it_as_json() -> None:
    result = check("--json", train={"iterations": 4, "prompts": 3, "minibatches": 2})
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["pipeline"], found["runs_here"], found["machine"]) == ("toy", True, None)
    batch = found["phases"]["PolicyGradient"]["batch"]
    assert (batch["responses"], batch["steps"], batch["steps_in_all"], batch["longest"]) == (6, 2, 8, 7)
    assert any("do not divide into 2 minibatches" in said for said in batch["advice"])


def test_a_trial_is_told_and_leaves_nothing() -> None:
    before = sorted(Path().iterdir())
    result = check("--smoke")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^  PolicyGradient  rollout, score, reward, advantage, update, checkpoint$", result.output, re.M
    )
    assert [
        path for path in sorted(Path().iterdir()) if path.name not in ("toy.yaml", "__pycache__")
    ] == before
    found = json.loads(check("--smoke", "--json").stdout)
    assert found["smoke"][0].startswith("smoke: one small iteration of each phase ran through")


def test_a_trial_finds_what_only_responses_show() -> None:
    assert check(rewards=[{"own:Fails": None}]).exit_code == 0
    (line,) = told(check("--smoke", rewards=[{"own:Fails": None}]))
    assert line.startswith(
        "--smoke: one small iteration went wrong (PolicyGradient, reward): `reward` of `Fails`"
    )


def test_more_prompts_than_examples_is_said_in_words() -> None:
    result = check("train.prompts=500")
    assert result.exit_code == 0
    assert "train 3 (fewer than `prompts: 500`: an iteration draws each about 167 times)" in result.output


def test_data_that_is_not_there_or_empty() -> None:
    Path("data/val.txt").write_text("")
    (line,) = told(check(evaluate={"split": "val"}))
    assert line == f"{at('task')}: task `Lines` has no examples in `val` ({at('split')}: evaluate.split)"
    Path("data/train.txt").unlink()
    train, val = told(check(evaluate={"split": "valu"}))
    where = f"{at('task')}: task `Lines`, asked for its examples of"
    data = Path("data").absolute()
    assert train == f"{where} `train`: {data}/train.txt: there is no such file"
    assert val == f"{where} `valu` ({at('split')}: evaluate.split): {data}/valu.txt: there is no such file"


def test_prompts_that_the_policy_cannot_read() -> None:
    Path("data/train.txt").write_text("5 5 5")
    (line,) = told(check())
    said = "policy `Reading` can read none of 3 examples of `train`; the first is `5`: is five"
    assert line == f"{at('policy')}: {said}"
    Path("data/train.txt").write_text("5 1 5")
    result = check()
    assert "note: policy `Reading` leaves out 2 of 3 examples of `train`; the first is `5`" in result.stderr
    assert "data     train 1 (fewer than" in result.output


def test_learning_from_a_log_that_is_not_there() -> None:
    algorithm = {"algorithm": {"own:FromLog": None}, "rewards": None}
    (line,) = told(check(**algorithm))
    said = "`FromLog` learns from logged responses, and the first example of task `Lines` has none"
    assert line.startswith(f"{at('algorithm')}: {said}")
    (line,) = told(check("task.own:Lines.answers=2", **algorithm))
    assert "the stored scores are the reward here, and the first example of task `Lines` has none" in line
    (line,) = told(check(responses="logged"))
    assert line.startswith(f"{at('responses')}: responses come from the log here")
    assert check("task.own:Lines.answers=2", responses="logged").exit_code == 0
    scored = {"algorithm": {"own:Compares": None}}
    (line,) = told(check("task.own:Lines.answers=1", **scored))
    said = "`Compares` compares at least 2 responses to a prompt, and no example in `train` of task `Lines` has more"
    assert line == f"{at('algorithm')}: {said} than 1"
    assert check("task.own:Lines.answers=2", **scored).exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_with_other_faults() -> None:
    models = {"reference": {"of": str(Path("data").absolute())}}
    device, copied = told(check(device="cuda", models=models, rewards=["kl"]))
    assert device == f"{at('device')}: device: cuda: no such device here; `device: auto` takes what there is"
    assert "models.reference.of: a `own:Reading` policy is not loaded from a folder" in copied
    (line,) = told(check(device="gpu"))
    assert line == f"{at('device')}: device: expected auto, cpu, cuda, cuda:1, … found 'gpu'"


@pytest.mark.parametrize("said", ["Brief", "own:Brief"])
def test_a_reward_is_measured_by_its_name_or_its_component(said: str) -> None:
    parts = {"rewards": [{"own:Brief": {"factor": 2.0}}], "evaluate": {"use": [said]}}
    result = check(**parts)
    assert result.exit_code == 0, result.output
    assert re.search(r"^  evaluate +Brief$", result.output, re.MULTILINE)


def test_large_data_is_looked_at_in_part() -> None:
    result = check(task="own:Large")
    assert result.exit_code == 0, result.output
    assert "data     train 1,000 or more\n" in result.output
    assert "leaves out 166 of the first 1,000 examples of `train`" in result.stderr
    assert sys.modules["own"].Many.read < 2_000  # type: ignore[attr-defined]


def test_nothing_is_fetched() -> None:
    result = check(task="own:Elsewhere", policy="own:Remote")
    assert result.exit_code == 0, result.output
    for what in ("task `Elsewhere`", "policy `Remote`"):
        assert f"note: {what} is not looked at: what it reads is not on this machine" in result.stderr
    assert "data" not in result.stdout


def test_check_changes_nothing() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    assert check(deterministic=True).exit_code == 0
    assert torch.are_deterministic_algorithms_enabled() is before
    assert not Path("runs").exists()
