"""A tabular softmax policy: one row of logits a state, so that everything about it can be worked out by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from rlalign import (
    Constraint,
    Example,
    Options,
    Policy,
    RLAlignError,
    Rollout,
    Sampling,
    Value,
    logged_rollout,
)
from rlalign.data.example import Prompt
from rlalign.data.limits import NEW_TOKENS, require_memory
from rlalign.data.spoken import Spoken, row_of
from rlalign.decoding.interfaces import Finished
from rlalign_plugin_table.decoder import TableDecoder

__all__ = ["Table", "TableValue"]

MOST_ACTIONS = 10**6
"""Actions of a table."""
TURNS = ("observation", "turn")
"""A state that tells turns apart."""


class Table(Policy):
    """π(a|s) = softmax of the state's row. The state is the prompt, with the step or the previous action."""

    speaks = False

    class Config(Options):
        """Options of `table`."""

        actions: Annotated[int, Field(gt=0, le=MOST_ACTIONS)] | tuple[str, ...] = Field(
            description="how many actions, or their names"
        )
        steps: int = Field(1, gt=0, le=NEW_TOKENS, description="the longest response")
        end: str | None = Field(
            None, description="the action that ends a response; null: all have `steps` steps"
        )
        state: (
            Literal["prompt", "step", "previous", "observation"]
            | tuple[Literal["observation"], Literal["turn"]]
        ) = Field(
            "prompt",
            description="what a state is beside the prompt: nothing, the step, or the previous action; or in its place "
            "what an environment said last, alone or with the turn (`[observation, turn]`)",
        )
        turns: int = Field(
            1, gt=0, le=NEW_TOKENS, description="turns of the longest episode, where the state has the turn"
        )
        prompts: tuple[str, ...] = Field(
            (), description="prompts and observations with states of their own; none: all share theirs"
        )
        scores: Annotated[Path, Field(strict=False)] | dict[str, dict[str, float]] = Field(
            {},
            description="logits to begin with, by prompt or observation and action, or a JSON file of them; 0 where "
            "nothing is said",
        )

        @model_validator(mode="after")
        def _names_make_sense(self) -> Table.Config:
            for name in self.names:
                if len(name.split()) != 1:
                    raise ValueError(
                        f"`{name}` is not one word; a response is its actions' names with spaces between"
                    )
            for names in (self.names, self.prompts):
                if twice := next((name for name, times in Counter(names).items() if times > 1), None):
                    raise ValueError(f"`{twice}` is named twice")
            if self.end is not None and self.end not in self.names:
                raise ValueError(f"end: `{self.end}` is not among the actions {', '.join(self.names)}")
            return self

        @property
        def names(self) -> tuple[str, ...]:
            """The actions' names."""
            return tuple(map(str, range(self.actions))) if isinstance(self.actions, int) else self.actions

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.names = self.config.names
        self.horizon = self.config.steps
        require_memory(
            f"a table of {self.states:,} states × {len(self.names):,} actions, with its gradient and AdamW's moments,",
            *(self.states, len(self.names), 4, 4),
            remedy="lower `actions`, `steps` or the number of `prompts`",
        )

    def setup(self) -> None:
        self.ends = () if self.config.end is None else (self.names.index(self.config.end),)
        self.table = nn.Parameter(self._first())

    def _first(self) -> Tensor:
        """The table to begin with."""
        scores, each = self.config.scores, self._states_per_prompt()
        if isinstance(scores, Path):
            scores = json.loads(scores.read_text())
        table = torch.zeros(self.states, len(self.names))
        for prompt, said in scores.items():
            place = self._prompt(Example("scores", prompt))
            if unknown := [name for name in said if name not in self.names]:
                raise RLAlignError(
                    f"scores of {prompt!r}: `{unknown[0]}` is not among the actions {', '.join(self.names)}"
                )
            for name, score in said.items():
                table[place * each : (place + 1) * each, self.names.index(name)] = score
        return table

    @property
    def states(self) -> int:
        """Rows of the table, those after a last step included."""
        return max(1, len(self.config.prompts)) * self._states_per_prompt()

    def _states_per_prompt(self) -> int:
        many = {"step": self.config.steps + 1, "previous": len(self.names) + 1, TURNS: self.config.turns}
        return many.get(self.config.state, 1)

    @property
    def observes(self) -> bool:
        """Whether a state is what an environment said last."""
        return self.config.state in ("observation", TURNS)

    def _state(self, prompt: Tensor, step: Tensor, previous: Tensor, turn: Tensor) -> Tensor:
        """Row of the table; `previous` is −1 before the first action."""
        if self.config.state == TURNS and bool((turn >= self.config.turns).any()):
            raise RLAlignError(
                f"an episode has more than {self.config.turns} turns; raise the table's `turns` to those of the "
                "environment"
            )
        within = {"step": step, "previous": previous + 1, TURNS: turn}
        return prompt * self._states_per_prompt() + within.get(self.config.state, torch.zeros_like(step))

    # -- text and prompts ---------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        places = [self._prompt(example) for example in examples]
        tensors = {place: torch.tensor([place], device=self.table.device) for place in dict.fromkeys(places)}
        return tuple(tensors[place] for place in places)

    def _prompt(self, example: Example) -> int:
        if not self.config.prompts:
            return 0
        if example.prompt not in self.config.prompts:
            raise RLAlignError(
                f"example `{example.id}`: the table has no prompt {example.prompt!r}; add it to `prompts`"
            )
        return self.config.prompts.index(str(example.prompt))

    def encode(self, examples: Sequence[Example]) -> Rollout:
        known: dict[tuple[str, bool], tuple[list[int], bool]] = {}
        rows = []
        chosen: list[list[bool] | None] = []
        for example in examples:
            for j, text in enumerate(example.responses):
                finished = example.finished[j] if example.finished else True
                if isinstance(text, Spoken):
                    tokens, own = row_of(text, partial(self._turn, example), self.given)
                    rows.append((tokens, finished))
                    chosen.append(own)
                    continue
                chosen.append(None)
                if (text, finished) not in known:
                    known[text, finished] = self._actions(example, text, finished)
                rows.append(known[text, finished])
        return logged_rollout(examples, self.prompts(examples), rows, like=self.table, chosen=chosen)

    def _turn(self, example: Example, text: str, ended: bool) -> list[int]:
        return self._actions(example, text, finished=ended)[0]

    def _actions(self, example: Example, text: str, finished: bool) -> tuple[list[int], bool]:
        """The actions of a logged response, and whether it ended by itself."""
        unknown = [word for word in text.split() if word not in self.names]
        if unknown:
            raise RLAlignError(
                f"example `{example.id}`: `{unknown[0]}` is not among the actions {', '.join(self.names)}"
            )
        actions = [self.names.index(word) for word in text.split()]
        if finished:
            actions += self.ends
        if len(actions) > self.config.steps:
            raise RLAlignError(
                f"example `{example.id}`: a response of {len(actions)} actions; the table has {self.config.steps} steps"
            )
        return actions, finished if self.ends else len(actions) == self.config.steps

    def text(self, actions_T: Tensor) -> str:
        return " ".join(self.names[a] for a in actions_T.tolist() if a not in self.ends)

    def given(self, say: Prompt, closed: bool) -> Tensor:
        """An observation is one token beyond the actions: its place among `prompts`."""
        if self.config.state == "step":
            raise RLAlignError(
                "a table whose states are steps plays no episodes of several turns: say `state: observation`"
            )
        if not say and self.config.state == TURNS:
            raise RLAlignError(
                "the environment says nothing between two turns, and a table with `state: [observation, turn]` counts "
                "them by what is said; say `state: observation`"
            )
        if not say or (not self.observes and not self.config.prompts):
            return torch.empty(0, dtype=torch.long)
        if not self.observes:
            raise RLAlignError(
                f"the environment says {say!r}, which this table does not remember: say `state: observation`"
            )
        place = self._prompt(Example("observation", say))
        return torch.tensor([len(self.names) + place])

    def words(self, choices: Sequence[str]) -> Sequence[Sequence[int]]:
        for word in (word for choice in choices for word in choice.split()):
            if word not in self.names:
                known = ", ".join(self.names)
                raise RLAlignError(
                    f"the environment allows `{word}`, which is not among the table's actions {known}"
                )
        return [[self.names.index(word) for word in choice.split()] for choice in choices]

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        tell = finished and (lambda part: finished(self._ended(part)))
        return self._ended(super().sample(examples, how, uniforms, within, tell))

    def _ended(self, rollout: Rollout) -> Rollout:
        """Without an ending action a response is over, not cut, after its last step."""
        if self.ends:
            return rollout
        return replace(rollout, finished_N=rollout.length_N == self.config.steps)

    # -- the model ------------------------------------------------------------------------------------

    def decoder(self, inputs: Sequence[Tensor], k: int) -> TableDecoder:
        return TableDecoder(self, torch.cat(list(inputs)).repeat_interleave(k))

    def states_of(self, rollout: Rollout, last: bool = False) -> Tensor:
        """[M] states of the chosen steps; with `last`, the N states after the responses too."""
        if self.observes:
            return self._observed(rollout, last)
        prompt_G = torch.cat(list(rollout.inputs))
        row_M, step_M = rollout.chosen
        previous_M = torch.where(step_M > 0, rollout.actions_NT[row_M, (step_M - 1).clamp_min(0)], -1)
        state_M = self._state(prompt_G[rollout.group_N[row_M]], step_M, previous_M, torch.zeros_like(step_M))
        if not last:
            return state_M
        length_N = rollout.length_N
        rows_N = torch.arange(len(rollout), device=length_N.device)
        final_N = rollout.actions_NT[rows_N, length_N - 1]
        after_N = self._state(prompt_G[rollout.group_N], length_N, final_N, torch.zeros_like(length_N))
        return torch.cat([state_M, after_N])

    def _observed(self, rollout: Rollout, last: bool) -> Tensor:
        """The same where a state is what was said last: the prompt at first."""
        row_M, step_M = rollout.chosen
        if last:
            row_M = torch.cat([row_M, torch.arange(len(rollout), device=row_M.device)])
            step_M = torch.cat([step_M, rollout.length_N])
        # In front of a row's tokens stands its prompt, as if it had been said then.
        prompt_N1 = torch.cat(list(rollout.inputs))[rollout.group_N][:, None]
        said_NT1 = torch.cat([prompt_N1, rollout.actions_NT - len(self.names)], 1)
        heard_NT1 = torch.cat([torch.ones_like(prompt_N1, dtype=torch.bool), ~rollout.mask_NT], 1)
        place_NT1 = torch.arange(rollout.steps + 1, device=row_M.device).where(heard_NT1, 0).cummax(1).values
        turn_M = (heard_NT1.cumsum(1) - 1)[row_M, step_M]
        return self._state(said_NT1.gather(1, place_NT1)[row_M, step_M], step_M, step_M, turn_M)

    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        return self.table[self.states_of(rollout, last)]

    def head(self, features: Tensor) -> Tensor:
        return features

    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Table | TableValue:
        if role == "value":
            value = TableValue(TableValue.Config())
            value.setup(self)
            return value
        twin = Table(self.config)
        twin.setup()
        twin.to(self.table)
        twin.load_state_dict(self.state_dict())
        return twin

    def save(self, folder: Path) -> None:
        save_file({"table": self.table.detach().cpu().contiguous()}, folder / "model.safetensors")
        config = {
            "model": "table",
            "actions": list(self.names),
            **self.config.model_dump(exclude={"actions", "scores"}),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


class TableValue(Value):
    """One value a state of the policy's table."""

    def setup(self, policy: Policy) -> None:
        if not isinstance(policy, Table):
            raise RLAlignError(f"a table of values needs a `table` policy, not a {type(policy).__name__}")
        self._states = [policy]  # in a list: the policy is no part of this module
        self.table = nn.Parameter(torch.zeros(policy.states, dtype=policy.table.dtype))

    def values(self, rollout: Rollout, features: Tensor | None = None, last: bool = False) -> Tensor:
        return self.table[self._states[0].states_of(rollout, last)]
