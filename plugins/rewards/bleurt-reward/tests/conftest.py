"""A small SentencePiece model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Trains one on a few sentences, without Unicode's tables."""

    def train(**options: object) -> Path:
        import sentencepiece

        texts = ["the quick brown fox jumps over the lazy dog", "a bird sings by the window", "the fox sings"]
        special = {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "unk_id": 0, "bos_id": -1, "eos_id": -1}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 20),
            model_prefix=str(tmp_path / "spm"),
            vocab_size=60,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            minloglevel=2,
            **{**special, **options},
        )
        return tmp_path / "spm.model"

    return train
