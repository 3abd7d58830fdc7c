"""What the tasks of GRUE share: where data are published, how prompts are written and cut, what goes with a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.corpus import Corpus, CorpusOptions, Measuring
from rlalign_plugin_dataset.lengths import Side
from rlalign_plugin_dataset.mapping import joined
from rlalign_plugin_dataset.sources import Sources

SAMPLES = Path(__file__).parent / "samples"
EXPORT = "refs/convert/parquet"
"""The branch in which the hub keeps every data set as Parquet, those described by a script too."""

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Published:
    """Where data are published, in the layout that is there today."""

    hub: str
    """Its name on the hub."""
    subset: str | None = None
    """Its configuration."""
    revision: str | None = None
    """The commit that is read unless `revision` says otherwise; None: the latest."""
    exported: Mapping[str, str] | None = None
    """Split → files in the hub's export, for data that are described by a script."""
    elsewhere: str = ""
    """Where else a copy is to be had, in words."""


class GrueOptions(CorpusOptions):
    """What every task of this package can be told."""

    hub: str | None = Field(None, description="the data set's name on the hub; null: the usual one")
    revision: str | None = Field(
        None, description="hub: a commit, tag or branch; null: as the README's table says"
    )
    whole: bool | None = Field(
        None,
        description="refuse data whose splits do not have the published sizes; null: yes from the hub, no from `path`",
    )
    style: Literal["plain", "chat"] = Field(
        "plain", description="the prompt as published, or as a user's message for a chat template"
    )
    compat: Literal["rl4lms"] | None = Field(
        None, description="`rl4lms`: handle text as RL4LMs did where that differs, as the README lists"
    )


class GrueTask(Corpus):
    """A task of the benchmark, with all that its paper's code set for it."""

    published: ClassVar[Published]
    licence: ClassVar[str]
    """The licence of the data."""
    warm_start: ClassVar[str | None] = None
    """The model, fine-tuned on the task, that was published with the benchmark."""
    metrics: ClassVar[Sequence[Any]] = ()
    """What it is measured by, as `evaluate: {use: …}` takes it."""
    side: ClassVar[Side] = "right"
    """The end at which a prompt is cut that is too long."""
    blind: ClassVar[Mapping[str, str]] = {}
    """Splits without references, and why there are none."""
    config: GrueOptions

    def download(self) -> Sources:
        c, p = self.config, self.published
        revision = c.revision or p.revision or (EXPORT if p.exported else None)
        return sources.hub(c.hub or p.hub, None if p.exported else p.subset, revision, {}, files=p.exported)

    @property
    def where(self) -> str:
        return str(self.place or f"hub: {self.config.hub or self.published.hub}")


class GrueReader(Measuring):
    """Reads rows of a task: prompts in the style asked for, cut once for all who read them."""

    def __init__(self, name: str, task: GrueTask) -> None:
        super().__init__(name)
        self.config: Any = task.config
        self.side = task.side

    def prompt(self, text: str, *, before: str = "", after: str = "", chat: str = "{text}") -> Prompt:
        """`before`, text and `after` as published; or the message `chat`, in which `{text}` stands for the text."""
        if self.config.style == "chat":
            return [{"role": "user", "content": chat.replace("{text}", self.cut(text))}]
        return self.cut(before + text + after)

    def cut(self, text: str) -> str:
        """At most `max_prompt_tokens`; RL4LMs left that to the policy, so that its rewards read all of a prompt."""
        limit = self.config.max_prompt_tokens
        if self.tokens is None or limit is None or self.config.compat == "rl4lms":
            return text
        return self.tokens.cut(text, limit - self.tokens.around, self.side)

    def example(self, name: str, prompt: Prompt, references: Sequence[str], **meta: Any) -> Example:
        """An example whose logged responses are its references."""
        plain = prompt if isinstance(prompt, str) and self.config.compat is None else None
        responses = tuple(each if plain is None else joined(plain, each, " ") for each in references)
        return Example(name, prompt, responses, meta={"references": list(references), **meta})
