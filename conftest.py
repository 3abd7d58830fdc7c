"""For all tests of the repository."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before torch is there: idle threads sleep. Those that spin crawl where tests, or other work, share the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long an example takes says how busy the machine is.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPROF)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_PROF)


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
