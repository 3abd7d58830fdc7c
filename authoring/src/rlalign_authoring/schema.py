"""The JSON Schema of pipelines, from the options of the components that are installed.

It is of draft 7, which every editor's language server knows. What a file may say is decided by `rlalign.config`; a
schema cannot say all of it (which options exclude each other, what phases inherit), and refuses nothing that is valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from rlalign.config.file import accepts
from rlalign.config.outline import sentence
from rlalign.config.pipeline import (
    COPY_TIMES,
    NAME_PATTERN,
    Apart,
    Evaluate,
    ItemSettings,
    ModelSpec,
    Origin,
    PipelineSettings,
)
from rlalign.config.registry import Registry
from rlalign.data.settings import Sampling, Train
from rlalign.errors import ConfigError
from rlalign.running.members import HOOKS

Schema = dict[str, Any]
INTERPOLATION = r"\$\{"
"""`${…}` may stand for any value."""
NOT_INSTALLED = r"^[^\s:]+:[^\s:]+$"
"""`module:Class`, or `distribution:name`: only the program knows what that is."""
ELSEWHERE = {"rollout", "reward", "evaluate"}
"""Hooks of components that do nothing under `algorithm`, if they have no others."""
SECTIONS = {
    "task": "where prompts come from",
    "policy": "the model to train",
    "rewards": "what is wanted: a weighted sum; a wrapper acts on all items above it",
    "responses": "where responses come from; by default the algorithm says",
    "algorithm": "how it learns",
    "observers": "components that watch the run and change nothing",
    "models": "models by name, where they are not as components ask for them",
    "generation": "how responses are sampled",
    "train": "how much is learned, how fast",
    "evaluate": "what is measured on the way",
    "phases": "several phases, one after the other; what stands above is inherited",
}


@dataclass
class _Pipelines:
    """The schema while it grows: its definitions, and the components that are there."""

    components: Mapping[str, type[Any]]
    definitions: dict[str, Schema] = field(default_factory=dict)

    def whole(self) -> Schema:
        parts = self._sections()
        top = {key: nullable(part) for key, part in self.fields(PipelineSettings).items()}
        phase = {**parts, "task": self._task(phase=True), "name": text(NAME_PATTERN, "the phase's name")}
        self.definitions["phase"] = {"type": "object", "properties": phase, "additionalProperties": False}
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "A pipeline of rlalign",
            "type": "object",
            "properties": {
                **parts,
                "policy": described(self.item("policy"), SECTIONS["policy"]),
                **top,
                "phases": {
                    "description": SECTIONS["phases"],
                    "type": "array",
                    "minItems": 1,
                    "items": reference("phase"),
                },
            },
            "additionalProperties": False,
            "required": ["policy"],
            "if": {"required": ["phases"]},
            "else": {"required": ["task", "algorithm"]},
            "definitions": self.definitions,
        }

    def _sections(self) -> dict[str, Schema]:
        """What may stand at the top and in a phase."""
        evaluate = self.fields(Evaluate)
        evaluate["use"] = several(self.item("evaluate.use"))
        found = {
            "task": self._task(phase=False),
            "rewards": several(self.item("rewards")),
            "responses": nullable(self.item("responses")),
            "algorithm": several(self.item("algorithm")),
            "observers": several(self.item("observers")),
            "generation": nullable(mapping(self.fields(Sampling))),
            "train": nullable(mapping(self.fields(Train))),
            "evaluate": nullable(mapping(evaluate)),
            "models": self._models(),
        }
        return {name: described(part, SECTIONS[name]) for name, part in found.items()}

    def _task(self, *, phase: bool) -> Schema:
        """An item; in a phase also what an earlier phase gave."""
        origin = mapping(self.fields(Origin))
        origin["required"] = ["from"]
        return either(self.item("task"), *([origin] if phase else []), NULL)

    def _models(self) -> Schema:
        spec = self.fields(ModelSpec)
        spec.pop("item")
        spec["of"]["examples"] = list(COPY_TIMES)
        one = either(mapping(spec), self.item("models"), NULL)
        return {
            "type": ["object", "null"],
            "properties": {"policy": {"not": {}}},
            "additionalProperties": one,
        }

    # -- items --------------------------------------------------------------------------------------

    def item(self, role: str) -> Schema:
        """A component by its name, or its name with options, and what may stand beside it."""
        name = f"item of {role}"
        if name not in self.definitions:
            self.definitions[name] = self._item(role)
        return reference(name)

    def _item(self, role: str) -> Schema:
        known = {name: cls for name, cls in self.components.items() if _stands(cls, role)}
        beside = self.fields(ItemSettings)
        if role not in ("rewards", "algorithm"):
            del beside["weight"], beside["source"]
        if role == "task":
            beside["isolate"] = either({"type": "boolean"}, mapping(self.fields(Apart)))
        elif role not in ("rewards", "evaluate.use"):
            del beside["isolate"]
        beside = {key: nullable(part) for key, part in beside.items()}
        bare = [name for name, cls in known.items() if not self._required(cls)]
        # Under `use` a bare name may be that of any reward.
        other = f"{NOT_INSTALLED}|{INTERPOLATION}" + (f"|{NAME_PATTERN}" if role == "evaluate.use" else "")
        return either(
            *([{"type": "string", "enum": bare}] if bare else []),
            {"type": "string", "pattern": other},
            {
                "type": "object",
                "properties": {**{name: self.options(name, cls) for name, cls in known.items()}, **beside},
                "patternProperties": {NOT_INSTALLED: {"type": ["object", "null", "string"]}},
                "additionalProperties": False,
                # One component: several keys are allowed only beside one of these.
                "minProperties": 1,
                "dependencies": {key: {"minProperties": 2} for key in beside},
                "anyOf": [{"maxProperties": 1}, *({"required": [key]} for key in beside)],
            },
        )

    def options(self, name: str, cls: type[Any]) -> Schema:
        """What may stand behind a component's name."""
        key = f"component {name}"
        if key not in self.definitions:
            self.definitions[key] = {}  # it is on its way
            found = described(self.model(cls.Config, f"{name} "), sentence(cls.__doc__))
            self.definitions[key] = found if self._required(cls) else nullable(found)
        return reference(key)

    def _required(self, cls: type[Any]) -> bool:
        return any(one.is_required() for one in cls.Config.model_fields.values())

    # -- pydantic's models ----------------------------------------------------------------------------

    def fields(self, model: type[BaseModel]) -> dict[str, Schema]:
        """The keys of a section, without those that must be there: a section may be merged from several places."""
        found: dict[str, Schema] = self.model(model, "")["properties"]
        return found

    def model(self, model: type[BaseModel], prefix: str) -> Schema:
        """Pydantic's own schema of a model, with `${…}` allowed for every value."""
        try:
            found = model.model_json_schema(
                by_alias=True,
                ref_template=f"#/definitions/{prefix}{{model}}",
                schema_generator=_Generator,
            )
        except PydanticInvalidForJsonSchema:  # a type that JSON cannot tell
            return {"type": "object"}
        for name, part in found.pop("$defs", {}).items():
            self.definitions[prefix + name] = loosened(part)
        loose: Schema = loosened(found)
        return loose


class _Generator(GenerateJsonSchema):
    """A type that JSON cannot tell is any value; and nobody is warned of defaults that it cannot tell."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}


def pipelines(registry: Registry) -> tuple[Schema, list[str]]:
    """The schema, and what is wrong with components that are left out as they cannot be imported."""
    components, broken = {}, []
    for one in registry.installed:
        try:
            components[one.name] = registry.load(f"{one.distribution}:{one.name}").cls
        except ConfigError as error:
            broken.append(str(error))
    components |= registry.extra
    return _Pipelines(components).whole(), broken


def _stands(cls: type[Any], role: str) -> bool:
    """Whether a component may stand there, and does anything there."""
    hooks = {hook for hook in HOOKS if hasattr(cls, hook)}
    idle = role == "algorithm" and bool(hooks) and hooks <= ELSEWHERE
    return accepts(cls, role) and not idle


# -- parts of schemas -----------------------------------------------------------------------------------

NULL: Schema = {"type": "null"}


def reference(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def either(*parts: Schema) -> Schema:
    return {"anyOf": list(parts)}


def nullable(part: Schema) -> Schema:
    return either(*part["anyOf"], NULL) if set(part) == {"anyOf"} else either(part, NULL)


def several(item: Schema) -> Schema:
    """A list of items, or the one that stands in its place."""
    return either(item, {"type": "array", "items": item}, NULL)


def mapping(properties: Schema) -> Schema:
    return {**_or_text("object"), "properties": properties, "additionalProperties": False}


def _or_text(kind: str) -> Schema:
    """A type, or `${…}`. `pattern` is about text only: no alternatives, and so one clear message."""
    return {
        "type": [kind, "string"],
        "pattern": INTERPOLATION,
        "patternErrorMessage": f"expected {WORDS[kind]}",
    }


def text(pattern: str, description: str) -> Schema:
    return {"type": "string", "pattern": pattern, "description": description}


def described(part: Schema, description: str) -> Schema:
    """Beside a `$ref` draft 7 reads nothing."""
    part = {"allOf": [part]} if "$ref" in part else part
    return {**part, "description": description}


WORDS = {"number": "a number", "integer": "a whole number", "boolean": "true or false", "object": "a mapping"}
WORDS["array"] = "a list"
_PARTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def loosened(part: Any) -> Any:
    """A schema of pydantic's in draft 7, where `${…}` may stand in place of any value."""
    if not isinstance(part, dict):
        return part
    part = {key: value for key, value in part.items() if key not in ("title", "format", "discriminator")}
    for key in ("properties", "patternProperties"):
        if key in part:
            part[key] = {name: loosened(one) for name, one in part[key].items()}
    for key in ("items", "additionalProperties"):
        if key in part:
            part[key] = loosened(part[key])
    for key in _PARTS:
        if key in part:
            part[key] = [loosened(one) for one in part[key]]
    if "prefixItems" in part:
        part["items"] = part.pop("prefixItems")
    if "$ref" in part and len(part) > 1:
        part["allOf"] = [{"$ref": part.pop("$ref")}]
    if "const" in part:
        part["enum"] = [part.pop("const")]
    kind = part.get("type")
    if "enum" in part or (kind == "string" and {"pattern", "minLength", "maxLength"} & set(part)):
        about = {key: part.pop(key) for key in ("description", "default") if key in part}
        return {**about, "anyOf": [part, {"type": "string", "pattern": INTERPOLATION}]}
    return {**part, **_or_text(kind)} if kind in WORDS else part


def written(schema: Schema) -> str:
    """As a file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def first_line(where: str) -> str:
    """What has an editor check a pipeline against a schema."""
    return f"# yaml-language-server: $schema={re.sub(' ', '%20', where)}\n"


def names(schema: Schema, role: str) -> Iterable[str]:
    """The components that may stand there."""
    found: Schema = schema["definitions"][f"item of {role}"]["anyOf"][-1]["properties"]
    return [name for name in found if name not in ("weight", "as", "source", "isolate")]
