"""For all tests of the repository."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is there: idle threads sleep. Those that spin crawl where tests, or other work, share the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What a test writes need not outlive a power cut: waiting for the disk takes a fifth of many a test.
os.fsync = lambda descriptor: None

# How long an example takes says how busy the machine is.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGPROF)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_PROF)


# Tests of the kits that start a process, each several seconds, and that many packages inherit.
LONG = ("test_the_order_is_the_same_in_another_process",)
WHERE_LONG = "core/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow beside what says so itself: long tests of the kits, and all but a few combinations of values.

    And what the kits have for a GPU is for `make test-gpu`: a stranger's pytest knows no such mark.
    """
    thin = defaultdict(list)
    for item in items:
        if item.name.startswith("test_a_gpu_gives_what_a_cpu_gives"):
            item.add_marker("gpu")
        if item.name in LONG and not item.nodeid.startswith(WHERE_LONG):
            item.add_marker("slow")
        if item.get_closest_marker("thin") and isinstance(item, pytest.Function):
            thin[item.nodeid.partition("[")[0]].append(item)
    for alike in thin.values():
        for item in set(alike) - set(fewest(alike)):
            item.add_marker("slow")


def fewest(items: list[pytest.Function]) -> Iterator[pytest.Function]:
    """As few as have every `thin(n)` values together: always the one with most combinations that are new."""
    mark = items[0].get_closest_marker("thin")
    of = {}
    for item in items:
        values = [(name, id(value)) for name, value in item.callspec.params.items()]
        of[item] = set(combinations(values, *mark.args))
    left = set().union(*of.values())
    while left:
        best = max(items, key=lambda item: len(of[item] & left))
        left -= of[best]
        yield best


@pytest.fixture(autouse=True)
def no_test_interrupts_another() -> Iterator[None]:
    """Handlers are given back and no timer is left: what it sends would break a later test off, or end all of them."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    running = [timer for timer in TIMERS if signal.setitimer(timer, 0) != (0.0, 0.0)]
    changed = [
        number for number, handler in zip(SIGNALS, before, strict=True) if signal.getsignal(number) != handler
    ]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    assert not running and not changed, "the test leaves a timer running, or a signal's handler changed"


@pytest.fixture(autouse=True)
def no_test_sees_the_modules_of_another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test wrote and imported is forgotten: the next one may write another of the same name."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]


# -- a browser, for packages that make pages -------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60
KEYS = {"Enter": 13, "Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Chromium:
    """A headless browser with one page at a time, driven by keys as a person does: DevTools over a pipe, no library."""

    def __init__(self, binary: str, folder: Path) -> None:
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (read, write)]
        command = [
            *(binary, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"),
            *(
                "--no-first-run",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
            ),
            *("--disable-component-update", "--disable-sync", "--no-default-browser-check"),
            "--no-sandbox",  # it needs what root and many containers have not; the page is our own
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
        )
        for end in (read, write, *ends):
            os.close(end)
        self._waiting = select.poll()
        self._waiting.register(self._in, select.POLLIN)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask, and wait for the answer."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (said := self._message()).get("id") != self._number:
            self.events.append(said)
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert self._waiting.poll(SECONDS * 1000), "the browser says nothing any more"
            more = os.read(self._in, 2**20)
            assert more, f"the browser ended: {self._process.poll()}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(
        self,
        page: Path | str,
        width: int = 1280,
        height: int = 800,
        *,
        dark: bool = False,
        again: bool = False,
    ) -> None:
        """A new tab with this page or address: as on another machine, or `again` with what the browser has kept."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ])  # fmt: skip
        self.size(width, height)
        self._show(page)
        if not again:
            self.js("localStorage.clear()")
            self._show(page)

    def _show(self, page: Path | str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def size(self, width: int, height: int, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Keys by their names, one after the other."""
        for key in keys:
            code = f"Digit{key}" if key.isdigit() else {" ": "Space"}.get(key, key)
            number = KEYS.get(key) or ord(key.upper())
            text = {"Enter": "\r", "Tab": ""}.get(key, key if len(key) == 1 else "")
            about = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def downloaded(self, name: str) -> Path:
        """A file that the page has saved, once it is whole."""
        end, path = time.monotonic() + SECONDS, self.downloads / name
        while not path.exists() or any(self.downloads.glob("*.crdownload")):
            assert time.monotonic() < end, f"{name} was not saved"
            time.sleep(0.02)
        return path

    def picture(self, path: Path, *, whole: bool = False) -> None:
        made = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self) -> None:
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Chromium]:
    binary = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    browser = Chromium(binary, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
