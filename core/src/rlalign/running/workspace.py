"""What outlives a phase: plans, models, components, data, and where logs go. Knows nothing of training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from rlalign.config.pipeline import Item, Pipeline
from rlalign.config.registry import Registry
from rlalign.interface.policy import Footprint
from rlalign.learning.memory import fitting_tokens, free_on, head_chunk, most_tokens
from rlalign.randomness import Seeds
from rlalign.records import checkpoint
from rlalign.records.answers import Answers
from rlalign.records.logs import Logs
from rlalign.records.rundir import RunDir
from rlalign.running.components import Components
from rlalign.running.data import Data
from rlalign.running.display import Display
from rlalign.running.models import Models
from rlalign.running.plan import copies_of, new_tokens
from rlalign.running.planning import plan_phases
from rlalign.serving.isolated import Isolated
from rlalign.serving.served import Served
from rlalign.world.ranks import here

TOKENS = "tokens_per_micro_batch"
"""What `lock.json` calls the budget of a run."""


class Workspace:
    """A pipeline ready to be run or looked into, with a folder of its own."""

    dir: RunDir
    logs: Logs
    leaves_files: bool = True
    """Whether its folder stays when all is over."""

    def __init__(self, pipeline: Pipeline, registry: Registry, display: Display) -> None:
        self.pipeline = pipeline
        self.registry = registry
        self.display = display
        self.plans, self.builder = plan_phases(pipeline, registry)
        self.seeds = Seeds(pipeline.seed)
        self.device = _device(pipeline.device)
        self.budget, self.head_chunk = most_tokens(self.device), head_chunk(self.device)
        self.step = 0
        self.told: set[tuple[str, str]] = set()
        self.ticks = 0
        """Iterations of the phases that are over."""
        self.last: dict[str, float] = {}
        """The metrics a finished run reports: its last evaluation's, or its last iteration's."""
        self.measured = ""
        """Where in the run that was, in words."""
        self.spread: dict[str, list[float]] = {}
        """Of those that are means over examples: half their 95 % interval, and how many."""
        self.models = Models(
            pipeline.policy,
            self.device,
            pipeline.phases[0].train.held,
            lambda name: self.seeds.seed_forward("model", name),
        )
        self.models.offload = pipeline.distributed.offload
        self.components = Components(self.plans, self.seeds, self.note_once)
        self.answers = Answers(lambda: self.dir)
        self.served = [c for c in self.builder.built.values() if isinstance(c, Served)]
        self.isolated = [c for c in self.builder.built.values() if isinstance(c, Isolated)]
        self.samplers = list(dict.fromkeys(plan.sampler for plan in self.plans if plan.sampler))
        for sampler in self.samplers:
            sampler.device, sampler.beside = self.device, here().beside
        for component in self.served:
            component.answers = self.answers
        for environment in self.isolated:
            environment.answers = self.answers
        self.models.new_tokens = new_tokens(self.plans)
        self.data = Data(pipeline, self.plans, self.models, lambda: self.dir, display.note)

    def build_policy(self) -> None:
        _ask_for_same_bits(self.pipeline.deterministic, self.device)
        specs = [spec for phase in self.pipeline.phases for spec in phase.models.values()]
        self.models.build_policy(keep_start=any(spec.of == "start" for spec in specs))
        self.head_chunk = head_chunk(self.device, self.models.policy.footprint())

    def make_small(self, examples: int) -> None:
        """Before anything is opened: models as small as they can be made, and so many examples of each split."""
        self.models.small, self.data.few = True, examples
        for component in self.builder.built.values():
            component.shrink()

    def footprint(self) -> Footprint | None:
        """The memory that the policy takes while it learns as all phases have it."""
        size = self.models.opened().footprint()
        if size is None:
            return None
        learning = [plan.settings.train for plan in self.plans if plan.learns]
        again = size.again is not None and all(train.recompute for train in learning)
        token = size.again if size.again is not None and again else size.token
        half = all(train.held == "bfloat16" for train in learning)
        return size._replace(token=int(token * (size.half if half else 1)))

    def fit(self, known: Mapping[str, Any], loaded: bool = True) -> dict[str, Any]:
        """How large micro-batches may be: as a run's lock has it, or what fits the memory that is free now.

        `loaded`: whether the policy's weights are there already.
        """
        size, free = self.footprint(), free_on(self.device)
        if size is not None and self.models.cut:
            count = here().count
            size = size._replace(weights=size.weights // count, learned=size.learned // count)
            if self.models.offload and self.device.type != "cpu":
                size = size._replace(weights=0, learned=0)
        if free is not None and self.device.type == "cpu":
            free //= here().beside
        if type(known.get(TOKENS)) is int:
            self.budget = max(1, min(int(known[TOKENS]), self.budget))
        elif size is not None and free is not None:
            self.budget = fitting_tokens(
                size,
                free - (0 if loaded else size.weights),
                copies=0 if self.models.opened().shares else len(copies_of(self.plans)),
                most=self.budget,
                chunk=head_chunk(self.device, size),
            )
        self.budget = min(here().gather(lambda: self.budget, "how much fits the memory"))
        return {TOKENS: self.budget}

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """The models as they were, and all that is known of the phases before."""
        loop = saved.loop
        self.models.load_state(
            loop["recipes"],
            {name: self._item_of(recipe) for name, recipe in loop["recipes"].items()},
            {name: state for name, (_, state) in saved.models.items()},
            {name: version for name, (version, _) in saved.models.items()},
            saved.path / "models",
        )
        self.components.saved = dict(saved.components)
        self.step, self.ticks, self.last = loop["step"], loop["ticks"], loop["last"]
        self.spread, self.measured = loop.get("spread", {}), loop.get("measured", "")
        self.budget, self.head_chunk = loop["phase"]["budget"], loop["phase"]["head_chunk"]
        self.models.policy.at_once = loop["phase"]["at_once"]

    def _item_of(self, recipe: Mapping[str, Any]) -> Item | None:
        specs = [spec.item for phase in self.pipeline.phases for spec in phase.models.values() if spec.item]
        for item in specs:
            if item.component == recipe["by"] and item.identity == recipe["with"]:
                return item
        return None

    def note_once(self, whose: str, what: str, said: str) -> None:
        """A line for whoever watches the run, however often it happens."""
        if (whose, what) not in self.told:
            self.told.add((whose, what))
            self.display.note(f"{whose} {said}")

    def remember(self, metrics: Mapping[str, float], where: Mapping[str, Any], *, evaluation: bool) -> None:
        """Keep what a finished run will report, and where it was measured."""
        if evaluation or not any(name.startswith("eval/") for name in self.last):
            self.last = {name: value for name, value in metrics.items() if not name.startswith("time/")}
            again = f", pass {where['repeat'] + 1}" if self.pipeline.repeat > 1 else ""
            when = "after" if evaluation else "in"
            self.measured = f"{when} iteration {where['iteration']} of `{where['phase']}`{again}"


def _device(asked: str) -> torch.device:
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _ask_for_same_bits(always: bool, device: torch.device) -> None:
    """On a CPU wherever torch can, as it costs nothing there; with `always` a refusal where it cannot.

    Otherwise threads add up the gradient of `x[index]` in the order in which they come.
    """
    if always:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.utils.deterministic.fill_uninitialized_memory = always  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode("error" if always else "warn" if device.type == "cpu" else "default")
