"""Commands that other installed packages add."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from rlalign.cli.commands import program


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with a command, one whose module is missing, one that is no command, and a rival of `run`."""
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    commands = {
        "hello": "stranger_commands:hello",
        "gone": "stranger_gone:gone",
        "odd": "stranger_commands:odd",
    }
    points = "\n".join(f"{name} = {value}" for name, value in (commands | {"run": commands["hello"]}).items())
    (info / "entry_points.txt").write_text(f"[rlalign.commands]\n{points}\n")
    (tmp_path / "stranger_commands.py").write_text(
        "import click\n\n\n@click.command()\ndef hello():\n    '''Say hello.'''\n    click.echo('hello')\n\n\nodd = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(program, arguments)


@pytest.mark.usefixtures("installed")
def test_an_installed_command_is_listed_and_called():
    assert re.search(r"hello +Say hello\.", call("--help").output)
    assert call("hello").output == "hello\n"


@pytest.mark.usefixtures("installed")
def test_a_broken_command_breaks_no_other_and_says_what_is_wrong():
    listed = call("--help")
    assert listed.exit_code == 0
    assert re.search(r"gone +\(broken: gone \(stranger_gone:gone\) cannot be imported", listed.output)
    done = call("gone")
    assert done.exit_code == 1
    assert "No module named 'stranger_gone'; install its package again, or remove it" in done.output
    assert "odd (stranger_commands:odd) is no click command" in call("odd").output


@pytest.mark.usefixtures("installed")
def test_rlaligns_own_commands_stand_above():
    assert "Run a pipeline" in call("run", "--help").output


def test_what_nobody_offers_is_unknown():
    done = call("nothing")
    assert done.exit_code == click.UsageError.exit_code
    assert "No such command 'nothing'" in done.output
