"""A recipe: what the table says of a task, made into a pipeline for one algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlalign_authoring import layout

Section = dict[str, Any]

EPOCHS = 5
"""Passes of PPO and NLPO over an iteration's responses: what `preset: rl4lms` sets."""
MINIBATCH = 64
"""Tokens of an optimiser step in the original."""
EVALUATED = 512
"""Examples of an evaluation; the original's are all of the split."""
LEARNED = {"passes": 2, "prompts": 16, "lr": 1.0e-5}
"""`train` of what learns from a log."""
METHODS = {
    "supervised": "SFT",
    "ppo": "PPO",
    "nlpo": "NLPO",
    "supervised-ppo": "SFT, then PPO",
    "supervised-nlpo": "SFT, then NLPO",
    "rloo": "SFT, then RLOO",
    "grpo": "SFT, then GRPO",
    "a-lol": "SFT, then A-LoL on a log",
    "copg": "SFT, then CoPG on a log",
}
"""File → what it does."""
AS = {
    "nlpo": "As ppo.yaml, but for `algorithm`.",
    "supervised-ppo": "As ppo.yaml, but for where it begins, which the KL is to as well.",
    "supervised-nlpo": "As supervised-ppo.yaml, but for `algorithm`.",
    "rloo": "As supervised-ppo.yaml, but for no value, {samples} responses a prompt, one pass at a larger `lr`.",
    "grpo": "As rloo.yaml, but for `algorithm`, which holds the KL.",
    "a-lol": "The model of supervised-ppo.yaml writes as many responses as rloo.yaml draws; they are scored once.",
    "copg": "As a-lol.yaml, but for what it makes of the log.",
}
"""How a file differs from another."""
MODE = "`mode: rl4lms` computes it as the first release did, with a mask that is never refreshed."
OURS = ("rloo", "grpo", "a-lol", "copg")
"""What the original has not."""


@dataclass(frozen=True)
class Recipe:
    """One task with one algorithm."""

    task: str
    row: Mapping[str, Any]
    """What the table says of the task."""
    method: str

    @cached_property
    def begins(self) -> str:
        """With which model it begins: `base`, or `warm`."""
        return "base" if self.method in ("supervised", "ppo", "nlpo") else "warm"

    @cached_property
    def said(self) -> Mapping[str, Any]:
        """What the table says of training from there."""
        found: Mapping[str, Any] = self.row[self.begins]
        return found

    @cached_property
    def model(self) -> str:
        """The model that is read."""
        return str(self.said["model"] or self.row["base"]["model"])

    # -- how much -------------------------------------------------------------------------------------------------

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest response."""
        return int(self.row["generation"]["max_new_tokens"])

    @cached_property
    def step(self) -> int:
        """Responses of an optimiser step: so that the longest ones have the original's tokens, or a few more."""
        return int(self.row.get("step", math.ceil(MINIBATCH / self.longest)))

    @cached_property
    def samples(self) -> int:
        """Responses to a prompt, where they are compared."""
        return int(self.row.get("samples", 4))

    @cached_property
    def responses(self) -> int:
        """Responses of an iteration: the same, in whole steps and whole groups."""
        unit = math.lcm(self.step, self.samples)
        return unit * math.ceil(int(self.row["buffer"]) / self.longest / unit)

    def train(self) -> Section:
        """Of what samples one response a prompt."""
        how_much = {"prompts": self.responses, "minibatch": self.step}
        return {"iterations": self.said["iterations"], **how_much, "lr": self.said["lr"]}

    def train_grouped(self) -> Section:
        """As many responses in groups, gone over once: the learning rate makes up for there being fewer steps."""
        prompts, groups = self.responses // self.samples, max(1, self.step // self.samples)
        fewer = EPOCHS * (self.responses / self.step) / (prompts / groups)
        how_much = {"prompts": prompts, "minibatch": groups}
        return {
            "iterations": self.said["iterations"],
            **how_much,
            "lr": float(f"{fewer * self.said['lr']:.2g}"),
        }

    # -- the file ---------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The file."""
        return layout.file_of([*self.header()], self.sections, self.notes())

    def header(self) -> Iterator[str]:
        """What it is, how it differs from another one, where its values are from."""
        yield f"{METHODS[self.method]}: {self.model.rpartition('/')[2]} {self.row['does']}."
        if self.method in AS:
            yield AS[self.method].format(samples=self.samples)
        if self.row["from"] != "original":
            yield str(self.row["from"])
        elif self.method in OURS:
            yield "Task, rewards and evaluation are RL4LMs'; what the algorithm needs is ours."
        else:
            yield "Values are RL4LMs' but for what is noted; README.md says how units were converted."

    def notes(self) -> layout.Notes:
        """Comments by section."""
        parts = ("supervised",) if self.method == "supervised" else ("either", self.begins)
        found: dict[str, list[str]] = {}
        for part in parts:
            for section, text in self.row.get("notes", {}).get(part, {}).items():
                if self.method not in OURS or section not in ("train", "algorithm"):
                    found.setdefault(section, []).append(text)
        if self.method.endswith("nlpo"):
            found.setdefault("algorithm", []).append(MODE)
        return found

    @cached_property
    def sections(self) -> Section:
        """What the file says."""
        row, own = self.row, self.row["supervised"] if self.method == "supervised" else {}
        task = {
            **row.get("task", {}),
            **own.get("task", {}),
            "tokenizer": f"${{policy.{row['policy']}.path}}",
        }
        policy = {"path": self.model, **own.get("policy", {})}
        first: Section = {"task": {self.task: task}, "policy": {row["policy"]: policy}}
        if self.method == "supervised":
            return {**first, **self.imitation(), "evaluate": self.evaluate(own["every"])}
        if self.method in ("a-lol", "copg"):
            rest = {**self.offline(), "evaluate": self.evaluate(None)}
        else:
            rest = {**self.online(), "evaluate": self.evaluate(row["evaluate"]["every"])}
        return {**first, **(rest if self.said["model"] else self.preceded(rest))}

    def imitation(self) -> Section:
        """What learns from the references; dropout is on, as it is unless somebody says otherwise in transformers."""
        said = self.row["supervised"]
        train = {key: said[key] for key in ("passes", "prompts", "lr", "weight_decay") if key in said}
        shape = {"schedule": {"shape": said["shape"]}} if "shape" in said else {}
        return {"algorithm": "sft", "train": {**train, **shape, "dropout": True}}

    def preceded(self, rest: Section) -> Section:
        """The same after a phase that imitates, for want of a published model."""
        imitate = {"name": "imitate", **self.imitation(), "rewards": None, "evaluate": None}
        phases = rest.pop("phases", None)
        if phases is None:
            phases = [{"name": "align", **{key: rest.pop(key) for key in ("algorithm", "train")}}]
        return {**rest, "phases": [imitate, *phases]}

    def online(self) -> Section:
        """What learns from responses as it samples them."""
        generation, kl = self.row["generation"], [{"kl": self.said["kl"]}]
        if self.method in ("rloo", "grpo"):
            return {
                "rewards": [*self.rewards, *(kl if self.method == "rloo" else [])],
                "algorithm": self.method,
                "generation": {"samples": self.samples, **generation},
                "train": self.train_grouped(),
            }
        return {
            "models": {"value": {"value-head": {"trunk": "own"}}},
            "rewards": [*self.rewards, *kl],
            "algorithm": self.actor_critic(),
            "generation": generation,
            "train": self.train(),
        }

    def actor_critic(self) -> Section:
        """PPO or NLPO. A step holds so few responses that their advantages are whitened over the iteration."""
        row = self.row
        common = {"preset": "rl4lms", "whiten": "batch"}
        common |= {"entropy": row["entropy"]} if "entropy" in row else {}
        if self.method.endswith("ppo"):
            return {"ppo": common}
        later = row.get("warm_nlpo", {}) if self.begins == "warm" else {}
        return {"nlpo": {**common, "top_p": 0.9, **row["nlpo"], **later}}

    def offline(self) -> Section:
        """A log of the model's own responses, and what is learned from it."""
        drawn, logged = self.train_grouped(), {"task": {"from": "log"}, "responses": "logged"}
        iterations, prompts = drawn["iterations"], drawn["prompts"]
        log = {"name": "log", "algorithm": "collect", "rewards": self.rewards}
        phases: list[Section] = [
            {**log, "train": {"iterations": iterations, "prompts": prompts}, "evaluate": None}
        ]
        models: Section = {}
        if self.method == "a-lol":
            models = {
                "models": {"value": {"attention-value": {"min": 0.0, "max": 1.0}}}
            }  # as all rewards are
            everything = {"iterations": 1, "prompts": iterations * prompts}
            fit = {**everything, "minibatches": iterations * prompts // 16, "lr": 1.0e-3}
            phases.append(
                {"name": "value", **logged, "algorithm": "fit-value", "train": fit, "evaluate": None}
            )
        algorithm = {"a-lol": {"pool": "all"}} if self.method == "a-lol" else {"copg": {"beta": 0.06}}
        phases.append({"name": "align", **logged, "algorithm": algorithm, "train": LEARNED})
        return {**models, "generation": {"samples": self.samples, **self.row["generation"]}, "phases": phases}

    # -- rewards and metrics ----------------------------------------------------------------------------------------

    @cached_property
    def rewards(self) -> list[Any]:
        """Without the KL."""
        return [*self.row["rewards"], *(self.row.get("base_rewards", []) if self.begins == "base" else [])]

    def evaluate(self, every: int | None) -> Section:
        """What is measured; rewards of the phase go by their names."""
        named = self.method not in ("supervised", "a-lol", "copg")
        rewards = {name_of(one): name_of(one) if named else measured(one) for one in self.rewards}
        metrics = [one for one in self.row["metrics"] if name_of(one) not in rewards]
        generation = self.row["evaluate"]["generation"]
        # What is decoded otherwise than it was sampled has no KL.
        kl = ["kl"] if generation == self.row["generation"] and self.method != "supervised" else []
        when = {"every": every} if every else {}
        size = {"split": "val", "examples": EVALUATED}
        return {**when, **size, "generation": generation, "use": [*rewards.values(), *kl, *metrics]}


def name_of(item: Any) -> str:
    """What an item is called."""
    return item if isinstance(item, str) else str(item.get("as") or next(iter(item)))


def measured(item: Any) -> Any:
    """A reward as it stands under `evaluate.use`: without a weight."""
    if isinstance(item, str):
        return item
    rest = {key: value for key, value in item.items() if key != "weight"}
    return next(iter(rest)) if list(rest.values()) == [{}] else rest
