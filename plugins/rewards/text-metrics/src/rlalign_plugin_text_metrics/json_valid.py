"""Whether a response is JSON, with the keys that are wanted and as a schema says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, computed_field, field_validator, model_validator

from rlalign import ConfigError, Example, Options
from rlalign_plugin_text_metrics.metric import TextMetric
from rlalign_plugin_text_metrics.pattern import matches

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`\n]*\n?")

Check = Callable[[Any], bool]


def fenced(text: str) -> str:
    """What stands in the first fenced code block; the text itself where none begins and ends."""
    lines = text.splitlines(keepends=True)
    for start, line in enumerate(lines):
        if opened := _FENCE.fullmatch(line):
            inside = lines[start + 1 :]
            ends = (i for i, other in enumerate(inside) if other.strip() == opened[1])
            end = next(ends, None)
            return text if end is None else "".join(inside[:end])
    return text


def parsed(text: str) -> tuple[Any] | None:
    """The value that the text is, in a tuple of one; None: it is no JSON (NaN and Infinity are none)."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def json_valid(
    text: str, required: Sequence[str] = (), check: Check | None = None, *, fences: bool = False
) -> float:
    """1 if the text is JSON, an object with the required keys where there are any, and passes the check."""
    found = parsed(fenced(text) if fences else text)
    if found is None:
        return 0.0
    (value,) = found
    if required and not (isinstance(value, dict) and all(key in value for key in required)):
        return 0.0
    try:
        return float(check is None or check(value))
    except RecursionError:
        return 0.0


def checker(schema: Any) -> Check:
    """A check of values against a JSON schema; ValueError says what is wrong with the schema.

    Nothing is fetched, and no `pattern` takes long: what would do either is refused or counts as no match.
    """
    if importlib.util.find_spec("jsonschema") is None:
        raise ValueError("a schema needs jsonschema: `pip install jsonschema`")
    from jsonschema import SchemaError, ValidationError
    from jsonschema.validators import extend, validator_for

    for key, value in _pairs(schema):
        if key in ("$ref", "$dynamicRef") and not str(value).startswith("#"):
            raise ValueError(f"{key}: {value!r} lies outside; put it under `$defs` and write `#/$defs/NAME`")
        if key == "patternProperties":
            raise ValueError(f"`{key}` is not supported, as a pattern among keys cannot be timed")

    def pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not matches(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    cls = validator_for(schema)
    try:
        cls.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message} at {error.json_path}") from None
    validator = extend(cls, {"pattern": pattern})(schema)
    return lambda value: bool(validator.is_valid(value))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at every depth."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(inner)


class JsonValid(TextMetric):
    """1 if the response is valid JSON, with the required keys and as the schema says, else 0."""

    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `json-valid`."""

        required: tuple[str, ...] = Field((), description="keys that the object must have")
        schema_file: Path | None = Field(
            None, strict=False, description="a JSON schema that it must meet; needs `pip install jsonschema`"
        )
        fences: bool = Field(
            False, description="the JSON may stand in a fenced code block (```), of which the first is read"
        )

        @field_validator("schema_file")
        @classmethod
        def _is_there(cls, path: Path | None) -> Path | None:
            if path is not None and not path.is_file():
                raise ValueError(f"{path}: there is no such file")
            return path

        @model_validator(mode="after")
        def _is_a_schema(self) -> JsonValid.Config:
            if self.schema_file is not None:
                try:
                    checker(json.loads(self.schema_file.read_bytes()))
                except ValueError as error:
                    raise ValueError(f"{self.schema_file}: {error}") from None
            return self

        @computed_field(description="a hash of the schema: another schema is another reward")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str | None:
            if self.schema_file is None:
                return None
            return hashlib.sha256(self.schema_file.read_bytes()).hexdigest()

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self._check: Check | None = None

    def signature(self) -> str:
        c = self.config
        said = f"required:{','.join(c.required) or 'no'}|fences:{'yes' if c.fences else 'no'}"
        return f"{said}|schema:{c.digest[:12] if c.digest else 'no'}"

    def setup(self, run: Any) -> None:
        path = self.config.schema_file
        if path is None:
            return
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.config.digest:
            raise ConfigError(f"{path}: the file has changed since the run was prepared; start again")
        self._check = checker(json.loads(data))

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        c = self.config
        return [json_valid(text, c.required, self._check, fences=c.fences) for text in texts]
