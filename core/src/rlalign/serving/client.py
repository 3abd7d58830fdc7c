"""Asks a served reward: begins it or connects to it, asks again where it failed, and says what happened in the end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlalign.config import clusters
from rlalign.config.pipeline import Isolate
from rlalign.errors import ComponentError, shortened, shown
from rlalign.serving.afar import Afar
from rlalign.serving.child import START_SECONDS, Child
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import TOKEN, Broken, Channel, Refused, introduce, want
from rlalign.serving.questions import Group, checked

LONGEST_WAIT = 30.0
"""Seconds before it is asked again, at most."""
CONNECT_SECONDS = 10.0


class End(Protocol):
    """Whoever answers, from this side."""

    def ready(self) -> None: ...
    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]: ...
    def how_it_ended(self) -> str: ...
    def last_words(self) -> str: ...
    def close(self) -> None: ...


class Remote:
    """A server of rewards."""

    def __init__(self, address: str, recipe: Recipe) -> None:
        self._recipe = recipe
        host, _, port = address.rpartition(":")
        try:
            connected = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
        except (OSError, OverflowError) as error:
            raise Broken(f"cannot be reached ({error}); is `rlalign serve-reward` running there?") from error
        self.channel = Channel(connected)

    def ready(self) -> None:
        introduce(self.channel, os.environ.get(TOKEN), CONNECT_SECONDS)
        want(self.channel, self._recipe.name, self._recipe.digest, START_SECONDS)

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        return self.channel.ask(question, seconds)

    def how_it_ended(self) -> str:
        return "closed the connection"

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.channel.close()


class Client:
    """One served reward. It is asked by one thread at a time; `close` may be called from any."""

    def __init__(self, recipe: Recipe, isolate: Isolate, place: str = "") -> None:
        self._recipe = recipe
        self._isolate = isolate
        self._place = place
        self.log: Path | None = None
        """Where what its process prints is kept."""
        self._end: End | None = None
        self._closed = threading.Event()

    @property
    def _who(self) -> str:
        return ", ".join(filter(None, (f"`{self._recipe.name}` {self._isolate.where}", self._place)))

    def scores(
        self, groups: Sequence[Group], where: dict[str, Any], keys: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What it says of each group; the keys tell the groups apart."""
        question = {"ask": "reward", "groups": list(groups), "where": where, "key": keys[0]}
        found: list[dict[str, Any]] = self.asked(
            question, lambda answer: checked(answer.get("answers"), groups)
        )
        return found

    def metrics(self, groups: Sequence[Group], where: dict[str, Any], key: str) -> dict[str, Any]:
        """What it measures of all of them together: numbers, or "nan", "inf" and "-inf"."""
        question = {"ask": "evaluate", "groups": list(groups), "where": where, "key": key}
        found: dict[str, Any] = self.asked(question, _numbers)
        return found

    def begin(self) -> None:
        """Have it ready, so that what is wrong with it is told at once."""
        self.asked(None, lambda answer: answer)

    def close(self) -> None:
        """End its process, or the connection."""
        self._closed.set()
        self._drop()

    def asked(self, question: dict[str, Any] | None, read: Callable[[dict[str, Any]], Any]) -> Any:
        said = ""
        for attempt in range(self._isolate.retries + 1):
            if attempt and self._closed.wait(min(2.0 ** (attempt - 1), LONGEST_WAIT)):
                break
            try:
                end = self._end or self._begun()
                if question is None:
                    return read({})
                answer = end.ask(question, self._isolate.seconds)
                if "error" not in answer:
                    return read(answer)
                said = shortened(shown(str(answer["error"])), 2000)
            except Refused as error:
                self._drop()
                raise ComponentError(f"{self._who}: {shown(str(error))}") from error
            except (Broken, ValueError) as error:
                said = self._what_happened(error)
                self._drop()
            except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
                self._drop()
                raise
        times = self._isolate.retries + 1
        often = f" (asked {times} times)" if times > 1 and not self._closed.is_set() else ""
        raise ComponentError(f"{self._who}: it {said or 'was ended'}{often}")

    def _begun(self) -> End:
        if self._closed.is_set():
            raise Broken("was ended")
        isolate, recipe = self._isolate, self._recipe
        end: End
        if isolate.at:
            end = Remote(isolate.at, recipe)
        elif isolate.cluster:
            end = Afar(clusters.find(isolate.cluster, "isolate"), recipe)
        else:
            end = Child(recipe, isolate.memory, self.log)
        self._end = end
        end.ready()
        return end

    def _what_happened(self, error: Exception) -> str:
        if self._end is None:
            return str(error)
        closed = str(error).startswith("closed the connection")
        said = self._end.how_it_ended() if closed else str(error)
        words = self._end.last_words()
        return f"{said}; the last that it printed:\n{words}" if words else said

    def _drop(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.close()


def _numbers(answer: dict[str, Any]) -> dict[str, Any]:
    found = answer.get("metrics")
    if not isinstance(found, dict) or not all(
        type(x) in (int, float) or x in ("nan", "inf", "-inf") for x in found.values()
    ):
        raise ValueError("answered what are no numbers by name")
    return found
