"""A conversation with what a run trained, next to what it was before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import rlalign
from rlalign.cli.guarded import say
from rlalign.cli.inspection import is_model, run_folder
from rlalign.errors import ConfigError, RLAlignError
from rlalign.interface.environment import Environment
from rlalign.records.environment import read_lock
from rlalign.records.weights import fingerprint
from rlalign.running.asking import NoTask
from rlalign.running.opened import Opened

QUIT, NEW = "/quit", "/new"


class Side:
    """One model, and what was said with it so far."""

    def __init__(self, name: str, model: Opened, system: str | None) -> None:
        self.name = name
        self._model = model
        self._system = system
        self._said: list[Any] | None = None
        """The messages so far; None before the first, and of a model that reads plain text."""

    def answer(self, text: str, seed: int) -> str:
        """What it says next. A model without a chat template meets each text as a prompt of its own."""
        prompt: Any = text if self._said is None else [*self._said, {"role": "user", "content": text}]
        system = self._system if self._said is None else None
        (row,) = self._model.sample([prompt], system=system, seed=seed, samples=1)
        response = str(row["response"])
        if not isinstance(row["prompt"], str):
            self._said = [*row["prompt"], {"role": "assistant", "content": response}]
        return response

    @property
    def remembers(self) -> bool:
        return self._said is not None

    def forget(self) -> None:
        self._said = None


def talk(
    name: str,
    overrides: Sequence[str],
    lines: TextIO,
    *,
    base: bool,
    at: Any,
    system: str | None,
    seed: int,
    trust: bool,
) -> None:
    """Ask both what is typed, until there is no more."""
    interactive = lines.isatty()
    if interactive:
        say(f"opening {name} …", err=True)
    sides = _sides(name, overrides, base=base, at=at, system=system, trust=trust)
    if interactive:
        say(f"{' | '.join(side.name for side in sides)}; {NEW} begins anew, {QUIT} or Ctrl-D ends", err=True)
    failed = 0
    for turn, text in enumerate(_asked(lines, interactive)):
        if text == NEW:
            for side in sides:
                side.forget()
            continue
        if not interactive:
            say(_row("you", text))
        try:
            for side in sides:
                say(_row(side.name, side.answer(text, seed + turn) or "(empty)"))
        except RLAlignError as error:
            if turn == 0:
                raise
            failed += 1
            again = f"; {NEW} begins a new conversation" if any(side.remembers for side in sides) else ""
            say(f"error: {error}{again}", err=True)
        say("")
    if failed and not interactive:
        raise ConfigError(f"{failed} of the lines could not be answered")


def _sides(
    name: str, overrides: Sequence[str], *, base: bool, at: Any, system: str | None, trust: bool
) -> list[Side]:
    folder = run_folder(name)
    if is_model(name):
        raise ConfigError(
            f"{name}: is a model; `rlalign sample {name} --prompt …` asks one. chat takes a run"
        )
    trained = rlalign.open(folder, overrides, at=at, trust=trust)
    if isinstance(trained.plans[trained.place].task, Environment):
        say("note: the run learned in an environment; here it is asked without one", err=True)
        task = f"{NoTask.__module__}:{NoTask.__name__}"
        trained = rlalign.open(folder, overrides, at=at, trust=trust, task=task)
    _require_words(name, trained)
    sides = [Side("trained", trained, system)]
    if base:
        sides.append(Side("base", _before(trained, folder), system))
    return sides


def _before(trained: Opened, folder: Any) -> Opened:
    """The model as the run began with it."""
    found = Opened(trained.pipeline, trained.registry, trained.name, trained.place)
    found.load_model(None)
    then = read_lock(folder / "lock.json")["models"].get("policy")
    if then not in (None, found.models.begun or fingerprint(found.models.policy)):
        say(
            "note: base is not what the run began with: the model it was loaded from has changed since",
            err=True,
        )
    return found


def _require_words(name: str, opened: Opened) -> None:
    """Refuse a policy that is no model of text."""
    if not opened.models.policy.speaks:
        raise ConfigError(
            f"{name}: its policy `{opened.pipeline.policy.name}` is no model of text, so there is nobody to talk with; "
            f"`rlalign sample {name} --new` shows what it does"
        )


def _asked(lines: TextIO, interactive: bool) -> Iterator[str]:
    """What is typed, a line each, or what comes through a pipe."""
    if interactive:
        import readline  # noqa: F401  input() has history and arrows by it
    while True:
        try:
            line = input("you      ") if interactive else lines.readline()
        except EOFError:
            return
        if not interactive and not line:
            return
        if (text := line.strip()) == QUIT:
            return
        if text:
            yield text


def _row(who: str, text: str) -> str:
    indent = "\n" + " " * 9
    return f"{who:7}  {text.strip().replace(chr(10), indent)}"
