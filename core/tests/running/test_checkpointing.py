"""Checkpoints of a run: written beside it, from a copy, and no model twice."""

from __future__ import annotations

import errno
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.errors import RLAlignError
from rlalign.records import checkpoint, logs
from rlalign.records.manifest import damage
from rlalign.records.tensors import save_tensors
from rlalign.records.weights import fingerprint
from rlalign.running import checkpointing, loop, pieces
from rlalign.testing import PolicyGradient, registry, session
from rlalign.testing.bench import Silence, logged

GIVEN = {"learns": PolicyGradient}


def pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 4}},
        "rewards": ["token-sum", "kl"],
        "algorithm": "learns",
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 4, "prompts": 4, "lr": 0.05},
        "checkpoints": {"every": 1, "last": 99},
        **changes,
    }


class Told(Silence):
    """Remembers which checkpoints it is told of; calls a function after each iteration, another at each of them."""

    def __init__(self, after: Any = lambda i: None, whole: Any = lambda i: None) -> None:
        super().__init__()
        self.after = after
        self.whole = whole
        self.told: list[int] = []

    def iteration(self, i: int, metrics: Mapping[str, float]) -> None:
        self.after(i)

    def saved(self, path: Path) -> None:
        assert damage(path) is None and threading.current_thread() is threading.main_thread()
        self.told.append(int(path.name))
        self.whole(int(path.name))


def test_a_frozen_model_is_copied_written_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume: its version says that it is what the checkpoint before holds."""
    written: list[str] = []
    copied: list[set[str]] = []

    def save(path: Any, tensors: Any) -> None:
        written.append(Path(path).stem)
        save_tensors(path, tensors)

    class Spied(checkpointing.Snapshot):
        def take(self, state: Any) -> Any:
            copied.append({name for name, (_, weights) in state["models"].items() if weights is not None})
            return super().take(state)

    monkeypatch.setattr(checkpoint, "save_tensors", save)
    monkeypatch.setattr(checkpointing, "Snapshot", Spied)
    display = Told()
    begun = session(tmp_path, pipeline(), GIVEN, name="run", display=display)
    display.after = lambda i: setattr(begun, "stopping", i == 2)
    with pytest.raises(loop.Interrupted):
        begun.run()
    loop.resume(begun.dir.path, registry(GIVEN), display=display).run()
    assert written.count("reference") == 1 and written.count("policy") == written.count("optimiser") == 4
    assert copied == [{"policy", "reference"}, {"policy"}, {"policy"}, {"policy"}]
    files = list(begun.dir.checkpoints.glob("*/models/reference.safetensors"))
    assert len(files) == 4 and len({file.stat().st_ino for file in files}) == 1


def test_whoever_watches_is_told_of_whole_checkpoints_in_the_thread_of_the_run(tmp_path: Path) -> None:
    display = Told()
    session(tmp_path, pipeline(), GIVEN, name="run", display=display).run()
    assert display.told == [1, 2, 3, 4]


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """Called, it lets no file grow beyond what logs need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_an_iteration_later_at_the_latest(tmp_path: Path, full_disk: Any) -> None:
    large = pipeline(policy={"logits": {"hidden": 300}})
    display = Told(whole=lambda i: full_disk())
    run = session(tmp_path, large, GIVEN, name="run", display=display)
    with pytest.raises(
        RLAlignError, match=r"00000002: the checkpoint could not be written: .*00000001, is intact"
    ):
        run.run()
    assert checkpoint.find(run.dir.checkpoints) == [1] and not list(run.dir.checkpoints.glob(".*"))
    assert len(list(logs.read(run.dir.metrics))) == 3


def test_what_goes_wrong_with_the_last_checkpoint_is_told_before_the_model_is_written(
    tmp_path: Path, full_disk: Any
) -> None:
    large = pipeline(policy={"logits": {"hidden": 300}})
    run = session(tmp_path, large, GIVEN, name="run", display=Told(whole=lambda i: i == 3 and full_disk()))
    with pytest.raises(RLAlignError, match="00000004: the checkpoint could not be written"):
        run.run()
    assert not run.dir.model.exists()


def test_a_run_that_fails_leaves_its_last_checkpoint_whole_and_its_own_error_counts(tmp_path: Path) -> None:
    def fails(i: int) -> None:
        if i == 3:
            raise ValueError("of a callback")

    run = session(tmp_path, pipeline(), GIVEN, name="run", display=Told(fails))
    with pytest.raises(ValueError, match="of a callback"):
        run.run()
    assert checkpoint.find(run.dir.checkpoints) == [1, 2]
    assert damage(run.dir.checkpoints / "00000002") is None


@pytest.mark.parametrize("another", [False, True])
def test_a_run_that_is_moved_once_its_checkpoint_is_whole_says_so(tmp_path: Path, another: bool) -> None:
    """And touches nothing of the run that has its name by then."""
    served = tmp_path / "runs/run/served/00000000.jsonl"

    def moves(i: int) -> None:
        if i == 2:
            while not checkpoint.find(run.dir.checkpoints):
                time.sleep(0.005)
            run.dir.path.rename(tmp_path / "moved")
            if another:
                (served.parents[1] / "checkpoints/00000005").mkdir(parents=True)
                served.parent.mkdir()
                served.touch()

    display = Told(moves)
    run = session(tmp_path, pipeline(), GIVEN, name="run", display=display)
    assert run.dir.path == served.parents[1]
    with pytest.raises(RLAlignError, match="the run's folder was moved or deleted while it ran"):
        run.run()
    assert display.notes == [] and served.exists() == another


def test_without_room_for_a_copy_the_run_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = session(tmp_path, pipeline(), GIVEN, name="usual")
    usual.run()
    monkeypatch.setattr(checkpointing, "free_memory", lambda: 0)
    display = Told()
    still = session(tmp_path, pipeline(), GIVEN, name="still", display=display)
    display.after = lambda i: display.told == list(range(1, i)) or pytest.fail(f"{i}: {display.told}")
    still.run()
    assert [note for note in display.notes if "stands still while they are written" in note] == display.notes[
        :1
    ]
    assert logged(still.dir.path) == logged(usual.dir.path)
    assert fingerprint(still.models.policy) == fingerprint(usual.models.policy)


def test_pieces_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the rest of a checkpoint would be in the way of the next one."""

    def full(at: Path, *_: Any) -> Path:
        at.mkdir(parents=True)
        (at / "shard-00001-of-00002.safetensors").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pieces, "cut_of", lambda tensors: {"x": torch.zeros(1)})
    monkeypatch.setattr(pieces, "save_pieces", full)
    with pytest.raises(RLAlignError, match="No space left on device"):
        pieces.write_pieces(tmp_path, 3, {"models": {"policy": (1, {})}, "optimiser": {}}, lambda: None)
    assert list(tmp_path.iterdir()) == []
