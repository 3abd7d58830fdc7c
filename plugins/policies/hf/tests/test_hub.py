"""Models by name, where the hub cannot be reached."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from rlalign import RLAlignError
from rlalign_plugin_hf import CausalLM, hub

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No hub answers; an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._unreachable.cache_clear()
    yield tmp_path / "cache"
    hub._unreachable.cache_clear()


def policy(name: str) -> CausalLM:
    return CausalLM(CausalLM.Config(path=name))


def test_a_name_is_refused_at_once_where_the_hub_cannot_be_reached() -> None:
    began = time.monotonic()
    with pytest.raises(RLAlignError) as caught:
        policy("somebody/model").open()
    assert time.monotonic() - began < 5
    said = str(caught.value)
    assert said.startswith(
        f"somebody/model: there is no such folder here; the hub cannot be reached ({NOWHERE}: "
    )
    assert "Give a model's folder" in said and "copy the cache" in said and "HF_HUB_OFFLINE=1" in said


def test_a_name_is_refused_where_the_hub_is_not_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RLAlignError, match=r"`HF_HUB_OFFLINE` is set.*its cache .*does not hold it"):
        policy("somebody/model").open()


def test_what_the_cache_holds_is_loaded(
    cut_off: Path, folders: Mapping[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    home = cut_off / "models--somebody--model"
    shutil.copytree(folders["llama"], home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs/main").write_text("0" * 40)
    with caplog.at_level(logging.WARNING, "rlalign"):
        made = policy("somebody/model")
        made.setup()
    assert made.vocabulary == 64
    assert sum("somebody/model is loaded from the cache" in text for text in caplog.messages) == 1
