"""Every reward and metric of the package keeps what the kit asks of all."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest
import torch

from rlalign.testing import Bench, RewardTests
from rlalign.testing.reward_kit import answered, ask

from .test_meteor import write_wordnet

MORE: dict[str, dict[str, Any]] = {
    "commongen-penalty": {"meta": {"keywords": ["cat", "mat"]}},
    "coverage": {"meta": {"keywords": ["cat", "mat", "rain"]}},
    "json-valid": {"options": {"required": ["a"], "fences": True}},
    "numeric-answer": {
        "meta": {"references": ["It costs 3.50 euros.", "#### 4"]},
        # A reference without a number is refused.
        "test_any_text_is_scored": None,
        "test_a_reference_itself_is_not_worse_than_another_text": None,
    },
    "parent": {"meta": {"table": [["Where", "the north"], ["What", "rain"], ["On", "mat"]]}},
    "regex": {"options": {"pattern": r"(\w+)\s+\1|\d"}},
    "self-bleu": {"reads_group": True},
    "text-length": {"options": {"least": 3, "most": 9}},
}
"""What some need besides their names."""
NAMES = [p.name for p in entry_points(group="rlalign") if p.value.startswith("rlalign_plugin_text_metrics.")]
assert {*MORE, "meteor", "rouge", "diversity"} <= set(NAMES)


class OfText(RewardTests):
    def test_of_no_responses_nothing_is_said(self, bench: Bench) -> None:
        nothing = answered(self.examples).take(torch.tensor([], dtype=torch.long))
        for hook in self.hooks():
            found = ask(self.component_of(bench), hook, bench, nothing)
            assert found == {} if hook == "evaluate" else found.value.shape == (0,)


class TestMeteor(OfText):
    component = "meteor"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def wordnet(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.options = {"wordnet": str(write_wordnet(tmp_path_factory.mktemp("wordnet") / "dict"))}


for name in sorted({*NAMES} - {"meteor"}):
    called = f"Test{name.title().replace('-', '')}"
    globals()[called] = type(called, (OfText,), {"component": name, **MORE.get(name, {})})
