"""What causal and encoder–decoder language models share: text, head, roles, saving.

Legend: N responses, G groups, T steps, M chosen steps, C width of the trunk, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rlalign import Constraint, Decoder, Example, Policy, RLAlignError, Rollout, Sampling, logged_rollout
from rlalign.decoding.interfaces import Finished
from rlalign.interface.policy import Model, NoRoom
from rlalign_plugin_hf import adapter, heads, precision
from rlalign_plugin_hf.beams import searched
from rlalign_plugin_hf.engine.engines import Engine
from rlalign_plugin_hf.fused import fuse
from rlalign_plugin_hf.loading import (
    Kind,
    ModelOptions,
    digest,
    is_here,
    load_network,
    open_config,
    open_tokenizer,
    quiet,
    source_of_weights,
    where,
)
from rlalign_plugin_hf.native.choice import Decoding
from rlalign_plugin_hf.positions import Positions
from rlalign_plugin_hf.precision import Half, half_of
from rlalign_plugin_hf.prompts import PromptReader, require_short
from rlalign_plugin_hf.recomputed import recomputed
from rlalign_plugin_hf.selftest import refuse_if_inexact

if TYPE_CHECKING:
    from rlalign_plugin_hf.value import ValueHead


class LanguageModel(Policy):
    """A transformers model. Its trunk gives the features; its own `forward`, fed with them, is the head."""

    kind: ClassVar[Kind]
    loaded_by = "transformers"
    config: ModelOptions
    positions: Positions
    """The rows it reads."""
    decoding: Decoding
    """How it decodes, and why."""
    engine: Engine
    """What samples, and why."""
    _settings: Any
    """The network's configuration."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.tokenizer: Any = None
        self.width = 0
        """C."""
        self.end = 0
        """The token that ends a logged response."""
        self._lender: list[LanguageModel] = []
        """Under LoRA: whose network a copy computes with. In a list, so that it is no part of this module."""
        self._slots: list[adapter.Slots] = []
        self._idle: bool | None = None
        self._bare_head = False
        self.never: int | None = None
        """A token that is never chosen: padding, where positions are counted by it."""
        self.shares = self.config.lora is not None
        self.base = source_of_weights(self.config)
        self._half: Half | None = None
        """The precision it is written in, where that is not its own."""
        self.here = is_here(self.config)

    # -- making it ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read the model's configuration and load its tokenizer, which is all that reading prompts takes."""
        if self.tokenizer is not None:
            return
        if self.config.lora is not None:
            adapter.require_peft()
        self._settings = open_config(self.config, self.kind, weights=self.config.init == "pretrained")
        self.positions = Positions(self._settings, self.kind)
        self.decoding = Decoding(self._settings)
        self.engine = Engine(self.config.engine)
        self._require_room()
        self.tokenizer = open_tokenizer(self.config)
        side = "left" if self.kind == "causal" else "right"
        self.tokenizer.truncation_side = self.config.truncation_side or side
        self._reader = PromptReader(self.tokenizer, self.config, self.positions, self.new_tokens)
        self.chats = self.tokenizer.chat_template is not None

    def _require_room(self) -> None:
        """Refuse to be asked for responses that leave no room for any prompt."""
        room = self.positions.room(self.new_tokens)
        if room is not None and room < 1:
            raise NoRoom(self.positions.without_room(self.new_tokens))

    def own_system(self) -> str | None:
        return self._reader.own_system() if self.chats else None

    def sampling(self, device: torch.device) -> str | None:
        return self.engine.said(self, device)

    def setup(self) -> None:
        self.open()
        self.model = load_network(self.config, self.kind, self._settings)
        fuse(self.model)
        self._half = half_of(self.base) if self.base is not None else None
        self.eval()
        self._read_ends()
        with torch.no_grad():
            self._find_trunk()
            self._require_room()
            refuse_if_inexact(self)
            self._bare_head = heads.is_bare(self)
            self.decoding.verify(self)
        if self.config.lora is not None:
            adapter.inject(self.model, self.config.lora, self.config.seed)
            self._slots = [adapter.Slots(self.model)]
            trained = {f"model.{name}" for name in self._slots[0].names}
            self.ephemeral = tuple(key for key in self.state_dict() if key not in trained)
            # Checkpoints leave the frozen network out; its hash tells them apart.
            self.register_buffer("frozen", digest(self.model, set(self._slots[0].names)))
        self.eval()

    def _read_ends(self) -> None:
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None)
        if found is None:
            found = getattr(self.model.config, "eos_token_id", None)
        ends = list(found) if isinstance(found, list | tuple) else [] if found is None else [int(found)]
        own = self.tokenizer.eos_token_id
        if own is not None and own not in ends and (not ends or self.config.tokenizer is not None):
            ends.append(own)
        vocabulary = self.vocabulary
        ends = [end for end in ends if isinstance(end, int) and 0 <= end < vocabulary]
        if not ends:
            raise RLAlignError(
                f"{where(self.config)}: no token ends a response: neither the model's generation config nor the "
                "tokenizer names an `eos_token` within the vocabulary; add one to the tokenizer"
            )
        self.ends = tuple(ends)
        self.end = own if own in ends else ends[0]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Another device or precision: parameters have moved."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if hasattr(self, "decoding") and not self._lender:
            self.decoding.settle(self)
        return self

    @property
    def network(self) -> Any:
        """The transformers model it computes with; a LoRA copy borrows its maker's."""
        return self._lender[0].model if self._lender else self.model

    @property
    def device(self) -> torch.device:
        found: torch.device = self.network.get_input_embeddings().weight.device
        return found

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.network.get_input_embeddings().num_embeddings)

    # -- text and prompts -----------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        found = [self._reader.tokens(example) for example in examples]
        vocabulary = self.vocabulary
        for example, tokens in zip(examples, found, strict=True):
            if max(tokens) >= vocabulary:
                raise RLAlignError(
                    f"example `{example.id}`: the tokenizer makes a token {max(tokens)} of it, and the model knows "
                    f"{vocabulary} tokens; the two do not belong together"
                )
        return tuple(torch.tensor(tokens, device=self.device) for tokens in found)

    def refuse(
        self, examples: Sequence[Example], responses: Collection[str] = ("sampled",)
    ) -> Mapping[int, str]:
        return self._reader.refuse(examples, responses)

    def encode(self, examples: Sequence[Example]) -> Rollout:
        inputs = self.prompts(examples)
        rows: list[tuple[list[int], bool]] = []
        for prompt, example in zip(inputs, examples, strict=True):
            for j, text in enumerate(example.responses):
                finished = example.finished[j] if example.finished else True
                require_short(example, text)
                tokens = self._reader.spelling.plain(text)
                rows.append((tokens + [self.end] * finished, finished))
                self._check_row(
                    example, len(prompt), len(rows[-1][0]), "shorten one of them, or leave the row out"
                )
        return logged_rollout(examples, inputs, rows, like=self._weight)

    def text(self, actions_T: Tensor) -> str:
        tokens = actions_T.tolist()
        if tokens and tokens[-1] in self.ends:  # it may be an ordinary token
            tokens = tokens[:-1]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

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
            self._check_row(example, len(tokens), how.max_new_tokens, "ask for a shorter response")
        if how.beams > 1:
            return searched(self, examples, how)
        rollout = self.engine.sample(self, examples, how, uniforms, within, finished)
        return super().sample(examples, how, uniforms, within, finished) if rollout is None else rollout

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.network.get_input_embeddings().weight
        return weight

    @abstractmethod
    def _side_by_side(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(ids_GL, real_GL) of prompts, padded where `generate` wants it."""

    @abstractmethod
    def _given(self, prompt: int) -> int:
        """How many leading tokens of what `generate` returns were not chosen."""

    def _check_row(self, example: Example, prompt: int, response: int, remedy: str) -> None:
        room = self.positions.room(response)
        if room is not None and prompt > room:
            raise RLAlignError(
                f"example `{example.id}`: a prompt of {prompt} and a response of up to {response} tokens, and "
                f"{self.positions}; {remedy}"
            )

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        family = self.decoding.native(self, inputs)
        return self._by_forward(inputs, k) if family is None else self._natively(family, inputs, k)

    @abstractmethod
    def _by_forward(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        """By transformers' forward, whatever the architecture."""

    @abstractmethod
    def _natively(self, family: Any, inputs: Sequence[Tensor], k: int) -> Decoder:
        """By its family's step."""

    # -- trunk and head -------------------------------------------------------------------------------

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        with self.acting():
            return self._features(rollout, last)

    @abstractmethod
    def _features(self, rollout: Rollout, last: bool) -> Tensor:
        """`features`, with this model's weights in the network."""

    @abstractmethod
    def prompt_features(self, rollout: Rollout) -> Tensor:
        """[G,C]: the state before the first step of each group's responses; nothing but prompts is read."""

    def head(self, features: Tensor) -> Tensor:
        bare = self._bare_head
        logits: Tensor = (
            self.network.get_output_embeddings()(features) if bare else heads.own_head(self, features)
        )
        if self.never is not None:
            logits[:, self.never] = -math.inf
        return logits

    def head_matrix(self) -> Tensor | None:
        if not self._bare_head or self.never is not None:
            return None
        return heads.matrix_of(self.network.get_output_embeddings())

    @abstractmethod
    def _trunk(self) -> Any:
        """The module whose last hidden state the head reads."""

    @abstractmethod
    def _forward_without_trunk(self, features: Tensor) -> Tensor:
        """[1,m,V]: the network's `forward` on the least input there is."""

    @abstractmethod
    def own_logits(self, prompt: Tensor, actions_T: Tensor) -> Tensor:
        """[T,V] before each action, by the network's own forward of this row alone: nothing padded, nothing cached."""

    @abstractmethod
    def _find_trunk(self) -> None:
        """Learn how this architecture is built."""

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
            if self._lender:
                slots = self._lender[0]._slots[0]
                if self._switched_off():
                    stack.enter_context(slots.off())
                else:
                    stack.enter_context(slots.filled(self._adapter_weights()))
            if wanted != before:
                network.train(wanted)
                stack.callback(network.train, before)
            yield

    def _switched_off(self) -> bool:
        """Whether this copy's adapter does nothing and never will: then it is left out."""
        if self._idle is None:
            self._idle = not self._trainable and adapter.idle(self._adapter_weights())
        return self._idle

    _trainable = False

    # -- roles ----------------------------------------------------------------------------------------

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> LanguageModel | ValueHead:
        if role == "value":
            from rlalign_plugin_hf.value import ValueHead

            value = ValueHead(ValueHead.Config())
            value.setup(self)
            return value
        return self.twin()

    def twin(self, *, trainable: bool = False) -> LanguageModel:
        """A model with the present weights. Under LoRA it has adapters of its own and shares the network."""
        made = type(self)(self.config)
        shared = (
            "tokenizer",
            "width",
            "end",
            "ends",
            "positions",
            "_bare_head",
            "never",
            "_half",
            "_reader",
            *self._anatomy,
        )
        for name in shared:
            setattr(made, name, getattr(self, name))
        made.decoding, made.engine = self.decoding.twin(), Engine(self.config.engine)
        if self.config.lora is None:
            made.model = copy.deepcopy(self.network)
            made.decoding.settle(made)
            return made.eval()
        maker = self._lender[0] if self._lender else self
        made._lender, made._trainable = [maker], trainable
        made.adapter = nn.ParameterDict()
        for name, weight in self._adapter_weights().items():
            made.adapter[_key(name)] = nn.Parameter(weight.detach().clone())
        return made.eval()

    def forget_head(self) -> None:
        """Keep the trunk only (a copy that serves as a value's body)."""
        if self._lender:
            return
        head = self.model.get_output_embeddings()
        for name, module in list(self.model.named_modules()):
            if module is head and module is not self.model.get_input_embeddings():
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, nn.Identity())

    _anatomy: tuple[str, ...] = ()
    """Attributes that `_find_trunk` sets."""

    def _adapter_weights(self) -> dict[str, nn.Parameter]:
        """This model's own adapters, by their names in the network."""
        if not self._lender:
            return adapter.parameters(self.model)
        own: Any = self.adapter
        return {name: own[_key(name)] for name in self._lender[0]._slots[0].names}

    def sync(self, source: Model) -> None:
        if not self._lender:
            super().sync(source)
            return
        assert isinstance(source, LanguageModel)
        with torch.no_grad():
            theirs = source._adapter_weights()
            for name, mine in self._adapter_weights().items():
                mine.copy_(theirs[name])
        self._idle = None
        self.version += 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._idle = None
        return super().load_state_dict(*args, **kwargs)

    def save(self, folder: Path) -> str | None:
        """A folder that transformers loads, in the precision of the model's own files; adapters are merged."""
        network = self.network
        if self._lender:
            with self._lender[0]._slots[0].filled(self._adapter_weights()):
                network = adapter.merged(network)
        elif self.config.lora is not None:
            network = adapter.merged(network)
        generation: Any = getattr(network, "generation_config", None)
        if generation is not None:
            try:
                generation.validate(strict=True)
            except ValueError:
                # A temperature without `do_sample`, as some hub models have: it may be read, but not written.
                generation.do_sample = True
        written, told = precision.to_write(
            network, self._half, self.saves_float32, self.config.lora is not None
        )
        with quiet(), written.put_on(network) if written else nullcontext():
            network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return told


def _key(name: str) -> str:
    """A parameter's name without dots, which a ParameterDict does not take."""
    return name.replace(".", "/")
