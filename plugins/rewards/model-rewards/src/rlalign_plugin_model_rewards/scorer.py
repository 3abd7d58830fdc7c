"""A frozen model of the transformers library that scores texts: its folder checked early, loaded, run in batches.

Legend: n rows of a pass, L tokens of the longest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor, nn

from rlalign import Component, ConfigError, RLAlignError, Run
from rlalign_plugin_hf.batches import accepted
from rlalign_plugin_hf.loading import load_weights, open_config, open_tokenizer, peek
from rlalign_plugin_hf.options import Kind, Source
from rlalign_plugin_hf.smaller import load_small
from rlalign_plugin_model_rewards.texts import Reader, Row, Side

T = TypeVar("T")
LOGITS = 2**26
"""Numbers of logits that a pass over a language model may hold."""
REMEMBERED = 2**26
"""Numbers that are kept of what was computed."""
LONGEST = 4096
"""Tokens of a row for models without positions, such as T5: memory grows with the square of what they read."""


class ScorerOptions(Source):
    """What all scorers can be told."""

    kind: ClassVar[Kind] = "encoder"
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the weights and of the computation"
    )
    device: str | None = Field(None, description="`cpu`, `cuda`, …; null: where the policy is")
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="longest row that the model reads; null: what its positions allow; 4096 where "
        "nothing bounds it (T5, XLNet)",
    )
    batch_tokens: int = Field(8192, gt=0, description="padded tokens of one forward pass")

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str | None) -> str | None:
        try:
            torch.empty(0, device=device).cpu()  # `meta` holds no numbers
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{device}: no such device here ({str(error).splitlines()[0]})") from None
        return device

    @model_validator(mode="after")
    def _fits(self) -> ScorerOptions:
        try:
            if (said := peek(self, self.kind)) is not None:
                self.fits(said)
        except RLAlignError as error:
            raise ValueError(str(error)) from None
        return self

    def fits(self, said: dict[str, Any]) -> None:
        """Refuse a model, by its config.json, of which these options ask what it has not."""


class Scorer(Component):
    """Base of all scorers: the model is loaded in `setup`, frozen, and shares the policy's device."""

    class Config(ScorerOptions):
        """Set by each scorer."""

    config: Any
    side: ClassVar[Side] = "right"
    """The end at which what is too long is cut."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.network: Any = None
        self.reader: Any = None
        self.filler = 0
        self._known = Remembered(REMEMBERED)
        self._small = False

    def shrink(self) -> None:
        self._small = True

    def setup(self, run: Run) -> None:
        c = self.config
        settings = self.open_config()
        try:
            c.fits(settings.to_dict())  # a model named on the hub was not looked at before
        except ValueError as error:
            raise ConfigError(f"{c.path}: {error}") from None
        tokenizer = open_tokenizer(c)
        device = c.device  # a scorer in a process of its own has no policy to look at
        if device is None:
            device = next(iter(run.models.policy.parameters()), torch.zeros(())).device
        network = load_small(c, c.kind, settings) if self._small else load_weights(c, c.kind, settings)
        network = self.anatomy(network)
        self.network = network.requires_grad_(False).to(device=device, dtype=getattr(torch, c.dtype))
        self.filler = filler_of(settings, tokenizer)
        longest = longest_of(network, settings, tokenizer, c.max_tokens)
        self.reader = Reader(tokenizer, longest, getattr(c, "truncation_side", self.side))

    def signed(self, *parts: str) -> str:
        """A signature: the model, what else there is to say, the precision."""
        return "|".join(
            [f"model:{PurePath(str(self.config.path)).name}", *parts, f"dtype:{self.config.dtype}"]
        )

    def open_config(self) -> Any:
        """The network's configuration."""
        return open_config(self.config, self.config.kind)

    def anatomy(self, network: Any) -> Any:
        """The part of the network that is needed."""
        return network

    def over(
        self,
        rows: Sequence[Row],
        compute: Callable[[Padded], Sequence[T]],
        budget: int | None = None,
        *,
        remember: bool = False,
    ) -> list[T]:
        """`compute` of each row, in their order; each distinct row is computed once, rows of like length together."""
        found: dict[Row, T] = {}
        with torch.inference_mode():
            for part in passes(list(dict.fromkeys(rows)), budget or self.config.batch_tokens, self.budget):

                def results(part: Sequence[Row] = part) -> Sequence[T]:
                    self._require_known(part)
                    return compute(Padded.of(part, self.filler, self.network.device))

                values = self._known.get(part, results) if remember else results()
                found.update(zip(part, values, strict=True))
        return [found[row] for row in rows]

    def _require_known(self, rows: Sequence[Row]) -> None:
        most, size = max(max((*row.ids, *row.target)) for row in rows), _vocabulary(self.network)
        if most >= size:
            raise RLAlignError(
                f"{self.config.path}: its tokenizer makes a token {most}, and the model knows {size}; the two do not "
                "belong together"
            )

    def forward(self, padded: Padded, **more: Any) -> Any:
        """The network's own forward pass."""
        types_nL = padded.types_nL if self.reader.typed else None
        inputs = accepted(self.network, token_type_ids=types_nL, **more)
        return self.network(input_ids=padded.ids_nL, attention_mask=padded.real_nL.long(), **inputs)

    @property
    def budget(self) -> int:
        """Tokens of a pass that computes logits over the vocabulary."""
        return max(1, min(int(self.config.batch_tokens), LOGITS // _vocabulary(self.network)))


class Padded(NamedTuple):
    """Rows side by side, padded on the right."""

    rows: Sequence[Row]
    ids_nL: Tensor
    real_nL: Tensor
    types_nL: Tensor

    @staticmethod
    def of(rows: Sequence[Row], filler: int, device: torch.device) -> Padded:
        width = max(len(row.ids) for row in rows)
        ids = [[*row.ids, *[filler] * (width - len(row.ids))] for row in rows]
        types = [[*row.types, *[0] * (width - len(row.ids))] for row in rows]
        length_n = torch.tensor([len(row.ids) for row in rows])
        real_nL = torch.arange(width) < length_n[:, None]
        return Padded(
            rows, torch.tensor(ids, device=device), real_nL.to(device), torch.tensor(types, device=device)
        )


def passes(rows: Sequence[Row], budget: int, targets: int) -> Iterator[list[Row]]:
    """The rows, longest first, as many at a time as the budgets of padded tokens and targets hold, and at least one."""
    part: list[Row] = []
    widest = 0
    for row in sorted(rows, key=lambda row: (-len(row.ids), len(row.target), row)):
        widest = max(widest, len(row.target))
        count = len(part) + 1
        if part and (count * len(part[0].ids) > budget or count * widest > targets):
            yield part
            part, widest = [], len(row.target)
        part.append(row)
    if part:
        yield part


class Remembered:
    """Results of whole passes, as long as they hold no more than so many numbers in all; the oldest go first.

    Never results of single rows: the last bits of a result depend on the rows beside it, and a run that is resumed
    remembers nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[tuple[Row, ...], tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, part: Sequence[Row], compute: Callable[[], Sequence[T]]) -> Sequence[T]:
        """What `compute` gives of these rows."""
        key = tuple(part)
        with self._lock:
            if key in self._held:
                found: Sequence[T] = self._held[key][0]
                return found
        found = compute()
        size = sum(map(_size, found)) + sum(len(row.ids) for row in part)
        with self._lock:
            if key not in self._held:
                self._held[key] = (found, size)
                self._size += size
            while self._size > self._most:
                self._size -= self._held.popitem(last=False)[1][1]
        return found


def _size(value: Any) -> int:
    """How many numbers a result holds."""
    if isinstance(value, Tensor):
        return value.numel()
    return sum(map(_size, value)) if isinstance(value, tuple) else 1


def _vocabulary(network: Any) -> int:
    return int(network.get_input_embeddings().num_embeddings)


def filler_of(settings: Any, tokenizer: Any) -> int:
    """What stands behind short rows. Some models count positions by it, so that the model's own goes first."""
    for found in (settings.get_text_config().pad_token_id, tokenizer.pad_token_id):
        if isinstance(found, int) and found >= 0:
            return found
    return 0


def longest_of(network: Any, settings: Any, tokenizer: Any, asked: int | None) -> int:
    """The longest row: what positions and tokenizer allow, and no more than was asked for."""
    most = None
    with suppress(AttributeError, NotImplementedError):  # XLNet has none, and says so in this way
        most = settings.get_text_config().max_position_embeddings
    known = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < 10**9 else []
    if isinstance(most, int) and most > 0:
        # RoBERTa and its like count positions from behind the padding token.
        behind = max((_offset(name, module) for name, module in network.named_modules()), default=0)
        known.append(most - behind)
    return min([*known, *([] if asked is None else [asked])], default=LONGEST)


def _offset(name: str, module: Any) -> int:
    counts = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
    return module.padding_idx + 1 if counts and module.padding_idx is not None else 0
