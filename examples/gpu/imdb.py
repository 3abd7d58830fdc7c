"""The reward of imdb-nlpo.yaml: how likely a classifier finds it that a continuation is praise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch


@cache
def _classifier(model: str) -> tuple[Any, Any, torch.device]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModelForSequenceClassification.from_pretrained(model, use_safetensors=True)
    return tokenizer, network.eval().to(device), device


@torch.inference_mode()
def sentiment(texts: Sequence[str], model: str, batch: int = 64, label: int = 1) -> list[float]:
    """The probability of `label`."""
    tokenizer, network, device = _classifier(model)
    found: list[float] = []
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        inputs = tokenizer(part, padding=True, truncation=True, max_length=512, return_tensors="pt")
        logits = network(**inputs.to(device)).logits.float()
        found += logits.softmax(-1)[:, label].tolist()
    return found
