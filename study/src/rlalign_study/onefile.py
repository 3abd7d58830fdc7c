"""A web page in one HTML file that loads nothing: its parts, its data, and what a browser will take of it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping


def as_json(value: Mapping[str, object]) -> str:
    """JSON to be embedded in a page: it cannot end the element that holds it, whatever its texts say."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def allowed(text: str) -> str:
    """How a content security policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def filled(shape: str, parts: Mapping[str, str]) -> str:
    """A page whose places, `@NAME@`, are filled in this order; what a part says is no place."""
    done = ""
    for name, text in parts.items():
        before, mark, shape = shape.partition(f"@{name}@")
        assert mark, f"the page has no place for {name}"
        done += before + text
    return done + shape
