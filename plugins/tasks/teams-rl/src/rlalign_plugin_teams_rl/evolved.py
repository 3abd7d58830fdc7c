"""`evolved`: the instructions that episodes of `evolve` wrote, each one to be answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rlalign import ConfigError, Example, Options, Task
from rlalign.data.spoken import Spoken


class Evolved(Task):
    """Every instruction that `evolve` wrote on its way, as a prompt for whoever answers it."""

    paper = (
        "Shangding Gu et al., TeaMs-RL: Teaching LLMs to Generate Better Instruction Datasets via"
        " Reinforcement Learning, 2024"
    )

    class Config(Options):
        """Options of `evolved`."""

        path: Annotated[Path, Field(strict=False)] = Field(
            description="what `rlalign export --samples` wrote of a `collect` phase whose task is `evolve`"
        )
        different: bool = Field(
            False, description="only those that the reviewer found different from the one before"
        )

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        if split != "train":
            raise ConfigError(f"`{self.name}` has no split `{split}`, only `train`")
        path = self.config.path
        if not path.is_file():
            raise ConfigError(
                f"{path}: there is no such file; `rlalign export RUN --samples FILE` writes one"
            )
        found: list[Example] = []
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict) or not {"id", "prompt", "responses"} <= row.keys():
                    raise ConfigError(
                        f"{path}:{number}: is no row that `rlalign export RUN --samples FILE` writes: it needs `id`, "
                        "`prompt` and `responses`"
                    )
                found += self._of(row)
        if not found:
            raise ConfigError(f"{path}: holds no instruction that was rewritten")
        return found

    def _of(self, row: Mapping[str, Any]) -> Iterator[Example]:
        for sample, logged in enumerate(row["responses"]):
            if not isinstance(logged, list):
                raise ConfigError(
                    f"{self.config.path}: row `{row['id']}` holds a plain text, so it does not come of `evolve`"
                )
            path: list[str] = []
            for said, told, reward in _steps(Spoken(logged)):
                if not told:  # cut in the middle of a response
                    continue
                path.append(said)
                if self.config.different and not reward:
                    continue
                about = {
                    "seed": row["prompt"],
                    "path": list(path),
                    "depth": len(path),
                    "different": bool(reward),
                }
                yield Example(f"{row['id']}/{sample}/{len(path)}", told, meta=about)


def _steps(episode: Spoken) -> Iterator[tuple[str, str, float]]:
    """Of each step: the action, the instruction that came of it, what it paid."""
    own = [message for message in episode.messages if message["role"] == "assistant"]
    for message, part in zip(own, episode.parts, strict=True):
        yield part.text, str(message.get("answer", part.told)), float(message.get("reward", 0.0))
