"""Functions that a model may call: how it is told of them, how its calls are read, and what comes back."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError, validate_call

from rlalign import ConfigError

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MEANT = re.compile(r'\[?\s*\{\s*"name"\s*:')
"""How a bare call begins, whether or not the rest can be read."""


class Call(NamedTuple):
    """A function's name and what it is to be given; or why a call cannot be read."""

    name: str = ""
    arguments: Mapping[str, Any] = {}
    wrong: str = ""


class Answer(NamedTuple):
    """What comes back for a call."""

    name: str
    text: str
    fault: str | None = None
    """`unreadable`, `unknown` or `failed`."""


class Tool:
    """A function with types, its name and docstring told to a model; arguments are checked against the types."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = str(getattr(function, "__name__", type(function).__name__))
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise ConfigError(
                    f"the tool `{self.name}` takes `{parameter}` by position; arguments come by name"
                )
            if parameter.annotation is parameter.empty:
                raise ConfigError(
                    f"the tool `{self.name}` does not say of which type `{parameter.name}` is, and a model must know: "
                    f"write `{parameter.name}: int`, for instance"
                )
        self._call = validate_call(function)
        self._parameters = TypeAdapter(function).json_schema()  # type: ignore[arg-type]
        for about in self._parameters["properties"].values():
            about.pop("title", None)  # the name once more
        self._about = inspect.getdoc(function) or ""

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it."""
        told = {"name": self.name, "description": self._about, "parameters": self._parameters}
        return {"type": "function", "function": told}

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        found = self._call(**arguments)
        return found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False)


def read(text: str) -> Sequence[Call]:
    """The calls in a response: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, or nothing but that JSON."""
    if tagged := _TAGGED.findall(text):
        return [call for said in tagged for call in _read(said)]
    said = text.strip()
    return _read(said) if _MEANT.match(said) else []


def _read(said: str) -> list[Call]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError) as error:
        return [Call(wrong=f"this is no JSON: {error}")]
    return [_call(each) for each in (found if isinstance(found, list) else [found])]


def _call(said: Any) -> Call:
    name = said.get("name") if isinstance(said, dict) else None
    if not isinstance(name, str):
        return Call(wrong='a call is {"name": …, "arguments": {…}}')
    arguments = said.get("arguments", said.get("parameters", {}))
    if isinstance(arguments, str):  # as OpenAI writes them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        return Call(wrong=f'the "arguments" of `{name}` are no JSON object')
    return Call(name, arguments)


def answer(call: Call, tools: Mapping[str, Tool], most: int) -> Answer:
    """What is told of a call, at most so many characters of it. Whatever goes wrong is told, too."""
    name, text, fault = _answer(call, tools, most)
    return Answer(_whole(name), _whole(text), fault)


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which JSON may spell and no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _answer(call: Call, tools: Mapping[str, Tool], most: int) -> Answer:
    if call.wrong:
        return Answer("", f"Error: {call.wrong}", "unreadable")
    if call.name not in tools:
        return Answer(
            call.name, f"Error: there is no tool `{call.name}`; there are {', '.join(tools)}", "unknown"
        )
    try:
        text, fault = tools[call.name](call.arguments), None
    except ValidationError as error:
        said = (
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)[:5]
        )
        text, fault = f"Error: {'; '.join(said)}", "failed"
    except (Exception, SystemExit) as error:
        text, fault = f"Error: {type(error).__name__}: {error}", "failed"
    if len(text) > most:
        text = f"{text[:most]}… (the first {most:,} of {len(text):,} characters)"
    return Answer(call.name, text, fault)
