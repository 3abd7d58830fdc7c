"""A new pipeline passes the check, says all options, and is refused where parts do not fit together."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Evaluate
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling, Train
from rlalign_authoring import schema as of
from rlalign_authoring.command import new

TABLE = "table: {actions: [a, b, end], end: end, steps: 8}"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(new, ["pipeline", *map(str, arguments)])


def write(out: Path, **said: str) -> str:
    parts = {"task": "toy-numbers", "policy": TABLE, "algorithm": "rloo", "reward": "text-length", **said}
    done = call(*(part for name, one in parts.items() for part in (f"--{name}", one)), "-o", out)
    assert done.exit_code == 0, done.output
    return out.read_text()


def test_every_option_is_said_with_its_default(tmp_path: Path) -> None:
    text = write(tmp_path / "a.yaml", algorithm="rloo: {ratio: token, clip: [0.1, 0.2]}")
    pipeline = load_pipeline(tmp_path / "a.yaml", registry=Registry())
    (phase,) = pipeline.phases
    assert phase.algorithm[0].options.model_dump()["clip"] == (0.1, 0.2)
    assert (phase.generation.samples, phase.train.iterations, phase.evaluate is not None) == (4, 100, True)
    found = dict(re.findall(r"^ +# (\w+): (.+?)(?:  # .*)?$", text, re.MULTILINE))
    models: list[Any] = [phase.task.options, pipeline.policy.options, phase.algorithm[0].options]
    models += [phase.rewards[0].options, Sampling(), Train(), Evaluate()]
    for model in models:
        for name, one in type(model).model_fields.items():
            assert re.search(rf"^ +(# )?{name}: ", text, re.MULTILINE) or name == "use", name
            words = " ".join(re.sub(r"^ *#", "", line).strip() for line in text.splitlines())
            assert " ".join((one.description or "").split()) in " ".join(words.split()) or name == "use", name
    assert places.value(found["betas"], "betas") == [0.9, 0.999]
    assert all(len(line) <= 110 for line in text.splitlines() if " #   " in line)


def test_commented_options_can_be_said(tmp_path: Path) -> None:
    """Without their marks the defaults are valid, and mean what they meant."""
    text = write(tmp_path / "a.yaml")
    head, mark, tail = text.partition("# How responses are sampled.")  # above, some options exclude others
    longer = head + mark + re.sub(r"^( +)# (\w+: )", r"\1\2", tail, flags=re.MULTILINE)
    before = load_pipeline(tmp_path / "a.yaml", registry=Registry())
    after = load_pipeline(tmp_path / "a.yaml", registry=Registry(), text=longer)
    assert len(longer) < len(text) - 60
    for one, other in zip(before.phases, after.phases, strict=True):
        assert (one.train, one.generation) == (other.train, other.generation)
        assert one.algorithm[0].options == other.algorithm[0].options


def test_an_editor_is_told_the_schema(tmp_path: Path) -> None:
    done = call(
        *("--task", "toy-numbers", "--policy", TABLE, "--algorithm", "rloo", "--reward", "text-length"),
        *("--schema", "my schema.json"),
    )
    assert done.exit_code == 0, done.output
    first, _, rest = done.output.partition("\n")
    assert first == "# yaml-language-server: $schema=my%20schema.json"
    whole, _ = of.pipelines(Registry())
    jsonschema.Draft7Validator(whole).validate(places.read(rest, "a.yaml").data)


@pytest.mark.parametrize(
    "said, told",
    [
        ({"task": ""}, "say --task ITEM; in a terminal"),
        ({"algorithm": "rlooo"}, "did you mean `rloo`"),
        ({"algorithm": "toy-numbers"}, "`toy-numbers` cannot stand under `algorithm`"),
        ({"policy": "table"}, "--policy 'table: {actions: …}'"),
        ({"policy": "[table]"}, "expected `name` or `name: {…}`"),
        ({"policy": "table: {actions: [a], steps: many}"}, "expected a whole number"),
        ({"algorithm": "dpo"}, "these do not go together, and nothing is written"),
    ],
)
def test_what_does_not_go_together_is_refused(said: dict[str, str], told: str, tmp_path: Path) -> None:
    parts = {"task": "toy-numbers", "policy": TABLE, "algorithm": "rloo", "reward": "text-length", **said}
    given = [part for name, one in parts.items() if one for part in (f"--{name}", one)]
    done = call(*given, "-o", tmp_path / "a.yaml")
    assert done.exit_code == 2 and told in done.output
    assert not (tmp_path / "a.yaml").exists()


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mine")
    assert call("--task", "toy-numbers", "-o", tmp_path / "a.yaml").exit_code == 2
    assert (tmp_path / "a.yaml").read_text() == "mine"


def asked(tmp_path: Path, typed: bytes) -> tuple[int, str, str]:
    """What comes of an answer to each question, typed in a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlalign.cli", "new", "pipeline", "-o", "a.yaml", "--algorithm", "rloo"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    os.write(ours, typed)
    out, err = process.communicate(timeout=600)
    os.close(ours)
    os.close(theirs)
    return process.returncode, out, err


def test_in_a_terminal_it_asks(tmp_path: Path) -> None:
    code, out, err = asked(tmp_path, b"toy-numbers\ntable\ntext-length kl\n[a, b]\n")
    assert code == 0, err
    assert out == "pipeline: a.yaml\n"
    assert "Where prompts come from:" in err and "actions (how many actions, or their names)" in err
    pipeline = load_pipeline(tmp_path / "a.yaml", registry=Registry())
    assert [one.component for one in pipeline.phases[0].rewards] == ["text-length", "kl"]


def test_the_end_of_the_input_is_no_fault(tmp_path: Path) -> None:
    """Ctrl-D at the second question."""
    code, out, err = asked(tmp_path, b"toy-numbers\n\x04")
    assert (code, out) == (130, "") and err.endswith("\nstopped\n")
    assert not (tmp_path / "a.yaml").exists()
