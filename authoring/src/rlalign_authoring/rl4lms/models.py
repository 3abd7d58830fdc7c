"""`alg.policy`, `alg.model_name` and `tokenizer`: the policy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.source import Part

OWNERS = {
    r"t5-(small|base|large|3b|11b)": "google-t5",
    r"gpt2(-\w+)?": "openai-community",
    r"distilgpt2|distilbert-.+|distilroberta-.+": "distilbert",
    r"(bert|albert)-.+": "google-bert",
    r"(xlm-)?roberta-.+": "FacebookAI",
}
"""Names that the hub once had without an owner."""


@dataclass(frozen=True)
class Model:
    """The policy's component and its options."""

    kind: str
    path: str
    tokenizer: str | None
    """Another one than the model's own."""

    @property
    def reads(self) -> str:
        """What a task cuts prompts by."""
        return f"${{policy.{self.kind}.{'tokenizer' if self.tokenizer else 'path'}}}"


def name(made: Made, section: str, said: str) -> str:
    """A model's name as the hub has it now, or its folder."""
    for pattern, owner in OWNERS.items():
        if re.fullmatch(pattern, said):
            made.note(section, f"`{said}` is called `{owner}/{said}` on the hub now.")
            return f"{owner}/{said}"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", said) or said[:1] in ("/", ".", "~", ""):
        return said
    return f"./{said}"


def model(made: Made, said: Part, tokenizer: Part, kind: str) -> Model:
    """The policy, from where the file names the model."""
    path = said.need("model_name", "the model that training begins with, a folder or a name on the hub")
    other = tokenizer.take("model_name", str, "")
    made.leave(
        tokenizer, "padding is masked, on either side", "padding_side", "pad_token_as_eos_token", "pad_token"
    )
    made.leave(tokenizer, "prompts are cut by the task, or by the policy", "truncation_side")
    made.leave(tokenizer, "the tokenizer's own files say it", "add_bos_token", "decode_with_prefix_space")
    if path and other not in ("", path):
        made.note("policy", f"The tokenizer is that of {tokenizer.line('model_name')}, not the model's own.")
    return Model(
        kind,
        name(made, "policy", path) if path else "",
        name(made, "policy", other) if other not in ("", path) else None,
    )
