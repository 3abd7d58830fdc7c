"""The kit for tasks: it passes a sound task, and each of its tests finds the fault it is for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import Field

from rlalign.data.example import Example, LazyExamples
from rlalign.errors import ConfigError, RLAlignError
from rlalign.interface.component import Task
from rlalign.testing import Bench, Bytes, TaskTests, plain_gradient


class Sound(Task):
    """Sums, with a logged answer each."""

    class Config(Task.Config):
        first: int = Field(0, description="the first number")

    config: Any

    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError(f"there is no split `{split}`")
        start = self.config.first + 100 * (split == "val")
        return [self.example(start + i) for i in range(6)]

    def example(self, i: int) -> Example:
        return Example(
            f"{i}", f"{i} + {i} = ", (str(2 * i), "ß"), (1.0, 0.0), meta={"references": [str(2 * i)]}
        )

    def fingerprint(self, split: str) -> str | None:
        return f"{self.config.first} {split}"


class TestSound(TaskTests):
    component = Sound
    other_options = {"first": 50}


class Lazy(LazyExamples):
    response_counts = numpy.array([2] * 6)

    def __init__(self, examples: Sequence[Example]) -> None:
        self.held = examples

    def __len__(self) -> int:
        return len(self.held)

    def example(self, index: int) -> Example:
        return self.held[index]


class SoundAndLazy(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        return Lazy(super().examples(split))

    def fingerprint(self, split: str) -> str | None:
        return None


class TestLazy(TaskTests):
    component = SoundAndLazy


# -- mutants ----------------------------------------------------------------------------------------


class Chat(Sound):
    def example(self, i: int) -> Example:
        return Example(str(i), [{"role": "user"}])


class Unscored(Sound):
    def example(self, i: int) -> Example:
        return Example(str(i), str(i), ("a", "b"), (1.0,))


class NotJson(Sound):
    def example(self, i: int) -> Example:
        return Example(str(i), str(i), meta={"words": {"a", "b"}})


class SameIds(Sound):
    def example(self, i: int) -> Example:
        return Example(str(i // 2), str(i))


class SamePrompts(Sound):
    def example(self, i: int) -> Example:
        return Example(str(i), str(i % 100))


class AnySplit(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        return super().examples("train" if split == "train" else "val")


class RefusesWithoutAName(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        if split not in ("train", "val"):
            raise ConfigError("no such thing")
        return super().examples(split)


class Drawn(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        found = list(super().examples(split))
        random.shuffle(found)
        return found


class Hashed(Sound):
    """In the order of a hash: the same throughout a process, another in the next."""

    def examples(self, split: str) -> Sequence[Example]:
        return sorted(super().examples(split), key=lambda example: hash(example.prompt))


class OneFingerprint(Sound):
    def fingerprint(self, split: str) -> str | None:
        return "mine"


class BlindFingerprint(Sound):
    def fingerprint(self, split: str) -> str | None:
        return split


class WrongCounts(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        examples = Lazy(super().examples(split))
        examples.response_counts = numpy.array([1] * 6)
        return examples


class WrongSlice(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        class Short(list[Example]):
            def __getitem__(self, at: Any) -> Any:
                return super().__getitem__(at)[:1] if isinstance(at, slice) else super().__getitem__(at)

        return Short(super().examples(split))


class NoLastOne(Sound):
    def examples(self, split: str) -> Sequence[Example]:
        class Longer(Lazy):
            def __len__(self) -> int:
                return len(self.held) + 1

        return Longer(super().examples(split))


class BadDecoding(Sound):
    generation = {"warmth": 1.0}


class NoText(Sound):
    def postprocess(self, text: str) -> Any:
        return text.split()


@pytest.mark.parametrize(
    "mutant, test",
    [
        (Chat, "examples_are_valid"),
        (Unscored, "examples_are_valid"),
        (NotJson, "examples_are_valid"),
        (SameIds, "ids_are_unique"),
        (SamePrompts, "splits_share_nothing"),
        (AnySplit, "an_unknown_split_is_refused_or_empty"),
        (RefusesWithoutAName, "an_unknown_split_is_refused_or_empty"),
        (Drawn, "the_order_is_the_same_each_time"),
        (Hashed, "the_order_is_the_same_in_another_process"),
        (OneFingerprint, "the_fingerprint_changes_with_the_data"),
        (BlindFingerprint, "the_fingerprint_changes_with_the_data"),
        (WrongCounts, "index_slice_and_length_agree"),
        (WrongSlice, "index_slice_and_length_agree"),
        (NoLastOne, "index_slice_and_length_agree"),
        (BadDecoding, "its_decoding_is_valid"),
        (NoText, "postprocess_gives_text"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_each_test_finds_its_fault(mutant: type[Task], test: str) -> None:
    class OfMutant(TaskTests):
        component = mutant
        other_options = {"first": 50}

    with pytest.raises((AssertionError, ValueError, IndexError)):
        getattr(OfMutant(), f"test_{test}")()


@pytest.mark.parametrize(
    "mutant, declared", [(SamePrompts, {"shared": ("prompts",)}), (AnySplit, {"any_split": True})]
)
def test_what_is_meant_is_declared(mutant: type[Task], declared: dict[str, Any]) -> None:
    cls = type("OfMutant", (TaskTests,), {"component": mutant, **declared})
    cls().test_splits_share_nothing()
    cls().test_an_unknown_split_is_refused_or_empty()


def test_a_fingerprint_of_its_own_must_be_seen_to_change() -> None:
    cls = type("Undeclared", (TaskTests,), {"component": Sound})
    with pytest.raises(AssertionError, match="name `other_options` under which its data are others"):
        cls().test_the_fingerprint_changes_with_the_data()


# -- the policy over bytes --------------------------------------------------------------------------


def _bytes() -> Bytes:
    policy = Bytes(Bytes.Config())
    policy.setup()
    return policy


def test_bytes_read_any_text_and_write_it_again() -> None:
    texts = ("", "plain", "naïve 🙂\nzwei")
    policy = _bytes()
    rollout = policy.encode(
        [Example("a", [{"role": "user", "content": "ß"}], texts, finished=(True, False, True))]
    )
    assert rollout.texts == texts and rollout.finished_N.tolist() == [True, False, True]
    assert [
        policy.text(a[: int(n)]) for a, n in zip(rollout.actions_NT, rollout.length_N, strict=True)
    ] == list(texts)
    assert bytes(rollout.inputs[0].tolist()[1:]).decode() == "user: ß"
    with pytest.raises(RLAlignError, match="a response without text that did not end"):
        policy.encode([Example("a", "", ("",), finished=(False,))])


def test_bytes_have_the_plain_graph_s_gradient(tmp_path: Path) -> None:
    pipeline = {
        "task": "numbers",
        "policy": "bytes",
        "rewards": ["length"],
        "algorithm": "policy-gradient",
        "generation": {"samples": 3, "max_new_tokens": 9},
        "train": {"iterations": 1, "prompts": 2, "dtype": "float64"},
    }
    bench = Bench(tmp_path, pipeline)
    batch = bench.batch()
    assert all(text.isprintable() for text in batch.rollout.texts)
    torch.testing.assert_close(
        bench.gradient(batch, budget=1, head_chunk=4)[1], plain_gradient(bench, batch)[1], rtol=0, atol=1e-12
    )
