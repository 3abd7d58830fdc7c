"""A reward or an environment in a process of a cluster, from this side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from rlalign.interface.cluster import Answers, Cluster
from rlalign.serving.answering import answering
from rlalign.serving.child import START_SECONDS
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import Broken, NoRoom, Refused

READY = {"ask": "ready"}


class Afar:
    """The process; one that is lost or silent is ended, and another one asked in its place."""

    def __init__(self, cluster: Cluster, recipe: Recipe) -> None:
        self._process = cluster.start(partial(_answers, recipe, recipe.threads or torch.get_num_threads()))

    def ready(self) -> None:
        try:
            answer = self._asked(READY, START_SECONDS)
        except TimeoutError:
            said = f"was not there within {START_SECONDS:g} seconds; has the cluster room for it?"
            raise NoRoom(said) from None
        if "error" in answer:
            raise Refused(str(answer["error"]))

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            return self._asked(question, seconds)
        except TimeoutError:
            raise Broken(f"did not answer within {seconds:g} seconds") from None

    def _asked(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        try:
            return self._process.ask(question, seconds)
        except ConnectionError as error:
            raise Broken(str(error)) from error

    def how_it_ended(self) -> str:
        return "is gone"

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self._process.close()


def _answers(recipe: Recipe, threads: int) -> Answers:
    """The other side."""
    torch.set_num_threads(threads)
    hosted = answering(recipe)
    if isinstance(hosted, str):
        wrong = {"error": hosted}
        return lambda question: wrong
    return lambda question: {"ready": True} if question == READY else hosted.answer(question)
