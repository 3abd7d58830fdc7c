"""Models in one GGUF file, the format of llama.cpp: data, of which nothing is run, unpacked into ordinary weights."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rlalign import RLAlignError
from rlalign.data.limits import require_file

NEEDED = ("gguf", "accelerate")
"""Packages that transformers reads such files with: the extra `gguf`."""
LONGEST_NAME = 2**16
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of numbers in a header, as `struct` has them."""
_TEXT, _LIST = 8, 9


def named(source: str) -> bool:
    """Whether this is the path of a GGUF file, be it there or not."""
    return source.lower().endswith(".gguf") and not Path(source).is_dir()


def require(source: str) -> Mapping[str, Any]:
    """Refuse a file that is no GGUF, or that cannot be read here; returns what its header says."""
    said = header(Path(source))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise RLAlignError(
            f"{source}: a GGUF file is read with packages of which {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: `pip install gguf accelerate` (the extra `gguf` of "
            "rlalign-plugin-hf)"
        )
    return said


def licence(source: str) -> str | None:
    """The licence that a GGUF file names."""
    said = header(Path(source)).get("general.license") if named(source) and Path(source).exists() else None
    return said if isinstance(said, str) else None


def settings(source: str) -> dict[str, Any]:
    """What stands in the config.json of a folder."""
    from transformers import PreTrainedConfig

    what = require(source).get("general.architecture")
    try:
        found, _ = PreTrainedConfig.get_config_dict(Path(source).parent, gguf_file=Path(source).name)
    except ValueError as error:
        if "not supported" not in str(error):
            raise
        raise RLAlignError(
            f"{source}: holds a `{what}`, and transformers reads no language model of that name from GGUF files; take "
            "another one, or a folder of safetensors"
        ) from error
    return dict(found)


def unpacked(auto: Any, source: str, config: Any, **how: Any) -> tuple[Any, dict[str, Any]]:
    """An ordinary network with the weights of a GGUF file, and what transformers says of loading them.

    What it loads takes itself for quantised, and then cannot be written: a fresh network takes the weights over.
    """
    import transformers

    # Never left packed, for which code would be fetched from the hub.
    dense = getattr(transformers, "GgufConfig", None)
    loading = how if dense is None else {**how, "quantization_config": dense(dequantize=True)}
    file = Path(source)
    with _no_bar():
        packed, found = auto.from_pretrained(
            file.parent, gguf_file=file.name, config=config, output_loading_info=True, **loading
        )
    network = auto.from_config(config, **how)
    network.load_state_dict(packed.state_dict(), assign=True)
    network.tie_weights()
    network.generation_config = packed.generation_config
    return network, found


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without the bar of its own that transformers draws, whatever its settings, while it unpacks."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    bar = getattr(unpacking, "tqdm", None)
    if bar is None:
        yield
        return
    with patch.object(unpacking, "tqdm", partial(bar, disable=True)):
        yield


def header(file: Path) -> dict[str, Any]:
    """The texts and numbers that a file says of itself; lists are passed over.

    Refuses a damaged one: the package that reads the file after this would go on behind its end.
    """
    require_file(file)
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).read()
    except (OSError, ValueError, LookupError, struct.error, UnicodeDecodeError) as error:
        raise RLAlignError(f"{file}: is no GGUF file, or a damaged one ({error or 'it is empty'})") from None


class _Header:
    """A header, read from its start; whatever would lie behind the end of the file is an error."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> dict[str, Any]:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with `GGUF`")
        self._skip(4)
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 can be read")
        tensors, pairs = self._number("Q"), self._number("Q")
        said = {}
        for _ in range(pairs):
            name = self._text(LONGEST_NAME)
            said[name] = self._value(self._number("I"))
        for _ in range(tensors):
            self._text(LONGEST_NAME)
            self._skip(8 * self._number("I") + 12)
        return {name: value for name, value in said.items() if value is not None}

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text(len(self._data))
        if kind != _LIST:
            return self._number(_NUMBERS[kind])
        kind, count = self._number("I"), self._number("Q")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            self._skip(struct.calcsize(_NUMBERS[kind]) * count)
        return None

    def _number(self, kind: str) -> Any:
        start = self._at
        self._skip(struct.calcsize(kind))
        return struct.unpack_from(f"<{kind}", self._data, start)[0]

    def _text(self, most: int) -> str:
        size = self._number("Q")
        if size > most:
            raise ValueError(f"a name of {size:,} bytes")
        start = self._at
        self._skip(size)
        return self._data[start : self._at].decode()

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends before its header does")
