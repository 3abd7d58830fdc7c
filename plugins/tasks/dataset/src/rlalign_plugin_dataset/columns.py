"""Which column of a table is what: as the pipeline says, else those with our own names."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

from rlalign import ConfigError
from rlalign_plugin_dataset.index import cures
from rlalign_plugin_dataset.mapping import Template, find, some
from rlalign_plugin_dataset.tables import LOOKED_AT, Table

if TYPE_CHECKING:
    from rlalign_plugin_dataset import Dataset

Names = tuple[str, ...]

PROMPTS = (
    "instruction",
    "question",
    "query",
    "problem",
    "input",
    "context",
    "document",
    "article",
    "text",
    "source",
)
ANSWERS = ("answer", "response", "completion", "output", "target", "solution", "summary", "reply")
CHATS = ("conversation", "dialog", "dialogue", "chat", "turns")


class Columns:
    """The columns of one table by what they mean."""

    def __init__(self, config: Dataset.Config, table: Table) -> None:
        self.name = table.name
        self.config = config
        self.cells = table.cells
        self.there = table.columns()
        if not self.there:
            first = next(table.scan(), None)
            why = (
                f":{first.number}: {first.row}; no row is sound{cures(str(first.row))}"
                if first
                else ": no rows"
            )
            raise ConfigError(f"{self.name}{why}")
        prompt, chat = config.prompt, config.chat
        self.responses, self.chosen = _names(config.responses), config.chosen
        self.rejected = config.rejected
        if not self.responses and self.chosen is None and chat is None:
            self.responses = self._own("responses")
            if not self.responses and self._own("chosen") and self._own("rejected"):
                self.chosen, self.rejected = "chosen", "rejected"
        if prompt is None and chat is None:
            prompt = next(iter(self._own("prompt")), None)
            if prompt is None and self.chosen is None:
                chat = next(iter(self._own("messages") or self._own("conversations")), None)
        if prompt is None and chat is None and not self._pairs_are_chats(table):
            raise ConfigError(
                f"{self.name}: which column is the prompt? Say {self._likely()} (columns: {some(self.there)})"
            )
        self.prompt = None if prompt is None else Template(prompt)
        self.chat = chat
        logged = bool(self.responses or chat)
        self.scores = _names(config.scores) or (self._own("scores") if logged else ())
        finished = config.finished or next(iter(self._own("finished") if self.responses else ()), None)
        self.finished = finished
        self.references = _names(config.references) or self._own("references")
        own_id = next(iter(self._own("id")), None) if config.id is None else config.id
        self.id = None if own_id is None else Template(own_id)
        self._check()
        plain = [self.prompt.text] if self.prompt and self.prompt.plain else []
        plain += [self.id.text] if self.id and self.id.plain else []
        one = [name for name in (self.chat, self.chosen, self.rejected, self.finished) if name]
        self.used = {*plain, *one, *self.responses, *self.scores, *self.references}

    def _own(self, name: str) -> Names:
        return (name,) if name in self.there else ()

    def _pairs_are_chats(self, table: Table) -> bool:
        """Whether `chosen` and `rejected` hold the prompt too, going by the first row that has one."""
        if self.chosen is None:
            return False
        rows = (found.row for found in table.scan() if isinstance(found.row, dict))
        found = (find(row, self.chosen) for row in islice(rows, LOOKED_AT))
        first = next((value for value in found if value), None)
        return not isinstance(first, str) or (self.cells and first.lstrip().startswith("[{"))

    def _likely(self) -> str:
        """What to say, by the names that such columns often have."""
        likely = {
            option: [name for known in names for name in self.there if name.lower() == known]
            for option, names in (
                ("prompt", ("prompt", *PROMPTS)),
                ("chat", ("messages", "conversations", *CHATS)),
                ("responses", ("responses", *ANSWERS)),
            )
        }
        prompts, chats, answers = likely.values()
        if chats and not prompts:
            return f"`chat: {chats[0]}`"
        if not prompts and self.chosen is not None:
            return "`prompt: …`, or, for pairs of texts that begin with their dialogue, the task `hh`"
        if not prompts:
            alone = (
                ""
                if self.cells or len(self.there) > 1
                else f"; if `{self.there[0]}` holds the rows, keep them alone"
            )
            return f"`prompt: …`{alone}"
        more = f', or `prompt: "{{{prompts[0]}}} {{{prompts[1]}}}"`' if prompts[1:] else ""
        learn = f", and `responses: {answers[0]}` to learn from it" if answers and self.chosen is None else ""
        return f"`prompt: {prompts[0]}`{more}{learn}"

    def _check(self) -> None:
        said: list[tuple[str, str]] = []
        for option in ("chat", "chosen", "rejected", "finished"):
            said += [(option, name) for name in [getattr(self, option)] if name]
        for option in ("prompt", "id"):
            template = getattr(self, option)
            said += [(option, name) for name in (template.columns if template else ())]
        for option in ("responses", "scores", "references"):
            said += [(option, name) for name in getattr(self, option)]
        said += [("meta", name) for name in self.config.meta or ()]
        for option, name in said:
            if name not in self.there and name.partition(".")[0] not in self.there:
                close = get_close_matches(name, self.there, 1)
                hint = f"; did you mean `{close[0]}`?" if close else ""
                if self.cells and len(self.there) == 1:
                    hint = "; it has one column alone: say `delimiter: …` if something else parts them"
                raise ConfigError(
                    f"{self.name}: `{option}` names a column `{name}`, and there is none{hint} "
                    f"(columns: {some(self.there)})"
                )

    def needed(self) -> list[str] | None:
        """The columns that are read at all; None: all of them."""
        if self.config.meta is None:
            return None
        templates = [c for t in (self.prompt, self.id) if t for c in t.columns]
        wanted = {*self.used, *templates, *self.config.meta}
        return [c for c in self.there if c in wanted or any(w.startswith(f"{c}.") for w in wanted)]


def _names(value: str | Names | None) -> Names:
    return (value,) if isinstance(value, str) else tuple(value or ())
