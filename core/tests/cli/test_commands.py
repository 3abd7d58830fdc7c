"""The command line: what each command prints, where options may stand, what it costs to ask for help."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rlalign.cli.commands import program
from rlalign.config import registry

PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 1, "prompts": 2, "lr": 0.01},
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(yaml.dump(PIPELINE, sort_keys=False))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, list(arguments), prog_name="rlalign")


def ran(*arguments: str) -> dict[str, Any]:
    """Run, and give the resolved pipeline of the one run there is."""
    result = call("run", "toy.yaml", "--plain", *arguments)
    assert result.exit_code == 0, result.output
    (folder,) = Path("runs").iterdir()
    return yaml.safe_load((folder / "pipeline.yaml").read_text())  # type: ignore[no-any-return]


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "rlalign.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# -- asking costs nothing ---------------------------------------------------------------------------

LIGHT = {"--help": {"click", "rlalign"}, "plugins": {"click", "rlalign", "pydantic"}}


@pytest.mark.parametrize("command", LIGHT)
def test_help_and_plugins_import_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom rlalign.cli.commands import program\nfrom click.testing import CliRunner\n"
        f"assert CliRunner().invoke(program, [{command!r}]).exit_code == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    third_party = {
        "torch",
        "numpy",
        "pydantic",
        "omegaconf",
        "yaml",
        "pluggy",
        "safetensors",
        "rich",
        "tensorboardX",
    }
    assert loaded & third_party <= LIGHT[command]


@pytest.mark.parametrize("command", LIGHT)
def test_help_and_plugins_answer_at_once(command: str) -> None:
    """Processor time, the least of six tries: other processes may be in the way."""
    took = [math.inf]
    while min(took) >= 0.7 and len(took) <= 6:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert alone(command).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.7


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["-h"],
        ["run", "--help"],
        ["check", "-h"],
        ["plugins", "-h"],
        ["eval", "-h"],
        ["sample", "-h"],
        ["export", "-h"],
        ["runs", "-h"],
        ["clean", "-h"],
    ],
)
def test_help(command: list[str]) -> None:
    result = call(*command)
    assert result.exit_code == 0
    if command == ["--help"]:
        for name in ("run", "check", "plugins", "eval", "sample", "export", "runs", "clean"):
            assert name in result.output
    if command == ["run", "--help"]:
        for option in (
            "--seed",
            "--name",
            "--runs",
            "--resume",
            "--previous",
            "--inexact",
            "--plain",
            "--debug",
        ):
            assert option in result.output


def test_version() -> None:
    assert "rlalign, version 0." in call("--version").output


# -- plugins ----------------------------------------------------------------------------------------


def test_plugins_lists_names_by_kind_with_a_sentence() -> None:
    blocks: dict[str, dict[str, str]] = {}
    kind = ""
    for line in call("plugins").output.splitlines():
        if line.startswith("  "):
            name, _, sentence = line.strip().partition(" ")
            blocks[kind][name] = sentence.strip()
        elif line.endswith(":"):
            kind = line[:-1].partition(" (")[0]
            blocks[kind] = {}
    assert blocks["wrappers of rewards"]["clip"] == "Scores held between two bounds."
    assert (
        "kl" in blocks["rewards"]
        and "collect" in blocks["algorithms"]
        and "mix" in blocks["sources of responses"]
    )
    assert "best-of" in blocks["wrappers of advantages"]
    assert all(list(rows) == sorted(rows) and all(rows.values()) for rows in blocks.values())


def test_plugins_tells_all_of_one() -> None:
    text = call("plugins", "gate").output
    assert text.startswith("gate: Other scores count only where one of them reaches a threshold.\n\n")
    assert "kind       reward wrapper\nplace      rewards or evaluate.use, below what it wraps\n" in text
    assert "hooks      reward (wrapper)\n" in text and "package    rlalign 0.1.0\n" in text
    assert "  at_least: required\n      where the gate opens\n" in text
    assert "level" not in text and "better" not in text
    assert "level      sentence\nbetter     higher\nhooks " in call("plugins", "kl").output
    about = json.loads(call("plugins", "kl", "--json").output)
    assert (about["level"], about["higher_is_better"], about["bounds"]) == ("sentence", True, [None, None])
    assert about["models"] == {"reference": "frozen"} and about["places"] == ["rewards", "evaluate.use"]
    assert {key: value for key, value in about["options"][0].items() if key != "meaning"} == {
        "name": "coef",
        "required": False,
        "default": 0.1,
    }
    assert json.loads(call("plugins", "collect", "--json").output)["responses"] == "sampled"
    assert "RAFT" in json.loads(call("plugins", "best-of", "--json").output)["paper"]


def test_plugins_of_a_misspelt_name() -> None:
    result = call("plugins", "best-off")
    assert result.exit_code == 2
    assert result.stderr == "error: no component named `best-off` is installed; did you mean `best-of`?\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to install into; besides what it holds, only rlalign itself is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def few(group: str) -> list[EntryPoint]:
        here = {"rlalign", *(one.name for one in distributions(path=[str(folder)]))}
        return [point for point in entry_points(group=group) if point.dist and point.dist.name in here]

    monkeypatch.setattr(registry, "entry_points", few)
    return folder


@pytest.mark.usefixtures("site")
def test_plugins_as_json() -> None:
    rows = json.loads(call("plugins", "--json").output)
    kl = next(row for row in rows if row["name"] == "kl")
    assert (kl["kind"], kl["distribution"], kl["version"]) == ("reward", "rlalign", "0.1.0")
    assert json.loads(call("plugins", "--json", "--check").output) == rows


def installed(folder: Path, name: str, entry_points: str, module: str = "") -> Path:
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[rlalign]\n{entry_points}\n")
    if module:
        (folder / f"{name.replace('-', '_')}.py").write_text(module)
    return folder


def test_plugins_check_tells_what_is_broken_and_lists_the_rest(site: Path) -> None:
    installed(site, "rlalign-plugin-torn", "torn = rlalign_plugin_torn:Reward", "import no_such_library\n")
    installed(site, "rlalign-plugin-odd", "odd = rlalign_plugin_odd:Reward", "class Reward: pass\n")
    plain = call("plugins")
    assert plain.exit_code == 0 and "torn" in plain.stdout  # installed is not imported
    result = call("plugins", "--check")
    assert result.exit_code == 1
    assert "`torn` (rlalign-plugin-torn 1.2) cannot be imported: ModuleNotFoundError" in result.stderr
    assert "`odd`: Reward is no component" in result.stderr
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.stderr
    sound, _, broken = result.stdout.partition("broken:\n")
    assert [line.split()[0] for line in broken.splitlines()] == ["odd", "torn"] and "  kl " in sound
    alone = call("plugins", "torn")
    assert alone.exit_code == 2 and "ModuleNotFoundError" in alone.stderr
    as_json = call("plugins", "--check", "--json")
    assert as_json.exit_code == 1
    errors = {row["name"]: row["error"] for row in json.loads(as_json.stdout) if "error" in row}
    assert set(errors) == {"torn", "odd"}


def test_plugins_check_tells_of_names_installed_twice(site: Path) -> None:
    for name in ("rlalign-plugin-a", "rlalign-plugin-b"):
        installed(site, name, "twin = rlalign.builtin.kl:KL")
    result = call("plugins", "--check")
    assert result.exit_code == 1
    assert "`twin` is in rlalign-plugin-a 1.2 and rlalign-plugin-b 1.2" in result.stderr


SCORES = '''
from pydantic import Field
from rlalign import Component, Options, hookimpl

class Both(Component):
    """A share and a spread."""
    higher_is_better = False
    bounds = (0, 100.0)

    class Config(Options):
        """Options of `both`."""
        case: str = Field("mixed", description="of letters")

    def signature(self):
        return f"case:{self.config.case}"

    @hookimpl
    def reward(self, rollout): ...

    @hookimpl
    def evaluate(self, rollout): ...

class Corpus(Component):
    """A spread."""
    bounds = (0, None)

    @hookimpl
    def evaluate(self, rollout): ...

class Late(Component):
    """Says what it is once it is set up."""
    bounds = (None, 1)

    def signature(self):
        return f"hash:{self.digest}"

    @hookimpl
    def reward(self, rollout): ...
'''


def test_plugins_tells_what_a_score_is(site: Path) -> None:
    points = "\n".join(
        f"{name.lower()} = rlalign_plugin_scores:{name}" for name in ("Both", "Corpus", "Late")
    )
    installed(site, "rlalign-plugin-scores", points, SCORES)
    rewards, _, rest = call("plugins").output.partition("\nwrappers of rewards")
    assert "\n  both " in rewards and "\n  late " in rewards
    assert "metrics (of all responses together; under `evaluate.use` only):\n  corpus " in rest
    told = (
        "level      sentence and corpus",
        "better     lower",
        "bounds     0 to 100",
        "signature  case:mixed",
    )
    assert "\n".join(told) in call("plugins", "both").output
    assert (
        "level      corpus\nbetter     higher\nbounds     0 or more\nhooks "
        in call("plugins", "corpus").output
    )
    assert "bounds     1 or less\nhooks " in call("plugins", "late").output
    assert json.loads(call("plugins", "both", "--json").output)["bounds"] == [0, 100]
    listed = {row["name"]: row.get("level") for row in json.loads(call("plugins", "--json").output)}
    assert listed["both"] == "sentence and corpus" and listed["kl"] == "sentence"
    assert listed["corpus"] == "corpus" and listed["clip"] is None


# -- check ------------------------------------------------------------------------------------------


def test_check_describes_one_phase() -> None:
    result = call("check", "toy.yaml", "train.iterations=7")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "toy: 1 phase; policy rlalign.testing:Logits, seed 0",
        "",
        "PolicyGradient:",
        "  task     Numbers",
        "  data     train 6",
        "  rollout  sampled",
        "  reward   sum",
        "  loss     PolicyGradient",
        "  models   policy built",
        "  trains   policy",
        "  needs    logprobs",
        "  memory   micro-batches of 16,384 padded tokens",
        "  length   7 iterations of 2 prompts, 1 optimiser step",
        "",
        "batch:",
        "  2 prompts × 2 samples = 4 responses",
        "  4 responses × 7 tokens = at most 28 tokens",
        "  1 minibatch of 2 prompts (4 responses) = 1 optimiser step",
        "  7 iterations: 28 responses, 7 optimiser steps, 2.33 passes over 6 prompts",
        "",
        "data of Numbers: 6 rows of `train`",
        "    prompt     text: '0'",
        "    responses  1 to 5 each",
        "    scores     1 to 5 each",
    ]
    assert not Path("runs").exists()


def test_check_describes_several_phases() -> None:
    phases = [{"name": "warm", "responses": "logged"}, {"name": "align", "rewards": ["kl"]}]
    Path("two.yaml").write_text(yaml.dump({**PIPELINE, "phases": phases}))
    output = call("check", "two.yaml").output
    assert output.startswith("two: 2 phases; ")
    for part in (
        "\nwarm:\n",
        "\nalign:\n",
        "rollout  logged",
        "policy built",
        "policy kept, reference built",
    ):
        assert part in output


def test_check_loads_no_model() -> None:
    policy = {"rlalign_plugin_nowhere:Policy": None}
    result = call("check", "toy.yaml", f"policy={json.dumps(policy)}")
    assert result.exit_code == 2 and result.stderr.startswith("error: command line")
    assert call("check", "nothing.yaml").exit_code == 2


# -- run --------------------------------------------------------------------------------------------


def test_overrides_and_options_in_any_order() -> None:
    saved = ran(
        "train.iterations=2", "--seed", "7", "generation.samples=3", "--name", "mine", "rewards.sum.weight=2"
    )
    assert saved["train"]["iterations"] == 2 and saved["generation"]["samples"] == 3
    assert saved["seed"] == 7 and saved["rewards"][0]["weight"] == 2
    assert Path("runs/mine/metrics.jsonl").read_text().count("\n") == 2


def test_options_before_the_file() -> None:
    result = call("run", "--plain", "--seed", "3", "seed=5", "toy.yaml")
    assert result.exit_code == 0
    assert yaml.safe_load(Path("runs/toy/pipeline.yaml").read_text())["seed"] == 3  # --seed stands above


def test_values_may_hold_an_equals_sign_and_files_may_not() -> None:
    result = call("run", "toy.yaml", "policy.path=a=b")
    assert result.exit_code == 2 and "unknown option" in result.stderr


def test_runs_are_numbered_and_live_where_asked() -> None:
    for _ in range(3):
        assert call("run", "toy.yaml", "--plain", "--runs", "elsewhere").exit_code == 0
    assert sorted(p.name for p in Path("elsewhere").iterdir()) == ["toy", "toy-2", "toy-3"]
    assert not Path("runs").exists()


def test_a_run_says_what_it_does_and_where_it_went() -> None:
    output = call("run", "toy.yaml", "--plain").output
    for part in (
        "run toy in runs/toy: PolicyGradient",
        "PolicyGradient: 1 iteration",
        "finished",
        "model: runs/toy/model",
    ):
        assert part in output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run"], "name a pipeline file: `rlalign run pipeline.yaml`"),
        (["run", "train.lr=1"], "name a pipeline file"),
        (["run", "toy.yaml", "other.yaml"], "one pipeline file at a time; got toy.yaml, other.yaml"),
        (["run", "toy.yaml", "--seed", "-1"], "--seed"),
        (["run", "toy.yaml", "--inexact"], "--extend, --previous and --inexact go with --resume"),
        (["run", "toy.yaml", "--extend", "3"], "--extend, --previous and --inexact go with --resume"),
        (["run", "toy.yaml", "--sed", "1"], "--seed"),
        (["run", "toy.yaml", "trian.lr=1"], "trian"),
        (["run", "toy.yaml", "train.lr"], "one pipeline file at a time"),
        (["chek", "toy.yaml"], "No such command"),
    ],
)
def test_commands_that_make_no_sense(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("runs").exists()


# -- resume -----------------------------------------------------------------------------------------


@pytest.fixture
def finished() -> bytes:
    """A run that is over; going on with it changes nothing."""
    assert call("run", "toy.yaml", "--plain").exit_code == 0
    return Path("runs/toy/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resume", "runs/toy"],
        ["--resume", "toy"],
        ["--resume=toy"],
        ["--resume", "toy.yaml"],
        ["toy.yaml", "--resume"],
        ["--resume", "toy", "--plain"],
        ["--plain", "toy.yaml", "--resume"],
        ["--resume", "--plain", "runs/toy"],
        ["--resume", "toy", "train.lr=0.01"],
    ],
)
def test_ways_to_name_the_run_to_resume(arguments: list[str], finished: bytes) -> None:
    result = call("run", *arguments)
    assert result.exit_code == 0, result.output
    assert Path("runs/toy/metrics.jsonl").read_bytes() == finished
    assert [p.name for p in Path("runs").iterdir()] == ["toy"]


def test_resume_takes_the_latest_run_of_a_file(finished: bytes) -> None:
    assert call("run", "toy.yaml", "--plain").exit_code == 0
    assert "runs/toy-2" in call("run", "toy.yaml", "--resume", "--plain").output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--resume"], "name the run, `--resume runs/NAME`, or the pipeline file"),
        (["--resume", "nothing"], "runs/nothing: there is no such run. Runs in runs: toy."),
        (["other.yaml", "--resume"], "holds no run of other.yaml to resume"),
        (["--resume", "toy", "--seed", "1"], "a resumed run keeps its seed and its name"),
        (["--resume", "toy", "--name", "x"], "a resumed run keeps its seed and its name"),
        (["--resume", "toy", "train.lr=1"], "the run is finished, so nothing would change"),
        (["--resume", "toy", "seed=1"], "seed: every number so far follows from it"),
        (["--resume", "toy", "--extend", "0"], "--extend"),
        (["--resume", "runs/toy/checkpoints/00000001"], "`rlalign run --resume runs/toy`"),
    ],
)
def test_resumes_that_make_no_sense(arguments: list[str], said: str, finished: bytes) -> None:
    result = call("run", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert Path("runs/toy/metrics.jsonl").read_bytes() == finished


@pytest.mark.parametrize("target", [["--resume", "toy"], ["toy.yaml", "--resume"]])
def test_a_finished_run_is_made_longer_and_changed(target: list[str], finished: bytes) -> None:
    result = call("run", *target, "--extend", "2", "train.lr=0.5", "--plain")
    assert result.exit_code == 0, result.output
    assert "inexact from here on" in result.output and "train.lr changes after 1 iteration" in result.output
    assert Path("runs/toy/metrics.jsonl").read_bytes().startswith(finished)
    assert yaml.safe_load(Path("runs/toy/pipeline.yaml").read_text())["train"]["iterations"] == 3
    again = call("run", *target, "--plain")
    assert "this run is finished" in again.output and "inexact" not in again.output
