"""What is run: logs, arms and trials, each run one pipeline. Only `choose` reads results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.offline import logs
from benchmarks.offline.logs import Log
from benchmarks.offline.measures import Record, collapsed

STAGES = ("tuning", "main")
TUNING_SEEDS = (1000, 1001)
SEEDS, MORE_SEEDS = 5, 10
MORE = ("sft", "wbc", "a-lol", "dpo")
"""Arms with the larger number of seeds."""

STEPS = 96
BATCH = 64
"""Responses a step, in the mean: what every arm learns from."""
FINAL = {"examples": logs.HELD_OUT, "samples": 4}
"""The final measurement, at temperature 1 and unconstrained."""
LRS = (2.5e-5, 1e-4, 4e-4, 1.6e-3)
CLONE_LR = 5e-4
CLONE_PASSES = 3

Pipeline = dict[str, Any]
Value = Any
"""What a trial says of an arm's own parameter."""


@dataclass(frozen=True)
class Trial:
    """One setting of what is tuned."""

    lr: float
    value: Value

    def __str__(self) -> str:
        return f"lr={self.lr:g},{self.value}"


@dataclass(frozen=True)
class Arm:
    """A method: its phases as a function of a trial, and the two values its own parameter may take."""

    name: str
    tuned: str
    """The parameter, in words."""
    values: tuple[Value, Value]
    made: Callable[[Trial, Log], Pipeline]
    online: bool = False
    """It samples while it learns."""

    @property
    def seeds(self) -> int:
        return MORE_SEEDS if self.name in MORE else SEEDS


# -- pipelines ----------------------------------------------------------------------------------------------

EARNED = [
    {"toy-grammar": {}, "weight": 0.5},
    {"toy-sentiment": {}, "weight": 0.5},
    {"gate": {"by": "toy-grammar", "at_least": 1.0, "otherwise": 0.0}},
]
"""The score of a logged response, for sampled ones: half of 1 + sentiment, nothing for what is no text."""
MEASURED = [
    "toy-grammar",
    {"toy-sentiment": {}, "as": "gated"},
    {"gate": {"by": "toy-grammar", "at_least": 1.0, "otherwise": 0.0}},
    "toy-sentiment",
    {"kl": {"coef": 1.0}},
]
"""Half of `toy-grammar` + `gated` is the mean reward; `kl` is minus the KL a response."""
EVERY = STEPS // 6
EVALUATE: Pipeline = {
    "split": "val",
    "examples": logs.HELD_OUT,
    "use": MEASURED,
    "generation": {"samples": 1, "temperature": 1.0},
}


def common(log: Log, seed: int) -> Pipeline:
    """What every pipeline of a log and seed says. Paths are relative to the folder that runs are made in."""
    return {
        "task": {"dataset": {"path": f"./logs/{log.name}-{seed}", "join": ""}},
        "policy": {"causal-lm": {"path": f"./references/{log.name}-{seed}"}},
        "models": {"reference": {"of": "start"}},
        "generation": {"max_new_tokens": logs.LONGEST},
        "evaluate": EVALUATE,
        "checkpoints": {"every": EVERY, "keep": 100},
        "seed": seed,
    }


def clone(log: Log, seed: int) -> Pipeline:
    """Behaviour cloning of the log, from the shipped model: the reference that all arms begin with."""
    return {
        "task": common(log, seed)["task"],
        "policy": {"causal-lm": {"path": "pkg:rlalign_plugin_toy_tasks/models/toy-reviews"}},
        "generation": {"max_new_tokens": logs.LONGEST},
        "algorithm": "sft",
        "train": {"passes": CLONE_PASSES, "prompts": BATCH // logs.EACH, "lr": CLONE_LR},
        "checkpoints": {"every": 1000, "keep": 1},
        "seed": seed,
    }


def whole(algorithm: Any) -> Callable[[Trial, Log], Pipeline]:
    """Learning from all responses of each prompt drawn."""

    def made(trial: Trial, log: Log) -> Pipeline:
        train = {"iterations": STEPS, "prompts": BATCH // logs.EACH, "lr": trial.lr}
        return {"algorithm": algorithm(trial.value), "train": train, "evaluate": {"every": EVERY}}

    return made


def paired(algorithm: Any) -> Callable[[Trial, Log], Pipeline]:
    """Learning from the best and the worst response of each prompt drawn."""

    def made(trial: Trial, log: Log) -> Pipeline:
        train = {"iterations": STEPS, "prompts": BATCH // 2, "lr": trial.lr}
        listed = [algorithm(trial.value), "best-vs-worst"]
        return {"algorithm": listed, "train": train, "evaluate": {"every": EVERY}}

    return made


def single(algorithm: Any) -> Callable[[Trial, Log], Pipeline]:
    """Learning from responses drawn one by one, by their rewards or advantages.

    `a-lol` and `r-lol` would cut the iterations to the share of the log they keep, hence many and an `Ending`.
    """

    def made(trial: Trial, log: Log) -> Pipeline:
        train = {"iterations": 50 * STEPS, "prompts": BATCH, "lr": trial.lr}
        listed = [algorithm(trial.value), {"ending": {"after": STEPS}}]
        return {"algorithm": listed, "train": train, "evaluate": {"every": EVERY}}

    return made


def wbc(trial: Trial, log: Log) -> Pipeline:
    """Weighted by reward, and with priority drawn by it too."""
    return (single if trial.value else whole)(lambda priority: {"wbc": {"priority": priority}})(trial, log)


VALUED: Pipeline = {
    "name": "value",
    "algorithm": {"fit-value": {"epochs": 20}},
    "rewards": EARNED,
    "generation": {"samples": 1},
    "train": {"iterations": 1, "prompts": logs.PROMPTS, "minibatches": 8, "lr": 1e-3},
    "evaluate": None,
}
"""V of the frozen reference: one of its own responses to each prompt of the log, scored."""


def valued(form: str, option: str) -> Callable[[Trial, Log], Pipeline]:
    """A-LoL in one of its forms, after its value was fitted."""

    def made(trial: Trial, log: Log) -> Pipeline:
        learn = single(lambda value: {"a-lol": {"form": form, "pool": "all", option: value}})(trial, log)
        models = {"value": {"attention-value": {"max": 1.0}}}
        return {"models": models, "phases": [VALUED, {"name": "learn", **learn}]}

    return made


DESIRABLE = 0.4
UNDESIRABLE = {"noisy": 0.5, "clean": 1.5}
"""Above a score of 0.4 are 34 and 60 of a hundred responses: these weights make up for it."""


def kto(trial: Trial, log: Log) -> Pipeline:
    """Good and bad responses, each for itself, weighing alike in the sum."""
    how = {"threshold": DESIRABLE, "undesirable": UNDESIRABLE[log.name]}
    return whole(lambda beta: {"kto": {"beta": beta, **how}})(trial, log)


RAFT_PROMPTS, RAFT_STEPS = 128, 4


def raft(trial: Trial, log: Log) -> Pipeline:
    """Best of K samples of each prompt, learned from twice, then fresh samples."""
    train = {
        "iterations": STEPS // RAFT_STEPS,
        "prompts": RAFT_PROMPTS,
        "epochs": RAFT_STEPS * BATCH // RAFT_PROMPTS,
        "minibatches": RAFT_PROMPTS // BATCH,
        "lr": trial.lr,
    }
    return {
        "rewards": EARNED,
        "responses": "sampled",
        "algorithm": ["sft", {"best-of": {"n": 1}}],
        "generation": {"samples": trial.value},
        "train": train,
        "evaluate": {"every": EVERY // RAFT_STEPS},
        "checkpoints": {"every": EVERY // RAFT_STEPS},
    }


def grow(samples: int) -> Pipeline:
    """Samples of the policy to every prompt of the log, scored."""
    return {
        "name": "grow",
        "algorithm": "collect",
        "rewards": EARNED,
        "generation": {"samples": samples},
        "train": {"iterations": logs.PROMPTS // BATCH, "prompts": BATCH},
        "evaluate": None,
    }


REST_ROUNDS, REST_IMPROVES = 2, 2
DRAWN = {0.4: 48, 0.6: 96, 0.8: 160}
"""Prompts drawn a step, so that of their responses enough lie above the threshold."""


def rest(trial: Trial, log: Log) -> Pipeline:
    """Grow, then improve twice on what of samples and log lies above a threshold, the second higher; twice over."""
    steps = STEPS // (REST_ROUNDS * REST_IMPROVES)
    improves = [
        {
            "name": f"improve-{i}",
            "task": {"from": "grow", "with": ["original"]},
            "responses": "logged",
            "algorithm": [
                "sft",
                {"at-least": {"threshold": threshold, "strict": True}},
                {"at-most": {"n": BATCH}},
            ],
            "train": {"iterations": steps, "prompts": DRAWN[threshold], "lr": trial.lr / 2 ** (i - 1)},
            "evaluate": {"every": EVERY},
        }
        for i, threshold in enumerate(trial.value, 1)
    ]
    return {"repeat": REST_ROUNDS, "phases": [grow(logs.EACH), *improves]}


DPO_ROUNDS = 3


def iterative_dpo(trial: Trial, log: Log) -> Pipeline:
    """Samples to every prompt, DPO on the best and the worst of each, then fresh samples; the reference stays."""
    learn = paired(lambda value: {"dpo": {"beta": value}})(trial, log)
    learn["train"]["iterations"] = STEPS // DPO_ROUNDS
    task = {"task": {"from": "grow"}, "responses": "logged"}
    return {"repeat": DPO_ROUNDS, "phases": [grow(logs.EACH), {"name": "learn", **task, **learn}]}


ALOL, WBC, KL = "a-lol", "wbc", "a-lol-kl"
ARMS = {
    arm.name: arm
    for arm in (
        Arm("sft", "mean", ("tokens", "sums"), whole(lambda mean: {"sft": {"mean": mean}})),
        Arm(WBC, "priority", (True, False), wbc),
        Arm(
            "gold",
            "floor",
            (0.1, 0.5),
            single(lambda u: {"gold": {"returns": "reward", "refresh": None, "priority": True, "floor": u}}),
        ),
        Arm("r-lol", "clip", (0.9, 0.2), single(lambda eps: {"r-lol": {"pool": "all", "clip": eps}})),
        Arm(ALOL, "clip", (0.9, 0.2), valued("full", "clip")),
        Arm("a-lol-ref-free", "draw", ("priority", "positive"), valued("ref-free", "draw")),
        Arm("a-lol-seq", "clip", (0.9, 0.2), valued("seq", "clip")),
        Arm(KL, "beta", (0.2, 0.05), valued("kl", "beta")),
        Arm("dpo", "beta", (0.5, 2.0), paired(lambda beta: {"dpo": {"beta": beta}})),
        Arm("ipo", "tau", (0.5, 2.0), paired(lambda tau: {"ipo": {"tau": tau}})),
        Arm("kto", "beta", (0.5, 2.0), kto),
        Arm("pro", "sft", (0.05, 0.5), whole(lambda sft: {"pro": {"sft": sft}})),
        Arm("raft", "samples", (4, 8), raft, online=True),
        Arm("rest", "thresholds", ((0.4, 0.6), (0.6, 0.8)), rest, online=True),
        Arm("iterative-dpo", "beta", (0.5, 2.0), iterative_dpo, online=True),
    )
}

PRIMARY = (ALOL, WBC)
COMPARISONS = (PRIMARY, *((ALOL, other) for other in ARMS if other not in PRIMARY))
"""Named before looking; one family for each log and measure."""


# -- what runs begin with -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """A log, and the reference cloned from it: what all runs of a seed begin with."""

    log: Log
    seed: int

    @property
    def key(self) -> str:
        return f"logs/{self.log.name}/{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.log.name}-{self.seed}"

    @property
    def digest(self) -> str:
        return _digest([self.log.recipe, clone(self.log, self.seed), FINAL])


def _digest(made: Any) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]


# -- runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """One run."""

    stage: str
    log: Log
    arm: Arm
    trial: Trial
    seed: int

    @property
    def key(self) -> str:
        setting = (str(self.trial).replace("/", "-"),) if self.stage == "tuning" else ()
        return "/".join((self.stage, self.log.name, self.arm.name, *setting, str(self.seed)))

    @property
    def ground(self) -> Ground:
        return Ground(self.log, self.seed)

    @property
    def split(self) -> str:
        """Settings are chosen on `val`, reported numbers come from `test`."""
        return "val" if self.stage == "tuning" else "test"

    @property
    def pipeline(self) -> Pipeline:
        return merged(common(self.log, self.seed), self.arm.made(self.trial, self.log))

    @property
    def digest(self) -> str:
        """Changes with anything that would make the run another one."""
        return _digest([self.pipeline, self.split, FINAL, self.ground.digest])


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> Pipeline:
    """Both, key by key; what stands in lists is replaced whole. What a phase says stays in the phase."""
    both = {**base, **more}
    for key in base.keys() & more.keys():
        if isinstance(base[key], Mapping) and isinstance(more[key], Mapping):
            both[key] = merged(base[key], more[key])
    made: Pipeline = json.loads(json.dumps(both))
    return made


def trials(arm: Arm) -> list[Trial]:
    """The eight settings that an arm tries."""
    return [Trial(lr, value) for lr in LRS for value in arm.values]


def tuning(log: Log, arms: Collection[str] = tuple(ARMS)) -> list[Planned]:
    return [
        Planned("tuning", log, arm, trial, seed)
        for seed in TUNING_SEEDS
        for arm in ARMS.values()
        if arm.name in arms
        for trial in trials(arm)
    ]


def main(log: Log, chosen: Mapping[str, Trial]) -> list[Planned]:
    """The reported runs of the arms whose trial is chosen."""
    return [
        Planned("main", log, arm, chosen[arm.name], seed)
        for seed in range(MORE_SEEDS)
        for arm in ARMS.values()
        if seed < arm.seeds and arm.name in chosen
    ]


def choose(log: Log, records: Mapping[str, Record]) -> dict[str, Trial]:
    """The best trial of each arm whose tuning is done: of those without a collapsed run the one of highest final
    reward on `val`, a mean over the tuning seeds; where all collapsed, of those that came to their end. The
    first wins a tie."""
    runs: dict[str, dict[Trial, list[Record | None]]] = {}
    for one in tuning(log):
        runs.setdefault(one.arm.name, {}).setdefault(one.trial, []).append(records.get(one.key))
    return {
        arm: _best(arm, {trial: [r for r in found if r] for trial, found in tried.items()})
        for arm, tried in runs.items()
        if all(r is not None for found in tried.values() for r in found)
    }


def _best(arm: str, tried: Mapping[Trial, Sequence[Record]]) -> Trial:
    ended = {trial: records for trial, records in tried.items() if all(r.last for r in records)}
    if not ended:
        raise ValueError(f"{arm}: no trial came to its end")
    sound = {trial: records for trial, records in ended.items() if qualifies(records)}
    return max(sound or ended, key=lambda trial: fmean(r.end.reward for r in ended[trial]))


def qualifies(records: Sequence[Record]) -> bool:
    return not any(collapsed(r) for r in records)
