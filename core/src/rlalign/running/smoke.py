"""A pipeline tried out before it is run: one iteration of each phase, all of it small, on the processor.

It lives in a folder of its own that goes afterwards, learns from a few examples, and shows what only a run can:
a reward that raises, a wrong shape.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rlalign.config.pipeline import SAMPLER, Distributed, Evaluate, Phase, Pipeline
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling, Train
from rlalign.errors import ConfigError, RLAlignError, describe_error
from rlalign.interface.policy import Model, Policy
from rlalign.randomness import global_seeds_kept
from rlalign.running.display import NoDisplay
from rlalign.running.exits import unfinished
from rlalign.running.loop import Session
from rlalign.running.plan import PhasePlan, decoding
from rlalign.running.workspace import Workspace

PROMPTS, SAMPLES, TOKENS, EXAMPLES = 4, 4, 8, 16
"""Prompts and responses to each, tokens of a response, examples of a split; more where a component asks for more."""
_GONE = re.compile(r"(?: \((?:the batch is|all ids are) in [^)]*\)| The batch is in \S+\.)")
"""Where a message says that something lies which went with the folder."""


class _Seen(NoDisplay):
    """Remembers what was done, in order, by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.doing = "reading the data"
        self.notes: list[str] = []
        self.stages: dict[str, list[str]] = {}
        self._phase = ""

    def stage(self, name: str) -> None:
        self.doing = name
        if name == "writing the model":
            self._phase = ""
        done = self.stages.setdefault(self._phase, [])
        if name not in done:
            done.append(name)

    def phase(self, name: str, iterations: int) -> None:
        self._phase = name

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def where(self) -> str:
        return f"{self._phase}, {self.doing}" if self._phase else self.doing


@unfinished()
@global_seeds_kept()
def smoke(pipeline: Pipeline, registry: Registry) -> str:
    """What was done, in words; a ConfigError for whatever goes wrong in it."""
    plans = Workspace(pipeline, registry, NoDisplay()).plans
    seen, began = _Seen(), time.process_time()
    deterministic = torch.get_deterministic_debug_mode()
    with tempfile.TemporaryDirectory(prefix="rlalign-smoke-") as folder:
        try:
            session = Session(small(pipeline, plans), registry, seen)
            session.make_small(EXAMPLES)
            session.create(Path(folder), "smoke")
            session.run()
        except RLAlignError as error:
            raise _failed(seen, _GONE.sub("", str(error))) from error
        except Exception as error:
            raise _failed(seen, describe_error(error)) from error
        finally:
            torch.set_deterministic_debug_mode(deterministic)
    return "\n".join(_told(seen, plans, session.models.policy, time.process_time() - began)) + "\n"


def _failed(seen: _Seen, why: str) -> ConfigError:
    return ConfigError(f"--smoke: one small iteration went wrong ({seen.where}): {why}")


def _told(seen: _Seen, plans: Sequence[PhasePlan], policy: Policy, seconds: float) -> list[str]:
    """The stages of each phase, and what was not tried."""
    weights = sum(p.numel() for p in policy.parameters())
    made = "as it is" if type(policy).shrink is Model.shrink else "made small, at random"
    rows = {"policy": f"{weights:,} weights, {made}"}
    for name in [plan.settings.name for plan in plans]:
        done = [stage for stage in seen.stages.get(name, ()) if not stage.startswith("setting up")]
        rows[name] = ", ".join(dict.fromkeys(stage.partition(": ")[0] for stage in done))
    rows["export"] = "the model was written as a folder"
    untried = []
    if any(plan.sampler is not None for plan in plans):
        untried.append("the sampler elsewhere (the policy sampled itself)")
    if any(plan.observers for plan in plans):
        untried.append("observers")
    if untried:
        rows["not tried"] = ", ".join(untried)
    wide = max(map(len, rows))
    said = f"\nsmoke: one small iteration of each phase ran through, in {seconds:.1f} processor seconds"
    return [said, *(f"  {name:{wide}}  {row}" for name, row in rows.items())]


def small(pipeline: Pipeline, plans: Sequence[PhasePlan]) -> Pipeline:
    """The pipeline with one small iteration in each phase."""
    phases = tuple(_phase(plan) for plan in plans)
    once = {"phases": phases, "repeat": 1, "device": "cpu", "distributed": Distributed()}
    return pipeline.model_copy(update=once)


def _phase(plan: PhasePlan) -> Phase:
    phase = plan.settings
    return phase.model_copy(
        update={
            "train": _train(phase.train),
            "generation": _generation(plan),
            "evaluate": _evaluate(plan),
            "models": {name: spec for name, spec in phase.models.items() if name != SAMPLER},
            "observers": (),
        }
    )


def _train(train: Train) -> Train:
    prompts = min(train.prompts, PROMPTS)
    return train.model_copy(
        update={
            "iterations": 1,
            "passes": None,
            "prompts": prompts,
            "epochs": min(train.epochs, 2),
            "minibatches": min(train.minibatches, prompts),
            "minibatch": train.minibatch and min(train.minibatch, prompts),
            "refill": min(train.refill, 1),
        }
    )


def _generation(plan: PhasePlan) -> Sampling:
    how = plan.settings.generation
    least = max([SAMPLES, *(component.min_samples for component in plan.components)])
    samples = how.samples if plan.source.component.sources else min(how.samples, least)
    return _short(how).model_copy(update={"samples": samples})


def _evaluate(plan: PhasePlan) -> Evaluate | None:
    asked = plan.settings.evaluate
    if asked is None:
        return None
    how = decoding(plan.settings, plan.task)
    how = _short(how).model_copy(update={"samples": min(how.samples, 2)})
    return asked.model_copy(
        update={"every": None, "examples": min(asked.examples, PROMPTS), "generation": how}
    )


def _short(how: Sampling) -> Sampling:
    tokens = min(how.max_new_tokens, TOKENS)
    return how.model_copy(
        update={"max_new_tokens": tokens, "min_new_tokens": min(how.min_new_tokens, tokens)}
    )
