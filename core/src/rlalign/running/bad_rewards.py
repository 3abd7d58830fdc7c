"""Responses are scored; a reward that fails, or is NaN or infinite, ends the run, or its prompts are left out.

Training and evaluation score here, so that neither ever goes on with a batch that a reward has spoilt.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlalign.data.batch import Reward, concat_rewards
from rlalign.data.rollout import Rollout
from rlalign.errors import Altered, ComponentError, shortened
from rlalign.records.rundir import RunDir, write_atomic
from rlalign.records.tensors import save_tensors
from rlalign.running.bad_episodes import DROPPED_AT_MOST, without_bad_episodes
from rlalign.running.phase import RunningPhase
from rlalign.running.responses import read
from rlalign.running.stages import Stages
from rlalign.world.ranks import here

SLOW_SECONDS = 60.0
"""After which it is told that a reward is still scoring."""
WRITTEN = {"actions": "actions_NT", "mask": "mask_NT", "logprobs": "logprobs_NT"}
"""The tensors of a bad batch that are written down, by the names they get."""
_SAID = 400
"""Characters of a reward's error that `dropped.jsonl` holds."""


def without_bad_rewards(
    phase: RunningPhase,
    stages: Stages,
    rollout: Rollout,
    columns: Sequence[tuple[str, str]],
    *,
    evaluation: bool = False,
) -> tuple[Rollout, Reward]:
    """Responses as the task reads them, and what they earn: of all prompts, or of those where no reward is bad."""
    rollout = read(phase, without_bad_episodes(phase, rollout, evaluation=evaluation), columns)
    left_out = LeftOut(phase, rollout, evaluation)
    failed = _Failed(phase, rollout, evaluation)
    with phase.clock("reward"), saved_if_bad(phase, rollout, stages):
        reward = _at_once(phase, stages, rollout) if failed.before is None else None
        if reward is None:
            rollout, reward = _by_group(phase, stages, rollout, left_out, failed)
    rollout, reward = _finite(phase, rollout, reward, left_out)
    left_out.tell()
    return rollout, reward


@dataclass
class LeftOut:
    """The prompts that are left out of one set of responses."""

    phase: RunningPhase
    whole: Rollout
    evaluation: bool
    why: dict[str, str] = field(default_factory=dict)
    """What was wrong, by the example's id."""
    groups: int = 0
    """How many they are: an example may have been drawn more than once."""
    rewards: list[str] = field(default_factory=list)

    def add(self, examples: Sequence[str], reward: str, why: str) -> None:
        self.groups += len(examples)
        self.why |= dict.fromkeys(examples, shortened(why, _SAID))
        self.rewards = list(dict.fromkeys([*self.rewards, reward]))

    @property
    def share(self) -> float:
        return self.groups / len(self.whole.examples)

    @property
    def too_many(self) -> bool:
        return self.share > DROPPED_AT_MOST

    def tell(self) -> None:
        """Write down what is left out, and end the run where that is too much."""
        if not self.why:
            return
        phase, ids = self.phase, list(self.why)
        about = {**phase.where, "iteration": phase.iteration + 1, "rewards": self.rewards, "examples": ids}
        if self.evaluation:
            about |= {"iteration": phase.iteration, "evaluation": True}
        phase.workspace.logs.append("dropped.jsonl", {**about, "why": self.why})
        names = " and ".join(f"`{name}`" for name in self.rewards)
        where = f"iteration {phase.iteration + 1}" if not self.evaluation else "an evaluation"
        if self.too_many:
            phase.workspace.answers.forget(phase.tick)
            raise ComponentError(
                f"the reward {names} is bad for {self.share:.0%} of the prompts of {where}, more than the "
                f"{DROPPED_AT_MOST:.0%} that `on_bad_reward: drop` forgives; the first, example `{ids[0]}`: "
                f"{self.why[ids[0]]}{self._listed()}"
            )
        more = "; dropped.jsonl lists all that are" if phase.workspace.leaves_files else ""
        phase.workspace.note_once(
            f"the reward {names}",
            "dropped",
            f"is bad for {self.groups} of the {len(self.whole.examples)} prompts of {where}, which are left out: "
            f"{self.why[ids[0]]}{more}",
        )

    def _listed(self) -> str:
        workspace = self.phase.workspace
        return f" (all ids are in {workspace.dir.path / 'dropped.jsonl'})" if workspace.leaves_files else ""


class _Failed:
    """At which groups rewards failed, recorded beside what served rewards answered.

    A reward that failed once may answer the next time; an iteration that is done again leaves out the same prompts.
    """

    def __init__(self, phase: RunningPhase, rollout: Rollout, evaluation: bool) -> None:
        served = [one.digest for one in phase.workspace.served]
        self._recorded = bool(served) and phase.settings.train.on_bad_reward == "drop"
        self._answers, self._tick = phase.workspace.answers, phase.tick
        self.before: dict[str, list[str]] | None = None
        """The reward and its error, by the group's number; None: nobody was asked group by group."""
        if self._recorded:
            asked = [*phase.where.values(), evaluation, [e.id for e in rollout.answered], rollout.texts]
            said = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
            self._key = json.dumps(["failed", said, *served])
            known = partial(self._answers.known, self._tick)
            self.before = here().lead(lambda: known().get(self._key), "the prompts left out before")

    def record(self, failed: Mapping[str, list[str]]) -> None:
        if self._recorded:
            self._answers.add(self._tick, {self._key: failed})


def _at_once(phase: RunningPhase, stages: Stages, rollout: Rollout) -> Reward | None:
    """What all prompts earn, asked for together; None where a reward failed whose prompts may be left out."""
    try:
        with slow_told(phase, stages):
            return stages.reward(phase.run, rollout)
    except Altered:  # what it changed is spoilt for the others, too
        raise
    except ComponentError:
        if phase.settings.train.on_bad_reward == "stop" or stages.asked.wrapper:
            raise
        return None


def _by_group(
    phase: RunningPhase, stages: Stages, rollout: Rollout, left_out: LeftOut, failed: _Failed
) -> tuple[Rollout, Reward]:
    """Each group scored alone, those at which a reward fails left out; no more are asked once these are too many."""
    found = dict(failed.before or {})
    rows, rewards = [], []
    for g, example in enumerate(rollout.examples):
        rows_n = (rollout.group_N == g).nonzero()[:, 0]
        try:
            if str(g) not in found:
                with slow_told(phase, stages):
                    rewards.append(stages.reward(phase.run, rollout.take(rows_n)))
                rows.append(rows_n)
                continue
        except Altered:
            raise
        except ComponentError as error:
            if stages.asked.wrapper:
                raise
            found[str(g)] = [stages.asked.name, str(error)]
        left_out.add([example.id], *found[str(g)])
        if left_out.too_many:
            left_out.tell()
    failed.record(found)
    return rollout.take(torch.cat(rows)), concat_rewards(rewards)


def _finite(
    phase: RunningPhase, rollout: Rollout, reward: Reward, left_out: LeftOut
) -> tuple[Rollout, Reward]:
    """Those of the groups in which every score is a finite number."""
    bad_N = torch.zeros(len(rollout), dtype=torch.bool, device=rollout.group_N.device)
    guilty = []
    for name, part in reward.parts.items():
        finite = part.isfinite() if part.ndim == 1 else (part.isfinite() | ~rollout.mask_NT).all(1)
        if not bool(finite.all()):
            guilty.append(name)
            bad_N |= ~finite
    if not guilty:
        return rollout, reward
    groups = rollout.group_N[bad_N].unique().tolist()
    ids = [rollout.examples[g].id for g in groups]
    row = int(bad_N.nonzero()[0, 0])
    if phase.settings.train.on_bad_reward == "stop":
        phase.workspace.answers.forget(phase.tick)
        raise ComponentError(
            f"the reward `{guilty[0]}` is not finite for {int(bad_N.sum())} of {len(rollout)} responses, the first "
            f"to example `{ids[0]}`: {rollout.texts[row]!r}.{_kept(phase, rollout, reward.parts)} "
            "`train.on_bad_reward: drop` would leave such prompts out"
        )
    left_out.add(ids, guilty[0], "it is not finite")
    left_out.rewards = list(dict.fromkeys([*left_out.rewards, *guilty]))
    keep = ~torch.isin(rollout.group_N, torch.tensor(groups, device=rollout.group_N.device))
    rows = keep.nonzero()[:, 0]
    return rollout.take(rows), reward.take(rows)


# -- what is told, and kept, of a bad batch ------------------------------------------------------------------


@contextmanager
def saved_if_bad(phase: RunningPhase, rollout: Rollout, stages: Stages | None = None) -> Iterator[None]:
    """Write the responses down at which a component fails, as they were before, and say where they are.

    With them go the scores that `stages` has got for them by then.
    """
    before = replace(
        rollout,
        **{name: getattr(rollout, name).clone() for name in ("group_N", *WRITTEN.values())},
    )
    try:
        yield
    except ComponentError as error:
        known = stages.asked.so_far if stages else {}
        parts = {name: value for name, value in known.items() if len(value) == len(before)}
        said, kept = str(error), _kept(phase, before, parts)
        stop = "." if kept and said[-1:] not in ".!?" else ""
        raise type(error)(f"{said}{stop}{kept}") from error


def _kept(phase: RunningPhase, rollout: Rollout, parts: Mapping[str, Tensor]) -> str:
    if not phase.workspace.leaves_files:
        return ""
    return f" The batch is in {save_bad_batch(phase.workspace.dir, rollout, parts)}."


@contextmanager
def slow_told(phase: RunningPhase, stages: Stages) -> Iterator[None]:
    """Tell whoever watches that a reward does not come to an end: nobody else can see which it is."""

    def tell() -> None:
        name, last = stages.asked.name, stages.asked.last
        limits = last.item.isolate if last else None
        advice = (
            f"each try may take {limits.seconds:g} (`isolate`, `seconds`)"
            if limits
            else f"with `isolate: {{seconds: {SLOW_SECONDS:.0f}}}` beside it, a reward that takes longer is stopped"
        )
        phase.workspace.note_once(
            f"`{name}`", "slow", f"has been scoring for {SLOW_SECONDS:.0f} seconds; {advice}"
        )

    timer = threading.Timer(SLOW_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def save_bad_batch(run: RunDir, rollout: Rollout, tensors: Mapping[str, Tensor]) -> Path:
    """Write down a batch that cannot be learned from, for whoever looks into it."""
    folder = run.path / "bad-batch"
    if not here().leads:
        return folder
    run.require_mine()
    folder.mkdir(exist_ok=True)
    held = {name: getattr(rollout, attribute) for name, attribute in WRITTEN.items()} | dict(tensors)
    save_tensors(folder / "batch.safetensors", held)
    texts = [
        {"example": rollout.examples[g].id, "prompt": rollout.examples[g].prompt, "response": text}
        for g, text in zip(rollout.group_N.tolist(), rollout.texts, strict=True)
    ]
    write_atomic(folder / "texts.json", json.dumps(texts, indent=1, default=str))
    return folder
