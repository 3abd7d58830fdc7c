"""Tests to inherit: what every task must do, wherever its examples come from."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rlalign.data.example import Example, LazyExamples
from rlalign.data.settings import Sampling
from rlalign.errors import RLAlignError
from rlalign.interface.component import Task
from rlalign.records.columns import data_fingerprint
from rlalign.testing.bench import run
from rlalign.testing.kit import ComponentTests

MOST = 500
"""Examples of a split that are looked at."""


class TaskTests(ComponentTests):
    """Inherit, name the task and pytest does the rest.

    `component` is its name or class, `options` what the pipeline gives it, `splits` those it has. What a task
    does on purpose is declared: prompts or ids that stand in two splits (`shared`), examples made for a split of
    any name (`any_split`). A task with a fingerprint of its own needs `other_options`, under which its data differ.
    """

    splits: ClassVar[Sequence[str]] = ("train", "val")
    shared: ClassVar[Collection[str]] = ()
    any_split: ClassVar[bool] = False
    other_options: ClassVar[Mapping[str, Any] | None] = None

    def task(self, **other: Any) -> Task:
        """A new one, with further options."""
        cls = self.cls
        said = json.dumps({**self.options, **other}, default=str)
        made = cls(cls.Config.model_validate_json(said))
        assert isinstance(made, Task), f"`{cls.__name__}` is no task: it does not derive from rlalign.Task"
        made.name = self.named
        return made

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline over the task, with a policy that reads any text."""
        held_out = next((split for split in self.splits if split != "train"), "train")
        base: dict[str, Any] = {
            "task": {self.named: json.loads(json.dumps(dict(self.options), default=str))},
            "policy": "bytes",
            "rewards": ["length"],
            "algorithm": "policy-gradient",
            "generation": {"samples": 2, "max_new_tokens": 5},
            "train": {"iterations": 2, "prompts": 2, "dtype": "float64", "lr": 0.01},
            "evaluate": {
                "split": held_out,
                "examples": 2,
                "generation": {"beams": 1, "max_new_tokens": 5},
            },
        }
        return {**base, **self.pipeline}

    def pipeline_of_logged(self) -> dict[str, Any] | None:
        """The same from logged responses, scored as they are stored if they are; None where there are none."""
        first = self.task().examples("train")[0]
        if not first.responses:
            return None
        return {**self.whole_pipeline(), "responses": "logged", "rewards": [] if first.scores else ["length"]}

    # -- examples -----------------------------------------------------------------------------------

    def test_examples_are_valid(self) -> None:
        for split in self.splits:
            examples = self.task().examples(split)
            assert len(examples) > 0, f"`{split}` has no examples"
            for example in first(examples):
                for wrong in flaws(example):
                    raise AssertionError(f"`{split}`, example `{getattr(example, 'id', '?')}`: {wrong}")

    def test_examples_cannot_be_changed(self) -> None:
        example = self.task().examples("train")[0]
        with pytest.raises(FrozenInstanceError):
            example.prompt = "another"  # type: ignore[misc]
        with pytest.raises(TypeError):
            example.meta["new"] = 1  # type: ignore[index]

    def test_ids_are_unique(self) -> None:
        for split in self.splits:
            seen: set[str] = set()
            for example in first(self.task().examples(split)):
                assert example.id not in seen, f"`{split}` holds the id `{example.id}` twice"
                seen.add(example.id)

    def test_splits_share_nothing(self) -> None:
        """No id and no prompt of one split stands in another, but for what is declared in `shared`."""
        assert set(self.shared) <= {"ids", "prompts"}
        task, known = self.task(), {"ids": {}, "prompts": {}}  # type: ignore[var-annotated]
        for split in self.splits:
            for example in first(task.examples(split)):
                about = {"ids": example.id, "prompts": json.dumps(example.prompt)}
                for what, value in about.items():
                    other = known[what].setdefault(value, split)
                    assert other == split or what in self.shared, (
                        f"`{split}` and `{other}` share {value}: keep splits apart, or say "
                        f'shared = ("{what}",) if they are meant to'
                    )

    def test_an_unknown_split_is_refused_or_empty(self) -> None:
        try:
            found = len(self.task().examples("no-such-split"))
        except RLAlignError as error:
            refusal = str(error)
        else:
            assert found == 0 or self.any_split, (
                "a split of an unknown name has examples: raise ConfigError, or say any_split = True if the task "
                "makes examples for whatever name it is given"
            )
            return
        assert "no-such-split" in refusal, f"the message does not name the split: {refusal}"

    # -- the sequence -------------------------------------------------------------------------------

    def test_index_slice_and_length_agree(self) -> None:
        for split in self.splits:
            examples = self.task().examples(split)
            count = len(examples)
            some = [told(example) for example in first(examples)]
            assert len(some) == min(count, MOST)
            for i in {0, len(some) // 2, len(some) - 1}:
                assert told(examples[i]) == told(examples[i - count]) == some[i], f"`{split}`: [{i}]"
            assert [told(example) for example in examples[1:3]] == some[1:3], f"`{split}`: a slice"
            with pytest.raises(IndexError):
                examples[count]
            if isinstance(examples, LazyExamples) and examples.response_counts is not None:
                counts = [len(example.responses) for example in first(examples)]
                assert examples.response_counts[:MOST].tolist() == counts, f"`{split}`: `response_counts`"
                assert len(examples.response_counts) == count
            if isinstance(examples, LazyExamples) and examples.row_keys is not None:
                assert len(examples.row_keys) == count, f"`{split}`: `row_keys`"

    def test_the_order_is_the_same_each_time(self) -> None:
        task = self.task()
        for split in self.splits:
            again = [digest(task, split), digest(task, split), digest(self.task(), split)]
            assert again[1:] == again[:-1], f"`{split}` is not the same when it is asked for again"

    def test_the_order_is_the_same_in_another_process(self) -> None:
        """Under another PYTHONHASHSEED: what follows the order of a set, or `hash`, differs there."""
        task = self.task()
        here = [digest(task, split) for split in self.splits]
        found_out = set(type(task.config).model_computed_fields)  # by the options themselves, and again there
        said = json.dumps(
            [
                task.config.model_dump_json(exclude=found_out),
                type(task).__module__,
                type(task).__qualname__,
                *self.splits,
            ]
        )
        other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        path = os.pathsep.join(filter(None, sys.path))
        there = subprocess.run(
            [sys.executable, "-c", f"import {__name__} as kit, sys; print(kit.digests(sys.argv[1]))", said],
            env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert there.returncode == 0, there.stderr
        for split, ours, theirs in zip(self.splits, here, json.loads(there.stdout), strict=True):
            assert list(ours) == theirs, f"`{split}` differs in a process with another PYTHONHASHSEED"

    def test_the_fingerprint_changes_with_the_data(self) -> None:
        own = {split: self.task().fingerprint(split) for split in self.splits}
        assert own == {split: self.task().fingerprint(split) for split in self.splits}
        if None in own.values():
            pytest.skip("the core reads the examples to make a fingerprint")
        assert len(set(own.values())) == len(own), (
            "splits have one fingerprint: it must change with the split"
        )
        assert self.other_options is not None, (
            "the task makes its own fingerprint: name `other_options` under which its data are others, so that it "
            "can be seen to change"
        )
        other = self.task(**self.other_options)
        assert digest(other, "train")[1] != digest(self.task(), "train")[1], (
            "`other_options` give the same data"
        )
        assert other.fingerprint("train") != own["train"], "other data have the same fingerprint"

    # -- in a run -----------------------------------------------------------------------------------

    def test_its_decoding_is_valid(self) -> None:
        Sampling.model_validate_json(
            json.dumps(dict(self.task().generation))
        )  # as it is read: a list will do

    def test_postprocess_gives_text(self) -> None:
        task = self.task()
        for text in ("", "a text.\nAnother: line ", *task.examples("train")[0].responses):
            read = task.postprocess(text)
            assert isinstance(read, str), f"`postprocess` gives a {type(read).__name__}"
            assert task.postprocess(text) == read

    def test_it_is_learned_from(self, tmp_path: Path) -> None:
        """A whole run: sampled responses and, where examples carry some, logged ones."""
        for name, pipeline in (("sampled", self.whole_pipeline()), ("logged", self.pipeline_of_logged())):
            if pipeline is not None:
                finished, _ = run(tmp_path, pipeline, self.extra, name=name)
                for metric, value in finished.metrics.items():
                    assert math.isfinite(value), f"{name}: {metric} is {value}"


def first(examples: Sequence[Example]) -> list[Example]:
    """As many as are looked at."""
    return [examples[i] for i in range(min(len(examples), MOST))]


def told(example: Example) -> str:
    """All that an example says, as text."""
    said = (example.id, example.prompt, example.responses, example.scores, example.finished, example.meta)
    return json.dumps(said, default=repr)


def digest(task: Task, split: str) -> tuple[str | None, str]:
    """The task's own fingerprint of a split, and one of the examples that are looked at, in their order."""
    examples = first(task.examples(split))
    return task.fingerprint(split), data_fingerprint(examples)


def flaws(example: Any) -> list[str]:
    """What is wrong with an example."""
    if not isinstance(example, Example):
        return [f"is a {type(example).__name__}, no rlalign.Example"]
    found = []
    if not (isinstance(example.id, str) and example.id):
        found.append(f"its id is {example.id!r}, no text")
    if not isinstance(example.prompt, str):
        roles = [isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in example.prompt]
        if not roles or not all(roles):
            found.append("its prompt is neither text nor a list of messages with `role` and `content`")
    if not all(isinstance(text, str) for text in example.responses):
        found.append("a response is no text")
    for name in ("scores", "finished"):
        if len(getattr(example, name)) not in (0, len(example.responses)):
            found.append(f"{len(example.responses)} responses, {len(getattr(example, name))} {name}")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in example.scores):
        found.append(f"a score is no finite number: {example.scores}")
    try:
        json.dumps(example.meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        found.append(f"`meta` cannot be written as JSON: {error}")
    if not all(isinstance(text, str) for text in example.meta.get("references", [])):
        found.append("`meta['references']` is no list of texts")
    return found


def digests(said: str) -> str:
    """In another process: of each split of the task that is described, as JSON."""
    config, module, name, *splits = json.loads(said)
    cls: Any = importlib.import_module(module)
    for part in name.split("."):
        cls = getattr(cls, part)
    task = cls(cls.Config.model_validate_json(config))
    return json.dumps([digest(task, split) for split in splits])
