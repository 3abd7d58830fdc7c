"""The weights of a model: what is kept of them, how they are given back, and the precision they are held in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from rlalign.errors import CheckpointError
from rlalign.interface.policy import Model
from rlalign.records.shards import load_pieces
from rlalign.world.sharding import cut_like, gathered, is_cut


def hold(model: Model, dtype: torch.dtype) -> Model:
    """Keep a model's weights in this precision. What is not saved with them stays as it is: a position times a
    rounded rotary frequency is another position.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    # As `to` does: a model that lays its weights out side by side does so again, and lets go of the old ones.
    model._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]
    return model


def kept(model: Model) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model."""
    state = model.state_dict(keep_vars=True)  # of one tensor by its names one object
    return {
        key: value if is_cut(value) else value.detach()
        for key, value in state.items()
        if key not in model.ephemeral
    }


def load_weights(model: Model, state: Mapping[str, torch.Tensor], folder: Path | None = None) -> None:
    """Give a model back what `kept` kept of it; pieces of tensors that were cut lie in a folder of their own."""
    own = model.state_dict()
    apart = load_pieces(folder, own) if folder is not None and folder.is_dir() else set()
    state = {key: value for key, value in state.items() if key not in apart}
    wrong = [key for key, value in state.items() if key in own and value.shape != own[key].shape]
    if not wrong:
        state = {key: cut_like(value, own[key]) if key in own else value for key, value in state.items()}
        found = model.load_state_dict(dict(state), strict=False)
        lacking = [key for key in found.missing_keys if key not in (*model.ephemeral, *apart)]
        wrong = [*found.unexpected_keys, *lacking]
    if wrong:
        raise CheckpointError(
            f"the model `{model.name}` is not the one that was saved: {', '.join(wrong[:5])} differ"
        )


def fingerprint(model: Model) -> str:
    """A hash of a model's weights."""
    digest = hashlib.sha256()
    for key, tensor in sorted(kept(model).items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            gathered(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
