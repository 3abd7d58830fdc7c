"""What a number depends on stands beside it: in what `eval` prints, in the run's folder, in the model's card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import Field

import rlalign
from rlalign.cli.commands import program
from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.running import loop
from rlalign.testing import registry, run
from rlalign.testing.bench import Silence, logged, stop_early, stopped_and_resumed

HERE = "test_signatures_components"


class Sized(Component):
    """The length of a response, and the share of different ones."""

    class Config(Options):
        """Options of `sized`."""

        unit: str = Field("words", description="what is counted")

    config: Config
    counted = "?"

    def setup(self, run: Any) -> None:
        self.counted = self.config.unit.upper()

    def signature(self) -> str:
        return f"unit:{self.counted}|version:1"

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        return {"distinct": len(set(rollout.texts)) / len(rollout)}


CLASSES: dict[str, type[Any]] = {"sized": Sized}
PIPELINE: dict[str, Any] = {
    "task": "numbers",
    "policy": {"logits": {"hidden": 5}},
    "rewards": ["token-sum"],
    "algorithm": "policy-gradient",
    "generation": {"samples": 2, "max_new_tokens": 7},
    "train": {"iterations": 2, "prompts": 3},
    "evaluate": {"examples": 3, "every": 1, "use": ["sized", {"sized": {"unit": "letters"}, "as": "long"}]},
}
SAID = {"sized": "unit:WORDS|version:1", "long": "unit:LETTERS|version:1"}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "signatures.jsonl").read_text().splitlines()]


def test_a_run_writes_them_down_once(tmp_path: Path) -> None:
    finished, _ = run(tmp_path, PIPELINE, CLASSES, name="whole")
    where = {"phase": "policy-gradient", "repeat": 0, "iteration": 0}
    assert rows(finished.path) == [{**where, "signatures": SAID}]
    assert rlalign.Result(finished.path).signatures == SAID
    card = (finished.path / "model/README.md").read_text()
    assert "Computed as these signatures say:\n\n- `long`: `unit:LETTERS|version:1`\n- `sized`: `" in card
    resumed = stopped_and_resumed(tmp_path, PIPELINE, CLASSES)
    assert logged(resumed.dir.path) == logged(finished.path)


def test_without_any_nothing_is_written(tmp_path: Path) -> None:
    finished, _ = run(tmp_path, {**PIPELINE, "evaluate": {"examples": 3}}, CLASSES)
    assert not (finished.path / "signatures.jsonl").exists()
    assert rlalign.Result(finished.path).signatures == {}
    assert "signature" not in (finished.path / "model/README.md").read_text()


def test_one_that_changes_on_the_way_is_written_down_where_it_did(tmp_path: Path) -> None:
    from rlalign.testing import session

    stop_early(session(tmp_path, PIPELINE, CLASSES, name="toy"))
    overrides = ["evaluate.use.long.unit=lines"]
    again = loop.resume(
        tmp_path / "runs/toy", registry(CLASSES), overrides=overrides, inexact=True, display=Silence()
    )
    again.run()
    found = rows(tmp_path / "runs/toy")
    assert [(row["iteration"], row["signatures"]["long"]) for row in found] == [
        (0, SAID["long"]),
        (1, "unit:LINES|version:1"),
    ]
    assert rlalign.Result(tmp_path / "runs/toy").signatures["long"] == "unit:LINES|version:1"


def test_eval_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As words and as JSON, of what it measured; of a run without any, nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{HERE}.py").write_text(Path(__file__).read_text().partition("CLASSES:")[0])
    use = [f"{HERE}:Sized", {f"{HERE}:Sized": {"unit": "letters"}, "as": "long"}]
    evaluate = {**PIPELINE["evaluate"], "use": use}
    finished, _ = run(tmp_path, {**_by_path(PIPELINE), "evaluate": evaluate}, name="toy")

    def said(*more: str) -> str:
        result = CliRunner().invoke(program, ["eval", str(finished.path), "--trust", *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    words = said()
    assert words.endswith("\nsignatures\nSized  unit:WORDS|version:1\nlong   unit:LETTERS|version:1\n")
    row = json.loads(said("--json"))
    assert row["signatures"] == {"Sized": SAID["sized"], "long": SAID["long"]}
    assert "eval/long/distinct" in row
    without = ["--reward", "rlalign.testing:Length"]
    assert "signatures" not in said(*without) and "signatures" not in json.loads(said("--json", *without))
    assert rlalign.open(finished.path, trust=True).signatures["long"] == SAID["long"]


def _by_path(pipeline: dict[str, Any]) -> dict[str, Any]:
    """With test components named by their modules, as another process finds them."""
    return {
        **pipeline,
        "task": "rlalign.testing:Numbers",
        "policy": {"rlalign.testing:Logits": {"hidden": 5}},
        "rewards": ["rlalign.testing:TokenSum"],
        "algorithm": "rlalign.testing:PolicyGradient",
    }


def test_an_exported_model_has_them_too(tmp_path: Path) -> None:
    from rlalign.testing import COMPONENTS

    run(tmp_path, PIPELINE, CLASSES, name="toy")
    opened = rlalign.open(tmp_path / "runs/toy", components={**COMPONENTS, **CLASSES}, trust=True)
    opened.export(tmp_path / "out")
    assert "- `long`: `unit:LETTERS|version:1`" in (tmp_path / "out/README.md").read_text()


def test_a_signature_is_one_line(tmp_path: Path) -> None:
    class Torn(Sized):
        def signature(self) -> str:
            return "a\nb"

    with pytest.raises(ComponentError, match=r"`signature` of `sized`.*one line"):
        run(tmp_path, PIPELINE, {"sized": Torn})
