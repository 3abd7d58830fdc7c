"""A policy whose logits are free numbers, one set a response: every golden case can be written into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from rlalign.data.example import Example
from rlalign.data.rollout import Rollout, logged_rollout
from rlalign.data.settings import Options, Sampling
from rlalign.decoding.interfaces import Constraint, Finished
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy, Value


class Logits(Policy):
    """Logits [prompts × responses, steps + 1, V], or with `hidden` a tanh trunk of that width and a linear head.

    An example's prompt is its number, as text; a response is its tokens, separated by spaces. Which
    numbers a response reads follows from the column `slot`, its place among its prompt's responses.
    """

    class Config(Options):
        """Options of `logits`."""

        prompts: int = Field(6, gt=0, description="how many prompts there are")
        responses: int = Field(5, gt=0, description="responses per prompt that have logits of their own")
        steps: int = Field(7, gt=0, description="the longest response")
        vocabulary: int = Field(11, gt=1, description="tokens; the last one ends a response if `ending`")
        hidden: int | None = Field(None, description="width of the trunk; null: the features are the logits")
        ending: bool = Field(True, description="whether the last token ends a response")
        seed: int = Field(0, description="of the first weights")
        scale: float = Field(1.0, description="standard deviation of the first weights")
        dropout: float = Field(0.0, ge=0, lt=1, description="in the trunk")

    config: Config

    def setup(self) -> None:
        c = self.config
        generator = torch.Generator().manual_seed(c.seed)
        width = c.hidden or c.vocabulary

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                c.scale * torch.randn(*shape, generator=generator, dtype=torch.float64).float()
            )

        self.free = weights(c.prompts * c.responses, c.steps + 1, width)
        if c.hidden is not None:
            self.mixing = weights(width, width)
            self.output = nn.Parameter(weights(width, c.vocabulary).detach().T.contiguous())
        self.dropout = nn.Dropout(c.dropout)
        self.ends = (c.vocabulary - 1,) if c.ending else ()
        self.horizon = c.steps

    @property
    def width(self) -> int:
        """C."""
        return self.free.shape[-1]

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([int(str(e.prompt))], device=self.free.device) for e in examples)

    def encode(self, examples: Sequence[Example]) -> Rollout:
        rows: list[tuple[list[int], bool]] = []
        for example in examples:
            for j, text in enumerate(example.responses):
                ended = bool(self.ends) and (example.finished[j] if example.finished else True)
                tokens = [int(token) for token in text.split()] + (list(self.ends) if ended else [])
                if not tokens or len(tokens) > self.config.steps:
                    raise RLAlignError(f"example `{example.id}`: a response of {len(tokens)} tokens")
                rows.append((tokens, ended))
        rollout = logged_rollout(examples, self.prompts(examples), rows, like=self.free)
        slots = [j for example in examples for j in range(len(example.responses))]
        return rollout.with_columns(slot=torch.tensor(slots, dtype=torch.long, device=self.free.device))

    def text(self, actions_T: Tensor) -> str:
        return " ".join(str(a) for a in actions_T.tolist() if a not in self.ends)

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        def numbered(rollout: Rollout) -> Rollout:
            slots = torch.arange(how.samples, device=self.free.device).repeat(len(rollout.examples))
            return rollout.with_columns(slot=slots)

        tell = finished and (lambda part: finished(numbered(part)))
        return numbered(super().sample(examples, how, uniforms, within, tell))

    def decoder(self, inputs: Sequence[Tensor], k: int) -> LogitsDecoder:
        slot_n = torch.arange(k, device=self.free.device).repeat(len(inputs))
        return LogitsDecoder(self, self._index(torch.cat(list(inputs)).repeat_interleave(k), slot_n))

    def _index(self, prompt: Tensor, slot: Tensor) -> Tensor:
        return prompt * self.config.responses + slot % self.config.responses

    def index_of(self, rollout: Rollout, last: bool = False) -> tuple[Tensor, Tensor]:
        """(which logits, which step) of every feature row."""
        index_N = self._index(torch.cat(list(rollout.inputs))[rollout.group_N], rollout.columns["slot"])
        row_M, step_M = rollout.chosen
        if not last:
            return index_N[row_M], step_M
        return torch.cat([index_N[row_M], index_N]), torch.cat([step_M, rollout.length_N])

    def trunk(self, free: Tensor) -> Tensor:
        """From free numbers to features."""
        dropped: Tensor = self.dropout(free)
        return dropped if self.config.hidden is None else torch.tanh(dropped @ self.mixing)

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        return self.trunk(self.free[self.index_of(rollout, last)])

    def head(self, features: Tensor) -> Tensor:
        return features if self.config.hidden is None else nn.functional.linear(features, self.output)

    def head_matrix(self) -> Tensor | None:
        return None if self.config.hidden is None else self.output

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Logits | FreeValue:
        if role == "value":
            value = FreeValue(FreeValue.Config())
            value.setup(self)
            return value
        twin = Logits(self.config)
        twin.setup()
        twin.to(self.free)
        twin.load_state_dict(self.state_dict())
        return twin

    def save(self, folder: Path) -> None:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(self.config.model_dump()) + "\n")


class LogitsDecoder:
    """Responses in progress: which logits each row reads, and at which step."""

    def __init__(self, policy: Logits, index_n: Tensor) -> None:
        self.policy = policy
        self.index_n = index_n
        self.step = 0

    def logits(self) -> Tensor:
        return self.policy.head(self.policy.trunk(self.policy.free[self.index_n, self.step]))

    def advance(self, tokens_n: Tensor) -> None:
        self.step += 1

    def select(self, rows: Tensor) -> None:
        self.index_n = self.index_n[rows]


class FreeValue(Value):
    """One free value a state of a `logits` policy."""

    def setup(self, policy: Policy) -> None:
        assert isinstance(policy, Logits)
        self._policy = [policy]  # in a list: the policy is no part of this module
        self.free = nn.Parameter(torch.zeros(policy.free.shape[:2], dtype=policy.free.dtype))

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        return self.free[self._policy[0].index_of(rollout, last)]


class LinearValue(Value):
    """A linear head on a model's features."""

    class Config(Options):
        """Options of `linear-value`."""

        trunk: str = Field("policy", description="the model whose features it reads")

    config: Config

    def setup(self, policy: Policy) -> None:
        assert isinstance(policy, Logits)
        self.trunk = self.config.trunk
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(policy.width, generator=generator).to(policy.free.dtype))

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        assert features is not None
        return features @ self.weight
