"""Writes the recipes, one file a task and algorithm, from table.yaml: `python recipes/grue/generate.py`.

Without them the folders are the table; with them nobody has to read this file in order to run one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
Options = Mapping[str, Any]

EPOCHS = 5
"""Passes of PPO and NLPO over an iteration's responses: what `preset: rl4lms` sets."""
MINIBATCH = 64
"""Tokens of an optimiser step in the original."""
EVALUATED = 512
"""Examples of an evaluation. The original's are all of the split."""
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


@dataclass(frozen=True)
class Recipe:
    """One task with one algorithm."""

    task: str
    row: Options
    method: str

    @cached_property
    def begins(self) -> str:
        """What it begins with: `base`, or `warm`."""
        return "base" if self.method in ("supervised", "ppo", "nlpo") else "warm"

    @cached_property
    def published(self) -> bool:
        """Whether it need not fine-tune a model first."""
        return self.begins == "base" or self.row["warm"]["model"] is not None

    # -- how much ---------------------------------------------------------------------------------------------

    @cached_property
    def step(self) -> int:
        """Responses of an optimiser step: of so many tokens as the original's, were they all as long as they may be."""
        return int(self.row.get("step") or math.ceil(MINIBATCH / self.row["generation"]["max_new_tokens"]))

    @cached_property
    def samples(self) -> int:
        """Responses to a prompt, where they are compared."""
        return int(self.row.get("samples", 4))

    @cached_property
    def responses(self) -> int:
        """Responses of an iteration: so that they have as many tokens; rounded up to whole steps and groups."""
        unit = math.lcm(self.step, self.samples)
        return unit * math.ceil(self.row["buffer"] / self.row["generation"]["max_new_tokens"] / unit)

    def online(self, grouped: bool) -> dict[str, Any]:
        """`train` of what samples. Groups are gone over once, at a learning rate that makes up for fewer steps."""
        said = self.row[self.begins]
        if not grouped:
            return {
                "iterations": said["iterations"],
                "prompts": self.responses,
                "minibatch": self.step,
                "lr": said["lr"],
            }
        prompts, groups = self.responses // self.samples, max(1, self.step // self.samples)
        steps = EPOCHS * (self.responses / self.step) / (prompts / groups)
        return {
            "iterations": said["iterations"],
            "prompts": prompts,
            "minibatch": groups,
            "lr": float(f"{steps * said['lr']:.2g}"),
        }

    # -- sections -----------------------------------------------------------------------------------------------

    @property
    def header(self) -> Iterator[str]:
        model = (
            self.row["warm"]["model"]
            if self.begins == "warm" and self.published
            else self.row["base"]["model"]
        )
        yield f"{METHODS[self.method]}: {model.rpartition('/')[2]} {self.row['does']}."
        if self.method in AS:
            yield AS[self.method].format(samples=self.samples)
        if self.row["from"] == "original" and self.method in ("rloo", "grpo", "a-lol", "copg"):
            yield "Task, rewards and evaluation are RL4LMs'; what the algorithm needs is ours."
        elif self.row["from"] == "original":
            yield "Values are RL4LMs' but for what is noted; README.md says how units were converted."
        else:
            yield str(self.row["from"])

    @cached_property
    def rewards(self) -> list[Any]:
        found = [*self.row["rewards"]]
        return found + self.row.get("base_rewards", []) if self.begins == "base" else found

    def use(self, named: bool) -> list[Any]:
        """What is measured; rewards by name where they are the phase's."""
        rewards = [_name(one) if named else _without_weight(one) for one in self.rewards]
        kl = ["kl"] if named and self.method != "grpo" and self.samples_as_it_learns else []
        there = {_name(one) for one in self.rewards}
        return [*rewards, *kl, *(one for one in self.row["metrics"] if _name(one) not in there)]

    @cached_property
    def samples_as_it_learns(self) -> bool:
        """Whether an evaluation draws responses as training does."""
        return bool(self.row["generation"] == self.row["evaluate"]["generation"])

    def evaluate(self, every: int | None, named: bool) -> dict[str, Any]:
        found = {
            "every": every,
            "split": "val",
            "examples": EVALUATED,
            **self.row["evaluate"],
            "use": self.use(named),
        }
        return {**found, "every": every} if every else {k: v for k, v in found.items() if k != "every"}

    def actor_critic(self) -> dict[str, Any]:
        """`algorithm` of PPO and NLPO."""
        entropy = {"entropy": self.row["entropy"]} if "entropy" in self.row else {}
        common = {"preset": "rl4lms", "whiten": "batch", **entropy}
        if not self.method.endswith("nlpo"):
            return {"ppo": common}
        own = {
            "top_p": 0.9,
            **self.row["nlpo"],
            **(self.row.get("warm_nlpo", {}) if self.begins == "warm" else {}),
        }
        return {"nlpo": {**common, **own}}

    @cached_property
    def sections(self) -> dict[str, Any]:
        """The whole file."""
        row, said = self.row, self.row[self.begins]
        first = self.method == "supervised"
        options = {**row.get("task", {}), **(row["supervised"].get("task", {}) if first else {})}
        options["tokenizer"] = f"${{policy.{row['policy']}.path}}"
        model = {
            "path": said["model"] or row["base"]["model"],
            **(row["supervised"].get("policy", {}) if first else {}),
        }
        found: dict[str, Any] = {"task": {self.task: options}, "policy": {row["policy"]: model}}
        if first:
            imitate = self.imitate()
            return {**found, **imitate, "evaluate": self.evaluate(row["supervised"]["every"], named=False)}
        kl = [{"kl": said["kl"]}]
        if self.method in ("a-lol", "copg"):
            found |= self.offline()
        elif self.method in ("rloo", "grpo"):
            found["rewards"] = [*self.rewards, *(kl if self.method == "rloo" else [])]
            found["algorithm"] = self.method
            found["generation"] = {"samples": self.samples, **row["generation"]}
            found["train"] = self.online(grouped=True)
        else:
            found["models"] = {"value": {"value-head": {"trunk": "own"}}}
            found["rewards"] = [*self.rewards, *kl]
            found["algorithm"] = self.actor_critic()
            found["generation"] = row["generation"]
            found["train"] = self.online(grouped=False)
        offline = "phases" in found
        found["evaluate"] = self.evaluate(None if offline else row["evaluate"]["every"], named=not offline)
        return found if self.published else self.preceded(found)

    def imitate(self) -> dict[str, Any]:
        said = self.row["supervised"]
        train = {key: said[key] for key in ("passes", "prompts", "lr", "weight_decay") if key in said}
        if "shape" in said:
            train["schedule"] = {"shape": said["shape"]}
        return {"algorithm": "sft", "train": {**train, "dropout": True}}

    def preceded(self, found: dict[str, Any]) -> dict[str, Any]:
        """The same after a phase that imitates, for want of a published model."""
        imitate = {"name": "imitate", **self.imitate(), "rewards": None, "evaluate": None}
        rest = found.pop("phases", None) or [
            {"name": "align", **{k: found.pop(k) for k in ("algorithm", "train")}}
        ]
        return {**found, "phases": [imitate, *rest]}

    def offline(self) -> dict[str, Any]:
        """A log of the model's own responses, and what is learned from it."""
        bounds = self.row.get("range", {"min": 0.0, "max": 1.0})
        drawn = self.online(grouped=True)
        log = {"name": "log", "algorithm": "collect", "rewards": self.rewards}
        log["train"] = {key: drawn[key] for key in ("iterations", "prompts")}
        logged = {"task": {"from": "log"}, "responses": "logged"}
        every = drawn["iterations"] * drawn["prompts"]
        train = {"passes": 2, "prompts": 16, "lr": 1.0e-5}
        value = {"name": "value", **logged, "algorithm": "fit-value"}
        value["train"] = {"iterations": 1, "prompts": every, "minibatches": every // 16, "lr": 1.0e-3}
        a_lol = {"name": "align", **logged, "algorithm": {"a-lol": {"pool": "all"}}, "train": train}
        copg = {"name": "align", **logged, "algorithm": {"copg": {"beta": 0.06}}, "train": train}
        generation = {"samples": self.samples, **self.row["generation"]}
        if self.method == "copg":
            return {"generation": generation, "phases": [{**log, "evaluate": None}, copg]}
        models = {"value": {"attention-value": bounds}}
        return {
            "models": models,
            "generation": generation,
            "phases": [{**log, "evaluate": None}, {**value, "evaluate": None}, a_lol],
        }

    def notes(self) -> dict[str, list[str]]:
        """Comments by section."""
        found: dict[str, list[str]] = {}
        given = self.row.get("notes", {})
        ours = self.method in ("a-lol", "copg", "rloo", "grpo")
        parts = ("supervised",) if self.method == "supervised" else ("either", self.begins)
        for part in parts:
            for section, text in given.get(part, {}).items():
                if not (ours and section in ("train", "algorithm")):
                    found.setdefault(section, []).append(text)
        if self.method.endswith("nlpo"):
            found.setdefault("algorithm", []).append(MODE)
        return found

    @property
    def text(self) -> str:
        """The file."""
        notes = self.notes()
        lines = [f"# {line}" for line in self.header]
        for section, value in self.sections.items():
            lines += [f"# {note}" for note in notes.get(section, ())]
            lines += _section(section, value)
        return "\n".join(lines) + "\n"


# -- items ------------------------------------------------------------------------------------------------------


def _name(item: Any) -> str:
    return item if isinstance(item, str) else str(item.get("as") or next(iter(item)))


def _without_weight(item: Any) -> Any:
    if isinstance(item, str):
        return item
    rest = {key: value for key, value in item.items() if key != "weight"}
    return next(iter(rest)) if list(rest.values()) == [{}] else rest


# -- YAML as a person would write it ------------------------------------------------------------------------------


def _flow(value: Any) -> str:
    """On one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return _number(value)
    text = str(value)
    return f'"{text}"' if re.search(r"[{}\[\],&*#?|<>=!%@:`]", text) else text


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}" if value % 1 else f"{value:.1f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0")
    return f"{mantissa}0e{int(exponent)}" if mantissa.endswith(".") else f"{mantissa}e{int(exponent)}"


def _item(item: Any) -> list[str]:
    """An item of a list of components, and what stands beside the component."""
    if not isinstance(item, Mapping):
        return [f"- {_flow(item)}"]
    first, *beside = item.items()
    return [f"- {first[0]}: {_flow(first[1])}", *(f"  {key}: {_flow(value)}" for key, value in beside)]


def _section(name: str, value: Any) -> list[str]:
    if name == "rewards" and value:
        plain = all(isinstance(one, str) or len(one) == 1 for one in value)
        line = f"rewards: {_flow(value)}".replace("[{kl", "[kl")
        return (
            [line]
            if plain and len(line) <= 100
            else ["rewards:", *(line for one in value for line in _item(one))]
        )
    if name == "evaluate" and value:
        use = [f"  {line}" for one in value["use"] for line in _item(one)]
        return [
            "evaluate:",
            *(f"  {key}: {_flow(each)}" for key, each in value.items() if key != "use"),
            "  use:",
            *use,
        ]
    if name == "phases":
        return ["phases:", *(line for phase in value for line in _phase(phase))]
    return [f"{name}: {_flow(value)}"]


def _phase(phase: Mapping[str, Any]) -> Sequence[str]:
    lines = [line for section, value in phase.items() for line in _section(section, value)]
    return [f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines)]


def recipes() -> list[Recipe]:
    """All of them."""
    table = yaml.safe_load((HERE / "table.yaml").read_text(encoding="utf-8"))
    return [Recipe(task, row, method) for task, row in table.items() for method in METHODS]


def main() -> None:
    for recipe in recipes():
        folder = HERE / recipe.task
        folder.mkdir(exist_ok=True)
        (folder / f"{recipe.method}.yaml").write_text(recipe.text, encoding="utf-8")


if __name__ == "__main__":
    main()
