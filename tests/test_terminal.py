"""What stands on a terminal while a run goes on and after it: a real pseudo-terminal, real keys."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RLALIGN = [sys.executable, "-c", "from rlalign.cli.commands import main; main()"]
COLUMNS = 100
LIMIT = 120.0
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")
CTRL_C = b"\x03"


@dataclass
class Screen:
    """The rows of a terminal that never scrolls, as far as rich asks: text, line ends, up, erase."""

    rows: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    cursor: bool = True

    def feed(self, text: str) -> None:
        for found in TOKEN.finditer(text):
            count = int(found[1]) if (found[1] or "").isdigit() else 1
            if found[2] == "A":
                self.row = max(0, self.row - count)
            elif found[2] == "K":
                self.rows[self.row] = ""
            elif found[1] == "?25":
                self.cursor = found[2] == "h"
            elif found[2]:
                assert found[2] == "m", found
            elif found[0] == "\r":
                self.column = 0
            elif found[0] == "\n":
                self.row += 1
            else:
                if self.column == COLUMNS:
                    self.row, self.column = self.row + 1, 0
                self._grow()
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + found[0] + line[self.column + 1 :]
                self.column += 1
            self._grow()

    def _grow(self) -> None:
        self.rows += [""] * (self.row + 1 - len(self.rows))

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.rows).strip("\n")


@dataclass
class Watched:
    """What was seen: each screen with its second, the last one, and the exit status."""

    seen: list[tuple[float, str]]
    screen: Screen
    status: int

    @property
    def last(self) -> str:
        return str(self.screen)


def watch(
    folder: Path, arguments: Sequence[str], keys: Sequence[tuple[str, bytes]] = (), command: str = "run"
) -> Watched:
    """Run rlalign on a terminal; send each key once the screen has what its pattern says."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [*RLALIGN, command, *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    screen, seen, left = Screen(), [], list(keys)
    decode = codecs.getincrementaldecoder("utf-8")().decode
    started = time.monotonic()
    while time.monotonic() - started < LIMIT:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so at the end
            data = b""
        if not data:
            break
        screen.feed(decode(data))
        seen.append((time.monotonic() - started, str(screen)))
        if left and re.search(left[0][0], seen[-1][1]):
            os.write(terminal, left.pop(0)[1])
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return Watched(seen, screen, os.waitstatus_to_exitcode(status))


def of_one_panel(text: str) -> bool:
    """Every border has its other half, and there is no more than one panel."""
    return text.count("╭") == text.count("╮") == text.count("╰") == text.count("╯") == 1


LONG = ["train.iterations=100000", "train.schedule.shape=constant", "evaluate.every=20"]
BANDIT = str(ROOT / "examples/bandit.yaml")


@pytest.mark.slow
def test_something_moves_from_the_first_second_and_ctrl_c_leaves_one_whole_panel(tmp_path: Path) -> None:
    found = watch(tmp_path, [BANDIT, *LONG], [("│ trend ", CTRL_C)])
    assert found.status == 130 and found.screen.cursor
    first, text = next((at, text) for at, text in found.seen if text)
    assert "importing what bandit.yaml names" in text and first < 5  # a second where nobody else computes
    texts = "\n".join(text for _, text in found.seen)
    assert "0/100000" in texts and "0/0" not in texts and " 0 ms left" not in texts
    assert "╭" not in found.last.splitlines()[0] and of_one_panel(found.last), found.last
    assert "stopping after this iteration; once more to stop at once" in found.last
    assert found.last.splitlines()[-1].startswith("stopped after iteration ")
    for row in ("reward ", "KL ", "finished ", "trend ", "evaluation ", "sample "):
        assert f"│ {row}" in found.last, row


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_one_whole_panel(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow(texts):\n    time.sleep(60)\n    return [0.0] * len(texts)\n"
    )
    slow = "rewards=[{function: {path: slow.py:slow}, as: slow}]"
    (tmp_path / "b.yaml").write_text(Path(BANDIT).read_text())
    keys = [("reward ", CTRL_C), ("once more", CTRL_C)]
    found = watch(tmp_path, ["b.yaml", slow, "evaluate=null"], keys)
    assert found.status == -2 and found.screen.cursor and of_one_panel(found.last), found.last
    assert found.last.splitlines()[-1] == "stopped at once; the last checkpoint stands"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, keys, status, left",
    [
        ([], [("importing", CTRL_C)], 130, "stopped before the run began"),
        (["train.lrr=1"], [], 2, "error: command line (train.lrr=1): train.lrr: unknown option"),
    ],
)
def test_before_a_run_begins_only_the_message_is_left(
    arguments: list[str], keys: list[tuple[str, bytes]], status: int, left: str, tmp_path: Path
) -> None:
    found = watch(tmp_path, [BANDIT, *arguments], keys)
    assert found.status == status and found.screen.cursor and found.last.startswith(left), found.last


@pytest.mark.slow
def test_a_conversation_that_is_typed(tmp_path: Path) -> None:
    """What is being opened is said; a line that was typed comes back with the arrow key; Ctrl-D ends it."""
    small = ["train.iterations=1", "train.prompts=2", "evaluate=null", "--plain"]
    watch(tmp_path, [str(ROOT / "examples/toy-keywords.yaml"), *small])
    up, enter, ctrl_d = b"\x1b[A", b"\r", b"\x04"
    # A prompt that waits, at first and after one answer and two: what comes before it is lost.
    asks = [rf"(?s)^[^\n]*\n[^\n]*anew(.*?\nbase ){{{count}}}(?!.*\nbase ).*\nyou\s*\Z" for count in range(3)]
    keys = list(zip(asks, (b"river boat" + enter, up + enter, ctrl_d), strict=True))
    found = watch(tmp_path, ["runs/toy-keywords"], keys, "chat")
    assert found.status == 0, found.last
    assert found.seen[0][1].startswith("opening runs/toy-keywords …")
    assert found.last.count("river boat") >= 2 and found.last.count("\ntrained ") >= 2, found.last
