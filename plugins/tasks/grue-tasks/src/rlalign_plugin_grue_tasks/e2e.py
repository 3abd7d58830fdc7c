"""Restaurants in words: the E2E data (Novikova et al. 2017), which is not of GRUE but fits a laptop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlalign import Example
from rlalign_plugin_dataset import sources
from rlalign_plugin_dataset.cells import filled
from rlalign_plugin_dataset.gathered import Gathered
from rlalign_plugin_dataset.index import BadRow
from rlalign_plugin_dataset.sources import Sources
from rlalign_plugin_dataset.tables import Row, Table
from rlalign_plugin_grue_tasks.grue import (
    SAMPLES,
    GrueOptions,
    GrueReader,
    GrueTask,
    Published,
    prompt_tokens,
)

FILES = {
    "train": ("trainset.csv",),
    "val": ("devset.csv",),
    "test": ("testset_w_refs.csv", "testset.csv"),
}
"""The authors' files, by split; of `test`, the first one that is there."""
CHAT = "Describe this restaurant in one or two sentences, with every fact that is given:\n\n{text}"
_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)")


class E2E(GrueTask):
    """What is to be said of a restaurant, and texts that say it."""

    paper = "Jekaterina Novikova, Ondřej Dušek, Verena Rieser, The E2E Dataset, 2017"

    class Config(GrueOptions):
        """Options of `e2e`."""

        max_prompt_tokens: int | None = prompt_tokens(128)

    config: Config
    samples = SAMPLES / "e2e"
    published = Published(
        "tuetschek/e2e_nlg",
        exported={
            "train": "default/train/*.parquet",
            "val": "default/validation/*.parquet",
            "test": "default/test/*.parquet",
        },
        elsewhere="The authors' trainset.csv, devset.csv and testset_w_refs.csv lie on GitHub, in "
        "tuetschek/e2e-dataset.",
    )
    licence = "CC BY-SA 4.0"
    sizes = {"train": 42_061, "val": 4_672, "test": 4_693}
    side = "right"
    blind = {"test": "testset.csv holds none, and testset_w_refs.csv does; take that one"}
    defaults = {"generation": {"top_k": 50, "min_new_tokens": 5, "max_new_tokens": 64}}
    generation = {"beams": 5, "min_new_tokens": 5, "max_new_tokens": 64}
    metrics = ("sacrebleu", "meteor", "rouge", "cider", "parent", "diversity")
    limits_the_walk = False

    def open(self, path: Path) -> Sources:
        named = {
            split: [next(name for name in names if (path / name).is_file())]
            for split, names in FILES.items()
            if any((path / name).is_file() for name in names)
        }
        return sources.local(path, named)

    def read(self, name: str) -> Mapping[str, Sequence[Example]]:
        rows = self.indexed(name, [name], lambda example, reader: name)[name]
        self.check_size(name, rows.found)
        return {name: Gathered(rows, self.at_most)}

    def reader(self, split: str, table: Table) -> Restaurants:
        return Restaurants(table.name, self, split)


class Restaurants(GrueReader):
    """One text per row: `mr` and `ref` as the authors have them, `meaning_representation` and `human_reference` as the
    hub does."""

    gathers = True

    def examples(self, row: Row, place: str) -> Sequence[Example]:
        facts = filled(row.get("mr", row.get("meaning_representation")), "`mr`").strip()
        said = row.get("ref", row.get("human_reference"))
        texts = [] if said is None and self.split in self.task.blind else [filled(said, "`ref`").strip()]
        prompt = self.prompt(facts, before="describe: ", chat=CHAT)
        return [self.example(place, prompt, texts, facts=facts, table=slots(facts))]


def slots(facts: str) -> list[list[str]]:
    """`name[Alimentum], area[city centre]` as pairs of attribute and value, which `parent` reads."""
    found = [[name.strip(), value] for name, value in _SLOT.findall(facts)]
    if not found:
        raise BadRow(f"`mr` is {facts[:40]!r}, expected facts such as `name[Alimentum], area[riverside]`")
    return found
