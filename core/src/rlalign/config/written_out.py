"""A password or a key that a file spells out in an address: it would be copied into every run's folder."""

from __future__ import annotations

import re

from rlalign.config.places import Tree, texts

_PASSWORD = re.compile(r"[\w+.-]+://[^\s/?#@:]*:(?!\$\{)[^\s/?#@]+@")
_KEY = re.compile(
    r"[\w+.-]+://\S*[?&](?:[\w.-]*(?:signature|token|password|passwd|secret|api[_-]?key)|sig|key|auth)=(?!\$\{)[^&]",
    re.IGNORECASE,
)


def refuse_written_out(tree: Tree) -> None:
    """Report them, before any `${…}` is resolved."""
    for keys, text in texts(tree.data):
        for what, pattern in (("a password", _PASSWORD), ("a key", _KEY)):
            if pattern.match(text) and not any(map(str.isspace, text)):
                tree.report(
                    keys,
                    f"the address holds {what}, which every run's folder would keep; put it into a variable of the "
                    "environment and write `${oc.env:NAME}` in its place",
                    unreadable=True,
                )
