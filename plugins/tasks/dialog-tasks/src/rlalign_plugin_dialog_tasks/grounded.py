"""Answers grounded in a sentence of knowledge: Wizard of Wikipedia (Dinan et al. 2019), FaithDial (Dziri et al. 2022).

Prompt and choice of turns are those of A-LoL (Baheti et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from rlalign import Example, Joined
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import filled, list_of, text_of
from rlalign_plugin_dataset.corpus import Corpus, CorpusOptions, Measuring
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lengths import Tokens, fitted
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table, kind_of
from rlalign_plugin_dialog_tasks.constants import SAMPLES

NONE_USED = "no_passages_used"
UNCHECKED = "are turns of the wizard without a checked sentence"
UNGROUNDED = "are turns of the wizard that use no passage"
OPENING = "open the dialogue"
PARLAI = {
    "train": ("train.json",),
    "val": ("valid_topic_split.json",),
    "val_seen": ("valid_random_split.json",),
    "test_seen": ("test_random_split.json",),
    "test_unseen": ("test_topic_split.json",),
}


def prompt_of(knowledge: str, history: Sequence[str], turn: str) -> str:
    """`Knowledge: k<|endoftext|>h1<|endoftext|>…hN<|endoftext|>`."""
    return f"Knowledge: {knowledge.strip()}{turn}{turn.join(history).strip()}{turn}"


def recent(history: Sequence[str], turn: str, tokens: Tokens | None, limit: int | None) -> list[str]:
    """The history without its oldest turns, as many as it has too many tokens for; the last one always stays."""
    kept = list(history)
    while tokens is not None and limit is not None and len(kept) > 1:
        if tokens.count(turn.join(kept).strip()) <= limit:
            break
        kept.pop(0)
    return kept


class GroundedOptions(CorpusOptions):
    """What both tasks can be told."""

    revision: str | None = Field(None, description="hub: a commit, tag or branch")
    turn: str = Field(
        "<|endoftext|>",
        min_length=1,
        description="what ends the knowledge and every turn (DialoGPT's is the default)",
    )
    max_history_tokens: int | None = Field(
        400, gt=0, description="of a longer history the oldest turns are left out; needs `tokenizer`"
    )
    max_response_tokens: int | None = Field(
        128, gt=0, description="longer responses are cut on the right and do not end; needs `tokenizer`"
    )


class Grounded(Measuring):
    """What readers of both data sets have in common."""

    prefix: str
    """Of ids, so that the two data sets can stand in one split."""

    def __init__(self, name: str, config: GroundedOptions) -> None:
        super().__init__(name)
        self.config = config

    def example(
        self, place: str, knowledge: str, history: Sequence[str], response: str, meta: Mapping[str, Any]
    ) -> Example:
        c = self.config
        kept = recent(history, c.turn, self.tokens, c.max_history_tokens)
        text, ends = fitted(response.strip(), self.tokens, c.max_response_tokens)
        shown = {"knowledge": knowledge.strip(), "history": kept, "references": [response.strip()]}
        return Example(
            id=f"{self.prefix}/{place}",
            prompt=prompt_of(knowledge, kept, c.turn),
            responses=(text,),
            finished=(ends,),
            meta={**meta, **shown},
        )


# -- FaithDial -------------------------------------------------------------------------------------------


class FaithDial(Corpus):
    """FaithDial: answers that say nothing beyond the knowledge they are given."""

    paper = "Nouha Dziri et al., FaithDial, 2022"

    class Config(GroundedOptions):
        """Options of `faithdial`."""

        hub: str = Field("McGill-NLP/FaithDial", description="the data set's name on the hub")
        revision: str | None = Field(
            "7a414e80725eac766f2602676dc8b39f80b061e4", description="hub: a commit, tag or branch"
        )
        whole: bool | None = Field(
            None,
            description="refuse the data if its splits do not have the published sizes (18,357, 3,417 and 3,539 "
            "answers); null: yes from the hub, no from `path`",
        )

    config: Config
    samples = SAMPLES / "faithdial"
    sizes = {"train": 18_357, "val": 3_417, "test": 3_539}
    generation = {"beams": 2, "max_new_tokens": 128}

    def download(self) -> Sources:
        files = {"train": "data/train.json", "val": "data/valid.json", "test": "data/test.json"}
        return sources.hub(self.config.hub, None, self.config.revision, {}, files=files)

    def reader(self, split: str, table: Table) -> FaithDialRows:
        return FaithDialRows(table.name, self.config)

    def postprocess(self, text: str) -> str:
        return text.strip()


class FaithDialRows(Grounded):
    """One answer per row, or one dialogue per row with its turns in `utterances`."""

    prefix = "faithdial"

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        if "utterances" not in row:
            return [self._answer(row, place)]
        answers: list[Example | str] = []
        for number, utterance in enumerate(list_of(row, "utterances"), 1):
            if not isinstance(utterance, dict):
                raise BadRow(f"utterance {number} is {kind_of(utterance)}, expected an object")
            if "Wizard" in str(utterance.get("speaker", "Wizard")):
                answers.append(self._answer(utterance, f"{place}#{number}"))
        if not answers:
            raise BadRow("no utterance is by the wizard")
        return answers

    def _answer(self, row: Row, place: str) -> Example:
        history = list_of(row, "history")
        if not history:
            raise BadRow("`history` is an empty list")
        turns = [filled(turn, f"turn {i} of `history`") for i, turn in enumerate(history, 1)]
        meta = {name: row[name] for name in ("original_response", "BEGIN", "VRM") if row.get(name)}
        return self.example(place, text_of(row, "knowledge"), turns, text_of(row, "response"), meta)


# -- Wizard of Wikipedia ---------------------------------------------------------------------------------


class WizardOfWikipedia(Corpus):
    """Wizard of Wikipedia: the wizard's answers with the sentence each is based on."""

    paper = "Emily Dinan et al., Wizard of Wikipedia, 2019"

    class Config(GroundedOptions):
        """Options of `wizard-of-wikipedia`."""

        hub: str = Field("chujiezheng/wizard_of_wikipedia", description="the data set's name on the hub")
        faithdial: str | Path | None = Field(
            None,
            description="FaithDial beside it: its folder (`./…`) or its name on the hub; its test split is then "
            "`test`, as in A-LoL",
        )
        train: Literal["wow", "both"] = Field(
            "wow", description="`both`: FaithDial's training split too, as A-LoL's `faithdial_wow`"
        )

        @model_validator(mode="after")
        def _both_are_there(self) -> WizardOfWikipedia.Config:
            if self.train == "both" and self.faithdial is None and not self.sample:
                raise ValueError("`train: both` needs `faithdial`")
            return self

    config: Config
    samples = SAMPLES / "wizard-of-wikipedia"
    places = frozenset({"path", "tokenizer", "faithdial"})
    generation = {"beams": 2, "max_new_tokens": 128}

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.other = self._faithdial()

    def _faithdial(self) -> FaithDial | None:
        c = self.config
        said = {
            name: getattr(c, name)
            for name in GroundedOptions.model_fields
            if name not in ("path", "revision")
        }
        if c.sample:
            return FaithDial(FaithDial.Config(**said))
        if c.faithdial is None:
            return None
        named = str(c.faithdial)
        if isinstance(c.faithdial, Path) or Path(named).exists():
            return FaithDial(FaithDial.Config(path=Path(named), **said))
        return FaithDial(FaithDial.Config(hub=named, **said))

    def open(self, path: Path) -> Sources:
        if path.is_dir() and (path / "train.json").is_file():
            return sources.local(
                path, {s: files for s, files in PARLAI.items() if (path / files[0]).is_file()}
            )
        return sources.local(path, {})

    def download(self) -> Sources:
        return sources.hub(self.config.hub, None, self.config.revision, {})

    def splits(self) -> list[str]:
        return list(dict.fromkeys([*super().splits(), *(["test"] if self.other else [])]))

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        if name == "test" and self.other:
            return {name: self.other.examples("test")}
        found = super().read(name)
        if name == "train" and self.other and self.config.train == "both":
            return {name: Joined(found[name], self.other.examples("train"))}
        return found

    def digests(self, name: str) -> list[Any]:
        own = [] if name == "test" and self.other else super().digests(name)
        takes_other = name == "test" or (name == "train" and self.config.train == "both")
        return [own, self.other.fingerprint(name) if self.other and takes_other else None]

    def reader(self, split: str, table: Table) -> Dialogues:
        return Dialogues(table.name, self.config)

    def postprocess(self, text: str) -> str:
        return text.strip()


class Dialogues(Grounded):
    """One dialogue per row: ParlAI's `dialog`, or the hub's `post` and `response`."""

    prefix = "wow"

    def examples(self, row: Row, place: str) -> Sequence[Example | str]:
        if "dialog" in row:
            return self._of_parlai(row, place)
        if "post" in row:
            return self._of_hub(row, place)
        raise BadRow("neither `dialog` nor `post` and `response`")

    def _of_parlai(self, row: Row, place: str) -> list[Example | str]:
        history: list[str] = []
        found: list[Example | str] = []
        for number, utterance in enumerate(list_of(row, "dialog"), 1):
            if not isinstance(utterance, dict):
                raise BadRow(f"turn {number} is {kind_of(utterance)}, expected an object")
            text = filled(get(utterance, "text"), f"turn {number}")
            speaker = str(get(utterance, "speaker"))
            if "Wizard" in speaker:
                checked = get(utterance, "checked_sentence")
                if not isinstance(checked, dict):
                    raise BadRow(
                        f"turn {number}: `checked_sentence` is {kind_of(checked)}, expected an object"
                    )
                knowledge = next(iter(checked.values()), None)
                found.append(self._turn(f"{place}#{number}", knowledge, history, text))
            elif "Apprentice" not in speaker:
                raise BadRow(f"turn {number} is by `{speaker}`")
            # A-LoL loses a wizard's turn without a checked sentence from the history too; here it was said.
            history.append(text)
        if not found:
            raise BadRow("no turn is by the wizard")
        return found

    def _of_hub(self, row: Row, place: str) -> list[Example | str]:
        columns = [list_of(row, name) for name in ("post", "response", "knowledge", "labels")]
        if len(set(map(len, columns))) > 1:
            counts = ", ".join(map(str, map(len, columns)))
            raise BadRow(f"`post`, `response`, `knowledge` and `labels` are not of one length ({counts})")
        history: list[str] = []
        found: list[Example | str] = []
        for number, (post, response, sentences, label) in enumerate(zip(*columns, strict=True), 1):
            history.append(filled(post, f"post {number}"))
            answer = filled(response, f"response {number}")
            if (
                not isinstance(label, int)
                or not isinstance(sentences, list)
                or not 0 <= label < len(sentences)
            ):
                raise BadRow(f"turn {number}: no sentence {label!r} in `knowledge`")
            title, _, sentence = filled(sentences[label], f"the knowledge of turn {number}").partition(
                "__knowledge__"
            )
            found.append(self._turn(f"{place}#{number}", (sentence or title).strip(), history, answer))
            history.append(answer)
        if not found:
            raise BadRow("no turns")
        return found

    def _turn(self, place: str, knowledge: str | None, history: Sequence[str], text: str) -> Example | str:
        if knowledge is None:
            return UNCHECKED
        if knowledge == NONE_USED:
            return UNGROUNDED
        if not history:
            return OPENING
        return self.example(place, filled(knowledge, "the checked sentence"), history, text, {})
