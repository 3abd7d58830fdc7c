"""The real reward, in the process that computes it: built as a file names it, and asked through a channel."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from rlalign.config.pipeline import Item, short
from rlalign.config.registry import Registry, installed
from rlalign.errors import ComponentError, ConfigError, RLAlignError, describe_error, shortened
from rlalign.interface.cluster import Answers
from rlalign.interface.component import Component
from rlalign.interface.kept import settings_kept
from rlalign.randomness import Seeds
from rlalign.serving.protocol import Broken, Channel, Refused
from rlalign.serving.questions import answers_of, rollout_of

X = TypeVar("X")
WHERE = ("phase", "repeat", "iteration", "step", "tick")
"""What a served reward knows of the run that asks."""


@dataclass(frozen=True)
class Recipe:
    """All that another process needs to build the same component."""

    name: str
    component: str
    options: str
    folder: str | None
    trust: bool
    seed: int
    digest: str
    threads: int | None = None
    """Of the processor; None: as many as whoever begins the process has."""

    @classmethod
    def of(cls, item: Item, folder: Path | None, *, trust: bool, seed: int) -> Recipe:
        options = item.options.model_dump_json(round_trip=True)
        said = None if folder is None else str(folder)
        return cls(item.name, item.component, options, said, trust, seed, digest_of(item, folder))

    def item(self) -> Item:
        """Its item anew. ConfigError where that is another one here than there."""
        folder = None if self.folder is None else Path(self.folder)
        cls = Registry(trust=self.trust).load(self.component, folder).cls
        options = cls.Config.model_validate_json(self.options, strict=True, context={"trust": self.trust})
        item = Item(name=self.name, component=self.component, options=options, cls=cls)
        if digest_of(item, folder) != self.digest:
            raise ConfigError(
                "its code or its options are not the same in a process of their own; was a file changed meanwhile?"
            )
        return item


def digest_of(item: Item, folder: Path | None) -> str:
    """A hash of a reward's component, its code and options; the same on a machine where its files lie elsewhere."""

    def portable(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: portable(each) for key, each in value.items()}
        if isinstance(value, list):
            return [portable(each) for each in value]
        inside = folder is not None and isinstance(value, str) and value.startswith(f"{folder}/")
        return value[len(str(folder)) + 1 :] if inside else value

    said = [short(item.component), _code_of(item), portable(json.loads(item.identity))]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _code_of(item: Item) -> str:
    """The package and version that a component comes from, or a hash of its file."""
    package = item.cls.__module__.partition(".")[0]
    for one in installed():
        if one.name == short(item.component) and one.value.partition(":")[0].partition(".")[0] == package:
            return str(one)
    file = getattr(sys.modules.get(item.cls.__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


class Answering(ABC):
    """Answers questions in this process, one at a time."""

    def __init__(self) -> None:
        self._lock = Lock()

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What it says to a question, or what went wrong."""
        try:
            with self._lock:
                return self._answer(message)
        except RLAlignError as error:
            return {"error": str(error)}
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: they end no server
            return {"error": f"raised {describe_error(error)}"}

    @abstractmethod
    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]: ...


class Hosted(Answering):
    """A component that is asked in this process."""

    def __init__(self, item: Item, digest: str, seed: int) -> None:
        super().__init__()
        self.digest = digest
        self.name = item.name
        self._seeds = Seeds(seed)
        self.component: Component = item.build()
        self._seeds.seed_all("setup", self.name)
        with settings_kept(tell):
            self.component.setup(Alone({}))

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        asked, where = message.get("ask"), message.get("where")
        if asked not in ("reward", "evaluate") or not isinstance(where, dict):
            raise ComponentError("was asked what is no question")
        with settings_kept(tell):
            rollout, run = rollout_of(message.get("groups")), Alone(where)
            self._seeds.seed_all("served", self.name, str(message.get("key")))
            hook = getattr(self.component, asked)
            given = {"run": run, "rollout": rollout}
            found = hook(**{name: given[name] for name in inspect.signature(hook).parameters})
            if asked == "reward":
                return {"answers": answers_of(found, rollout)}
            return {"metrics": _numbers(found)}


def begun(recipe: Recipe, made: Callable[[Item], X]) -> X | str:
    """What is made of the component, set up; or what went wrong."""
    try:
        return made(recipe.item())
    except RLAlignError as error:
        return str(error)
    except BaseException as error:
        return f"`setup` raised {describe_error(error)}"


def answer_on(channel: Channel, answers: Answers) -> None:
    """Answer whoever is at the other end; Broken once it goes."""
    while True:
        try:
            channel.send(answers(channel.receive()))
        except Refused as error:  # an answer that no frame holds
            channel.send({"error": str(error)})


def _numbers(found: Any) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ComponentError(f"`evaluate` must return numbers by name, got a {type(found).__name__}")
    try:
        numbers = {str(name): float(value) for name, value in found.items()}
    except (TypeError, ValueError):
        raise ComponentError(
            f"`evaluate` must return numbers by name, got {shortened(repr(dict(found)), 500)}"
        ) from None
    return {name: x if abs(x) < float("inf") else str(x) for name, x in numbers.items()}


def tell(what: str, said: str) -> None:
    print(said, file=sys.stderr)


def answer_all(channel: Channel, hosted: Mapping[str, Hosted]) -> None:
    """Answer whoever is at the other end until it goes. The first frame names the reward, and what it shall be."""
    with suppress(Broken):
        asked = channel.receive()
        if asked.get("ask") == "health":
            channel.send({"rewards": {name: one.digest for name, one in hosted.items()}})
            return
        if wrong := _misfit(asked, hosted):
            channel.send({"refused": wrong})
            return
        channel.send({"ready": True})
        answer_on(channel, hosted[asked["name"]].answer)


def _misfit(asked: Mapping[str, Any], hosted: Mapping[str, Hosted]) -> str | None:
    name = asked.get("name")
    if not isinstance(name, str) or name not in hosted:
        return f"there is no `{str(name)[:80]}` here; there are {', '.join(hosted)}"
    if asked.get("digest") != hosted[name].digest:
        return (
            f"`{name}` has other options or other code here (digest {hosted[name].digest[:12]}) than in the run's "
            f"pipeline ({str(asked.get('digest'))[:12]}); serve the file that the run uses"
        )
    return None


class Alone:
    """The run as a served reward is given it: where it stands, and nothing that lies in the run's own process."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.__dict__.update({name: where[name] for name in WHERE if name in where})

    def note(self, text: str) -> None:
        """A line into what the process prints."""
        print(text, file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        device = ", or say on which `device`, where it has that option" if name == "models" else ""
        raise ComponentError(
            f"asks for run.{name}, which a reward in a process of its own does not have "
            f"(it has {', '.join(WHERE)} when it is asked); leave out `isolate`{device}"
        )
