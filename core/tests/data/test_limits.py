"""Numbers that no machine could hold are refused before memory is taken for them."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from rlalign.data import limits
from rlalign.data.settings import Sampling, Train
from rlalign.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "option"),
    [
        (Train, "prompts"),
        (Train, "minibatches"),
        (Train, "epochs"),
        (Train, "iterations"),
        (Sampling, "samples"),
        (Sampling, "max_new_tokens"),
        (Sampling, "min_new_tokens"),
        (Sampling, "beams"),
    ],
)
def test_every_count_has_an_upper_bound(model, option):
    with pytest.raises(ValidationError, match="less than or equal to"):
        model(**{option: 10**13})


def test_what_needs_more_memory_than_there_is():
    limits.require_memory("a table", 10, 10, 4, remedy="make it smaller")
    there = limits.in_words(limits.machine_memory())
    with pytest.raises(ConfigError, match=r"^a table needs ") as error:
        limits.require_memory("a table", 10**12, 10**6, 4, remedy="make it smaller")
    assert str(error.value) == f"a table needs 3.47 EiB of memory, this machine has {there}; make it smaller"


@pytest.mark.parametrize(
    ("size", "words"), [(3, "3 bytes"), (2**20, "1 MiB"), (3 * 2**29, "1.5 GiB"), (2**90, "1.07e+09 EiB")]
)
def test_a_size_in_words(size, words):
    assert limits.in_words(size) == words


def test_a_file_is_a_file_of_a_size(tmp_path):
    limits.require_file(tmp_path / "not there")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no file but a folder, a pipe or a device"):
        limits.require_file(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    with pytest.raises(ConfigError, match="holds 1 TiB, more than 16 MiB"):
        limits.require_file(tmp_path / "large", limits.CONFIG_BYTES)
