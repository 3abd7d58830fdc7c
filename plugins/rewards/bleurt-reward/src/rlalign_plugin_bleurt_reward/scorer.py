"""Scores pairs of texts: pairs of about the same length together, each distinct pair once."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rlalign import ConfigError
from rlalign_plugin_bleurt_reward.checkpoint import Checkpoint
from rlalign_plugin_bleurt_reward.model import Bleurt, Gelu
from rlalign_plugin_bleurt_reward.tokens import Pairs

ROUNDED = re.compile(r"encoder\.layer\..*(dense|query|key|value)\.(weight|bias)")
"""Weights that another type than float32 may hold: sums, normalisations and the score itself are left precise."""
Encoded = tuple[list[int], int]


class Scorer:
    """A checkpoint, loaded. Nothing in it changes, so that threads may share it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        gelu: Gelu | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.pairs = Pairs(checkpoint.tokenizer(), max_length or checkpoint.max_length)
        weights = checkpoint.weights()
        try:
            for name, x in weights.items():
                weights[name] = x.to(self.device, dtype if ROUNDED.fullmatch(name) else torch.float32)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"{checkpoint.name} cannot be put on {self.device}: {error}") from error
        self.model = Bleurt(weights, checkpoint.sizes, gelu or checkpoint.gelu)

    def score(self, references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """The score of each candidate beside its reference."""
        pairs = list(zip(references, candidates, strict=True))
        encoded = {pair: self.pairs(*pair) for pair in dict.fromkeys(pairs)}
        ordered = sorted(encoded, key=lambda pair: len(encoded[pair][0]), reverse=True)
        found: list[float] = []
        size = self.batch_size
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            while len(found) < len(ordered):
                batch = ordered[len(found) : len(found) + size]
                try:
                    found += self.model(*self._padded([encoded[pair] for pair in batch])).tolist()
                except torch.OutOfMemoryError:  # the policy shares the device
                    if len(batch) == 1:
                        raise
                    size = len(batch) // 2
        scores = dict(zip(ordered, found, strict=True))
        return [scores[pair] for pair in pairs]

    def _padded(self, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of tokens, segments and where there is a token, each [B,L]."""
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        at = torch.arange(longest)
        lengths, firsts = (
            torch.tensor(x)[:, None] for x in ([len(i) for i, _ in rows], [f for _, f in rows])
        )
        mask = at < lengths
        segments = ((at >= firsts) & mask).long()
        return ids.to(self.device), segments.to(self.device), mask.to(self.device)
