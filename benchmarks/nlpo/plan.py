"""What is run: worlds, arms, trials and ablations, each run one pipeline. Only `choose` reads results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from benchmarks.nlpo.measures import Record, collapsed

STAGES = ("tuning", "main", "ablation")
TUNING_SEEDS = (1000, 1001)
ABLATION_SEEDS = tuple(range(5))
GRAMMAR_KEPT = 0.9
"""A trial qualifies if its grammar is at least this share of the start's."""
FINAL = {"examples": 256, "samples": 4}
"""The final measurement, at temperature 1 and unconstrained."""
NUCLEUS = {"examples": 256, "samples": 2, "top_p": 0.9}
"""The second final measurement, all arms decoded alike within the nucleus."""


@dataclass(frozen=True)
class World:
    """A world with all that is the same for every arm in it."""

    name: str
    pipeline: Mapping[str, Any]
    reward: str
    """What is trained on beside the penalty, and the reward of all tables."""
    grammar: bool
    """Whether there is a grammar to judge by. It is never trained on."""
    seeds: int
    lrs: tuple[float, ...]
    coefs: tuple[float, ...]
    kl_at: float
    """The KL a response at which rewards are compared."""
    kl_cap: float
    """A trial qualifies up to this KL a response."""
    kl_bound: float
    """A run beyond this KL a response has collapsed."""
    released: Mapping[str, int] | None
    """`top_k` of sampling and `min_keep` of the mask that stand for RL4LMs' 50 and 100 in this vocabulary; None
    where a mask that is never refreshed removes nothing."""


@dataclass(frozen=True)
class Trial:
    """One setting of what is tuned."""

    lr: float
    coef: float

    def __str__(self) -> str:
        return f"lr={self.lr:g},coef={self.coef:g}"


@dataclass(frozen=True)
class Arm:
    """A method, and what it changes in the world's pipeline."""

    name: str
    algorithm: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run."""

    stage: str
    world: World
    arm: Arm
    trial: Trial
    setting: str
    """The trial, the ablation, or nothing."""
    seed: int

    @property
    def key(self) -> str:
        parts = (self.stage, self.world.name, self.arm.name, self.setting, str(self.seed))
        return "/".join(part for part in parts if part)

    @property
    def split(self) -> str:
        """Settings are chosen on `val`, reported numbers come from `test`."""
        return "val" if self.stage == "tuning" else "test"

    @property
    def pipeline(self) -> dict[str, Any]:
        made = deepcopy(dict(self.world.pipeline))
        made["seed"] = self.seed
        made["algorithm"] = deepcopy(dict(self.arm.algorithm))
        made["generation"] |= self.arm.generation
        made["train"] |= {"lr": self.trial.lr, **self.arm.train}
        kl: dict[str, Any] = {"coef": 0.0 if self.setting == "kl=none" else self.trial.coef}
        if self.setting == "kl=target":
            kl["target"] = KL_TARGET
        watched = [{"toy-grammar": {}, "weight": 0.0}] if self.world.grammar else []
        made["rewards"] = [self.world.reward, *watched, {"kl": kl}]
        made["evaluate"]["use"] = [self.world.reward, *(["toy-grammar"] if watched else []), "kl"]
        return made

    @property
    def digest(self) -> str:
        """Changes with anything that would make the run another one."""
        said = json.dumps([self.pipeline, self.split, FINAL, NUCLEUS], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:12]


KL_TARGET = 0.1
"""KL a token that the adaptive coefficient steers for: RL4LMs' for IMDB."""
TRAIN: dict[str, Any] = {"iterations": 40, "prompts": 48, "epochs": 3, "minibatches": 1}
EVALUATE: dict[str, Any] = {"every": 5, "split": "val", "examples": 256, "generation": {"samples": 1}}
COMMON: dict[str, Any] = {"checkpoints": {"every": 1000, "keep": 1}}
UNLOGGED = {"responses": 1, "references": 0}
"""Nothing learns from logged responses, and to write them takes time."""
MODELS = "pkg:rlalign_plugin_toy_tasks/models"
DIGITS = {"actions": [*map(str, range(10)), "end"], "end": "end", "steps": 20, "state": "previous"}

WORLDS = {
    world.name: world
    for world in (
        World(
            "toy-reviews",
            {
                "task": {"toy-reviews": UNLOGGED},
                "policy": {"causal-lm": {"path": f"{MODELS}/toy-reviews"}},
                "generation": {"max_new_tokens": 29},
                "train": TRAIN,
                "evaluate": EVALUATE,
                **COMMON,
            },
            reward="toy-sentiment",
            grammar=True,
            seeds=10,
            lrs=(1e-4, 2e-4, 4e-4, 8e-4),
            coefs=(0.05, 0.15),
            kl_at=1.5,
            kl_cap=4.0,
            kl_bound=20.0,
            released={"top_k": 10, "min_keep": 20},
        ),
        World(
            "toy-keywords",
            {
                "task": {"toy-keywords": UNLOGGED},
                "policy": {"seq2seq-lm": {"path": f"{MODELS}/toy-keywords"}},
                "generation": {"max_new_tokens": 24},
                "train": {**TRAIN, "iterations": 50},
                "evaluate": EVALUATE,
                **COMMON,
            },
            reward="toy-coverage",
            grammar=True,
            seeds=5,
            lrs=(1e-4, 2e-4, 4e-4, 8e-4),
            coefs=(0.05, 0.15),
            kl_at=1.0,
            kl_cap=4.0,
            kl_bound=20.0,
            released={"top_k": 10, "min_keep": 20},
        ),
        World(
            "toy-numbers",
            {
                "task": "toy-numbers",
                "policy": {"table": DIGITS},
                "generation": {},
                "train": {**TRAIN, "iterations": 120, "prompts": 64},
                "evaluate": {**EVALUATE, "examples": 50, "generation": {"samples": 4}},
                **COMMON,
            },
            reward="increasing-numbers",
            grammar=False,
            seeds=5,
            lrs=(0.05, 0.1, 0.2, 0.4),
            coefs=(0.01, 0.03),
            kl_at=10.0,
            kl_cap=math.inf,
            kl_bound=math.inf,
            released=None,
        ),
    )
}

PPO, NLPO, RELEASED, CONTROL = "ppo", "nlpo-paper", "nlpo-rl4lms", "ppo-truncated"


def arms(world: World) -> dict[str, Arm]:
    """The methods, as they are in this world."""
    steps = world.pipeline["train"]["epochs"] * world.pipeline["train"]["minibatches"]
    found = [Arm(PPO, {"ppo": {}}), Arm(NLPO, {"nlpo": {"mode": "paper", "top_p": 0.9, "refresh": 5}})]
    if world.released is not None:
        released = {"mode": "rl4lms", "top_p": 0.9, "min_keep": world.released["min_keep"]}
        found.append(Arm(RELEASED, {"nlpo": released}, generation={"top_k": world.released["top_k"]}))
    found.append(Arm("a2c", {"a2c": {}}, train={"epochs": 1, "minibatches": steps}))
    found.append(Arm(CONTROL, {"ppo": {}}, generation={"top_p": 0.9}))
    return {arm.name: arm for arm in found}


COMPARISONS = (
    (NLPO, PPO),
    (RELEASED, PPO),
    ("a2c", PPO),
    (CONTROL, PPO),
    (NLPO, CONTROL),
)
"""Named before looking; one family for each world and measure."""

ABLATED = "toy-reviews"
TOP_P = (0.5, 0.9, 0.95, 0.99)
NEVER = 1000
REFRESH = (1, 5, 20, NEVER)
ABLATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "top_p": tuple((NLPO, f"top_p={p}") for p in TOP_P),
    "refresh": tuple((NLPO, f"refresh={n}") for n in REFRESH),
    "kl": tuple((arm, f"kl={kl}") for arm in (PPO, NLPO) for kl in ("fixed", "target", "none")),
}
"""By what is varied: arms and settings."""
BASES = ((NLPO, "top_p=0.9"), (NLPO, "refresh=5"), (PPO, "kl=fixed"), (NLPO, "kl=fixed"))
"""These settings are those of the main runs."""


def trials(world: World) -> list[Trial]:
    """The eight settings that every arm tries."""
    return [Trial(lr, coef) for lr in world.lrs for coef in world.coefs]


def tuning(world: World) -> list[Planned]:
    return [
        Planned("tuning", world, arm, trial, str(trial), seed)
        for trial in trials(world)
        for seed in TUNING_SEEDS
        for arm in arms(world).values()
    ]


def main(world: World, chosen: Mapping[str, Trial]) -> list[Planned]:
    return [
        Planned("main", world, arm, chosen[arm.name], "", seed)
        for seed in range(world.seeds)
        for arm in arms(world).values()
    ]


def ablation(world: World, chosen: Mapping[str, Trial]) -> list[Planned]:
    """What differs from a main run of the same seed in one thing."""
    if world.name != ABLATED:
        return []
    wanted = [one for group in ABLATIONS.values() for one in group if one not in BASES]
    return [
        Planned("ablation", world, _ablated(arms(world)[arm], setting), chosen[arm], setting, seed)
        for seed in ABLATION_SEEDS
        for arm, setting in wanted
    ]


def _ablated(arm: Arm, setting: str) -> Arm:
    """The arm with an option of its own changed; the penalty is no option of the arm."""
    option, _, value = setting.partition("=")
    if option == "kl":
        return arm
    ((name, options),) = arm.algorithm.items()
    return replace(arm, algorithm={name: {**options, option: json.loads(value)}})


def choose(world: World, records: Mapping[str, Record]) -> dict[str, Trial]:
    """Every arm's best trial: of those that qualify the one of highest final reward, a mean over the tuning seeds.

    A trial qualifies if in the mean its final KL is at most `kl_cap` and its final grammar at least 0.9 of the
    start's, and none of its runs collapsed. Where none does, the one of smallest KL. The first wins a tie.
    """
    runs: dict[tuple[str, Trial], list[Record]] = {}
    for planned in tuning(world):
        runs.setdefault((planned.arm.name, planned.trial), []).append(records[planned.key])
    return {arm: _best(world, {trial: runs[arm, trial] for trial in trials(world)}) for arm in arms(world)}


def _best(world: World, tried: Mapping[Trial, Sequence[Record]]) -> Trial:
    whole = {trial: records for trial, records in tried.items() if all(r.final for r in records)}
    if not whole:
        raise ValueError(f"{world.name}: no trial of this arm came to its end")
    fit = {trial: records for trial, records in whole.items() if qualifies(world, records)}
    if fit:
        return max(fit, key=lambda trial: fmean(r.last.reward for r in fit[trial]))
    return min(whole, key=lambda trial: fmean(r.last.kl for r in whole[trial]))


def qualifies(world: World, records: Sequence[Record]) -> bool:
    """Whether a trial may be chosen, by its runs."""
    if any(r.final is None or collapsed(r.curve, world.kl_bound) for r in records):
        return False
    if fmean(r.last.kl for r in records) > world.kl_cap:
        return False
    if not world.grammar:
        return True
    start = fmean(r.curve[0].grammar for r in records)
    return fmean(r.last.grammar for r in records) >= GRAMMAR_KEPT * start
