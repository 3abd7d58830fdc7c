"""What a policy is made of that reads whole texts and ends in one linear layer: a sequence classifier of transformers.

Legend: n rows, C width of the last layer.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from rlalign import Policy, RLAlignError, Value
from rlalign.interface.policy import Model
from rlalign_plugin_hf.batches import accepted
from rlalign_plugin_hf.loading import digest, open_config, open_tokenizer, peek, quiet
from rlalign_plugin_hf.options import Source, is_here
from rlalign_plugin_model_rewards.new_head import has_head, load, output_layer
from rlalign_plugin_model_rewards.scorer import Padded, Remembered, filler_of, longest_of
from rlalign_plugin_model_rewards.texts import Reader, Row, Side

REMEMBERED = 2**26
"""Numbers of states of a frozen network that are kept."""


class TextPolicyOptions(Source):
    """What policies on whole texts can be told."""

    train: Literal["all", "head"] = Field(
        "all",
        description="`head`: the last layer only; what the frozen rest says of a text is computed once and kept",
    )
    max_tokens: int | None = Field(
        None, gt=0, description="longest row that the model reads; null: what its positions allow"
    )
    truncation_side: Side = Field("right", description="end that is cut of what is too long")
    seed: int = Field(0, description="of the weights of a new last layer")

    @model_validator(mode="after")
    def _is_a_model(self) -> Self:
        try:
            peek(self, "encoder")
        except RLAlignError as error:
            raise ValueError(str(error)) from None
        return self


class TextPolicy(Policy):
    """Base: a network whose last linear layer reads one state of a text. Every response is one step."""

    config: Any
    loaded_by = "transformers"
    horizon = 1

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.tokenizer: Any = None
        self.width = 0
        """C."""
        self.base = str(self.config.path)
        self.here = is_here(self.config)
        self._states = Remembered(REMEMBERED)

    # -- making it ------------------------------------------------------------------------------------------

    def open(self) -> None:
        if self.tokenizer is not None:
            return
        self._settings = open_config(self.config, "encoder")
        if getattr(self._settings, "is_encoder_decoder", False):
            raise RLAlignError(
                f"{self.config.path}: a `{self._settings.model_type}` is an encoder–decoder; give an encoder or a "
                "causal language model"
            )
        self.name_outputs(self._settings, bare=not has_head(self._settings))
        self.tokenizer = open_tokenizer(self.config)
        longest = longest_of(nn.Module(), self._settings, self.tokenizer, self.config.max_tokens)
        self.reader = Reader(self.tokenizer, longest, self.config.truncation_side)

    @abstractmethod
    def name_outputs(self, settings: Any, *, bare: bool) -> None:
        """Write into the network's configuration what its numbers are; `bare`: it has none of its own yet."""

    def setup(self) -> None:
        self.open()
        self.filler = filler_of(self._settings, self.tokenizer)
        if self._settings.pad_token_id is None:  # so that transformers reads a causal model at its last token
            self._settings.pad_token_id = self.filler
        self.network = load(self.config, self._settings)
        longest = longest_of(self.network, self._settings, self.tokenizer, self.config.max_tokens)
        self.reader = Reader(self.tokenizer, longest, self.config.truncation_side)
        self._output = output_layer(self.network, self.filler, str(self.config.path))
        self.width = self.output.in_features
        if self.config.train == "head":
            self.network.requires_grad_(False)
            self.output.requires_grad_(True)
            # Checkpoints leave the frozen part out; its hash tells one from another.
            mine = {f"{self._output}.{name}" for name in self.output.state_dict()}
            self.ephemeral = tuple(f"network.{key}" for key in self.network.state_dict() if key not in mine)
            self.register_buffer("frozen", digest(self.network, mine))
        self.eval()

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        layer = self.network.get_submodule(self._output)
        assert isinstance(layer, nn.Linear)
        return layer

    # -- states -----------------------------------------------------------------------------------------------

    def states(self, rows: Sequence[Row]) -> Tensor:
        """[n,C]: what the last layer reads of each row."""
        if self.config.train != "head" or self.training or torch.is_autocast_enabled(self.device.type):
            distinct = list(dict.fromkeys(rows))
            place = {row: i for i, row in enumerate(distinct)}
            which = torch.tensor([place[row] for row in rows], device=self.device)
            return self._computed(distinct)[which]
        return torch.stack([self._frozen(row) for row in rows])

    def _frozen(self, row: Row) -> Tensor:
        """One row's state, computed of it alone: the same to the bit whatever stands beside it."""

        def alone() -> list[Tensor]:
            with torch.no_grad():
                return [self._computed([row])[0]]

        return self._states.get([row], alone)[0]

    def _computed(self, rows: Sequence[Row]) -> Tensor:
        padded = Padded.of(rows, self.filler, self.device)
        read: list[Tensor] = []
        hook = self.output.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            # Where there is one type only, or none, GPT-2 would take it for a word.
            types = padded.types_nL if getattr(self._settings, "type_vocab_size", 0) > 1 else None
            more = accepted(self.network, token_type_ids=types)
            self.network(input_ids=padded.ids_nL, attention_mask=padded.real_nL.long(), **more)
        finally:
            hook.remove()
        state = read[-1]
        if state.ndim == 3:  # a language model's: of every token
            state = state[torch.arange(len(state), device=state.device), padded.real_nL.sum(1) - 1]
        return state

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    # -- roles --------------------------------------------------------------------------------------------------

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Policy | Value:
        return self.value() if role == "value" else self.twin()

    @abstractmethod
    def value(self) -> Value:
        """What it is in the role of a value."""

    def twin(self) -> Self:
        """A model with the present weights."""
        made = type(self)(self.config)
        for name in (
            "tokenizer",
            "_settings",
            "reader",
            "filler",
            "width",
            "ends",
            "ephemeral",
            "_output",
        ):
            setattr(made, name, getattr(self, name))
        made.network = copy.deepcopy(self.network)
        if self.config.train == "head":
            made.register_buffer("frozen", self.get_buffer("frozen").clone())
        return made.eval()

    def sync(self, source: Model) -> None:
        self._forget()
        super().sync(source)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._forget()  # another device, another precision
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _forget(self) -> None:
        self._states = Remembered(REMEMBERED)

    def save(self, folder: Path) -> str | None:
        """A folder that `AutoModelForSequenceClassification` loads."""
        with quiet():
            self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return None


class OneStep:
    """Responses of one step, all logits of which are known: there is nothing to go on with."""

    def __init__(self, logits_nV: Tensor) -> None:
        self.logits_nV = logits_nV

    def logits(self) -> Tensor:
        return self.logits_nV

    def advance(self, tokens_n: Tensor) -> None:
        raise RLAlignError("a response has one step here")

    def select(self, rows: Tensor) -> None:
        self.logits_nV = self.logits_nV[rows]
