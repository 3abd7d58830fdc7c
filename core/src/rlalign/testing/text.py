"""A policy that reads and writes any text, byte by byte: so that tasks of text run without a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from rlalign.data.example import Example, Prompt
from rlalign.data.rollout import Rollout, logged_rollout
from rlalign.data.settings import Options
from rlalign.data.spoken import Spoken, row_of
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy, Value

END = 256
"""The token after the 256 bytes: it ends a response, and stands before its first byte."""


class Bytes(Policy):
    """Each byte's logits follow from the one before; at first it writes printable ASCII at random."""

    class Config(Options):
        """Options of `bytes`."""

        seed: int = Field(0, description="of the first weights")

    config: Config
    ends = (END,)

    def setup(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        table = torch.randn(END + 1, END + 1, generator=generator, dtype=torch.float64).float()
        table[:, :32] -= 20
        table[:, 127:END] -= 20
        self.table = nn.Parameter(table)

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return tuple(self._tokens(_text_of(e)) for e in examples)

    def _tokens(self, text: str) -> Tensor:
        data = text.encode("utf-8", "surrogatepass")
        return torch.tensor([END, *data], device=self.table.device)

    def encode(self, examples: Sequence[Example]) -> Rollout:
        rows: list[tuple[list[int], bool]] = []
        chosen: list[list[bool] | None] = []
        for example in examples:
            for j, text in enumerate(example.responses):
                ended = example.finished[j] if example.finished else True
                own = None
                if isinstance(text, Spoken):
                    tokens, own = row_of(text, _bytes, self.given)
                else:
                    tokens = _bytes(text, ended)
                if not tokens:
                    raise RLAlignError(f"example `{example.id}`: a response without text that did not end")
                rows.append((tokens, ended))
                chosen.append(own)
        return logged_rollout(examples, self.prompts(examples), rows, like=self.table, chosen=chosen)

    def text(self, actions_T: Tensor) -> str:
        return bytes(a for a in actions_T.tolist() if a != END).decode("utf-8", "replace")

    def given(self, say: Prompt, closed: bool) -> Tensor:
        text = say if isinstance(say, str) else "\n" + _written(say)
        return torch.tensor(list(text.encode("utf-8", "surrogatepass")), dtype=torch.long)

    def words(self, choices: Sequence[str]) -> Sequence[Sequence[int]]:
        return [list(choice.encode("utf-8", "surrogatepass")) for choice in choices]

    def decoder(self, inputs: Sequence[Tensor], k: int) -> BytesDecoder:
        return BytesDecoder(self, torch.full((k * len(inputs),), END, device=self.table.device))

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        row_M, step_M = rollout.chosen
        before_M = torch.where(step_M > 0, rollout.actions_NT[row_M, (step_M - 1).clamp_min(0)], END)
        if last:
            rows_N = torch.arange(len(rollout), device=before_M.device)
            before_M = torch.cat([before_M, rollout.actions_NT[rows_N, rollout.length_N - 1]])
        return self.table[before_M]

    def head(self, features: Tensor) -> Tensor:
        return features

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Policy | Value:
        if role == "value":
            raise RLAlignError("`bytes` has no value; a component that needs one is tested with `logits`")
        twin = Bytes(self.config)
        twin.setup()
        twin.to(self.table)
        twin.load_state_dict(self.state_dict())
        return twin

    def save(self, folder: Path) -> None:
        save_file({"table": self.table.detach().cpu().contiguous()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config.model_dump()) + "\n")


class BytesDecoder:
    """Responses in progress: the byte each row wrote last."""

    def __init__(self, policy: Bytes, before_n: Tensor) -> None:
        self.policy = policy
        self.before_n = before_n

    def logits(self) -> Tensor:
        return self.policy.table[self.before_n]

    def advance(self, tokens_n: Tensor) -> None:
        self.before_n = tokens_n

    def select(self, rows: Tensor) -> None:
        self.before_n = self.before_n[rows]


def _bytes(text: str, ended: bool) -> list[int]:
    return [*text.encode("utf-8", "surrogatepass"), *([END] if ended else [])]


def _text_of(example: Example) -> str:
    return _written(example.prompt)


def _written(said: Prompt) -> str:
    return said if isinstance(said, str) else "\n".join(f"{m['role']}: {m['content']}" for m in said)
