"""Rewards that begin early: which responses they are told of, when, and that a run is the same without."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import rlalign
from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.component import Component, Task
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, Bytes, run, session
from rlalign.testing.bench import logged

EXAMPLES = 16


class Letters(Task):
    """A prompt of one letter; rewards read responses in capitals, marked."""

    def examples(self, split: str) -> Sequence[Example]:
        found = [Example(f"{split}-{i}", chr(97 + i), ("a", "bc"), (0.0, 1.0)) for i in range(EXAMPLES)]
        return found

    def postprocess(self, text: str) -> str:
        return f"<{text.upper()}>"


class Short(Bytes):
    """Ends soon, and at different steps."""

    def setup(self) -> None:
        super().setup()
        with torch.no_grad():
            self.table[:, 256] += 4


class AtOnce(Short):
    """Takes nobody to be told."""

    def sample(self, examples: Any, how: Any, uniforms: Any, within: Any = None) -> Rollout:  # type: ignore[override]
        return super().sample(examples, how, uniforms, within)


class Counted(Component):
    """The length of a response."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))


class Early(Counted):
    """The same, counted as soon as somebody tells of responses."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.parts: list[list[tuple[str, str]]] = []
        """Since the last reward: the responses of each part, with their prompts."""
        self.rewarded: list[list[list[tuple[str, str]]]] = []
        """Of each call of `reward`: the parts before it."""

    def ahead(self, run: Any, rollout: Rollout) -> None:
        assert run.phase
        self.parts.append(_pairs(rollout))

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        begun = [pair for part in self.parts for pair in part]
        assert sorted(begun) == sorted(_pairs(rollout)), "each response once, as it is read"
        self.rewarded.append(self.parts)
        self.parts = []
        return super().reward(rollout)


def _pairs(rollout: Rollout) -> list[tuple[str, str]]:
    return [
        (str(example.prompt), text) for example, text in zip(rollout.answered, rollout.texts, strict=True)
    ]


class Greedy(Early):
    """Wants what is not there yet."""

    needs: ClassVar = ("reference.full_logprobs",)


CLASSES: dict[str, type[Any]] = {
    "letters": Letters,
    "short": Short,
    "at-once": AtOnce,
    "counted": Counted,
    "early": Early,
    "wanting": Greedy,
}


def pipeline(**more: Any) -> dict[str, Any]:
    return {
        "task": "letters",
        "policy": "short",
        "rewards": [{"early": {}, "as": "length"}],
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 20},
        "train": {"iterations": 2, "prompts": EXAMPLES},
        "evaluate": {"split": "val", "examples": EXAMPLES, "every": 1, "generation": {"samples": 2}},
        **more,
    }


def early_of(started: Any) -> Early:
    found = [c for c in started.phase.plan.components if isinstance(c, Early)]
    assert len(found) == 1
    return found[0]


def test_it_is_told_of_groups_while_others_are_sampled(tmp_path: Path) -> None:
    """In training and in evaluation, of texts as the task reads them; and the run is the same without."""
    _, started = run(tmp_path, pipeline(), CLASSES, name="early")
    component = early_of(started)
    assert len(component.rewarded) == 5, "three evaluations and two iterations"
    for parts in component.rewarded:
        assert len(parts) > 1
        assert all(text[0] == "<" and text == text.upper() for part in parts for _, text in part)
        for part in parts:
            prompts = [prompt for prompt, _ in part]
            assert all(prompts.count(prompt) == 2 for prompt in prompts), "whole groups"
    _, without = run(tmp_path, pipeline(rewards=[{"counted": {}, "as": "length"}]), CLASSES, name="plain")
    assert logged(tmp_path / "runs/early") == logged(tmp_path / "runs/plain")
    for key, tensor in started.models.policy.state_dict().items():
        assert torch.equal(tensor, without.models.policy.state_dict()[key])


@pytest.mark.parametrize(
    "more",
    [
        {"policy": "at-once"},
        {"responses": "logged", "evaluate": None},
        {"responses": {"mix": {"logged": 1, "sampled": 2}}, "evaluate": None},
    ],
    ids=["a policy that tells nothing", "logged responses", "a mix, whose groups are whole at its end"],
)
def test_else_it_is_told_of_all_at_once_before_any_reward(tmp_path: Path, more: dict[str, Any]) -> None:
    said = {key: value for key, value in pipeline(**more).items() if value is not None}
    _, started = run(tmp_path, said, CLASSES)
    assert early_of(started).rewarded and all(len(parts) == 1 for parts in early_of(started).rewarded)


def test_an_opened_run_tells_it_too_but_only_of_what_is_scored(tmp_path: Path) -> None:
    run(tmp_path, pipeline(), CLASSES, name="early")
    opened = rlalign.open(tmp_path / "runs/early", components={**CLASSES, **_testing()}, trust=True)
    row = opened.evaluate()
    component = next(c for c in opened.plans[0].components if isinstance(c, Early))
    assert len(component.rewarded) == 1 and len(component.rewarded[0]) > 1
    rows = [json.loads(line) for line in (tmp_path / "runs/early/metrics.jsonl").read_text().splitlines()]
    assert row["eval/length"] == rows[-1]["eval/length"]
    opened.sample(["a", "b"])
    assert component.parts == []


def _testing() -> dict[str, type[Any]]:
    from rlalign.testing import COMPONENTS

    return dict(COMPONENTS)


def test_what_goes_wrong_in_it_names_it(tmp_path: Path) -> None:
    class Torn(Early):
        def ahead(self, run: Any, rollout: Rollout) -> None:
            raise OSError("nobody answers")

    with pytest.raises(ComponentError, match=r"`ahead` of `length`.*nobody answers"):
        run(tmp_path, pipeline(), {**CLASSES, "early": Torn})


def test_columns_come_too_late_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`wanting` begins before all responses .*reference.full_logprobs"):
        session(tmp_path, pipeline(rewards=["wanting"]), CLASSES)


# -- a reward in another process ----------------------------------------------------------------------

SERVER = """
import json, sys, time
for line in sys.stdin:
    texts = json.loads(line)
    time.sleep(0.02 * len(texts))
    print(json.dumps([len(text) for text in texts]), flush=True)
"""


class Unhurried(Bytes):
    """Twenty tokens or so, each of ten milliseconds in which the processor is free: as a model on another device."""

    def setup(self) -> None:
        super().setup()
        with torch.no_grad():
            self.table[:, 256] += 2

    def decoder(self, inputs: Any, k: int) -> Any:
        decoder = super().decoder(inputs, k)
        logits = decoder.logits

        def later() -> Any:
            time.sleep(0.01)
            return logits()

        decoder.logits = later
        return decoder


class Elsewhere(Component):
    """Twenty milliseconds a response, in another process that is asked for all of them together."""

    def setup(self, run: Any) -> None:
        command = [sys.executable, "-c", SERVER]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.asked: list[list[str]] = []

    def ask(self, texts: Sequence[str]) -> None:
        assert self.server.stdin is not None
        self.asked.append(list(texts))
        self.server.stdin.write(json.dumps(list(texts)) + "\n")
        self.server.stdin.flush()

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        assert self.server.stdout is not None
        if not self.asked:
            self.ask(rollout.texts)
        known: dict[str, float] = {}
        for texts in self.asked:
            known |= dict(zip(texts, json.loads(self.server.stdout.readline()), strict=True))
        self.asked = []
        return Score(torch.tensor([float(known[text]) for text in rollout.texts]))


class ElsewhereEarly(Elsewhere):
    """The same, asked for whole groups as they end."""

    def ahead(self, run: Any, rollout: Rollout) -> None:
        self.ask(rollout.texts)


@pytest.mark.slow
def test_an_iteration_is_shorter(tmp_path: Path) -> None:
    """One that begins early and one that does not, in turn: the same numbers, and the median of the ratios."""
    classes = {**CLASSES, "unhurried": Unhurried, "early": ElsewhereEarly, "late": Elsewhere}
    benches = {}
    for name in ("early", "late"):
        said = pipeline(
            policy="unhurried",
            rewards=[{name: {}, "as": "scored"}],
            generation={"samples": 4, "max_new_tokens": 100},
        )
        (tmp_path / name).mkdir()
        benches[name] = Bench(tmp_path / name, {k: v for k, v in said.items() if k != "evaluate"}, classes)
        benches[name].iterate()
    took: dict[str, list[float]] = {name: [] for name in benches}
    earned: dict[str, list[float]] = {name: [] for name in benches}
    for i in range(7):
        for name in ("early", "late") if i % 2 else ("late", "early"):
            started = time.perf_counter()
            metrics = benches[name].iterate()
            took[name].append(time.perf_counter() - started)
            earned[name].append(metrics["reward/scored"])
    for bench in benches.values():
        for component in bench.phase.plan.components:
            if isinstance(component, Elsewhere):
                component.server.kill()
                component.server.wait()
    assert earned["early"] == earned["late"]
    ratio = statistics.median(a / b for a, b in zip(took["early"], took["late"], strict=True))
    late, early = (statistics.median(took[name]) for name in ("late", "early"))
    parts = {part: metrics[f"time/{part}"] for part in ("rollout", "reward", "update")}
    print(
        f"{late:.2f} s, begun early {early:.2f} s: median ratio {ratio:.2f}; load {os.getloadavg()[0]:.1f}; {parts}"
    )
    assert ratio < 0.9
