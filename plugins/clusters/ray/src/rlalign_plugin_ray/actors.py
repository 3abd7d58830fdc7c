"""A process that answers questions, as an actor. Whoever asks makes a new one where it is lost or hangs.

Ray's own `max_task_retries` would hand the question that hung to the new actor, which hangs again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from rlalign.interface.cluster import Answers
from rlalign_plugin_ray.cluster import Settings
from rlalign_plugin_ray.connecting import connect, first_line


class Actor:
    """The actor, from this side."""

    def __init__(self, settings: Settings, make: Callable[[], Answers]) -> None:
        connect(settings)
        # SPREAD: not within the placement group of a run whose process asks.
        options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus or 0, "scheduling_strategy": "SPREAD"}
        self._actor: Any = ray.remote(**options)(Answering).remote(os.getcwd(), make)

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = ray.get(self._actor.answer.remote(question), timeout=seconds)
        except GetTimeoutError:
            raise TimeoutError from None
        except RayError as error:
            raise ConnectionError(f"was lost ({first_line(error)})") from error
        return answer

    def close(self) -> None:
        with suppress(Exception):  # the cluster is gone already
            ray.kill(self._actor, no_restart=True)


class Answering:
    """The other side."""

    def __init__(self, folder: str, make: Callable[[], Answers]) -> None:
        os.chdir(folder)
        self._answers = make()

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        return self._answers(question)
