"""How a sentence encoder pools, and how much it reads, is found in its files: of a folder, and of a name on the hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from rlalign import ConfigError, RLAlignError
from rlalign_plugin_model_rewards.embeddings import EmbeddingSimilarity, pooling_of
from rlalign_plugin_model_rewards.testing import tiny_scorer

NAMES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


class _Run:
    """What `setup` asks of a run."""

    class models:
        policy = torch.nn.Linear(1, 1)


def flags(*names: str) -> dict[str, Any]:
    return {"word_embedding_dimension": 8, **{f"pooling_mode_{name}": name in names for name in NAMES}}


def says(folder: Path, said: Any) -> Path:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    return folder


def scorer(source: str | Path, **options: Any) -> EmbeddingSimilarity:
    return EmbeddingSimilarity(EmbeddingSimilarity.Config(path=str(source), **options))


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        (flags("cls_token"), "cls"),
        (flags("mean_tokens"), "mean"),
        (flags("mean_sqrt_len_tokens"), "mean"),
        (flags("lasttoken"), "last"),
        ({"word_embedding_dimension": 8}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 8, "pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_what_a_folder_says(tmp_path: Path, said: dict[str, Any], pooling: str) -> None:
    assert pooling_of(str(says(tmp_path, said))) == pooling
    assert pooling_of(str(tmp_path / "config.json")) == pooling


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (flags("max_tokens"), "max_tokens"),
        (flags("weightedmean_tokens"), "weightedmean_tokens"),
        (flags("cls_token", "mean_tokens"), "cls_token and mean_tokens"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls", "mean"]}, "cls and mean"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    folder = says(tiny_scorer(tmp_path / "model", "bert"), said)
    with pytest.raises(
        ConfigError, match=rf"its 1_Pooling/config.json says that it pools by {named}, and here"
    ):
        scorer(folder)
    assert "pooling:mean" in scorer(folder, pooling="mean").signature()


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RLAlignError, match=r"its 1_Pooling/config.json cannot be read"):
        pooling_of(str(says(tmp_path, [1])))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`somebody/model` in the hub's cache, and the hub is not to be asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--somebody--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("0" * 40)
    return tiny_scorer(home / "snapshots" / ("0" * 40), "bert")


def test_what_a_model_named_on_the_hub_says(cached: Path) -> None:
    says(cached, flags("cls_token"))
    (cached / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    found = scorer("somebody/model")
    assert "pooling:own" in found.signature()
    found.setup(_Run())  # type: ignore[arg-type]
    assert "pooling:cls" in found.signature() and found.reader.longest == 12
    named, mean = found.embedded(["the film was good"]), scorer(cached, pooling="mean")
    mean.setup(_Run())  # type: ignore[arg-type]
    assert not torch.allclose(named[0], mean.embedded(["the film was good"])[0], atol=1e-3)
    says(cached, flags("max_tokens"))
    with pytest.raises(ConfigError, match=r"somebody/model: its 1_Pooling/config.json says .* by max_tokens"):
        scorer("somebody/model").setup(_Run())  # type: ignore[arg-type]


def test_a_model_on_the_hub_without_such_files(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is known to have none, or the cache does not say so: then a line tells what it is taken for."""
    for known in (False, True):
        caplog.clear()
        if known:
            absent = cached.parents[1] / ".no_exist" / cached.name
            (absent / "1_Pooling").mkdir(parents=True)
            (absent / "1_Pooling/config.json").touch()
            (absent / "sentence_bert_config.json").touch()
        found = scorer("somebody/model")
        with caplog.at_level(logging.WARNING, "rlalign"):
            found.setup(_Run())  # type: ignore[arg-type]
        assert "pooling:mean" in found.signature()
        told = [text for text in caplog.messages if "does not say whether it has a 1_Pooling" in text]
        assert len(told) == (not known)
