"""From a folder, a GGUF file or a hub id to a network and a tokenizer. Weights are data; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlalign import ConfigError, RLAlignError
from rlalign.data.limits import require_memory
from rlalign_plugin_hf import gguf
from rlalign_plugin_hf.faults import explained, explaining, first_line
from rlalign_plugin_hf.folders import TOKENIZERS, check_folder, check_weights, local
from rlalign_plugin_hf.fused import fuse
from rlalign_plugin_hf.options import Kind, ModelOptions, Source, where

_AUTO = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
    "encoder": "AutoModel",
}
_NAMED = {"causal": ("LM", "LMHeadModel", "Generation"), "classifier": ("SequenceClassification",)}
"""How the classes of a kind end, as a config.json names them."""

MOST = {
    "layers?$|experts$": 2_000,
    "size|dim|width|vocab|position|embd|model|ctx|ff|head|kv|rank|state|groups": 10**8,
}
"""The largest whole numbers in a config.json, by what their names hold."""


def peek(options: Source, kind: Kind) -> dict[str, Any] | None:
    """What a folder's config.json says, once nothing is wrong with it that files alone tell.

    None of a GGUF file, which takes seconds to read, and of a name on the hub.
    """
    source = where(options)
    folder = Path(local(source))
    if gguf.named(source):
        _require_readable_kind(source, kind)
        check_folder(source, "path")
    if not folder.is_dir():
        return None
    check_folder(source, "path")
    check_weights(local(source))
    try:
        raw: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        classes = [str(name) for name in raw.get("architectures") or ()]
    except (ValueError, TypeError, AttributeError) as error:
        raise RLAlignError(f"{source}: its config.json cannot be read. {first_line(error)}") from error
    _require_plausible(raw, source)
    if kind in ("causal", "seq2seq") and bool(raw.get("is_encoder_decoder")) != (kind == "seq2seq"):
        what = "an encoder–decoder" if kind == "seq2seq" else "a language model without an encoder"
        raise RLAlignError(
            f"{source}: a `{raw.get('model_type')}` is not {what}, which is what is needed here"
        )
    endings = _NAMED.get(kind)
    if endings and classes and not any(name.endswith(endings) for name in classes):
        what = "a sequence classifier" if kind == "classifier" else "a language model"
        raise RLAlignError(f"{source}: holds a {classes[0]} (config.json), and what is needed here is {what}")
    return raw


def open_tokenizer(options: Source) -> Any:
    """The tokenizer."""
    from transformers import AutoTokenizer

    source = options.tokenizer if options.tokenizer is not None else options.path
    check_folder(str(source), "tokenizer" if options.tokenizer is not None else "path")
    hint = "" if options.tokenizer is not None else "; name another one with `tokenizer:`"
    folder = Path(local(str(source)))
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        # transformers would make an empty one and say nothing.
        raise RLAlignError(f"{source}: holds no tokenizer{hint}")
    try:
        how: dict[str, Any] = {"trust_remote_code": options.remote_code}
        if gguf.named(str(source)):
            folder, how["gguf_file"] = folder.parent, folder.name
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), **how)
        tokenizer("one")  # what its files say may be of the wrong type
    except Exception as error:
        raise RLAlignError(f"{source}: no tokenizer could be loaded{hint}. {first_line(error)}") from error
    return tokenizer


def open_config(options: Source, kind: Kind, *, weights: bool = True, memory: bool = True) -> Any:
    """The network's configuration, once nothing is wrong with the model that can be known without its weights."""
    source = where(options)
    check_folder(source, "path")
    if gguf.named(source):
        _require_readable_kind(source, kind)
    config = read_config(options, source)
    if kind in ("causal", "seq2seq") and bool(getattr(config, "is_encoder_decoder", False)) != (
        kind == "seq2seq"
    ):
        other, what = ("seq2seq-lm", "an") if kind == "causal" else ("causal-lm", "no")
        raise RLAlignError(
            f"{source}: a `{config.model_type}` is {what} encoder–decoder; use `policy: {{{other}: …}}`"
        )
    with explaining(source):
        if memory:
            _require_memory(config, options, kind)
        if weights and not gguf.named(source):
            check_weights(source)
    return config


def _require_readable_kind(source: str, kind: Kind) -> None:
    """Refuse a GGUF file where no language model is needed."""
    if kind not in ("causal", "seq2seq"):
        what = "a sequence classifier" if kind == "classifier" else "an encoder"
        raise RLAlignError(
            f"{source}: from GGUF files language models are read, and what is needed here is {what}; give a folder of "
            "safetensors"
        )


def load_network(options: ModelOptions, kind: Kind, config: Any) -> Any:
    """The network in float32, in evaluation mode."""
    if options.init == "pretrained":
        return _as_used(load_weights(options, kind, config))
    return made_anew(options, kind, config)


def made_anew(options: ModelOptions, kind: Kind, config: Any) -> Any:
    """The network with random weights."""
    with explaining(where(options)), seeded(options.seed):
        return _as_used(network_of(options, kind, config))


def network_of(options: Source, kind: Kind, config: Any) -> Any:
    """The network with weights that torch's generator makes."""
    auto, how = _auto(options, kind)
    return auto.from_config(config, **how)


def _as_used(network: Any) -> Any:
    for module in network.modules():
        # Rows padded on the right go without a mask, and a policy may well choose the padding token. transformers
        # would look for it in every forward pass (which waits for a GPU), and warn.
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _silent
    fuse(network)
    return network.eval()


def load_weights(options: Source, kind: Kind, config: Any) -> Any:
    """The network with the weights of its files, in float32 and in evaluation mode."""
    source, (auto, how) = where(options), _auto(options, kind)
    with explaining(source), seeded(0):
        shown = not Path(source).exists()  # a download may show how far it is
        # What an encoder leaves in the files, a head or layers further up, is left there on purpose.
        with nullcontext() if shown else quiet(), unreported() if kind == "encoder" else nullcontext():
            if gguf.named(source):
                network, found = gguf.unpacked(auto, source, config, **how)
            else:
                network, found = auto.from_pretrained(
                    local(source), config=config, use_safetensors=True, output_loading_info=True, **how
                )
        _require_whole(source, found, kind)
    return network.eval()


def _auto(options: Source, kind: Kind) -> tuple[Any, dict[str, Any]]:
    """The class that makes networks of this kind, and how it is asked."""
    import transformers

    # Chosen by name, since transformers hides what is not imported yet from type checkers.
    auto: Any = getattr(transformers, _AUTO[kind])
    how: dict[str, Any] = {"trust_remote_code": options.remote_code, "dtype": torch.float32}
    if options.attention is not None:
        how["attn_implementation"] = options.attention
    return auto, how


def _require_whole(source: str, found: dict[str, Any], kind: Kind) -> None:
    """Refuse a model of which transformers made a part at random; of an encoder nobody reads the pooler."""
    lacking = sorted(
        str(key) for key in found["missing_keys"] if kind != "encoder" or "pooler" not in str(key)
    )
    if lacking:
        also = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise RLAlignError(
            f"{source}: its files hold no weights for `{lacking[0]}`{also}, and what is not there would be made at "
            "random; take a folder that holds the whole model, or `init: random` for none of it"
        )


def _silent(*args: Any) -> None:
    """No warning."""


def read_config(options: Source, source: str) -> Any:
    """The network's configuration, whatever else is there."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        if gguf.named(source):
            raw = gguf.settings(source)
            _require_plausible(raw, source)
            return AutoConfig.for_model(**raw)
        raw, _ = PreTrainedConfig.get_config_dict(local(source))
        _require_plausible(raw, source)
        if options.attention is None and not options.remote_code:
            _require_no_kernel(raw, source)
        config = AutoConfig.from_pretrained(local(source), trust_remote_code=options.remote_code)
    except RLAlignError:
        raise
    except Exception as error:
        held = "header" if gguf.named(source) else "config.json"
        raise RLAlignError(explained(source, error, f"its {held} cannot be used")) from error
    return config


def _require_no_kernel(raw: Any, source: str) -> None:
    """Refuse attention that is no part of torch: transformers would fetch its code from the hub and run it."""
    for name, value in raw.items() if isinstance(raw, dict) else ():
        asked = value.values() if isinstance(value, dict) else [value]
        if name.endswith("attn_implementation") and (
            strange := set(map(str, asked)) - {"None", "eager", "sdpa"}
        ):
            raise RLAlignError(
                f"{source}: its config.json asks for the attention kernel {min(strange)}, which may be code from the "
                "hub; name an `attention` of your own"
            )
        _require_no_kernel(value, source)


def _require_plausible(raw: dict[str, Any], source: str) -> None:
    """Refuse sizes that no model has, with which even its configuration would fill the memory."""
    for name, value in raw.items():
        if isinstance(value, dict):
            _require_plausible(value, source)
        most = next((most for words, most in MOST.items() if re.search(words, name)), None)
        if most is not None and isinstance(value, int | float) and value > most:
            held = "its header" if gguf.named(source) else "config.json"
            raise ConfigError(
                f"{source}: {held} says `{name}: {value:.6g}`, and no model has more than {most:,}"
            )


def _require_memory(config: Any, options: Source, kind: Kind) -> None:
    """Refuse a network that is larger than the memory, by building it without its weights."""
    network = empty(config, options, kind)
    if network is None:
        return
    count = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    require_memory(
        f"{where(options)}: a model of {count:,} weights",
        count,
        4,
        remedy="use a smaller model, or another machine",
    )


def empty(config: Any, options: Source, kind: Kind) -> Any:
    """The network without numbers in its weights; None where its class computes with them while it is built."""
    auto, how = _auto(options, kind)
    try:
        with torch.device("meta"), seeded(0):
            return auto.from_config(config, **how)
    except (RuntimeError, MemoryError) as error:
        if "meta" in str(error):
            return None
        raise RLAlignError(explained(where(options), error)) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from a seed, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers' own between the run's lines."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def unreported() -> Iterator[None]:
    """No table of weights that the files hold and the network does not."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def digest(module: nn.Module, skip: set[str]) -> torch.Tensor:
    """SHA-256 of a network's weights, as 32 bytes."""
    found = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if key not in skip:
            found.update(key.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
