"""How a reward model reads a prompt and a response: the same when it is trained and when it scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlalign import Example, Options
from rlalign_plugin_model_rewards.texts import Reader, Row, Side, as_text


class ReadsPairs(Options):
    """Options of what reads prompts with their responses."""

    reads: Literal["pair", "chat", "joined"] | None = Field(
        None,
        description="prompt and response as the tokenizer pairs two texts, as its chat template writes them, or as "
        "one text; null: `chat` where there is a template, else `pair`",
    )
    separator: str = Field(
        "", description="between prompt and response where they are `joined`; may be a special token"
    )
    truncation_side: Side = Field(
        "left",
        description="end that is cut of what is too long: of the prompt first, then of the response; of a chat "
        "always the beginning",
    )

    def row(self, reader: Reader, example: Example, response: str) -> Row:
        """What the model reads of a prompt and a response."""
        match self.reads or ("pair" if reader.tokenizer.chat_template is None else "chat"):
            case "chat":
                asked = example.prompt
                before = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
                return reader.chat([*before, {"role": "assistant", "content": response}])
            case "pair":
                return reader.two(as_text(example.prompt), response)
            case _:
                return reader.joined(as_text(example.prompt), self.separator, response)
