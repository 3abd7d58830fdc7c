"""What is cut over processes and leaves the run: pieces of a checkpoint, and the model put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlalign.interface.policy import Policy
from rlalign.learning.optimiser import Optimiser
from rlalign.records import checkpoint, manifest
from rlalign.records.shards import cut_of, load_pieces, save_pieces
from rlalign.records.tensors import split_state
from rlalign.records.weights import kept, load_weights
from rlalign.running.models import Models
from rlalign.world.ranks import here
from rlalign.world.sharding import all_gathered


def write_pieces(
    folder: Path, index: int, states: Mapping[str, Any], go_on: Callable[[], None]
) -> dict[str, dict[str, Any]] | None:
    """Begin a checkpoint with the tensors that are cut, which all ranks write at once; None where nothing is cut."""
    cut = {f"models/{name}": cut_of(weights or {}) for name, (_, weights) in states["models"].items()}
    cut["optimiser"] = cut_of(split_state(states["optimiser"])[0])
    cut = {name: tensors for name, tensors in cut.items() if tensors}
    if not cut:
        return None
    world = here()

    def begin() -> None:
        go_on()
        with checkpoint.writing(folder, index):
            checkpoint.begin(folder, index)

    def mine() -> dict[str, dict[str, Any]]:
        with checkpoint.writing(folder, index) as into:
            files = [save_pieces(into / name, x, world.own, world.count) for name, x in cut.items()]
            return {str(file.relative_to(into)): manifest.fingerprint(file) for file in files}

    world.lead(begin, f"the beginning of checkpoint {index}")
    try:
        found = world.gather(mine, f"the pieces of checkpoint {index}")
    except BaseException:
        if world.leads:
            checkpoint.give_up(folder, index)
        raise
    return {name: about for each in found for name, about in each.items()}


def load_optimiser(optimiser: Optimiser, folder: Path, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state that the checkpoint in this folder has of it."""
    with checkpoint.fitting(folder):
        optimiser.load_state_dict(state)
        if (pieces := folder / "optimiser").is_dir():
            load_pieces(pieces, split_state(optimiser.state_dict())[0])


def put_together(models: Models) -> Policy:
    """The policy as others than this run read it: whole, on rank 0, in the machine's memory where it is cut."""
    policy = models.policy
    if not policy.sharded:
        return policy
    state = all_gathered(kept(policy), here().leads)
    if not here().leads:
        return policy
    if models.whole is None:
        made = models.item.build()
        assert isinstance(made, Policy)
        made.new_tokens, made.saves_float32 = models.new_tokens.tokens, policy.saves_float32
        made.setup()
        models.whole = made.to(dtype=models.dtype).eval()
    load_weights(models.whole, state)
    models.whole.version, models.whole.learnable = policy.version, policy.learnable
    return models.whole
