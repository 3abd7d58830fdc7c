"""A checkpoint of BLEURT, in any of its layouts: what its small files say of it."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from rlalign.data.limits import CONFIG_BYTES, require_file
from rlalign_plugin_bleurt_reward.bundle import CheckpointError
from rlalign_plugin_bleurt_reward.model import Gelu, Sizes
from rlalign_plugin_bleurt_reward.tokens import (
    Tokenizer,
    require_sentencepiece,
    sentencepiece,
    wordpiece,
)
from rlalign_plugin_bleurt_reward.weights import of_official, of_port

LARGEST = {"num_hidden_layers": 1000}
"""The largest numbers in a config, where they are not 10⁸."""
OFFICIAL, PORT = "bleurt_config.json", "config.json"
TYPES = ("bert", "bleurt", "rembert")
"""`model_type` of ports."""
GELUS: Mapping[str, Gelu] = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""Which form transformers computes under each name."""
SENTENCE_MODELS = ("spm.model", "sentencepiece.model", "sent_piece.model")
WORD_FILES = ("vocab.txt", "tokenizer.json")


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its weights are read."""

    folder: Path
    name: str
    official: bool
    sizes: Sizes
    gelu: Gelu
    max_length: int
    vocabulary: Path
    """The tokenizer's file: SentencePiece's (`.model`), or WordPiece's."""
    lower: bool
    """Whether WordPiece lower-cases."""
    weights_in: tuple[Path, ...]
    """The files with weights; of an official one the index comes first."""

    @property
    def pickled(self) -> bool:
        """Whether its weights are in a pickle."""
        return self.weights_in[0].suffix == ".bin"

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' files, in hexadecimal: of one file, as `sha256sum` prints it."""
        return _digest(self.weights_in[1:] if self.official else self.weights_in)

    @property
    def identity(self) -> str:
        """A hash of all that scores depend on: weights, tokenizer, and what the configuration says."""
        said = (self.sizes, self.gelu, self.max_length, self.lower)
        files = (*self.weights_in, self.vocabulary)
        return hashlib.sha256(f"{said} {[_digest((file,)) for file in files]}".encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        if self.vocabulary.suffix == ".model":
            found = sentencepiece(self.vocabulary)
        else:
            found = wordpiece(self.vocabulary, self.lower)
        if found.size > self.sizes.vocabulary:
            raise CheckpointError(
                f"{self.vocabulary}: numbers {found.size} tokens, and the model knows {self.sizes.vocabulary}"
            )
        return found

    def weights(self) -> dict[str, Tensor]:
        """All weights in float32, by their names in the model."""
        return (of_official if self.official else of_port)(self.weights_in[0], self.sizes)


# -- what it is -------------------------------------------------------------------------------------------------------


def find(folder: Path, name: str) -> Checkpoint:
    """The checkpoint in a folder, whose files are there and say what they must; weights are not read yet."""
    if (folder / OFFICIAL).exists() and (folder / "variables").is_dir():
        found = _find_official(folder)
    elif (folder / PORT).exists():
        found = _find_port(folder, name)
    else:
        raise CheckpointError(
            f"{folder}: is no checkpoint of BLEURT: it holds neither {OFFICIAL} and variables/, as an unpacked "
            f"official one does, nor {PORT} and model.safetensors, as a port does"
        )
    require_file(found.vocabulary)
    if found.vocabulary.suffix == ".model":
        require_sentencepiece(found.vocabulary)
    return found


def _find_official(folder: Path) -> Checkpoint:
    said = _json(folder / OFFICIAL)
    path = _inside(folder, said, "bert_config_file")
    sizes = _sizes(_json(path), path)
    if said.get("vocab_file") is not None and said.get("do_lower_case") is not None:
        vocabulary = _inside(folder, said, "vocab_file")
    else:
        vocabulary = _inside(folder, said, "sp_model", ".model")
    prefix = folder / "variables/variables"
    shards = sorted(prefix.parent.glob(f"{prefix.name}.data-*-of-*"))
    if not shards:
        raise CheckpointError(
            f"{prefix}.data-00000-of-00001: there is no such file; unpack the checkpoint again"
        )
    return Checkpoint(
        folder=folder,
        name=_plain(said.get("name"), folder.name),
        official=True,
        sizes=sizes,
        gelu=_graph_s(folder / "saved_model.pb"),
        max_length=_whole(said, "max_seq_length", folder / OFFICIAL, sizes.positions),
        vocabulary=vocabulary,
        lower=said.get("do_lower_case") is True,
        weights_in=(prefix.with_name(f"{prefix.name}.index"), *shards),
    )


def _find_port(folder: Path, name: str) -> Checkpoint:
    path = folder / PORT
    said = _json(path)
    if said.get("model_type") not in TYPES:
        raise CheckpointError(
            f"{path}: `model_type` is {said.get('model_type')!r}; a port of BLEURT has one of {', '.join(TYPES)}"
        )
    act = said.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in GELUS:
        raise CheckpointError(f"{path}: `hidden_act` is {act!r}; expected one of {', '.join(GELUS)}")
    sizes = _sizes(said, path)
    weights = next(
        (folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).exists()), None
    )
    if weights is None:
        raise CheckpointError(f"{folder}: holds no weights: neither model.safetensors nor pytorch_model.bin")
    require_file(weights)
    files = (folder / n for n in (*SENTENCE_MODELS, *WORD_FILES) if (folder / n).exists())
    vocabulary = next(files, None)
    if vocabulary is None:
        raise CheckpointError(
            f"{folder}: holds no tokenizer: none of {', '.join((*SENTENCE_MODELS, *WORD_FILES))}"
        )
    tokenizer = folder / "tokenizer_config.json"
    about = _json(tokenizer) if tokenizer.exists() else {}
    longest = about.get("model_max_length")
    ending = re.search(r"-(128|512)$", name)
    if ending:
        longest = int(ending[1])
    elif not isinstance(longest, int | float) or not 4 <= longest < 1e6:
        longest = sizes.positions
    return Checkpoint(
        folder=folder,
        name=_plain(said.get("name"), name),
        official=False,
        sizes=sizes,
        gelu=GELUS[act],
        max_length=min(int(longest), sizes.positions),
        vocabulary=vocabulary,
        lower=about.get("do_lower_case", True) is True,
        weights_in=(weights,),
    )


def _sizes(said: Mapping[str, Any], path: Path) -> Sizes:
    def number(name: str) -> int:
        return _whole(said, name, path, LARGEST.get(name, 10**8))

    found = Sizes(
        hidden=number("hidden_size"),
        layers=number("num_hidden_layers"),
        heads=number("num_attention_heads"),
        intermediate=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        types=number("type_vocab_size"),
        positions=number("max_position_embeddings"),
    )
    if found.hidden % found.heads:
        raise CheckpointError(f"{path}: {found.heads} heads do not share {found.hidden} hidden units evenly")
    if found.types < 2 or found.positions < 4:
        raise CheckpointError(f"{path}: a pair of texts needs 2 types of tokens and 4 positions")
    return found


def _whole(said: Mapping[str, Any], name: str, path: Path, most: int) -> int:
    value = said.get(name)
    if type(value) is not int or not 0 < value <= most:
        raise CheckpointError(
            f"{path}: `{name}` is {str(value)[:40]}; expected a whole number from 1 to {most}"
        )
    return value


def _inside(folder: Path, said: Mapping[str, Any], key: str, ending: str = "") -> Path:
    """A file that a config names; it lies in the same folder."""
    value = said.get(key)
    if not isinstance(value, str) or Path(value).name != value or value in ("", ".", ".."):
        raise CheckpointError(
            f"{folder / OFFICIAL}: `{key}` is {str(value)[:80]!r}; expected a file beside it"
        )
    path = folder / (value + ending)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file, and {OFFICIAL} names it")
    return path


def _json(path: Path) -> dict[str, Any]:
    require_file(path, CONFIG_BYTES)
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({type(error).__name__}: {error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return found


def _graph_s(path: Path) -> Gelu:
    """The form of gelu that an exported graph computes. Google's code for BERT computes `tanh`."""
    require_file(path)
    if not path.exists() or not path.stat().st_size:
        return "tanh"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return "erf" if graph.find(b"Erf") >= 0 else "tanh"


def _plain(said: Any, otherwise: str) -> str:
    """A name as a signature can hold it."""
    return re.sub(r"[^\w./+-]", "_", said if isinstance(said, str) and said else otherwise)[:100]


def _digest(files: tuple[Path, ...]) -> str:
    stats = [file.stat() for file in files]
    return _digest_of(files, tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats))


@lru_cache(256)
def _digest_of(files: tuple[Path, ...], state: tuple[tuple[int, ...], ...]) -> str:
    """The hash of files that have not changed since: read once."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                found.update(piece)
    return found.hexdigest()
