"""A policy for rlalign: a small recurrent network over a list of words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from rlalign import Example, Options, Policy, RLAlignError, Rollout, Value, logged_rollout
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["ExampleName", "Recurrent"]

# Letters at the end of a name are the shape of a tensor: N responses, T steps, M of these that the policy chose,
# n responses that are still being written, C the width, V the words and the end.


class ExampleName(Policy):
    """A gated recurrent network that reads and writes words of a list."""

    # What the YAML may say, as a pydantic model: types and bounds are checked before anything runs, and
    # `rlalign plugins example-name` prints the descriptions. An option without a default must be given.
    class Config(Options):
        """Options of `example-name`."""

        words: tuple[str, ...] = Field(min_length=1, description="the words it writes")
        width: int = Field(16, gt=0, description="numbers in the state of the network")
        seed: int = Field(0, ge=0, description="of the first weights")

        @field_validator("words")
        @classmethod
        def _are_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
            if wrong := next((word for word in words if len(word.split()) != 1), None):
                raise ValueError(f"`{wrong}` is not one word")
            return words

    config: Config

    # Make the weights, or load them. `__init__` stays cheap: `rlalign check` calls it for every pipeline.
    def setup(self) -> None:
        words, width = self.config.words, self.config.width
        self.ends = (len(words),)  # the tokens that end a response
        self.other = len(words) + 1  # any other word of a prompt, and an empty prompt
        with torch.random.fork_rng(devices=[]):  # the random numbers of the process are everybody's
            torch.manual_seed(self.config.seed)
            self.embed = nn.Embedding(len(words) + 2, width)
            self.cell = nn.GRU(width, width, batch_first=True)
            self.output = nn.Linear(width, len(words) + 1, bias=False)

    # -- text and tokens: what a token is, is the policy's own business --------------------------------

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        return tuple(self._read(str(example.prompt)) for example in examples)

    def _read(self, text: str) -> Tensor:
        known = {word: i for i, word in enumerate(self.config.words)}
        tokens = [known.get(word, self.other) for word in text.split()]
        return torch.tensor(tokens or [self.other], device=self.output.weight.device)

    # Logged responses, which may hold anything: refuse what cannot be written, and say which example it is.
    def encode(self, examples: Sequence[Example]) -> Rollout:
        known = {word: i for i, word in enumerate(self.config.words)}
        rows: list[tuple[list[int], bool]] = []
        for example in examples:
            for i, text in enumerate(example.responses):
                if foreign := [word for word in text.split() if word not in known]:
                    raise RLAlignError(f"example `{example.id}`: `{foreign[0]}` is not among the words")
                ended = example.finished[i] if example.finished else True
                rows.append(([known[word] for word in text.split()] + [*self.ends] * ended, ended))
        return logged_rollout(examples, self.prompts(examples), rows, like=self.output.weight)

    def text(self, actions_T: Tensor) -> str:
        return " ".join(self.config.words[a] for a in actions_T.tolist() if a not in self.ends)

    # -- the network, twice: step by step for sampling, and all steps at once for learning. Both must agree. -----

    def decoder(self, inputs: Sequence[Tensor], k: int) -> Recurrent:
        return Recurrent(self, self._after(inputs).repeat_interleave(k, 0))

    def _after(self, inputs: Sequence[Tensor]) -> Tensor:
        """[G,C]: the state after each prompt. One by one: padding would move the state."""
        return torch.stack([self.cell(self.embed(prompt))[1][0] for prompt in inputs])

    # The M rows of `rollout.chosen`: the state before each step that the policy chose. With `last`, N rows more: the
    # state after each response. Columns behind a response's end are padding, and nothing may depend on them.
    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        first_NC = self._after(rollout.inputs)[rollout.group_N]
        later_NTC, _ = self.cell(self.embed(rollout.actions_NT), first_NC[None].contiguous())
        states_NTC = torch.cat([first_NC[:, None], later_NTC], 1)  # at t: what was read before step t
        row_M, step_M = rollout.chosen
        if last:
            rows_N = torch.arange(len(rollout), device=row_M.device)
            row_M, step_M = torch.cat([row_M, rows_N]), torch.cat([step_M, rollout.length_N])
        return states_NTC[row_M, step_M]

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(features)
        return logits

    # A head that is one matrix: the engine then never holds all logits at once. Leave it out otherwise.
    def head_matrix(self) -> Tensor:
        return self.output.weight

    # -- copies and files --------------------------------------------------------------------------------

    # For a KL and for methods that keep an older policy. `value`: what PPO's critic is made of.
    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Policy | Value:
        if role == "value":
            raise RLAlignError("example-name has no value; use an algorithm that needs none, such as `rloo`")
        twin = ExampleName(self.config)
        twin.setup()
        twin.to(self.output.weight)
        twin.load_state_dict(self.state_dict())
        return twin

    def save(self, folder: Path) -> None:
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        config = {"model": "example-name", **self.config.model_dump()}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


class Recurrent:
    """Responses in progress: the state of each. Rows of a prompt stand side by side."""

    def __init__(self, policy: ExampleName, state_nC: Tensor) -> None:
        self.policy = policy
        self.state_nC = state_nC

    def logits(self) -> Tensor:
        return self.policy.head(self.state_nC)

    def advance(self, tokens_n: Tensor) -> None:
        read_n1C = self.policy.embed(tokens_n[:, None])
        self.state_nC = self.policy.cell(read_n1C, self.state_nC[None].contiguous())[1][0]

    # Responses that have ended are left out, so rows are not always those of the start.
    def select(self, rows: Tensor) -> None:
        self.state_nC = self.state_nC[rows]
