"""The examples of a pipeline's tasks: read once, those that the policy can read, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlalign.config.pipeline import Pipeline
from rlalign.data.example import Example, Joined, Without
from rlalign.errors import ConfigError, attributed_to
from rlalign.records.columns import data_fingerprint
from rlalign.records.rows import Rows
from rlalign.records.rundir import RunDir
from rlalign.running.examples import examples_of
from rlalign.running.models import Models
from rlalign.running.plan import PhasePlan


class Data:
    """Splits by task and name. `directory` is asked for when an earlier phase's responses are read."""

    def __init__(
        self, pipeline: Pipeline, models: Models, directory: Callable[[], RunDir], note: Callable[[str], None]
    ) -> None:
        self.pipeline = pipeline
        self.models = models
        self._directory = directory
        self._note = note
        self._splits: dict[tuple[int, str], Sequence[Example]] = {}
        self._fingerprints: dict[int, str] = {}

    def split(self, plan: PhasePlan, split: str) -> Sequence[Example]:
        """A split of a phase's task."""
        key = (id(plan.task), split)
        if key not in self._splits:
            task = plan.settings.task
            found = examples_of(plan.task, f"{task.place}: task `{task.name}`", split)
            self._splits[key] = self._readable(found, split)
        return self._splits[key]

    def _readable(self, examples: Sequence[Example], split: str) -> Sequence[Example]:
        """Those of a split that the policy can read; says how many it cannot."""
        who = f"policy `{self.pipeline.policy.name}`"
        place = self.pipeline.policy.place
        with attributed_to(f"{place}: {who}, reading the prompts of `{split}`,"):
            refused = self.models.opened().refuse(examples)
        if not refused:
            return examples
        of = f"of {len(examples):,} examples of `{split}`"
        first = min(refused)
        why = f"the first is `{examples[first].id}`: {refused[first]}"
        if len(refused) == len(examples):
            raise ConfigError(f"{place}: {who} can read none {of}; {why}")
        self._note(f"{who} leaves out {len(refused):,} {of}; {why}")
        return Without(examples, refused)

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

    def check(self, plans: Sequence[PhasePlan]) -> None:
        """Every split that a phase will read is there, and holds what it will be asked for."""
        for plan in plans:
            settings = plan.settings
            splits = {settings.evaluate.split} if settings.evaluate else set()
            if settings.origin is None or settings.origin.original:
                splits.add("train")
            for split in sorted(splits):
                data, who = self.split(plan, split), f"{settings.task.place}: task `{settings.task.name}`"
                if len(data) == 0:
                    raise ConfigError(f"{who} has no examples in `{split}`")
            source = plan.source
            logged = "logged" in (source.item.component, *source.component.sources)
            if logged and settings.origin is None and not self.split(plan, "train")[0].responses:
                meta = ", ".join(map(repr, self.split(plan, "train")[0].meta))
                raise ConfigError(
                    f"{source.item.place}: responses come from the log here, and the first example of task "
                    f"`{settings.task.name}` has none"
                    + (f" (only, in its meta, {meta})" if meta else "")
                    + "; say "
                    "`responses: sampled`, or let the task give logged responses"
                )
