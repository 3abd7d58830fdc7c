"""The tests that rewards inherit: a sound reward passes them, and each of them finds what it is for."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from pydantic import Field

from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, RewardTests


def overlap(text: str, references: tuple[str, ...]) -> float:
    """The largest share of a reference's words that a text holds."""
    words = set(text.split())
    shares = [len(words & set(r.split())) / max(1, len(set(r.split()))) for r in references]
    return max(shares, default=0.0)


class Overlap(Component):
    """The share of a reference's words that a response holds."""

    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `overlap`."""

        factor: float = Field(1.0, description="what the share is multiplied by")

    config: Config

    def value(self, text: str, references: tuple[str, ...]) -> float:
        return self.config.factor * overlap(text, references)

    def values(self, rollout: Rollout) -> list[float]:
        for example in rollout.answered:
            if not example.references:
                raise ComponentError(f"example `{example.id}` has no references")
        return [
            self.value(text, e.references) for text, e in zip(rollout.texts, rollout.answered, strict=True)
        ]

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor(self.values(rollout), dtype=torch.float64))


class WithSpread(Overlap):
    """Also: how much the shares of all responses differ."""

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        found = self.values(rollout)
        return {"spread": max(found) - min(found)}


class Spread(Component):
    """Of all responses: how much their lengths differ."""

    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        lengths = [len(text) for text in rollout.texts]
        return {"spread": float(max(lengths) - min(lengths))}


class Missed(Overlap):
    """The share of the words that are missing: smaller is better."""

    higher_is_better = False

    def value(self, text: str, references: tuple[str, ...]) -> float:
        return 1 - overlap(text, references)


class TestOverlap(RewardTests):
    component = Overlap


class TestWithSpread(RewardTests):
    component = WithSpread


class TestSpread(RewardTests):
    component = Spread


class TestMissed(RewardTests):
    component = Missed


# -- and what they find -----------------------------------------------------------------------------


class OfTheBatch(Overlap):
    def values(self, rollout: Rollout) -> list[float]:
        return [value / len(rollout) for value in super().values(rollout)]


class OfItsPlace(Overlap):
    def values(self, rollout: Rollout) -> list[float]:
        return [value if i % 2 else value / 2 for i, value in enumerate(super().values(rollout))]


class OfItsGroup(Overlap):
    def values(self, rollout: Rollout) -> list[float]:
        found, groups = super().values(rollout), rollout.group_N.tolist()
        best = [max(v for v, g in zip(found, groups, strict=True) if g == mine) for mine in groups]
        return [value / (most or 1) / 1.1 for value, most in zip(found, best, strict=True)]


class Unsafe(Overlap):
    """Keeps on itself what it works on."""

    def value(self, text: str, references: tuple[str, ...]) -> float:
        self.text = text
        time.sleep(0.001)
        return super().value(self.text, references)


class Tensors(Overlap):
    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout), rollout.steps + 1))


class NotANumber(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        return super().value(text, references) if text.split() else float("nan")


class Ascii(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        text.encode("ascii")
        return super().value(text, references)


class Slow(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        words = text.split()
        started = time.process_time()
        while len(words) > 10_000 and time.process_time() - started < 0.4:
            pass
        return super().value(text, references)


class TestSlow(RewardTests):
    """A test class of its own, with less patience, whose other tests pass."""

    component = Slow
    seconds = 0.2

    def test_a_very_long_text_is_scored_in_time(self, bench: Bench) -> None:
        with pytest.raises(AssertionError, match="20000 words took 0"):
            super().test_a_very_long_text_is_scored_in_time(bench)


class FirstOnly(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        return 1 - super().value(text, references)


class KeyErrors(Overlap):
    def values(self, rollout: Rollout) -> list[float]:
        return [
            self.value(t, (e.meta["references"][0],))
            for t, e in zip(rollout.texts, rollout.answered, strict=True)
        ]


class Draws(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        random.random()
        return super().value(text, references)


class SetsVariables(Overlap):
    def value(self, text: str, references: tuple[str, ...]) -> float:
        os.environ["LAST_TEXT"] = str(time.monotonic_ns())
        return super().value(text, references)


class Remembers(Overlap):
    """Counts how often it was asked."""

    asked = 0

    def values(self, rollout: Rollout) -> list[float]:
        self.asked += 1
        return [value / self.asked for value in super().values(rollout)]


class Beyond(Overlap):
    bounds = (0.0, 0.5)


class OfTheOrder(Spread):
    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        return {"first": float(len(rollout.texts[0]))}


class Ratio(Spread):
    @hookimpl
    def evaluate(self, rollout: Rollout) -> Mapping[str, float]:
        words = sum(len(text.split()) for text in rollout.texts)
        return {"ratio": 1 / words if words else float("inf")}


Test = Callable[..., None]
FOUND: list[tuple[type[Component], Test, str]] = [
    (OfTheBatch, RewardTests.test_a_value_is_the_same_however_responses_come, "other groups"),
    (OfItsPlace, RewardTests.test_a_value_is_the_same_however_responses_come, "order|other groups"),
    (OfItsGroup, RewardTests.test_a_value_is_the_same_however_responses_come, "reads_group"),
    (Remembers, RewardTests.test_a_value_is_the_same_however_responses_come, "asked twice"),
    (Remembers, RewardTests.test_it_is_the_same_as_a_metric, "it differs"),
    (Beyond, RewardTests.test_a_value_is_the_same_however_responses_come, "above `bounds`"),
    (Tensors, RewardTests.test_a_value_is_the_same_however_responses_come, "numbers for"),
    (Unsafe, RewardTests.test_threads_agree, "threads disagree"),
    (NotANumber, RewardTests.test_any_text_is_scored, "empty, .*nan"),
    (Ascii, RewardTests.test_any_text_is_scored, "white space, .*ascii"),
    (KeyErrors, RewardTests.test_one_reference_several_and_none, "a list of one reference|out of range"),
    (FirstOnly, RewardTests.test_a_reference_itself_is_not_worse_than_another_text, "higher_is_better"),
    (Draws, RewardTests.test_it_changes_nothing, "Python's global random numbers"),
    (SetsVariables, RewardTests.test_it_changes_nothing, "the environment"),
    (OfTheOrder, RewardTests.test_a_number_of_all_responses_is_theirs_alone, "another order"),
    (Ratio, RewardTests.test_any_text_is_measured, "empty: .*inf"),
]


@pytest.mark.parametrize(
    "component, test, says", FOUND, ids=[f"{c.__name__}-{t.__name__}" for c, t, _ in FOUND]
)
def test_it_is_found(
    component: type[Component],
    test: Test,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAST_TEXT", "")  # set back at the end
    kit = RewardTests()
    kit.component = component  # type: ignore[misc]
    bench = Bench(tmp_path, kit.whole_pipeline(), kit.extra)
    with pytest.raises((AssertionError, LookupError), match=says):
        test(kit, bench)


def test_a_group_may_be_read_where_that_is_said(tmp_path: Path) -> None:
    class OnPurpose(RewardTests):
        component = OfItsGroup
        reads_group = True

    kit = OnPurpose()
    kit.test_a_value_is_the_same_however_responses_come(Bench(tmp_path, kit.whole_pipeline(), kit.extra))
