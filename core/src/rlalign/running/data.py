"""The examples of a pipeline's tasks: read once, those that the policy can read, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from rlalign.config.pipeline import Pipeline
from rlalign.data.example import Example, Joined, Without, taken
from rlalign.errors import ConfigError
from rlalign.interface.environment import Environment
from rlalign.learning import draw
from rlalign.records.columns import data_fingerprint
from rlalign.records.rows import Rows
from rlalign.records.rundir import RunDir
from rlalign.running.examples import examples_of
from rlalign.running.models import Models
from rlalign.running.plan import PhasePlan, asked_of

LOOKED_AT = 1_000
"""Examples of a large split that are looked at before the run."""


class Data:
    """Splits by task and name. `directory` is asked for when an earlier phase's responses are read."""

    def __init__(
        self,
        pipeline: Pipeline,
        plans: Sequence[PhasePlan],
        models: Models,
        directory: Callable[[], RunDir],
        note: Callable[[str], None],
    ) -> None:
        self.pipeline = pipeline
        self._plans = plans
        self.models = models
        self._directory = directory
        self._note = note
        self.most: int | None = None
        """How many examples of a split are looked at, for a check that takes seconds; None: all of them."""
        self.few: int | None = None
        """How many examples of a split there are, the first ones, for a trial; None: all of them."""
        self._given: dict[tuple[int, str], Sequence[Example]] = {}
        self._splits: dict[tuple[int, str], Sequence[Example]] = {}
        self._fingerprints: dict[int, str] = {}

    def given(self, plan: PhasePlan, split: str) -> Sequence[Example]:
        """What a phase's task gives as its split: some Examples."""
        key = (id(plan.task), split)
        if key not in self._given:
            task, asked = plan.settings.task, plan.settings.evaluate
            who = f"{task.place}: task `{task.name}`"
            said = ""
            if split != "train" and asked is not None:
                said = f" ({plan.settings.place_of('evaluate.split')}: evaluate.split)"
            found = examples_of(plan.task, who, split, name=task.name, said=said)
            if len(found) == 0:
                raise ConfigError(f"{who} has no examples in `{split}`{said}")
            if self.few is not None and self.few < len(found):
                found = taken(found, range(self.few))
            self._given[key] = found
        return self._given[key]

    def split(self, plan: PhasePlan, split: str) -> Sequence[Example]:
        """A split of a phase's task, without what the policy cannot read."""
        key = (id(plan.task), split)
        if key not in self._splits:
            self._splits[key] = self._readable(self.given(plan, split), plan, split)
        return self._splits[key]

    def _readable(self, examples: Sequence[Example], plan: PhasePlan, split: str) -> Sequence[Example]:
        """Those of a split that the policy can read; says how many it cannot.

        An environment's are all read: what they ask is known once an episode begins.
        """
        if isinstance(plan.task, Environment):
            return examples
        responses, first = asked_of(self._plans, plan.task, split)
        large = len(examples) >= draw.LARGE
        some = large or (self.most is not None and len(examples) > self.most)
        if large:
            first = min(LOOKED_AT, self.most or LOOKED_AT, first or LOOKED_AT)
        elif some:
            first = min(self.most or 0, first or len(examples))
        part = examples
        if first is not None and first < len(examples):
            part = taken(examples, range(first))
        refused = self._refused(part, responses, split)
        if refused and len(part) < len(examples) and not some:  # others take their place
            part, refused = examples, self._refused(examples, responses, split)
        if not refused:
            return examples
        who, place = f"policy `{self.pipeline.policy.name}`", self.pipeline.policy.place
        of = f"of {'the first ' if some else ''}{len(part):,} examples of `{split}`"
        least = min(refused)
        why = f"the first is `{examples[least].id}`: {refused[least]}"
        if len(refused) == len(examples):
            raise ConfigError(f"{place}: {who} can read none {of}; {why}")
        later = ", and others as they are drawn" if large and self.most is None else ""
        self._note(f"{who} leaves out {len(refused):,} {of}{later}; {why}")
        return examples if some else Without(examples, refused)

    def first(self, plan: PhasePlan, split: str, count: int) -> list[Example]:
        """The first examples of a split that the policy can read."""
        examples = self.split(plan, split)
        refuse = self.refusing(plan, examples, split)
        found: list[Example] = []
        for start in range(0, len(examples), count):
            piece = taken(examples, range(start, min(start + count, len(examples))))
            refused = refuse(piece) if refuse else ()
            found += [example for i, example in enumerate(piece) if i not in refused]
            if len(found) >= count:
                break
        return found[:count]

    def refusing(self, plan: PhasePlan, data: Sequence[Example], split: str = "train") -> draw.Refuse | None:
        """What is asked of large data's examples as they are read; None: all that are left are known to be fit."""
        if len(data) < draw.LARGE:
            return None
        responses, _ = asked_of(self._plans, plan.task, split)
        return lambda examples: self._refused(examples, responses, split)

    def _refused(
        self, examples: Sequence[Example], responses: Collection[str], split: str
    ) -> Mapping[int, str]:
        policy = self.models.opened()
        with self.models.naming(doing=f", reading the prompts of `{split}`"):
            return policy.refuse(examples, responses)

    def training(self, plan: PhasePlan, repeat: int) -> Sequence[Example]:
        """The task's training examples, or what an earlier phase wrote down."""
        origin = plan.settings.origin
        if origin is None:
            return self.split(plan, "train")
        path = self._directory().path / self.rows_file(repeat, origin.phase)
        return Joined(Rows(path), self.split(plan, "train")) if origin.original else Rows(path)

    def fingerprint(self, plan: PhasePlan, data: Sequence[Example]) -> str:
        """A short string that changes with the data."""
        if data is not self._splits.get((id(plan.task), "train")):
            return data_fingerprint(data)
        if id(plan.task) not in self._fingerprints:
            self._fingerprints[id(plan.task)] = plan.task.fingerprint("train") or data_fingerprint(data)
        return self._fingerprints[id(plan.task)]

    def is_read_later(self, phase: str) -> bool:
        """Whether another phase reads this one's responses."""
        return any(p.origin is not None and p.origin.phase == phase for p in self.pipeline.phases)

    def rows_file(self, repeat: int, phase: str) -> str:
        """Where a phase's responses are written down, within the run's folder."""
        return f"rows/{phase}-{repeat + 1}.jsonl"
