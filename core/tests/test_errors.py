"""Where an error comes from, as a person is told it."""

from __future__ import annotations

import json
import re
from types import FunctionType

import pytest
import torch

from rlalign import Environment, Turn
from rlalign.errors import describe_error
from rlalign.running.playing import Playing


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Turn(reward="1"),  # type: ignore[arg-type]
        lambda: torch.nn.functional.normalize(torch.zeros(2), dim="rows"),  # type: ignore[arg-type]
        lambda: [].pop(),
        lambda: json.loads("{"),
    ],
)
def test_the_line_is_that_of_the_component(wrong: FunctionType) -> None:
    """Not the one of the core, of torch or of Python that found the fault."""
    with pytest.raises((TypeError, IndexError, ValueError)) as found:
        wrong()
    assert describe_error(found.value).endswith(f" (test_errors.py:{wrong.__code__.co_firstlineno})")


def test_a_module_that_is_a_folder_is_named_by_it() -> None:
    space = {"__name__": "rlalign_plugin_mine"}
    code = compile("1 / 0", "/somewhere/rlalign_plugin_mine/__init__.py", "exec")
    with pytest.raises(ZeroDivisionError) as found:
        exec(code, space)
    assert describe_error(found.value).endswith(" (rlalign_plugin_mine/__init__.py:1)")


def test_a_fault_of_the_core_is_told_by_the_core_s_line() -> None:
    """Though `contextlib` stands between."""
    game = Playing(Environment(Environment.Config()), [], 1, lambda *key: torch.Generator())
    with pytest.raises(KeyError) as found:
        game.step([5], ["who is this?"])
    error = found.value.with_traceback(found.tb.tb_next)  # without this file
    assert re.search(r" \(playing\.py:\d+\)$", describe_error(error))
