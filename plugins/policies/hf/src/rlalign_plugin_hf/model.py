"""A language model as a policy, causal or encoder–decoder: its sampling, its head, its copies.

Legend: C width of the trunk, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rlalign import Constraint, Decoder, Example, Rollout, Sampling
from rlalign.decoding.interfaces import Finished
from rlalign.interface.policy import Model
from rlalign.world.sharding import Parts
from rlalign_plugin_hf import adapter, heads, saving
from rlalign_plugin_hf.beams import searched
from rlalign_plugin_hf.ends import ends_of
from rlalign_plugin_hf.engine.engines import Engine
from rlalign_plugin_hf.loading import digest, load_network, made_anew
from rlalign_plugin_hf.native.choice import Decoding
from rlalign_plugin_hf.opened import Opened
from rlalign_plugin_hf.precision import Half, half_of
from rlalign_plugin_hf.recomputed import recomputed
from rlalign_plugin_hf.selftest import refuse_if_inexact

if TYPE_CHECKING:
    from rlalign_plugin_hf.value import ValueHead

X = TypeVar("X")


class LanguageModel(Opened):
    """A transformers model. Its trunk gives the features; its own `forward`, fed with them, is the head."""

    loaded_by = "transformers"
    divisible = True
    decoding: Decoding
    """How it decodes, and why."""
    engine: Engine
    """What samples, and why."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.width = 0
        """C."""
        self.slots: adapter.Slots | None = None
        """Under LoRA: the places of the adapters in its network."""
        self._loan: adapter.Loan | None = None
        """Under LoRA: the network that a copy computes with."""
        self._bare_head = False
        self.never: int | None = None
        """A token that is never chosen: padding, where positions are counted by it."""
        self.shares = self.config.lora is not None
        self._half: Half | None = None
        """The precision it is written in, where that is not its own."""

    # -- making it ------------------------------------------------------------------------------------

    def open(self) -> None:
        if self.tokenizer is None:
            if self.config.lora is not None:
                adapter.require_peft()
            super().open()
            self.decoding, self.engine = Decoding(self._settings), Engine(self.config.engine)

    def sampling(self, device: torch.device) -> str | None:
        return self.engine.said(self, device)

    def setup(self) -> None:
        self.open()
        self.model = load_network(self.config, self.kind, self._settings)
        self._half = half_of(self.base) if self.base is not None else None
        self.eval()
        self.ends, self.end = ends_of(self)
        with torch.no_grad():
            self._find_trunk()
            self.require_room()
            refuse_if_inexact(self)
            self._bare_head = heads.is_bare(self)
            self.decoding.verify(self)
        if self.config.lora is not None:
            adapter.inject(self.model, self.config.lora, self.config.seed)
            self.let_go()  # what decodes has read the network without them
            self.slots = adapter.Slots(self.model)
            trained = {f"model.{name}" for name in self.slots.names}
            self.ephemeral = tuple(key for key in self.state_dict() if key not in trained)
            # Checkpoints leave the frozen network out; its hash tells them apart.
            self.register_buffer("frozen", digest(self.model, set(self.slots.names)))
        self.eval()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Another device or precision: parameters have moved."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if hasattr(self, "decoding") and self._loan is None:
            self.decoding.settle(self)
        return self

    @property
    def network(self) -> Any:
        """The transformers model it computes with; a LoRA copy borrows its maker's."""
        return self.model if self._loan is None else self._loan.network

    # -- sampling -------------------------------------------------------------------------------------

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        for example, tokens in zip(examples, self.prompts(examples), strict=True):
            self.check_row(example, len(tokens), how.max_new_tokens, "ask for a shorter response")
        if how.beams > 1:
            return searched(self, examples, how)
        rollout = self.engine.sample(self, examples, how, uniforms, within, finished)
        return super().sample(examples, how, uniforms, within, finished) if rollout is None else rollout

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        family = self.decoding.native(self, inputs)
        return self._by_forward(inputs, k) if family is None else self._natively(family, inputs, k)

    # -- trunk and head -------------------------------------------------------------------------------

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        return self._entered(lambda: self._features(rollout, last))

    def prompt_features(self, rollout: Rollout) -> Tensor:
        return self._entered(lambda: self._prompt_features(rollout))

    def prompt_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return self._entered(lambda: self._prompt_states(rollout))

    def _entered(self, run: Callable[[], X]) -> X:
        """What `run` computes, with this model's weights in the network, which its owner enters."""

        def inside() -> X:
            with self.acting():
                return run()

        return inside() if self._loan is None else self._loan.lender.through(inside)

    def head(self, features: Tensor) -> Tensor:
        with nullcontext() if self._loan is None else self._in_network(None):  # it may have an adapter too
            logits = heads.logits(self, features, self._bare_head)
        if self.never is not None:
            logits[:, self.never] = -math.inf
        return logits

    def head_matrix(self) -> Tensor | None:
        if not self._bare_head or self.never is not None:
            return None
        return heads.matrix_of(self.network.get_output_embeddings())

    @contextmanager
    def acting(self, training: bool | None = None) -> Iterator[None]:
        """With this model's weights in the network, its dropout on or off, and its layers kept or recomputed."""
        with self._in_network(training):
            if not (self.recomputes and torch.is_grad_enabled()):
                yield
                return
            now = bool(self.network.training)
            with recomputed(self.network, lambda: self._in_network(now)):
                yield

    @contextmanager
    def _in_network(self, training: bool | None) -> Iterator[None]:
        network = self.network
        wanted = self.training if training is None else training
        before = bool(network.training)
        with ExitStack() as stack:
            if self._loan is not None:
                stack.enter_context(self._loan.acting())
            if wanted != before:
                network.train(wanted)
                stack.callback(network.train, before)
            yield

    # -- cut over several processes -------------------------------------------------------------------

    def parts(self) -> Parts:
        self.prompts_once = type(self).prompts_once  # by a second forward, which not every row would be worth
        network = self.network
        named = {name for m in network.modules() for name in getattr(m, "_no_split_modules", None) or ()}
        blocks = {name: m for name, m in network.named_modules() if type(m).__name__ in named}
        outer = [m for name, m in blocks.items() if not any(name.startswith(f"{other}.") for other in blocks)]
        # An adapter of a copy takes its place in a pass, which a piece would be put back into.
        own = [] if self.slots is None else adapter.parameters(network).values()
        return Parts(tuple(outer), tuple(own), ("features", "prompt_features", "prompt_states", "through"))

    def let_go(self) -> None:
        self.decoding.forget()
        self.engine.forget()

    # -- roles ----------------------------------------------------------------------------------------

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> LanguageModel | ValueHead:
        if role == "value":
            from rlalign_plugin_hf.value import ValueHead

            value = ValueHead(ValueHead.Config())
            value.setup(self)
            return value
        return self.twin(changes=role == "lagging")

    def twin(self, *, changes: bool = False) -> LanguageModel:
        """A model with the present weights. Under LoRA it has adapters of its own and shares the network.

        `changes`: it learns, or somebody else writes to it.
        """
        made = type(self)(self.config)
        shared = (
            "tokenizer",
            "width",
            "end",
            "ends",
            "positions",
            "new_tokens",
            "_bare_head",
            "never",
            "_half",
            "_reader",
            "_turns",
            "_settings",
            *self._anatomy,
        )
        for name in shared:
            setattr(made, name, getattr(self, name))
        made.decoding, made.engine = self.decoding.twin(), Engine(self.config.engine)
        if self.config.lora is None:
            if self.sharded:  # a network that is cut cannot be copied
                made.model = made_anew(self.config, self.kind, self._settings)
            else:
                made.model = copy.deepcopy(self.network)
            made.decoding.settle(made)
            return made.eval()
        made.adapter = adapter.copied(self.adapter_weights())
        made.sharded = self.sharded
        made._loan = adapter.Loan(self if self._loan is None else self._loan.lender, made.adapter, changes)
        return made.eval()

    def adapter_weights(self) -> Mapping[str, nn.Parameter]:
        """This model's own adapters, by their names in the network."""
        return adapter.parameters(self.model) if self._loan is None else self._loan.weights()

    def switched_off(self) -> bool:
        """Whether it is a copy whose adapter does nothing and never will: then it is left out."""
        return self._loan is not None and self._loan.idle()

    def sync(self, source: Model) -> None:
        if self._loan is None:
            super().sync(source)
            return
        assert isinstance(source, LanguageModel)
        with torch.no_grad():
            theirs = source.adapter_weights()
            for name, mine in self.adapter_weights().items():
                mine.copy_(theirs[name])
        self._loan.renewed()
        self.version += 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().load_state_dict(*args, **kwargs)
        if self._loan is not None:
            self._loan.renewed()
        return found

    save_adapter = adapter.save

    def save(self, folder: Path) -> str | None:
        """A folder that transformers loads, in the precision of the model's own files; adapters are merged."""
        with self._in_network(None):
            return saving.save(
                folder,
                self.network,
                self.tokenizer,
                self._half,
                self.config.lora is not None,
                self.saves_float32,
            )

    def saved_tensors(self) -> dict[str, tuple[Tensor, torch.dtype]]:
        """The tensors of that folder, where they lie, and the precision that each has there; without adapters alone."""
        return saving.tensors(self.network, self._half, self.saves_float32)
