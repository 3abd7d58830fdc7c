"""What a hook prints is passed on, up to a length: megabytes would bury whatever else is shown of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

SHOWN = 20_000
"""Characters that one call of a hook may print to each of standard output and standard error."""


@contextmanager
def shortened(told: Callable[[str, str], None]) -> Iterator[None]:
    """Leave out what is printed beyond `SHOWN`, and tell of it."""
    streams = {"standard output": Cut(sys.stdout), "standard error": Cut(sys.stderr)}
    out, err = streams.values()
    try:
        with ExitStack() as redirected:
            redirected.enter_context(redirect_stdout(out))
            redirected.enter_context(redirect_stderr(err))
            yield
    finally:
        for name, stream in streams.items():
            stream.left = None
            if stream.lost:
                told(
                    f"printed to {name}",
                    f"printed {SHOWN + stream.lost:,} characters to {name} in one call, of which the first "
                    f"{SHOWN:,} are shown; where other calls print as much, it is cut, too",
                )


def uncut(stream: Any) -> Any:
    """Where the core's own words go while a hook prints."""
    while isinstance(stream, Cut):
        stream = stream.stream
    return stream


class Cut:
    """A stream that takes so many characters, and drops the others."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.left: int | None = SHOWN
        """None: any number. Whoever keeps the stream writes to it when the call is long over."""
        self.lost = 0

    def write(self, text: str) -> int:
        if self.left is None:
            self.stream.write(text)
        else:
            if self.left:
                self.stream.write(text[: self.left])
            self.lost += max(0, len(text) - self.left)
            self.left = max(0, self.left - len(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
