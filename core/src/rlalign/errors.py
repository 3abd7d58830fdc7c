"""What goes wrong, sorted by who can fix it. Every message says where, what was found, and what to do.

What a message may not hold lies here too: secrets, and characters that would steer a terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType
from urllib.parse import quote

SHORTEST_SECRET = 8
"""Characters of the shortest value that is hidden: what is shorter is found in innocent words."""
_TOLD_BY = 16
"""A text that was cut short still tells a secret if it holds this many of its first characters."""
_hidden: dict[str, str] = {}
"""Secrets, in every form in which messages hold them, and what is shown instead."""
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but for tab and newline, what turns the direction of writing, halves of characters."""


def hide(value: str, shown: str) -> None:
    """From now on messages hold `shown` in place of a value; of one that is short, or a path that exists, nothing."""
    if len(value) < SHORTEST_SECRET or os.path.exists(value):
        return
    forms = (value, value.strip(), repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe=""))
    _hidden.update({form: shown for form in forms if len(form) >= SHORTEST_SECRET})
    for form in sorted(
        _hidden, key=len
    ):  # the longest last, and so first when they are looked for in reverse
        _hidden[form] = _hidden.pop(form)


def concealed(text: str, least: int = SHORTEST_SECRET) -> str:
    """The text without secrets, of at least so many characters."""
    for form, instead in reversed(_hidden.items()):
        text = text.replace(form, instead) if len(form) >= least else text
    return text


def shown(text: str) -> str:
    """The text as a person may see it: without secrets, cut short or whole, and with control characters escaped."""
    text = concealed(text)
    for form, instead in reversed(_hidden.items()):
        start = text.find(form[:_TOLD_BY]) if len(form) > _TOLD_BY else -1
        while start >= 0:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(form, text[start:], strict=False))
            end = start + sum(1 for _ in same)
            text = text[:start] + instead + text[end:]
            start = text.find(form[:_TOLD_BY], start + len(instead))
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


LONGEST = 4000
"""Characters of somebody else's message that are shown."""
LONGEST_MESSAGE = 16_000
"""Characters of a message of ours, which may quote what a file says."""
NOBODY_S = {*sys.stdlib_module_names, "rlalign", "torch", "pluggy", "pydantic", "click"}
"""Packages that are no component's, by their first name."""


class RLAlignError(Exception):
    """Something a user can fix; the command line prints it without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return shortened(concealed(super().__str__()), LONGEST_MESSAGE)


class ConfigError(RLAlignError):
    """The pipeline, its options or the installed plugins are wrong: found before anything runs."""

    exit_code = 2


class Faults:
    """Faults of a pipeline, gathered to be told together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note a `ConfigError` and go on."""
        try:
            yield
        except ConfigError as error:
            self.found.append(str(error))

    def stop(self) -> None:
        """Raise one error for all that was found, if anything was."""
        if self.found:
            raise ConfigError("\n".join(dict.fromkeys(self.found)))


class BadLogits(RLAlignError):
    """A model's logits are NaN or +∞ somewhere, or −∞ everywhere: no token can be sampled from them, or scored."""


class ComponentError(RLAlignError):
    """A component did what its hook does not allow, or raised."""


class Altered(ComponentError):
    """A component changed what is not its own: nothing that others read can be trusted any more."""


class RankLost(RLAlignError):
    """Another process of the run has ended, or stands still; no component is to blame."""


class RanksDisagree(RLAlignError):
    """The processes of a run have come to different things."""


@contextmanager
def attributed_to(what: str, name: str | None = None) -> Iterator[None]:
    """Say who it was when code that is not ours raises; errors of our own pass as they are, if they say this name."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except (RankLost, RanksDisagree):
        raise
    except RLAlignError as error:
        if name is None or f"`{name}`" in str(error):
            raise
        raise type(error)(f"{what}: {error}") from error
    except BaseException as error:  # SystemExit too: whoever raises it has not finished
        raise ComponentError(f"{what} raised {describe_error(error)}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever goes wrong before anything runs is a ConfigError."""
    try:
        yield
    except RLAlignError as error:
        if error.exit_code == ConfigError.exit_code or isinstance(error, (RankLost, RanksDisagree)):
            raise
        raise ConfigError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ConfigError(f"{where}{error.strerror or error}") from error


def describe_error(error: BaseException) -> str:
    """`KeyError: 'toxicity' (my_rewards.py:12)`"""
    said, at = said_by(error), raised_at(error)
    return f"{type(error).__name__}{f': {said}' if said else ''}{f' ({at})' if at else ''}"


def raised_at(error: BaseException) -> str:
    """The last line of a component that it passed: who gave `Batch.of` a wrong shape, not the line that saw it."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    theirs = [one for one in frames if one[0].f_globals.get("__name__", "").split(".")[0] not in NOBODY_S]
    return "".join(written_at(*one) for one in (theirs or frames)[-1:])


def written_at(frame: FrameType, line: int) -> str:
    """`my_rewards.py:12`, `rlalign_plugin_mine/__init__.py:12`"""
    file = Path(frame.f_code.co_filename)
    folder = f"{file.parent.name}/" if file.name == "__init__.py" else ""
    return f"{folder}{file.name}:{line}"


def said_by(error: BaseException) -> str:
    """An error's own words, shortened if they fill pages; it may fail even at saying them."""
    try:
        said = str(error)
    except Exception as again:
        return f"(its message raised {type(again).__name__})"
    return shortened(said, LONGEST)


def shortened(text: str, most: int) -> str:
    """The text without its middle, where it is longer than this."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


class CheckpointError(RLAlignError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 2
