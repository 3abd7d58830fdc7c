"""A password or a key that a file spells out in an address: it would be copied into every run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rlalign.config.places import Keys, Tree

_PASSWORD = re.compile(r"[\w+.-]+://[^\s/?#@:]*:(?!\$\{)[^\s/?#@]+@")
_KEY = re.compile(
    r"[\w+.-]+://\S*[?&](?:[\w.-]*(?:signature|token|password|passwd|secret|api[_-]?key)|sig|key|auth)=(?!\$\{)[^&]",
    re.IGNORECASE,
)


def refuse_written_out(tree: Tree) -> None:
    """Report them, before any `${…}` is resolved."""
    for keys, text in _texts(tree.data):
        for what, pattern in (("a password", _PASSWORD), ("a key", _KEY)):
            if pattern.match(text) and not any(map(str.isspace, text)):
                tree.report(
                    keys,
                    f"the address holds {what}, which every run's folder would keep; put it into a variable of the "
                    "environment and write `${oc.env:NAME}` in its place",
                    unreadable=True,
                )


def _texts(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(node, str):
        yield keys, node
    elif isinstance(node, dict | list):
        for key, part in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts(part, (*keys, key))
