"""Two machines, as far as processes can tell: namespaces of a network and names of their own, and a link between them.

One process on each, by torchrun. What befalls one of them ends both, and the run goes on as if nothing had been.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "world"))
from commands import BEGUN, bits, rank_of, wait_for
from comparing import ROOT, metrics

WORLD = Path(__file__).parent / "world"
WAIT = 10
PORT = "29511"
HOSTS = f"rlalign-{os.getpid()}"
"""The namespaces begin with it: others may run these tests at the same time."""


class Host:
    """A machine's torchrun, and its one process."""

    def __init__(self, number: int, *arguments: str, restarts: int = 0) -> None:
        self.number = number
        self.errors: list[str] = []
        """What it said of errors until it ended."""
        inside = ("ip", "netns", "exec", f"{HOSTS}-{number}", "unshare", "--uts", "sh", "-c")
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
        meet = ("--node-rank", str(number), "--master-addr", "10.77.0.0", "--master-port", PORT)
        again = ("--max-restarts", str(restarts))
        begin = (*torchrun, *meet, *again, "-m", "rlalign", "run", *arguments, "--plain")
        self.process = subprocess.Popen(
            [*inside, 'hostname "$0" && exec "$@"', f"host-{number}", *begin],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RLALIGN_WAIT": str(WAIT),
                "GLOO_SOCKET_IFNAME": f"link{number}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    @property
    def rank(self) -> int:
        """Its process."""
        return rank_of(self.process.pid, self.number)

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=WAIT + 120)
        self.errors = [line for line in said.splitlines() if line.startswith("error: ")]
        return self.process.returncode, said


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    """Begins a run on both."""
    begun: list[Host] = []

    def begin(*arguments: str, restarts: int = 0) -> list[Host]:
        there = (*arguments, "--runs", str(tmp_path))
        hosts = [Host(number, *there, restarts=restarts) for number in (0, 1)]
        begun.extend(hosts)
        return hosts

    try:
        try:
            ip("netns", "add", f"{HOSTS}-0")
            ip("netns", "add", f"{HOSTS}-1")
            there = ("peer", "name", "link1", "netns", f"{HOSTS}-1")
            ip("link", "add", "link0", "netns", f"{HOSTS}-0", "type", "veth", *there)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to make network namespaces, and links between them")
        for host in "01":
            ip("-n", f"{HOSTS}-{host}", "addr", "add", f"10.77.0.{host}/24", "dev", f"link{host}")
            ip("-n", f"{HOSTS}-{host}", "link", "set", "lo", "up")
            ip("-n", f"{HOSTS}-{host}", "link", "set", f"link{host}", "up")
        yield begin
    finally:
        for host in begun:
            if host.process.poll() is None:
                host.process.kill()
        if shutil.which("ip"):
            for number in "01":
                subprocess.run(["ip", "netns", "del", f"{HOSTS}-{number}"], check=False, capture_output=True)


def ends_as(expected: Path, run: Path, hosts: list[Host]) -> None:
    """Once both have ended, the run has the bits of another."""
    for host in hosts:
        code, said = host.end()
        assert code == 0, said
    assert metrics(run) == metrics(expected) and bits(run) == bits(expected)


def killed(hosts: list[Host], victim: int) -> None:
    os.kill(hosts[victim].rank, signal.SIGKILL)


def stands_still(hosts: list[Host], victim: int) -> None:
    os.kill(hosts[victim].rank, signal.SIGSTOP)


def disk_is_full(hosts: list[Host], victim: int) -> None:
    _, most = resource.prlimit(hosts[victim].rank, resource.RLIMIT_FSIZE)
    resource.prlimit(hosts[victim].rank, resource.RLIMIT_FSIZE, (1, most))


def link_is_cut(hosts: list[Host], victim: int) -> None:
    ip("-n", f"{HOSTS}-{victim}", "link", "set", f"link{victim}", "down")


GONE = "rank {} of 2 on host-{} stands still, or cannot be reached"
BEFALLS = {
    "killed 0": (killed, 0, GONE),
    "killed 1": (killed, 1, GONE),
    "stands still": (stands_still, 1, GONE),
    "full disk": (disk_is_full, 0, "File too large"),
    "full disk of a part": (disk_is_full, 1, "File too large"),
    "link": (link_is_cut, 1, GONE),
}
CASES = [
    (which, name) for which in BEGUN for name in BEFALLS if (which, name) != ("whole", "full disk of a part")
]
"""Where weights are whole rank 0 alone writes."""


@pytest.mark.slow
@pytest.mark.parametrize("which, name", CASES)
def test_what_befalls_one_ends_both_and_they_go_on(
    which: str,
    name: str,
    both: Callable[..., list[Host]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    expected: Path = request.getfixturevalue(which)
    happens, victim, says = BEFALLS[name]
    hosts = both(*BEGUN[which], "--name", "ended")
    wait_for(tmp_path / "ended/checkpoints/00000003")
    happens(hosts, victim)
    for host in hosts:
        if happens is stands_still and host.number == victim:
            os.kill(host.rank, signal.SIGCONT)  # its torchrun waits for it
        code, said = host.end()
        assert code == 1, said
    told = [line for host in hosts if host.number != victim or says != GONE for line in host.errors]
    assert told and all(says.format(victim, victim) in line for line in told), told
    if happens is link_is_cut:  # neither reaches the other
        assert any(GONE.format(0, 0) in line for line in hosts[1].errors), hosts[1].errors
        ip("-n", f"{HOSTS}-1", "link", "set", "link1", "up")
    ends_as(expected, tmp_path / "ended", both("--resume", "ended"))


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_an_error_on_one_is_told_with_its_machine(
    which: str, both: Callable[..., list[Host]], tmp_path: Path
) -> None:
    odd = {"whole": "Fails", "cut": "Stumbles"}[which]
    there = (f"folder={WORLD}", f"algorithm=[rloo,'odd:{odd}']")
    hosts = both(*BEGUN[which], *there, "--name", "odd")
    for host in hosts:
        code, said = host.end()
        assert code == 1, said
    told = [line for host in hosts for line in host.errors]
    assert told and all("rank 1 of 2 on host-1" in line and f"`{odd}`" in line for line in told), told
    assert (tmp_path / "odd/checkpoints/00000001").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_sigterm_to_one_has_both_finish_the_iteration(
    which: str, both: Callable[..., list[Host]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected: Path = request.getfixturevalue(which)
    begin = (*BEGUN[which], "--name", "stopped", "--or-resume")
    hosts = both(*begin)
    wait_for(tmp_path / "stopped/checkpoints/00000003")
    hosts[1].process.send_signal(signal.SIGTERM)
    ends = [host.end() for host in hosts]
    assert all(code != 0 for code, _ in ends) and ends[0][1].count("stopped after iteration") == 1, ends
    last = metrics(tmp_path / "stopped")[-1]["iteration"]
    assert 3 <= last < metrics(expected)[-1]["iteration"]
    assert (tmp_path / f"stopped/checkpoints/{last:08}").is_dir()
    ends_as(expected, tmp_path / "stopped", both(*begin))


@pytest.mark.slow
@pytest.mark.parametrize("which", BEGUN)
def test_torchrun_starts_a_process_that_is_lost_again(
    which: str, both: Callable[..., list[Host]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected: Path = request.getfixturevalue(which)
    hosts = both(*BEGUN[which], "--name", "again", restarts=1)
    wait_for(tmp_path / "again/checkpoints/00000003")
    os.kill(hosts[1].rank, signal.SIGKILL)
    ends_as(expected, tmp_path / "again", hosts)
