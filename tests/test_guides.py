"""docs/guides: every option that the table of names leads to is there, and links lead to headings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from rlalign.config.pipeline import Distributed, Evaluate, PipelineSettings
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling, Save, Train
from rlalign.errors import ConfigError

GUIDES = Path(__file__).resolve().parents[1] / "docs/guides"
SECTIONS: dict[str, type[BaseModel]] = {
    "generation": Sampling,
    "train": Train,
    "evaluate": Evaluate,
    "checkpoints": Save,
    "distributed": Distributed,
}
WITH_COMPONENTS = ("task", "policy", "rewards", "algorithm")


def names() -> list[str]:
    """All that stands in the right column of names.md."""
    rows = re.findall(r"^\|.*\| (`.*`) \|$", (GUIDES / "names.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.rpartition("|")[2])]


def options(path: str) -> None:
    """Fails where a pipeline has no such path."""
    first, *rest = path.split(".")
    model: Any = SECTIONS.get(first, PipelineSettings)
    if first in WITH_COMPONENTS:
        if not rest:
            return
        name, *rest = rest
        model = Registry().load(name).cls.Config
    elif model is PipelineSettings:
        rest = [first]
    for key in rest:
        field = model.model_fields[key]
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        model = next((one for one in inner if issubclass(one, BaseModel)), None)


PATH = re.compile(r"`((?:generation|train|evaluate|checkpoints|rewards|algorithm|policy|task)\.[\w.-]*\w)")


def said() -> set[str]:
    """All paths that other guides name; of names.md the other columns hold other libraries'."""
    pages = (page for page in GUIDES.glob("*.md") if page.name != "names.md")
    return {path for page in pages for path in PATH.findall(page.read_text())}


def test_every_name_is_an_option():
    found = names()
    assert len(found) > 50 and len(said()) > 30
    for path in {*found, *said()}:
        try:
            options(path)
        except (KeyError, AttributeError, ConfigError) as error:
            raise AssertionError(f"docs/guides: there is no `{path}`") from error


@pytest.mark.parametrize(
    "path", ["train.prompt", "rewards.kl.coeff", "seeds", "train.schedule.shapes", "task.none"]
)
def test_a_name_that_is_none_is_found(path):
    with pytest.raises((KeyError, AttributeError, ConfigError)):
        options(path)


def slug(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_to_headings(page):
    text = page.read_text()
    assert (
        len(
            re.findall(r"^# ", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
        )
        == 1
    )
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
        if "://" not in target:
            there = (page.parent / target) if target else page
            there = there / "README.md" if there.is_dir() else there
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}#{anchor}"
