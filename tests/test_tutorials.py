"""The tutorials, worked word for word: their files are written, their commands run, what they show is printed."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from rlalign.cli.commands import program

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
PLUGINS = ROOT / "examples/plugins"
NOTEBOOK = ROOT / "examples/notebook.ipynb"
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\w+\.(?:py|yaml))\b")
SHORT = ("train.iterations=2", "evaluate.examples=8")
"""What the fast form of a tutorial adds to each run that it begins."""
OTHERS = {"pip", "pytest", "make", "source"}
"""Commands that are not rlalign's and that only a person types."""


class Block(NamedTuple):
    """A fenced block."""

    info: str
    text: str
    name: str | None
    """The file of the reader's that it is."""


def blocks(page: Path) -> Iterator[Block]:
    """Those of a page, but for what is quoted from a file: test_docs.py holds that against the file."""
    for quoted, info, text in BLOCK.findall(page.read_text()):
        name = NAMED.match(text)
        if not quoted:
            yield Block(info, text, name[1] if name else None)


class Reader:
    """Who sits in an empty folder and does what a page says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, installed: list[str], *, whole: bool) -> None:
        self.monkeypatch, self.installed, self.whole = monkeypatch, installed, whole
        self.space: dict[str, Any] = {"__name__": "tutorial"}
        self.printed: str | None = ""
        """None: by something that was not done."""

    def does(self, block: Block) -> None:
        match block:
            case Block("shell", text, _):
                self.printed = "".join(self.types(line) for line in text.splitlines() if line)
            case Block("shell parsed", text, _):
                for line in text.splitlines():
                    parsed(line)
                self.printed = None
            case Block("yaml" | "python", text, str(name)):
                Path(name).write_text(text)
            case Block("python", text, None):
                with redirect_stdout(io.StringIO()) as out:
                    exec(compile(text, "tutorial", "exec"), self.space)
                self.printed = out.getvalue()
            case Block("text", text, _):
                self.sees(text)
            case Block("text sampled", text, _):  # what a model says after two iterations are other words
                self.sees("".join(f"{line.split()[0]}\n" for line in text.splitlines()))
            case Block(info):
                assert info.endswith(" fragment"), info

    def types(self, line: str) -> str:
        said, pipe, command = line.rpartition(" | ")
        words = shlex.split(command, comments=True)
        if words[0] == "cd":
            self.goes(words[1])
            return ""
        if words[0] != "rlalign":
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout
        if words[1] == "run" and "--resume" not in words and not self.whole:
            words += SHORT
        text = shlex.split(said)[1] + "\n" if pipe else None
        done = CliRunner().invoke(program, words[1:], input=text, prog_name="rlalign")
        assert done.exit_code == 0, f"{line}\n{done.output}"
        return done.output

    def goes(self, folder: str) -> None:
        """Into a new plugin's folder: it becomes the finished one, installed."""
        if (PLUGINS / folder).is_dir():
            shutil.copytree(
                PLUGINS / folder,
                folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__", "runs", ".*"),
            )
            self.monkeypatch.setattr(sys, "path", [*self.installed, *sys.path])
        self.monkeypatch.chdir(folder)

    def sees(self, shown: str) -> None:
        """Each line shown begins, up to its first digit, as one that was printed."""
        if self.printed is None:
            return
        printed = [" ".join(line.split()) for line in self.printed.splitlines()]
        for line in shown.splitlines():
            start = re.split(r"\d", " ".join(line.split()))[0].removesuffix("-").removesuffix("…")
            assert any(one.startswith(start) for one in printed), f"{line!r} is not in\n{self.printed}"


def parsed(line: str) -> None:
    """A command that is there, with options that it has."""
    words = shlex.split(line.rpartition(" | ")[2], comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] == "rlalign":
        command = program.get_command(click.Context(program), words[1])
        assert command is not None, line
        with command.make_context(words[1], words[2:], resilient_parsing=True) as context:
            named = [word.split("=")[0] for word in words if word.startswith("--")]
            known = {option for parameter in context.command.params for option in parameter.opts}
            assert set(named) <= known, line
    else:
        assert words[0] in OTHERS, line


FORMS = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("whole", FORMS, ids=["short", "whole"])
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_it_is_worked(page, whole, tmp_path, monkeypatch, example_plugins):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    reader = Reader(monkeypatch, example_plugins, whole=whole)
    for block in blocks(page):
        reader.does(block)


def test_the_class_in_a_file_is_the_package_s():
    (page,) = (page for page in TUTORIALS if page.stem == "your-first-reward")
    (code,) = (block.text for block in blocks(page) if block.name == "vowel_class.py")
    package = (PLUGINS / "rlalign-plugin-vowels/src/rlalign_plugin_vowels/__init__.py").read_text()
    made = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(made) == 2
    for node in made:
        source = ast.get_source_segment(code, node)
        assert source is not None and source in package


def test_what_new_packages_keep_of_what_was_written_for_them(tmp_path):
    """The tutorials begin with `rlalign new plugin`: what they end with has its files."""
    for kind, name in (("algorithm", "ppo-penalty"), ("environment", "last-stone")):
        folder = tmp_path / name
        done = CliRunner().invoke(program, ["new", "plugin", name, "--kind", kind, "--to", str(folder)])
        assert done.exit_code == 0, done.output
        finished = PLUGINS / f"rlalign-plugin-{name}"
        written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for path in (path for path in written if not path.parts[0].startswith(".")):
            assert (finished / path).is_file(), path
        about = [(place / "pyproject.toml").read_text().splitlines() for place in (folder, finished)]
        assert [a for a, b in zip(*about, strict=True) if a != b and not a.startswith("description")] == []


@pytest.mark.parametrize("kind, name", [("algorithm", "ppo-penalty"), ("environment", "last-stone")])
def test_who_types_the_blocks_has_the_finished_package(kind, name, tmp_path):
    """Each statement of its module, and of its classes, stands on the page, or came with the new package."""
    new, finished = tmp_path / "new", PLUGINS / f"rlalign-plugin-{name}"
    done = CliRunner().invoke(program, ["new", "plugin", name, "--kind", kind, "--to", str(new)])
    assert done.exit_code == 0, done.output
    module = f"src/rlalign_plugin_{name.replace('-', '_')}/__init__.py"
    page = (ROOT / f"docs/tutorials/your-first-{kind}.md").read_text()
    typed = [text for path, _, text in BLOCK.findall(page) if path.endswith(module)]
    there = {one for text in (*typed, (new / module).read_text()) for one in statements(text)}
    assert [one for one in statements((finished / module).read_text()) if one not in there] == []


def statements(text: str) -> list[str]:
    """Those of a module, but for its docstring, and of its classes, or of a part of a class; `__all__` sorted."""
    found = []
    tree = ast.parse(f"class Part:\n{text}" if text.startswith(" ") else text)
    for node in tree.body[ast.get_docstring(tree) is not None :]:
        if isinstance(node, ast.ClassDef):
            found += [ast.unparse(one) for one in node.body]
            node.body = []
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            node.value = ast.Constant(sorted(ast.literal_eval(node.value)))
        found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("whole", FORMS, ids=["short", "whole"])
def test_the_notebook_runs(whole, tmp_path, monkeypatch):
    """Its cells, one after the other, without Jupyter."""
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text())
    space: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(book["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "it is stored without outputs"
            code = "".join(cell["source"])
            if not whole:
                code = re.sub(r'"iterations": \d+', '"iterations": 2', code)
                code = re.sub(r'"examples": \d+', '"examples": 8', code)
            exec(compile(code, f"cell {number}", "exec"), space)
    assert os.listdir("runs") == ["kind"]
