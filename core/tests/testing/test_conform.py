"""`rlalign plugins NAME --conform`: what is told of a component that passes, of one that fails, and of neither."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from rlalign.cli.plugins import plugins
from rlalign.testing.conform import main


def conform(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlalign.cli", "plugins", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_component_that_passes_gets_a_badge():
    done = conform("drop-cut", "--conform")
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, rest = done.stdout.partition("\nchecked\n")
    assert head.startswith("drop-cut, options: its defaults\nComponentTests: ")
    checked, _, rest = rest.partition("\nnot applicable\n")
    assert "  resume is exact\n" in checked
    assert "  padding is never read: `drop-cut` has no loss\n" in rest and " 0 failed\n" in rest
    assert "badge: ![drop-cut: 4 checked, " in rest
    assert "(https://img.shields.io/badge/drop--cut-4_checks_of_rlalign_" in rest


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("gate", "{}", "{}"), "gate: `by` is missing"),
        (("clip", "{lwo: 1}", "{}"), "did you mean `low`"),
        (("clip", "low", "{}"), "--options: expected a mapping"),
        (("drop-cut", "{}", "{exact: false}"), "exact: unknown attribute"),
        (("clop", "{}", "{}"), "no component named `clop`"),
    ],
)
def test_what_cannot_be_tested_is_said(arguments, told, capsys):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_options_go_with_it():
    for arguments in (["--conform"], ["clip", "--options", "{}"], ["--declare", "{}"]):
        assert CliRunner().invoke(plugins, arguments).exit_code == 2


@pytest.mark.slow
def test_a_component_that_fails_is_told_why():
    done = conform("cispo", "--conform")
    assert done.returncode == 1
    assert "  gradient is that of finite differences: AssertionError: the gradient of the loss" in done.stdout
    assert " 1 failed\n" in done.stdout and "badge" not in done.stdout
    again = conform("cispo", "--conform", "--declare", "{exact_gradient: false}")
    assert again.returncode == 0 and 'declared: {"exact_gradient": false}' in again.stdout
