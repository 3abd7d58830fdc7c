"""From a row to an example, by what its columns mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlalign import Example
from rlalign.data.spoken import Spoken
from rlalign_plugin_dataset.chats import answer_of, content_of, is_chat, is_dialogue, told, turns_of
from rlalign_plugin_dataset.columns import Columns
from rlalign_plugin_dataset.index import BadRow, Reader
from rlalign_plugin_dataset.limits import too_deep
from rlalign_plugin_dataset.mapping import MISSING, Template, find, get, joined, quoted
from rlalign_plugin_dataset.tables import Row, kind_of

if TYPE_CHECKING:
    from rlalign_plugin_dataset import Dataset

LARGEST_SCORE = 10**300
LEADING = ("system", "developer")
"""Roles of messages that say how to answer."""


class Rows(Reader):
    """The rows of one table as examples."""

    def __init__(self, config: Dataset.Config, columns: Columns) -> None:
        super().__init__(columns.name)
        self.config = config
        self.columns = columns
        self.has_ids = columns.id is not None
        self.gathers = config.gather

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        return (self.example(row, place),)

    def example(self, row: Row, place: str) -> Example:
        """The example a row holds; BadRow says why it holds none."""
        named = self.columns.responses
        prompt, responses, better = self._prompt_and_responses(row)
        scores = self._scores(row, responses, better)
        # A column that is empty in this row is a response that is not there, with its score and its end.
        there = [i for i, response in enumerate(responses) if response is not None]
        if responses and not there:
            raise BadRow(f"no response in {quoted(named)}")
        if len(named) == 1 and len(there) < len(responses):
            raise BadRow(f"`{named[0]}` holds a response that is nothing (null)")
        texts = [response for i in there if (response := responses[i]) is not None]
        if self.config.empty_responses == "bad" and not all(text.strip() for text in texts):
            raise BadRow(f"a response in {quoted(named)} is empty")
        prompt = self._put(prompt)
        if self.config.join and isinstance(prompt, str):
            texts = [
                text if isinstance(text, Spoken) else joined(prompt, text, self.config.join) for text in texts
            ]
        return Example(
            id=self._id(row, place),
            prompt=prompt,
            responses=tuple(texts),
            scores=tuple(self._score(scores[i]) for i in there) if scores else (),
            finished=self._finished(row, len(responses), there),
            meta=self._meta(row),
        )

    def _id(self, row: Row, place: str) -> str:
        template = self.columns.id
        if template is None:
            return place
        value = get(row, template.text) if template.plain else template.fill(row)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise BadRow(f"`{template.text}` is {kind_of(value) if value != '' else 'empty'}, expected an id")
        return str(value)

    def _put(self, prompt: Any) -> Any:
        """The prompt as `style` and `system` want it put."""
        system = self.config.system
        if isinstance(prompt, str) and self.config.style == "chat":
            prompt = [{"role": "user", "content": prompt}]
        if system is None:
            return prompt
        if isinstance(prompt, str):
            raise BadRow("`system` begins a chat, and this prompt is text: say `style: chat` too")
        led = prompt[0]["role"] in LEADING
        return prompt if led else [{"role": "system", "content": system}, *prompt]

    def _prompt_and_responses(self, row: Row) -> tuple[Any, list[str | None], int]:
        """The prompt, the responses, and how many of a pair's are the better ones."""
        c = self.columns
        if len(c.responses) == 1:
            answers = self._list(row, c.responses[0])
        else:
            answers = [self._text(row, name) for name in c.responses]
        names = [name for name in (c.chosen, c.rejected) if name]
        pair: list[Any] = [self._value(row, name) for name in names]
        if c.prompt is None and c.chat is None:
            return *self._shared_prompt(pair), 1
        if len(pair) == 2 and all(is_chat(value) and len(value) > 1 for value in pair):
            messages, answers = self._shared_prompt(pair)
            return self._same_prompt(row, messages), answers, 1
        sides = [self._of_pair(value, name) for value, name in zip(pair, names, strict=True)]
        answers += [text for side in sides for text in side]
        better = len(sides[0]) if sides else 0
        if c.prompt is not None:
            return self._prompt(row, c.prompt), answers, better
        said = self._value(row, str(c.chat))
        # The last turn of a dialogue without roles is the response, unless there are others.
        messages = turns_of(said, str(c.chat), "user" if answers else "assistant")
        if not answers and messages[-1]["role"] == "assistant":
            answers, messages = [content_of(messages[-1], str(c.chat))], messages[:-1]
        if not messages:
            raise BadRow(f"`{c.chat}` holds an answer and no prompt")
        return messages, answers, better

    def _prompt(self, row: Row, prompt: Template) -> Any:
        if not prompt.plain:
            return prompt.fill(row, self.config.turn)
        value = get(row, prompt.text)
        if self.columns.cells and isinstance(value, str) and value.lstrip().startswith("[{"):
            value = _parsed(value)
        if isinstance(value, str):
            return value
        if is_dialogue(value) and self.config.style == "plain":
            return told(value, self.config.turn)
        if is_chat(value) or is_dialogue(value) or value == []:
            return turns_of(value, prompt.text, "user")
        raise BadRow(f"`{prompt.text}` is {kind_of(value)}, expected text or a list of messages or texts")

    def _same_prompt(self, row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The beginning of the pair's conversation, if the prompt that stands beside it is in it."""
        c = self.columns
        if c.prompt is None:
            beside = turns_of(self._value(row, str(c.chat)), str(c.chat), "user")
            there = beside == messages
        else:
            beside = self._prompt(row, c.prompt)
            said = [m["content"].strip() for m in messages if isinstance(m["content"], str)]
            there = beside.strip() in said if isinstance(beside, str) else beside == messages
        if not there:
            name = c.prompt.text if c.prompt else str(c.chat)
            names = quoted((str(c.chosen), str(c.rejected)))
            raise BadRow(f"{names} are whole conversations, which do not hold the prompt in `{name}`")
        return messages

    def _of_pair(self, value: Any, name: str) -> list[str]:
        """One side's text, or several of them."""
        several = (
            value if is_dialogue(value) else [answer_of(value, name) if isinstance(value, list) else value]
        )
        texts = [_as_text(text, name, "is") or "" for text in several]
        if not all(texts):
            raise BadRow(f"`{name}` is empty: a pair needs two responses")
        return texts

    def _shared_prompt(self, pair: list[Any]) -> tuple[list[dict[str, Any]], list[str | None]]:
        """Two conversations that differ in the last message only."""
        names = (str(self.columns.chosen), str(self.columns.rejected))
        if not all(isinstance(value, list) for value in pair):
            raise BadRow(f"{quoted(names)} are no lists of messages, so a `prompt` is needed")
        first, second = (turns_of(value, name, "assistant") for value, name in zip(pair, names, strict=True))
        if len(first) < 2 or first[:-1] != second[:-1]:
            raise BadRow(f"{quoted(names)} must be one conversation but for the last message")
        return first[:-1], [content_of(m[-1], n) for m, n in zip((first, second), names, strict=True)]

    def _scores(self, row: Row, responses: list[str | None], better: int) -> list[Any]:
        named = self.columns.scores
        if self.columns.chosen is not None and not named:
            return [1.0] * better + [0.0] * (len(responses) - better)
        if not named:
            return []
        values = [self._value(row, name) for name in named]
        if len(named) == 1:
            values = values[0] if isinstance(values[0], list) else values
        if len(values) != len(responses):
            raise BadRow(f"{len(responses)} responses and {len(values)} scores")
        return values

    def _score(self, value: Any) -> float:
        name = quoted(self.columns.scores)
        if isinstance(value, str):
            words = {"true": "1", "false": "0"} if self.columns.cells else {}
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

    def _finished(self, row: Row, count: int, there: Sequence[int]) -> tuple[bool, ...]:
        """Of the responses that are there; the row says it of these alone, or of all its columns of responses."""
        if self.columns.finished is None or not there:
            return ()
        value = self._value(row, self.columns.finished)
        values = value if isinstance(value, list) else [value]
        if self.columns.cells:
            words = {"true": True, "1": True, "false": False, "0": False}
            values = [words.get(str(v).strip().lower(), v) for v in values]
        if len(values) == count:
            values = [values[i] for i in there]
        if len(values) != len(there) or not all(isinstance(v, bool) for v in values):
            raise BadRow(
                f"`{self.columns.finished}`: expected true or false for each of {len(there)} responses"
            )
        return tuple(values)

    def _meta(self, row: Row) -> Mapping[str, Any]:
        if self.config.meta is None:
            found = {name: value for name, value in row.items() if name not in self.columns.used}
        else:
            found = {name: v for name in self.config.meta if (v := find(row, name)) is not MISSING}
        if isinstance(found.get("meta"), dict):
            found |= found.pop("meta")
        meta = {name: _plain(value) for name, value in found.items() if not isinstance(value, bytes)}
        if self.columns.references:
            texts = [self._list(row, name, empty=True) for name in self.columns.references]
            meta["references"] = [text for each in texts for text in each if text is not None]
        return meta

    # -- values -----------------------------------------------------------------------------------------

    def _value(self, row: Row, name: str) -> Any:
        """A value; a CSV cell that holds a JSON list is that list, an empty one is nothing."""
        value = get(row, name)
        if self.columns.cells and isinstance(value, str):
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
