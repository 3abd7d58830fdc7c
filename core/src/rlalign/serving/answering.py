"""Who answers for a component in a process of its own."""

from __future__ import annotations

from rlalign.config.pipeline import Item
from rlalign.interface.policy import Policy
from rlalign.serving.copied import Copied
from rlalign.serving.host import Answering, Hosted, Recipe


def answering(item: Item, recipe: Recipe) -> Answering:
    """A copy of a policy, or a reward."""
    if issubclass(item.cls, Policy):
        return Copied(item, recipe.seed)
    return Hosted(item, recipe.digest, recipe.seed)
