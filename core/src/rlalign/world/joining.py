"""How a process becomes one of several, and how it leaves them: with a word of what went wrong."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from rlalign.errors import RankLost, RLAlignError, describe_error
from rlalign.parents import has_ended
from rlalign.world.ranks import World, become, here

X = TypeVar("X")
PATIENCE = 3.0
"""Seconds to wait for another rank's last words."""
WAIT = "RLALIGN_WAIT"
"""The variable that says how many seconds the others wait for a rank that stands still."""
_store: Any = None
"""Where ranks leave their last words. torchrun's own outlives them; that of a group begun elsewhere, not rank 0."""
_processes: list[tuple[str, int]] = []
"""The machine and the number of each rank's process."""
_world: World | None = None
"""This process among the others, once it has met them."""
_runs = 0
"""How many runs they have begun together: what was said of one says nothing of the next."""


@contextmanager
def taking_part() -> Iterator[World]:
    """Be one of the processes that torchrun's environment tells of, if it tells of any; afterwards alone again."""
    global _runs
    outside, world = here(), join()
    if world is not outside:
        _runs += 1
        if _runs > 1:
            _heed_sigterm(True)
    become(world)
    try:
        yield world
    except BaseException as error:
        if world.count > 1 and not hasattr(error, "told"):
            error.told = _last_words(world, error)  # type: ignore[attr-defined]
        raise
    finally:
        become(outside)


def join() -> World:
    """This process among those of its run."""
    global _store, _world
    said = os.environ.get
    if _world is not None:
        return _world
    if int(said("WORLD_SIZE") or 1) == 1 or not (said("RANK") and said("MASTER_ADDR")):
        return here()
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store, _set_pg_timeout
    from torch.distributed.rendezvous import rendezvous

    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(int(said("LOCAL_RANK") or 0) % gpus)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if int(said("LOCAL_WORLD_SIZE") or 1) <= gpus else "gloo"
        found, rank, count = next(rendezvous("env://"))
        _store = PrefixStore(_start(found, rank, count), found)
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count, timeout=longest())
    else:  # somebody else began it, as Ray does
        _store = _get_default_store()
        if (wait := longest()) is not None:
            _set_pg_timeout(wait)
    world = World(dist.get_rank(), dist.get_world_size(), _why)
    world.backend = dist.get_backend()
    _processes[:] = world.gather(lambda: (socket.gethostname(), os.getpid()), "the start")
    world.names = [f"rank {rank} of {world.count} on {host}" for rank, (host, _) in enumerate(_processes)]
    world.beside = sum(host == socket.gethostname() for host, _ in _processes)
    if not world.leads:
        logging.getLogger("rlalign").setLevel(logging.CRITICAL)  # rank 0 says it for all
    _world = world
    return world


def _start(store: Any, rank: int, count: int) -> str:
    """A word that the ranks of this start alone have.

    torchrun may keep the store when it starts processes again, with addresses that are gone. So each rank has a word
    of its own, and goes on once rank 0 has answered to that.
    """
    own = os.urandom(8).hex()
    if rank == 0:
        store.set("first", own)
        for other in range(1, count):
            store.set(store.get(f"{own} {other}").decode(), own)
    while rank and not store.check([own]):
        store.set(f"{store.get('first').decode()} {rank}", own)
        time.sleep(0.05)
    return store.get(own).decode() if rank else own


def longest() -> timedelta | None:
    """How long to wait for a rank that stands still, if anybody has said so."""
    if not (said := os.environ.get(WAIT)):
        return None
    with suppress(ValueError, OverflowError):
        if timedelta(0) < (wait := timedelta(seconds=float(said))) < timedelta(days=10_000):
            return wait
    raise RLAlignError(f"{WAIT}={said} is no number of seconds above 0")


def _heed_sigterm(wanted: bool) -> None:
    """Once a rank ends, torchrun ends the others; each of them says its last words first."""
    if threading.current_thread() is threading.main_thread():
        if not wanted:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a script goes on after a run that failed


def _last_words(world: World, error: BaseException) -> bool:
    """Leave them to the others; returns whether another rank says the same, so that this one need not."""
    _heed_sigterm(False)
    lost = isinstance(error, RankLost)
    said = str(error) if isinstance(error, RLAlignError) else describe_error(error)
    whose = said if lost else f"{world.names[world.own]}: {said}"
    if not lost:
        _asked(lambda store: store.compare_set(f"cause {_runs}", "", whose))
    error.whose = "" if world.leads else whose.removesuffix(said)  # type: ignore[attr-defined]

    def told() -> bool:
        if not (leader := _found(f"said {_runs}")):
            return False
        return leader.startswith((said, whose)) or whose.startswith(f"{world.names[0]}: {leader.rstrip('.')}")

    if world.leads:
        _asked(lambda store: store.set(f"said {_runs}", said))
    elif _waited(told):
        return True
    # Rank 0 may be the last to find out that one is lost: of each machine the first one says it.
    return lost and (_asked(lambda store: store.add(f"lost {_runs} {socket.gethostname()}", 1)) or 1) > 1


def _why(error: Exception) -> str:
    """Who was lost, and why, as far as anybody knows."""
    others = [rank for rank in range(here().count) if rank != here().own]
    found: list[str] = []
    waiting: set[int] = set()

    def known() -> bool:
        """Whether somebody left the cause, or a process is gone, or all have said that they wait, too."""
        if cause := _found(f"cause {_runs}"):
            found.append(cause)
        for rank in others:
            host, process = _processes[rank]
            if host == socket.gethostname() and has_ended(process):
                found.append(f"{here().names[rank]} is gone: it was killed, or it crashed")
        waiting.update(rank for rank in others if _found(f"waits {_runs} {rank}"))
        return bool(found) or len(waiting) == len(others)

    _asked(lambda store: store.set(f"waits {_runs} {here().own}", "it does"))
    _waited(known)
    silent = " and ".join(here().names[rank] for rank in others if rank not in waiting)
    words = str(error).strip().partition("\n")[0]
    found.append(f"{silent} stands still, or cannot be reached" if silent else f"waiting failed: {words}")
    return f"{found[0].rstrip('.')}. The last checkpoint stands; go on from it with `rlalign run --resume`"


def _found(key: str) -> str | None:
    """What a rank left in the store."""
    return _asked(lambda store: store.get(key).decode() if store.check([key]) else None)


def _asked(question: Callable[[Any], X]) -> X | None:
    """The store's answer. Where its machine cannot be reached it would never come; then it is not asked again."""
    global _store
    if (store := _store) is None:
        return None
    answers: list[X] = []

    def ask() -> None:
        with suppress(RuntimeError):
            answers.append(question(store))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if not answers:
        _store = None
    return answers[0] if answers else None


def _waited(until: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not (done := until()) and time.monotonic() < end:
        time.sleep(0.05)
    return done
