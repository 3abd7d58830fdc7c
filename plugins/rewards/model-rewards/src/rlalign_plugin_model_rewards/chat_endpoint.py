"""An OpenAI-compatible chat endpoint, asked politely: retried, bounded in time, number and size, remembered."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rlalign import ComponentError
from rlalign.errors import shown

ANSWER_BYTES = 2**20
"""The longest reply that is read."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
Messages = Sequence[Mapping[str, str]]


class Budget(ComponentError):
    """What may be asked has been asked."""


@dataclass
class Spent:
    """What was asked of the endpoint: tries, tokens of prompts and answers, answers that were remembered."""

    requests: int = 0
    tokens: int = 0
    remembered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Failed(Exception):
    """No answer, after all tries."""


class Remembered:
    """Answers by their request, the oldest of too many forgotten: in memory, and in a file if one is named."""

    def __init__(self, most: int, file: Path | None) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[str, str] = OrderedDict()
        self._file: sqlite3.Connection | None = None
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._file = sqlite3.connect(file, check_same_thread=False, timeout=30)
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, key TEXT UNIQUE, answer TEXT)"
                )
            except (sqlite3.Error, OSError) as error:
                raise ComponentError(f"`cache`: {file} cannot be used: {error}") from error

    def get(self, key: str) -> str | None:
        with self._lock:
            if self._file is None:
                return self._held.get(key)
            row = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else str(row[0])

    def put(self, key: str, answer: str) -> None:
        with self._lock:
            if self._file is None:
                self._held[key] = answer
                if len(self._held) > self._most:
                    self._held.popitem(last=False)
                return
            with self._file:
                self._file.execute(
                    "INSERT OR REPLACE INTO answers (key, answer) VALUES (?, ?)", (key, answer)
                )
                self._file.execute(
                    "DELETE FROM answers WHERE number <= (SELECT MAX(number) FROM answers) - ?", (self._most,)
                )

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address never gets the key."""

    def redirect_request(self, *args: Any) -> None:
        return None


class ChatEndpoint:
    """Asks for completions of chats. The key is sent in a header, and stands nowhere else."""

    def __init__(
        self,
        *,
        url: str,
        key: str | None,
        body: Mapping[str, Any],
        timeout: float,
        retries: int,
        wait: float,
        at_once: int,
        most_requests: int | None,
        most_tokens: int | None,
        remembered: Remembered,
    ) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._body = dict(body)
        self._timeout, self._retries, self._wait, self._at_once = timeout, retries, wait, at_once
        self._most_requests, self._most_tokens = most_requests, most_tokens
        self._remembered = remembered
        self._open = urllib.request.build_opener(_NoRedirect()).open
        self._stopping = threading.Event()
        self._lost = 0
        """Requests in a row that got no answer."""
        self.spent = Spent()

    def ask(self, chats: Sequence[Messages]) -> list[str | Failed]:
        """The answer to each chat, equal ones asked once; `Failed` where there is none."""
        bodies = [json.dumps({**self._body, "messages": list(chat)}, sort_keys=True) for chat in chats]
        distinct = list(dict.fromkeys(bodies))
        self._stopping.clear()
        self._lost = 0
        pool = ThreadPoolExecutor(self._at_once)
        try:
            found = dict(zip(distinct, pool.map(self._answer, distinct), strict=True))
        except BaseException:
            self._stopping.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [found[body] for body in bodies]

    def _answer(self, body: str) -> str | Failed:
        key = hashlib.sha256(f"{self._url}\n{body}".encode()).hexdigest()
        known = self._remembered.get(key)
        if known is not None:
            with self.spent.lock:
                self.spent.remembered += 1
            return known
        try:
            answer = self._tried(body)
        except Failed as failed:
            self._give_up(failed)
            return failed
        self._lost = 0
        self._remembered.put(key, answer)
        return answer

    def _give_up(self, failed: Failed) -> None:
        """Stop where nobody answers any more: to wait for every request would stall the run."""
        with self.spent.lock:
            self._lost += 1
            if self._lost > max(3, self._at_once):
                self._stopping.set()  # here, for this thread would begin with the next question
                raise ComponentError(
                    f"{self._url} does not answer: {self._lost} requests in a row were lost ({failed}); see to it, "
                    "then `rlalign run --resume`"
                )

    def _tried(self, body: str) -> str:
        """The answer, at the first try that brings one."""
        why = ""
        for tries in range(self._retries + 1):
            if self._stopping.is_set():
                break
            self._pay()
            try:
                return self._read(self._post(body), body)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise ComponentError(self._refused(error)) from None
                asked = error.headers.get("Retry-After", "") if error.headers else ""
            except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
                reason = getattr(error, "reason", error)
                why, asked = shown(str(reason) or type(reason).__name__), ""
            if tries < self._retries:
                wait = float(asked) if asked.isdigit() else self._wait * 2**tries
                self._stopping.wait(min(wait, LONGEST_WAIT))
        raise Failed(f"no answer in {self._retries + 1} tries; the last: {why}")

    def _pay(self) -> None:
        """Count a request, if there may be one more."""
        with self.spent.lock:
            for what, spent, most in (
                ("requests", self.spent.requests, self._most_requests),
                ("tokens", self.spent.tokens, self._most_tokens),
            ):
                if most is not None and spent >= most:
                    raise Budget(
                        f"the budget is spent: {spent:,} of {most:,} {what}; raise `most_{what}` to go on "
                        f"(`rlalign run --resume`)"
                    )
            self.spent.requests += 1

    def _post(self, body: str) -> bytes:
        request = urllib.request.Request(self._url, body.encode(), self._headers)
        until = time.monotonic() + self._timeout
        found = b""
        with self._open(request, timeout=self._timeout) as reply:
            # Piece by piece: a server that sends a byte now and then would never time out.
            while piece := reply.read1(65536):
                found += piece
                if len(found) > ANSWER_BYTES:
                    raise HTTPException(f"a reply of more than {ANSWER_BYTES:,} bytes")
                if time.monotonic() > until:
                    raise TimeoutError("timed out")
        return found

    def _read(self, reply: bytes, body: str) -> str:
        try:
            said = json.loads(reply)
            content = said["choices"][0]["message"]["content"]
            usage = said.get("usage") or {}
            tokens = usage.get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise HTTPException("a reply that is no chat completion") from None
        answer = content if isinstance(content, str) else ""
        with self.spent.lock:
            # A server that does not count: about four characters a token.
            self.spent.tokens += tokens if isinstance(tokens, int) else (len(body) + len(answer)) // 4
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> str:
        try:
            said = error.read(2000).decode("utf-8", "replace").strip()
        except (OSError, HTTPException):
            said = ""
        hint = {
            401: "; is the key right (`key_from`)?",
            403: "; may this key use the model?",
            404: "; `url` ends where `/chat/completions` is added, often in `/v1`, and `model` is one that it has",
        }.get(error.code, "; a redirect is not followed: give the address itself" if error.code < 400 else "")
        return shown(
            f"{self._url} refused with HTTP {error.code}{hint}" + (f": {said[:500]}" if said else "")
        )

    def close(self) -> None:
        """Stop waiting, and let go of the file."""
        self._stopping.set()
        self._remembered.close()
