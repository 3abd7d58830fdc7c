"""An exported model: its folder, its card, and what its licence asks to go with it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rlalign.config import places
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
    origin: str = (
        "The pipeline and the exact environment lie beside this folder (`pipeline.yaml`, `lock.json`)."
    )
    signatures: Mapping[str, str] = field(default_factory=dict)
    """What scores depend on beside the texts, by their names."""

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
        rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(self.metrics.items()))
        parts = (
            f"---\n{front}---",
            f"# {self.name}",
            f"Trained with rlalign {metadata.version('rlalign')}: {', '.join(methods)}, seed {self.pipeline.seed}. "
            f"{self.origin}",
            _of_base(base) if base else None,
            note,
            f"| metric | value |\n|---|---|\n{rows}" if rows else None,
            self._signed(),
        )
        return "\n\n".join(part for part in parts if part) + "\n"

    def _signed(self) -> str | None:
        """The signatures of the figures."""
        listed = {part for name in self.metrics for part in name.split("/")}
        found = [f"- `{name}`: `{said}`" for name, said in sorted(self.signatures.items()) if name in listed]
        return "\n".join(["Computed as these signatures say:\n", *found]) if found else None


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
