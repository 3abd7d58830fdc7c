"""`vllm`: the policy's responses from servers of vLLM, which run already or are started here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import Field, model_validator

from rlalign import Example, Policy, Response, RLAlignError, Rollout, Sampler, Sampling, sampled_rollout
from rlalign.interface.policy import Model
from rlalign.progress import report
from rlalign_plugin_vllm import completions
from rlalign_plugin_vllm.sending import Sent
from rlalign_plugin_vllm.servers import Failed, Server, Started
from rlalign_plugin_vllm.threads import each
from rlalign_plugin_vllm.weights import NAME, AdapterFiles, Files

WAYS = {"folder": Files, "adapter": AdapterFiles, "nccl": Sent}
"""How servers come by the weights, as `weights` says."""
LEAST_TEMPERATURE = 0.01
"""A server takes lower ones for this."""
LONGEST_WAIT = 30.0
"""Seconds between two tries at most."""


class VLLM(Sampler):
    """vLLM servers in an environment of their own, which sample with the policy's weights of now."""

    class Config(Sampler.Config):
        """Options of `vllm`."""

        urls: tuple[str, ...] = Field(
            (),
            description="servers that run, `http://host:port`; they serve a model of this kind as `policy`",
        )
        python: str | None = Field(
            None, description="instead of `urls`: the Python that has vLLM; it starts servers on this machine"
        )
        gpus: tuple[tuple[int, ...], ...] = Field(
            ((),),
            min_length=1,
            description="with `python`: the GPUs of each server: `[[0, 1], [2, 3]]` starts two; none named: one "
            "server, on the first",
        )
        arguments: tuple[str, ...] = Field(
            (), description="with `python`: more arguments of each server, such as `--dtype`, `bfloat16`"
        )
        weights: Literal["folder", "adapter", "nccl"] = Field(
            "folder",
            description="what servers take after each step: the whole model as files, under the policy's `lora` its "
            "adapter's files, or the whole model from GPU to GPU",
        )
        folder: Path | None = Field(
            None, description="where weights are written for them to read; null: in this machine's memory"
        )
        nccl: str = Field(
            "libnccl.so.2",
            description="with `weights: nccl`: the library that sends, of the version that servers have: this torch's, "
            "or the path of another",
        )
        exact: bool = Field(
            False,
            description="servers give equal tokens to equal seeds however requests are batched (VLLM_BATCH_INVARIANT, "
            "which `python` sets): then a resumed run repeats its responses",
        )
        listed: int = Field(
            64,
            gt=0,
            le=100_000,
            description="most probable tokens asked for at each step where top-k, top-p or min-p remove some: they "
            "must leave fewer than that",
        )
        at_once: int = Field(128, gt=0, le=10_000, description="requests that a server has at one time")
        seconds: float = Field(600.0, gt=0, le=1e6, description="how long a request may take")
        start_seconds: float = Field(
            900.0, gt=0, le=1e6, description="how long a server may take to be there"
        )
        retries: int = Field(
            2,
            ge=0,
            le=100,
            description="how often a request that failed is asked again, of another server if there is one",
        )

        @model_validator(mode="after")
        def _one_of_both(self) -> VLLM.Config:
            if bool(self.urls) == bool(self.python):
                raise ValueError("say `urls` of servers that run, or the `python` that starts some")
            if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
                raise ValueError(f"urls: expected `http://host:port`, found {wrong[0]!r}")
            if self.weights == "nccl" and self.python is not None and not all(self.gpus):
                raise ValueError("weights: nccl: say the `gpus` of each server, others than the policy's")
            return self

    config: Config
    concurrent = True
    paper = (
        "Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, 2023"
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.widths = [max(1, len(gpus)) for gpus in config.gpus] if config.python else [1] * len(config.urls)
        self._servers: list[Server] = []
        self._way = WAYS[config.weights](config)
        self._answers: SimpleQueue[tuple[int, Response] | BaseException] = SimpleQueue()
        """Responses as they come, or what has the sampling end."""
        self._over = threading.Event()
        self.repeats = (
            "a resumed run repeats its responses: servers give equal tokens to equal seeds (`exact`)"
            if config.exact
            else "a resumed run repeats what its checkpoint holds; responses after it may be other tokens, as a "
            "server's rounding depends on which requests share a batch"
        )

    def lacks(self, how: Sampling) -> Iterator[str]:
        if how.beams > 1:
            yield f"beams: `{self.name}` has no beam search"
        if how.greedy and how.narrows:
            yield f"greedy: `{self.name}` removes no tokens where it is greedy; leave out top_k, top_p and min_p"
        if not how.greedy and how.temperature < LEAST_TEMPERATURE:
            yield f"temperature: `{self.name}` takes lower ones than {LEAST_TEMPERATURE:g} for that; say `greedy: true`"
        if how.min_p > 0 and how.top_p < 1:
            yield f"min_p: `{self.name}` removes by min_p before top_p, and not after it; say one of the two"
        if how.top_k >= self.config.listed:
            yield f"top_k: `{self.name}` has servers list {self.config.listed} tokens; raise its `listed` above top_k"

    def open(self, policy: Policy) -> None:
        if getattr(policy, "kind", "causal") != "causal":
            raise RLAlignError(
                f"sampler `{self.name}`: servers take decoder-only models, and the policy is none"
            )
        if type(policy).save is Model.save:
            raise RLAlignError(
                f"sampler `{self.name}`: a {type(policy).__name__} cannot be saved for servers to read"
            )
        if wrong := self._way.refusal(policy, self.device, self.beside):
            raise RLAlignError(f"sampler `{self.name}`: weights: {self.config.weights}: {wrong}")

    # -- weights ----------------------------------------------------------------------------------------------

    def take(self, policy: Policy) -> None:
        self._way.ready(policy, self.device)
        if not self._servers:
            self._servers = self._made(policy)
        faults = [fault for _, fault in each(self._offer, self._servers, len(self._servers), SimpleQueue())]
        if all(faults):
            raise RLAlignError(
                f"sampler `{self.name}`: no server took the weights: {'; '.join(filter(None, faults))}"
            )
        if self.config.ahead:
            self._way.moves_on()

    def _made(self, policy: Policy) -> list[Server]:
        config, way = self.config, self._way
        if config.python is None:
            return [Server(url) for url in config.urls]
        outside = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # of this environment, not of theirs
        inherited = {name: x for name, x in os.environ.items() if name not in outside}
        inherited |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", **way.environment}
        inherited |= {"VLLM_BATCH_INVARIANT": "1"} if config.exact else {}
        model = way.arguments(policy)

        def command(gpus: Sequence[int], port: int) -> list[str]:
            return [
                *(str(config.python), "-m", "vllm.entrypoints.openai.api_server", *model),
                *("--host=127.0.0.1", f"--port={port}", f"--tensor-parallel-size={max(1, len(gpus))}"),
                *("--logprobs-mode=processed_logprobs", f"--max-logprobs={config.listed}"),
                *("--return-tokens-as-token-ids", "--generation-config=vllm", *config.arguments),
            ]

        made: list[Server] = []
        for place, gpus in enumerate(config.gpus):
            shown = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}
            log = way.folder / f"server-{place}.log"
            made.append(Started(lambda port, gpus=gpus: command(gpus, port), inherited | shown, log))  # type: ignore[misc]
        return made

    def _offer(self, server: Server) -> str | None:
        """Have a server take the weights; what went wrong, if it does not."""
        told = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                _wait(attempt)
            try:
                with server.lock:
                    self._give(server, fresh=True)
                return None
            except Failed as error:
                told = f"{server.url}: {error}"
        return told

    def _give(self, server: Server, *, fresh: bool) -> None:
        """The present weights, unless they are no news to it."""
        if not (fresh or server.doubted):
            return
        begun = server.begin(self.config.start_seconds)
        server.doubted = True  # until it has taken all of them
        self._way.give(server, begun)
        server.doubted, server.times = False, server.times + 1

    # -- responses --------------------------------------------------------------------------------------------

    def sample(
        self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Rollout:
        self._answers, found = SimpleQueue(), {}
        steps = min(how.max_new_tokens, policy.horizon or how.max_new_tokens)
        asked = [
            completions.request(
                NAME, prompt.tolist(), how, seed, steps=steps, ends=policy.ends, listed=self.config.listed
            )
            for prompt, row in zip(policy.prompts(examples), seeds, strict=True)
            for seed in row
        ]
        if self._over.is_set():
            raise self._unwanted()
        most = self.config.at_once * len(self._servers)
        answers = each(lambda one: self._answer(*one, how), [*enumerate(asked)], most, self._answers)
        for place, response in answers:
            found[place] = response
            report("response", len(found), len(asked))
        return sampled_rollout(policy, examples, how, [found[place] for place in range(len(asked))])

    def _answer(self, place: int, asked: Mapping[str, Any], how: Sampling) -> Response:
        """One response, of another server where one fails: equal seeds give equal tokens."""
        faults: list[str] = []
        for attempt in range(self.config.retries + 1):
            server = self._whom(place + attempt)
            if attempt and server.doubted:
                _wait(attempt)
            times = server.times
            try:
                with server.lock:
                    self._give(server, fresh=False)
                times = server.times
                return completions.response(
                    server.ask("/v1/completions", asked, self.config.seconds), asked, how
                )
            except Failed as error:
                faults.append(f"{server.url}: {error}")
                if server.times == times:  # it was not mended meanwhile
                    server.doubted = True
        raise RLAlignError(
            f"sampler `{self.name}`: a response failed {len(faults)} times, and the run ends: {'; '.join(faults)}"
        )

    def _whom(self, place: int) -> Server:
        """The servers in turn, those that failed last."""
        turn = [self._servers[(place + i) % len(self._servers)] for i in range(len(self._servers))]
        return next((server for server in turn if not server.doubted), turn[0])

    def give_up(self) -> None:
        self._over.set()
        self._answers.put(self._unwanted())

    def _unwanted(self) -> RLAlignError:
        return RLAlignError(f"sampler `{self.name}`: nobody wants these responses any more")

    def close(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        self._way.close()
        self.version = None


def _wait(attempt: int) -> None:
    time.sleep(min(2.0 ** (attempt - 1), LONGEST_WAIT))
