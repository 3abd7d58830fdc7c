"""The manifest of a checkpoint: its files, each with size and SHA-256, and a checksum of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlalign.errors import CheckpointError
from rlalign.records.files import inside, read_json

FORMAT = 2


class _File(BaseModel):
    size: int
    sha256: str


class _Manifest(BaseModel):
    format: int
    index: int
    best: int | None
    models: dict[str, int]
    files: dict[str, _File]
    checksum: str


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole."""
    try:
        files = {inside(path, name): expected for name, expected in read_manifest(path)["files"].items()}
    except CheckpointError as error:
        return str(error)
    for file, expected in files.items():
        try:
            size = file.stat().st_size
            if not file.is_file():
                return f"{file}: is no file."
            if size != expected["size"]:
                return f"{file}: holds {size} bytes instead of {expected['size']}: it is cut short or edited."
            if fingerprint(file) != expected:
                return f"{file}: is not what was written (its SHA-256 differs): it is damaged or edited."
        except FileNotFoundError:
            return f"{file}: is missing."
        except OSError as error:
            return f"{file}: cannot be read: {error.strerror}."
    return None


def fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def checksum_of(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    manifest: dict[str, Any] = read_json(file, dict)
    if manifest.get("checksum") != checksum_of(manifest):
        raise CheckpointError(f"{file}: is not what was written (its checksum differs): it was edited.")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: has format {manifest.get('format')}, this version of rlalign reads {FORMAT}. "
            "Use the version that wrote it: lock.json names it."
        )
    read_json(file, _Manifest)
    needed = {"state.json", *(f"models/{name}.safetensors" for name in manifest["models"])}
    if manifest["index"] != int(path.name) or not needed <= set(manifest["files"]):
        raise CheckpointError(
            f"{file}: belongs to another checkpoint, or names not all its files: it was edited."
        )
    return manifest


def read_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_manifest(path)
    except CheckpointError:
        return {}
