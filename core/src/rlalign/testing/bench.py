"""One phase of a pipeline, held open: its batches, its engine, and a plain graph to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.rollout import Rollout
from rlalign.decoding.logits import full_precision, steps_outputs
from rlalign.interface.policy import Value
from rlalign.learning.engine import Engine
from rlalign.learning.forward import lay_out
from rlalign.records.files import StrPath
from rlalign.running import loop
from rlalign.running.display import Display, PlainDisplay
from rlalign.running.iteration import run_iteration, with_old_logprobs
from rlalign.running.responses import respond, rewarded
from rlalign.running.updating import Update
from rlalign.running.view import open_phase
from rlalign.testing.logits import LinearValue, Logits
from rlalign.testing.losses import PolicyAndValue, PolicyGradient, ValueFit
from rlalign.testing.tasks import Length, Numbers, TokenSum
from rlalign.testing.text import Bytes

COMPONENTS: dict[str, type[Any]] = {
    "logits": Logits,
    "bytes": Bytes,
    "linear-value": LinearValue,
    "numbers": Numbers,
    "token-sum": TokenSum,
    "length": Length,
    "policy-gradient": PolicyGradient,
    "value-fit": ValueFit,
    "policy-and-value": PolicyAndValue,
}
"""Test components by the names pipelines give them."""


class Silence(PlainDisplay):
    """A display that shows nothing and remembers its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def stage(self, name: str) -> None:
        pass

    def _print(self, line: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def registry(components: Mapping[str, type[Any]] = {}) -> Registry:
    """The test components, the installed ones, and these."""
    return Registry({**COMPONENTS, **components}, trust=True)


def session(
    folder: StrPath,
    pipeline: Mapping[str, Any],
    components: Mapping[str, type[Any]],
    *,
    name: str | None = None,
    display: Display | None = None,
) -> loop.Session:
    """A new run of a pipeline given as a dict, with further components by name."""
    known, folder = registry(components), Path(folder)
    loaded = load_pipeline(folder / "pipeline.yaml", registry=known, text=json.dumps(dict(pipeline)))
    return loop.start(loaded, known, root=folder / "runs", name=name, display=display or Silence())


def run(
    folder: StrPath,
    pipeline: Mapping[str, Any],
    components: Mapping[str, type[Any]] = {},
    *,
    name: str | None = None,
) -> tuple[loop.Finished, loop.Session]:
    """Run a whole pipeline; the session tells what became of its models and components."""
    started = session(folder, pipeline, components, name=name)
    return started.run(), started


def stop_early(session: loop.Session) -> None:
    """Run it and stop it after its first iteration, as one Ctrl-C would."""
    session.stopping = True
    try:
        session.run()
    except loop.Interrupted:
        return
    raise AssertionError("the run ended before it could be stopped")


def stopped_and_resumed(
    folder: StrPath, pipeline: Mapping[str, Any], components: Mapping[str, type[Any]]
) -> loop.Session:
    """The session of a run called `stopped` that was stopped after its first iteration and went on from there."""
    stop_early(session(folder, pipeline, components, name="stopped"))
    again = loop.resume(Path(folder) / "runs/stopped", registry(components), display=Silence())
    again.run()
    return again


def logged(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All logs of a run but its times, by file."""
    return {
        path.relative_to(run).as_posix(): [
            {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(run.rglob("*.jsonl"))
    }


def run_until(session: loop.Session, iterations: int) -> None:
    """Run it and break it off, as an impatient second Ctrl-C would, when this many iterations are shown."""
    shown = 0

    def stop(*_: Any) -> None:
        nonlocal shown
        shown += 1
        if shown == iterations:
            raise KeyboardInterrupt

    session.display.iteration = stop  # type: ignore[assignment, method-assign]
    try:
        session.run()
    except KeyboardInterrupt:
        if shown < iterations:  # somebody else's
            raise
    else:
        raise AssertionError(f"the run ended before it had shown {iterations} iterations")
    finally:
        session.logs.close()
        session.dir.close()


class Bench:
    """The first phase of a pipeline, started."""

    def __init__(
        self, folder: StrPath, pipeline: Mapping[str, Any], components: Mapping[str, type[Any]] = {}
    ) -> None:
        self.session = session(folder, pipeline, components)
        self.phase = open_phase(self.session, self.session.plans[0], 0, 0)
        self.phase.start()
        self.stages = self.phase.plan.training
        self.run = self.phase.run
        self.learner = Update(self.phase)

    @property
    def engine(self) -> Engine:
        return self.phase.engine

    def rollout(self, prompts: int | None = None) -> tuple[Rollout, Reward]:
        """The next draw's responses with their columns, and their reward."""
        examples = self.phase.draw.next(prompts or self.phase.settings.train.prompts)
        return rewarded(self.phase, self.stages, respond(self.phase, examples), self.phase.plan.columns)

    def iterate(self) -> dict[str, float]:
        """One iteration of the phase; its metrics."""
        return run_iteration(self.phase)

    def batch(self, prompts: int | None = None) -> Batch:
        """The next draw as the batch an update would get."""
        rollout, reward = self.rollout(prompts)
        return with_old_logprobs(self.phase, self.stages.advantage(self.run, rollout, reward).as_step())

    def gradient(self, batch: Batch, **engine: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and gradients of one step; keywords set the engine's `route`, `budget`, `head_chunk`."""
        saved = {name: getattr(self.engine, name) for name in engine}
        for name, value in engine.items():
            setattr(self.engine, name, value)
        try:
            self.stages.step_started(self.run, batch)
            metrics = self.engine.step(batch, self.phase.losses)
            return {k: float(v) for k, v in metrics.items()}, self._gradients()
        finally:
            self.engine.clear_gradients()
            for name, value in saved.items():
                setattr(self.engine, name, value)

    def _gradients(self) -> dict[str, Tensor]:
        return {
            f"{model}/{key}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for model in self.engine.trains
            for key, p in self.engine.models[model].named_parameters()
        }


def plain_gradient(bench: Bench, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The same step without the engine: one graph from the parameters to the loss, all logits at once."""
    engine = bench.engine
    engine.clear_gradients()
    step = batch.as_step()
    bench.stages.step_started(bench.run, step)
    loss, metrics = bench.phase.losses(step, plain_outputs(bench, step))
    if loss.requires_grad:
        loss.backward()
    gradients = bench._gradients()
    engine.clear_gradients()
    return {k: float(v.detach()) for k, v in {"loss": loss, **metrics}.items()}, gradients


def plain_outputs(bench: Bench, batch: Batch) -> Outputs:
    """What the losses of the phase read live, with the graph to the parameters."""
    engine, rollout = bench.engine, batch.rollout
    policy = engine.policy("policy")
    features = policy.features(rollout)
    found = steps_outputs(policy.head(features), rollout, rollout.chosen, policy.ends, engine.want)
    outputs = {f"{name}_NT": lay_out(x, rollout) for name, x in found.items()}
    if engine.wants_values:
        value = engine.models["value"]
        assert isinstance(value, Value)
        v = full_precision(value.values(rollout, engine._read(value, rollout, known={"policy": features})))
        outputs["values_NT"] = lay_out(v[rollout.chosen[0]] if value.per_prompt else v, rollout)
    return Outputs(**outputs)
