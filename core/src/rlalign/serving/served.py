"""A served reward in its place in a pipeline: the hooks and declarations of the real one, which is elsewhere."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.config.pipeline import Item
from rlalign.data.batch import Score
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run
from rlalign.records.answers import Answers
from rlalign.serving.asking import Asker, Pool
from rlalign.serving.child import memory_of
from rlalign.serving.host import WHERE, Recipe
from rlalign.serving.questions import Group, groups_of, key_of, score_of
from rlalign.world.ranks import here

SERVED = ("reward", "evaluate")
"""The hooks that another process can answer."""
_DECLARED = (
    *("min_samples", "scored", "estimates", "responses", "defaults"),
    *("higher_is_better", "bounds", "paper"),
)
_READS = ("models", "needs", "trains", "constraint", "sources")
"""Declarations that tie a component to the models of the run's own process."""


def unservable(real: Component) -> str | None:
    """Why a component cannot be computed in another process, in words that follow its name."""
    marked = {
        name: impl
        for name in dir(type(real))
        if (impl := getattr(getattr(type(real), name), "rlalign_impl", None)) is not None
    }
    if wraps := [name for name, impl in marked.items() if impl.get("wrapper")]:
        return f"wraps `{wraps[0]}` of what stands above it, which is in the run's own process"
    if not marked:
        return "has no hook that can be served"
    if reads := [name for name in _READS if getattr(real, name) not in (None, False, (), [], {})]:
        return f"declares `{reads[0]}`: the run's models are not there in another process"
    if other := [name for name in marked if name not in SERVED]:
        return f"has a hook `{other[0]}`; only {' and '.join(f'`{name}`' for name in SERVED)} can be served"
    kept = ("state_dict", "load_state_dict")
    if any(getattr(type(real), name) is not getattr(Component, name) for name in kept):
        return "keeps a state (`state_dict`), which would be lost with its process"
    return None


def unlimited(memory: int | None) -> str | None:
    """What of these limits this machine cannot watch."""
    if memory is not None and memory_of(os.getpid()) == 0:
        return "`memory` is watched through /proc, which this machine does not have; leave it out"
    return None


class Served(Component):
    """The part of a served reward that is in the run's own process."""

    by_one = True

    def __init__(self, real: Component, item: Item, recipe: Recipe) -> None:
        super().__init__(item.options)
        assert item.isolate is not None
        self.name = item.name
        for name in _DECLARED:
            setattr(self, name, getattr(real, name))
        self._signature = real.signature
        self.answers: Answers | None = None
        """The record of what it answered; set by the core."""
        self.digest = recipe.digest
        """A hash of its code and options."""
        self._worker = Asker(f"asks-{item.name}")
        self._begun: dict[str, _Part] = {}
        """What was asked ahead, by the hash of the question."""
        self._failed: list[ComponentError] = []
        """What went wrong ahead: after it, what else was asked ahead is not tried, until it was collected."""
        self._stood: tuple[str, ...] = ()
        self._pool = Pool(recipe, item.isolate, item.place)
        self.close = weakref.finalize(self, _close, self._pool, self._worker)
        """Ends its process; so does the end of this one."""

    def signature(self) -> str:
        return self._signature()

    def setup(self, run: Run) -> None:
        if self.answers is not None:
            self._pool.log = self.answers.folder / f"{self.name}.log"
        if here().leads:  # it alone asks
            self._worker.submit(self._pool.begin).result()

    def ahead(self, run: Run, rollout: Rollout) -> None:
        """Begin to score responses, whole groups of them, and do not wait; `reward` then collects what it needs."""
        if not isinstance(self, _Scores):
            return
        asked = self._keyed(run, rollout)
        known = self._known(run)
        new = {key: group for _, group, key in asked if key not in self._begun and key not in known}
        self._begun |= self._ask(new, run, self._failed)

    def _scored(self, run: Run, rollout: Rollout) -> Score:
        asked, known = self._keyed(run, rollout), self._known(run)
        new = {key: group for _, group, key in asked if key not in known and key not in self._begun}
        self._begun |= self._ask(new, run)
        found = {key: known[key] if key in known else self._answer(key) for _, _, key in asked}
        for key in found:
            self._begun.pop(key, None)
        self._keep(run, found)
        try:
            return score_of([(rows, found[key]) for rows, _, key in asked], rollout)
        except ValueError as error:
            raise ComponentError(f"the served reward `{self.name}` {error}") from None

    def _measured(self, run: Run, rollout: Rollout) -> dict[str, float]:
        groups = [group for _, group in groups_of(rollout)]
        key = key_of({"groups": groups}, "evaluate", *self._about(run))
        found = self._known(run).get(key)
        if found is None:
            where = _where(run)
            found = self._worker.submit(lambda: self._pool.metrics(groups, where, key)).result()
            self._keep(run, {key: found})
        return {name: float(value) for name, value in found.items()}

    # -- asking -------------------------------------------------------------------------------------------

    def _about(self, run: Run) -> tuple[str, ...]:
        """Who is asked, and when: with the responses, what tells one question from another."""
        return self.digest, self.name, run.phase, str(run.repeat), str(run.iteration)

    def _keyed(self, run: Run, rollout: Rollout) -> list[tuple[list[int], Group, str]]:
        about = self._about(run)
        if about != self._stood:  # what nobody came to collect
            self._begun, self._failed, self._stood = {}, [], about
        return [(rows, group, key_of(group, *about)) for rows, group in groups_of(rollout)]

    def _ask(
        self, groups: Mapping[str, Group], run: Run, failed: list[ComponentError] | None = None
    ) -> dict[str, _Part]:
        """Ask for these groups at once, unless something `failed` before; an answer to come for each."""
        if not groups:
            return {}
        keys, asked, where = list(groups), list(groups.values()), _where(run)

        def scores() -> list[dict[str, Any]]:
            if failed:
                raise failed[0]
            try:
                return self._pool.scores(asked, where, keys)
            except ComponentError as error:
                if failed is not None:
                    failed.append(error)
                raise

        whole = self._worker.submit(scores)
        return {key: _Part(whole, i) for i, key in enumerate(keys)}

    def _answer(self, key: str) -> dict[str, Any]:
        """Wait for an answer. Where it is a failure, what has no answer by then is asked anew when it is wanted."""
        try:
            return self._begun[key].result()
        except Exception:
            self._begun = {other: part for other, part in self._begun.items() if part.there}
            self._failed = []
            raise

    # -- the record ---------------------------------------------------------------------------------------

    def _known(self, run: Run) -> Mapping[str, Any]:
        return {} if self.answers is None else self.answers.known(run.tick)

    def _keep(self, run: Run, found: Mapping[str, Any]) -> None:
        if self.answers is not None:
            self.answers.add(run.tick, found)


class _Scores(Served):
    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        return self._scored(run, rollout)


class _Measures(Served):
    @hookimpl
    def evaluate(self, run: Run, rollout: Rollout) -> dict[str, float]:
        return self._measured(run, rollout)


def served(real: Component, item: Item, folder: Path | None, *, trust: bool, seed: int) -> Served:
    """What stands in a pipeline for a component that is elsewhere."""
    recipe = Recipe.of(item, folder, trust=trust, seed=seed)
    made: Served = _class_of(type(real))(real, item, recipe)
    return made


_made: dict[type[Component], type[Served]] = {}


def _class_of(real: type[Component]) -> type[Served]:
    """With the hooks of the real one, and its name in messages; one for each class."""
    if real in _made:
        return _made[real]
    bases = tuple(
        base for hook, base in (("reward", _Scores), ("evaluate", _Measures)) if hasattr(real, hook)
    )
    _made[real] = type(
        f"Served{real.__name__}", bases, {"__module__": real.__module__, "__doc__": real.__doc__}
    )
    return _made[real]


def _where(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in WHERE}


@dataclass(frozen=True)
class _Part:
    """An answer to come, one of those that come together."""

    whole: Future[list[dict[str, Any]]]
    place: int

    @property
    def there(self) -> bool:
        return self.whole.done() and self.whole.exception() is None

    def result(self) -> dict[str, Any]:
        return self.whole.result()[self.place]


def _close(pool: Pool, worker: Asker) -> None:
    pool.close()
    worker.end()
