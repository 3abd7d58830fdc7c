"""The card of an exported model: what it knows of the base model, and what it leaves alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

import rlalign
from rlalign import Options
from rlalign.data.limits import FRONT_MATTER_BYTES, LICENCE_BYTES
from rlalign.interface.policy import Policy
from rlalign.records.result import Result
from rlalign.running.base import Base, base_of
from rlalign.running.card import Card, save_folder
from rlalign.running.evaluation import spread
from rlalign.testing import Numbers, PolicyGradient, session
from rlalign.testing.logits import Logits

FRONT = "---\nlicense: apache-2.0\nbase_model: org/parent\ntags: [a, b]\n---\n# Its card\nlicense: none\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models/tiny").mkdir(parents=True)
    return tmp_path / "models/tiny"


def test_a_name_on_the_hub() -> None:
    assert base_of("openai-community/gpt2") == Base("openai-community/gpt2", "openai-community/gpt2")
    assert base_of("gpt2").on_the_hub == "gpt2"
    assert base_of("/gone/models/my`model").on_the_hub is None
    assert base_of("/gone/models/my`model").name == "my_model"


def test_what_a_folder_says_of_itself(folder: Path) -> None:
    assert base_of(str(folder)) == Base("tiny")
    (folder / "README.md").write_text("\ufeff" + FRONT.replace("\n", "\r\n"), "utf-8", newline="")
    (folder / "LICENSE").write_text("Terms.")
    (folder / "notice.txt").write_text("Thanks.")
    (folder / "licensed_to_kill.py").write_text("no licence")
    found = base_of(str(folder))
    assert found == Base(
        "tiny", "org/parent", {"license": "apache-2.0"}, (folder / "LICENSE", folder / "notice.txt")
    )
    other = "---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE\n---\n"
    (folder / "README.md").write_text(other)
    said = {"license": "other", "license_name": "my-terms", "license_link": "LICENSE"}
    assert base_of(str(folder)).licence == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter\nlicense: mit\n",
        "---\nlicense: mit\n",
        "---\n- license: mit\n---\n",
        "---\n---\n",
        "---\nlicense: [mit]\nbase_model: [a/b, c/d]\n---\n",
        "---\nlicense: 7\nbase_model: {a: b}\n---\n",
        "---\nlicense: 'mit\\n# a line'\nbase_model: ../../etc/passwd\n---\n",
        '---\nlicense: "mit\\nevil: true"\nbase_model: "a/b\\nc"\n---\n',
        "---\nlicense: !!python/object:os.system mit\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\n" + "c: [*b, *b]\n" * 3 + "license: {<<: *a}\n---\n",
        "---\n" + "[" * 2000 + "\n---\n",
        "---\nx: " + "y" * FRONT_MATTER_BYTES + "\nlicense: mit\n---\n",
    ],
)
def test_what_makes_no_sense_is_not_known(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    assert base_of(str(folder)) == Base("tiny")


def test_no_file_but_the_models_own_is_read(folder: Path, tmp_path: Path) -> None:
    """No link out of the folder, no pipe, nothing large."""
    (tmp_path / "secret").write_text(FRONT)
    (folder / "README.md").symlink_to(tmp_path / "secret")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "NOTICE")
    (folder / "LICENSE-2").mkdir()
    (folder / "COPYING").write_bytes(b"x" * (LICENCE_BYTES + 1))
    assert base_of(str(folder)) == Base("tiny")
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    assert base_of(str(folder)) == Base("tiny")


def test_the_hubs_cache_says_the_name(tmp_path: Path) -> None:
    """There all files are links, to the model's own."""
    model = tmp_path / "models--org--tiny"
    snapshot = model / "snapshots/0a1b"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for name, text in (("README.md", FRONT), ("LICENSE", "Terms.")):
        (model / "blobs" / name[:3]).write_text(text)
        (snapshot / name).symlink_to(Path("../../blobs") / name[:3])
    found = base_of(str(snapshot))
    assert (found.name, found.on_the_hub, dict(found.licence)) == (
        "org/tiny",
        "org/tiny",
        {"license": "apache-2.0"},
    )
    assert [file.read_text() for file in found.files] == ["Terms."]


PIPELINE: dict[str, Any] = {
    "task": "rlalign.testing:Numbers",
    "policy": {"rlalign.testing:Logits": {}},
    "rewards": [{"rlalign.testing:TokenSum": None, "as": "sum"}],
    "algorithm": "rlalign.testing:PolicyGradient",
    "train": {"iterations": 1, "prompts": 2},
}


class Derived(Logits):
    """A policy that began as a model of somebody's."""

    loaded_by = "letters"

    def save(self, folder: Path) -> str | None:
        super().save(folder)
        return "Its weights are what they are."


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    made = Derived(Derived.Config())
    made.setup()
    return made


def saved(policy: Policy, tmp_path: Path) -> tuple[Path, dict[str, Any], str]:
    """The saved folder, its card's metadata and its card's text."""
    opened = session(tmp_path, PIPELINE, {}, name="mine")
    save_folder(
        policy,
        tmp_path / "out",
        Card("mine", opened.pipeline, {"eval/total": 0.25}, "after a test", origin="From a test."),
    )
    opened.dir.close()
    text = (tmp_path / "out/README.md").read_text()
    _, front, rest = text.split("---\n", 2)
    return tmp_path / "out", yaml.safe_load(front), rest


def test_a_card_names_base_licence_and_library(policy: Policy, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(FRONT)
    (folder / "LICENSE").write_text("Terms.")
    (folder / "config.json").write_text("{}")
    policy.base = str(folder)
    out, front, text = saved(policy, tmp_path)
    assert front == {
        "base_model": "org/parent",
        "license": "apache-2.0",
        "library_name": "letters",
        "tags": ["rlalign"],
    }
    for part in (
        "# mine\n",
        "It began as `tiny`, whose card names `org/parent` as its base model.",
        "`apache-2.0`",
        "Copied from there: `LICENSE`.",
        "Its weights are what they are.",
        "From a test.",
        "| eval/total | 0.25 |  |",
    ):
        assert part in text
    assert (out / "LICENSE").read_text() == "Terms."
    assert str(folder) not in text, "no path of the machine"


def test_a_card_invents_nothing(policy: Policy, folder: Path, tmp_path: Path) -> None:
    policy.base = str(folder)
    _, front, text = saved(policy, tmp_path)
    assert front == {"library_name": "letters", "tags": ["rlalign"]}
    assert "Its licence is not known here" in text


def test_a_policy_without_a_base(tmp_path: Path) -> None:
    made = Logits(Logits.Config())
    made.setup()
    _, front, text = saved(made, tmp_path)
    assert front == {"tags": ["rlalign"]} and "began" not in text


def test_a_licence_takes_no_files_place(policy: Policy, folder: Path, tmp_path: Path) -> None:
    class WithLicence(Derived):
        def save(self, folder: Path) -> str | None:
            (folder / "LICENSE").write_text("The policy's own.")
            return super().save(folder)

    made = WithLicence(WithLicence.Config())
    made.setup()
    (folder / "LICENSE").write_text("Terms.")
    made.base = str(folder)
    out, _, _ = saved(made, tmp_path)
    assert (out / "LICENSE").read_text() == "The policy's own."


def test_a_card_tells_method_data_intervals_and_provenance(tmp_path: Path) -> None:
    class Weighted(PolicyGradient):
        """Minus A times log π. More of it."""

        class Config(Options):
            """Its options."""

            strength: float = Field(1.0, description="how much")
            file: str = Field("none", description="a path")

        equation = "−A log π(y)"
        paper = "Somebody, Something, 2020"

    class Licensed(Numbers):
        licence = "CC BY 4.0"

    pipeline = {
        **PIPELINE,
        "task": "licensed",
        "algorithm": {"weighted": {"strength": 2.5, "file": "somewhere/secret"}},
        "evaluate": {"examples": 3},
        "generation": {"samples": 2, "max_new_tokens": 4},
    }
    given = {"weighted": Weighted, "licensed": Licensed}
    opened = session(tmp_path, pipeline, given, name="mine")
    opened.run()
    text = (opened.dir.model / "README.md").read_text()
    lock = json.loads((opened.dir.path / "lock.json").read_text())
    told = "`weighted`: Minus A times log π. With default options: `−A log π(y)`. Somebody, Something, 2020. Here"
    assert f"{told} `strength: 2.5`.\n" in text and "secret" not in text
    assert f"`train` has the digest `{lock['data']['licensed/train']}`. Licence: CC BY 4.0." in text
    assert f"| torch | {lock['packages']['torch']} |" in text and "| seed | 0 |" in text
    assert f"code {lock['plugins']['rlalign']['code'][:12]}" in text
    value, low, high = map(
        float,
        re.search(r"\| eval/sum \| (\S+) \| (\S+) to (\S+), 3 examples \|", text).groups(),  # type: ignore[union-attr]
    )
    assert low < value < high and (low + high) / 2 == pytest.approx(value, rel=1e-3)


def figures(folder: Path) -> list[str]:
    """What the card says where its figures stand."""
    return (folder / "README.md").read_text().partition("## Figures\n\n")[2].splitlines()


def test_a_card_says_where_its_figures_were_measured(tmp_path: Path) -> None:
    """Where no evaluation followed, they are those of other weights."""
    settings = {"evaluate": {"examples": 3}, "checkpoints": {"every": 1, "last": 9}}
    run = session(
        tmp_path, {**PIPELINE, **settings, "train": {"iterations": 3, "prompts": 2}}, {}, name="one"
    )
    run.run()
    name = run.pipeline.phases[0].name
    assert figures(run.dir.model)[0] == f"Measured after iteration 3 of `{name}`."
    early = rlalign.open(run.dir.path, at=2).export(tmp_path / "early")
    assert figures(early)[0] == f"Measured after iteration 0 of `{name}`."
    first = Result(run.dir.path).evaluations[0]
    assert f"| eval/sum | {first['eval/sum']:.6g} |" in "\n".join(figures(early))


def test_a_last_phase_without_evaluation_has_the_figures_of_the_one_before(tmp_path: Path) -> None:
    train = {"iterations": 2, "prompts": 2}
    phases = [{"name": "a", "train": train, "evaluate": {"examples": 3}}, {"name": "b", "train": train}]
    run = session(tmp_path, {**PIPELINE, "train": None, "phases": phases, "repeat": 2}, {}, name="two")
    run.run()
    assert figures(run.dir.model)[0] == "Measured after iteration 2 of `a`, pass 2."
    run = session(tmp_path, PIPELINE, {}, name="none")
    run.run()
    assert figures(run.dir.model)[0] == f"Measured in iteration 1 of `{run.pipeline.phases[0].name}`."


def test_intervals() -> None:
    (half, count) = spread({"x": [1.0, 2.0, 3.0, float("nan")], "one": [1.0]})["x"]
    assert count == 3 and half == pytest.approx(1.96 / 3**0.5)
    assert spread({"one": [1.0], "endless": [1.0, float("inf")]}) == {}
