"""Models that are named rather than given as folders: whether the hub answers is asked once, and soon known."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from threading import Thread

from rlalign import RLAlignError

SECONDS = 10
"""In which the hub must have answered."""
FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
"""Of which a model or a tokenizer has one."""
_log = logging.getLogger("rlalign")


def require(source: str) -> None:
    """Refuse a name on the hub that can neither be fetched nor is in the cache.

    Where the hub cannot be reached, what the cache holds is loaded, as under `HF_HUB_OFFLINE=1`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    why = f"`HF_HUB_OFFLINE` is set, so that the hub ({constants.ENDPOINT}) is not asked"
    if not constants.is_offline_mode():
        found = _unreachable(constants.ENDPOINT)
        if found is None:
            return
        why = f"the hub cannot be reached ({constants.ENDPOINT}: {found})"
    try:
        cached = any(isinstance(try_to_load_from_cache(source, name), str) for name in FILES)
    except ValueError:  # no name that a model on the hub could have
        cached = False
    if not cached:
        raise RLAlignError(
            f"{source}: there is no such folder here; {why}, and its cache ({constants.HF_HUB_CACHE}) does not hold "
            "it. Give a model's folder (`./…`), or fetch the model where there is a network and copy the cache here; "
            "`HF_HUB_OFFLINE=1` then loads it without asking the hub"
        )
    if not constants.is_offline_mode():
        _log.warning("%s; %s is loaded from the cache (%s)", why, source, constants.HF_HUB_CACHE)
        constants.HF_HUB_OFFLINE = True  # transformers would ask again for each file, six times


def file_of(source: str, name: str) -> Path | None:
    """A small file of a model on the hub, fetched if need be; None where the model has none, as far as is known."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import cached_file

    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    if found is not None:
        return Path(found)
    if try_to_load_from_cache(source, name) is None:
        _log.warning(
            "%s: the hub's cache does not say whether it has a %s; taken for one without", source, name
        )
    return None


@cache
def _unreachable(endpoint: str) -> str | None:
    """Why nothing answers there; None where something does. Whoever answers slowly is there."""
    from huggingface_hub import get_session

    failed = [f"no answer in {SECONDS} seconds"]

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=SECONDS)
        except Exception as error:
            failed[:] = [] if "ReadTimeout" in type(error).__name__ else [str(error) or type(error).__name__]
        else:
            failed.clear()

    asking = Thread(target=ask, daemon=True)  # looking up a name cannot be timed
    asking.start()
    asking.join(SECONDS)
    return failed[0] if failed else None
