"""Whatever a user or a component gets wrong ends in one readable message: where, what was found, what to do.

Exit code 2 and no run directory before a run begins, 1 in it; a traceback only for `--debug`. Each case
changes one thing in a pipeline that works; `bad/misbehaving.py` holds components that each do one thing wrong.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rlalign.cli.commands import program
from rlalign.config.registry import Registry
from rlalign.interface.component import Component
from rlalign.testing import ComponentTests

BAD = Path(__file__).parent / "bad"
GOOD: dict[str, Any] = {
    "task": "bandit",
    "policy": {"table": {"actions": 3}},
    "rewards": ["bandit-payout"],
    "algorithm": "rloo",
    "generation": {"samples": 4, "max_new_tokens": 1},
    "train": {"iterations": 1, "prompts": 4},
    "folder": str(BAD),
}
LOGGED = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": ["rlalign.testing:TokenSum"],
    "algorithm": "misbehaving:Algorithm",
}


def reward(name: str) -> dict[str, Any]:
    return {"rewards": ["bandit-payout", f"misbehaving:{name}"]}


def algorithm(name: str) -> dict[str, Any]:
    return {"algorithm": f"misbehaving:{name}"}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(change: dict[str, Any], *arguments: str) -> Result:
    Path("p.yaml").write_text(yaml.dump({**copy.deepcopy(GOOD), **change}, sort_keys=False))
    return CliRunner().invoke(program, ["run", "p.yaml", "--plain", *arguments])


def refused(result: Result, code: int, *parts: str) -> None:
    """One message, with these parts, and nothing that only its author could read."""
    assert result.exit_code == code, result.output
    message = result.stderr.strip()
    assert message.startswith("error: ")
    for part in parts:
        assert part in message
    for noise in ("Traceback", " object at 0x", "--debug", "validation error", "site-packages"):
        assert noise not in message
    assert len(message.splitlines()) == 1


def test_the_pipeline_that_every_case_changes_works() -> None:
    assert run({}).exit_code == 0


# -- before the run: exit code 2, and no run directory ----------------------------------------------

BEFORE = {
    "beams in training": ({"generation": {"beams": 4, "samples": 2}}, "generation.beams", "belongs under `evaluate`"),
    "no logged responses": ({"responses": "logged"}, "p.yaml:15", "the first example of task", "`responses: sampled`"),
    "unknown key": ({"algoritm": "rloo"}, "p.yaml:15: algoritm", "did you mean `algorithm`?"),
    "unknown option": ({"rewards": [{"kl": {"coeff": 1}}]}, "p.yaml:7: rewards[0].kl.coeff", "`coef`?"),
    "unknown component": ({"algorithm": "rlo"}, "p.yaml:7: algorithm.rlo", "did you mean `rloo` or `r-lol` or `rdo`?"),
    "wrong type": ({"train": {"iterations": "ten"}}, "train.iterations", "a whole number", "'ten'"),
    "number below its bound": ({"train": {"iterations": 0}}, "p.yaml:12", "more than 0, found 0"),
    "NaN option": ({"rewards": [{"kl": {"coef": float("nan")}}]}, "a finite number, found nan"),
    "no length": ({"train": {"prompts": 4}}, "`iterations` or `passes`"),
    "no algorithm": ({"algorithm": None}, "`algorithm` is missing", "for instance"),
    "module without the class": (reward("Nope"), "p.yaml:7", "`misbehaving` has no `Nope`"),
    "module that fails to import": (
        {"rewards": ["broken_import:Reward"]},
        "p.yaml:6",
        "cannot be imported",
        "no_such_library",
    ),
    "no component": (reward("NotAComponent"), "p.yaml:7", "must derive from rlalign's Component"),
    "no Config": (reward("NoConfig"), "p.yaml:7", "must be a pydantic model"),
    "loose Config": (reward("LooseConfig"), "p.yaml:7", "misspelt options without a word"),
    "__init__ raises": (reward("BreaksInit"), "p.yaml:7: rewards[1]: `BreaksInit` refuses its options: no such size"),
    "misspelt hook": (reward("Misspelt"), "p.yaml:7", "`iteration_dome`", "did you mean `iteration_done`?"),
    "hook without its mark": (reward("Unmarked"), "p.yaml:7", "method `reward` without `@hookimpl`", "mark it"),
    "hook asks for too much": (
        reward("TooManyArguments"),
        "`TooManyArguments` (misbehaving, p.yaml:7) asks for `tokenizer`; the hook gives run, rollout",
    ),
    "reward in algorithm": (algorithm("ScoresToo"), "p.yaml:7", "list it under `rewards`"),
    "rollout in algorithm": (algorithm("Samples"), "p.yaml:7", "list it under `responses`"),
    "algorithm in rewards": ({"rewards": ["rloo"]}, "p.yaml:6", "components with a `reward` hook"),
    "two advantages": (
        {"algorithm": ["rloo", "reinforce"]},
        "`rloo` (rlalign_plugin_reinforce, p.yaml:8)",
        "`reinforce` (rlalign_plugin_reinforce, p.yaml:9)",
        "remove one",
    ),
    "two sources": ({"responses": ["sampled", "logged"]}, "p.yaml:15: responses", "found ['sampled', 'logged']"),
    "no source": ({"responses": "bandit-payout"}, "p.yaml:15", "a component with a `rollout` hook"),
    "empty mix": ({"responses": "mix"}, "p.yaml:15: responses: `mix`", "name at least one source, for example"),
    "mix of the unknown": ({"responses": {"mix": {"sampeld": 1}}}, "p.yaml:15: mix.sampeld", "`sampled`?"),
    "mix of none": ({"responses": {"mix": {"sampled": 0}}}, "p.yaml:15", "a positive number", "got 0"),
    "mix of a reward": ({"responses": {"mix": {"kl": 2}}}, "p.yaml:15: mix.kl", "no source of responses"),
    "wrapper of no reward": (
        {"rewards": [{"clip": {"high": 1.0}}, "bandit-payout"]},
        "`clip` (rlalign, p.yaml:6)",
        "there are none; move it down",
    ),
    "wrapper of no advantage": ({"algorithm": ["best-of", "rloo"]}, "`best-of` (rlalign, p.yaml:8)", "move it down"),
    "wrapper above what it wraps": (
        {"algorithm": ["misbehaving:Algorithm", "best-of", "rloo"]},
        "`best-of` (rlalign, p.yaml:9) wraps `advantage`",
        "`rloo` (rlalign_plugin_reinforce, p.yaml:10)",
        "under what it wraps",
    ),
    "wrapper of no metric": (
        {"rewards": ["bandit-payout"], "evaluate": {"use": [{"clip": {"high": 1.0}}]}},
        "`clip` (rlalign, p.yaml:17)",
        "in `use`",
    ),
    "wrapper of loss": (algorithm("WrapsLoss"), "wraps `loss`; only reward, advantage, update can be"),
    "weight on a wrapper": (
        {"rewards": ["bandit-payout", {"clip": {"high": 1.0}, "weight": 2}]},
        "`clip` (rlalign, p.yaml:7)",
        "takes no weight; put it on what it wraps",
    ),
    "clip of nothing": ({"rewards": ["bandit-payout", "clip"]}, "p.yaml:7", "give `low`, `high` or both"),
    "one name twice": ({"rewards": ["kl", "kl"]}, "p.yaml:7", "the item at p.yaml:6 is named `kl` too", "`as: …`"),
    "unknown need": (reward("NeedsTheUnknown"), "p.yaml:7", "`reference.perplexity`, which no model gives"),
    "unknown model": (reward("NeedsAnUnknownModel"), "p.yaml:7", "model `judge` without saying its role"),
    "values of a policy": (reward("NeedsValuesOfAPolicy"), "`policy.values` is needed", "no value"),
    "roles that conflict": (
        {"rewards": ["bandit-payout", "kl", "misbehaving:LaggingReference"]},
        "p.yaml:8",
        "`reference` as lagging, but `kl` wants it as frozen",
    ),
    "loss that trains nothing": (algorithm("TrainsNothing"), "p.yaml:7", 'needs trains = ("policy",)'),
    "training the frozen": (algorithm("TrainsTheReference"), "p.yaml:7", "trains `reference`, which is frozen"),
    "models nobody uses": ({"models": {"value": {"of": "start"}}}, "models.value: no component uses"),
    "source without mix": (
        {"algorithm": [{"rloo": None, "source": "logged"}]},
        "p.yaml:8: `source: logged` needs `responses: {mix: {logged: …}}`",
        "from `sampled`",
    ),
    "source of a reward": (
        {"rewards": [{"bandit-payout": None, "source": "sampled"}]},
        "p.yaml:6: `source` restricts a loss, and `bandit-payout` has none",
    ),
    "KL twice": (
        {"rewards": ["bandit-payout", "kl", {"kl": None, "as": "again"}]},
        "`kl` (p.yaml:7) and `again` (p.yaml:8)",
        "remove one (or set `together: true` on kl)",
    ),
    "too few samples": ({"generation": {"samples": 1}}, "`rloo` needs at least 2", "gets 1; set generation.samples"),
    "greedy training": ({"generation": {"samples": 2, "greedy": True}}, "generation.greedy", "leave it out"),
    "no training examples": ({"task": {"misbehaving:Data": {"train": 0}}}, "p.yaml:1: task `Data`", "in `train`"),
    "no examples to evaluate on": (
        {"task": {"misbehaving:Data": {"val": 0}}, "evaluate": {}},
        "p.yaml:1: task `Data` has no examples in `val`",
    ),
    "task that raises": (
        {"task": "misbehaving:RaisingData"},
        "p.yaml:1: task `RaisingData`, asked for its examples of `train` raised FileNotFoundError",
        "/data/prompts.jsonl",
    ),
    "task of dicts": ({"task": "misbehaving:DictData"}, "p.yaml:1: task `DictData` must give Examples, got a dict"),
    "policy that cannot be built": (
        {"policy": {"table": {"actions": 3, "end": "stop"}}},
        "end: `stop` is not among the actions 0, 1, 2",
    ),
    "no such device": ({"device": "cuda:99"}, "device: cuda:99", "device: auto"),
}  # fmt: skip


@pytest.mark.parametrize("case", BEFORE)
def test_refused_before_the_run(case: str) -> None:
    change, *parts = BEFORE[case]
    if case == "no such device":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there are devices here")
    refused(run(change), 2, *parts)
    assert not Path("runs").exists()


def test_a_model_used_in_one_phase_may_be_described_for_all() -> None:
    phases = [{"name": "one"}, {"name": "two", "rewards": ["bandit-payout", "kl"]}]
    assert run({"models": {"reference": {"of": "start"}}, "phases": phases}).exit_code == 0


def test_missing_file_and_empty_file() -> None:
    Path("pipeline.yaml").write_text("")
    found = CliRunner().invoke(program, ["run", "pipelin.yaml"])
    refused(found, 2, "pipelin.yaml: no such file; did you mean `pipeline.yaml`?")
    refused(CliRunner().invoke(program, ["run", "pipeline.yaml"]), 2, "the file is empty")


def test_several_mistakes_are_told_at_once() -> None:
    result = run({"algorithm": "rlo", "rewards": [{"kl": {"coeff": 1}}], "train": {"iterations": "x"}})
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 3


def installed(folder: Path, name: str, entry_point: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rlalign]\n{entry_point}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to install into, with the modules of `bad/` beside it."""
    monkeypatch.syspath_prepend(BAD)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


def test_duplicate_names_of_two_packages(site: Path) -> None:
    """Both distributions are named, and how to say which."""
    for name in ("rlalign-plugin-one", "rlalign-plugin-two"):
        installed(site, name, "twin = misbehaving:Reward")
    both = "rlalign-plugin-one 1.0 and rlalign-plugin-two 1.0"
    refused(run({"rewards": ["twin"]}), 2, "p.yaml:6", both, "`rlalign-plugin-one:twin`")
    assert run({"rewards": ["rlalign-plugin-two:twin"]}).exit_code == 0


def test_a_plugin_that_fails_to_import(site: Path) -> None:
    """Nobody who does not name it is disturbed; `plugins --check` and whoever names it learn why."""
    installed(site, "rlalign-plugin-broken", "broken = broken_import:Reward")
    assert run({}).exit_code == 0
    said = "`broken` (rlalign-plugin-broken 1.0) cannot be imported: ModuleNotFoundError"
    refused(run({"rewards": ["broken"]}), 2, said)


# -- in the run: exit code 1 ------------------------------------------------------------------------

BATCH = "(the batch is in runs/p/bad-batch)"
DURING = {
    "reward raises": (
        reward("Raises"),
        "`reward` of `Raises` (misbehaving, p.yaml:7) raised KeyError: 'toxicity' (misbehaving.py:",
    ),
    "NaN reward": (reward("NaN"), "`NaN` is not finite for 1 of 16 responses", "`train-", "on_bad_reward: drop"),
    "too few scores": (reward("OneTooFew"), "(misbehaving, p.yaml:7) scored (15,)", "(16,) or (16, 1)"),
    "scores in a list": (reward("AList"), "must give Score(tensor), got list"),
    "no Score": (reward("NoScore"), "must return a Score, got a Tensor"),
    "None": (reward("Nothing"), "must return a Score, got nothing; is a `return` missing?"),
    "metric of another length": (reward("BadMetric"), "metric `odd` must be a tensor of (16,)", "got (15,)"),
    "wrapper loses a score": (reward("Renames"), "must return the scores ['bandit-payout'], got []"),
    "wrapper gives one score": (reward("ReturnsOne"), "must return the list of scores it wraps"),
    "setup raises": (reward("BreaksSetup"), "p.yaml:7: `setup` of `BreaksSetup`", "/nowhere/weights.bin"),
    "assigning to run": (reward("AssignsToRun"), "p.yaml:7", "run.beta cannot be assigned"),
    "gradient outside update": (
        reward("AsksForAGradient"),
        "`iteration_done` of `AsksForAGradient` (misbehaving, p.yaml:7)",
        "in an `update` hook, `learner.parameters` is there",
    ),
    "NaN loss": (algorithm("NaNLoss"), "the loss of `NaNLoss` is nan", BATCH),
    "vector loss": (algorithm("VectorLoss"), "p.yaml:7", "scalar tensor, got (16,)", "mean_over_tokens", BATCH),
    "tensor for a Loss": (algorithm("TensorLoss"), "p.yaml:7", "must return a Loss, got a Tensor", BATCH),
    "loss without graph": (algorithm("NoGraph"), "p.yaml:7", "does not depend on `now`", "without detach"),
    "no loss": (algorithm("NoLoss"), "no component returned a loss", "is a `return` missing?"),
    "metric that is no tensor": (algorithm("FloatMetric"), "p.yaml:7", "`kl` must be a scalar tensor, got float"),
    "infinite gradient": (algorithm("InfiniteGradient"), "gradient of InfiniteGradient", "not finite", BATCH),
    "undeclared entropy": (algorithm("UndeclaredEntropy"), "p.yaml:7", "declares `entropy` in its `needs`"),
    "undeclared old log-probs": (algorithm("UndeclaredOld"), "p.yaml:7", "needs `old_logprobs`"),
    "tensor for a Batch": (algorithm("AdvantageATensor"), "p.yaml:7", "must return a Batch, got a Tensor"),
    "wrapped tensor for a Batch": (
        {"algorithm": ["misbehaving:AdvantageATensor", "best-of"]},
        "`advantage` of `AdvantageATensor` (misbehaving, p.yaml:8) must return a Batch",
    ),
    "advantage too long": (algorithm("AdvantageTooLong"), "p.yaml:7", "a tensor of (16, 1), got (17, 1)"),
    "NaN advantage": (algorithm("AdvantageNaN"), "p.yaml:7", "to 16 of 16 responses, the first to example `train-"),
    "advantage raises": (algorithm("AdvantageRaises"), "`AdvantageRaises` (misbehaving, p.yaml:7) raised"),
    "column too short": (algorithm("AdvantageBadColumn"), "p.yaml:7", "`weight` has 2 rows for 16 responses"),
    "step_ready gives a number": (algorithm("StepReadyNumber"), "p.yaml:7", "must return a bool, got a float"),
    "update gives a number": (algorithm("UpdateANumber"), "p.yaml:7", "must return a Mapping, got a float"),
    "update gives text": (algorithm("UpdateText"), "p.yaml:7", "numbers by name, got {'state': 'fine'}"),
    "frozen model written": (algorithm("WritesToTheReference"), "`iteration_done` of", "of the model `reference`"),
    "metric that is text": ({"evaluate": {"use": ["misbehaving:MeasuresText"]}}, "p.yaml:17", "{'verdict': 'good'}"),
    "metric without name": ({"evaluate": {"use": ["misbehaving:MeasuresANumber"]}}, "p.yaml:17", "got a float"),
    "postprocess raises": (
        {"task": "misbehaving:RaisingPostprocess"},
        "`postprocess` of task `RaisingPostprocess` raised ValueError: no closing tag",
    ),
    "too few logged responses": (
        {**LOGGED, "responses": {"mix": {"logged": 7}}},
        "(rlalign, p.yaml:14)",
        "logged responses, 7 are needed",
    ),
    "stored scores of sampled responses": (
        {**LOGGED, "rewards": ["logged"], "responses": {"mix": {"logged": 1, "sampled": 2}}},
        "`logged` (rlalign, p.yaml:14)",
        "without a stored score; add a reward",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DURING)
def test_stopped_in_the_run(case: str) -> None:
    change, *parts = DURING[case]
    refused(run(change), 1, *parts)
    run_folder = Path("runs/p")
    assert not (run_folder / "model").exists()
    assert not list(Path("runs").rglob(".tmp-*"))
    if BATCH in parts:
        assert (run_folder / "bad-batch/batch.safetensors").is_file()
        assert len(json.loads((run_folder / "bad-batch/texts.json").read_text())) == 16


def test_a_score_goes_by_its_place_in_the_file_whatever_it_calls_itself() -> None:
    assert run(reward("OtherName")).exit_code == 0
    (line,) = Path("runs/p/metrics.jsonl").read_text().splitlines()
    assert "reward/OtherName" in json.loads(line)


def test_debug_shows_the_traceback() -> None:
    result = run(reward("Raises"), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "KeyError" in result.stderr and "misbehaving.py" in result.stderr


# -- where the run goes -----------------------------------------------------------------------------


def test_a_run_directory_that_exists() -> None:
    assert run({}, "--name", "mine").exit_code == 0
    before = sorted(Path("runs").rglob("*"))
    refused(run({}, "--name", "mine"), 2, "runs/mine: this run exists", "rlalign run --resume runs/mine")
    assert sorted(Path("runs").rglob("*")) == before


def test_a_folder_that_is_no_run() -> None:
    Path("runs/mine").mkdir(parents=True)
    refused(run({}, "--name", "mine"), 2, "runs/mine: exists and is no run of rlalign", "another name")
    refused(CliRunner().invoke(program, ["run", "--resume", "runs/mine"]), 2, "is no run of rlalign")
    assert not list(Path("runs/mine").iterdir())


def test_a_place_that_cannot_be_written() -> None:
    Path("runs").write_text("a file")
    refused(run({}), 2, "runs", "no run can be created here")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    Path("runs").mkdir(mode=0o500)
    refused(run({}), 2, "no run can be created here: Permission denied")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_run_names_that_are_none(name: str) -> None:
    refused(run({}, "--name", name), 2, f"run name {name!r}")
    assert not Path("runs").exists()


# -- what a run cannot see, the kit does ------------------------------------------------------------


class _Coupled(ComponentTests):
    component: type[Component] | str = Component

    @property
    def cls(self) -> type[Component]:
        return Registry(trust=True).load("misbehaving:CouplesTheGroup", BAD).cls

    @property
    def extra(self) -> dict[str, type[Any]]:
        return {"under-test": self.cls}


def test_the_kit_catches_a_unit_that_is_too_small(tmp_path: Path) -> None:
    from rlalign.testing import Bench

    kit = _Coupled()
    bench = Bench(tmp_path, kit.whole_pipeline(), kit.extra)
    with pytest.raises(AssertionError, match="route"):
        kit.test_loss_is_a_sum_over_units(bench)
