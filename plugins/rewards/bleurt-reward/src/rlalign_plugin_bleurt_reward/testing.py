"""Small checkpoints of random weights in the official layout: to try a pipeline without a download, and for tests."""

from __future__ import annotations

import json
import string
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlalign_plugin_bleurt_reward.bundle import DTYPES, MAGIC
from rlalign_plugin_bleurt_reward.crc import crc32c, masked
from rlalign_plugin_bleurt_reward.model import LAYER, PROJECTION, Sizes

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = (*string.ascii_lowercase, *string.digits, *string.punctuation)


def tiny_checkpoint(folder: Path, *, seed: int = 0, max_length: int = 64) -> Path:
    """Write a BLEURT of two layers that reads letter by letter; its scores say nothing. Returns the folder."""
    vocabulary = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS)]
    sizes = Sizes(
        hidden=16,
        layers=2,
        heads=2,
        intermediate=32,
        vocabulary=len(vocabulary),
        types=2,
        positions=max_length,
    )
    write_official(folder, sizes, random_weights(sizes, sizes.hidden, seed), max_length)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary))
    return folder


def random_weights(sizes: Sizes, embedding: int, seed: int, scale: float = 0.2) -> dict[str, Tensor]:
    """Weights of a model, by name: normal, of this standard deviation; those of normalisations about 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator) + float(name.endswith("LayerNorm.weight"))
        for name, shape in sizes.shapes(embedding).items()
    }


def write_official(folder: Path, sizes: Sizes, weights: Mapping[str, Tensor], max_length: int) -> None:
    """Write all of an official checkpoint but its `vocab.txt`."""
    (folder / "variables").mkdir(parents=True)
    bert = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "hidden_act": "gelu",
        "vocab_size": sizes.vocabulary,
        "type_vocab_size": sizes.types,
        "max_position_embeddings": sizes.positions,
    }
    bleurt = {
        "name": folder.name,
        "bert_config_file": "bert_config.json",
        "max_seq_length": max_length,
        "vocab_file": "vocab.txt",
        "do_lower_case": True,
        "sp_model": None,
    }
    (folder / "bert_config.json").write_text(json.dumps(bert))
    (folder / "bleurt_config.json").write_text(json.dumps(bleurt))
    write_bundle(folder / "variables/variables", official(weights))


def official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names, and in the shapes, of an official checkpoint."""
    dense = {*LAYER, PROJECTION.removeprefix("encoder."), "pooler.dense", "classifier"}
    found: dict[str, Tensor] = {"global_step": torch.tensor(0)}
    for ours, tensor in weights.items():
        name, _, kind = ours.rpartition(".")
        path = name.replace("layer.", "layer_").replace(".", "/")
        path = path.replace("embedding_projection", "embedding_hidden_mapping_in")
        path = "dense" if name == "classifier" else f"bert/{path}"
        if any(name.endswith(each) for each in dense):
            found[f"{path}/kernel" if kind == "weight" else f"{path}/bias"] = (
                tensor.t() if kind == "weight" else tensor
            )
        elif name.endswith("LayerNorm"):
            found[f"{path}/gamma" if kind == "weight" else f"{path}/beta"] = tensor
        else:
            found[path] = tensor
    return found


# -- the format of bundle.py, written -------------------------------------------------------------------------------


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    entries_a_block: int = 16,
    compressed: Callable[[bytes], bytes] | None = None,
) -> None:
    """Write tensors as TensorFlow's checkpoints hold them: an index, and files in which they take turns."""
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    data = [bytearray() for _ in range(shards)]
    records = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = b"".join(field(2, field(1, size)) for size in tensor.shape)
        own = data[i % shards]
        record = field(1, numbers[tensor.dtype]) + field(2, shape) + field(3, i % shards)
        record += field(4, len(own)) + field(5, len(raw))
        records.append((name.encode(), record + b"\x35" + struct.pack("<I", masked(crc32c(raw)))))
        own += raw
    for i, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}").write_bytes(content)
    blocks = [records[i : i + entries_a_block] for i in range(0, len(records), entries_a_block)]
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(blocks, compressed))


def table(
    blocks: Sequence[Sequence[tuple[bytes, bytes]]], compressed: Callable[[bytes], bytes] | None = None
) -> bytes:
    """A sorted table of these blocks of keys and values."""
    found = bytearray()

    def put(content: bytes) -> bytes:
        kind, content = (1, compressed(content)) if compressed else (0, content)
        handle = varint(len(found)) + varint(len(content))
        whole = content + bytes([kind])
        found.extend(whole + struct.pack("<I", masked(crc32c(whole))))
        return handle

    handles = [(block[-1][0], put(block_of(block))) for block in blocks]
    footer = put(block_of([])) + put(block_of(handles))
    return bytes(found) + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def block_of(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block: each key without what it shares with the one before."""
    found, last = bytearray(), b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), None)
        shared = min(len(last), len(key)) if shared is None else shared
        found += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return bytes(found) + struct.pack("<II", 0, 1)


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a number, or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number of seven bits a byte."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
