"""The changelog's section of a release."""

from __future__ import annotations

import re

from release.wheels import Fault

UNRELEASED = "## Unreleased\n"


def released(text: str, version: str, date: str) -> tuple[str, str]:
    """The changelog with what was unreleased under the version and its date; and that section alone."""
    if re.search(rf"^## {re.escape(version)}\b", text, re.MULTILINE):
        raise Fault(
            f"CHANGELOG.md: has a section {version} already: raise the version in core/pyproject.toml"
        )
    before, found, after = text.partition(UNRELEASED)
    section, following, rest = after.partition("\n## ")
    if not found or not section.strip():
        raise Fault("CHANGELOG.md: nothing stands under `## Unreleased`: there is nothing to release")
    moved = f"## {version} ({date})\n{section.rstrip()}\n"
    return f"{before}{UNRELEASED}\n{moved}{following}{rest}", moved
