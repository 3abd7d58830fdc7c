"""Prompts as tokens: a chat's template, and what becomes of one that is empty or too long."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from rlalign import ConfigError, Example, LazyExamples, RLAlignError
from rlalign.data.limits import TEXT_CHARACTERS
from rlalign.data.spoken import Spoken
from rlalign.interface.policy import Reading
from rlalign_plugin_hf.options import ModelOptions, where
from rlalign_plugin_hf.positions import Positions
from rlalign_plugin_hf.rendering import ChatTemplate
from rlalign_plugin_hf.spelling import Spelling

REMEMBERED = 100_000
"""Prompts whose tokens are kept."""
AT_ONCE = 256
"""Examples whose tokens are counted together."""
LOOKED_AT, CHARACTERS, UNKNOWN = 100, 1_000, 0.2
"""Prompts, and characters of each, in which unknown tokens are looked for; the share above which they are told."""
_log = logging.getLogger("rlalign")

Rows = Callable[[Example], Sequence[Sequence[int]]]
"""The tokens of each of an example's logged responses."""


class _Written(NamedTuple):
    """A prompt as text."""

    text: str
    plain: bool
    """Whether it was text, and no chat."""
    said: tuple[str, ...] = ()
    """What marks in it stand for: control tokens that a chat's messages spell."""


class _Unsure(NamedTuple):
    """An example whose prompt may be too long, or empty."""

    place: int
    example: Example
    prompt: _Written


def require_short(example: Example, text: str) -> None:
    """Refuse text that is too long for a tokenizer, which would fill the memory."""
    if len(text) > TEXT_CHARACTERS:
        raise ConfigError(
            f"example `{example.id}`: a text of {len(text):,} characters; the longest that becomes tokens has "
            f"{TEXT_CHARACTERS:,}: cut it, or leave the row out"
        )


class PromptReader:
    """Reads prompts with a tokenizer, within `max_prompt_tokens` and what the model's positions leave."""

    def __init__(
        self,
        tokenizer: Any,
        config: ModelOptions,
        positions: Positions | None = None,
        new_tokens: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._positions = positions
        self._new_tokens = new_tokens
        self.spelling = Spelling(tokenizer)
        self._tokens: dict[_Written, list[int]] = {}
        self._template: ChatTemplate | None = None
        self._noted = False

    def tokens(self, example: Example) -> list[int]:
        """A prompt's tokens; one that has none, or more than the limit, stops the run."""
        found = self._truncated_tokens(example)
        if not found:
            raise RLAlignError(f"example `{example.id}`: {self._no_tokens()}")
        limit = self.config.max_prompt_tokens
        if limit is not None and len(found) > limit:
            raise RLAlignError(f"example `{example.id}`: {self._too_long(len(found), limit)}; {self._remedy}")
        return found

    def reading(self, examples: Sequence[Example], sampled: bool) -> Reading:
        """How these prompts are read, for who wants to look."""
        limit, cuts = self._longest(sampled), self.config.too_long == "truncate"
        written = [self._written(example) for example in examples]
        unsure = [_Unsure(i, *both) for i, both in enumerate(zip(examples, written, strict=True))]
        said = f"`max_prompt_tokens: {limit}`"
        if limit != self.config.max_prompt_tokens and self._positions is not None:
            said = self._positions.left(self._new_tokens) if limit is not None else ""
        side = self.tokenizer.truncation_side
        becomes = {"truncate": f"cut on the {side}", "drop": "left out", "error": "refused"}
        first = self._read(written[0], limit if cuts else None) if written else []
        return Reading(
            self._counted(unsure),
            limit,
            said,
            becomes[self.config.too_long],
            self.tokenizer.decode(first, clean_up_tokenization_spaces=False),
        )

    # -- before anything is read in earnest -----------------------------------------------------------

    def refuse(
        self, examples: Sequence[Example], responses: Collection[str], rows_of: Rows
    ) -> Mapping[int, str]:
        """Those whose prompt has no token or is too long, alone or with a response; `too_long: error` raises."""
        self._note_unknown(examples)
        longest = self._longest("sampled" in responses)
        cuts = self.config.too_long == "truncate"
        rows = "logged" in responses and self._positions is not None and self._positions.room(0) is not None
        # The special tokens of most tokenizers fill an empty prompt; and what is read only when it is drawn is
        # not read just to look for blanks: one stops the run there.
        blanks = not self.tokenizer("")["input_ids"]
        counts = rows or not (cuts or longest is None)
        found: dict[int, str] = {}
        long: dict[int, str] = {}
        if not counts and (not blanks or isinstance(examples, LazyExamples)):
            for example in islice(examples, 1):
                self._written(example)  # is there a template at all?
            return found
        unsure = self._unsure(examples, longest if counts else None, rows=rows)
        while piece := list(islice(unsure, AT_ONCE)):
            for one, whole in zip(piece, self._counted(piece), strict=True):
                length = min(whole, self._longest(True) or whole) if cuts else whole
                if length == 0:
                    found[one.place] = self._no_tokens()
                elif longest is not None and length > longest:
                    long[one.place] = self._too_long(length, longest)
                elif rows and (why := self._beside_logged(one.example, length, rows_of)):
                    long[one.place] = why
        if long and self.config.too_long != "drop":
            first = min(long)
            also = f" (so are {len(long) - 1:,} more of {len(examples):,})" if len(long) > 1 else ""
            raise ConfigError(f"example `{examples[first].id}`: {long[first]}{also}; {self._remedy}")
        return {**found, **long}

    def _note_unknown(self, examples: Sequence[Example]) -> None:
        """Say, once, where the tokenizer knows little of how prompts are written."""
        unknown = self.tokenizer.unk_token_id
        texts = [e.prompt for e in islice(examples, LOOKED_AT) if isinstance(e.prompt, str)]
        if unknown is None or self._noted or not texts:
            return
        short = [text[:CHARACTERS] for text in texts]
        tokens = [
            token for ids in self.tokenizer(short, add_special_tokens=False)["input_ids"] for token in ids
        ]
        share = tokens.count(unknown) / len(tokens) if tokens else 0.0
        if share > UNKNOWN:
            self._noted = True
            _log.warning(
                "%.0f %% of the prompts' tokens are unknown to the tokenizer of %s (`%s`): the model has learned no "
                "such words, and learns little of them now",
                100 * share,
                where(self.config),
                self.tokenizer.unk_token,
            )

    def _longest(self, sampled: bool) -> int | None:
        """The longest prompt; where nothing is sampled, the positions bound it together with its responses only."""
        limit = self.config.max_prompt_tokens
        room = self._positions.room(self._new_tokens) if sampled and self._positions else None
        return min((most for most in (limit, room) if most is not None), default=None)

    def _unsure(self, examples: Sequence[Example], longest: int | None, *, rows: bool) -> Iterator[_Unsure]:
        """Those examples of which characters alone do not tell that they fit."""
        room = self._positions.room(0) if rows and self._positions else None
        for i, example in enumerate(examples):
            if longest is None and room is None and not isinstance(example.prompt, str):
                continue  # a chat has its template's tokens
            written = self._written(example)
            prompt = self._at_most(written.text)
            answer = max(map(self._at_most, example.responses), default=0.0) if room is not None else 0.0
            fits = prompt <= (longest or prompt) and (room is None or prompt + answer <= room)
            if not fits or not written.text.strip():
                yield _Unsure(i, example, written)

    def _at_most(self, text: str) -> float:
        """Tokens that a text surely has no more of: one a character of ASCII, and what a tokenizer puts around it.

        Beside a response of several turns stands what was said to it.
        """
        return len(text) + self._around if text.isascii() and not isinstance(text, Spoken) else math.inf

    @cached_property
    def _around(self) -> int:
        return len(self.tokenizer("")["input_ids"]) + 2

    def _counted(self, piece: Sequence[_Unsure]) -> list[int]:
        """Tokens of each prompt, uncut."""
        for one in piece:
            require_short(one.example, one.prompt.text)
        found = {
            one.place: len(self.spelling.shown(one.prompt.text, one.prompt.said))
            for one in piece
            if one.prompt.said
        }
        for plain in (True, False):
            alike = [one for one in piece if one.prompt.plain is plain and not one.prompt.said]
            lengths = self._lengths([one.prompt.text for one in alike], marks=plain)
            found.update(zip((one.place for one in alike), lengths, strict=True))
        return [found[one.place] for one in piece]

    def _lengths(self, texts: Sequence[str], *, marks: bool) -> list[int]:
        if not texts:
            return []
        # Not verbose: transformers has its own words for what is too long.
        found = self.tokenizer(list(texts), add_special_tokens=marks, verbose=False)["input_ids"]
        return [len(ids) for ids in found]

    def _beside_logged(self, example: Example, prompt: int, rows_of: Rows) -> str | None:
        """Why an example's logged responses cannot stand beside its prompt of so many tokens."""
        assert self._positions is not None
        for text in example.responses:
            require_short(example, text)
        if any(isinstance(text, Spoken) or self.spelling.found(text) for text in example.responses):
            lengths = [len(row) for row in rows_of(example)]
        else:
            ends = example.finished or (True,) * len(example.responses)
            bare = self._lengths(example.responses, marks=False)
            lengths = [length + end for length, end in zip(bare, ends, strict=True)]
        longest = max(lengths, default=0)
        room = self._positions.room(longest)
        return None if room is None or prompt <= room else self._positions.told(prompt, longest)

    def _no_tokens(self) -> str:
        token = self.tokenizer.bos_token or self.tokenizer.eos_token
        hint = (
            f"; write the token that begins a text, `{token}`, to have a text from its beginning"
            if token
            else ""
        )
        return f"its prompt becomes no tokens at all, and there is nothing to go on from{hint}"

    def _too_long(self, length: int, longest: int) -> str:
        said = f"`max_prompt_tokens: {longest}`"
        if longest != self.config.max_prompt_tokens and self._positions is not None:
            said = self._positions.left(self._new_tokens)
        return f"its prompt's {length} tokens are more than {said}"

    @property
    def _remedy(self) -> str:
        if self.config.too_long == "truncate":
            return "`too_long: drop` leaves such examples out, a smaller `max_prompt_tokens` cuts more of the prompts"
        return "`too_long: drop` leaves such examples out, `truncate` cuts their prompts"

    def _truncated_tokens(self, example: Example) -> list[int]:
        """A prompt's tokens, which `too_long: truncate` cuts at the tokenizer's truncation side."""
        prompt = self._written(example)
        if prompt not in self._tokens:
            if len(self._tokens) >= REMEMBERED:
                self._tokens.clear()
            require_short(example, prompt.text)
            longest = self._longest(True) if self.config.too_long == "truncate" else None
            self._tokens[prompt] = self._read(prompt, longest)
        return self._tokens[prompt]

    def _read(self, prompt: _Written, longest: int | None) -> list[int]:
        if prompt.said:
            tokens = self.spelling.shown(prompt.text, prompt.said)
            if longest is None or len(tokens) <= longest:
                return tokens
            return tokens[-longest:] if self.tokenizer.truncation_side == "left" else tokens[:longest]
        cut: dict[str, Any] = {} if longest is None else {"truncation": True, "max_length": longest}
        # A chat template writes its special tokens itself.
        return list(self.tokenizer(prompt.text, add_special_tokens=prompt.plain, **cut)["input_ids"])

    def own_system(self) -> str | None:
        """The system message that the chat template puts where a chat has none."""
        mark = "…system…"
        asked = {"role": "user", "content": "…user…"}
        try:
            before, found, after = self.rendered([{"role": "system", "content": mark}, asked]).partition(mark)
            text = self.rendered([asked])
        except ValueError:  # it takes no system message
            return None
        if not (found and text.startswith(before) and text.endswith(after)):
            return None
        return text[len(before) : len(text) - len(after)].strip() or None

    def rendered(self, messages: Any, *, answered: bool = False) -> str:
        """Messages as the chat template writes them, up to an answer; with `answered`, all of them."""
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has none; say plain text")
        if self._template is None:
            template = self.tokenizer.get_chat_template()
            self._template = ChatTemplate(template, self.tokenizer.special_tokens_map, self.config.today)
        return self._template.render(messages, answered=answered)

    def _written(self, example: Example) -> _Written:
        """The prompt as text; control tokens that a chat's messages spell are hidden from its template."""
        if isinstance(example.prompt, str):
            return _Written(example.prompt, plain=True)
        if self.tokenizer.chat_template is None:
            raise RLAlignError(
                f"example `{example.id}`: its prompt is chat messages, and the tokenizer of {where(self.config)} has "
                "no chat template; give plain text, or name a tokenizer that has one (`tokenizer:`)"
            )
        messages, said = self.spelling.hidden(example.prompt)
        try:
            return _Written(self.rendered(messages), False, said)
        except ValueError as error:
            raise ConfigError(
                f"example `{example.id}`: the chat template of {where(self.config)} cannot be used: {error}; mend it, "
                "or name a tokenizer that has another one (`tokenizer:`)"
            ) from None
