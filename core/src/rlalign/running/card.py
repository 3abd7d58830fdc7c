"""An exported model: its folder, its card, and what its licence asks to go with it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlalign.config import places
from rlalign.config.outline import sentence
from rlalign.config.pipeline import Pipeline
from rlalign.errors import concealed
from rlalign.interface.policy import Policy
from rlalign.records.files import beside
from rlalign.records.rundir import sync, write_atomic
from rlalign.running.base import Base, base_of


@dataclass(frozen=True)
class Card:
    """What a stranger should know of an exported model."""

    name: str
    pipeline: Pipeline
    metrics: Mapping[str, float]
    measured: str = ""
    """Where in the run that was, which need not be where these weights are; without it no figures are told."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """What scores depend on beside the texts, by their names."""
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of metrics that are means over examples: half their interval, and how many examples."""
    lock: Mapping[str, Any] = field(default_factory=dict)
    """What the run's numbers depend on."""
    origin: str = (
        "The pipeline and the exact environment lie beside this folder (`pipeline.yaml`, `lock.json`)."
    )

    def text(self, policy: Policy, base: Base | None, note: str | None = None) -> str:
        """The README: the hub's metadata, where the model comes from, what its weights are, its figures."""
        methods = list(dict.fromkeys(i.component for phase in self.pipeline.phases for i in phase.algorithm))
        about = {
            "base_model": base.on_the_hub if base else None,
            **(base.licence if base else {}),
            "library_name": policy.loaded_by,
            "tags": ["rlalign", *(name for name in methods if re.fullmatch(r"[a-z0-9-]+", name))],
        }
        front = places.dump({key: value for key, value in about.items() if value is not None})
        parts = (
            f"---\n{front}---",
            f"# {self.name}",
            f"Trained with rlalign {metadata.version('rlalign')}: {', '.join(methods)}, seed {self.pipeline.seed}. "
            f"{self.origin}",
            _of_base(base) if base else None,
            note,
            _loading(policy),
            self._method(),
            self._data(),
            self._figures(),
            self._provenance(),
        )
        return "\n\n".join(part for part in parts if part) + "\n"

    def _method(self) -> str:
        """Each algorithm and reward in its own words, with what it makes small and what the pipeline says otherwise."""
        items = [item for phase in self.pipeline.phases for item in (*phase.algorithm, *phase.rewards)]
        lines: dict[str, None] = {}
        for item in items:
            cls = item.cls
            said = [sentence(cls.__doc__), f"{paper}." if (paper := getattr(cls, "paper", "")) else ""]
            if equation := getattr(cls, "equation", ""):
                said.insert(1, f"With default options: `{equation}`.")
            if options := _changed(item.options):
                said.append(f"Here {options}.")
            lines[f"- `{item.component}`: {' '.join(part for part in said if part)}"] = None
        return "\n".join(["## Method\n", *lines])

    def _data(self) -> str:
        """Each task, its licence where it says one, and the digest of what was learned from."""
        digests = self.lock.get("data", {})
        lines: dict[str, None] = {}
        for phase in self.pipeline.phases:
            licence = getattr(phase.task.cls, "licence", "") or "not known here"
            digest = digests.get(f"{phase.task.name}/train", "")
            told = f", `train` has the digest `{digest}`" if digest else ""
            lines[f"- `{phase.task.component}`{told}. Licence: {licence}."] = None
        return "\n".join(["## Data\n", *lines])

    def _figures(self) -> str | None:
        """The metrics, with 95 % intervals where an evaluation can say them, and the signatures of scores."""
        if not self.metrics or not self.measured:
            return None
        rows = []
        for name, value in sorted(self.metrics.items()):
            half, count = self.spread.get(name, (None, 0))
            interval = (
                "" if half is None else f"{value - half:.4g} to {value + half:.4g}, {count:.0f} examples"
            )
            rows.append(f"| {name} | {value:.6g} | {interval} |")
        listed = {part for name in self.metrics for part in name.split("/")}
        signed = [f"- `{name}`: `{said}`" for name, said in sorted(self.signatures.items()) if name in listed]
        return "\n".join(
            [
                f"## Figures\n\nMeasured {self.measured}.\n\n| metric | value | 95 % interval |\n|---|---|---|",
                *rows,
                *(
                    ["\nIntervals are over examples, of one run: mean ± 1.96 standard errors."]
                    if self.spread
                    else []
                ),
                *(["\nComputed as these signatures say:\n", *signed] if signed else []),
            ]
        )

    def _provenance(self) -> str | None:
        """Versions, device and code, as the lock of the run says."""
        lock = self.lock
        if not lock:
            return None
        device = lock["device"]
        rows = {"Python": lock["python"], **lock["packages"], "seed": lock["seed"], "dtype": lock["dtype"]}
        rows |= {"device": f"{device['name']}, {device['model']}"}
        for name, about in lock["plugins"].items():
            commit = _commit(name)
            code = f"commit {commit}" if commit else f"code {about['code'][:12]}" if about["code"] else ""
            rows[name] = ", ".join(part for part in (about["version"], code) if part)
        told = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["## Provenance\n\n| what | which |\n|---|---|", *told])


def _loading(policy: Policy) -> str:
    """Python that loads the folder: of the library that its files are made for, and of rlalign."""
    own = "import rlalign\n\nmodel = rlalign.open(here)"
    if policy.loading:
        own += '\nprint(model.sample(["A prompt"])[0]["response"])'
    blocks = [f"```python\n{part}\n```" for part in (policy.loading, own) if part]
    return "\n\n".join(["## How to load it\n\n`here` is the path of this folder.", *blocks])


def _changed(options: BaseModel) -> str:
    """Options that are not the defaults, as far as they are numbers, words or lists of them."""
    told = []
    for name, info in type(options).model_fields.items():
        value = getattr(options, name)
        if value == info.get_default(call_default_factory=True):
            continue
        parts = value if isinstance(value, tuple | list) else [value]
        if all(x is None or isinstance(x, bool | int | float) or _is_word(x) for x in parts):
            told.append(f"`{name}: {json.dumps(value)}`")
    return ", ".join(told)


def _is_word(value: Any) -> bool:
    """Whether this is a choice among words: no path, no text, nothing secret."""
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z-]{0,19}", value) is not None


def _commit(distribution: str) -> str:
    """The commit that a distribution was installed from, where its installer wrote it down."""
    with suppress(metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        said = json.loads(metadata.distribution(distribution).read_text("direct_url.json") or "{}")
        return str(said["vcs_info"]["commit_id"])
    return ""


def _of_base(base: Base) -> str:
    """Whose work a model goes on from, and under which terms."""
    said = f"It began as `{base.name}`"
    if base.on_the_hub not in (None, base.name):
        said += f", whose card names `{base.on_the_hub}` as its base model"
    licence = base.licence.get("license_name") or base.licence.get("license")
    if licence is not None:
        said += f". The licence that it names is `{licence}`; those terms go on holding for this model"
    elif not base.files:
        said += ". Its licence is not known here: look it up before you pass this model on"
    if base.files:
        said += f". Copied from there: {', '.join(f'`{file.name}`' for file in base.files)}"
    return f"{said}."


def save_folder(policy: Policy, folder: Path, card: Card) -> str | None:
    """The exported model, its card and its base's licence, written beside their final name and then moved there.

    Says what the policy noted on the card.
    """
    temporary = beside(folder)
    temporary.mkdir()
    try:
        note = policy.save(temporary)
        base = base_of(policy.base, policy.licence) if policy.base is not None else None
        for file in base.files if base else ():
            with suppress(FileExistsError):
                (temporary / file.name).open("xb").close()
                shutil.copyfile(file, temporary / file.name)
        write_atomic(temporary / "README.md", card.text(policy, base, note))
        for file in temporary.rglob("*"):
            if file.suffix in (".json", ".md"):
                text = file.read_text("utf-8", errors="surrogateescape")
                if (
                    hidden := concealed(text, least=16)
                ) != text:  # a short one may well be a word of the format
                    file.write_text(hidden, "utf-8", errors="surrogateescape")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)
    return note
