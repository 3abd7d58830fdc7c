"""Every split of every world is what it was: a change of how texts are drawn changes none of them."""

from __future__ import annotations

import hashlib
import json

import pytest

import rlalign_plugin_toy_tasks as toys

PINNED: dict[str, tuple[str, ...]] = {
    "ToyReviews": ("2288566bb1751953", "13ae94f595fc2fce", "48d1e963a044ba0a"),
    "ToyKeywords": ("ef4c3cbb5d1007fe", "fccc363dae09fd6b", "65e35e5bcf2b3a58"),
}


@pytest.mark.parametrize("world", PINNED)
def test_texts_are_what_they_were(world):
    cls = getattr(toys, world)
    task = cls(cls.Config())
    found = []
    for split in ("train", "val", "test"):
        rows = [[e.id, e.prompt, e.responses, e.scores, e.meta] for e in task.examples(split)]
        found.append(hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])
    assert tuple(found) == PINNED[world]
