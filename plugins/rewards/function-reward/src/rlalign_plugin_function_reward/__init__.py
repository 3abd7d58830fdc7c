"""A user's Python function as a reward: a batch of responses in, one number each out."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, computed_field, field_validator, model_validator

from rlalign import (
    Code,
    Component,
    ComponentError,
    ConfigError,
    Example,
    Options,
    Rollout,
    Run,
    RunsCode,
    Score,
    hookimpl,
)
from rlalign.errors import said_by
from rlalign_plugin_function_reward.source import (
    Asked,
    asked_by,
    asked_in,
    digest,
    load,
    locate,
    tail,
)

__all__ = ["Function", "numbers"]

GIVEN = {
    "rlalign": ("prompts", "texts", "references", "meta", "examples"),
    "trl": ("prompts", "completions", "completion_ids"),
}
"""What a function of each style may ask for; of style `trl` further names are columns of the data."""
OF_THE_TRAINER = ("trainer_state", "log_extra", "log_metric")
SEARCH_SECONDS = 5.0
"""How long the response is looked for at which a function raises."""


class Function(Component):
    """What a Python function says of each response."""

    class Config(Options):
        """Options of `function`."""

        path: Annotated[Path, RunsCode] = Field(
            strict=False, description="the function: `my_rewards.py:score`, or `package.module:score`"
        )
        style: Literal["rlalign", "trl"] = Field(
            "rlalign",
            description="what it is called with: any of prompts, texts, references, meta, examples; or, as TRL does, "
            "prompts, completions and columns of the data",
        )
        arguments: dict[str, Any] = Field({}, description="further arguments, passed by name")
        none: float | None = Field(
            None, description="what a None (no opinion) counts as; null: a None is an error"
        )
        files: tuple[Path, ...] = Field(
            (), description="other files it reads or imports: a change in one is a change of the reward"
        )

        @field_validator("path")
        @classmethod
        def _exists(cls, path: Path) -> Path:
            locate(path)
            return path

        @field_validator("files")
        @classmethod
        def _exist(cls, files: tuple[Path, ...]) -> tuple[Path, ...]:
            if missing := [file for file in files if not file.is_file()]:
                raise ValueError(f"{missing[0]}: there is no such file")
            return files

        @model_validator(mode="after")
        def _can_be_called(self) -> Function.Config:
            asked = asked_in(self.source)
            if asked is not None and (wrong := unfit(asked, self.style, self.arguments)):
                raise ValueError(f"{self.source} {wrong}")
            return self

        @cached_property
        def source(self) -> Code:
            """Where the function is."""
            return locate(self.path)

        @computed_field(description="a hash of the function's code: another code is another reward")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digest(self.source, self.files)

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self._function: Callable[..., Any] | None = None
        self._asked = Asked((), (), any_keyword=False)

    def setup(self, run: Run) -> None:
        c = self.config
        if digest(c.source, c.files) != c.digest:
            raise ConfigError(f"{c.source}: the file has changed since the run was prepared; start again")
        try:
            self._function = load(c.source, c.digest)
        except (ConfigError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too
            raise ConfigError(f"{c.source}: importing it raised {tail(error, c.source)}") from error
        self._asked = asked_by(self._function)
        if wrong := unfit(self._asked, c.style, c.arguments):
            raise ConfigError(f"{c.source} {wrong}")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        given = self._given(rollout)
        what = str(self.config.source)
        rows = list(range(len(rollout)))
        try:
            result = self._call(given, rows)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too
            said = tail(error, self.config.source)
            raise ComponentError(f"{what} raised {said}{self._guilty(error, given, rollout)}") from error
        try:
            values = numbers(result, len(rollout))
        except ValueError as error:
            raise ComponentError(f"{what} {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = f"a {type(result).__name__} that cannot be read: {type(error).__name__}: {said_by(error)}"
            raise ComponentError(f"{what} returned {said}") from error
        silent = [i for i, value in enumerate(values) if value is None]
        if self.config.none is None:
            if silent:
                raise ComponentError(
                    f"{what} gave None for {len(silent)} of {len(rollout)} responses, the first "
                    f"{_row(rollout, silent[0])}; is a `return` missing? `none: 0` would count no opinion as 0"
                )
            return Score(torch.tensor(values, dtype=torch.float64))
        filled = [self.config.none if value is None else value for value in values]
        answered = torch.tensor([value is not None for value in values], dtype=torch.float64)
        return Score(torch.tensor(filled, dtype=torch.float64), metrics={"answered": answered})

    def _call(self, given: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> Any:
        assert self._function is not None
        arguments = {name: [values[i] for i in rows] for name, values in given.items()}
        result = self._function(**arguments, **self.config.arguments)
        return _awaited(result) if inspect.isawaitable(result) else result

    # -- what it is given -------------------------------------------------------------------------------

    def _given(self, rollout: Rollout) -> dict[str, Sequence[Any]]:
        examples = [rollout.examples[g] for g in rollout.group_N.tolist()]
        offers: dict[str, Callable[[], Sequence[Any]]] = {
            "prompts": lambda: [e.prompt for e in examples],
            "texts": lambda: rollout.texts,
            "completions": lambda: [_completion(e, t) for e, t in zip(examples, rollout.texts, strict=True)],
            "completion_ids": lambda: _ids(rollout),
            "references": lambda: self._references(examples),
            "meta": lambda: [dict(e.meta) for e in examples],
            "examples": lambda: examples,
        }
        names = [n for n in GIVEN[self.config.style] if n in self._asked.names or self._asked.any_keyword]
        found = {name: offers[name]() for name in names if name not in self.config.arguments}
        return found | (self._columns(examples, found) if self.config.style == "trl" else {})

    def _references(self, examples: Sequence[Example]) -> list[list[str]]:
        lacking = (
            e for e in examples if not e.references and ("references" not in e.meta or "blind" in e.meta)
        )
        without = next(lacking, None)
        if without is not None and "references" in self._asked.required:
            raise ComponentError(
                f"{self.config.source} asks for references, and {without.without_references}"
            )
        found = [e.meta.get("references", []) for e in examples]
        return [[each] if isinstance(each, str) else list(each) for each in found]

    def _columns(self, examples: Sequence[Example], taken: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """Every key of `meta` that the function takes, as TRL passes the columns of a dataset."""
        there = list(dict.fromkeys(name for e in {id(e): e for e in examples}.values() for name in e.meta))
        missing = [n for n in self._asked.required if n not in (*there, *taken, *self.config.arguments)]
        if missing:
            raise ComponentError(
                f"{self.config.source} asks for `{missing[0]}`, and the data has no such column "
                f"(columns: {', '.join(there) or 'none'})"
            )
        names = [
            n
            for n in there
            if n not in (*taken, *self.config.arguments)
            and (self._asked.any_keyword or n in self._asked.names)
        ]
        return {name: [e.meta.get(name) for e in examples] for name in names}

    # -- when it goes wrong ---------------------------------------------------------------------------------

    def _guilty(self, error: BaseException, given: Mapping[str, Sequence[Any]], rollout: Rollout) -> str:
        """Which response it is, found by asking for each alone."""
        if len(rollout) == 1:
            return f", at the response {_row(rollout, 0)}"
        started = time.monotonic()
        for row in range(len(rollout)):
            if time.monotonic() - started > SEARCH_SECONDS:
                return ""
            try:
                self._call(given, [row])
            except KeyboardInterrupt:
                raise
            except BaseException as again:
                if type(again) is type(error):
                    return f", as it does for the response {_row(rollout, row)} alone"
        return ", though for no response alone"


def unfit(asked: Asked, style: str, arguments: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called, in words that follow its name."""
    known = (*GIVEN[style], *arguments)
    if asked.positional_only:
        return f"takes `{asked.positional_only[0]}` by position only; arguments are passed by name: remove the `/`"
    if not asked.names and not asked.any_keyword:
        return f"takes no arguments; it may ask for {', '.join(GIVEN[style])}"
    if taken := [name for name in arguments if name in GIVEN[style]]:
        return f"is given `{taken[0]}` anyway; take it out of `arguments`"
    if not asked.any_keyword and (strange := [name for name in arguments if name not in asked.names]):
        return f"takes no `{strange[0]}`, which `arguments` holds (it takes {', '.join(asked.names)})"
    unknown = [name for name in asked.required if name not in known]
    if style == "trl":
        inner = [name for name in unknown if name in OF_THE_TRAINER]
        return f"asks for `{inner[0]}`, which only TRL's trainer has" if inner else None
    if unknown:
        hint = "; as TRL's rewards do? Say `style: trl`" if "completions" in unknown else ""
        return f"asks for `{unknown[0]}`; it may ask for {', '.join(known)}{hint}, and `arguments` may give it more"
    return None


def numbers(result: Any, count: int) -> list[float | None]:
    """One number, or None, for each of `count` responses. Raises ValueError, in words that follow a name."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise ValueError("yields its values; it must return them as a list")
    shape = getattr(result, "shape", None)
    if shape is not None and tuple(shape) != (count,):
        raise ValueError(f"returned an array of {tuple(shape)} for {count} responses; expected ({count},)")
    if shape is not None or hasattr(result, "tolist"):
        result = result.tolist()
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Sequence):
        said = "nothing; is a `return` missing?" if result is None else f"a {type(result).__name__}"
        raise ValueError(f"returned {said}, expected a list of {count} numbers, one a response")
    if len(result) != count:
        raise ValueError(f"returned {len(result)} numbers for {count} responses")
    return [_number(value, i) for i, value in enumerate(result)]


def _number(value: Any, place: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        said = repr(value)
        shown = said if len(said) < 60 else said[:59] + "…"
        raise ValueError(f"returned {shown} as number {place + 1}; expected a float")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"returned a {type(value).__name__} as number {place + 1}: {error}") from error


def _awaited(result: Awaitable[Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where this one has a running loop (a notebook)."""

    async def whole() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(whole())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, whole()).result()


def _completion(example: Example, text: str) -> Any:
    """As TRL gives it: text to a text, a list of one message to a chat."""
    return text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]


def _ids(rollout: Rollout) -> list[list[int]]:
    actions, masks = rollout.actions_NT.tolist(), rollout.mask_NT.tolist()
    return [[a for a, m in zip(*row, strict=True) if m] for row in zip(actions, masks, strict=True)]


def _row(rollout: Rollout, row: int) -> str:
    text = rollout.texts[row]
    shown = repr(text) if len(text) <= 80 else repr(text[:79]) + "…"
    return f"to example `{rollout.examples[int(rollout.group_N[row])].id}` (row {row + 1}): {shown}"
