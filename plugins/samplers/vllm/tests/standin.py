"""What a vLLM server says and does, over the core's own sampling loop: a stand-in, and the faults it can have.

As a program it takes a vLLM server's arguments. Its models are `bytes` in a folder.
"""

from __future__ import annotations

import json
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


class Given:
    """A policy whose prompts are tokens that were handed in."""

    horizon = at_once = None

    def __init__(self, policy: Bytes, prompt: Tensor, ends: Sequence[int]) -> None:
        self.prompt, self.ends = prompt, tuple(ends)
        self.decoder, self.text, self.row_bytes = policy.decoder, policy.text, policy.row_bytes

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return (self.prompt,)


class StandIn(ThreadingHTTPServer):
    """A server in this process; each fault counts how often it is still to happen."""

    daemon_threads = True

    def __init__(self, folder: Path | None, port: int = 0, longest_list: int = 64) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.longest_list = longest_list
        self.faults: dict[str, int] = {}
        self.answered = 0
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.loaded: dict[str, Any] = {}
        self.keys: set[str | None] = set()
        self.elsewhere = ""
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.policy = Bytes(Bytes.Config())
        self.policy.setup()
        if folder is not None:
            self.load(folder)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

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
        self.server.paths.append(self.path)
        self.say(503 if self.server.fault("unhealthy") else 200, b"")

    def do_POST(self) -> None:
        server = self.server
        server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            self.complete(body)
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

    def complete(self, body: dict[str, Any]) -> None:
        server = self.server
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
    StandIn(Path(said["model"]), int(said["port"]), int(said["max-logprobs"])).serve_forever()
