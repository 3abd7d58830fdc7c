"""An example of a task, and examples that are loaded when they are asked for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy

from rlalign.data.spoken import Spoken

AT_ONCE = 64
"""Lazy examples that are fetched together where all are gone through."""
Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Example:
    """A prompt from a task, with whatever is known about good and bad responses to it."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...] = ()
    """Texts; one of several turns is given as a list of messages, and becomes a `Spoken`."""
    scores: tuple[float, ...] = ()
    finished: tuple[bool, ...] = ()
    """Whether each logged response ended by itself; empty: they all did."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    row: int = -1
    """Set by the draw: where its first logged response stands among all logged responses of the data."""

    def __post_init__(self) -> None:
        """All components of a run see the same example: what it holds cannot be changed."""
        for name in ("responses", "scores", "finished"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"`{name}` of an Example is a list, and got one text: `{name}=[…]`")
            if type(value) is not tuple:
                object.__setattr__(self, name, tuple(value))
        if not all(isinstance(response, str) for response in self.responses):
            turns = (each if isinstance(each, str) else Spoken(each) for each in self.responses)
            object.__setattr__(self, "responses", tuple(turns))
        if type(self.prompt) is not str:
            if not isinstance(self.prompt, str | Sequence):
                kind = type(self.prompt).__name__
                raise TypeError(
                    f"`prompt` of an Example is text or a list of messages, and got a value of type {kind}"
                )
            object.__setattr__(self, "prompt", kept(self.prompt))
        if type(self.meta) is not KeptDict:
            object.__setattr__(self, "meta", KeptDict((k, kept(v)) for k, v in self.meta.items()))

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers, `meta["references"]`: a list of texts, or one text. Empty where there are none."""
        found = self.meta.get("references") or ()
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def without_references(self) -> str:
        """What is said where there are none: why, if the task knows it (`meta["blind"]`), or what there is."""
        why = self.meta.get("blind")
        if why and isinstance(why, str):  # another's data may have such a column too
            return f"example `{self.id}` has none: {why}"
        keys = ", ".join(self.meta) or "none"
        return (
            f"example `{self.id}` has none: `references` is missing or empty in its `meta` (which holds: {keys}); "
            "in the task `dataset`, `references: COLUMN` names the column with them"
        )


def _refused(self: Any, *_: Any, **__: Any) -> Any:
    raise TypeError("an example cannot be changed, others read it too: `copy.deepcopy` it first")


class KeptDict(dict[str, Any]):
    """A dict that stays as it is; a copy of it is an ordinary one."""

    __setitem__ = __delitem__ = __ior__ = _refused
    clear = pop = popitem = setdefault = update = _refused

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class KeptList(list[Any]):
    """A list that stays as it is; a copy of it is an ordinary one."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refused
    append = clear = extend = insert = pop = remove = reverse = sort = _refused

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]

    def __reduce__(self) -> Any:
        return list, (list(self),)


def kept(value: Any) -> Any:
    """A value of which no dict and no list can be changed."""
    kind = type(value)
    if kind is dict:
        return KeptDict((key, kept(each)) for key, each in value.items())
    if kind is list:
        return KeptList(map(kept, value))
    return tuple(map(kept, value)) if kind is tuple else value


class LazyExamples(Sequence[Example], ABC):
    """Derive, and say how many there are (`__len__`) and which is the i-th (`example`)."""

    response_counts: numpy.ndarray | None = None
    """Logged responses of each, so that nobody reads the examples to count them; None: unknown."""
    row_keys: numpy.ndarray | None = None
    """Examples are drawn in the order of these numbers, so that theirs in a file does not matter; None: it does."""

    @abstractmethod
    def example(self, index: int) -> Example:
        """The one at a place from 0 on."""

    def ahead(self, places: Sequence[int]) -> None:
        """These will be asked for next: what lies elsewhere may be fetched together."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        place = range(len(self))[index]
        return self.example(place) if isinstance(place, int) else taken(self, place)

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), AT_ONCE):
            places = range(start, min(start + AT_ONCE, len(self)))
            self.ahead(places)
            yield from map(self.example, places)


def taken(examples: Sequence[Example], places: Sequence[int]) -> list[Example]:
    """Those at some places, fetched together where they can be."""
    if isinstance(examples, LazyExamples):
        examples.ahead(places)
    return [examples[place] for place in places]


class Without(LazyExamples):
    """Examples, those at some places left out."""

    def __init__(self, examples: Sequence[Example], places: Collection[int]) -> None:
        self._examples = examples
        self._at = numpy.setdiff1d(numpy.arange(len(examples)), list(places))
        counts, keys = (_known(examples, name) for name in ("response_counts", "row_keys"))
        self.response_counts = None if counts is None else counts[self._at]
        self.row_keys = None if keys is None else keys[self._at]

    def __len__(self) -> int:
        return len(self._at)

    def example(self, index: int) -> Example:
        return self._examples[int(self._at[index])]

    def ahead(self, places: Sequence[int]) -> None:
        if isinstance(self._examples, LazyExamples):
            self._examples.ahead(self._at[list(places)].tolist())


class Joined(LazyExamples):
    """One sequence of examples after the other."""

    def __init__(self, *parts: Sequence[Example]) -> None:
        self._parts = parts
        self.response_counts, self.row_keys = (_all(parts, name) for name in ("response_counts", "row_keys"))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def example(self, index: int) -> Example:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def _known(examples: Sequence[Example], name: str) -> Any:
    return getattr(examples, name, None)


def _all(parts: Sequence[Sequence[Example]], name: str) -> Any:
    found = [_known(part, name) for part in parts]
    return None if not found or any(x is None for x in found) else numpy.concatenate(found)
