"""PARENT: n-grams of a response against references and the table that they were written from.

Dhingra et al. 2019, as ToTTo's script has it. Legend: w(g) is the share of an n-gram's tokens that occur in the table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from pydantic import Field

from rlalign import ComponentError, Example, Options, Rollout, Score, hookimpl
from rlalign_plugin_text_metrics.metric import TextMetric, references
from rlalign_plugin_text_metrics.words import ngrams, normalised

ORDERS = (1, 2, 3, 4)
SMALLEST = 1e-5
"""Stands for a precision or a recall of zero."""
CACHED = 1024
NULL = "<null>"
"""What ToTTo fills up with where an example has fewer than three references."""


class Parent(NamedTuple):
    """How well a response says what the table and one of the references say."""

    precision: float
    recall: float
    f: float


class Table(NamedTuple):
    """The values that may be spoken of, and those that should be."""

    known: tuple[str, ...]
    wanted: tuple[str, ...]


class Grams(NamedTuple):
    """The n-grams of a text: how often each occurs, and w(g)."""

    counts: Counter[tuple[str, ...]]
    entailed: dict[tuple[str, ...], float]
    total: float
    """Σ w(g) over all of them."""


def parent(text: str, others: Sequence[str], table: Table, table_weight: float | None = None) -> Parent:
    """PARENT against the reference that gives the best F.

    `table_weight` is λ, the weight of the table in the recall; None: one minus the share of the wanted values that
    the reference holds.
    """
    tokens = normalised(text)
    mine = grams(tokens, vocabulary(table.known))
    from_table = mentioned(table.wanted, tokens) or SMALLEST
    found = []
    for reference in others:
        precisions, recalls = zip(*map(_order, mine, grams_of(reference, table.known)), strict=True)
        weight = table_weight if table_weight is not None else 1 - _wanted_in(table.wanted, reference)
        precision = _mean_log(precisions)
        recall = (_mean_log(recalls) or SMALLEST) ** (1 - weight) * from_table**weight
        found.append(Parent(precision, recall, 2 * precision * recall / (precision + recall + 1e-8)))
    return max(found, key=lambda one: one.f)


def _order(mine: Grams, theirs: Grams) -> tuple[float, float]:
    """Precision (eq. 2) and recall (eq. 4) of one n.

    An n-gram is right as often as the reference has it, and beyond that as far as the table entails it; the reference's
    n-grams count as far as the table entails them, so that what no table says need not be said.
    """
    right, found = mine.total, 0.0
    for gram, count in mine.counts.items():
        if shared := min(count, theirs.counts.get(gram, 0)):
            entailed = mine.entailed[gram]
            right += shared * (1 - entailed)
            found += shared * entailed
    count = mine.counts.total()
    return right / count if count else 0.0, found / theirs.total if theirs.total else 1.0


def grams(tokens: Sequence[str], known: frozenset[str]) -> list[Grams]:
    """The n-grams of each order."""
    held = [token in known for token in tokens]
    made = []
    for n in ORDERS:
        entailed = {
            gram: sum(each) / n for gram, each in zip(ngrams(tokens, n), ngrams(held, n), strict=True)
        }
        counts = Counter(ngrams(tokens, n))
        made.append(Grams(counts, entailed, sum(c * entailed[gram] for gram, c in counts.items())))
    return made


@lru_cache(CACHED)
def grams_of(reference: str, known: tuple[str, ...]) -> list[Grams]:
    return grams(normalised(reference), vocabulary(known))


@lru_cache(CACHED)
def vocabulary(values: tuple[str, ...]) -> frozenset[str]:
    return frozenset(token for value in values for token in normalised(value))


def _mean_log(values: Sequence[float]) -> float:
    """The geometric mean; a zero counts as nearly zero but in the first order."""
    first, *rest = values
    if first == 0:
        return 0.0
    return math.exp(math.fsum(math.log(value or SMALLEST) for value in (first, *rest)) / len(values))


def mentioned(values: tuple[str, ...], tokens: Sequence[str]) -> float:
    """Eq. 6: the mean share of a value's tokens that the text holds in their order; 1 of no values."""
    split = [value for value in map(normalised, values) if value]
    return sum(common(value, tokens) / len(value) for value in split) / len(split) if split else 1.0


@lru_cache(CACHED)
def _wanted_in(values: tuple[str, ...], reference: str) -> float:
    return mentioned(values, normalised(reference))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of a longest common subsequence."""
    inside = set(one)
    row = [0] * (len(one) + 1)
    for token in other:
        if token not in inside:
            continue
        before = 0
        for i, mine in enumerate(one, 1):
            before, row[i] = row[i], before + 1 if mine == token else max(row[i], row[i - 1])
    return row[-1]


# -- tables of examples ---------------------------------------------------------------------------------


def table_of(example: Example, asked_by: str) -> Table:
    """The example's table: pairs of attribute and value, or ToTTo's own JSON."""
    meta = example.meta
    if "table" not in meta:
        keys = ", ".join(meta) or "none"
        raise ComponentError(
            f"`{asked_by}` reads a table, and example `{example.id}` has none: `meta` holds no `table` "
            f"(it holds: {keys})"
        )
    table = meta["table"]
    try:
        if table and table[0] and isinstance(table[0][0], Mapping):
            return _totto(meta)
        return Table(_values(table), _values(meta.get("highlighted", table)))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ComponentError(
            f"`{asked_by}`: the table of example `{example.id}` is neither a list of [attribute, value] under `table` "
            "(and those to be spoken of under `highlighted`) nor the columns of ToTTo (`table`, `highlighted_cells`, "
            f"`table_page_title`, …): {type(error).__name__}: {error}"
        ) from error


def _values(pairs: Any) -> tuple[str, ...]:
    return tuple(str(value) for _, value in pairs)


def _totto(meta: Mapping[str, Any]) -> Table:
    rows = meta["table"]
    titles = [meta.get(key) or "" for key in ("table_page_title", "table_section_title")]
    cells = [cell["value"] for row in rows for cell in row]
    marked = [rows[i][j]["value"] for i, j in meta["highlighted_cells"]]
    said = meta.get("table_section_text") or ""
    return Table(_filled([*cells, *titles, said]), _filled([*marked, *titles]))


def _filled(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(value.replace("|", "-") for value in values if value.strip())


def references_of(example: Example, asked_by: str) -> tuple[str, ...]:
    """The example's references, or the final sentences of ToTTo's annotations."""
    annotations = example.meta.get("sentence_annotations")
    if example.references or not annotations:
        return references(example, asked_by)
    if isinstance(annotations, Mapping):
        return tuple(annotations["final_sentence"])
    return tuple(each["final_sentence"] for each in annotations)


class ParentMetric(TextMetric):
    """PARENT (F) of a text about a table: its n-grams against references and table, as ToTTo's script has it."""

    paper = "Dhingra et al. 2019, Handling divergent reference texts when evaluating table-to-text generation"
    bounds = (0.0, 1.0)

    class Config(Options):
        """Options of `parent`."""

        table_weight: float | None = Field(
            None,
            ge=0,
            le=1,
            description="λ, the weight of the table in the recall; null, as ToTTo: 1 − the share of the highlighted "
            "values that the reference holds",
        )
        fill: bool = Field(
            True,
            description="fewer than three references are filled up with `<null>`, as in ToTTo's script, "
            "where they count as references",
        )

    config: Config

    def signature(self) -> str:
        weight = self.config.table_weight
        fill = "null" if self.config.fill else "no"
        return f"nrefs:var|case:lc|tok:13a|lambda:{'ref' if weight is None else weight}|fill:{fill}|order:4"

    def values(self, texts: Sequence[str], examples: Sequence[Example]) -> Sequence[float]:
        return [one.f for one in self.measured(texts, examples)]

    def measured(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Parent]:
        """Precision, recall and F of each response."""
        found = []
        for text, example in zip(texts, examples, strict=True):
            others = references_of(example, self.name)
            if self.config.fill:
                others = (*others, *[NULL] * (3 - len(others)))
            table = table_of(example, self.name)
            found.append(parent(text, others, table, self.config.table_weight))
        return found

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        found_N3 = torch.tensor(self.measured(rollout.texts, rollout.answered), dtype=torch.float64)
        precision_N, recall_N, f_N = found_N3.reshape(-1, 3).unbind(1)
        return Score(f_N, metrics={"precision": precision_N, "recall": recall_N})

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        """The means over ToTTo's two subsets, of those that there are."""
        parts: dict[str, list[Parent]] = {}
        marked = [
            (t, e) for t, e in zip(rollout.texts, rollout.answered, strict=True) if "overlap_subset" in e.meta
        ]
        measured = self.measured([t for t, _ in marked], [e for _, e in marked])
        for (_, example), one in zip(marked, measured, strict=True):
            overlaps = str(example.meta["overlap_subset"]).lower() == "true"
            parts.setdefault("overlap" if overlaps else "non-overlap", []).append(one)
        return {
            f"{name}/{what}": sum(getattr(one, what) for one in found) / len(found)
            for name, found in parts.items()
            for what in Parent._fields
        }
