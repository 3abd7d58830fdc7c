"""Work in a thread: one piece at a time, and what goes wrong in it is raised once, where its result is asked for."""

import threading
import time

import pytest

from rlalign.records.background import Background


def test_work_goes_on_beside_whoever_began_it():
    background, gate = Background[str]("beside"), threading.Event()
    background.start(lambda: str(gate.wait(60)) + threading.current_thread().name)
    assert background.busy
    gate.set()
    assert background.result() == "Truebeside_0"
    assert not background.busy and background.result() is None and background.took > 0
    background.close()


def test_what_goes_wrong_is_raised_once_and_the_next_work_is_done():
    background = Background[int]("wrong")
    background.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.result()
    assert background.result() is None
    background.start(lambda: 7)
    assert background.result() == 7
    background.close()


def test_nothing_queues_up():
    background = Background[None]("queue")
    background.start(lambda: None)
    with pytest.raises(AssertionError):
        background.start(lambda: None)
    background.close()


def test_the_end_waits_for_the_work():
    background, done = Background[None]("end"), []
    background.start(lambda: (time.sleep(0.05), done.append(1))[0])
    background.close()
    assert done == [1]
    background.close()
