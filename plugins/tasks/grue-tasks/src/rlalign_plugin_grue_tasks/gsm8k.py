"""Sums in words, solved step by step to a number that can be checked: GSM8K (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset.cells import text_of
from rlalign_plugin_dataset.index import BadRow, split_by_share
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    GrueOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

MARK = "####"
"""What stands before the number at the end."""
NEXT = "Question:"
CHAT = f"{{text}}\n\nSolve this step by step. End with a line that holds `{MARK}` and the answer, a number."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class GSM8K(GrueTask):
    """Sums in words; the number behind `####` is the reference, which `numeric-answer` checks as a reward."""

    paper = "Karl Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021"

    class Config(GrueOptions):
        """Options of `gsm8k`."""

        max_prompt_tokens: int | None = prompt_tokens(512)
        held_out: float = Field(
            0.05,
            ge=0,
            lt=1,
            description="the share of `train` set aside as `val`, by a hash of the question; 0: none",
        )
        calculator: bool = Field(
            False,
            description="keep the notes for a calculator, `<<3*4=12>>`, in the solutions that are learned from",
        )

    config: Config
    samples = SAMPLES / "gsm8k"
    published = Published(
        "openai/gsm8k",
        "main",
        "e53f048856ff4f594e959d75785d2c2d37b678ee",
        elsewhere="The authors' train.jsonl and test.jsonl lie in github.com/openai/grade-school-math.",
    )
    licence = "MIT"
    sizes = {"train": 7_473, "test": 1_319}
    side = "left"
    """The question is at the end of a sum."""
    defaults = {"generation": {"max_new_tokens": 256, "stop": (NEXT,)}}
    generation = {"greedy": True, "max_new_tokens": 256, "stop": (NEXT,)}
    metrics = ("numeric-answer",)

    def splits(self) -> list[str]:
        return [*super().splits(), *(["val"] if self._shares() else [])]

    def _shares(self) -> dict[str, float]:
        share, there = self.config.held_out, self.tables()
        return {"train": 1 - share, "val": share} if share and "train" in there and "val" not in there else {}

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        shares = self._shares()
        if name not in shares:
            return super().read(name)
        found = self.indexed(
            "train", list(shares), lambda example, reader: split_by_share(example.meta["question"], shares)
        )
        self.check_size("train", found["train"].found)
        return found

    def digests(self, name: str) -> list[Any]:
        return [name, super().digests("train" if name in self._shares() else name)]

    def reader(self, split: str, table: Table) -> Sums:
        return Sums(table.name, self, split)

    def postprocess(self, text: str) -> str:
        return text.partition(NEXT)[0].strip()


class Sums(GrueReader):
    """A question per row, and its solution, which ends with `#### NUMBER`."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        question, solution = text_of(row, "question").strip(), text_of(row, "answer").strip()
        steps, mark, number = solution.rpartition(MARK)
        if not (mark and steps.strip() and re.search(r"\d", number)):
            raise BadRow(f"`answer` does not end with `{MARK}` and a number")
        if not self.config.calculator:
            solution = _CALCULATOR.sub("", solution)
        prompt = self.prompt(question, before="Question: ", after="\nAnswer:", chat=CHAT)
        meta = {"references": [number.strip()], "question": question}
        return [Example(place, prompt, self.answers(prompt, [solution]), meta=meta)]
