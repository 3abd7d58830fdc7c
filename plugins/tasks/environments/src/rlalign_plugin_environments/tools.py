"""Tools: a chat model may call functions before it answers, and only the answer is judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, computed_field, field_validator, model_validator
from torch import Generator

from rlalign import ConfigError, Environment, Episode, Example, Turn
from rlalign_plugin_dataset import Dataset
from rlalign_plugin_environments.calls import Call, Tool, answer, read
from rlalign_plugin_environments.functions import named
from rlalign_plugin_environments.sandbox import Sandbox, python_tool
from rlalign_plugin_function_reward.source import FunctionPath, digests
from rlalign_plugin_text_metrics.numeric import answer_of, same

DESCRIBED = """You may call these functions:
<tools>
{tools}
</tools>
To call one, answer with nothing but
<tool_call>{{"name": …, "arguments": {{…}}}}</tool_call>
and its result comes back. When you know enough, answer without a call."""


class Tools(Dataset, Environment):
    """Questions of a data set, and functions that the policy may call, turn by turn, before it answers."""

    class Config(Dataset.Config):
        """Options of `tools`: those of `dataset`, and its own."""

        use: tuple[FunctionPath, ...] = Field(
            (), description="functions that may be called: `my_tools.py:search`, or `package.module:search`"
        )
        python: Sandbox | None = Field(
            None,
            description="offer `python`, which runs code in a process of its own: `true`, or its limits "
            "(`seconds`, `memory`, `output`)",
        )
        schemas: Literal["template", "message"] = Field(
            "template",
            description="how the policy is told what it may call: by its chat template, or in the system message",
        )
        parse: FunctionPath | None = Field(
            None,
            description="a function that gives the calls in a response, as (name, arguments); null: "
            "`<tool_call>{…}</tool_call>`, or bare JSON",
        )
        judge: FunctionPath | None = Field(
            None,
            description="a function (answer, example) → number; null: 1 for the answer of a reference, by number "
            "where it has one",
        )
        turns: int = Field(
            4, gt=0, le=1_000, description="responses of the longest episode, the answer included"
        )
        tokens: int = Field(1024, gt=0, description="tokens of the longest episode, what is told included")
        told: int = Field(2_000, gt=0, description="characters of a result that are told")

        @field_validator("python", mode="before", json_schema_input_type=bool | Sandbox | None)
        @classmethod
        def _said_shortly(cls, said: Any) -> Any:
            return ({} if said else None) if isinstance(said, bool) else said

        @model_validator(mode="after")
        def _something_to_call(self) -> Tools.Config:
            if not self.use and self.python is None:
                raise ValueError(
                    "there is nothing to call; name functions under `use`, or say `python: true`"
                )
            return self

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([*self.use, self.parse, self.judge])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns, self.tokens = config.turns, config.tokens

    @cached_property
    def tools(self) -> Mapping[str, Tool]:
        """By name."""
        c = self.config
        made = [Tool(named(path)) for path in c.use]
        made += [Tool(python_tool(c.python))] if c.python is not None else []
        names = Counter(tool.name for tool in made)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ConfigError(f"two tools are called `{twice[0]}`; a model could not tell them apart")
        return {tool.name: tool for tool in made}

    @cached_property
    def read(self) -> Callable[[str], Sequence[Call]]:
        """The calls in a response."""
        if self.config.parse is None:
            return read
        parse = named(self.config.parse)
        return lambda text: [Call(str(name), arguments) for name, arguments in parse(text)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        return _Asked(self, example), Turn(self.told(example))

    def told(self, example: Example) -> list[Mapping[str, Any]]:
        """A question, with what may be called: with the first message for a chat template, or in words."""
        said = example.prompt
        chat = [{"role": "user", "content": said}] if isinstance(said, str) else [dict(m) for m in said]
        schemas = [tool.schema for tool in self.tools.values()]
        if self.config.schemas == "template":
            return [{**chat[0], "tools": schemas}, *chat[1:]]
        words = DESCRIBED.format(tools="\n".join(map(json.dumps, schemas)))
        if chat[0]["role"] == "system":
            return [{**chat[0], "content": f"{chat[0]['content']}\n\n{words}"}, *chat[1:]]
        return [{"role": "system", "content": words}, *chat]

    def judged(self, said: str, example: Example) -> float:
        """What an answer is worth."""
        if self.config.judge is not None:
            return float(named(self.config.judge)(said, example))
        right = [answer_of(each) for each in example.references]
        if right and None not in right:
            found = answer_of(said)
            return float(found is not None and any(same(found, x, 0) for x in right if x is not None))
        return float(said.strip().casefold() in (each.strip().casefold() for each in example.references))


class _Asked:
    """A question that has no answer yet."""

    def __init__(self, tools: Tools, example: Example) -> None:
        self._tools, self._example = tools, example

    def step(self, text: str) -> Turn:
        try:
            calls = self._tools.read(text)
        except ValueError as error:  # of a `parse`
            calls = [Call(wrong=str(error))]
        if not calls:
            return Turn(reward=self._tools.judged(text, self._example), done=True, metrics={"answered": 1})
        told = [answer(call, self._tools.tools, self._tools.config.told) for call in calls]
        faults = Counter(each.fault for each in told if each.fault)
        say = [{"role": "tool", "name": each.name, "content": each.text} for each in told]
        return Turn(say, metrics={"calls": len(calls), **faults})
