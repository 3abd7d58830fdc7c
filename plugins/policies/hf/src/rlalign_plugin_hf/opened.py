"""A language model before it has weights: its configuration and its tokenizer, which is what texts take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from rlalign import Example, RLAlignError, Rollout, logged_rollout
from rlalign.costs.memory import row_bytes
from rlalign.costs.shape import Shape
from rlalign.data.example import Prompt
from rlalign.data.spoken import Spoken, row_of
from rlalign.interface.policy import Footprint, NoRoom, Reading
from rlalign_plugin_hf import gguf
from rlalign_plugin_hf.anatomy import Anatomy
from rlalign_plugin_hf.ends import ends_in_files
from rlalign_plugin_hf.loading import empty, open_config, open_tokenizer, read_config
from rlalign_plugin_hf.memory import footprint
from rlalign_plugin_hf.options import ModelOptions, is_here, source_of_weights, where
from rlalign_plugin_hf.positions import Positions
from rlalign_plugin_hf.prompts import PromptReader, require_short
from rlalign_plugin_hf.shape import shape
from rlalign_plugin_hf.smaller import smaller
from rlalign_plugin_hf.turns import Turns


class Opened(Anatomy):
    """What reads prompts and logged responses, and writes texts."""

    config: ModelOptions
    positions: Positions
    """The rows it reads."""
    _settings: Any
    """The network's configuration."""
    _reader: PromptReader
    _turns: Turns

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.tokenizer: Any = None
        self.end = 0
        """The token that ends a logged response."""
        self.base = source_of_weights(self.config)
        self.here = is_here(self.config)
        self._small = False

    def shrink(self) -> None:
        self.config = self.config.model_copy(update={"init": "random", "engine": None})
        self.base, self._small = None, True

    def open(self) -> None:
        """Read the model's configuration and load its tokenizer, which is all that reading prompts takes."""
        weights = self.config.init == "pretrained"
        self._settings = open_config(self.config, self.kind, weights=weights, memory=not self._small)
        if self._small:
            self._settings = smaller(self.config, self.kind, self._settings)
        self.licence = gguf.licence(self.base) if self.base is not None else None
        self.positions = Positions(self._settings, self.kind)
        self.require_room()
        self.tokenizer = open_tokenizer(self.config)
        side = "left" if self.kind == "causal" else "right"
        self.tokenizer.truncation_side = self.config.truncation_side or side
        self._reader = PromptReader(self.tokenizer, self.config, self.positions, self.new_tokens)
        self._turns = Turns(self._reader, lambda: self.ends or self._ends_in_files)
        self.chats = self.tokenizer.chat_template is not None

    def require_room(self) -> None:
        """Refuse to be asked for responses that leave no room for any prompt."""
        room = self.positions.room(self.new_tokens)
        if room is not None and room < 1:
            raise NoRoom(self.positions.without_room(self.new_tokens))

    def footprint(self) -> Footprint | None:
        network = empty(self._settings, self.config, self.kind)
        return None if network is None else footprint(self._settings, network, self.config.lora)

    def row_bytes(self, tokens: int) -> float | None:
        weight = next(self.parameters())
        return None if self._shape is None else row_bytes(self._shape, tokens, weight.element_size())

    @cached_property
    def _shape(self) -> Shape | None:
        return self.shape()

    def shape(self) -> Shape | None:
        config = getattr(self, "_settings", None) or read_config(self.config, where(self.config))
        network = empty(config, self.config, self.kind)
        return None if network is None else shape(config, network, self.config.lora, self.kind)

    def lengths(self, examples: Sequence[Example]) -> Sequence[tuple[int, Sequence[int]]]:
        return [
            (len(self._reader.tokens(example)), [len(tokens) for tokens, _ in self._rows(example)])
            for example in examples
        ]

    def reading(self, examples: Sequence[Example], sampled: bool) -> Reading:
        return self._reader.reading(examples, sampled)

    def own_system(self) -> str | None:
        return self._reader.own_system() if self.chats else None

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
        return self._reader.refuse(
            examples, responses, lambda example: [tokens for tokens, _ in self._rows(example)]
        )

    def encode(self, examples: Sequence[Example]) -> Rollout:
        inputs = self.prompts(examples)
        rows: list[tuple[list[int], bool]] = []
        chosen: list[list[bool] | None] = []
        for prompt, example in zip(inputs, examples, strict=True):
            for text in example.responses:
                require_short(example, text)
            for j, (tokens, own) in enumerate(self._rows(example)):
                rows.append((tokens, example.finished[j] if example.finished else True))
                chosen.append(own)
                self.check_row(example, len(prompt), len(tokens), "shorten one of them, or leave the row out")
        like = torch.empty(0, dtype=self._weight.dtype, device=self.device)
        return logged_rollout(examples, inputs, rows, like=like, chosen=chosen)

    def _rows(self, example: Example) -> list[tuple[list[int], list[bool] | None]]:
        """The tokens of each logged response, and which of them the policy chose; None: all."""
        ends = example.finished or (True,) * len(example.responses)
        return [
            row_of(text, self._turn, self.given)
            if isinstance(text, Spoken)
            else (self._turn(text, ended), None)
            for text, ended in zip(example.responses, ends, strict=True)
        ]

    @cached_property
    def _ends_in_files(self) -> tuple[int, ...]:
        return ends_in_files(self.config, self._settings, self.tokenizer)

    def _turn(self, text: str, ended: bool) -> list[int]:
        return self._reader.spelling.plain(text) + [self.end] * ended

    def text(self, actions_T: Tensor) -> str:
        tokens = actions_T.tolist()
        if tokens and tokens[-1] in self.ends:  # it may be an ordinary token
            tokens = tokens[:-1]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def given(self, say: Prompt, closed: bool) -> Tensor:
        tokens = self._turns.tokens(say, closed)
        return torch.tensor(tokens, dtype=torch.long)

    def words(self, choices: Sequence[str]) -> Sequence[Sequence[int]]:
        return self._turns.words(choices)

    def check_turn(self, say: Prompt) -> None:
        self._turns.require_history(say)

    def check_row(self, example: Example, prompt: int, response: int, remedy: str) -> None:
        """Refuse a row that is longer than the model reads."""
        room = self.positions.room(response)
        if room is not None and prompt > room:
            raise RLAlignError(
                f"example `{example.id}`: a prompt of {prompt} and a response of up to {response} tokens, and "
                f"{self.positions}; {remedy}"
            )
