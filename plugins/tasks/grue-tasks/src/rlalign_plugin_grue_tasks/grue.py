"""What the tasks of GRUE share: where data are published, how prompts are written and cut, what goes with a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlalign import Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.corpus import Corpus, CorpusOptions, Measuring
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lengths import Side
from rlalign_plugin_dataset.mapping import joined
from rlalign_plugin_dataset.sources import Sources

SAMPLES = Path(__file__).parent / "samples"
EXPORT = "refs/convert/parquet"
"""The branch in which the hub keeps every data set as Parquet, those that a script describes too."""

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
    """Split → files in the hub's export, for data that a script describes."""
    elsewhere: str = ""
    """Where else a copy is to be had: a sentence."""

    @property
    def branch(self) -> str | None:
        """The commit or branch that is read; None: the latest."""
        return self.revision or (EXPORT if self.exported else None)

    def command(self) -> str:
        """What fetches a copy, where there is a connection."""
        part = next(iter(self.exported.values())).partition("/")[0] if self.exported else self.subset
        said = f"hf download {self.hub} --repo-type dataset"
        said += f" --revision {self.branch}" if self.branch else ""
        return said + (f" --include '{part}/*'" if part else "") + " --local-dir FOLDER"


class GrueOptions(CorpusOptions):
    """What every task of this package can be told."""

    hub: str | None = Field(
        None, description="the data set's name on the hub; null: as the README's table says"
    )
    revision: str | None = Field(
        None, description="hub: a commit, tag or branch; null: as the README's table says"
    )
    whole: bool | None = Field(
        None,
        description="refuse data whose splits do not have the sizes that are expected; null: yes of the usual one on "
        "the hub, no of others and of a copy",
    )
    style: Literal["plain", "chat"] = Field(
        "plain", description="the prompt as published, or as a user's message for a chat template"
    )
    max_prompt_tokens: int | None = Field(
        None,
        gt=0,
        description="longer prompts are cut, once for rollouts, rewards and evaluation; needs `tokenizer`; null: none "
        "is",
    )


class CompatOptions(GrueOptions):
    """Of a task that RL4LMs has."""

    compat: Literal["rl4lms"] | None = Field(
        None, description="`rl4lms`: text is handled as RL4LMs did where that differs, as the README lists"
    )


def prompt_tokens(most: int | None) -> Any:
    """`max_prompt_tokens` with a task's own default."""
    return Field(most, gt=0, description=GrueOptions.model_fields["max_prompt_tokens"].description)


class GrueTask(Corpus):
    """A task of the benchmark, with all that its paper's code set for it.

    `generation` is how it evaluates, `defaults["generation"]` how it samples to learn.
    """

    published: Published
    licence: str
    """The licence of the data."""
    warm_start: str | None = None
    """The model, fine-tuned on the task, that was published with the benchmark."""
    metrics: Sequence[str | Mapping[str, Any]] = ()
    """What it is measured by, as `evaluate: {use: …}` takes it."""
    side: Side = "right"
    """The end at which a prompt that is too long is cut."""
    blind: Mapping[str, str] = {}
    """Splits that may have no references: why, and what to do."""
    config: GrueOptions

    @property
    def compat(self) -> bool:
        """Whether text is handled as RL4LMs did."""
        return getattr(self.config, "compat", None) == "rl4lms"

    @property
    def on_the_hub(self) -> Published:
        """Where the hub has the data: as published, or under the name and at the commit that were asked for."""
        hub, revision = self.config.hub, self.config.revision
        found = self.published if hub in (None, self.published.hub) else Published(str(hub))
        return found if revision is None else replace(found, revision=revision)

    def download(self) -> Sources:
        p = self.on_the_hub
        return sources.hub(p.hub, None if p.exported else p.subset, p.branch, {}, files=p.exported)

    def without_hub(self) -> str:
        fetch = self.on_the_hub.command()
        told = f"Where there is a connection, `{fetch}` fetches a copy, and `path: FOLDER` reads it."
        return "\n".join(filter(None, (told, self.published.elsewhere, super().without_hub())))

    @property
    def whole(self) -> bool:
        asked = self.config.whole
        return self.place is None and self.on_the_hub.hub == self.published.hub if asked is None else asked

    @property
    def where(self) -> str:
        return str(self.place or f"hub: {self.on_the_hub.hub}")

    def postprocess(self, text: str) -> str:
        return text.strip()


class GrueReader(Measuring):
    """Reads rows of a task: prompts in the style asked for, cut once for all who read them."""

    def __init__(self, name: str, task: GrueTask, split: str) -> None:
        super().__init__(name)
        self.task = task
        self.config: Any = task.config
        self.split = split

    def prompt(self, text: str, *, before: str = "", after: str = "", chat: str = "{text}") -> Prompt:
        """`before`, text and `after` as published; or the message `chat`, in which `{text}` stands for the text."""
        if self.config.style == "chat":
            return [{"role": "user", "content": chat.replace("{text}", self.cut(text))}]
        return self.cut(before + text + after)

    def cut(self, text: str) -> str:
        """At most `max_prompt_tokens`; RL4LMs left that to the policy, so that its rewards read all of a prompt."""
        limit = self.config.max_prompt_tokens
        if self.tokens is None or limit is None or self.task.compat:
            return text
        return self.tokens.cut(text, limit - self.tokens.around, self.task.side)

    def answers(self, prompt: Prompt, texts: Sequence[str]) -> tuple[str, ...]:
        """Texts as logged responses: RL4LMs put no space between them and a prompt."""
        if not isinstance(prompt, str) or self.task.compat:
            return tuple(texts)
        return tuple(joined(prompt, text, " ") for text in texts)

    def example(self, name: str, prompt: Prompt, references: Sequence[str], **meta: Any) -> Example:
        """An example whose logged responses are its references, of which a blind split may have none."""
        if not references:
            if self.split not in self.task.blind:
                raise BadRow("no reference")
            meta["blind"] = self.task.blind[self.split]
        answers = self.answers(prompt, references)
        return Example(name, prompt, answers, meta={"references": list(references), **meta})
