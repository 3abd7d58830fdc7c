"""What is known of the model that a policy began from: its name, its licence, and the files that say so.

A model folder may be anybody's: little of it is read, no link is followed out of it, and what it says is taken only
where it looks like what it should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlalign.config import places
from rlalign.data.limits import FRONT_MATTER_BYTES, LICENCE_BYTES, LICENCE_FILES
from rlalign.errors import ConfigError

_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_CACHED = re.compile(r"models--(.+?)(?:--(.+))?")
"""How the hub's cache calls a model's folder; below it lie `snapshots`, of links to `blobs`."""
_LICENCES = re.compile(
    r"(licen[cs]e|notice|copying|use[-_]policy)([-_.][\w.-]{0,80})?", re.ASCII | re.IGNORECASE
)
_SAID = {
    "license": re.compile(r"[\w.+-]{1,80}", re.ASCII),
    "license_name": re.compile(r"[\w.+-]{1,80}", re.ASCII),
    "license_link": re.compile(r"[!-;=?-_a-z~]{1,300}"),
}


@dataclass(frozen=True)
class Base:
    """A base model, as far as it is known."""

    name: str
    """What a reader may call it: its name on the hub, or its folder's."""
    on_the_hub: str | None = None
    """Its own name there, or else that of the model its card names as its base."""
    licence: Mapping[str, str] = field(default_factory=dict)
    """What it says of itself: `license`, `license_name`, `license_link`."""
    files: tuple[Path, ...] = ()
    """Its licence, and what belongs to it."""


def base_of(source: str, licence: str | None = None) -> Base:
    """What is known of a model folder, or of a model by its name on the hub; nothing is fetched.

    `licence` is what a model that is no folder says of its own.
    """
    folder = Path(source)
    if not folder.is_dir():
        named = _ON_THE_HUB.fullmatch(source)
        said = {"license": licence} if licence and _SAID["license"].fullmatch(licence) else {}
        return Base(source if named else _plain(folder.name), source if named else None, said)
    folder = folder.resolve()
    said = _front_matter(folder)
    own = _name_in_cache(folder)
    named_base = said.get("base_model")
    if isinstance(named_base, list) and len(named_base) == 1:
        (named_base,) = named_base
    if not isinstance(named_base, str) or not _ON_THE_HUB.fullmatch(named_base):
        named_base = None
    found = {
        key: value
        for key, looks in _SAID.items()
        if isinstance(value := said.get(key), str) and looks.fullmatch(value)
    }
    return Base(own or _plain(folder.name), own or named_base, found, tuple(_licences(folder)))


def _plain(name: str) -> str:
    """A folder's name as a card can hold it."""
    return re.sub(r"[^\w .+-]", "_", name)[:100]


def _name_in_cache(folder: Path) -> str | None:
    cached = _CACHED.fullmatch(folder.parents[1].name) if folder.parent.name == "snapshots" else None
    name = "/".join(part for part in cached.groups() if part) if cached else ""
    return name if _ON_THE_HUB.fullmatch(name) else None


def _is_own(file: Path, folder: Path) -> bool:
    """Whether a file is the model's: it lies in its folder, or where the hub's cache keeps what it links there."""
    real = file.resolve()
    cached = folder.parents[1] / "blobs" if _name_in_cache(folder) else folder
    return real.parent in (folder, cached) and real.is_file()


def _front_matter(folder: Path) -> dict[str, Any]:
    """What a model's card says above its text; nothing where it cannot be read."""
    file = folder / "README.md"
    with suppress(OSError, ConfigError, RecursionError):
        if _is_own(file, folder):
            with file.open("rb") as opened:
                text = opened.read(FRONT_MATTER_BYTES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
            found = re.match(r"---\n(.*?\n)---\s*(\n|$)", text, re.DOTALL)
            return places.read(found[1], "README.md").data if found else {}
    return {}


def _licences(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        named = sorted(file for file in folder.iterdir() if _LICENCES.fullmatch(file.name))
        for file in named[:LICENCE_FILES]:
            if _is_own(file, folder) and file.stat().st_size <= LICENCE_BYTES:
                yield file
