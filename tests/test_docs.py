"""The manual says what the code says: signatures, options, examples, commands."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import Field

import rlalign
from rlalign import Component
from rlalign.cli.commands import program
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import (
    MERGED_SECTIONS,
    REPLACED_SECTIONS,
    Distributed,
    Evaluate,
    ItemSettings,
    ModelSpec,
    PipelineSettings,
)
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling, Save, Train
from rlalign.interface import hooks
from rlalign.records import checkpoint, logs
from rlalign.running import loop, workspace
from rlalign.running.checks import WRAPPABLE
from rlalign.running.members import HOOKS, implements
from rlalign.running.report import describe
from rlalign.testing import ComponentTests, TaskTests
from rlalign.testing import run as run_pipeline
from rlalign.testing.bench import Bench, Silence, stop_early

ROOT = Path(__file__).resolve().parents[1]


def _tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = _tables()
PAGES: list[Path] = tables.pages()


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[tuple[str, str, int]]:
    """(what stands behind the opening fence, the block, its line) of every fenced block."""
    opened, lines = None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```") and opened is None:
            opened, lines = (line[3:].strip(), number), []
        elif line.startswith("```"):
            yield opened[0], "\n".join(lines) + "\n", opened[1]
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{page}: a block is not closed"


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{named(page)}:{line}")
        for page in PAGES
        for info, block, line in fences(page)
        if info == language
    ]


def modules() -> list[tuple[str, str]]:
    """Python blocks that say which file of the user's they are, beside the pipeline."""
    found = [(re.match(r"# (\w+\.py)\b", block), block) for page in PAGES for info, block, _ in fences(page)]
    return [(name[1], block) for name, block in found if name]


MODULES = modules()


def says(page: str) -> str:
    return (ROOT / page).read_text()


# -- pages ------------------------------------------------------------------------------------------


def test_the_languages_of_blocks_are_known():
    known = {"", "text", "yaml", "yaml fragment", "python", "python fragment", "python hook", "toml", "json"}
    known |= {
        "shell",
        "shell parsed",
        "text sampled",
    }  # test_tutorials.py runs them, or looks whether they could run
    for page in PAGES:
        for info, _, line in fences(page):
            assert info in known, f"{named(page)}:{line}: ```{info}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_of_options_are_the_code_s(page):
    text = page.read_text()
    assert tables.filled(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"https?://", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("block", blocks("yaml"))
def test_whole_pipelines_can_run(block, tmp_path, monkeypatch, with_example_plugins):
    for name, code in MODULES:
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)  # of another test's
        (tmp_path / name).write_text(code)
    check(block, tmp_path / "pipeline.yaml")


@pytest.mark.parametrize("block", blocks("yaml fragment"))
def test_fragments_are_fragments(block):
    """They parse; and nothing that is a whole pipeline escapes the check above by its mark."""
    data = yaml.safe_load(block)
    assert isinstance(data, dict)
    assert not {"task", "policy"} <= set(data), "a whole pipeline: leave out `fragment`"
    assert set(data) <= {
        "policy",
        "phases",
        *REPLACED_SECTIONS,
        *MERGED_SECTIONS,
        *PipelineSettings.model_fields,
    }


def check(text: str, path: Path) -> str:
    registry = Registry(trust=True)
    pipeline = load_pipeline(path, registry=registry, text=text)
    return describe(pipeline, workspace.plan_phases(pipeline, registry)[0])


# -- hooks.md -----------------------------------------------------------------------------------------


def written() -> dict[str, str]:
    """Each hook as hooks.py writes it: mark and signature."""
    found = {}
    for node in ast.parse(Path(hooks.__file__).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            (mark,) = node.decorator_list
            node.body = [ast.Pass()]
            node.decorator_list = []
            signature = ast.unparse(node).removesuffix(":\n    pass")
            found[node.name] = f"@{ast.unparse(mark)}\n{signature}\n"
    return found


def test_every_hook_is_documented_as_it_is():
    assert set(written()) == set(HOOKS)
    text = says("docs/hooks.md")
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert [re.match(r"`(\w+)`\n", section)[1] for section in sections] == list(HOOKS)
    for hook, section in zip(HOOKS, sections, strict=True):
        documented = re.findall(r"```python hook\n(.*?)```", section, re.DOTALL)
        assert documented == [written()[hook]]
        examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        assert any(f"def {hook}(" in example for example in examples), f"{hook} has no example"


def test_what_can_be_wrapped_is_said():
    text = " ".join(says("docs/hooks.md").split())
    sentence = re.search(r"a wrapper of anything but (.*?), or with nothing", text)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == set(WRAPPABLE)


def test_every_declaration_is_documented():
    table = says("docs/hooks.md").partition("## Declarations")[2].partition("Beside the hooks")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE))
    declared = [
        name for name in Component.__annotations__ if name not in ("name", "config", "source_components")
    ]
    assert list(rows) == declared
    for name, default in rows.items():
        assert ast.literal_eval(default) == getattr(Component, name)


def test_what_a_hook_sees_of_the_run_is_documented():
    text = says("docs/hooks.md")
    for kind, called in ((rlalign.Run, "run"), (rlalign.Learner, "learner")):
        for name, _ in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert re.search(rf"`(?:{called}\.)?{name}\b", text), (
                    f"{called}.{name} is not in docs/hooks.md"
                )


def names() -> dict[str, Any]:
    known = {name: getattr(rlalign, name) for name in rlalign.__all__}
    return {**known, "torch": torch, "replace": replace, "Field": Field, "__name__": "docs"}


EXAMPLES = [param for param in blocks("python") if str(param.id).startswith(("docs/hooks.md", "README.md"))]


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_of_hooks_run(block, tmp_path):
    """Each example takes part in a run, in the place its hook belongs to, and its hooks are called."""
    space = names()
    exec(block, space)
    (cls,) = (c for c in space.values() if isinstance(c, type) and c.__module__ == "docs")
    hooks = [h for h in HOOKS if implements(cls(cls.Config()), h)]
    (hook,) = hooks if len(hooks) == 1 else set(hooks) - {"step_started"}
    kind = implements(cls(cls.Config()), hook)
    pipeline: dict[str, Any] = {
        "task": {"numbers": {"logged": [2, 3]}},
        "policy": "logits",
        "rewards": ["token-sum"],
        "algorithm": ["reinforce"],
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 10, "prompts": 4, "lr": 0.01},
    }
    if hook == "reward":
        pipeline["rewards"].append("documented")
    elif hook == "evaluate":
        pipeline["evaluate"] = {"split": "train", "use": ["documented"]}
    elif hook == "evaluated":
        pipeline |= {"evaluate": {"split": "train"}, "algorithm": ["reinforce", "documented"]}
    elif hook == "rollout":
        pipeline["responses"] = "documented"
    elif hook in ("advantage", "loss") and kind == "plain":
        pipeline["algorithm"] = ["pulls", "documented"] if hook == "advantage" else ["documented"]
    else:
        pipeline["algorithm"].append("documented")
    if hook == "phase_started":
        pipeline["responses"] = "logged"
    called: set[str] = set()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        called.update(h for h in hooks if frame.f_code is vars(cls)[h].__code__)

    sys.setprofile(profile)
    try:
        run_pipeline(tmp_path, pipeline, {"documented": cls, "pulls": _Pulls})
    finally:
        sys.setprofile(None)
    assert called == {*hooks}


class _Pulls(Component):
    """A loss without an advantage of its own."""

    needs = ("logprobs",)
    trains = ("policy",)
    unit = "response"

    @rlalign.hookimpl
    def loss(self, batch: rlalign.Batch, now: rlalign.Outputs) -> rlalign.Loss:
        gain_N = batch.sum_over_chosen(batch.advantage_NT * now.logprobs_NT)
        return rlalign.Loss(-batch.mean_over_responses(gain_N))


# -- python.md ------------------------------------------------------------------------------------------


def test_the_page_about_python_runs(tmp_path, monkeypatch):
    """Its blocks, one after the other, as the cells of a notebook."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "docs"}
    for info, block, line in fences(ROOT / "docs/python.md"):
        assert info == "python"
        exec(compile(block, f"docs/python.md:{line}", "exec"), space)


def test_the_page_about_python_names_all_there_is():
    text = says("docs/python.md")
    for cls in (rlalign.Callbacks, rlalign.Result, rlalign.Opened):
        members = cls.__annotations__ if cls is rlalign.Callbacks else vars(cls)
        for name in members:
            if not name.startswith("_") and name not in INSIDE:
                assert re.search(rf"`(?:result\.)?{name}\b", text), (
                    f"{cls.__name__}.{name} is not in docs/python.md"
                )
    for function in (rlalign.load, rlalign.run, rlalign.resume, rlalign.open):
        for name in inspect.signature(function).parameters:
            assert re.search(rf"\b{name}\b", text), f"{function.__name__}({name}) is not in docs/python.md"


INSIDE = ("data", "leaves_files", "load_run", "load_model", "ready", "where", "rows")
"""Members of `Opened` for the core itself."""


# -- plugins.md -----------------------------------------------------------------------------------------


QUOTED = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_quoted_is_the_file_s(page):
    for path, block in QUOTED.findall(page.read_text()):
        assert block in says(path), f"{path} does not hold this:\n{block}"


@pytest.mark.parametrize("page", ["plugins", "tasks", "samplers"])
def test_every_block_of_the_page_is_quoted(page):
    text = says(f"docs/{page}.md")
    assert len(QUOTED.findall(text)) == len(re.findall(r"^```\w+$", text, re.MULTILINE)) > 0


def test_all_that_a_task_s_tests_can_be_told_is_documented():
    text = says("docs/tasks.md")
    told = {name for cls in (TaskTests, ComponentTests) for name in cls.__annotations__} - {
        "deterministic",
        "exact_gradient",
        "near",
    }
    assert set(re.findall(r"^\| `(\w+)` \| .* \|$", text, re.MULTILINE)) >= told


# -- rewards.md -------------------------------------------------------------------------------------------


def test_the_scores_shown_are_the_scores_given(tmp_path):
    """Each list of rewards on the page, over the responses on the page."""
    text = says("docs/rewards.md")
    (given,) = (json.loads(block) for info, block, _ in fences(ROOT / "docs/rewards.md") if info == "json")
    answers = rlalign.Example("0", given["prompt"], given["responses"], finished=given["finished"])

    class Given(rlalign.Task):
        """The responses of the page."""

        def examples(self, split):
            return [answers]

    for name, code in MODULES:
        (tmp_path / name).write_text(code)
    shown = re.findall(
        r"```yaml fragment\n(rewards:\n[^`]*)```\n\n<!-- scores -->\n\n((?:(?:    .*)?\n)+)", text
    )
    assert len(shown) == text.count("<!-- scores -->") > 5
    for block, table in shown:
        pipeline = {
            "task": "given",
            "policy": "bytes",
            "algorithm": "pulls",
            "responses": "logged",
            "train": {"iterations": 1, "prompts": 1, "dtype": "float64"},
            **yaml.safe_load(block),
        }
        rollout, reward = Bench(tmp_path, pipeline, {"given": Given, "pulls": _Pulls}).rollout(1)
        rows = [["response", *reward.parts, "total"]]
        for i in range(len(rollout)):
            values = [*(part[i] for part in reward.parts.values()), reward.total_N[i]]
            rows.append([str(i + 1), *map(_in_figures, values)])
        cells = [re.split(r" {2,}", line.strip()) for line in table.splitlines() if line.strip()]
        assert cells == rows


def _in_figures(value: torch.Tensor) -> str:
    """A score, or what is paid one after the other."""
    return " + ".join(f"{x:.4g}" for x in value.flatten().tolist() if x or value.ndim == 0).replace(
        "-0", "-0"
    )


# -- observers.md -----------------------------------------------------------------------------------------


def test_the_tracker_runs_as_written(tmp_path):
    """Stopped and resumed: every figure, under the run's own id."""
    for info, block, _ in fences(ROOT / "docs/observers.md"):
        if info == "yaml":
            (tmp_path / "pipeline.yaml").write_text(block)
        elif info == "python":
            (tmp_path / "my_tracker.py").write_text(block)
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    stop_early(loop.start(pipeline, root=tmp_path / "runs", name="one", display=Silence()))
    loop.resume(tmp_path / "runs/one", display=Silence()).run()
    (file,) = (tmp_path / "runs").glob("*.jsonl")
    told = [json.loads(line) for line in file.read_text().splitlines()]
    begun = [said for said in told if said[0] == "begin"]
    assert [said[1:3] for said in begun] == [["a-first-try", ["small"]]] * 2
    assert [said[1] is None for said in told if said[0] == "end"] == [False, True]
    figures = [said for said in told if isinstance(said[0], int) and isinstance(said[1], dict)]
    rows = list(logs.read(tmp_path / "runs/one/metrics.jsonl"))
    assert [step for step, _ in figures] == [row["iteration"] for row in rows]
    for (_, data), row in zip(figures, rows, strict=True):
        known = {key: value for key, value in data.items() if not key.startswith("time/")}
        assert known and known.items() <= row.items()


def test_the_output_shown_is_the_output_given():
    shown = re.findall(r"<!-- output: rlalign (.+?) -->\n\n((?:(?:    .*)?\n)+)", says("docs/plugins.md"))
    assert shown
    for command, text in shown:
        printed = CliRunner().invoke(program, command.split(), prog_name="rlalign").output
        assert textwrap.dedent(text).strip() == printed.strip()


# -- pipeline.md ------------------------------------------------------------------------------------------


def test_every_key_of_a_pipeline_is_documented():
    text = says("docs/pipeline.md")
    for key in ("policy", "phases", *REPLACED_SECTIONS, *MERGED_SECTIONS, *PipelineSettings.model_fields):
        assert f"`{key}`" in text, key
    for model in (Train, Sampling, Evaluate, Save, Distributed, ItemSettings, ModelSpec, PipelineSettings):
        path = f"{model.__module__}:{model.__qualname__}"
        assert f"<!-- options: {path} -->" in text, path


def test_the_errors_shown_are_the_errors_given(tmp_path):
    text = says("docs/pipeline.md").partition("## Errors")[2]
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    (tmp_path / "p.yaml").write_text(
        "task: bandit\npolicy: {table: {actions: 3}}\nrewards:\n- bandit-payout\n- kl: {coeff: 0.1}\n"
        "algorithm: reinforse\ngeneration: {samples: 4}\ntrain: {iterations: 100, prompts: many}\n"
    )
    command = [sys.executable, "-m", "rlalign.cli", "check", "p.yaml"]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (got.returncode, got.stderr) == (2, shown)


# -- runs.md ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    pipeline = {
        "task": "numbers",
        "policy": "logits",
        "rewards": ["token-sum", "kl"],
        "algorithm": ["rloo", "best-of"],
        "generation": {"samples": 2},
        "train": {"iterations": 2, "prompts": 2, "refill": 1},
        "evaluate": {"split": "train"},
    }
    return run_pipeline(tmp_path_factory.mktemp("runs"), pipeline)[0].path


def test_every_field_of_the_metrics_is_documented(finished):
    text = says("docs/runs.md")
    patterns = []
    for cell in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            patterns.append(re.escape(name).replace("<name>", r"[\w-]+").replace("<metric>", r"\w+"))
    patterns = [pattern.replace("<stage>", r"\w+") for pattern in patterns]
    patterns += [r"phase", r"repeat", r"iteration", r"step"]
    rows = list(logs.read(finished / "metrics.jsonl"))
    for field in {name for row in rows for name in row}:
        assert any(re.fullmatch(pattern, field) for pattern in patterns), field
    stages = {name for row in rows for name in row if re.fullmatch(r"time/\w+", name)}
    for stage in stages:
        assert f"`{stage.removeprefix('time/')}`" in text or f"`{stage}`" in text, stage


def test_everything_in_a_run_is_documented(finished):
    text = says("docs/runs.md")
    for path in finished.iterdir():
        assert f"`{path.name}/`" in text or f"`{path.name}`" in text, path.name
    assert len(checkpoint.find(finished / "checkpoints")) == 2


# -- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_the_manual_exist(page):
    """Every `rlalign …` in a block or in the text names a command and options there are."""
    text = page.read_text()
    names = "|".join(program.commands)
    lines = re.findall(rf"^(?:    )?(?:\$ )?(rlalign (?:{names})\b[^\n]*)", text, re.MULTILINE)
    lines += re.findall(rf"`(rlalign (?:{names})\b[^`\n]*)`", text)
    for line in lines:
        words = shlex.split(line.partition(" #")[0])
        command = program.commands[words[1]]
        known = {opt for p in command.params if isinstance(p, click.Option) for opt in p.opts}
        for word in re.findall(r"--[a-z][a-z0-9-]*", " ".join(words[2:])):
            assert word in known, line


# -- architecture.md, README.md ---------------------------------------------------------------------------


def test_every_module_of_the_core_has_its_line():
    section = says("docs/architecture.md").partition("## Modules")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| (?:\*\*)?`([\w.]+)`(?:\*\*)? \| .+ \|$", section, re.MULTILINE)
    source = ROOT / "core/src/rlalign"
    modules = {".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.py")}
    rooms = {name.removesuffix(".__init__") for name in modules} - {"__init__", "__main__", "cli.__main__"}
    assert sorted(listed) == sorted(rooms)


def test_the_floors_drawn_are_the_floors_that_are_checked():
    section = says("docs/architecture.md").partition("## Modules")[2].partition("\n## ")[0]
    (drawing,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    drawn = [
        re.findall(r"(?<!\()\b[a-z]+\b(?!\))", floor.splitlines()[1]) for floor in drawing.split("─ ")[1:]
    ]
    rules = tables.tomllib.loads(says(".importlinter.toml"))["tool"]["importlinter"]["contracts"]
    (checked,) = (rule["layers"] for rule in rules if rule["type"] == "layers")
    assert drawn == [floor.split(" | ") for floor in checked]


def test_what_is_planned_stands_in_one_place():
    for page in PAGES:
        if named(page) not in ("docs/architecture.md", "CHANGELOG.md"):
            assert not re.search(r"\b(planned|coming soon|roadmap)\b", page.read_text(), re.IGNORECASE), page


def test_the_readme_lists_every_package_and_component():
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(([\w/-]+)\) \|.*\| (.*) \|$", says("README.md"), re.MULTILINE)
    found = {name: (folder, set(re.findall(r"`([\w-]+)`", offers))) for name, folder, offers in rows}
    packages = [p for p in tables.packages() if "examples" not in p.parts]
    for package in packages:
        project = tables.tomllib.loads((package / "pyproject.toml").read_text())["project"]
        points = project["entry-points"]
        offers = {*points.get("rlalign", {}), *points.get("rlalign.clusters", {})}
        assert found.pop(project["name"]) == (named(package), offers)
    assert found == {}


def test_json_values_of_tables_are_yaml():
    """A default as the tables show it reads back as itself."""
    for model in (Train, Sampling, Evaluate, Save, Distributed):
        for _, shown, _ in tables.options(model):
            if shown.startswith("`"):
                assert json.dumps(yaml.safe_load(shown.strip("`"))) is not None
