"""How much a model reads: prompt and response in one row, or each in a row of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlalign_plugin_hf.options import Kind


class Longest(NamedTuple):
    """The longest row, and the config's name for it."""

    most: int
    name: str

    def __str__(self) -> str:
        return f"{self.most} tokens (`{self.name}` in its config.json)"


class Positions:
    """The rows that a model reads, as its config says; positions that are relative bound none.

    A value reads what stands after a response, too: so there is room for its last token.
    """

    def __init__(self, config: Any, kind: Kind) -> None:
        self._apart = kind == "seq2seq"
        self.prompt = _longest(config, "max_encoder_position_embeddings")
        """Of an encoder–decoder's prompts, else of whole rows."""
        self.response = _longest(config, "max_decoder_position_embeddings") if self._apart else None
        self.begin = 1
        """Tokens before a response in a decoder's row."""

    def room(self, response: int) -> int | None:
        """The longest prompt beside a response of so many tokens, perhaps 0; None: however long."""
        if self.response is not None and self.begin + response > self.response.most:
            return 0
        if self.prompt is None:
            return None
        return self.prompt.most if self._apart else max(0, self.prompt.most - response)

    def __str__(self) -> str:
        if self.prompt and self.response and self.prompt != self.response:
            return f"its encoder reads {self.prompt}, its decoder {self.response}"
        return f"the model reads {self.prompt or self.response}"

    def without_room(self, response: int) -> str:
        """Why no prompt can be answered with so many tokens."""
        if self.response is not None:
            most = self.response.most - self.begin
            return f"{response} are more than the decoder reads: {self.response}; ask for at most {most}"
        return f"{response} leave no room for a prompt: the model reads {self.prompt} in all; say a smaller number"

    def left(self, response: int) -> str:
        """What a prompt that is to be answered with so many tokens may not exceed."""
        if self._apart:
            return f"its encoder reads: {self.prompt}"
        return f"the {self.room(response)} that `max_new_tokens: {response}` leaves: the model reads {self.prompt}"

    def told(self, prompt: int, response: int) -> str:
        """Why a logged response cannot stand beside its prompt."""
        if self.response is not None and self.begin + response > self.response.most:
            return f"its logged response's {response} tokens are more than its decoder reads: {self.response}"
        if self._apart:
            return f"its prompt's {prompt} tokens are more than its encoder reads: {self.prompt}"
        return (
            f"its prompt's {prompt} tokens and its logged response's {response} are more than the model reads: "
            f"{self.prompt}"
        )


def _longest(config: Any, other: str) -> Longest | None:
    text = config.get_text_config()
    # Sparse attention picks keys by scores that may tie, which rounding decides; up to `index_topk` it picks them all.
    names = ("max_position_embeddings", "index_topk", other)
    found = [
        Longest(most, text.attribute_map.get(name, name))
        for name in names
        if isinstance(most := getattr(text, name, None), int) and most > 0  # XLNet says -1
    ]
    return min(found, default=None)
