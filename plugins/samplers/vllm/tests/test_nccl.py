"""Runs whose weights go over NCCL, which files stand for: what travels, in which order, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import ConfigError, RLAlignError, Sampler
from rlalign.testing import run, session
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign.testing.text import Bytes
from rlalign_plugin_vllm import VLLM, nccl, sending
from rlalign_plugin_vllm.sending import Sent, own_gpus, packed

from .groups import FileGroup
from .standin import StandIn
from .test_vllm import Gain, pipeline, servers, urls

FIXTURE = Path(__file__).with_name("protocol.json")
Logs = dict[str, list[dict[str, Any]]]


class Tabled(Bytes):
    """One that says what it saves: its table in three, the middle one in float64, which begins at no multiple of 8."""

    def saved_tensors(self) -> dict[str, tuple[Tensor, torch.dtype]]:
        found = self.table.detach().split([101, 99, 57])
        dtypes = (torch.float32, torch.float64, torch.float32)
        return {f"table.{i}": (x, dtype) for i, (x, dtype) in enumerate(zip(found, dtypes, strict=True))}


class Lora(Tabled):
    """Its copies share its network, as those of adapters do."""

    shares = True


COMPONENTS = {"gain": Gain, "tabled": Tabled, "lora": Lora}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files stand for NCCL, and parts are small."""
    FileGroup.made = []
    monkeypatch.setattr(nccl, "missing", lambda *_: None)
    monkeypatch.setattr(nccl, "Group", FileGroup)
    monkeypatch.setattr(sending, "PART", 150_000)
    yield
    for group in FileGroup.made:
        shutil.rmtree(group.folder)


def sent(made: list[StandIn], **options: Any) -> dict[str, Any]:
    return pipeline({**urls(made), "weights": "nccl", **options}, policy={"tabled": {"seed": 1}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """The logs of a run whose weights are files."""
    with servers(1) as made:
        _, done = run(tmp_path_factory.mktemp("whole"), pipeline(urls(made)), COMPONENTS)
    return logged(done.dir.path)


def asked(server: StandIn) -> list[str]:
    """What it was asked, without responses."""
    return [path for path in server.paths if path != "/v1/completions"]


INIT = ["/get_world_size", "/init_weight_transfer_engine"]
UPDATE = [
    "/pause?mode=abort",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
]
LOOK = ["/health", "/weight_info"]
FIRST = [*LOOK, *INIT, *UPDATE]


# -- what travels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_is_that_of_files_and_each_server_is_met_once(count: int, whole: Logs, tmp_path: Path) -> None:
    with servers(count) as made:
        _, done = run(tmp_path, sent(made), COMPONENTS)
        for server in made:
            assert asked(server) == [
                *FIRST,
                *LOOK,
                *UPDATE,
                *LOOK,
                *UPDATE,
                "/shutdown_weight_transfer_engine",
            ]
            assert {name: x.dtype for name, x in server.received.items()} == {
                "table.0": torch.float32,
                "table.1": torch.float64,
                "table.2": torch.float32,
            }
    found = logged(done.dir.path)
    assert found == whole
    assert [row["sampler/version"] for row in found["metrics.jsonl"]] == [0, 1, 2]
    assert all(row["sampler/gap"] < 1e-5 for row in found["metrics.jsonl"])
    assert len(FileGroup.made) == count and all(group.aborted for group in FileGroup.made)
    assert {(group.count, group.sent) for group in FileGroup.made} == {(3, 2 * 3)}


def test_what_travels_is_what_was_recorded(tmp_path: Path) -> None:
    """A change of it shows here; the fixture says where vLLM's endpoints were read."""
    with servers(1) as made:
        said = sent(made, at_once=1)
        said["train"]["iterations"], said["generation"]["samples"] = 2, 1
        run(tmp_path, said, COMPONENTS)
        recorded = [[method, path, shape(body)] for method, path, body in made[0].said]
    kept = json.loads(FIXTURE.read_text())
    assert recorded == kept["requests"], json.dumps(recorded)


def shape(body: Any, key: str = "") -> Any:
    """A body, with the kinds of what is otherwise in every run."""
    if key in ("seed", "prompt", "weight_version", "nccl_unique_id_b64"):
        return type(body).__name__
    return {name: shape(x, name) for name, x in body.items()} if isinstance(body, dict) else body


@pytest.mark.parametrize("most", [1, 11, 12, 100])
def test_parts_end_where_vllm_s_do(most: int) -> None:
    """With the tensor that brings a part above the size: the other side cuts what comes by that rule."""
    tensors = [torch.arange(n, dtype=torch.int32) for n in (1, 2, 3, 4)]
    parts = [len(part) for part in packed([(x, x.dtype) for x in tensors], most)]
    assert parts == {1: [4, 8, 12, 16], 11: [12, 12, 16], 12: [24, 16], 100: [40]}[most]
    whole = torch.cat(list(packed([(x, x.dtype) for x in tensors], most)))
    assert torch.equal(whole.view(torch.int32), torch.cat(tensors))


def test_a_part_is_bytes_in_the_precision_that_is_said() -> None:
    matrix = torch.randn(3, 4, requires_grad=True)
    (part,) = packed([(matrix.T, torch.bfloat16), (torch.tensor(2.5), torch.float64)], 10**6)
    assert torch.equal(part[:24].view(torch.bfloat16).view(4, 3), matrix.T.bfloat16())
    assert part[24:].clone().view(torch.float64).tolist() == [2.5] and not part.requires_grad


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_server_that_was_started_again_is_met_anew(whole: Logs, tmp_path: Path) -> None:
    """Between two updates, by somebody else: it has neither a group nor the weights."""
    with servers(1) as made:
        started = session(tmp_path, sent(made), COMPONENTS)
        left = iter([True])

        def iteration(*_: Any) -> None:
            if next(left, False):
                made[0].begin_again()

        started.display.iteration = iteration  # type: ignore[method-assign]
        started.run()
        assert asked(made[0]) == [*FIRST, *FIRST, *LOOK, *UPDATE, "/shutdown_weight_transfer_engine"]
        assert len(FileGroup.made) == 2
    assert logged(started.dir.path) == whole


@pytest.mark.parametrize(
    "fault",
    [
        "fails at init_weight_transfer_engine",
        "fails at start_weight_update",
        "fails at update_weights",
        "dies between parts",
        "fails at finish_weight_update",
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_an_update_that_fails_is_made_again_in_a_new_group(
    fault: str, count: int, whole: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlalign_plugin_vllm.sampler._wait", lambda attempt: None)
    with servers(count, **{fault: 1}) as made:
        if fault == "fails at finish_weight_update":  # the update stays open, and vLLM begins no other
            retried = pytest.raises(RLAlignError, match="start_weight_update called while a weight update is")
            if count == 1:
                with retried:
                    session(tmp_path, sent(made), COMPONENTS).run()
                return
        _, done = run(tmp_path, sent(made), COMPONENTS, name="faulty")
        assert made[0].faults[fault] == 0
        assert len(FileGroup.made) >= count + 1 and FileGroup.made[0].aborted | FileGroup.made[1].aborted
    assert logged(done.dir.path) == whole


@pytest.mark.parametrize("fault", ["dies", "hangs", "short", "cut"])
def test_one_that_failed_a_request_and_has_its_weights_is_not_sent_them_again(
    fault: str, whole: Logs, tmp_path: Path
) -> None:
    with servers(1, **{fault: 1}) as made:
        _, done = run(tmp_path, sent(made, seconds=1.0, at_once=4), COMPONENTS)
        assert made[0].faults[fault] == 0 and made[0].paths.count("/update_weights") == 3
        assert made[0].paths.count("/weight_info") > 3
    assert logged(done.dir.path) == whole


@pytest.mark.parametrize("fault", ["old", "half"])
def test_old_weights_and_half_of_them_are_not_learned_from(fault: str, tmp_path: Path) -> None:
    with servers(1) as made:
        started = session(tmp_path, sent(made), COMPONENTS)
        made[0].faults[fault] = 1
        with pytest.raises(RLAlignError, match=r"given the weights of version 0 and samples with others"):
            started.run()
    assert started.models.policy.version == 0


def test_a_server_without_the_backend_says_so(tmp_path: Path) -> None:
    with servers(1) as made:
        made[0].transfer = None
        started = session(tmp_path, sent(made, retries=0), COMPONENTS)
        with pytest.raises(
            RLAlignError, match=r"no server took the weights: .*500.*not configured.*NCCL is 2.29.7"
        ):
            started.run()


def test_what_is_sent_and_what_was_announced_are_compared_by_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers(1) as made:
        monkeypatch.setattr(
            sending, "packed", lambda tensors, most: iter([torch.zeros(8, dtype=torch.uint8)])
        )
        started = session(tmp_path, sent(made, retries=0), COMPONENTS)
        with pytest.raises(RLAlignError, match=r"no server took the weights: .*a part has 8 bytes where"):
            started.run()
    assert FileGroup.made[0].aborted


# -- while the policy learns, and resumed -----------------------------------------------------------------------------


def test_asked_ahead_it_is_as_with_files_and_lost_weights_end_the_run(tmp_path: Path) -> None:
    found = {}
    for way, policy in (("folder", "bytes"), ("nccl", "tabled")):
        with servers(1) as made:
            said = sent(made, ahead=1, weights=way)
            said["policy"] = {policy: {"seed": 1}}
            _, done = run(tmp_path, said, COMPONENTS, name=way)
        found[way] = logged(done.dir.path)
    assert found["nccl"] == found["folder"]
    with servers(1) as made:
        started = session(tmp_path / "lost", sent(made, ahead=1, retries=1, at_once=1), COMPONENTS)

        def fault(name: str) -> bool:
            if name != "dies" or made[0].answered != 15:
                return False
            made[0].begin_again()
            return True

        made[0].fault = fault  # type: ignore[method-assign]
        with pytest.raises(RLAlignError, match=r"it has lost its weights, and the policy has others already"):
            started.run()


def test_stopped_and_resumed_to_the_bit(whole: Logs, tmp_path: Path) -> None:
    with servers(2) as made:
        again = stopped_and_resumed(tmp_path, sent(made, at_once=3), COMPONENTS)
    assert logged(again.dir.path) == whole


@pytest.mark.slow
def test_a_server_that_is_started_dies_and_is_met_anew(
    python: str, whole: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with the first weights, which were written once, and is sent those of now."""
    monkeypatch.setenv("STANDIN_DIES_AT", "15")
    said = sent([], urls=[], python=python, gpus=[[1]], at_once=4)
    _, done = run(tmp_path, said, COMPONENTS)
    assert (tmp_path / "died").exists() and len(FileGroup.made) == 2
    assert logged(done.dir.path) == whole


# -- before the run ---------------------------------------------------------------------------------------------------


def refused(options: dict[str, Any], policy: str, tmp_path: Path) -> str:
    said = pipeline({"urls": ["http://127.0.0.1:1"], "weights": "nccl", **options}, policy={policy: {}})
    with pytest.raises(ConfigError) as error:
        session(tmp_path, said, COMPONENTS)
    return str(error.value)


def test_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"urls": [], "python": "python"}
    assert "weights: nccl: the policy has an adapter" in refused({}, "lora", tmp_path)
    assert "weights: nccl: a Bytes cannot say which tensors it saves" in refused({}, "bytes", tmp_path)
    assert "say the `gpus` of each server, others than the policy's" in refused(ours, "tabled", tmp_path)
    assert "say the `gpus` of each" in refused({**ours, "gpus": [[1], []]}, "tabled", tmp_path)
    assert "GPU 0 is the policy's own" in refused({**ours, "gpus": [[0, 1]]}, "tabled", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Sampler, "device", torch.device("cuda"))  # the core says where the policy will be
    assert "the policy must be on a GPU, and is on `cpu`; say `weights: folder`" in refused(
        {}, "tabled", tmp_path
    )
    told = nccl.missing("no-such-library.so", torch.device("cuda"))
    assert told is not None and told.startswith("NCCL cannot be loaded, which a torch for CUDA brings")


@pytest.mark.parametrize(
    ("device", "shown", "beside", "found"),
    [
        ("cuda", None, 1, {"0"}),
        ("cuda:2", None, 1, {"2"}),
        ("cuda:1", "4,5", 1, {"5"}),
        ("cuda", None, 3, {"0", "1", "2"}),
        ("cuda", "6, 7", 2, {"6", "7"}),
        ("cuda", "GPU-abc", 1, {"GPU-abc"}),
    ],
)
def test_the_gpus_of_the_run_itself(
    device: str, shown: str | None, beside: int, found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert own_gpus(torch.device(device), beside) == found


def test_servers_that_are_started_have_the_backend(tmp_path: Path) -> None:
    way = Sent(VLLM.Config(python="python", gpus=((1,),), weights="nccl", folder=tmp_path))
    policy = Tabled(Tabled.Config())
    assert way.arguments(policy)[-1] == '--weight-transfer-config={"backend": "nccl"}'
    way.close()


# -- NCCL's C interface -----------------------------------------------------------------------------------------------

LIBRARY = r"""
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { char internal[128]; int count, rank, aborted; } *ncclComm_t;
static FILE *out(void) { return fopen(getenv("NCCL_STUB"), "a"); }
int ncclGetVersion(int *v) { *v = 22907; return 0; }
const char *ncclGetErrorString(int e) { return e == 4 ? "invalid argument" : "?"; }
int ncclGetUniqueId(ncclUniqueId *id) { for (int i = 0; i < 128; i++) id->internal[i] = i; return 0; }
int ncclCommInitRank(ncclComm_t *comm, int count, ncclUniqueId id, int rank) {
  *comm = calloc(1, sizeof **comm);
  memcpy((*comm)->internal, id.internal, 128);
  FILE *f = out(); fprintf(f, "init %d %d %d %d\n", count, rank, id.internal[1], id.internal[127]); fclose(f);
  return 0;
}
int ncclAllReduce(const void *s, void *r, size_t n, int type, int op, ncclComm_t comm, void *stream) {
  if (!comm) return 4;
  FILE *f = out(); fprintf(f, "reduce %d %zu %d %d %ld\n", s == r, n, type, op, (long)stream); fclose(f);
  return 0;
}
int ncclBroadcast(const void *s, void *r, size_t n, int type, int root, ncclComm_t comm, void *stream) {
  if (!comm) return 4;
  FILE *f = out(); fprintf(f, "broadcast %d %zu %d %d %ld", s == r, n, type, root, (long)stream);
  for (size_t i = 0; i < n; i++) fprintf(f, " %d", ((unsigned char *)s)[i]);
  fprintf(f, " %d\n", comm->internal[127]); fclose(f);
  return 0;
}
int ncclCommAbort(ncclComm_t comm) {
  FILE *f = out(); fprintf(f, "abort %d\n", comm->internal[1]); fclose(f);
  return 0;
}
"""
"""By nccl.h's signatures, of which it writes down what comes."""


class Stream:
    """CUDA's, as far as a group asks it."""

    cuda_stream = 7

    def synchronize(self) -> None:
        pass


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_nccl_is_called_as_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "nccl.c").write_text(LIBRARY)
    library = tmp_path / "libnccl.so.2"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nccl.c"], check=True)
    monkeypatch.setenv("NCCL_STUB", str(tmp_path / "calls"))
    for name, stand in (("device", Within), ("stream", Within), ("Stream", Stream)):
        monkeypatch.setattr(torch.cuda, name, stand)
    group = nccl.Group(str(library), torch.device("cpu"))
    assert group.version == "2.29.7" and group.id == bytes(range(128))
    group.join(3)
    group.send(iter([torch.tensor([1, 2, 255], dtype=torch.uint8), torch.tensor([9], dtype=torch.uint8)]))
    group.abort()
    group.abort()
    with pytest.raises(nccl.Failed, match="ncclBroadcast: invalid argument"):
        group.send([torch.zeros(1, dtype=torch.uint8)])
    assert (tmp_path / "calls").read_text().splitlines() == [
        "init 3 0 1 127",
        "reduce 1 1 7 0 7",
        "broadcast 1 3 1 0 7 1 2 255 127",
        "broadcast 1 1 1 0 7 9 127",
        "abort 1",
    ]


class Within:
    """`with torch.cuda.device(…)`, where there is none."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
