"""Entailment: whether a text follows from another, and SummaC, which asks it of sentences. Legend: C labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlalign import ConfigError, Rollout, Run, Score, hookimpl
from rlalign_plugin_model_rewards.classifier import (
    ClassifierOptions,
    SequenceClassifier,
    labels_of,
    place_of,
)
from rlalign_plugin_model_rewards.texts import texts_of

_ABBREVIATIONS = """
adj al apr aug ave bros capt cf co col corp cpl dec dept dr e.g eg est etc feb fig gen gov hon i.e
ie inc jan jr lt ltd maj messrs mr mrs ms mt no nov oct p pp prof rep rev sen sep sept sgt sr st u.k
u.n u.s vol vs
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
"""Words before whose full stop a sentence does not end."""


def sentences(text: str) -> list[str]:
    """A text's sentences: at line ends, and where `.`, `!` or `?` stands before white space and no small letter."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for end in re.finditer(r"[.!?…][\"'”’)\]]*(?=\s+[^\sa-z])|[。！？]", line):
            word = line[start : end.start()].rsplit(None, 1)[-1:]
            last = word[0].lstrip("(\"'“‘[").lower() if word else ""
            initial = len(last) == 1 and last.isalpha() and last != "i"
            if end[0].startswith(".") and (initial or last in ABBREVIATIONS):
                continue
            found.append(line[start : end.end()])
            start = end.end()
        found.append(line[start:])
    return [sentence for sentence in (each.strip() for each in found) if sentence]


def entailment_of(labels: Sequence[str], asked: str | int | None) -> int:
    """Which label says that the second text follows from the first. Raises ValueError."""
    if asked is not None:
        return place_of(asked, labels)
    found = [i for i, name in enumerate(labels) if re.fullmatch(r"entail(ment|s|ed)?", name.lower())]
    return _found(found, "entailment", labels)


def contradiction_of(labels: Sequence[str], asked: str | int | None) -> int:
    """Which label says that the two contradict each other. Raises ValueError."""
    if asked is not None:
        return place_of(asked, labels)
    found = [
        i for i, name in enumerate(labels) if re.fullmatch(r"(contradict(ion|s|ory)?|refutes?)", name.lower())
    ]
    return _found(found, "contradiction", labels)


def _found(places: Sequence[int], what: str, labels: Sequence[str]) -> int:
    if len(places) != 1:
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise ValueError(f"no label of the model is called {what}: it has {known}; say which is, `{what}: …`")
    return places[0]


def zero_shot(entailed: Tensor, contradicted: Tensor | None) -> float:
    """SummaC-ZS of [document sentences, summary sentences]: for each of the summary's the largest of each, less the
    other; the mean over them (Laban et al. 2022, 3.2; the subtraction as in its code)."""
    score = entailed.amax(0)
    if contradicted is not None:
        score = score - contradicted.amax(0)
    return float(score.mean())


class EntailmentOptions(ClassifierOptions):
    """Options of what reads a model of natural-language inference."""

    entailment: str | int | None = Field(
        None, description="the label of entailment, by name or number; null: the one whose name says so"
    )

    def fits(self, said: dict[str, Any]) -> None:
        entailment_of(labels_of(said), self.entailment)


class Entailment(SequenceClassifier):
    """Base of what reads the probabilities that a model of natural-language inference gives a pair of texts."""

    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._entailment = 0

    def setup(self, run: Run) -> None:
        super().setup(run)
        try:
            self._labels()
        except ValueError as error:
            raise ConfigError(f"{self.config.path}: {error}") from None

    def _labels(self) -> None:
        self._entailment = entailment_of(self.labels, self.config.entailment)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Tensor]:
        """[C] of each (premise, hypothesis). A premise too long is cut at its end, before the hypothesis is."""
        distinct = list(dict.fromkeys(pairs))
        rows = [self.reader.two(premise, hypothesis) for premise, hypothesis in distinct]
        return dict(zip(distinct, (logits_C.softmax(0) for logits_C in self.logits(rows)), strict=True))


class NLI(Entailment):
    """How probable it is that a response follows from its prompt, or from a reference."""

    class Config(EntailmentOptions):
        """Options of `nli`."""

        premise: str = Field(
            "prompt",
            description="what it follows from: `prompt`, `references` (one is enough), or a key of meta",
        )

    config: Config
    bounds = (0.0, 1.0)
    paper = "Bowman et al. 2015; Williams et al. 2018"

    def signature(self) -> str:
        return self.signed(f"premise:{self.config.premise}")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        premises = [texts_of(e, self.config.premise) for e in rollout.answered]
        pairs = [
            [(premise, text) for premise in each] for each, text in zip(premises, rollout.texts, strict=True)
        ]
        known = self.probabilities([pair for each in pairs for pair in each if _whole(pair)])
        found = [
            max(float(known[pair][self._entailment]) if _whole(pair) else 0.0 for pair in each)
            for each in pairs
        ]
        return Score(torch.tensor(found))


class SummaC(Entailment):
    """Whether each sentence of a summary follows from some sentence of the document: SummaC-ZS."""

    class Config(EntailmentOptions):
        """Options of `summac-zs`."""

        document: str = Field("prompt", description="the document: `prompt`, `references`, or a key of meta")
        contradiction: str | int | bool = Field(
            True,
            description="subtract the probability of contradiction, as the authors' code does: true, false, or the "
            "label's name or number where its name does not say so",
        )
        most_sentences: int = Field(
            100, gt=0, description="sentences of the document that are read, the first ones"
        )
        least_characters: int = Field(
            11, ge=1, description="a shorter sentence is left out, unless no other is there"
        )

        def fits(self, said: dict[str, Any]) -> None:
            super().fits(said)
            if self.contradiction is not False:
                contradiction_of(labels_of(said), self.contradicting)

        @property
        def contradicting(self) -> str | int | None:
            """The label that was named."""
            return None if isinstance(self.contradiction, bool) else self.contradiction

    config: Config
    paper = "Laban et al. 2022"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._contradiction: int | None = None
        self.bounds = (0.0 if config.contradiction is False else -1.0, 1.0)

    def signature(self) -> str:
        c = self.config
        op = "entailment" if c.contradiction is False else "entailment-contradiction"
        return self.signed(f"op:{op}", "granularity:sentence", f"document:{c.document}")

    def _labels(self) -> None:
        super()._labels()
        if self.config.contradiction is not False:
            self._contradiction = contradiction_of(self.labels, self.config.contradicting)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        documents = [
            self._cut("\n".join(texts_of(e, self.config.document)))[: self.config.most_sentences]
            for e in rollout.examples
        ]
        groups = rollout.group_N.tolist()
        summaries = [self._cut(text) for text in rollout.texts]
        pairs = [
            [(said, claim) for said in documents[g] for claim in claims]
            for g, claims in zip(groups, summaries, strict=True)
        ]
        known = self.probabilities([pair for each in pairs for pair in each])
        found = [
            self._score([known[pair] for pair in each], len(claims))
            for each, claims in zip(pairs, summaries, strict=True)
        ]
        return Score(torch.tensor(found))

    def _cut(self, text: str) -> list[str]:
        whole = sentences(text)
        return [each for each in whole if len(each) >= self.config.least_characters] or whole

    def _score(self, found: Sequence[Tensor], claims: int) -> float:
        if not found:  # a summary that says nothing is as bad as one that is contradicted
            return 0.0 if self._contradiction is None else -1.0
        table = torch.stack(list(found)).reshape(-1, claims, len(found[0]))
        other = None if self._contradiction is None else table[..., self._contradiction]
        return zero_shot(table[..., self._entailment], other)


def _whole(pair: tuple[str, str]) -> bool:
    return all(map(str.strip, pair))
