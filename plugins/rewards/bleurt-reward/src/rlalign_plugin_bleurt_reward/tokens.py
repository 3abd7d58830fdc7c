"""From a pair of texts to what the model reads: `[CLS] reference [SEP] candidate [SEP]`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlalign import ConfigError
from rlalign.data.limits import require_file
from rlalign_plugin_bleurt_reward.bundle import CheckpointError
from rlalign_plugin_bleurt_reward.wordpiece import WordPiece

VOCABULARY_BYTES = 2**26
"""Of a tokenizer's file."""
REMEMBERED = 4096
"""Texts that are remembered with their tokens: references come again with every response."""


@dataclass(frozen=True)
class Tokenizer:
    """Numbers of a text's tokens, none of which is special, and of the two special ones."""

    pieces: Callable[[str], Iterable[int]]
    """The numbers of a text's tokens, from the first on."""
    cls: int
    sep: int
    size: int
    """One more than the largest number."""


def wordpiece(path: Path, lower: bool) -> Tokenizer:
    """The tokenizer of the checkpoints that began as BERT."""
    vocabulary = read_vocabulary(path)
    for token in ("[CLS]", "[SEP]", "[UNK]"):
        if token not in vocabulary:
            raise CheckpointError(f"{path}: has no {token}; it is no vocabulary of BERT")
    pieces = WordPiece(vocabulary, lower).pieces
    return Tokenizer(pieces, vocabulary["[CLS]"], vocabulary["[SEP]"], max(vocabulary.values()) + 1)


def sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of the BLEURT-20 family."""
    from sentencepiece import SentencePieceProcessor

    require_file(path, VOCABULARY_BYTES)
    try:
        model: Any = SentencePieceProcessor(model_file=str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read by sentencepiece: {error}") from None
    cls, sep = (model.piece_to_id(token) for token in ("[CLS]", "[SEP]"))
    if model.unk_id() in (cls, sep):
        raise CheckpointError(f"{path}: has no [CLS] or no [SEP]; it is no tokenizer of BLEURT")
    return Tokenizer(partial(model.encode, out_type=int), cls, sep, model.get_piece_size())


def require_sentencepiece(path: Path) -> None:
    """Refuse a checkpoint of the BLEURT-20 family where the library is missing."""
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{path}: to read it the package sentencepiece is needed, which is not installed here: "
            "`pip install sentencepiece`, or install this plugin with its extra `sentencepiece`"
        ) from None


def read_vocabulary(path: Path) -> dict[str, int]:
    """The pieces of a `vocab.txt`, one a line, or of a `tokenizer.json`, with their numbers."""
    require_file(path, VOCABULARY_BYTES)
    try:
        text = path.read_bytes().decode()
        if path.suffix != ".json":
            found: dict[str, int] = {}
            for line in text.removesuffix("\n").split("\n"):
                found.setdefault(line.strip(), len(found))
            return found
        model = json.loads(text)["model"]
        vocabulary = dict(model["vocab"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a vocabulary ({type(error).__name__}: {error})"
        ) from None
    sound = all(type(number) is int and 0 <= number < 2**31 for number in vocabulary.values())
    if model.get("type", "WordPiece") != "WordPiece" or not sound:
        raise CheckpointError(f"{path}: holds no WordPiece vocabulary, which numbers its pieces")
    return vocabulary


class Pairs:
    """Encodes pairs, so long as the model reads them."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._remembered = lru_cache(REMEMBERED)(self._tokens)

    def __call__(self, reference: str, candidate: str) -> tuple[list[int], int]:
        """The numbers of both texts' tokens and the special ones, and how many of them are of the first segment."""
        first, second = self._remembered(reference), self._tokens(candidate)
        left, right = kept(len(first), len(second), self.max_length - 3)
        cls, sep = self.tokenizer.cls, self.tokenizer.sep
        return [cls, *first[:left], sep, *second[:right], sep], left + 2

    def _tokens(self, text: str) -> tuple[int, ...]:
        # What stands behind as many tokens as both texts may have together is cut in any case.
        readable = text.encode("utf-8", "ignore").decode()
        return tuple(islice(self.tokenizer.pieces(readable), self.max_length))


def kept(first: int, second: int, most: int) -> tuple[int, int]:
    """How many tokens of each text stay: the longer one loses its last, the second of two as long, until they fit."""
    if first + second <= most:
        return first, second
    half = most // 2
    if first <= half:
        return first, most - first
    if second <= half:
        return most - second, second
    return most - half, half
