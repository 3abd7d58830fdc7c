"""A new pipeline: components that are chosen, each with its options, their defaults and what they mean."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlalign.api import Pipeline
from rlalign.config.file import accepts
from rlalign.config.load import load_pipeline
from rlalign.config.outline import sentence
from rlalign.config.pipeline import Evaluate
from rlalign.config.places import value
from rlalign.config.registry import Registry
from rlalign.config.words import found
from rlalign.data.settings import Sampling, Train
from rlalign.errors import ConfigError

WIDTH = 110
ABOUT = {
    "task": "Where prompts come from",
    "policy": "The model to train",
    "rewards": "What is wanted: a weighted sum",
    "algorithm": "How it learns",
}
ITERATIONS, PROMPTS, EVERY = 100, 16, 20


@dataclass(frozen=True)
class Chosen:
    """A component, and what is said of its options."""

    name: str
    cls: type[Any]
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unsaid(self) -> list[str]:
        """Options that must be said, and are not."""
        fields: Mapping[str, Any] = self.cls.Config.model_fields
        return [name for name, one in fields.items() if one.is_required() and name not in self.said]


def chosen(role: str, said: str, registry: Registry, folder: Path) -> Chosen:
    """What `NAME`, or `NAME: {…}` as in a pipeline, means."""
    given = value(said, f"--{role.removesuffix('s')}")
    if isinstance(given, str):
        given = {given: None}
    if (
        not isinstance(given, dict)
        or len(given) != 1
        or not isinstance(next(iter(given.values())), dict | None)
    ):
        raise ConfigError(
            f"--{role.removesuffix('s')}: expected `name` or `name: {{…}}`, found {found(given)}"
        )
    [(name, options)] = given.items()
    cls = registry.load(name, folder).cls
    if not accepts(cls, role):
        raise ConfigError(f"`{name}` cannot stand under `{role}`; `rlalign plugins {name}` says where it may")
    return Chosen(name, cls, options or {})


def complete(role: str, one: Chosen, ask: Callable[[str, str], str] | None) -> Chosen:
    """The same, with all that must be said of it; `ask` gets (option, what it means), and says YAML."""
    fields = one.cls.Config.model_fields
    if one.unsaid and ask is None:
        lacking = "; ".join(f"{name}: {fields[name].description}" for name in one.unsaid)
        example = ", ".join(f"{name}: …" for name in one.unsaid)
        raise ConfigError(
            f"`{one.name}` cannot do without ({lacking}); say --{role.removesuffix('s')} "
            f"'{one.name}: {{{example}}}'"
        )
    more = (
        {name: value(ask(name, fields[name].description or ""), name) for name in one.unsaid} if ask else {}
    )
    return Chosen(one.name, one.cls, {**one.said, **more})


def write(task: Chosen, policy: Chosen, rewards: Sequence[Chosen], algorithm: Chosen, first: str = "") -> str:
    """The file. What is commented out has its default."""
    learns: Any = algorithm.cls
    with suppress(Exception):  # wrong options: `check` says what is wrong
        learns = learns(learns.Config.model_validate_json(json.dumps(dict(algorithm.said))))
    samples = max(learns.min_samples, 4 if learns.responses != "logged" else 1)
    lines = [
        *first.splitlines(),
        "# `rlalign check` says what this file means, `rlalign run` runs it. Options that are commented out have these",
        "# defaults, but for those that the task or the algorithm sets (`check` shows them).",
    ]
    for role, several in (("task", task), ("policy", policy), ("rewards", rewards), ("algorithm", algorithm)):
        listed = [several] if isinstance(several, Chosen) else several
        if not listed:
            continue
        lines += ["", f"# {ABOUT[role]}.", f"{role}:"]
        for one in listed:
            lines += _component(one, "- " if role == "rewards" else "  ")
    lines += ["", "# How responses are sampled.", "generation:"]
    lines += _options(Sampling, {"samples": samples}, "  ")
    lines += ["", "# How much is learned, how fast.", "train:"]
    lines += _options(Train, {"iterations": ITERATIONS, "prompts": PROMPTS}, "  ")
    lines += ["", "# What is measured on the way; without `use` the rewards.", "evaluate:"]
    lines += _options(Evaluate, {"every": EVERY}, "  ", leave=("use",))
    return "\n".join(lines) + "\n"


def check(text: str, path: Path, registry: Registry) -> None:
    """Refuse a file that `rlalign check` would refuse."""
    try:
        Pipeline(load_pipeline(path, registry=registry, text=text), registry).check()
    except ConfigError as error:
        raise ConfigError(f"these do not go together, and nothing is written:\n{error}") from None


def _component(one: Chosen, before: str) -> list[str]:
    about = sentence(one.cls.__doc__)
    indent = " " * len(before)
    lines = [*textwrap.wrap(f"# {about}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}# ")]
    options = _options(one.cls.Config, one.said, f"{indent}  ")
    return [*lines, f"{before}{_text(one.name)}:", *options]


def _options(
    model: type[BaseModel], said: Mapping[str, Any], indent: str, leave: Sequence[str] = ()
) -> list[str]:
    """A line an option: those that are said, and the others commented out. What it means stands behind, or above."""
    lines = []
    for name, one in model.model_fields.items():
        key = one.alias or name
        if name in leave or one.description is None:
            continue
        live = key in said
        default = None if one.is_required() else one.get_default(call_default_factory=True)
        line = f"{indent}{'' if live else '# '}{key}: {_text(said[key] if live else default)}"
        about = f"  # {one.description}"
        if len(line) + len(about) > WIDTH:
            prose = f"{indent}#   "
            lines += textwrap.wrap(one.description, WIDTH, initial_indent=prose, subsequent_indent=prose)
            about = ""
        lines.append(line + about)
    return lines


def _text(given: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(given, BaseModel):
        given = given.model_dump(mode="json", by_alias=True)
    if isinstance(given, str):
        plain = re.fullmatch(r"[A-Za-z][\w.-]*(/[\w.-]+)*(:\w+)?", given) and not _WORDS.fullmatch(given)
        return given if plain else json.dumps(given, ensure_ascii=False)
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{_text(str(key))}: {_text(part)}" for key, part in given.items()) + "}"
    if isinstance(given, Sequence):
        return "[" + ", ".join(map(_text, given)) + "]"
    return json.dumps(given, default=str)


_WORDS = re.compile("yes|no|on|off|true|false|null|y|n", re.IGNORECASE)
