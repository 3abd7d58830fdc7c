"""What a vLLM server says and does, over the core's own sampling loop: a stand-in, and the faults it can have.

As a program it takes a vLLM server's arguments. Its models are `bytes` in a folder.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlalign import Example, Rollout, Sampling, log_distribution, sample
from rlalign.testing.text import Bytes

REMOVED = -9999.0
GPUS = 2
"""Of a server."""
PHASES = (
    "init_weight_transfer_engine",
    "start_weight_update",
    "update_weights",
    "finish_weight_update",
    "shutdown_weight_transfer_engine",
)
INIT: dict[str, Any] = {
    "master_address": None,
    "master_port": None,
    "rank_offset": ...,
    "world_size": ...,
    "nccl_unique_id_b64": None,
    "packed": False,
    "packed_buffer_size_bytes": 2**30,
    "packed_num_buffers": 2,
}
"""The fields of vLLM's `NCCLWeightTransferInitInfo`, and what they are where nobody says."""


class Given:
    """A policy whose prompts are tokens that were handed in."""

    horizon = at_once = None

    def __init__(self, policy: Bytes, prompt: Tensor, ends: Sequence[int]) -> None:
        self.prompt, self.ends = prompt, tuple(ends)
        self.decoder, self.text, self.row_bytes = policy.decoder, policy.text, policy.row_bytes

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return (self.prompt,)


class Gone(Exception):
    """The server that was asked is no more."""


class Transfer:
    """A server's side of a weight transfer as vLLM 0.33.0 has it, over files where that has NCCL.

    The id of a group is a folder: `joined` says that the sender is there, `part-0`, `part-1`, … are what it sends, and
    `aborted` that it has given up.
    """

    def __init__(self, server: StandIn) -> None:
        self.server = server
        self.folder: Path | None = None
        self.buffer = self.part = 0
        self.active = False

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        said = {**INIT, **init_info}
        if wrong := set(said) - set(INIT) | {name for name, x in said.items() if x is ...}:
            raise RuntimeError(f"Invalid init_info for NCCLWeightTransferEngine: {sorted(wrong)}")
        if not said["nccl_unique_id_b64"] or said["master_address"] or said["master_port"]:
            raise RuntimeError("need nccl_unique_id_b64, or both master_address and master_port")
        found = base64.b64decode(said["nccl_unique_id_b64"], validate=True)
        if len(found) != 128 or said["world_size"] != said["rank_offset"] + GPUS or not said["packed"]:
            raise RuntimeError("nccl_unique_id_b64 must decode to 128 bytes")
        self.folder, self.part = Path(found.rstrip(b"\0").decode()), 0
        self.buffer = said["packed_buffer_size_bytes"]
        self._wait_for("joined")
        (self.folder / "all").touch()

    def shutdown_weight_transfer_engine(self) -> None:
        if self.active:
            raise RuntimeError("Cannot release a trainer connection during a weight update")
        self.folder = None

    def start_weight_update(self) -> None:
        if self.active:
            raise RuntimeError("start_weight_update called while a weight update is already active.")
        self.active = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if not self.active:
            raise RuntimeError("start_weight_update must be called before update_weights.")
        try:
            self._update(**update_info)
        except BaseException:
            self.active = False
            raise

    def _update(self, names: list[str], dtype_names: list[str], shapes: list[list[int]]) -> None:
        if self.folder is None:
            raise RuntimeError("NCCL weight transfer not initialized. Call init_transfer_engine() first.")
        if not len(names) == len(dtype_names) == len(shapes):
            raise RuntimeError("`shapes` should be of the same size as `names`")
        got: dict[str, Tensor] = {}
        part: list[tuple[str, torch.dtype, list[int]]] = []
        for place, (name, dtype_name, shape) in enumerate(zip(names, dtype_names, shapes, strict=True)):
            part.append((name, getattr(torch, dtype_name), shape))
            sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in part]
            if sum(sizes) > self.buffer or place == len(names) - 1:
                flat = self._received(sum(sizes))
                for (key, dtype, wide), piece in zip(part, flat.split(sizes), strict=True):
                    got[key] = piece.view(dtype).view(wide)  # it must be aligned, as there
                part = []
            if self.server.fault("dies between parts"):
                raise Gone
            if self.server.fault("fails at update_weights"):
                raise RuntimeError("CUDA out of memory")
        self.server.received = got
        if self.server.fault("old"):
            return
        rows = torch.cat([got[name] for name in sorted(got) if name.startswith("table.")]).float()
        some = 100 if self.server.fault("half") else None
        with torch.no_grad():
            self.server.policy.table[:some] = rows[:some]

    def _received(self, size: int) -> Tensor:
        data = bytearray(self._wait_for(f"part-{self.part}").read_bytes())
        self.part += 1
        if len(data) != size:
            raise RuntimeError(f"a part has {len(data)} bytes where {size} were waited for")
        return torch.frombuffer(data, dtype=torch.uint8)

    def _wait_for(self, name: str) -> Path:
        assert self.folder is not None
        until = time.monotonic() + 30
        while not (path := self.folder / name).exists():
            if (self.folder / "aborted").exists() or time.monotonic() > until:
                raise RuntimeError("NCCL error: remote process exited or there was a network error")
            time.sleep(0.002)
        return path

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        if not self.active:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update.")
        self.active = False
        if weight_version is not None:
            self.server.version = weight_version


class StandIn(ThreadingHTTPServer):
    """A server in this process; each fault counts how often it is still to happen."""

    daemon_threads = True

    def __init__(
        self, folder: Path | None, port: int = 0, longest_list: int = 64, *, transfers: bool = True
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.longest_list = longest_list
        self.faults: dict[str, int] = {}
        self.answered = 0
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.said: list[tuple[str, str, Any]] = []
        self.loaded: dict[str, Any] = {}
        self.transfer: Transfer | None = Transfer(self) if transfers else None
        self.received: dict[str, Tensor] = {}
        self.version = "default"
        self.paused = False
        self.keys: set[str | None] = set()
        self.elsewhere = ""
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.policy = Bytes(Bytes.Config())
        self.policy.setup()
        if folder is not None:
            self.load(folder)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def begin_again(self) -> None:
        """Somebody has started it again: it knows of nothing, and has the weights that it began with."""
        self.transfer = self.transfer and Transfer(self)
        self.version, self.paused, self.received = "default", False, {}
        self.policy.setup()

    def handle_error(self, *_: Any) -> None:
        """Nobody is waiting any more."""

    def fault(self, name: str) -> bool:
        with self.lock:
            left = self.faults.get(name, 0)
            self.faults[name] = max(0, left - 1)
            return left > 0

    def load(self, folder: Path, rows: int | None = None) -> None:
        """New weights, or as many rows of them as arrive."""
        with torch.no_grad():
            self.policy.table[:rows] = load_file(folder / "model.safetensors")["table"][:rows]

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        greedy = body["temperature"] == 0
        how = Sampling(
            temperature=1.0 if greedy else body["temperature"],
            greedy=greedy,
            top_p=body["top_p"],
            top_k=body["top_k"],
            min_p=body["min_p"],
            min_new_tokens=body["min_tokens"],
            max_new_tokens=body["max_tokens"],
            stop=tuple(body["stop"]),
        )
        uniforms = torch.rand(1, 1, how.max_new_tokens, generator=torch.Generator().manual_seed(body["seed"]))
        given = Given(self.policy, torch.tensor(body["prompt"]), body["stop_token_ids"])
        with self.lock:
            rollout = sample(given, [Example("asked", "")], how, uniforms)
            top = self._listed(rollout, given, body["logprobs"])
        length = int(rollout.length_N[0])
        logprobs = {
            "token_logprobs": rollout.logprobs_NT[0, :length].tolist(),
            "top_logprobs": top if body["logprobs"] else None,
        }
        reason = "stop" if bool(rollout.finished_N[0]) else "length"
        tokens = rollout.actions_NT[0, :length].tolist()
        return {"index": 0, "token_ids": tokens, "logprobs": logprobs, "finish_reason": reason}

    @torch.no_grad()
    def _listed(self, rollout: Rollout, given: Given, listed: int) -> list[dict[str, float]]:
        """Of each step the most probable tokens, and the chosen one, under what was sampled from."""
        logits_MV = self.policy.head(self.policy.features(rollout))
        log_MV = log_distribution(logits_MV, rollout, rollout.chosen, given.ends).clamp_min(REMOVED)
        rows = []
        for log_V, action in zip(log_MV, rollout.actions_NT[0].tolist(), strict=False):
            places = dict.fromkeys([action, *log_V.topk(listed).indices.tolist()])
            rows.append({f"token_id:{token}": float(log_V[token]) for token in places})
        return rows


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.paths.append(self.path)
        server.said.append(("GET", self.path, None))
        if self.path == "/weight_info":
            self.tell(weight_version=server.version)
        elif self.path == "/get_world_size":
            self.tell(world_size=GPUS)
        else:
            self.say(503 if server.fault("unhealthy") else 200, b"")

    def do_POST(self) -> None:
        server = self.server
        server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.said.append(("POST", self.path, body))
        if self.path == "/v1/completions":
            self.complete(body)
        elif self.path.partition("?")[0] in ("/pause", "/resume"):
            server.paused = self.path != "/resume"
            self.tell(status="paused" if server.paused else "resumed")
        elif (phase := self.path[1:]) in PHASES:
            self.weights(phase, body)
        elif self.path in ("/collective_rpc", "/v1/load_lora_adapter"):
            folder = Path(body["kwargs"]["weights_path"] if "kwargs" in body else body.pop("lora_path"))
            server.loaded = body
            if server.fault("half"):
                server.load(folder, rows=100)
            elif not server.fault("old"):
                server.load(folder)
            self.say(200, b'{"results": [null]}')
        else:
            self.say(200 if self.path == "/reset_prefix_cache" else 404, b"")

    def weights(self, phase: str, body: dict[str, Any]) -> None:
        """A phase of the transfer; what its GPUs raise is an answer 500."""
        transfer = self.server.transfer
        try:
            if transfer is None:
                raise RuntimeError("Weight transfer not configured. Please set weight_transfer_config.")
            if phase != "update_weights" and self.server.fault(f"fails at {phase}"):
                raise RuntimeError("CUDA out of memory")
            getattr(transfer, phase)(**body)
        except Gone:
            return self.server.begin_again()  # the connection is closed without a word
        except RuntimeError as error:
            said = {"message": str(error), "type": "InternalServerError", "param": None, "code": 500}
            return self.say(500, json.dumps({"error": said}).encode())
        self.tell(message="done")

    def tell(self, **said: Any) -> None:
        self.say(200, json.dumps(said).encode())

    def complete(self, body: dict[str, Any]) -> None:
        server = self.server
        if server.paused:
            return self.say(
                503, b'{"error": {"message": "Generation is paused. Please retry after it resumes."}}'
            )
        server.answered += 1
        server.asked.append(body)
        if body["logprobs"] > server.longest_list:
            return self.say(
                400, b'{"error": {"message": "Requested sample logprobs greater than max allowed"}}'
            )
        if str(server.answered) == os.environ.get("STANDIN_DIES_AT") and not Path("died").exists():
            Path("died").touch()
            os._exit(1)
        server.keys.add(self.headers.get("Authorization"))
        if server.fault("moves"):
            self.send_response(302)
            self.send_header("Location", f"{server.elsewhere}{self.path}")
            return self.end_headers()
        if server.fault("dies"):
            return None  # the connection is closed without a word
        if server.fault("hangs"):
            server.released.wait(30)
            return None
        if server.fault("late"):
            time.sleep(1.5)
        choice = server.completion(body)
        if server.fault("short"):
            choice["logprobs"]["token_logprobs"].pop()
        choices = [choice] * 2 if server.fault("twice") else [choice]
        said = json.dumps({"model": body["model"], "choices": choices}).encode()
        return self.say(200, said[:40] if server.fault("cut") else said)

    def say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    said = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    needed = {"host", "logprobs-mode", "generation-config", "served-model-name"}
    assert needed <= set(said) and "--return-tokens-as-token-ids" in sys.argv, sys.argv
    assert os.environ["VLLM_SERVER_DEV_MODE"] == "1" and "PYTHONPATH" in os.environ
    transfers = json.loads(said.get("weight-transfer-config", "{}")) == {"backend": "nccl"}
    longest = int(said["max-logprobs"])
    StandIn(Path(said["model"]), int(said["port"]), longest, transfers=transfers).serve_forever()
