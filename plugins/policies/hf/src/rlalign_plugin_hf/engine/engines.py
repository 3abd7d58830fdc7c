"""Which engine samples, and why: CUDA graphs of a step over slots, the same step without graphs, or the core's loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlalign import Constraint, Example, Rollout, Sampling
from rlalign.costs.memory import SAMPLED
from rlalign.decoding.interfaces import Finished
from rlalign.decoding.sampler import Teller
from rlalign_plugin_hf.engine.graphs import Eager, Graphs
from rlalign_plugin_hf.engine.machine import LOOKS, Machine
from rlalign_plugin_hf.engine.prompts import Prompts
from rlalign_plugin_hf.engine.slots import Model, Rules, Shape, Slots
from rlalign_plugin_hf.native.decoder import refresh

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel
    from rlalign_plugin_hf.native.family import Family

Kind = Literal["graphs", "slots", "loop"]
BUCKETS = (8, 16, 32, 64, 128, 256, 512)
"""Numbers of slots that a step is made for."""
ROUND = 64
"""Columns come by as many, so that buffers fit the next rollout too."""
KEPT, KEPT_SHARE = 4, 1 / 8
"""How many buffers are kept while there is no rollout, and of a device's memory, what they may take: training and
evaluation sample in turn, and some prompts are longer.
"""
_log = logging.getLogger("rlalign")


@runtime_checkable
class Beside(Protocol):
    """A constraint that is a function of a second policy's logits, which decodes the same rows."""

    policy: Any

    def keeps(self, logits_nV: Tensor) -> Tensor:
        """[n,V] bool: what may be sampled; looks at no number."""

    def instead_of(self, logits_nV: Tensor, banned_V: Tensor) -> Tensor:
        """[n,V] bool: what may be sampled where all of that is banned."""


class Engine:
    """What samples for one policy."""

    buckets: tuple[int, ...] = BUCKETS
    looks: int = LOOKS

    def __init__(self, asked: Kind | None = None) -> None:
        self._asked = asked
        self._held: dict[Any, tuple[Eager, list[Model]]] = {}
        """Graphs and buffers of rollouts, by what they are good for; those of the last rollout are the last."""
        self._told: set[str] = set()
        self._room: float | None = None
        """Bytes that keys and values may take; less once memory has run out."""

    def forget(self) -> None:
        """Keep nothing that reads weights."""
        self._held.clear()

    def kind(self, device: torch.device) -> Kind:
        """What is tried first."""
        if self._asked == "graphs" and device.type != "cuda":
            return "slots"
        return self._asked or ("graphs" if device.type == "cuda" else "loop")

    def said(self, policy: LanguageModel, device: torch.device) -> str:
        """How it samples, in words; known once the policy is open."""
        if (kind := self.kind(device)) == "loop" or not policy.decoding.has_native:
            return f"the sampling loop, {policy.decoding}"
        graphs = "CUDA graphs of a step over slots (where one cannot be captured, the same step without)"
        return f"{graphs if kind == 'graphs' else 'a step over slots, without graphs'}, {policy.decoding}"

    def sample(
        self,
        policy: LanguageModel,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout | None:
        """Responses; None where the loop is to give them."""
        kind = self.kind(uniforms.device)
        if kind == "loop" or not examples:
            return None
        inputs = policy.prompts(examples)
        models = self._models(policy, inputs, within)
        if isinstance(models, str):
            self._tell(policy, f"the sampling loop: {models}")
            return None
        told_G = torch.zeros(len(examples), dtype=torch.bool, device=uniforms.device)
        teller = None if finished is None else Teller(finished, told_G)
        buckets = self._fitting(models, inputs, len(examples) * how.samples, how.max_new_tokens)
        alone = not self._held
        while True:
            try:
                # What it holds, large buffers, is gone when it has failed: in another frame.
                return self._attempt(kind, models, buckets, examples, inputs, how, uniforms, within, teller)
            except torch.OutOfMemoryError:
                self._held.clear()
                if alone:
                    self._room, buckets = (self._room or 0) / 2, buckets[:-1]
                if not buckets:
                    raise
                alone = True

    def _attempt(
        self,
        kind: Kind,
        models: Sequence[tuple[LanguageModel, Family]],
        buckets: tuple[int, ...],
        examples: Sequence[Example],
        inputs: tuple[Tensor, ...],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None,
        teller: Teller | None,
    ) -> Rollout:
        policy = models[0][0]
        engine, held = self._ready(kind, models, buckets, inputs, how, within)
        readers = [Prompts(model, slots) for (model, _), slots in zip(models, held, strict=True)]
        machine = Machine(policy, engine, readers, buckets, self.looks)
        rollout = machine.sample(examples, inputs, uniforms, within, teller)
        if isinstance(engine, Graphs) and engine.failed is not None:
            self._tell(policy, f"slots without CUDA graphs: {engine.failed}")
        most = KEPT_SHARE * _memory(uniforms.device)
        while len(self._held) > KEPT or sum(made.slots.nbytes for made, _ in self._held.values()) > most:
            del self._held[next(iter(self._held))]
        return rollout

    def _models(
        self, policy: LanguageModel, inputs: Sequence[Tensor], within: Constraint | None
    ) -> list[tuple[LanguageModel, Family]] | str:
        """The policy, and the model that a constraint reads, each with its family; or why slots will not do."""
        from rlalign_plugin_hf.model import LanguageModel

        needed = [policy]
        if within is not None:
            other = within.policy if isinstance(within, Beside) else None
            if not isinstance(other, LanguageModel) or other.kind != policy.kind:
                return f"a {type(within).__name__} takes steps of its own"
            needed.append(other)
        found = []
        for model in needed:
            family = model.decoding.native(model, inputs)
            if family is None:
                return f"{model.name or 'the policy'} decodes {model.decoding} here"
            refresh(family, model)
            found.append((model, family))
        return found

    def _fitting(
        self, models: Sequence[tuple[Any, Family]], inputs: Sequence[Tensor], count: int, steps: int
    ) -> tuple[int, ...]:
        """The numbers of slots for so many rows: not more than there are, nor than keys and values have room for."""
        columns = _rounded(max(map(len, inputs)) + steps)
        each = sum(
            2 * family.layers * family.kv_heads * family.head_dim * columns * family.dtype.itemsize
            for _, family in models
        )
        if self._room is None:
            self._room = SAMPLED * _memory(models[0][1].device)
        enough = next((b for b in self.buckets if b >= count), self.buckets[-1])
        fit = tuple(b for b in self.buckets if b <= enough and b * each <= self._room)
        return fit or self.buckets[:1]

    def _ready(
        self,
        kind: Kind,
        models: Sequence[tuple[LanguageModel, Family]],
        buckets: tuple[int, ...],
        inputs: Sequence[Tensor],
        how: Sampling,
        within: Constraint | None,
    ) -> tuple[Eager, list[Model]]:
        """Buffers, and what steps over them; those of an earlier rollout if they will do."""
        policy = models[0][0]
        begin = len(getattr(policy, "_begin", ()))
        longest = max(map(len, inputs))
        shape = Shape(
            slots=buckets[-1],
            columns=_rounded((begin or longest) + how.max_new_tokens),
            steps=how.max_new_tokens,
            prompt=_rounded(longest) if begin else 0,
        )
        rules = Rules(how, policy.ends, policy.never, within)
        key = kind, shape, rules, tuple((id(family), family.addresses()) for _, family in models)
        made = self._held.pop(key, None)
        if made is None:
            held = [Model(family, shape, model.never) for model, family in models]
            vocabulary = len(policy.network.get_output_embeddings().weight)
            slots = Slots(held, rules, shape, vocabulary, self.looks)
            made = Graphs(slots) if kind == "graphs" else Eager(slots), held
        self._held[key] = made
        return made

    def _tell(self, policy: LanguageModel, what: str) -> None:
        """Say once what samples instead, and why."""
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s samples by %s", policy.config.path, what)


def _memory(device: torch.device) -> float:
    """A device's bytes; a CPU's are not counted here."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND
