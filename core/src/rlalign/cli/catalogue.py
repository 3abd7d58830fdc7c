"""What `rlalign plugins` tells of what is installed. To list it, nothing of it is imported."""

from __future__ import annotations

import gc
import json
import shutil
import textwrap
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import click
from pydantic import BaseModel

from rlalign.cli.guarded import say
from rlalign.config.outline import KINDS, Outline, outline
from rlalign.config.registry import Installed, Registry, installed
from rlalign.errors import ConfigError

BROKEN = "broken"


def everything(load: bool, as_json: bool) -> bool:
    """List what is installed, by kind; with `load` import it, too. Whether all of that can be."""
    gc.disable()  # syntax trees of all their files are many small objects, and none is garbage
    try:
        rows = [_row(found, load) for found in installed()]
    finally:
        gc.freeze()  # the end of the process would look through them all
        gc.enable()
    broken = [row for row in rows if "error" in row]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return not broken
    wide = max((len(row["name"]) for row in rows), default=0)
    twice = Counter(row["name"] for row in rows)
    for kind, several in [*KINDS.items(), (BROKEN, BROKEN)]:
        listed = [row for row in rows if (BROKEN if "error" in row else row["kind"]) == kind]
        if listed:
            say(f"{several}:")
        for row in listed:
            owner = f"({row['distribution']} {row['version']}) " if twice[row["name"]] > 1 or not kind else ""
            say(f"  {row['name']:{wide}}  {owner}{row['sentence']}".rstrip())
    for row in broken:
        say(f"error: {row['error']}", err=True)
    if not load:
        say("\n`rlalign plugins NAME` tells more of one.")
    return not broken


def _row(found: Installed, load: bool) -> dict[str, Any]:
    told = outline(found.value)
    row = {
        "name": found.name,
        "kind": told.kind,
        "sentence": told.sentence,
        "distribution": found.distribution,
        "version": found.version,
        **({"level": told.level} if told.level else {}),
    }
    if load:
        try:
            Registry().load(found.name)
            Registry().load(f"{found.distribution}:{found.name}")
        except ConfigError as error:
            row["error"] = str(error)
    return row


# -- one of them ---------------------------------------------------------------------------------------------


def one(name: str, as_json: bool) -> None:
    """Tell all of a component. One that cannot be imported is told as far as its file does, and is an error."""
    registry = Registry()
    known = [
        found for found in registry.installed if name in (found.name, f"{found.distribution}:{found.name}")
    ]
    told = outline(known[0].value if len(known) == 1 else name)
    try:
        cls = registry.load(name).cls
    except ConfigError:
        if known and told.base and not as_json:
            say(f"{name}: {told.sentence}\n\nkind     {told.kind}\npackage  {known[0]}\n")
        raise
    about = details(name, cls, told, known[0] if known else None)
    say(json.dumps(about, indent=1, ensure_ascii=False) if as_json else _in_words(name, about))


def details(name: str, cls: type[Any], told: Outline, found: Installed | None) -> dict[str, Any]:
    """All that a component's class says of it, as plain data."""
    made: Any = cls
    if told.base == "component":
        with suppress(Exception):  # its options have to be said
            made = cls(cls.Config())  # some declarations follow from the options
    needs = list(getattr(made, "needs", ()))
    models = {model: str(role) for model, role in getattr(made, "models", {}).items()}
    for need in needs:
        model = "value" if need == "values" else need.rpartition(".")[0]
        if model not in ("", "policy", *models):
            models[model] = "frozen" if model == "reference" else model
    if trunk := getattr(made, "trunk", None):
        models.setdefault(trunk, "its trunk")
    return {
        "name": name,
        "kind": told.kind,
        "sentence": told.sentence,
        **(_scoring(made, told.level) if told.level else {}),
        "places": told.places,
        "hooks": [hook + (" (wrapper)" if how == "wrapper" else "") for hook, how in told.hooks.items()],
        "models": models,
        "needs": needs,
        "trains": list(getattr(made, "trains", ())),
        "responses": getattr(made, "responses", None),
        "min_samples": getattr(made, "min_samples", 1),
        "defaults": {key: dict(value) for key, value in getattr(made, "defaults", {}).items()},
        "equation": getattr(made, "equation", ""),
        "paper": getattr(made, "paper", ""),
        "package": str(found) if found else None,
        "options": list(_options(cls.Config)),
    }


def _scoring(made: Any, level: str) -> dict[str, Any]:
    """What is said of a reward or a metric: what it scores, what is better, between which bounds, by which formula."""
    signature = ""
    if not isinstance(made, type):
        with suppress(Exception):  # known once it is set up
            signature = made.signature()
    return {
        "level": level,
        "higher_is_better": made.higher_is_better,
        "bounds": list(made.bounds),
        "signature": signature,
    }


def _bounds(bounds: Sequence[float | None]) -> str:
    least, most = (None if bound is None else f"{bound:g}" for bound in bounds)
    if least is None or most is None:
        return f"{least} or more" if least is not None else f"{most} or less" if most is not None else ""
    return f"{least} to {most}"


def _options(config: type[BaseModel], above: str = "") -> Iterator[dict[str, Any]]:
    for name, field in config.model_fields.items():
        if field.description is None:  # not for a file to say
            continue
        path = f"{above}{field.alias or name}"
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        inner = next((t for t in _types(field.annotation) if issubclass(t, BaseModel)), None)
        yield {
            "name": path,
            "required": field.is_required(),
            "default": None
            if isinstance(default, BaseModel)
            else json.loads(json.dumps(default, default=str)),
            "meaning": field.description,
        }
        if inner is not None and not above:
            yield from _options(inner, f"{path}.")


def _types(annotation: Any) -> Iterator[type[Any]]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _types(part)


def _in_words(name: str, about: Mapping[str, Any]) -> str:
    kind, models = about["kind"], about["models"]
    place = f"models: {{{kind}: {name}}}" if kind in ("value", "sampler") else " or ".join(about["places"])
    if kind.endswith("wrapper"):
        place += ", below what it wraps"
    responses = about["responses"] or ""
    if about["min_samples"] > 1:
        responses = f"{responses}, {about['min_samples']} a prompt or more".removeprefix(", ")
    chosen = [
        f"{s}.{key}: {json.dumps(v)}" for s, values in about["defaults"].items() for key, v in values.items()
    ]
    scoring = {}
    if "level" in about:
        scoring = {
            "level": about["level"],
            "better": "higher" if about["higher_is_better"] else "lower",
            "bounds": _bounds(about["bounds"]),
            "signature": about["signature"],
        }
    rows = {
        "kind": kind,
        "place": place,
        **scoring,
        "hooks": ", ".join(about["hooks"]),
        "models": ", ".join(
            model if model == role else f"{model} ({role})" for model, role in models.items()
        ),
        "needs": ", ".join(about["needs"]),
        "trains": ", ".join(about["trains"]),
        "responses": responses,
        "sets": ", ".join(chosen),
        "equation": about["equation"],
        "paper": about["paper"],
        "package": about["package"] or "",
    }
    lines = [*_wrapped(f"{name}: {about['sentence']}", ""), ""]
    for row, text in rows.items():
        lines += _wrapped(f"{row:9}  {text}", " " * 11) if text else []
    options = [
        (option["name"], "required" if option["required"] else _yaml(option["default"]))
        for option in about["options"]
    ]
    lines += ["", "options" if options else "no options"]
    for (option, default), said in zip(options, about["options"], strict=True):
        lines += [f"  {option}: {default}", *_wrapped(f"      {said['meaning']}", " " * 6)]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, indent: str) -> Sequence[str]:
    width = min(120, shutil.get_terminal_size().columns)
    return textwrap.wrap(text, max(width, 60), subsequent_indent=indent, break_long_words=False)
