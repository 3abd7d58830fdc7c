"""Both kinds of language model pass the tests that every policy inherits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlalign.testing import PolicyTests

from .conftest import COMPONENTS


class LanguageModelTests(PolicyTests):
    """A tiny model of a family, in float64 throughout."""

    family: str
    more: Mapping[str, Any] = {}

    @pytest.fixture(autouse=True)
    def model(self, folders: Mapping[str, Path], exactly: None) -> None:
        self.options = {"path": str(folders[self.family]), **self.more}  # type: ignore[misc]

    @property
    def extra(self) -> dict[str, type[Any]]:
        return COMPONENTS

    def whole_pipeline(self) -> dict[str, Any]:
        return {**super().whole_pipeline(), "task": "sentences", "rewards": ["evens"]}


class TestCausal(LanguageModelTests):
    component = "causal-lm"
    family = "gpt2"


class TestCausalWithLora(LanguageModelTests):
    component = "causal-lm"
    family, more = "llama", {"lora": {"r": 4}}


class TestSeq2Seq(LanguageModelTests):
    component = "seq2seq-lm"
    family = "t5"
