"""What a person reads whose own task fails: which task, which split, what the row held, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from rlalign import Example, LazyExamples, Options, Task
from rlalign.errors import ComponentError, ConfigError
from rlalign.running.examples import examples_of
from rlalign.testing import run

ROWS: list[dict[str, Any]] = [{"question": "a", "answer": "b"}, {"question": "c", "answer": None}, {"q": "x"}]


class Base(Task):
    rows = ROWS

    def examples(self, split: str) -> Any:
        return [self.read(row) for number, row in enumerate(self.rows)]

    def read(self, row: dict[str, Any]) -> Any:
        return Example(id="1", prompt=row["question"])


class Answers(Base):
    def examples(self, split: str) -> Any:
        return [Example(id=str(n), prompt=row["question"].strip()) for n, row in enumerate(self.rows)]


class Stripped(Base):
    rows = ROWS[:2]

    def read(self, row: dict[str, Any]) -> Any:
        return Example(id="1", prompt=row["question"], responses=[row["answer"].strip()])  # type: ignore[arg-type]


class Later(Base):
    def examples(self, split: str) -> Any:
        class Lazy(LazyExamples):
            def __len__(self) -> int:
                return len(ROWS)

            def example(self, index: int) -> Example:
                row = ROWS[index]
                return Example(id=str(index), prompt=row["question"])

        return Lazy()


class LaterDicts(Base):
    def examples(self, split: str) -> Any:
        class Lazy(LazyExamples):
            def __len__(self) -> int:
                return len(ROWS)

            def example(self, index: int) -> Any:
                return ROWS[index]

        return Lazy()


class OfAFile(Base):
    def examples(self, split: str) -> Any:
        found = []
        with open(self.path) as file:  # type: ignore[attr-defined]
            for number, line in enumerate(file, 1):
                row = dict([line.split("=")])
                found.append(Example(id=str(number), prompt=row["question"]))
        return found


class BySplit(Base):
    def examples(self, split: str) -> Any:
        return {"train": [Example(id="1", prompt="a")]}[split]


class Generates(Base):
    def examples(self, split: str) -> Any:
        return (self.read(row) for row in self.rows)


class Forgets(Base):
    def examples(self, split: str) -> Any:
        self.rows.copy()


class Mixed(Base):
    def examples(self, split: str) -> Any:
        return [Example(id="1", prompt="a"), {"prompt": "b"}]


class Numbers(Base):
    rows = [{"question": 3}]


class OneText(Base):
    def read(self, row: dict[str, Any]) -> Any:
        return Example(id="1", prompt="a", responses="abc")  # type: ignore[arg-type]


class NoNumber(Base):
    def read(self, row: dict[str, Any]) -> Any:
        return Example(id="1", prompt=str(numpy.average([1.0], weights=[[1.0, 2.0]])))


WHO = "p.yaml:1: task `Mine`"


def said_of(kind: type[Base], split: str = "train", **given: Any) -> str:
    task = kind(Options())
    vars(task).update(given)
    with pytest.raises((ComponentError, ConfigError)) as caught:
        list(examples_of(task, WHO, split))
    return str(caught.value)


def test_a_row_without_a_key() -> None:
    said = said_of(Base)
    assert said.startswith(
        f"{WHO}, asked for its examples of `train` raised KeyError: 'question' (test_examples.py:"
    )
    assert said.endswith(
        "; `row` has 'q': mend that row, or write `row.get('question')` and leave out rows that lack it"
    )
    assert "at n = 2; `row` has 'q'" in said_of(Answers)


def test_a_value_that_is_none() -> None:
    said = said_of(Stripped)
    assert "AttributeError: 'NoneType' object has no attribute 'strip'" in said
    assert "`row` has 'question', 'answer' (which is None); mend that row" in said


def test_an_example_that_is_read_later() -> None:
    said = said_of(Later)
    assert f"{WHO}, asked for example 2 of `train` (the first is 0) raised KeyError: 'question'" in said
    assert "`row` has 'q'" in said
    assert said_of(LaterDicts).startswith(f"{WHO} must give Examples, got a dict as number 0 of `train`")


def test_a_file_that_is_open_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("question=a\nqestion=b\n")
    assert f", in {path}, at number = 2; `row` has 'qestion'" in said_of(OfAFile, path=path)


def test_a_split_that_there_is_not() -> None:
    said = said_of(BySplit, "val")
    assert "it seems to have no split `val`: give those examples too, or name another split" in said


@pytest.mark.parametrize(
    "kind, said",
    [
        (Generates, "must give a list of Examples for `train`, got a generator; `list(…)` makes one of it"),
        (Forgets, "must give a list of Examples for `train`, got None; `return` is missing"),
        (Mixed, "must give Examples, got a dict as number 1 of `train` (the first is 0)"),
        (Numbers, "`prompt` of an Example is text or a list of messages, and got a value of type int"),
        (OneText, "`responses` of an Example is a list, and got one text: `responses=[…]`"),
    ],
)
def test_what_is_no_list_of_examples(kind: type[Base], said: str) -> None:
    assert said in said_of(kind)


def test_an_error_of_what_the_task_calls_names_the_task_s_own_line() -> None:
    """Of what rlalign refuses that line alone; of an error in another library both."""
    assert " (test_examples.py:" in said_of(OneText) and "called in" not in said_of(OneText)
    said = said_of(NoNumber)
    assert " (test_examples.py:" not in said and ", called in test_examples.py:" in said


class Unlogged(Base):
    def examples(self, split: str) -> Any:
        return [Example(id="1", prompt="a", meta={"completion": "b"})]


def test_a_first_example_without_a_response_says_what_it_has(tmp_path: Path) -> None:
    asks = {
        "task": "mine",
        "policy": {"logits": {"hidden": 3}},
        "rewards": ["token-sum"],
        "responses": "logged",
        "algorithm": "policy-gradient",
        "train": {"iterations": 1, "prompts": 1},
    }
    with pytest.raises(ConfigError, match=r"`mine` has none \(only, in its meta, 'completion'\); say"):
        run(tmp_path, asks, {"mine": Unlogged})


def test_sound_examples_are_as_the_task_gave_them() -> None:
    class Sound(Base):
        rows = ROWS[:2]

    found: Sequence[Example] = examples_of(Sound(Options()), WHO, "train")
    assert [e.prompt for e in found] == ["a", "c"] and isinstance(found, tuple)
