"""What the environment holds is used and never written or shown; what others wrote steers no terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from rlalign import errors
from rlalign.cli.commands import program
from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.overrides import interpolate
from rlalign.config.registry import Registry
from rlalign.config.written_out import refuse_written_out
from rlalign.errors import ConfigError, concealed, hide, shown
from rlalign.records.environment import seal
from rlalign.running.display import LiveDisplay

KEY = "sk-live-51H\"x'&z/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"
TOKEN = "tk-0123456789abcdef"
MINE = """
import os
import torch
from rlalign import Component, Options, Score, hookimpl


class Asks(Component):
    class Config(Options):
        key: str
        header: str = ""
        again: str = ""
        other: dict = {}
        whole: int = 1

    def __init__(self, config):
        super().__init__(config)
        if config.whole == 3:
            raise ValueError(f"{config.header} is not accepted")

    @hookimpl
    def reward(self, rollout):
        c = self.config
        assert c.header == f"Bearer {c.key}" and c.again == c.key and c.other == {"token": os.environ["TOKEN"]}
        self.asked = getattr(self, "asked", 0) + 1
        if "FAILS" in os.environ and self.asked == 3:
            raise RuntimeError(f"401 for {c.header}, {c.key!r}, {c.key[:40]}…")
        return Score(torch.ones(len(rollout)))
"""
SECRET = {
    "key": "${oc.env:KEY}",
    "header": "Bearer ${oc.env:KEY}",
    "again": "${.key}",
    "other": "${oc.decode:${oc.env:${oc.env:WHICH}}}",
    "whole": "${oc.decode:${oc.env:WHOLE}}",
}
PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [{"asking:Asks": SECRET}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "generation": {"samples": 2, "max_new_tokens": 3},
    "train": {"iterations": 3, "prompts": 2, "lr": 0.01},
}
ENVIRONMENT = {
    "KEY": KEY,
    "WHICH": "TOKENS",
    "TOKENS": f"{{token: '{TOKEN}'}}",
    "WHOLE": "2",
    "TOKEN": TOKEN,
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "_hidden", {})
    Path("asking.py").write_text(MINE)
    Path("toy.yaml").write_text(yaml.dump(PIPELINE, sort_keys=False))


def alone(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    given = {
        key: value for key, value in {**os.environ, **ENVIRONMENT, **environment}.items() if value is not None
    }
    command = [sys.executable, "-m", "rlalign.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=given)


def tells(text: str) -> bool:
    """Whether a part of the secret is in a text, in whatever form."""
    return "sk-live" in text or "0123456789abcdef" in text


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_secret_is_used_and_neither_written_nor_shown() -> None:
    checked = alone("check", "toy.yaml")
    failed = alone("run", "toy.yaml", "--plain", "--debug", FAILS="1")
    assert checked.returncode == 0 and failed.returncode == 1, failed.stderr
    assert "401 for Bearer ${oc.env:KEY}, '${oc.env:KEY}', ${oc.env:KEY}…" in failed.stderr
    run = Path("runs/toy")
    said = yaml.safe_load((run / "pipeline.yaml").read_text())["rewards"][0]["asking:Asks"]
    assert said == SECRET

    absent = alone("run", "--resume", "runs/toy", "--plain", KEY=None)
    assert absent.returncode == 2 and "Environment variable 'KEY' not found" in absent.stderr
    other = alone("run", "--resume", "runs/toy", "--plain", WHOLE="4")
    assert other.returncode == 2 and "environment.WHOLE: " in other.stderr and "--inexact" in other.stderr
    assert "environment.KEY" not in other.stderr
    resumed = alone("run", "--resume", "runs/toy", "--plain")
    assert resumed.returncode == 0, resumed.stderr
    untrusted = alone("eval", "toy", "--split", "test")
    assert untrusted.returncode == 2 and "it asks for your environment; add --trust" in untrusted.stderr
    measured = alone("eval", "toy", "--split", "test", "evaluate.examples=1", "--trust")
    assert measured.returncode == 0, measured.stderr

    for result in (checked, failed, absent, other, resumed, untrusted, measured):
        assert not tells(result.stdout + result.stderr)
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert [file for file in files if tells(file.read_bytes().decode("latin-1"))] == []


def test_faults_of_a_pipeline_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    registry = Registry(trust=True)

    def refusal(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_pipeline("toy.yaml", overrides, registry=registry)
        assert not tells(str(caught.value))
        return str(caught.value)

    asks = "rewards[0].asking:Asks"
    message = refusal("rewards.0.whole=${.header}")
    assert message.endswith(f"{asks}.whole: expected a whole number, found '${{.header}}' (text)")
    monkeypatch.setenv("WHOLE", "x7")  # too short to be looked for, but not to be kept
    assert "found '${oc.decode:${oc.env:WHOLE}}' (text)" in refusal() and "x7" not in refusal()
    monkeypatch.setenv("WHOLE", "3")
    assert refusal().endswith("`Asks` refuses its options: Bearer ${oc.env:KEY} is not accepted")
    assert "cannot be resolved" in refusal("seed=${oc.decode:${oc.env:KEY}}")
    refusal(
        "rewards.0.key=${oc.env:KEY}", "train.lr=${oc.env:KEY}", "task=${oc.env:KEY}", "device=${oc.nev:KEY}"
    )


def test_what_is_written_of_the_options_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    pipeline = load_pipeline("toy.yaml", ["seed=${oc.decode:${oc.env:WHOLE}}", "folder=${oc.env:HERE,.}"])
    (item,) = pipeline.phases[0].rewards
    assert item.options.model_dump()["key"] == KEY and pipeline.seed == 2
    assert json.loads(item.identity) == SECRET
    assert pipeline.resolved["seed"] == "${oc.decode:${oc.env:WHOLE}}"
    assert pipeline.resolved["folder"] == f"{Path.cwd()}/${{oc.env:HERE,.}}"
    assert pipeline.environment == ("HERE", "KEY", "TOKENS", "WHICH", "WHOLE")
    assert pipeline.policy.identity == pipeline.policy.options.model_dump_json()
    monkeypatch.setenv("KEY", "another")
    assert load_pipeline("toy.yaml").phases[0].rewards[0].identity == item.identity


def test_short_values_and_paths_do_not_garble_messages(tmp_path: Path) -> None:
    for value in ("", "1", "true", "seven77", str(tmp_path)):
        hide(value, "${oc.env:SHORT}")
    text = f"seven77 is true 1 time in {tmp_path}"
    assert shown(text) == text and errors._hidden == {}
    hide("a longer value\n", "${oc.env:LONG}")
    hide("a longer value, and longer", "${oc.env:LONGER}")
    text = "a longer value, and longer|a longer value|'a longer value\\n'|a%20longer%20value%0A|a longer valu"
    shorter = "${oc.env:LONG}"
    assert concealed(text) == f"${{oc.env:LONGER}}|{shorter}|'{shorter}'|{shorter}|a longer valu"


@pytest.mark.parametrize(
    "address",
    (
        "s3://me:hunter2-hunter2@bucket/train.jsonl",
        "https://:hunter2-hunter2@host/train.jsonl",
        "https://host/train.jsonl?X-Amz-Signature=hunter2-hunter2",
        "https://host/train.jsonl?v=1&access_token=hunter2-hunter2",
        "https://account.blob.host/train.jsonl?sp=r&sig=hunter2-hunter2",
    ),
)
def test_a_key_written_out_in_an_address_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "p.yaml").write_text(
        f"policy: table\ntask:\n  dataset:\n    path: {address}\nalgorithm: reinforce\ntrain: {{iterations: 1}}\n"
    )
    with pytest.raises(
        ConfigError, match=r"p.yaml:4: task.dataset.path: the address holds a .*oc.env:NAME"
    ) as error:
        load_pipeline(tmp_path / "p.yaml")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    (
        "s3://me:${oc.env:PASSWORD}@bucket/train.jsonl",
        "https://host/train.jsonl?token=${oc.env:PASSWORD}",
        "https://host/train.jsonl?revision=main",
        "https://host:8000/v1",
        "write to https://host/?token=abc",
    ),
)
def test_what_holds_no_key_is_not_refused(text: str) -> None:
    tree = places.Tree({"text": text}, {(): "p.yaml"})
    refuse_written_out(tree)
    assert not tree.problems


def test_a_sealed_value_is_compared_and_not_told() -> None:
    sealed = seal("secret")
    assert "secret" not in sealed and len(sealed) == 48
    assert sealed == seal("secret", sealed) != seal("secret") and seal("other", sealed) != sealed
    assert seal(None, sealed) == seal(None) == "unset" != seal("x", "unset")


# -- terminals ------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\r\udc80"
HARMLESS = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\r\udc80"


def test_what_others_wrote_steers_no_terminal() -> None:
    run = Path("runs/toy")
    run.mkdir(parents=True)
    for name in ("pipeline.yaml", "lock.json"):
        (run / name).write_text("{}")
    row = {
        "phase": EVIL,
        "repeat": 0,
        "iteration": 1,
        "prompt": EVIL,
        "response": f"a\tb\n{EVIL}",
        "scores": {EVIL: 1},
    }
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    said = CliRunner().invoke(program, ["sample", "toy"]).stdout
    assert said.count(HARMLESS) == 4 and "a\tb\n" in said
    assert not set(said) & set(EVIL) - set(HARMLESS)
    found = CliRunner().invoke(program, ["sample", "toy", "--json"]).stdout
    assert not set(found) & set("\x1b\x07\x9b\u202e\r\udc80")
    assert json.loads(found)[0]["prompt"] == EVIL
    refused = CliRunner().invoke(program, ["check", "\x1b[31m.yaml"]).stderr
    assert refused == "error: \\x1b[31m.yaml: no such file\n"


def test_the_panel_shows_controls_escaped() -> None:
    screen = StringIO()
    display = LiveDisplay(Console(file=screen, width=200, force_terminal=True, color_system=None))
    display.started(EVIL, Path(EVIL), [EVIL])
    display.phase(EVIL, 1)
    display.iteration(1, {f"reward/{EVIL}": 1.0, "reward/b": 1.0, "reward/total": 1.0})
    display.note(EVIL)
    display.finished({EVIL: EVIL})
    assert screen.getvalue().count(HARMLESS) >= 5
    assert "\x1b]0" not in screen.getvalue() and not set(screen.getvalue()) & set("\x07\x9b\u202e\udc80")


@pytest.mark.slow
def test_a_real_terminal_gets_no_controls() -> None:
    ours, theirs = pty.openpty()
    code = "import os, torch\nfrom rlalign import Component, hookimpl\n\n\nclass Asks(Component):\n    @hookimpl\n"
    Path("asking.py").write_text(
        f"{code}    def reward(self, rollout):\n        raise ValueError({EVIL[:-1]!r})\n"
    )
    Path("toy.yaml").write_text(yaml.dump({**PIPELINE, "rewards": ["asking:Asks"]}))
    command = [sys.executable, "-m", "rlalign.cli", "run", "toy.yaml"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:
                break
            if not read:
                break
            said += read
    os.close(ours)
    assert process.returncode == 1 and rb"\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\r" in said, said
    assert b"\x1b]0;owned" not in said and b"\x1b[2J" not in said


# -- folders that others can change ----------------------------------------------------------------


LOCK = {"plugins": {}, "given": {}, "data": {}, "models": {}, "seed": 0, "budgets": {}, "environment": {}}


def test_a_folder_that_others_can_change_gets_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "open", "theirs"):
        run = Path("runs") / name
        run.mkdir(parents=True)
        run.chmod(0o755)
        for file, said in (("pipeline.yaml", {}), ("lock.json", LOCK)):
            (run / file).write_text(json.dumps(said))
            (run / file).chmod(0o644)
        (run / "samples.jsonl").write_text(
            json.dumps({"phase": "p", "repeat": 0, "iteration": 1, "prompt": "", "response": ""}) + "\n"
        )
    assert CliRunner().invoke(program, ["sample", "mine"]).stderr == ""
    Path("runs/open/pipeline.yaml").chmod(0o666)
    said = CliRunner().invoke(program, ["sample", "open"]).stderr
    assert said == (
        "note: runs/open/pipeline.yaml: whoever uses this machine can change it; `chmod -R o-w runs/open`\n"
    )
    monkeypatch.setattr(os, "getuid", lambda: os.stat("runs").st_uid + 1)
    result = CliRunner().invoke(program, ["run", "--resume", "runs/theirs"])
    assert "note: runs/theirs: belongs to another user (" in result.stderr and result.exit_code != 0


def test_a_model_reads_the_environment_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json holds what a pipeline said of a variable; all other text is text."""
    monkeypatch.setenv("KEY", KEY)
    held = {"a": "${oc.env:KEY}", "b": ["${b}", r"\${c}", 1]}
    tree = places.read(places.dump(places.escape(places.expressions(held))), "config.json")
    interpolate(tree)
    assert tree.data == {"a": KEY, "b": ["${b}", r"\${c}", 1]}
    assert places.escape(tree.written()) == places.escape(places.expressions(held))


def test_the_environment_gives_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", TOKEN)
    said = {"task": "bandit", "policy": {"table": {"actions": 3}}, "algorithm": "rloo"}
    said["rewards"] = [{"bandit-payout": {}, "as": "${oc.env:TOKEN}"}]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(ConfigError, match=r"rewards\[0\]\.as: a name is written into every log"):
        load_pipeline(tmp_path / "p.yaml")
