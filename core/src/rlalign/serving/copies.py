"""`copies`: copies of the policy sample in its place, in processes of their own: on other devices, or on a cluster."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from rlalign.config.pipeline import Elsewhere, Item
from rlalign.data.example import Example
from rlalign.data.limits import COUNT
from rlalign.data.packed import unpack
from rlalign.data.rollout import Rollout, concat
from rlalign.data.settings import Sampling
from rlalign.errors import ComponentError
from rlalign.interface.policy import Policy
from rlalign.interface.sampler import Sampler
from rlalign.randomness import Draws
from rlalign.records.scratch import Scratch
from rlalign.records.tensors import save_tensors
from rlalign.records.weights import kept
from rlalign.serving.asking import Asker, pause
from rlalign.serving.client import Client, process
from rlalign.serving.host import Recipe
from rlalign.serving.protocol import Broken
from rlalign.serving.questions import example_written


class Copies(Sampler):
    """Copies of the policy, each in a process of its own, which sample with its weights of now."""

    class Config(Sampler.Config):
        """Options of `copies`."""

        devices: tuple[str, ...] = Field(
            ("auto",),
            min_length=1,
            description="of each process, its device: `[cuda:1, cuda:2]` begins two; auto: a GPU where it finds one",
        )
        cluster: str | dict[str, Any] | None = Field(
            None, description="a cluster whose machines run them: `ray`, or `ray: {…}` with its options"
        )
        threads: int | None = Field(
            None, gt=0, le=10_000, description="processor threads of each; null: as many as the run has"
        )
        folder: Path | None = Field(
            None,
            description="where the run leaves weights and they leave responses; null: this machine's memory, or with "
            "`cluster` the folder in which the run was begun",
        )
        seconds: float = Field(
            600.0,
            gt=0,
            le=COUNT,
            description="how long they may take to answer an iteration's prompts; then a process is begun anew",
        )
        retries: int = Field(
            2, ge=0, le=100, description="how often one that failed is asked again, in a new process"
        )

        @model_validator(mode="after")
        def _known(self) -> Copies.Config:
            self.limits()
            return self

        def limits(self) -> Elsewhere:
            """Where each process is."""
            return Elsewhere(cluster=self.cluster)

    config: Config
    concurrent = True
    alike = True
    repeats = (
        "a resumed run repeats its responses: copies draw with the numbers that the policy would draw with"
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.widths = (1,) * len(config.devices)
        self._clients: list[Client] = []
        self._askers: list[Asker] = []
        self._end: Callable[[], object] = lambda: None
        self._over = threading.Event()
        self._scratch: Scratch | None = None
        self._files = itertools.count()
        self._frozen: Path | None = None
        """The file of what never learns."""
        self._learned: Path | None = None
        self._model: dict[str, Any] = {}

    def policy_is(self, item: Item, folder: Path | None, *, trust: bool, seed: int) -> None:
        """Which policy they are copies of; told once, before anything is open."""
        recipe = replace(Recipe.of(item, folder, trust=trust, seed=seed), threads=self.config.threads)
        make = partial(process, recipe, self.config.limits(), None)
        self._clients = [Client(self._who, self.config.seconds, make) for _ in self.config.devices]
        self._askers = [Asker(f"asks-copy-{i}") for i in range(len(self._clients))]
        self._end = weakref.finalize(self, _end, self._clients, self._askers)

    def lacks(self, how: Sampling) -> Iterator[str]:
        if how.beams > 1:
            yield f"beams: `{self.name}` samples; a beam search is the policy's own"

    # -- weights ----------------------------------------------------------------------------------------------

    def take(self, policy: Policy) -> None:
        """Write the weights: what never learns once, the rest each time. Each copy reads them when it is asked."""
        if self._scratch is None:
            where = self.config.folder or (Path.cwd() if self.config.cluster else None)
            self._scratch = Scratch("rlalign-copies", where)
        state = kept(policy)
        still = {name for name, _ in policy.named_parameters(remove_duplicate=False)} - {*policy.learnable}
        if self._frozen is None:
            self._frozen = self._written({name: x for name, x in state.items() if name in still}, None)
        self._learned = self._written(
            {name: x for name, x in state.items() if name not in still}, self._learned
        )
        dtype = next(x.dtype for x in state.values() if x.is_floating_point())
        self._model = {"dtype": str(dtype).removeprefix("torch."), "new_tokens": policy.new_tokens}

    def _written(self, tensors: dict[str, torch.Tensor], before: Path | None) -> Path:
        """A file of these, in the place of the one before."""
        assert self._scratch is not None
        if before is not None:
            before.unlink()
        path = self._scratch.path / f"weights-{next(self._files)}.safetensors"
        save_tensors(path, tensors)
        return path

    # -- responses --------------------------------------------------------------------------------------------

    def sample(self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Draws) -> Rollout:
        count = min(len(examples), len(self._clients))
        ends = [i * len(examples) // count for i in range(count + 1)]
        runs = [slice(start, end) for start, end in itertools.pairwise(ends)]
        half = _autocast()  # of this thread, and no other
        asked = [
            self._askers[i].submit(partial(self._part, i, examples[run], how, seeds[run], half))
            for i, run in enumerate(runs)
        ]
        wait(asked)
        return replace(concat([one.result() for one in asked]), examples=tuple(examples))

    def _part(
        self, place: int, examples: Sequence[Example], how: Sampling, draws: Draws, half: str | None
    ) -> Rollout:
        """What one copy answers."""
        assert self._scratch is not None and self._learned is not None
        answer = self._scratch.path / f"answer-{next(self._files)}"
        question = {
            "model": {**self._model, "device": self.config.devices[place]},
            "frozen": str(self._frozen),
            "learned": str(self._learned),
            "examples": [
                example_written(
                    replace(e, responses=(), scores=(), finished=()), "have the task write it as text"
                )
                for e in examples
            ],
            "how": how.model_dump(mode="json"),
            "draws": {
                "seed": draws.seed,
                "key": list(draws.key),
                "positions": [draws.positions.start, draws.positions.stop],
            },
            "autocast": half,
            "answer": str(answer),
        }

        def read(_: Mapping[str, Any]) -> Rollout:
            found = unpack(answer.read_bytes())
            return replace(found, examples=tuple(examples))

        try:
            return self._asked(self._clients[place], question, read)
        finally:
            with suppress(OSError):
                answer.unlink()

    def _asked(
        self, client: Client, question: dict[str, Any], read: Callable[[Mapping[str, Any]], Rollout]
    ) -> Rollout:
        """What one says, in as many tries as it has; another process answers the same."""
        tries, said = self.config.retries + 1, ""
        for attempt in range(tries):
            if attempt and self._over.wait(pause(attempt)):
                break
            try:
                return client.ask(question, read)
            except Broken as error:
                said = str(error)
        often = f" (asked {tries} times)" if tries > 1 and not self._over.is_set() else ""
        raise ComponentError(f"{self._who} {said}{often}")

    @property
    def _who(self) -> str:
        return f"sampler `{self.name}`: a copy of the policy"

    def give_up(self) -> None:
        self._over.set()
        for client in self._clients:
            client.close()

    def close(self) -> None:
        self._over.set()
        self._end()
        if self._scratch is not None:
            self._scratch.close()
        self._scratch = self.version = self._frozen = self._learned = None


def _autocast() -> str | None:
    """The precision that is computed in, where it is another than that of the weights."""
    found = [device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device)]
    return str(torch.get_autocast_dtype(found[0])).removeprefix("torch.") if found else None


def _end(clients: Sequence[Client], askers: Sequence[Asker]) -> None:
    for client, asker in zip(clients, askers, strict=True):
        client.close()
        asker.end()
