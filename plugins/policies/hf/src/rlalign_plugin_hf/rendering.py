"""Chat templates come with models and are programs: they run in a process with little time and memory of its own.

Run as a script, this module is that process. It imports neither torch nor this package.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

TEMPLATE_SECONDS = 2
"""Of a processor, for one prompt."""
TEMPLATE_MEMORY = 2**29
"""Bytes that a template may take."""
TEMPLATE_CHARACTERS = 2**20
"""The longest template."""
TODAY = "2024-07-26"
"""What a template that asks for the date is told: the clock would change prompts from one day to the next. It is the
day that Llama 3's templates write where there is no clock."""
TOOLS = "tools"
"""The key of a first message that holds what may be called."""


class ChatTemplate:
    """A template, rendered as transformers does, but always on the same day; ValueError says why that cannot be."""

    def __init__(self, template: str, names: Mapping[str, Any], today: str = TODAY) -> None:
        if len(template) > TEMPLATE_CHARACTERS:
            raise ValueError(f"it has {len(template):,} characters, more than {TEMPLATE_CHARACTERS:,}")
        self._said = {"chat_template": template, **names}
        self._today = today
        self._writes_tools = False
        """Whether it is known to; most templates of small models leave them out without a word."""

    def render(self, messages: Sequence[Mapping[str, Any]], *, answered: bool = False) -> str:
        """The text of a chat, up to where the assistant's answer begins; with `answered`, all of it.

        The first message may carry `tools`, schemas of functions that may be called, which are the template's to write.
        """
        given = [
            {key: value for key, value in message.items() if value is not None and key != TOOLS}
            for message in messages
        ]
        said = {**self._said, "conversations": [given], "add_generation_prompt": not answered}
        tools = messages[0].get(TOOLS) if messages else None
        if not tools:
            return self._asked(said)
        text = self._asked({**said, "tools": tools})
        if not self._writes_tools and text == self._asked(said):
            raise ValueError(
                "it does not write what may be called; tell it in the system message, with `schemas: message` of the "
                "task `tools`"
            )
        self._writes_tools = True
        return text

    def _asked(self, said: Mapping[str, Any]) -> str:
        answer = _renderer.ask(json.dumps([self._today, said], default=_named))
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["text"])


class _Renderer:
    """The other process. It is started when it is first asked, and again when a template has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = Lock()

    def ask(self, question: str) -> dict[str, Any]:
        with self._one_at_a_time:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(question.encode() + b"\n")
                process.stdin.flush()
                answer: dict[str, Any] = json.loads(process.stdout.readline())
            except (OSError, ValueError):  # it has ended, whatever of
                self.end()
                bounds = f"{TEMPLATE_SECONDS} seconds or {TEMPLATE_MEMORY // 2**20} MiB"
                return {"error": f"it takes more than {bounds} for one prompt, or breaks down"}
            except BaseException:  # Ctrl-C: an answer may be on its way
                self.end()
                raise
            return answer

    def _start(self) -> subprocess.Popen[bytes]:
        atexit.register(self.end)
        paths = os.pathsep.join(path for path in sys.path if path)
        few = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "critical"}
        return subprocess.Popen(
            [sys.executable, "-P", __file__],  # -P: the modules beside this one hide no others
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **few, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is the run's own to answer
        )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(OSError):
                self._process.communicate()
            self._process = None


_renderer = _Renderer()


def _named(value: Any) -> str:
    """What transformers shows a template of a value that is not plain."""
    return f"<{type(value).__name__}>"


# -- the other process ---------------------------------------------------------------------------------------


def _serve() -> None:
    import resource
    import signal
    from datetime import datetime
    from types import SimpleNamespace

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else is heard as an answer
    from transformers.utils import chat_template_utils

    render: Any = chat_template_utils.render_jinja_template
    taken = 0
    with suppress(OSError), open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    if taken:
        resource.setrlimit(resource.RLIMIT_AS, (taken + TEMPLATE_MEMORY,) * 2)
    for question in sys.stdin:
        # When this much of the processor is used up, the signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, TEMPLATE_SECONDS)
        try:
            today, said = json.loads(question)
            day = datetime.fromisoformat(today)
            # Whose `now` transformers' `strftime_now` asks.
            chat_template_utils.datetime = SimpleNamespace(now=lambda day=day: day)  # type: ignore
            (text,), _ = render(**said)
            answer = json.dumps({"text": text})
        except MemoryError:
            return
        except Exception as error:
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:300]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
