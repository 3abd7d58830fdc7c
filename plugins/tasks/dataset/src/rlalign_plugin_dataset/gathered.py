"""Rows that share a prompt, gathered into one example."""

from __future__ import annotations

from itertools import chain

import numpy

from rlalign import Example, LazyExamples
from rlalign_plugin_dataset.index import Examples


class Gathered(LazyExamples):
    """An example a prompt, with the responses, scores and references of all rows that have it, in their order.

    What else it holds is the first row's. Only where rows stand is kept; they are read when their example is.
    """

    row_keys: numpy.ndarray
    response_counts: numpy.ndarray

    def __init__(self, rows: Examples, most: int | None = None) -> None:
        self.found, self.digests = rows.found, rows.digests
        self._rows = rows
        self.row_keys, first, group = numpy.unique(rows.row_keys, return_index=True, return_inverse=True)
        by_first = numpy.argsort(first)  # a group stands where its first row does
        place = numpy.argsort(by_first)[group]
        self._order = numpy.argsort(place, kind="stable")
        self._ends = numpy.cumsum(numpy.bincount(place))[:most]
        self.row_keys = self.row_keys[by_first][:most]
        counts = numpy.bincount(place, weights=rows.response_counts)[:most]
        self.response_counts = counts.astype(numpy.intc)

    def __len__(self) -> int:
        return len(self._ends)

    def example(self, index: int) -> Example:
        start = self._ends[index - 1] if index else 0
        rows = [self._rows.example(int(row)) for row in self._order[start : self._ends[index]]]
        first = rows[0]
        meta = dict(first.meta)
        if "references" in meta:
            meta["references"] = list(chain.from_iterable(row.references for row in rows))
        return Example(
            id=first.id,
            prompt=first.prompt,
            responses=tuple(chain.from_iterable(row.responses for row in rows)),
            scores=tuple(chain.from_iterable(row.scores for row in rows)),
            finished=tuple(chain.from_iterable(row.finished or (True,) * len(row.responses) for row in rows)),
            meta=meta,
        )
