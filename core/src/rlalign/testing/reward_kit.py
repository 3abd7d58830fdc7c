"""Tests to inherit: what every reward and every metric of texts must do."""

from __future__ import annotations

import inspect
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch

from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout, logged_rollout
from rlalign.errors import RLAlignError
from rlalign.interface.component import Component, Task
from rlalign.testing.bench import Bench
from rlalign.testing.kit import ComponentTests
from rlalign.testing.process import PROCESS, same
from rlalign.testing.texts import OTHER, ROWS, STRANGE, WORDS
from rlalign.world.comparing import digest

THREADS = 8


class RewardTests(ComponentTests):
    """Inherit, name the reward or metric, and pytest does the rest.

    It is tried on the responses of `rows`; what else it reads of `meta` is given in `meta`, for all of them. Declare
    what holds on purpose: values of a model that are equal up to a `tolerance`, `reads_group` where a value depends on
    the responses beside it, the processor's `seconds` that a text of 20,000 words may take.
    """

    rows: ClassVar[Sequence[Example]] = ROWS
    meta: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float] = 0.0
    reads_group: ClassVar[bool] = False
    seconds: ClassVar[float] = 10.0

    # -- how it is asked ----------------------------------------------------------------------------

    @property
    def examples(self) -> list[Example]:
        """The rows, with what it reads of them."""
        return [replace(row, meta={**row.meta, **self.meta}) for row in self.rows]

    @property
    def extra(self) -> dict[str, type[Any]]:
        return {**super().extra, "rows": type("Rows", (_Rows,), {"rows": tuple(self.examples)})}

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline over the rows, with a policy that writes any text: a reward, and once more a metric."""
        options = json.loads(json.dumps(dict(self.options), default=str))
        scored = {self.named: options, "as": "scored"}
        if not self.cls.higher_is_better:
            scored["weight"] = -1
        is_reward = "reward" in self.hooks()
        base: dict[str, Any] = {
            "task": "rows",
            "policy": "bytes",
            "rewards": [scored] if is_reward else ["length"],
            "algorithm": "policy-gradient",
            "generation": {"samples": 2, "max_new_tokens": 12},
            "train": {"iterations": 2, "prompts": len(self.rows), "lr": 0.01},
            "evaluate": {
                "split": "val",
                "examples": len(self.rows),
                "use": [*(["scored"] if is_reward else []), {self.named: options, "as": "measured"}],
                "generation": {"samples": 2, "max_new_tokens": 12},
            },
        }
        return {**base, **self.pipeline}

    @cached_property
    def bounds(self) -> tuple[float | None, float | None]:
        """What it declares with these options."""
        return self.cls(self.config).bounds

    def component_of(self, bench: Bench) -> Component:
        """The component under test, set up."""
        return next(c for c in bench.phase.plan.components if isinstance(c, self.cls))

    def values(self, bench: Bench, examples: Sequence[Example]) -> list[float]:
        """Its number for each response of these examples, asked for directly."""
        score = ask(self.component_of(bench), "reward", bench, answered(examples))
        assert isinstance(score, Score), f"`reward` returned a {type(score).__name__}, no Score"
        count = sum(len(example.responses) for example in examples)
        assert tuple(score.value.shape) == (count,), (
            f"`reward` gave {tuple(score.value.shape)} numbers for {count} responses"
        )
        return [float(value) for value in score.value]

    def measured(self, bench: Bench, examples: Sequence[Example]) -> dict[str, float]:
        """What its `evaluate` says of all their responses."""
        found = ask(self.component_of(bench), "evaluate", bench, answered(examples)) or {}
        return {name: float(value) for name, value in found.items()}

    def equal(self, found: Sequence[float], expected: Sequence[float], why: str) -> None:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert abs(one - other) <= self.tolerance, f"{why}: {one!r} and {other!r}"

    def needs_hook(self, hook: str, *, repeatable: bool = False) -> None:
        if hook not in self.hooks():
            pytest.skip(f"`{self.named}` has no `{hook}`")
        if repeatable and not self.deterministic:
            pytest.skip(f"`{self.named}` answers differently each time")

    def check_sound(self, values: Sequence[float], what: str) -> None:
        """Finite, and between the bounds it declares."""
        least, most = self.bounds
        for value in values:
            assert math.isfinite(value), f"{what}: scored {value}"
            slack = max(self.tolerance, 1e-6 * max(1.0, abs(value)))
            assert least is None or value >= least - slack, f"{what}: scored {value}, below `bounds`"
            assert most is None or value <= most + slack, f"{what}: scored {value}, above `bounds`"

    # -- a number for each response -----------------------------------------------------------------

    def test_a_value_is_the_same_however_responses_come(self, bench: Bench) -> None:
        """Alone, in another order, in parts of whole groups."""
        self.needs_hook("reward", repeatable=True)
        examples = self.examples
        whole = self.values(bench, examples)
        self.check_sound(whole, "the rows")
        self.equal(self.values(bench, examples), whole, "asked twice")
        parts = [value for example in examples for value in self.values(bench, [example])]
        self.equal(parts, whole, "a group depends on other groups")
        backwards = [replace(e, responses=e.responses[::-1], scores=()) for e in examples[::-1]]
        self.equal(self.values(bench, backwards)[::-1], whole, "a value depends on the order of rows")
        repeated = self.values(bench, [*examples, *examples])
        self.equal(repeated, [*whole, *whole], "a group depends on other groups")
        if not self.reads_group:
            alone = [
                self.values(bench, [replace(example, responses=(text,), scores=())])[0]
                for example in examples
                for text in example.responses
            ]
            self.equal(
                alone, whole, "a value depends on the responses beside it (else say `reads_group = True`)"
            )

    def test_a_state_that_moves_is_one_process_s(self, bench: Bench) -> None:
        """Of several processes each is asked for some groups, and what it keeps of them would be another on each."""
        self.needs_hook("reward", repeatable=True)
        component = self.component_of(bench)
        self.values(bench, self.examples[:1])
        before = digest(component.state_dict())
        self.values(bench, self.examples)
        assert component.by_one or digest(component.state_dict()) == before, (
            "its state moves when it is asked: say `by_one = True`, and of several processes one asks it"
        )

    def test_threads_agree(self, bench: Bench) -> None:
        """Eight at once, each with the rows in an order of its own."""
        self.needs_hook("reward", repeatable=True)
        examples = self.examples
        whole = {e.id: self.values(bench, [e]) for e in examples}
        together = threading.Barrier(THREADS)

        def ask_all(thread: int) -> None:
            order = random.Random(thread).sample(examples, len(examples))
            together.wait()
            for _ in range(3):
                expected = [value for example in order for value in whole[example.id]]
                self.equal(self.values(bench, order), expected, f"{THREADS} threads disagree")

        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(ask_all, thread) for thread in range(THREADS)]:
                done.result()

    def test_it_is_the_same_as_a_metric(self, bench: Bench) -> None:
        """What `evaluate.use` logs of some texts is what `rewards` pays for them."""
        self.needs_hook("reward", repeatable=True)
        plan, rollout = bench.phase.plan, answered(self.examples)
        (paid,) = [m.name for m in plan.members if m.role == "rewards" and isinstance(m.component, self.cls)]
        used = "measured"
        earned = plan.training.reward(bench.run, rollout).parts[paid]
        parts = plan.evaluation.reward(bench.run, rollout).parts
        self.equal(parts[used].tolist(), earned.tolist(), "as a metric and as a reward it differs")
        self.equal(parts[paid].tolist(), earned.tolist(), "in an evaluation and in training it differs")

    def test_any_text_is_scored(self, bench: Bench) -> None:
        """As a response, beside ordinary ones, and as what responses are compared with."""
        self.needs_hook("reward")
        for kind, text in STRANGE.items():
            for example in self.examples:
                responses = (text, *example.responses[:1], text)
                tried = [replace(example, responses=responses, scores=())]
                if example.references and text.strip():
                    tried.append(with_references(tried[0], (text, *example.references)))
                    tried.append(with_references(tried[0], (text,)))
                for one in tried:
                    with trying(f"{kind}, example `{one.id}`"):
                        values = self.values(bench, [one])
                    self.check_sound(values, f"{kind}, example `{one.id}`")
                    if self.deterministic and not self.reads_group:
                        self.equal(values[:1], values[2:], f"{kind}: one text, two values")

    def test_a_very_long_text_is_scored_in_time(self, bench: Bench) -> None:
        """20,000 words beside ordinary references."""
        self.needs_hook("reward")
        example = replace(self.examples[0], scores=())
        self.values(bench, [example])  # whatever is loaded at first
        long = " ".join(f"word{i % 997}" for i in range(WORDS))
        started = time.process_time()
        values = self.values(bench, [replace(example, responses=(long, *example.responses[:1]))])
        took = time.process_time() - started
        self.check_sound(values, f"{WORDS} words")
        assert took < self.seconds, f"{WORDS} words took {took:.1f} s of processor time"

    def test_one_reference_several_and_none(self, bench: Bench) -> None:
        """Several texts, one text in place of a list; without any, a number or an error that names the example."""
        self.needs_hook("reward")
        for example in self.examples:
            if not example.references:
                continue
            listed = with_references(example, example.references[:1])
            bare = replace(example, meta={**example.meta, "references": example.references[0]})
            several, one = (self.values(bench, [each]) for each in (listed, bare))
            if self.deterministic:
                self.equal(several, one, "a list of one reference, and that reference")
            twice = self.values(bench, [with_references(example, example.references * 2)])
            self.check_sound(twice, "references that stand there twice")
            found, said = [], example.id
            try:
                found = self.values(bench, [with_references(example, ())])
            except RLAlignError as error:
                said = str(error)
            assert example.id in said, f"the error does not name the example: {said}"
            self.check_sound(found, "no references")

    def test_a_reference_itself_is_not_worse_than_another_text(self, bench: Bench) -> None:
        self.needs_hook("reward", repeatable=True)
        compared = False
        sign = 1 if self.cls.higher_is_better else -1
        for example in self.examples:
            for i, reference in enumerate(example.references):
                one = with_references(replace(example, responses=(reference, OTHER), scores=()), (reference,))
                right, wrong = self.values(bench, [one])
                swapped = self.values(bench, [with_references(one, (OTHER,))])
                compared |= swapped != [right, wrong]
                assert swapped == [right, wrong] or sign * (right - wrong) >= -self.tolerance, (
                    f"example `{example.id}`, reference {i + 1}: scored {right} where it is the response, and "
                    f"{OTHER!r} scored {wrong}; say `higher_is_better = False` if that is meant"
                )
        if not compared:
            pytest.skip(f"`{self.named}` does not compare with references")

    # -- a number for all of them -------------------------------------------------------------------

    def test_a_number_of_all_responses_is_theirs_alone(self, bench: Bench) -> None:
        """Finite, the same when asked again and by threads, and in whatever order responses come."""
        self.needs_hook("evaluate", repeatable=True)
        examples = self.examples
        whole = self.measured(bench, examples)
        backwards = [replace(e, responses=e.responses[::-1], scores=()) for e in examples[::-1]]
        with ThreadPoolExecutor(THREADS) as threads:
            asked = [threads.submit(self.measured, bench, e) for e in [examples] * THREADS + [backwards]]
            for found in (one.result() for one in asked):
                assert found == pytest.approx(whole, rel=1e-9, abs=max(self.tolerance, 1e-12)), (
                    f"asked again, by a thread or in another order of rows: {found}, not {whole}"
                )
        for name, value in whole.items():
            assert math.isfinite(value), f"`{name}` is {value}"

    def test_any_text_is_measured(self, bench: Bench) -> None:
        """Among others, and where there is no other text."""
        self.needs_hook("evaluate")
        for kind, text in STRANGE.items():
            for examples in (self.examples, self.examples[:1]):
                only = [replace(e, responses=(text,) * len(e.responses), scores=()) for e in examples[:1]]
                with trying(kind):
                    found = self.measured(bench, [*only, *examples[1:]])
                for name, value in found.items():
                    assert math.isfinite(value), f"{kind}: `{name}` is {value}"

    # -- and nothing else ---------------------------------------------------------------------------

    def test_it_changes_nothing(self, bench: Bench) -> None:
        """Neither what it is given nor anything of the process; nor does it draw random numbers."""
        examples = self.examples
        rollout = answered(examples)
        asked = [hook for hook in ("reward", "evaluate") if hook in self.hooks()]
        for hook in asked:
            ask(self.component_of(bench), hook, bench, rollout)  # whatever is loaded at first
        given = (told(examples), rollout.texts, rollout.actions_NT.clone(), rollout.mask_NT.clone())
        before = {name: look() for name, look in PROCESS.items()}
        for hook in asked:
            ask(self.component_of(bench), hook, bench, rollout)
        for name, look in PROCESS.items():
            assert same(look(), before[name]), f"it changed {name}"
        assert (told(examples), rollout.texts) == given[:2], "it changed an example or a text"
        assert torch.equal(rollout.actions_NT, given[2]) and torch.equal(rollout.mask_NT, given[3])

    def test_it_says_what_it_is(self) -> None:
        """A signature is one line; the least bound is below the largest."""
        least, most = self.bounds
        assert least is None or most is None or least < most, f"bounds = {self.bounds}"
        assert isinstance(self.cls.higher_is_better, bool)


class _Rows(Task):
    """The rows, as every split."""

    rows: ClassVar[tuple[Example, ...]]

    def examples(self, split: str) -> Sequence[Example]:
        return self.rows


def answered(examples: Sequence[Example]) -> Rollout:
    """The responses of these examples as a rollout: a token each, whatever their texts."""
    actions = [([0], True) for example in examples for _ in example.responses]
    return logged_rollout(examples, [torch.zeros(1).long()] * len(examples), actions, like=torch.zeros(()))


def ask(component: Component, hook: str, bench: Bench, rollout: Rollout) -> Any:
    """What a hook returns, with the arguments it asks for."""
    given = {"run": bench.run, "rollout": rollout}
    method = getattr(component, hook)
    return method(**{name: given[name] for name in inspect.signature(method).parameters})


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Whatever is raised inside fails the test, with these words."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, AssertionError) else f"raised {error!r}"
        raise AssertionError(f"{what}: {said}") from error


def with_references(example: Example, references: Sequence[str]) -> Example:
    return replace(example, meta={**example.meta, "references": list(references)})


def told(examples: Sequence[Example]) -> str:
    """All that examples say, as text."""
    return json.dumps([(e.id, e.prompt, e.responses, e.meta) for e in examples], default=repr)
