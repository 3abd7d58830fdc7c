"""What a component is, told from its file without running it: the same that its class says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlalign.config import outline as outlines
from rlalign.config.outline import Outline, outline

PACKAGE = {
    "__init__.py": "from .inner.parts import Thing as Renamed\n",
    "inner/__init__.py": "",
    "inner/parts.py": """
import rlalign
from rlalign import hookimpl
from ..shared import Shared
raise SystemExit("nobody runs this")

class Thing(Shared):
    '''What it does (Smith et al. 2020) is
    this. And more.

    Nobody needs this here.
    '''

    @hookimpl
    def loss(self, batch, now): ...

    def evaluate(self, rollout): ...

class Wrapper(rlalign.Component):
    @rlalign.hookimpl(wrapper=True)
    def reward(self): ...
""",
    "shared.py": """
try:
    from rlalign.interface.component import Component as Base
except ImportError:
    Base = object

class Shared(Base):
    @hookimpl(wrapper=True)
    def advantage(self): ...
""",
    "torn.py": "class Torn(\n",
    "circle.py": "from no_package.circle import Circle\nfrom outlined.circle import Circle\nclass Other(Other): ...\n",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PACKAGE.items():
        file = tmp_path / "outlined" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    outlines._names.cache_clear()


def test_a_class_is_found_where_it_is_defined() -> None:
    found = outline("outlined:Renamed")
    assert found == Outline(
        "component", "What it does (Smith et al. 2020) is this.", {"advantage": "wrapper", "loss": "plain"}
    )
    assert (found.kind, found.places) == ("algorithm", ["algorithm"])
    wrapper = outline("outlined.inner.parts:Wrapper")
    assert (wrapper.kind, wrapper.places) == ("reward wrapper", ["rewards", "evaluate.use"])
    assert not any(name.startswith("outlined") for name in sys.modules)


@pytest.mark.parametrize(
    "value", ["outlined.torn:Torn", "outlined.circle:Circle", "outlined.circle:Other", "no:No", "x"]
)
def test_what_cannot_be_told_is_empty(value: str) -> None:
    assert outline(value).kind == ""
