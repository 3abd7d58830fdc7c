"""A sequence classifier from a whole one, or from a bare encoder or language model with a new last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlalign import RLAlignError
from rlalign_plugin_hf.loading import load_weights, quiet, seeded, unreported


def has_head(settings: Any) -> bool:
    """Whether the folder's files hold a classifier's last layer."""
    return any(str(name).endswith("ForSequenceClassification") for name in settings.architectures or ())


def load(options: Any, settings: Any) -> Any:
    """The network in float32, in evaluation mode; what a bare model lacks is made from `options.seed`."""
    if has_head(settings):
        return load_weights(options, "classifier", settings)
    import transformers

    auto: Any = getattr(transformers, "AutoModelForSequenceClassification")  # noqa: B009
    how = {} if options.attention is None else {"attn_implementation": options.attention}
    try:
        with seeded(options.seed), quiet(), unreported():
            network, found = auto.from_pretrained(
                str(options.path),
                config=settings,
                use_safetensors=True,
                dtype=torch.float32,
                trust_remote_code=options.remote_code,
                output_loading_info=True,
                **how,
            )
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise RLAlignError(
            f"{options.path}: cannot be loaded ({type(error).__name__}: {lines[0]})"
        ) from error
    body = f"{network.base_model_prefix}."
    lacking = sorted(
        key for key in map(str, found["missing_keys"]) if key.startswith(body) and ".pooler." not in key
    )
    if lacking:
        raise RLAlignError(
            f"{options.path}: its files hold no weights for `{lacking[0]}`, which is no part of a new last layer; take "
            "a folder that holds the whole model"
        )
    return network.eval()


def output_layer(network: Any, filler: int, where: str) -> str:
    """The name of the linear layer that gives the logits, of one state of a row."""
    count = network.config.num_labels
    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == count
    ]
    size = network.get_input_embeddings().num_embeddings
    ids = torch.tensor([[i for i in range(min(8, size)) if i != filler]])
    with torch.no_grad():
        for name in reversed(linear):
            if _gives_logits(network, network.get_submodule(name), ids):
                return str(name)
    raise RLAlignError(
        f"{where}: a {type(network).__name__} has no linear layer at its end that reads one state; it cannot be "
        "trained here"
    )


def _gives_logits(network: Any, layer: nn.Linear, ids_1L: Tensor) -> bool:
    read: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        logits = network(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L)).logits
    finally:
        hook.remove()
    if not read:
        return False
    state = read[-1][:, -1] if read[-1].ndim == 3 else read[-1]
    found = layer(state)
    return found.shape == logits.shape and torch.allclose(found, logits, rtol=1e-4, atol=1e-5)
