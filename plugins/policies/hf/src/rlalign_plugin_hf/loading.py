"""From a folder or a hub id to a network and a tokenizer. Weights are safetensors; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from rlalign import ConfigError, Options, RLAlignError, RunsCode
from rlalign.data.limits import require_file, require_memory
from rlalign_plugin_hf import hub

Kind = Literal["causal", "seq2seq", "classifier", "encoder"]
_AUTO = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
    "encoder": "AutoModel",
}
_NAMED = {"causal": ("LM", "LMHeadModel", "Generation"), "classifier": ("SequenceClassification",)}
"""How the classes of a kind end, as a config.json names them."""

_TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
MOST = {
    "layers?$|experts$": 2_000,
    "size|dim|width|vocab|position|embd|model|ctx|ff|head|kv|rank|state|groups": 10**8,
}
"""The largest whole numbers in a config.json, by what their names hold."""

LARGEST_JSON = 2**28
"""Bytes of a JSON file in a model's folder."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class LoRA(Options):
    """`lora`: train low-rank adapters instead of all weights (Hu et al. 2021)."""

    r: int = Field(16, gt=0, description="rank of each adapter")
    alpha: float | None = Field(
        None, gt=0, description="the adapter is scaled by alpha / r; null: r, so by 1 as in the paper"
    )
    targets: tuple[str, ...] | str = Field(
        "all-linear",
        description="modules that get an adapter, by (ending of their) name; `all-linear`: all but the head",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="before each adapter, where `train.dropout` is on")


class Source(Options):
    """Where a model comes from."""

    path: str | Path = Field(
        description="a model folder (`./…`, relative to the pipeline's), or a model's name on the hub"
    )
    tokenizer: str | Path | None = Field(
        None, description="folder or name of the tokenizer; null: the model's own"
    )
    attention: Literal["eager", "sdpa"] | None = Field(
        None,
        description="attention kernel; null: the model's own choice. `eager` where second derivatives count",
    )
    remote_code: Annotated[bool, RunsCode] = Field(
        False, description="run Python code that comes with the model; only if you have read it"
    )

    @field_validator("path", "tokenizer")
    @classmethod
    def _is_there(cls, source: str | Path | None) -> str | Path | None:
        if source is not None and (lacking := _lacking(str(source))):
            raise ValueError(lacking)
        return source


class ModelOptions(Source):
    """Options of `causal-lm` and `seq2seq-lm`."""

    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="load the weights, or make random ones from `config.json` alone"
    )
    seed: int = Field(0, description="of random weights: all of them (`init: random`), or the adapters'")
    lora: LoRA | None = Field(None, description="train adapters only (needs the extra `lora`)")
    engine: Literal["graphs", "slots", "loop"] | None = Field(
        None,
        description="what samples: CUDA graphs of a step over slots, the same step without graphs, or the sampling "
        "loop; null: graphs on a GPU, the loop on a CPU",
    )
    max_prompt_tokens: int | None = Field(
        None,
        gt=0,
        description="the longest prompt; null: what the model's positions leave beside the longest response",
    )
    too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="what becomes of an example whose prompt is longer"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="which end `truncate` cuts; null: left of a causal model's, right of an encoder's"
    )


def is_here(options: Source) -> bool:
    """Whether model and tokenizer are paths, be it to nothing, rather than names on the hub."""
    sources = (str(source) for source in (options.path, options.tokenizer) if source is not None)
    return all(Path(_local(source)).is_dir() or _lacking(source) is not None for source in sources)


def where(options: Source) -> str:
    """The model's folder or name, for messages."""
    return str(options.path)


def source_of_weights(options: ModelOptions) -> str | None:
    """The folder or name that the first weights come from; None where they are random."""
    return None if options.init == "random" else _local(str(options.path))


def peek(options: Source, kind: Kind) -> dict[str, Any] | None:
    """What a folder's config.json says, once nothing is wrong with it that files alone tell; None for a hub's name."""
    source = str(options.path)
    folder = Path(_local(source))
    if not folder.is_dir():
        return None
    _check_folder(source, "path")
    _check_weights(_local(source))
    try:
        raw: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        classes = [str(name) for name in raw.get("architectures") or ()]
    except (ValueError, TypeError, AttributeError) as error:
        raise RLAlignError(f"{source}: its config.json cannot be read. {_first_line(error)}") from error
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
    _check_folder(str(source), "tokenizer" if options.tokenizer is not None else "path")
    hint = "" if options.tokenizer is not None else "; name another one with `tokenizer:`"
    folder = Path(_local(str(source)))
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        # transformers would make an empty one and say nothing.
        raise RLAlignError(f"{source}: holds no tokenizer{hint}")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            _local(str(source)), trust_remote_code=options.remote_code
        )
        tokenizer("one")  # what its files say may be of the wrong type
    except Exception as error:
        raise RLAlignError(f"{source}: no tokenizer could be loaded{hint}. {_first_line(error)}") from error
    return tokenizer


def open_config(options: Source, kind: Kind, *, weights: bool = True) -> Any:
    """The network's configuration, once nothing is wrong with the model that can be known without its weights."""
    source = str(options.path)
    _check_folder(source, "path")
    config = _config(options, source)
    if kind in ("causal", "seq2seq") and bool(getattr(config, "is_encoder_decoder", False)) != (
        kind == "seq2seq"
    ):
        other, what = ("seq2seq-lm", "an") if kind == "causal" else ("causal-lm", "no")
        raise RLAlignError(
            f"{source}: a `{config.model_type}` is {what} encoder–decoder; use `policy: {{{other}: …}}`"
        )
    with _explaining(source):
        _require_memory(config, options, kind)
        if weights:
            _check_weights(source)
    return config


def load_network(options: ModelOptions, kind: Kind, config: Any) -> Any:
    """The network in float32, in evaluation mode."""
    from transformers.activations import NewGELUActivation

    if options.init == "pretrained":
        network = load_weights(options, kind, config)
    else:
        auto, how = _auto(options, kind)
        with _explaining(str(options.path)), seeded(options.seed):
            network = auto.from_config(config, **how)
    for module in network.modules():
        # Rows padded on the right go without a mask, and a policy may well choose the padding token. transformers
        # would look for it in every forward pass (which waits for a GPU), and warn.
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _silent
        # GPT-2's and T5's activation is eight kernels there, each with a tensor kept for the backward pass; here one.
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return network.eval()


def load_weights(options: Source, kind: Kind, config: Any) -> Any:
    """The network with the weights of its files, in float32 and in evaluation mode."""
    source, (auto, how) = str(options.path), _auto(options, kind)
    with _explaining(source), seeded(0):
        shown = not Path(source).is_dir()  # a download may show how far it is
        # What an encoder leaves in the files, a head or layers further up, is left there on purpose.
        with nullcontext() if shown else quiet(), unreported() if kind == "encoder" else nullcontext():
            network, found = auto.from_pretrained(
                _local(source), config=config, use_safetensors=True, output_loading_info=True, **how
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


def _config(options: Source, source: str) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(_local(source))
        _require_plausible(raw, source)
        if options.attention is None and not options.remote_code:
            _require_no_kernel(raw, source)
        config = AutoConfig.from_pretrained(_local(source), trust_remote_code=options.remote_code)
    except RLAlignError:
        raise
    except Exception as error:
        raise RLAlignError(_explained(source, error, "its config.json cannot be used")) from error
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
            raise ConfigError(
                f"{source}: config.json says `{name}: {value:.6g}`, and no model has more than {most:,}"
            )


def _require_memory(config: Any, options: Source, kind: Kind) -> None:
    """Refuse a network that is larger than the memory, by building it without its weights."""
    auto, how = _auto(options, kind)
    try:
        with torch.device("meta"), seeded(0):
            network = auto.from_config(config, **how)
    except (RuntimeError, MemoryError) as error:
        if "meta" in str(error):  # its class computes with weights while it is built
            return
        raise RLAlignError(_explained(str(options.path), error)) from error
    count = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    require_memory(
        f"{options.path}: a model of {count:,} weights",
        count,
        4,
        remedy="use a smaller model, or another machine",
    )


def _local(source: str) -> str:
    """A config file stands for its folder."""
    return str(Path(source).parent) if source.endswith("config.json") else source


def _check_folder(source: str, option: str) -> None:
    if lacking := _lacking(source):
        raise RLAlignError(f"{option}: {lacking}")
    if not Path(_local(source)).is_dir():
        hub.require(source)
    elif option == "path":
        _require_model(Path(_local(source)))
    for file in Path(_local(source)).glob("*.json"):
        require_file(file, LARGEST_JSON)


def _require_model(folder: Path) -> None:
    """Refuse a folder without a model's configuration, saying all that is missing."""
    if (folder / "config.json").exists():
        return
    missing = ["config.json"]
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json)")
    files = sorted(file.name for file in folder.iterdir())
    holds = f"it holds {', '.join(files[:5])}{' …' if len(files) > 5 else ''}" if files else "it is empty"
    raise RLAlignError(
        f"{folder}: is no model's folder: {holds}, and lacks {_listed(missing)}; give the folder that "
        "`save_pretrained` wrote, or the `model` folder of a run"
    )


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _lacking(source: str) -> str | None:
    """What is wrong with a path to no folder; a name on the hub cannot be known here."""
    folder = Path(_local(source))
    if folder.is_dir():
        return None
    if folder.is_absolute() or source.startswith((".", "~")):
        return f"{source}: there is no such folder; give a model's folder, or a model's name on the hub"
    if "/" in source and folder.parent.is_dir():
        return (
            f"{source}: there is no such folder in {folder.parent.absolute()}; for a model of that name on the hub, "
            f"work where no folder is called `{folder.parts[0]}`"
        )
    return None


def _check_weights(source: str) -> None:
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source) is not None:
        # transformers would load it by itself, from a pickle if need be.
        raise RLAlignError(
            f"{source}: holds an adapter (adapter_config.json); merge it into its model and give that folder"
        )
    folder = Path(source)
    pickled = sorted(_pickled_shards(folder))
    if not folder.is_dir() or (any(folder.glob("*.safetensors")) and not pickled):
        return
    pickled += sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise RLAlignError(
            f"{source}: its weights are pickled ({pickled[0]}), and unpickling runs whatever code a file holds. "
            "Convert them to safetensors first: load the model once with transformers and `save_pretrained` it"
        )
    raise RLAlignError(
        f"{source}: holds no weights (no *.safetensors file). `init: random` makes random ones from its config.json"
    )


def _pickled_shards(folder: Path) -> Iterator[str]:
    """Files that a list of safetensors names, and that are none."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = json.loads(index.read_text("utf-8"))["weight_map"].values()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise RLAlignError(f"{index}: cannot be read as a list of weights") from None
        yield from {str(file) for file in named if not str(file).endswith(".safetensors")}


@contextmanager
def _explaining(source: str) -> Iterator[None]:
    """Say which model it is with which something went wrong."""
    try:
        yield
    except (RLAlignError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RLAlignError(_explained(source, error)) from error


def _explained(source: str, error: Exception, what: str = "cannot be loaded") -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"{source}: comes with Python code of its own, which is not run unless the pipeline says "
            "`remote_code: true`; read it first"
        )
    if "safetensors" in text and "bin" in text:
        return f"{source}: has no safetensors weights, and pickled ones are not loaded. {_first_line(error)}"
    return f"{source}: {what}. {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"({type(error).__name__}: {first})"


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
