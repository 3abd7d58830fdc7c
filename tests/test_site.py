"""The documentation's site: made without a warning; every link leads somewhere; it asks nobody on the network."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import rlalign
import rlalign.testing

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs/site/build.py"), "--to", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@cache
def attributes(page: Path) -> list[tuple[str, str, str]]:
    """(element, attribute, value) of all that leads somewhere, and of what can be led to."""
    tags = re.findall(r"<(\w+)((?:\s+[\w:-]+(?:=\"[^\"]*\")?)*)\s*/?>", page.read_text())
    return [
        (element, name, unescape(value))
        for element, inside in tags
        for name, value in re.findall(r"\b(href|src|id)=\"([^\"]*)\"", inside)
    ]


def pages(site: Path) -> Iterator[Path]:
    return site.rglob("*.html")


def test_every_component_has_a_page_with_its_options(site):
    found = {path.stem: path for path in site.glob("components/*/*.html")}
    for project in [ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/*/pyproject.toml")]:
        data = tomllib.loads(project.read_text())["project"]
        for name in data.get("entry-points", {}).get("rlalign", {}):
            assert name in found, f"{name} of {data['name']} has no page"
    text = re.sub(r"<[^>]+>", "", found["nlpo"].read_text())
    for said in ("refresh", "whole number ≥ 1", "lagging", "phase_started", "quickstart", "Ramamurthy"):
        assert said in text


def test_every_name_that_a_plugin_imports_is_on_a_page(site):
    for page, module in (("rlalign", rlalign), ("testing", rlalign.testing)):
        ids = {value for _, name, value in attributes(site / f"api/{page}.html") if name == "id"}
        missing = [name for name in module.__all__ if f"{module.__name__}.{name}" not in ids]
        assert not missing, f"api/{page}.html lacks {', '.join(missing)}"


def test_every_link_and_anchor_leads_somewhere(site):
    ids = {page: {value for _, name, value in attributes(page) if name == "id"} for page in pages(site)}
    lost = set()
    for page in pages(site):
        for _, name, value in attributes(page):
            if name == "id" or re.match(r"(https?|mailto|data):", value):
                continue
            place, _, anchor = value.partition("#")
            target = (page.parent / unquote(place.partition("?")[0])).resolve() if place else page
            if not target.is_file() or (anchor and target in ids and unquote(anchor) not in ids[target]):
                lost.add(f"{page.relative_to(site)}: {value}")
    assert not lost, "\n".join(sorted(lost))


def test_no_page_asks_the_network(site):
    for page in pages(site):
        asked = [
            value
            for element, name, value in attributes(page)
            if (name == "src" or (element == "link" and name == "href")) and re.match(r"(\w+:)?//", value)
        ]
        assert not asked, f"{page.relative_to(site)}: {asked}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s)[\"' ]*(\w+:)?//", sheet.read_text()), sheet


def complaints(chromium: Any) -> list[Any]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event["params"] for event in chromium.events if event["method"] in kinds]


def test_search_finds_an_option_on_the_page_of_its_component(site, chromium):
    """In a browser, from the disk."""
    chromium.open(f"{(site / 'search.html').as_uri()}?q=min_keep")
    chromium.until("document.querySelectorAll('ul.search li a').length > 0")
    found = chromium.js("[...document.querySelectorAll('ul.search li a')].map(a => a.href)")
    assert any("/components/algorithms/nlpo.html" in address for address in found)
    assert not complaints(chromium)


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_pages_fit_the_window_and_complain_of_nothing(site, chromium, width, dark):
    for page in (
        "index.html",
        "docs/hooks.html",
        "components/rewards/rouge.html",
        "benchmarks/nlpo/README.html",
    ):
        chromium.open(site / page, width, 844, dark=dark)
        assert chromium.js("document.documentElement.scrollWidth") <= width, page
        assert not complaints(chromium), page
        asked = {
            event["params"]["request"]["url"].partition(":")[0]
            for event in chromium.events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked <= {"file", "data"}
