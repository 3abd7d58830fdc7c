"""Checkpoints that are named rather than given as folders: looked for in the hub's cache, and never fetched."""

from __future__ import annotations

from pathlib import Path

from rlalign import ConfigError


def folder_of(source: str) -> Path:
    """The folder of a checkpoint: a path, or a name on the hub whose files are in its cache. No network is used."""
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(
            f"{source}: there is no such folder; give a checkpoint's folder, or its name on the hub"
        )
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise ConfigError(
            f"{source}: there is no such folder here. Names on the hub need the package huggingface_hub: "
            "`pip install huggingface_hub`, or install this plugin with its extra `hub`"
        ) from None
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception as error:
        raise ConfigError(
            f"{source}: there is no such folder here, and the hub's cache ({constants.HF_HUB_CACHE}) does not hold it "
            f"({type(error).__name__}). A run fetches nothing: do `hf download {source}` first, where there is a "
            "network, or give a folder (`./…`)"
        ) from None
