"""Micro-batches follow from what a model takes and what memory is free, and stay as a run began with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign.config.load import load_pipeline
from rlalign.data import limits
from rlalign.interface.policy import Footprint
from rlalign.learning.memory import LEAST, fitting_tokens, head_chunk
from rlalign.running import loop, workspace
from rlalign.running.checked import check
from rlalign.running.display import NoDisplay
from rlalign.testing import PolicyGradient, registry, session
from rlalign.testing.logits import Logits

MIB, GIB = 2**20, 2**30
SMOLLM = Footprint(weights=540 * MIB, learned=540 * MIB, token=2 * MIB, logits=192 * 2**10)


def fits(free: float, of: Footprint = SMOLLM, copies: int = 1) -> int:
    return fitting_tokens(of, int(free), copies=copies, most=16384, chunk=256)


def test_tokens_follow_from_the_memory() -> None:
    """Of 16 GiB half are for learning: 8,192 MiB less 540 of a copy, 1,620 of gradient and moments, 192 of logits."""
    assert (8192 - 540 - 1620 - 192) // 2 == 2920
    assert fits(16 * GIB) == 2048
    assert fits(16 * GIB, SMOLLM._replace(learned=0), copies=0) == 2048
    assert fits(20 * GIB, SMOLLM._replace(learned=0), copies=0) == 4096
    assert fits(1000 * GIB) == 16384, "no more than where memory is no matter"


def test_weights_in_half_precision_leave_less_behind(tmp_path: Path) -> None:
    """Where all that learns has them; and so micro-batches are larger."""

    class Counted(Logits):
        def footprint(self) -> Footprint:
            return SMOLLM._replace(half=0.4, again=MIB)

    found = {}
    for name, train in {
        "full": {},
        "half": {"dtype": "bfloat16", "weights": "bfloat16"},
        "again": {"dtype": "bfloat16", "weights": "bfloat16", "recompute": True},
    }.items():
        said: Any = {"task": "numbers", "policy": "counted", "rewards": ["token-sum"], "algorithm": "gain"}
        said["train"] = {"iterations": 1, "prompts": 4, **train}
        opened = session(tmp_path / name, said, {"counted": Counted, "gain": PolicyGradient})
        found[name] = opened.footprint().token / MIB
    assert found == pytest.approx({"full": 2, "half": 0.8, "again": 0.4}, rel=1e-5)


def test_small_vocabularies_have_more_rows_of_logits_at_a_time() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert head_chunk(cpu) == head_chunk(cpu, SMOLLM) == 256
    assert head_chunk(cpu, SMOLLM._replace(logits=4000)) == 2097
    assert head_chunk(gpu, SMOLLM) == 2048


@pytest.mark.parametrize("free", (0, 3 * GIB, 5 * GIB))
def test_a_response_or_two_are_tried_in_any_case(free: int) -> None:
    assert fits(free) == LEAST


def test_a_little_more_or_less_memory_moves_nothing() -> None:
    assert len({fits(16 * GIB + i * 50 * MIB) for i in range(-5, 6)}) == 1


def test_groups_of_processes_have_limits(tmp_path: Path) -> None:
    """Of the second version and the first, of this process and around it; copies of files are free."""
    folders = {"": ("max", 9), "a": (500, 100), "a/b": ("max", 1), "memory/old/er": (300, 250)}
    for name, (most, used) in folders.items():
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        old = name.startswith("memory")
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{most}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
        stat = "inactive_file 10\ntotal_inactive_file 40\n" if old else "anon 3\ninactive_file 30\n"
        (folder / "memory.stat").write_text(stat)
    member = tmp_path / "member"
    member.write_text("4:memory:/old/er\n3:cpu:/elsewhere\n0::/a/b\n")
    assert sorted(limits._groups(tmp_path, member)) == [(300, 210), (500, 70)]


def test_some_memory_is_free_here() -> None:
    assert 0 < limits.free_memory() <= limits.machine_memory()


# -- in a run ---------------------------------------------------------------------------------------------


class Large(Logits):
    """A small policy that says it is a large one."""

    def footprint(self) -> Footprint | None:
        return SMOLLM


GIVEN = {"learns": PolicyGradient, "large": Large}


def pipeline(**train: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": "large",
        "rewards": ["token-sum"],
        "algorithm": "learns",
        "train": {"iterations": 2, "prompts": 2, **train},
        "generation": {"samples": 2, "max_new_tokens": 3},
    }


def test_a_run_keeps_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has no checkpoint yet: other micro-batches would be other bits."""
    monkeypatch.setattr(workspace, "free_on", lambda device: 16 * GIB)
    begun = session(tmp_path, pipeline(), GIVEN, name="run")
    begun.dir.close()
    assert begun.budget == 2048
    assert json.loads(begun.dir.lock.read_text())["budgets"] == {workspace.TOKENS: 2048}
    monkeypatch.setattr(workspace, "free_on", lambda device: 40 * GIB)
    again = loop.resume(begun.dir.path, registry(GIVEN))
    assert again.budget == 2048
    again.run()
    assert again.phase.engine.budget == 2048
    assert session(tmp_path, pipeline(), GIVEN, name="other").budget == 8192


def test_layers_that_are_computed_again_leave_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all phases that learn say so, 256 KiB a token and not 2 MiB."""
    monkeypatch.setattr(workspace, "free_on", lambda device: 16 * GIB)
    again = SMOLLM._replace(again=MIB // 4)
    monkeypatch.setattr(Large, "footprint", lambda self: again)
    known = registry(GIVEN)

    def tokens(**train: Any) -> int:
        loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline(**train)))
        space = workspace.Workspace(loaded, known, NoDisplay())
        return int(space.fit({})[workspace.TOKENS])

    assert (tokens(), tokens(recompute=True)) == (2048, 16384)


def test_what_is_said_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "free_on", lambda device: 16 * GIB)
    done = session(tmp_path, pipeline(budget=77), GIVEN, name="run")
    done.run()
    assert done.phase.engine.budget == 77


@pytest.mark.parametrize("train", ({}, {"budget": 300}))
def test_check_says_it(train: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "free_on", lambda device: 16 * GIB)
    monkeypatch.setattr("rlalign.running.checked.free_on", lambda device: 16 * GIB)
    known = registry(GIVEN)
    said = check(load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline(**train))), known)
    if train:
        assert "  micro-batches of 300 padded tokens (`train.budget`)\n" in said
    else:
        why = "about 2 MiB each while it learns, and 16 GiB of memory are free now"
        assert f"  micro-batches of 2,048 padded tokens: {why}\n" in said
