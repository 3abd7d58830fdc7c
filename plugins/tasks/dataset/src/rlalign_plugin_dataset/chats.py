"""Lists of messages, as chat templates take them and as ShareGPT writes them; dialogues as lists of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.data.spoken import Spoken
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.tables import kind_of

ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Who speaks in ShareGPT's files, in the words of chat templates."""


def is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def is_dialogue(value: Any) -> bool:
    """Whether this is a list of texts: turns of which nobody says whose they are."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)


def told(turns: Sequence[str], end: str) -> str:
    """A dialogue as one text."""
    return "".join(turn + end for turn in turns)


def turns_of(value: Any, name: str, last: str) -> list[dict[str, Any]]:
    """The messages of a chat, or of a dialogue in which two speak in turn and `last` is the last one's role."""
    if not is_dialogue(value):
        return messages_of(value, name)
    roles = {"user": ("user", "assistant"), "assistant": ("assistant", "user")}[last]
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(reversed(value))][::-1]


def messages_of(value: Any, name: str) -> list[dict[str, Any]]:
    """The messages of a chat."""
    if not isinstance(value, list) or not value:
        raise BadRow(
            f"`{name}` is {'an empty list' if value == [] else kind_of(value)}, expected a list of messages"
        )
    return [_message(message, f"`{name}`: message {number}") for number, message in enumerate(value, 1)]


def _message(message: Any, which: str) -> dict[str, Any]:
    if isinstance(message, dict):
        if isinstance(message.get("role"), str) and "content" in message:
            return message
        if isinstance(message.get("from"), str) and "value" in message:  # as ShareGPT writes it
            return {"role": ROLES.get(message["from"].lower(), message["from"]), "content": message["value"]}
        keys = ", ".join(f"`{key}`" for key in list(message))
        raise BadRow(f"{which} has {keys or 'nothing'}, expected `role` and `content`")
    raise BadRow(f"{which} is {kind_of(message)}, expected an object with `role` and `content`")


def answer_of(value: list[Any], name: str) -> str:
    """The one message of an answer in chat form; or all that was said in an answer of several turns."""
    messages = messages_of(value, name)
    ends = {messages[0]["role"], messages[-1]["role"]} if messages else set()
    if ends == {"assistant"} and (len(messages) > 1 or messages[0].get("cut") is not None):
        return Spoken(messages)
    if len(messages) != 1:
        raise BadRow(f"`{name}` holds {len(messages)} messages, expected one answer")
    return content_of(messages[0], name)


def content_of(message: Mapping[str, Any], name: str) -> str:
    if message["role"] != "assistant":
        raise BadRow(f"`{name}`: the answer is by `{message['role']}`, expected `assistant`")
    content = message["content"]
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f"`{name}`: the content of a message is {kind_of(content)}, expected text")
    return content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
