"""The next turn of an everyday conversation: DailyDialog (Li et al. 2017), or DailyDialog++ (Sai et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from rlalign import Example
from rlalign_plugin_dataset.cells import filled, list_of, number
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lines import Lines, SideBySide
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.sources import Sources, canonical
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Prompt,
    Published,
    prompt_tokens,
)

END = "<EOU>"
"""What ends a turn; text, and no token of its own."""
RANGES = {"act": (1, 4), "emotion": (0, 6)}
"""Acts: 1 inform, 2 question, 3 directive, 4 commissive. Emotions: 0 none, anger, disgust, fear, happiness, sadness,
6 surprise."""
RIGHT = "positive_responses"
WRONG = {"adversarial": "adversarial_negative_responses", "random": "random_negative_responses"}
WORDS = {"utterances": ("dialog",), "acts": ("act",), "emotions": ("emotion",)}
"""Columns, and what else they are called."""
DIALOGUES = {"train": 11_118, "val": 1_000, "test": 1_000}
CONTEXTS = {"val": 1_028, "test": 1_142}
DECODING = {"top_k": 20, "min_new_tokens": 2, "max_new_tokens": 20, "stop": (END,)}
INTENT = {
    "classifier": {
        "path": "rajkumarrrk/roberta-daily-dialog-intent-classifier",
        "label_from": "label",
        "value": "largest",
        "context": "last_turn",
    }
}
"""The classifier has learned from the last turn with its `<EOU>`, and the response behind it."""
_EOU = "__eou__"


class DailyDialog(GrueTask):
    """The turns of a conversation up to one, and that one."""

    paper = "Yanran Li et al., DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset, 2017"

    class Config(CompatOptions):
        """Options of `daily-dialog`."""

        data: Literal["dailydialog", "plusplus"] = Field(
            "dailydialog",
            description="of the sample and the hub; in a copy the columns say which it is. `plusplus`: DailyDialog++, "
            "contexts with five right answers, five that only share words with them, and five random ones",
        )
        turns: int = Field(
            5, gt=0, description="how many turns the prompt shows, the last ones; RL4LMs' are 5"
        )
        responses: Literal["right", "adversarial", "random", "all"] = Field(
            "right",
            description="the logged responses: the right ones; or, of DailyDialog++, these scored 1 and beside them, "
            "scored 0, the adversarial ones, the random ones, or both",
        )
        max_prompt_tokens: int | None = prompt_tokens(128)

        @model_validator(mode="after")
        def _is_there(self) -> DailyDialog.Config:
            if self.data == "plusplus" and self.path is None and not self.sample:
                raise ValueError(
                    "DailyDialog++ is not on the hub: say `path`, a folder with the files of "
                    "github.com/iitmnlp/DailyDialog-plusplus, or `sample: true`"
                )
            return self

    config: Config
    samples = SAMPLES / "daily-dialog"
    published = Published(
        "roskoN/dailydialog",
        exported={
            split: f"full/{part}/*.parquet"
            for split, part in (("train", "train"), ("val", "validation"), ("test", "test"))
        },
        elsewhere="The authors' ijcnlp_dailydialog.zip (yanran.li/dailydialog) holds dialogues_train.txt, "
        "dialogues_act_train.txt, …: `path` reads its unpacked folder too.",
    )
    licence = "CC BY-NC-SA 4.0; the answers of DailyDialog++ MIT"
    sizes = DIALOGUES
    warm_start = "rajkumarrrk/gpt2-fine-tuned-on-daily-dialog"
    side = "left"
    defaults = {"generation": DECODING}
    generation = DECODING
    metrics = (
        INTENT,
        "reference-perplexity",
        "diversity",
        "meteor",
        "rouge",
        "bleu",
        {"bert-score": {"path": "FacebookAI/roberta-large"}},
        {"sacrebleu": {"tokenize": "intl"}},
    )

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        if self.config.data == "plusplus":
            self.samples = SAMPLES / "daily-dialog-plusplus"

    def open(self, path: Path) -> Sources:
        """The authors' text files where they are there, else files of rows."""
        found: Sources = {}
        for part in ("train", "validation", "test"):
            sides = {"utterances": "", "acts": "act_", "emotions": "emotion_"}
            for folder in (path, path / part):
                files = {column: folder / f"dialogues_{kind}{part}.txt" for column, kind in sides.items()}
                lines = [Lines(f, f.name, column=c) for c, f in files.items() if f.is_file()]
                if lines:
                    found[canonical(part)] = [SideBySide(lines)]
        return found or super().open(path)

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        found = self.indexed(name, [name], lambda example, reader: name)
        if self.whole:
            tables = self.tables()[name]
            contexts = any(RIGHT in table.columns() for table in tables)
            self.sizes = CONTEXTS if contexts else DIALOGUES
            self.check_size(name, sum(1 for table in tables for _ in table.scan()))
        return found

    def reader(self, split: str, table: Table) -> Turns:
        return Turns(table.name, self, split)

    def postprocess(self, text: str) -> str:
        return text if self.compat else super().postprocess(text.partition(END)[0])


class Turns(GrueReader):
    """A dialogue per row, or a context per row with its answers."""

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        return self._of_context(row, place) if RIGHT in row else self._of_dialogue(row, place)

    def _of_dialogue(self, row: Row, place: str) -> list[Example]:
        """One example a turn that has enough turns before it."""
        c = self.config
        turns = [filled(turn, "a turn") for turn in _list(row, "utterances")]
        labels = {
            what: [_number(each, what) for each in _list(row, f"{what}s")] for what in ("act", "emotion")
        }
        for what, found in labels.items():
            if len(found) != len(turns):
                raise BadRow(
                    f"{len(turns)} turns, and of each `{what}` there should be one, not {len(found)}"
                )
        if c.responses != "right":
            raise BadRow(f"`responses: {c.responses}` is of DailyDialog++, and this row is a dialogue")
        examples = []
        for at in range(c.turns, len(turns)):
            intent = labels["act"][at]
            meta = {"intent": intent, "label": intent - 1, "emotion": labels["emotion"][at]}
            examples.append(
                self._example(f"{place}#{at + 1}", turns[at - c.turns : at], [turns[at]], (), meta)
            )
        return examples

    def _of_context(self, row: Row, place: str) -> list[Example]:
        """One example: the right answers are its references."""
        c = self.config
        turns = [filled(turn, "a turn") for turn in list_of(row, "context")]
        right = [filled(answer, "an answer") for answer in list_of(row, RIGHT)]
        if not (turns and right):
            raise BadRow(f"`{'context' if right else RIGHT}` is empty")
        asked_for = [column for which, column in WRONG.items() if c.responses in (which, "all")]
        wrong = [filled(answer, "an answer") for column in asked_for for answer in list_of(row, column)]
        # In some contexts an answer is there as a right and as a wrong one, or twice.
        wrong = [answer for answer in dict.fromkeys(wrong) if answer not in right]
        return [self._example(place, turns[-c.turns :], right, wrong, {})]

    def _example(
        self, name: str, turns: list[str], right: list[str], wrong: Sequence[str], meta: Mapping[str, Any]
    ) -> Example:
        compat, chat = self.task.compat, self.config.style == "chat"
        if not compat:
            turns, right, wrong = (list(map(str.strip, texts)) for texts in (turns, right, wrong))
        prompt: Prompt = messages(self._fitting(turns)) if chat else self.cut(END.join(turns) + f" {END}")
        responses = [*right, *wrong] if chat else [answer + END for answer in (*right, *wrong)]
        about = {
            "references": responses[: len(right)] if compat else right,
            "last_turn": f"{turns[-1]} {END}",
            **meta,
        }
        scores = (1.0,) * len(right) + (0.0,) * len(wrong) if wrong else ()
        return Example(name, prompt, tuple(responses), scores, meta=about)

    def _fitting(self, turns: Sequence[str]) -> Sequence[str]:
        """The last turns, as many as `max_prompt_tokens` leaves room for; of the last one its end."""
        limit, tokens = self.config.max_prompt_tokens, self.tokens
        if tokens is None or limit is None or self.task.compat:
            return turns
        lengths = [tokens.count(turn) for turn in turns]
        first = next((at for at in range(len(turns)) if sum(lengths[at:]) <= limit), len(turns))
        return turns[first:] or [tokens.cut(turns[-1], limit, self.task.side)]


def messages(turns: Sequence[str]) -> list[dict[str, Any]]:
    """Turns as a chat of which the last is the user's; it begins with one of the user's, as many templates want it."""
    turns = turns[(len(turns) + 1) % 2 :]
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]


def _list(row: Row, name: str) -> list[Any]:
    """A column, under whichever name; in the authors' files a line of text."""
    column = next((each for each in (name, *WORDS[name]) if each in row), name)
    value = get(row, column)
    if not isinstance(value, str):
        return list_of(row, column)
    if name != "utterances":
        return value.split()
    turns = value.split(_EOU)
    return turns if turns[-1].strip() else turns[:-1]


def _number(value: Any, what: str) -> int:
    least, most = RANGES[what]
    return int(number(value, f"an `{what}`", least, most))
