"""The page: one HTML file with its data and the library that draws its charts."""

from __future__ import annotations

import base64
import gzip
import html as markup
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlalign.errors import ConfigError
from rlalign_study.onefile import allowed, as_json, filled

SCRIPTS = ("base.js", "charts.js", "samples.js", "page.js")
"""In this order they are one script."""


def html(data: Mapping[str, Any]) -> str:
    """One file that loads nothing; a live page asks whoever served it, and nobody else."""
    script = "\n".join(['"use strict";', "{", *map(_part, SCRIPTS), "}", ""])
    packed, hashed = _library()
    asks = "'self'" if data["live"] else "'none'"
    policy = (
        f"default-src 'none'; script-src '{allowed(script)}' '{hashed}'; style-src 'unsafe-inline'; "
        f"img-src data: blob:; connect-src {asks}; base-uri 'none'; form-action 'none'"
    )
    return filled(
        _part("page.html"),
        {
            "POLICY": policy,
            "TITLE": markup.escape(str(data["title"])),
            "STYLE": _part("page.css"),
            "DATA": as_json(data),
            "LIBRARY": packed,
            "SCRIPT": script,
        },
    )


def _part(name: str) -> str:
    return (resources.files("rlalign_report") / "page" / name).read_text(encoding="utf-8")


@cache
def _library() -> tuple[str, str]:
    """Plotly's script, packed as text, and how a security policy names it. Plotly itself is not imported."""
    found = find_spec("plotly")
    places = found.submodule_search_locations if found else None
    path = next(
        (p for place in places or () if (p := Path(place, "package_data/plotly.min.js")).is_file()), None
    )
    if path is None:
        raise ConfigError(
            "plotly, which draws the charts, is not there or has no plotly.min.js: `pip install plotly`"
        )
    text = path.read_text(encoding="utf-8")
    packed = gzip.compress(text.encode(), mtime=0)
    return base64.b64encode(packed).decode(), allowed(text)
