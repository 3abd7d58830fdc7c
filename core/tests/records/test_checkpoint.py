"""Checkpoints come back to the bit, and are there whole or not at all."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.errors import CheckpointError, RLAlignError
from rlalign.nested import join
from rlalign.records import checkpoint
from rlalign.records.manifest import checksum_of, damage, fingerprint
from rlalign.records.tensors import STORABLE, load_tensors, save_tensors, split_state

DTYPES = sorted(STORABLE, key=str)


def log(size: int) -> dict[str, Any]:
    return {"size": size, "sha256": "", "every": 4096, "marks": []}


def write(folder: Path, index: int, *, last: int = 2, previous: int | None = None, **changes: Any) -> Path:
    parts: dict[str, Any] = {
        "models": {
            "policy": (index, {"w": torch.full((3, 4), float(index))}),
            "reference": (0, {"w": torch.arange(6.0)}),
        },
        "optimiser": {"state": {0: {"step": index, "exp_avg": torch.ones(2) * index}}, "lr": 0.1},
        "components": {"kl": {"coef": 0.1 + index}},
        "loop": {"iteration": index, "phase": "align"},
        "logs": {"metrics.jsonl": log(100 * index)},
    }
    return checkpoint.write(folder, index, **(parts | changes), last=last, previous=previous)


def equal(one: Any, other: Any) -> bool:
    """The same types, and floats and tensors the same to the bit."""
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and as_bytes(one) == as_bytes(other)
    if isinstance(one, float):
        return isinstance(other, float) and (
            (math.isnan(one) and math.isnan(other)) or one.hex() == other.hex()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return type(one) is type(other) and len(one) == len(other) and all(equal(*pair) for pair in pairs)
    return type(one) is type(other) and bool(one == other)


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# Tensors


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    tensor = (torch.randn(shape, generator=generator) * 50).to(dtype)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(max_size=5).filter(lambda name: name != "__metadata__"), tensors(), max_size=5)
)
def test_any_tensors_come_back(tmp_path_factory, given):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    save_tensors(path, given)
    loaded = load_tensors(path)
    assert loaded.keys() == given.keys()
    assert all(equal(given[name], loaded[name]) for name in given)


def test_shared_tensors_are_written_once_and_stay_shared(tmp_path):
    tied = torch.randn(50, 50)
    given = {
        "embed": tied,
        "head": tied,
        "turned": tied.T,
        "slice": tied[10:20],
        "parameter": torch.nn.Parameter(tied),
    }
    save_tensors(tmp_path / "x", given)
    loaded = load_tensors(tmp_path / "x")
    assert all(equal(given[name].detach(), loaded[name]) for name in given)
    assert loaded["head"] is loaded["embed"] and loaded["parameter"] is loaded["embed"]
    written = tied.numel() * 4
    assert (tmp_path / "x").stat().st_size < 2.5 * written


def test_changing_what_was_loaded_leaves_the_file_alone(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.zeros(9)})
    load_tensors(tmp_path / "x")["a"].add_(1)
    assert torch.equal(load_tensors(tmp_path / "x")["a"], torch.zeros(9))


@pytest.mark.parametrize(
    "unfit",
    [torch.zeros(2, dtype=torch.complex128), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), 3],
)
def test_a_tensor_that_cannot_be_stored_is_named(tmp_path, unfit):
    with pytest.raises(RLAlignError, match="'odd' cannot be stored: it is"):
        save_tensors(tmp_path / "x", {"odd": unfit})


# Nested states

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
states = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(states)
def test_any_state_comes_back(state):
    flat, tree = split_state(state)
    assert equal(state, join(flat, json.loads(json.dumps(tree, allow_nan=False))))


def test_hard_cases_of_a_state_come_back(tmp_path):
    state = {
        0: torch.tensor(1),
        "0": torch.tensor(2),
        "a/b": torch.tensor(3),
        "a": {"b": torch.tensor(4), "tensor": "a"},
        "__metadata__": torch.tensor(5),
        "numbers": (2**53 + 1, -0.0, 0.1, 5e-324, math.inf, -math.inf, True, None),
        "dict": {"dict": {}, "float": "inf"},
    }
    flat, tree = split_state(state)
    save_tensors(tmp_path / "x", flat)
    assert equal(state, join(load_tensors(tmp_path / "x"), json.loads(json.dumps(tree))))


def test_an_optimiser_comes_back():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimiser.step()
    state = optimiser.state_dict()
    assert equal(state, join(*split_state(state)))


@pytest.mark.parametrize("unfit", [{1, 2}, object(), torch.float32, torch.Size([1]), b"x", 1j])
def test_what_a_state_cannot_hold_is_named_with_its_place(unfit):
    with pytest.raises(RLAlignError, match=r"^components/kl/seen/1: .* cannot be part of a checkpoint"):
        split_state({"kl": {"seen": [0, unfit]}}, "components")


def test_a_key_that_a_state_cannot_hold_is_named_with_its_place():
    with pytest.raises(RLAlignError, match=r"^state/kl: the key \(1, 2\) \(tuple\)"):
        split_state({"kl": {(1, 2): 0}})


# Checkpoints


def test_a_commit_point_comes_back(tmp_path):
    path = write(tmp_path, 12)
    assert path == tmp_path / "00000012"
    read = checkpoint.read(tmp_path, 12)
    assert read.index == 12 and read.path == path
    assert {name: version for name, (version, _) in read.models.items()} == {"policy": 12, "reference": 0}
    assert torch.equal(read.models["policy"][1]["w"], torch.full((3, 4), 12.0))
    assert read.optimiser["state"][0]["step"] == 12
    assert read.components == {"kl": {"coef": 12.1}}
    assert read.loop == {"iteration": 12, "phase": "align"}
    assert read.logs == {"metrics.jsonl": log(1200)}


def test_the_last_ones_are_kept_and_leftovers_cleared(tmp_path):
    for name in (".tmp-00000003", ".old-00000001"):
        (tmp_path / name / "models").mkdir(parents=True)
    for index in range(1, 6):
        write(tmp_path, index, previous=index - 1 or None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00000004", "00000005"]
    assert checkpoint.find(tmp_path) == [4, 5]
    assert checkpoint.find(tmp_path / "nothing") == []


def test_an_unchanged_model_is_linked(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2, previous=1)
    one, two = (tmp_path / f"0000000{index}" / "models" for index in (1, 2))
    assert (one / "reference.safetensors").samefile(two / "reference.safetensors")
    assert not (one / "policy.safetensors").samefile(two / "policy.safetensors")
    shutil.rmtree(tmp_path / "00000001")
    assert torch.equal(checkpoint.read(tmp_path, 2).models["reference"][1]["w"], torch.arange(6.0))


def inodes(path: Path) -> dict[str, int]:
    return {file.stem: file.stat().st_ino for file in path.glob("models/*.safetensors")}


def same_weights(value: float) -> dict[str, Tensor]:
    """Equal in bytes, and nothing in common in memory."""
    return {"a.w": torch.full((3, 4), value), "b": torch.arange(5.0)}


def test_equal_models_are_stored_once(tmp_path):
    """Within a checkpoint, and where the version rises but the bytes are those of any model before."""
    models = {name: (0, same_weights(1.0)) for name in ("policy", "reference", "start.policy")}
    one = inodes(write(tmp_path, 1, models=models))
    assert one.keys() == models.keys() and len(set(one.values())) == 1
    models["policy"] = (1, same_weights(2.0))
    two = inodes(write(tmp_path, 2, models=models, previous=1))
    assert two["reference"] == two["start.policy"] == one["policy"] != two["policy"]
    models |= {"reference": (1, same_weights(2.0)), "policy": (2, same_weights(3.0))}
    three = inodes(write(tmp_path, 3, models=models, previous=2))
    assert three["reference"] == two["policy"] and three["start.policy"] == one["policy"]
    models |= {"reference": (2, same_weights(2.0))}
    four = inodes(write(tmp_path, 4, models=models, previous=3))
    assert four["reference"] == three["reference"]
    read = checkpoint.read(tmp_path, 4)
    assert {name: weights["a.w"][0, 0].item() for name, (_, weights) in read.models.items()} == {
        "policy": 3.0,
        "reference": 2.0,
        "start.policy": 1.0,
    }
    assert checkpoint.find(tmp_path) == [3, 4] and damage(tmp_path / "00000003") is None


@pytest.mark.parametrize("harm", ["gone", "cut", "no links"])
def test_an_equal_model_is_a_file_of_its_own_where_it_cannot_be_linked(tmp_path, monkeypatch, harm):
    write(tmp_path, 1, models={"policy": (0, same_weights(1.0))})
    file = tmp_path / "00000001/models/policy.safetensors"
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        os.truncate(file, 10)
    else:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links here")))
    write(tmp_path, 2, models={"policy": (1, same_weights(1.0))}, previous=1)
    assert damage(tmp_path / "00000002") is None
    assert not (file.exists() and file.samefile(tmp_path / "00000002/models/policy.safetensors"))


def test_a_model_is_written_again_where_the_earlier_file_is_gone(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "00000001/models/reference.safetensors").unlink()
    write(tmp_path, 2, previous=1)
    assert torch.equal(checkpoint.read(tmp_path, 2).models["reference"][1]["w"], torch.arange(6.0))


def test_an_unchanged_model_needs_no_weights(tmp_path, monkeypatch):
    """It is neither written nor read: its file is linked, and named where that is gone."""
    write(tmp_path, 1)
    versions = {"policy": 2, "reference": 0, "value": 0}
    assert checkpoint.unchanged(tmp_path, 1, versions) == {"reference"}
    assert checkpoint.unchanged(tmp_path, None, versions) == set()
    saved, read = [], []
    monkeypatch.setattr(
        checkpoint, "save_tensors", lambda path, x: (saved.append(path.name), save_tensors(path, x))
    )
    monkeypatch.setattr(
        checkpoint, "fingerprint", lambda path: (read.append(path.name), fingerprint(path))[1]
    )
    models = {"policy": (2, {"w": torch.ones(3)}), "reference": (0, None)}
    two = write(tmp_path, 2, previous=1, models=models)
    assert "reference.safetensors" not in saved + read and saved[0] == read[0] == "policy.safetensors"
    assert (two / "models/reference.safetensors").samefile(tmp_path / "00000001/models/reference.safetensors")
    assert torch.equal(checkpoint.read(tmp_path, 2).models["reference"][1]["w"], torch.arange(6.0))
    (two / "models/reference.safetensors").unlink()
    assert checkpoint.unchanged(tmp_path, 2, versions) == {"policy"}
    with pytest.raises(RLAlignError, match=r"models/reference\.safetensors of the one before is gone"):
        write(tmp_path, 3, previous=2, models=models)
    assert checkpoint.find(tmp_path) == [1, 2] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("at", range(4))
def test_a_checkpoint_that_is_given_up_leaves_nothing(tmp_path, at):
    """Before any of its files, or before it gets its name."""
    write(tmp_path, 1)
    asked = iter(range(99))

    def go_on() -> None:
        if next(asked) == at:
            raise RLAlignError("given up")

    with pytest.raises(RLAlignError, match="given up"):
        write(tmp_path, 2, previous=1, go_on=go_on)
    assert os.listdir(tmp_path) == ["00000001"] and damage(tmp_path / "00000001") is None


def test_commit_points_of_a_course_that_was_left_are_deleted(tmp_path):
    for index in (1, 2, 3):
        write(tmp_path, index, last=3)
    write(tmp_path, 2, previous=1, last=3, loop="again")
    assert checkpoint.find(tmp_path) == [1, 2]
    assert checkpoint.read(tmp_path, 2).loop == "again"


FILES = ["models/policy.safetensors", "optimiser.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["remove", "truncate", "edit"])
def test_damage_is_named_with_the_way_out(tmp_path, name, harm):
    folder = tmp_path / "runs/ppo/checkpoints"
    folder.mkdir(parents=True)
    for index in (1, 2):
        write(folder, index)
    file = folder / "00000002" / name
    if harm == "remove":
        file.unlink()
    elif harm == "truncate":
        os.truncate(file, file.stat().st_size - 7)
    else:
        file.write_bytes(file.read_bytes().replace(b"2", b"3", 1))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(folder, 2)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert {"remove": "missing", "truncate": "cut short", "edit": "edited"}[harm] in text
    assert "checkpoint 00000001 before it is whole" in text
    assert f"`rlalign run --resume {folder.parent} --previous`" in text
    assert checkpoint.whole_before(folder, 2) == 1


def test_damage_without_a_way_out_says_so(tmp_path):
    for index in (1, 2):
        write(tmp_path, index)
        (tmp_path / f"0000000{index}/state.json").unlink()
    with pytest.raises(CheckpointError, match="No earlier checkpoint is whole"):
        checkpoint.read(tmp_path, 2)


def test_a_commit_point_of_another_format_is_refused(tmp_path):
    file = write(tmp_path, 1) / "manifest.json"
    manifest = json.loads(file.read_text()) | {"format": 9}
    file.write_text(json.dumps(manifest | {"checksum": checksum_of(manifest)}))
    with pytest.raises(CheckpointError, match="has format 9"):
        checkpoint.read(tmp_path, 1)


def test_a_state_that_cannot_be_written_touches_nothing(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(RLAlignError, match="components/kl"):
        write(tmp_path, 2, previous=1, components={"kl": object()})
    assert os.listdir(tmp_path) == ["00000001"]


@pytest.mark.parametrize("large", ["models", "optimiser", "loop"])
def test_a_full_disk_leaves_the_one_before(tmp_path, large):
    """A limit on the size of files stands in for the disk: the write fails half-way in the same place."""
    write(tmp_path, 1)
    states = {
        "models": {"policy": (2, {"w": torch.ones(50_000)})},
        "optimiser": torch.ones(50_000),
        "loop": "x" * 200_000,
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(RLAlignError, match=r"could not be written: .*too large.*00000001, is intact"):
            write(tmp_path, 2, previous=1, **{large: states[large]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["00000001"]
    assert checkpoint.read(tmp_path, 1).index == 1


KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from rlalign.records import checkpoint
from rlalign.records.manifest import damage

def log(size):
    return {"size": size, "sha256": "", "every": 4096, "marks": []}

def parts(i):
    weights = {f"w{n}": torch.full((20_000,), float(i)) for n in range(5)}
    frozen = {"w": torch.zeros(50_000)}
    models = {"policy": (i, weights), "reference": (0, frozen)}
    optimiser = [torch.full((9,), float(i))]
    return dict(models=models, optimiser=optimiser, components={}, loop=i, logs={"metrics.jsonl": log(i)}, last=2)

folder, random_ = Path(sys.argv[1]), random.Random(0)
report, done = os.pipe()
newest, torn = None, 0
for kill in range(12):
    pid = os.fork()
    if pid == 0:
        previous = newest
        while True:
            i = (previous or 0) + 1
            checkpoint.write(folder, i, previous=previous, **parts(i))
            os.write(done, i.to_bytes(4, "little"))
            previous = i
    start = int.from_bytes(os.read(report, 4), "little")
    time.sleep(random_.uniform(0, 0.06))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.set_blocking(report, False)
    committed = start
    try:
        while chunk := os.read(report, 4):
            committed = int.from_bytes(chunk, "little")
    except BlockingIOError:
        pass
    os.set_blocking(report, True)
    torn += any(entry.name.startswith(".") for entry in folder.iterdir())
    newest = checkpoint.find(folder)[-1]
    assert newest in (committed, committed + 1), (newest, committed)
    for index in checkpoint.find(folder):
        assert damage(folder / f"{index:08d}") is None
    read = checkpoint.read(folder, newest)
    assert read.loop == newest == read.logs["metrics.jsonl"]["size"] == read.models["policy"][0]
    assert all((w == newest).all() for w in read.models["policy"][1].values())
    assert (read.models["reference"][1]["w"] == 0).all()
assert torn > 0, "no writer was killed half-way: this tested nothing"
print(torn, newest, "whole")
"""


def test_a_writer_killed_at_any_instant_leaves_whole_commit_points(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "checkpoints"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.endswith("whole\n"), done.stderr
