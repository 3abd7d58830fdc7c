"""From a row to an example: which column is what."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any

from rlalign import ConfigError, Example
from rlalign_plugin_dataset.chats import answer_of, content_of, is_chat, messages_of
from rlalign_plugin_dataset.index import BadRow, Reader, cures
from rlalign_plugin_dataset.limits import too_deep
from rlalign_plugin_dataset.tables import LOOKED_AT, Row, Table, kind_of

if TYPE_CHECKING:
    from rlalign_plugin_dataset import Dataset

Names = tuple[str, ...]
_MISSING = object()

LARGEST_SCORE = 10**300
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
SHOWN = 50
"""Columns that messages name."""


class Template:
    """`Q: {question}`, or the plain name of a column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.plain = "{" not in text
        self.parts = [(text, text)] if self.plain else list(_parts(text))

    @property
    def columns(self) -> list[str]:
        return [column for _, column in self.parts if column]

    def fill(self, row: Row) -> str:
        """The template's text; of a plain name use `get`."""
        return "".join(
            before + (_shown(get(row, column), column) if column else "") for before, column in self.parts
        )


def _parts(text: str) -> Sequence[tuple[str, str]]:
    parts = []
    for before, column, form, conversion in string.Formatter().parse(text):
        if form or conversion:
            raise ValueError(f"a template holds plain column names: `{{{column}}}`, without `:` or `!`")
        if column == "":
            raise ValueError("a template names its columns: `{question}`, not `{}`")
        parts.append((before, column or ""))
    return parts


class Columns(Reader):
    """The columns of one table by what they mean: as the pipeline says, else those with our own names."""

    def __init__(self, config: Dataset.Config, table: Table) -> None:
        super().__init__(table.name)
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
                f"{self.name}: which column is the prompt? Say {self._likely()} (columns: {_some(self.there)})"
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
        self.has_ids = self.id is not None
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
        found = (_find(row, self.chosen) for row in islice(rows, LOOKED_AT))
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
                    f"(columns: {_some(self.there)})"
                )

    def needed(self) -> list[str] | None:
        """The columns that are read at all; None: all of them."""
        if self.config.meta is None:
            return None
        templates = [c for t in (self.prompt, self.id) if t for c in t.columns]
        wanted = {*self.used, *templates, *self.config.meta}
        return [c for c in self.there if c in wanted or any(w.startswith(f"{c}.") for w in wanted)]

    # -- a row ----------------------------------------------------------------------------------------

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        return (self.example(row, place),)

    def example(self, row: Row, place: str) -> Example:
        """The example a row holds; BadRow says why it holds none."""
        prompt, responses = self._prompt_and_responses(row)
        scores = self._scores(row, responses)
        # A column that is empty in this row is a response that is not there, with its score.
        there = [i for i, response in enumerate(responses) if response is not None]
        if responses and not there:
            raise BadRow(f"no response in {_quoted(self.responses)}")
        if len(self.responses) == 1 and len(there) < len(responses):
            raise BadRow(f"`{self.responses[0]}` holds a response that is nothing (null)")
        texts = [str(responses[i]) for i in there]
        if self.config.empty_responses == "bad" and not all(text.strip() for text in texts):
            raise BadRow(f"a response in {_quoted(self.responses)} is empty")
        if self.config.join and isinstance(prompt, str):
            texts = [joined(prompt, text, self.config.join) for text in texts]
        return Example(
            id=self._id(row, place),
            prompt=prompt,
            responses=tuple(texts),
            scores=tuple(self._score(scores[i]) for i in there) if scores else (),
            finished=self._finished(row, len(texts)),
            meta=self._meta(row),
        )

    def _id(self, row: Row, place: str) -> str:
        if self.id is None:
            return place
        value = get(row, self.id.text) if self.id.plain else self.id.fill(row)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise BadRow(f"`{self.id.text}` is {kind_of(value) if value != '' else 'empty'}, expected an id")
        return str(value)

    def _prompt_and_responses(self, row: Row) -> tuple[Any, list[str | None]]:
        if len(self.responses) == 1:
            answers = self._list(row, self.responses[0])
        else:
            answers = [self._text(row, name) for name in self.responses]
        pair: list[Any] = [self._value(row, name) for name in (self.chosen, self.rejected) if name]
        if self.prompt is None and self.chat is None:
            return self._shared_prompt(pair)
        if len(pair) == 2 and all(isinstance(value, list) and len(value) > 1 for value in pair):
            messages, answers = self._shared_prompt(pair)
            return self._same_prompt(row, messages), answers
        if pair:
            answers = [
                self._of_pair(value, name)
                for value, name in zip(pair, (self.chosen, self.rejected), strict=True)
            ]
        if self.prompt is not None:
            return self._prompt(row, self.prompt), answers
        messages = messages_of(self._value(row, str(self.chat)), str(self.chat))
        if not answers and messages[-1]["role"] == "assistant":
            answers, messages = [content_of(messages[-1], str(self.chat))], messages[:-1]
        if not messages:
            raise BadRow(f"`{self.chat}` holds an answer and no prompt")
        return messages, answers

    def _prompt(self, row: Row, prompt: Template) -> Any:
        if not prompt.plain:
            return prompt.fill(row)
        value = get(row, prompt.text)
        if self.cells and isinstance(value, str) and value.lstrip().startswith("[{"):
            value = _parsed(value)
        if isinstance(value, str):
            return value
        if is_chat(value) or value == []:
            return messages_of(value, prompt.text)
        raise BadRow(f"`{prompt.text}` is {kind_of(value)}, expected text or a list of messages")

    def _same_prompt(self, row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The beginning of the pair's conversation, if the prompt that stands beside it is in it."""
        if self.prompt is None:
            beside = messages_of(self._value(row, str(self.chat)), str(self.chat))
            there = beside == messages
        else:
            beside = self._prompt(row, self.prompt)
            said = [m["content"].strip() for m in messages if isinstance(m["content"], str)]
            there = beside.strip() in said if isinstance(beside, str) else beside == messages
        if not there:
            name = self.prompt.text if self.prompt else str(self.chat)
            names = _quoted((str(self.chosen), str(self.rejected)))
            raise BadRow(f"{names} are whole conversations, which do not hold the prompt in `{name}`")
        return messages

    def _of_pair(self, value: Any, name: str | None) -> str:
        text = answer_of(value, str(name)) if isinstance(value, list) else value
        found = _as_text(text, str(name), "is")
        if not found:
            raise BadRow(f"`{name}` is empty: a pair needs two responses")
        return found

    def _shared_prompt(self, pair: list[Any]) -> tuple[list[dict[str, Any]], list[str | None]]:
        """Two conversations that differ in the last message only."""
        names = (str(self.chosen), str(self.rejected))
        if not all(isinstance(value, list) for value in pair):
            raise BadRow(f"{_quoted(names)} are no lists of messages, so a `prompt` is needed")
        first, second = (messages_of(value, name) for value, name in zip(pair, names, strict=True))
        if len(first) < 2 or first[:-1] != second[:-1]:
            raise BadRow(f"{_quoted(names)} must be one conversation but for the last message")
        return first[:-1], [content_of(m[-1], n) for m, n in zip((first, second), names, strict=True)]

    def _scores(self, row: Row, responses: list[str | None]) -> list[Any]:
        if self.chosen is not None and not self.scores:
            return [1.0, 0.0]
        if not self.scores:
            return []
        values = [self._value(row, name) for name in self.scores]
        if len(self.scores) == 1:
            values = values[0] if isinstance(values[0], list) else values
        if len(values) != len(responses):
            raise BadRow(f"{len(responses)} responses and {len(values)} scores")
        return values

    def _score(self, value: Any) -> float:
        name = _quoted(self.scores)
        if isinstance(value, str):
            words = {"true": "1", "false": "0"} if self.cells else {}
            try:
                value = float(words.get(value.strip().lower(), value))
            except ValueError:
                why = " with a decimal comma" if re.fullmatch(r"\s*-?\d+,\d+\s*", value) else ""
                raise BadRow(f"{name}: expected a number, found {value!r}{why}") from None
        if not isinstance(value, int | float):
            raise BadRow(f"{name}: a score is {kind_of(value)}, expected a number")
        if isinstance(value, int) and abs(value) >= LARGEST_SCORE:
            raise BadRow(f"{name}: a score is a whole number of hundreds of digits")
        if not math.isfinite(value):
            raise BadRow(f"{name}: a score is {value}")
        least, most = self.config.score_range or (-math.inf, math.inf)
        if not least <= value <= most:
            raise BadRow(f"{name}: a score is {value}, outside of [{least:g}, {most:g}]")
        return float(value)

    def _finished(self, row: Row, count: int) -> tuple[bool, ...]:
        if self.finished is None or not count:
            return ()
        value = self._value(row, self.finished)
        values = value if isinstance(value, list) else [value]
        if self.cells:
            words = {"true": True, "1": True, "false": False, "0": False}
            values = [words.get(str(v).strip().lower(), v) for v in values]
        if len(values) != count or not all(isinstance(v, bool) for v in values):
            raise BadRow(f"`{self.finished}`: expected true or false for each of {count} responses")
        return tuple(values)

    def _meta(self, row: Row) -> Mapping[str, Any]:
        if self.config.meta is None:
            found = {name: value for name, value in row.items() if name not in self.used}
        else:
            found = {name: v for name in self.config.meta if (v := _find(row, name)) is not _MISSING}
        if isinstance(found.get("meta"), dict):
            found |= found.pop("meta")
        meta = {name: _plain(value) for name, value in found.items() if not isinstance(value, bytes)}
        if self.references:
            texts = [self._list(row, name, empty=True) for name in self.references]
            meta["references"] = [text for each in texts for text in each if text is not None]
        return meta

    # -- values -----------------------------------------------------------------------------------------

    def _value(self, row: Row, name: str) -> Any:
        """A value; a CSV cell that holds a JSON list is that list, an empty one is nothing."""
        value = get(row, name)
        if self.cells and isinstance(value, str):
            if value == "":
                return None
            return _parsed(value) if value.lstrip().startswith("[") else value
        return value

    def _text(self, row: Row, name: str) -> str | None:
        value = self._value(row, name)
        if isinstance(value, list):
            return answer_of(value, name)
        return _as_text(value, name, "is")

    def _list(self, row: Row, name: str, empty: bool = False) -> list[str | None]:
        """Text, or a list of texts."""
        value = self._value(row, name)
        if value is None and empty:
            return []
        if not isinstance(value, list) or is_chat(value):
            return [self._text(row, name)]
        texts: list[str | None] = []
        for part in value:
            texts.append(answer_of(part, name) if isinstance(part, list) else _as_text(part, name, "holds"))
        if not texts and not empty:
            raise BadRow(f"`{name}` is an empty list")
        return texts


def get(row: Row, name: str) -> Any:
    """A column's value; `answers.text` goes into objects."""
    value = _find(row, name)
    if value is _MISSING:
        raise BadRow(f"no column `{name}` (it has: {_some(list(row)) or 'none'})")
    return value


def _find(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def joined(prompt: str, response: str, join: str) -> str:
    """The response as it follows the prompt: `join` comes first where no white space parts the two."""
    if not prompt or not response or prompt[-1].isspace() or response[0].isspace():
        return response
    return join + response


def glued(example: Example) -> bool:
    """Whether a response would run on from the prompt's last word, as RL4LMs' training data did.

    What a run wrote is as its policy sampled it, whether there is a space or not.
    """
    prompt = example.prompt
    if "rlalign" in example.meta or not isinstance(prompt, str) or not prompt or prompt[-1].isspace():
        return False
    starts = [text[0] for text in example.responses if text]
    # Scripts that put no spaces between words begin further up.
    return any(c.isalnum() and c < "\u2e80" for c in starts) and prompt[-1] < "\u2e80"


def _shown(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"`{name}` is {kind_of(value)}, expected text")


def _as_text(value: Any, name: str, verb: str) -> str | None:
    """A text, or nothing; a whole number, such as the answer to a sum, has one spelling."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"`{name}` {verb} {kind_of(value)}, expected text")


def _parsed(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return cell if too_deep(value, cell.count("[") + cell.count("{")) else value


def _plain(value: Any) -> Any:
    """What JSON can hold: a run writes examples down."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return str(value)


def _names(value: str | Names | None) -> Names:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _some(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
