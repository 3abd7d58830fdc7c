"""Who answers for a component in a process of its own."""

from __future__ import annotations

from rlalign.config.pipeline import Item
from rlalign.interface.environment import Environment
from rlalign.interface.policy import Policy
from rlalign.serving.copied import Copied
from rlalign.serving.host import Answering, Hosted, Recipe, begun
from rlalign.serving.stage import Stage


def answering(recipe: Recipe) -> Answering | Stage | str:
    """A policy's copy, an environment's episodes or a reward, set up; or what went wrong."""

    def made(item: Item) -> Answering | Stage:
        if issubclass(item.cls, Policy):
            return Copied(item, recipe.seed)
        if issubclass(item.cls, Environment):
            return Stage(item, recipe.seed)
        return Hosted(item, recipe.digest, recipe.seed)

    return begun(recipe, made)
