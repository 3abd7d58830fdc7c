"""Helpful and harmless assistance: pairs of answers to one conversation.

Prompt, cleaning and lengths are those of A-LoL (Baheti et al. 2024); the data is Anthropic's (Bai et al. 2022), as
transcripts or as PRO (Song et al. 2023) prepared and scored it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from rlalign import ConfigError, Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import filled, list_of, number, text_of
from rlalign_plugin_dataset.corpus import Corpus, CorpusOptions, Measuring
from rlalign_plugin_dataset.index import BadRow, by_share
from rlalign_plugin_dataset.lengths import fitted
from rlalign_plugin_dataset.mapping import joined
from rlalign_plugin_dataset.sources import Sources, canonical
from rlalign_plugin_dataset.tables import File, Row, Table, is_packed, stem
from rlalign_plugin_dialog_tasks.constants import SAMPLES

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
)
HUMAN, ASSISTANT = "<|prompter|>", "<|assistant|>"
"""How PRO begins a turn, and OpenAssistant's reward models read it."""
CUTS = ("\n Human:", "\nHuman:", "\n### Human")
"""Where a response goes on as the human."""
Folder = Literal["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
FOLDERS: tuple[Folder, ...] = get_args(Folder)
NO_PAIRS = "red-team-attempts"
UNUSED = "bad_test_indices.json"
NUMBERED = "bad_test_indices.jsonl"
"""The same rows, numbered through all of A-LoL's test files; it lies beside the other and is not read."""
COLON = "have a response that ends with a colon"
LISTED = f"are listed in {UNUSED}"

_TURN = re.compile(r"\n\n(Human|Assistant):")


def prompt_of(turns: Sequence[str]) -> str:
    """A-LoL's prompt of turns written as PRO does, the last of which is an empty one of the assistant."""
    told = "".join(turns).replace(HUMAN, " ### Human: ").replace(ASSISTANT, " ### Assistant: ")
    return SYSTEM + told.strip()


def messages_of(turns: Sequence[str]) -> list[dict[str, str]]:
    """The same as messages, for a model with a chat template."""
    return [
        {"role": "user", "content": turn.removeprefix(HUMAN).strip()}
        if turn.startswith(HUMAN)
        else {"role": "assistant", "content": turn.removeprefix(ASSISTANT).strip()}
        for turn in turns[:-1]
    ]


def turns_of(transcript: str, name: str) -> tuple[list[str], str]:
    """The turns of one of Anthropic's transcripts as PRO writes them, and the response at its end.

    A turn keeps its paragraphs. (PRO split at every blank line and dropped what did not begin with a speaker.)
    """
    before, *parts = _TURN.split("\n\n" + transcript.strip())
    if before:
        raise BadRow(f"`{name}` does not begin with `Human:` or `Assistant:`")
    said = list(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True))
    if not said or said[-1][0] != "Assistant":
        raise BadRow(f"`{name}` does not end with a turn of the assistant")
    if len(said) == 1:
        raise BadRow(f"`{name}` holds an answer and no question")
    response = said[-1][1]
    turns = [(HUMAN if who == "Human" else ASSISTANT) + text for who, text in said[:-1]]
    return [*turns, ASSISTANT], response


class HH(Corpus):
    """Anthropic's pairs of a better and a worse answer, prompted as A-LoL does."""

    paper = (
        "Yuntao Bai et al., Training a helpful and harmless assistant with reinforcement learning from human "
        "feedback, 2022"
    )

    class Config(CorpusOptions):
        """Options of `hh`."""

        hub: str = Field("Anthropic/hh-rlhf", description="the data set's name on the hub")
        revision: str | None = Field(None, description="hub: a commit, tag or branch")
        subsets: tuple[Folder, ...] = Field(
            FOLDERS, min_length=1, description="the folders of Anthropic's layout that are read"
        )
        held_out: Annotated[float, Field(gt=0, lt=1)] | None = Field(
            None, description="the share of `train` set aside as `val`, by a hash of the prompt; null: none"
        )
        responses: Literal["pair", "chosen", "rejected"] = Field(
            "pair",
            description="the logged responses: both, or one of them (A-LoL learns from `chosen` alone)",
        )
        scores: Literal["reward", "preference"] = Field(
            "reward",
            description="`reward`: the logistic function of the row's `reward`, where it has one, as in A-LoL; "
            "`preference`, and where it has none: 1 and 0",
        )
        style: Literal["published", "chat"] = Field(
            "published",
            description="the prompt as A-LoL writes it, or a list of messages for a chat template",
        )
        join: str = Field(
            "",
            description="put between prompt and response; nothing for tokenizers that begin a text with a space "
            "themselves, as LLaMA's; ' ' for others",
        )
        clean: bool = Field(
            True, description="leave out rows of `train` of which a response ends with a colon, as A-LoL does"
        )
        exclude: bool = Field(
            True,
            description=f"leave out the test rows that `{UNUSED}` in their folder lists, "
            "as A-LoL's comparison by a judge does",
        )
        max_response_tokens: int | None = Field(
            128, gt=0, description="longer responses are cut on the right and do not end; needs `tokenizer`"
        )
        whole: bool = Field(
            False,
            description="refuse A-LoL's dev and test files if they do not have the published number of rows",
        )

    config: Config
    samples = SAMPLES / "hh"
    sizes = {"val": 280, "test/harmless_base": 2312, "test/helpful_base": 2354, "test/helpful_online": 1135}
    generation = {"greedy": True, "max_new_tokens": 128, "stop": ("###",)}

    def open(self, path: Path) -> Sources:
        found = sources.local(path, {}, ignore=(UNUSED, NUMBERED))
        for split, tables in found.items():
            found[split] = [table for table in tables if self._is_asked_for(table)]
        return _with_parts({split: tables for split, tables in found.items() if tables})

    def _is_asked_for(self, table: Table) -> bool:
        folders = {part for part in table.name.split("/") if part in (*FOLDERS, NO_PAIRS)}
        return folders <= set(self.config.subsets)

    def download(self) -> Sources:
        found: Sources = {}
        for subset in self.config.subsets:
            for split, tables in sources.hub(
                self.config.hub, None, self.config.revision, {}, folder=subset
            ).items():
                found.setdefault(canonical(split), []).extend(tables)
        return _with_parts(found)

    def splits(self) -> list[str]:
        return [*super().splits(), *(["val"] if self._shares() else [])]

    def _shares(self) -> dict[str, float]:
        share = self.config.held_out
        if share is None or "train" not in self.tables():
            return {}
        if "val" in self.tables():
            raise ConfigError(f"{self.where}: has a split `val`; leave out `held_out`")
        return {"train": 1 - share, "val": share}

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        shares = self._shares()
        if name in shares:
            return self.indexed("train", list(shares), by_share(shares))
        return super().read(name)

    def digests(self, name: str) -> list[Any]:
        held = "train" if name in self._shares() else name
        return [name, super().digests(held), [sorted(self._unused(held, t)) for t in self.tables()[held]]]

    def _unused(self, split: str, table: Table) -> Collection[int]:
        return _listed(table) if split.partition("/")[0] == "test" and self.config.exclude else ()

    def reader(self, split: str, table: Table) -> Pairs:
        clean = split == "train" and self.config.clean
        return Pairs(table.name, self.config, clean, self._unused(split, table))

    def postprocess(self, text: str) -> str:
        for cut in CUTS:
            text = text.partition(cut)[0]
        return text.strip().removesuffix("###").strip()


def _with_parts(found: Sources) -> Sources:
    """Each file or folder of `test` is a split of its own beside: `test/helpful_base`."""
    parts: Sources = {}
    for table in found.get("test", []):
        *folders, last = table.name.split("/")
        name = next((f for f in folders if f in FOLDERS), stem(Path(last)))
        if "test" not in re.split(r"[-_. ]", name):
            parts.setdefault(f"test/{name}", []).append(table)
    return found | parts


def _listed(table: Table) -> Collection[int]:
    """Rows, from 0, that A-LoL does not test on: A-LoL says which, and not why."""
    if not (isinstance(table, File) and isinstance(table.path, Path)):
        return ()
    beside = table.path.with_name(UNUSED)
    if not beside.is_file():
        return ()
    name = (table.path.with_suffix("") if is_packed(table.path) else table.path).name
    try:
        listed = json.loads(beside.read_text(encoding="utf-8"))
        return {int(i) for i in listed.get(name, ())}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{beside}: expected an object of lists of row numbers, by file name ({error})"
        ) from None


class Pairs(Measuring):
    """Rows of Anthropic (`chosen`, `rejected`) or of PRO (`prefix`, `suffix`, `reward`)."""

    def __init__(self, name: str, config: HH.Config, clean: bool, unused: Collection[int]) -> None:
        super().__init__(name)
        self.config = config
        self.clean = clean
        self.unused = unused

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        alone = self.config.responses == "chosen"
        if "prefix" in row:
            turns, answers, rewards = _of_pro(row, alone)
        elif "chosen" in row:
            turns, answers = _of_anthropic(row, alone)
            rewards = []
        else:
            raise BadRow("neither `chosen` and `rejected` nor `prefix` and `suffix`")
        if self.unused and int(re.split(r"[:.]", place)[-1]) - 1 in self.unused:
            return [LISTED]
        if self.clean and any(answer.endswith(":") for answer in answers):
            return [COLON]
        return [self._example(place, turns, answers, rewards)]

    def _example(self, place: str, turns: list[str], answers: list[str], rewards: list[float]) -> Example:
        c = self.config
        scores = [1.0, *[0.0] * (len(answers) - 1)]
        if rewards and c.scores == "reward":
            scores = [_logistic(reward) for reward in rewards]
        meta: dict[str, Any] = {"prefix": turns, "references": [answers[0]]}
        if rewards:
            meta["reward"] = rewards
        which = {"pair": slice(None), "chosen": slice(1), "rejected": slice(1, None)}[c.responses]
        prompt: Any = prompt_of(turns) if c.style == "published" else messages_of(turns)
        fits = [fitted(answer, self.tokens, c.max_response_tokens) for answer in answers[which]]
        texts = [text for text, _ in fits]
        if c.join and isinstance(prompt, str):
            texts = [joined(prompt, text, c.join) for text in texts]
        return Example(
            id=place,
            prompt=prompt,
            responses=tuple(texts),
            scores=tuple(scores[which]),
            finished=tuple(ends for _, ends in fits),
            meta=meta,
        )


def _of_anthropic(row: Row, alone: bool) -> tuple[list[str], list[str]]:
    """Turns and answers; with `alone` only the chosen one is needed, and the other may be empty."""
    turns, chosen = turns_of(text_of(row, "chosen"), "chosen")
    others, rejected = turns_of(text_of(row, "rejected"), "rejected")
    if len(turns) != len(others):
        raise BadRow(f"`chosen` has {len(turns)} turns and `rejected` {len(others)}")
    if turns != others:
        raise BadRow("`chosen` and `rejected` differ before the last turn")
    for answer, name in ((chosen, "chosen"), (rejected, "rejected"))[: 1 if alone else 2]:
        filled(answer, f"the answer in `{name}`")
    return turns, [chosen, rejected]


def _of_pro(row: Row, alone: bool) -> tuple[list[str], list[str], list[float]]:
    """The same, and the rewards if there are any."""
    prefixes, answers = list_of(row, "prefix"), list_of(row, "suffix")
    if len(answers) < 2 or len(prefixes) != len(answers):
        raise BadRow(f"{len(prefixes)} prefixes and {len(answers)} suffixes, expected two of each")
    turns = prefixes[0]
    if any(prefix != turns for prefix in prefixes):
        raise BadRow("the prefixes of a row are not the same")
    if not isinstance(turns, list) or not all(
        isinstance(turn, str) and turn.startswith((HUMAN, ASSISTANT)) for turn in turns
    ):
        raise BadRow(f"a turn in `prefix` does not begin with {HUMAN} or {ASSISTANT}")
    if len(turns) < 2 or turns[-1] != ASSISTANT:
        raise BadRow(f"`prefix` does not end with {ASSISTANT}")
    texts = [
        answer if alone and i and answer == "" else filled(answer, f"suffix {i}")
        for i, answer in enumerate(answers)
    ]
    if row.get("reward") is None:
        return turns, texts, []
    rewards = [number(value, "a reward") for value in list_of(row, "reward")]
    if len(rewards) != len(texts):
        raise BadRow(f"{len(texts)} suffixes and {len(rewards)} rewards")
    return turns, texts, rewards


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
