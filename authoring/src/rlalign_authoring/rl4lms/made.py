"""A pipeline in the making: its sections, what is noted above each, and what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlalign_authoring import layout
from rlalign_authoring.rl4lms.source import Part

WIDTH = 110
ORDER = ("seed", "task", "policy", "models", "rewards", "algorithm", "generation", "train", "evaluate")


@dataclass
class Made:
    """What becomes of a file."""

    sections: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def note(self, section: str, text: str) -> None:
        """A comment above a section; each once."""
        if not any(text in told for told in self.notes.values()):
            self.notes.setdefault(section, []).append(text)

    def leave(self, part: Part, why: str, *keys: str) -> None:
        """Keys of the file that have no counterpart, where they are said."""
        for key in keys:
            if part.has(key):
                self.left.append(f"{part.said(key)}: {why}")
            part.asked[key] = None

    def leave_rest(self, part: Part, why: str) -> None:
        """All that a section that is another library's says beside what was understood."""
        self.leave(part, why, *part.rest())

    def text(self, header: Iterable[str]) -> str:
        """The file."""
        sections = {name: self.sections[name] for name in ORDER if name in self.sections}
        notes = {name: [*_lines(told)] for name, told in self.notes.items()}
        text = layout.file_of([*_lines(header)], sections, notes)
        if self.left:
            told = _lines(f"- {one}" for one in self.left)
            text += "\n".join(["", "# Left out:", *(f"# {line}" for line in told), ""])
        return text


def _lines(told: Iterable[str]) -> Iterable[str]:
    """Of each text its lines; those after the first stand in."""
    for text in told:
        yield from textwrap.wrap(
            text, WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
