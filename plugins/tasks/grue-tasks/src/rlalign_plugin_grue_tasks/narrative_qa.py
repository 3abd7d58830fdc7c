"""Questions about stories, asked of their summaries (Kočiský et al. 2018), in the form of UnifiedQA."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy

from rlalign import ConfigError, Example
from rlalign_plugin_dataset.cells import filled, list_of
from rlalign_plugin_dataset.gathered import Gathered
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.lines import Lines
from rlalign_plugin_dataset.mapping import get
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    CompatOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)
from rlalign_plugin_grue_tasks.summaries import FOLDER, HUB, READ, REVISION

BETWEEN = " \\n "
"""Between question and summary: a backslash and an n, as UnifiedQA's models have learned."""
FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}
CHAT = "Answer the question in a few words, from this summary of a story.\n\nQuestion: {question}\n\nSummary: {{text}}"


class NarrativeQA(GrueTask):
    """Questions about stories, each with two answers, to be answered from a summary."""

    paper = "Tomáš Kočiský et al., The NarrativeQA Reading Comprehension Challenge, 2018"

    class Config(CompatOptions):
        """Options of `narrative-qa`."""

        max_prompt_tokens: int | None = prompt_tokens(512)

    config: Config
    samples = SAMPLES / "narrative-qa"
    published = Published(
        HUB,
        revision=REVISION,
        elsewhere="UnifiedQA's train.tsv, dev.tsv and test.tsv, which RL4LMs reads, lie in "
        "storage.googleapis.com/unifiedqa/data/narrativeqa.",
    )
    licence = "Apache-2.0; the summaries are Wikipedia's, CC BY-SA"
    warm_start = "allenai/unifiedqa-t5-base"
    sizes = {"train": 32_747, "val": 3_461, "test": 10_557}
    side = "right"
    """The question comes first, and stays."""
    defaults = {"generation": {"top_k": 50, "max_new_tokens": 50}}
    generation = {"beams": 4, "max_new_tokens": 50}
    metrics = (
        "rouge-l-max",
        "meteor",
        "rouge",
        "bleu",
        {"bert-score": {"path": "FacebookAI/roberta-large"}},
        "diversity",
    )
    limits_the_walk = False

    def open(self, path: Path) -> Sources:
        """UnifiedQA's files, which have no header; or rows of the hub, of which only the summaries are read."""
        files = {split: path / name for split, name in FILES.items()} if path.is_dir() else {"train": path}
        found: Sources = {
            split: [Lines(file, file.name)]
            for split, file in files.items()
            if file.is_file() and file.suffix == ".tsv"
        }
        if found:
            return found
        found = super().open(path)
        for table in (table for tables in found.values() for table in tables):
            if "document" in table.columns():
                table.only([*READ, "answers"])
        return found

    def download(self) -> Sources:
        raise ConfigError("the rows on the hub repeat a whole book each, and are not read from there")

    def without_hub(self) -> str:
        fetch = "`rlalign data fetch narrative-qa --summaries` reads the summaries alone"
        said = f"{fetch}, and `path: {FOLDER}` reads what it writes."
        return "\n".join((said, self.published.elsewhere, super(GrueTask, self).without_hub()))

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        found = self.indexed(name, [name], lambda example, reader: name)[name]
        if any(isinstance(table, Lines) for table in self.tables()[name]):  # an answer a line
            examples = Gathered(found, self.at_most)
            self.check_size(name, len(examples))
            return {name: examples}
        self.check_size(name, found.found)
        return {name: found.take(numpy.arange(len(found))[: self.at_most])}

    def reader(self, split: str, table: Table) -> Questions:
        return Questions(table.name, self, split)


def cells_of(line: str, compat: bool) -> tuple[str, str]:
    """The prompt and the answer of a line; RL4LMs reads a prompt that begins with a quotation mark as CSV does."""
    cells = next(csv.reader([line], delimiter="\t")) if compat and line.startswith('"') else line.split("\t")
    if len(cells) != 2:
        raise BadRow(f"{len(cells)} cells with tabs between them, expected a prompt and an answer")
    return cells[0], cells[1]


class Questions(GrueReader):
    """A line of UnifiedQA's files, a row of the hub, or one that `rlalign data fetch` made of it."""

    gathers = True

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        if "text" in row:
            prompt, answer = cells_of(row["text"], self.task.compat)
            question, between, summary = prompt.partition(BETWEEN)
            if not between:
                raise BadRow(r"no ` \n ` parts a question from a summary")
            answers = [answer]
        else:
            question, summary = filled(_text(get(row, "question")), "`question`"), _summary(row)
            answers = [filled(_text(each), "an answer") for each in list_of(row, "answers")]
            if self.task.compat:  # as UnifiedQA wrote its files
                summary = summary.replace("\n", "") + " "
        if not self.task.compat:
            question, summary = question.strip(), " ".join(summary.split())
        references = [filled(answer, "an answer").strip() for answer in answers]
        if self.config.style == "chat":
            asked = self.prompt(summary, chat=CHAT.format(question=question))
        else:
            asked = self.prompt(summary.lower(), before=question.lower() + BETWEEN)
            references = [answer.lower() for answer in references]
        if not references:
            raise BadRow("`answers` is empty")
        return [self.example(place, asked, references, question=question)]


def _text(value: object) -> object:
    return value.get("text") if isinstance(value, dict) else value


def _summary(row: Row) -> str:
    if "summary" in row:
        return filled(row["summary"], "`summary`")
    document = get(row, "document")
    summary = document.get("summary") if isinstance(document, dict) else None
    return filled(_text(summary), "`document.summary.text`")
