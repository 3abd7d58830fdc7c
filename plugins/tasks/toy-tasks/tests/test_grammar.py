"""The recogniser against a parser that shares nothing with it, on what the sampler writes and what it does not."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from rlalign_plugin_toy_tasks import Grammar
from rlalign_plugin_toy_tasks.fluency import LANGUAGES as WORLDS
from rlalign_plugin_toy_tasks.keywords import KEYWORDS
from rlalign_plugin_toy_tasks.reviews import REVIEWS

SMALL = Grammar({"S": "A B | 2 B c | A |", "A": "a | a A2", "A2": "b | c c", "B": "A a | d"})
LANGUAGES = {**WORLDS, "small": SMALL}


def parses(grammar: Grammar, text: str) -> bool:
    """Whether the start symbol can become exactly these words, by trying everything."""
    words = text.split()

    @cache
    def ends(part: str, start: int) -> frozenset[int]:
        if part not in grammar.choices:
            return frozenset([start + 1]) if words[start : start + 1] == [part] else frozenset()
        found: set[int] = set()
        for choice in grammar.choices[part]:
            reached = {start}
            for inner in choice:
                reached = {end for place in reached for end in ends(inner, place)}
            found |= reached
        return frozenset(found)

    return len(words) in ends(grammar.start, 0)


def edited(text: str, words: list[str], rng: random.Random) -> str:
    """One to three words left out, put in, replaced, exchanged or doubled."""
    row = text.split()
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(row)), rng.randrange(len(row))
        match rng.randrange(5):
            case 0 if len(row) > 1:
                del row[at]
            case 1:
                row.insert(at, rng.choice(words))
            case 2:
                row[at], row[other] = row[other], row[at]
            case 3:
                row.insert(at, row[at])
            case _:
                row[at] = rng.choice(words)
    return " ".join(row)


@pytest.mark.parametrize("name", LANGUAGES)
def test_everything_sampled_is_accepted(name):
    grammar, rng = LANGUAGES[name], random.Random(name)
    texts = [grammar.sample(rng) for _ in range(4000)]
    assert all(map(grammar.accepts, texts))
    assert all(parses(grammar, text) for text in texts[:100])
    low, high = grammar.lengths[grammar.start]
    assert all(low <= len(text.split()) <= high for text in texts)
    assert {word for text in texts for word in text.split()} == set(grammar.words)


@pytest.mark.parametrize("name", LANGUAGES)
def test_edits_are_judged_as_the_parser_judges_them(name):
    grammar, rng = LANGUAGES[name], random.Random(name)
    sampled = (grammar.sample(rng) for _ in range(1000))
    judged = [
        (grammar.accepts(text), parses(grammar, text))
        for text in (edited(sample, grammar.words, rng) for sample in sampled if sample)
    ]
    assert all(one == other for one, other in judged)
    accepted = sum(one for one, _ in judged)
    assert 0 < accepted < 0.6 * len(judged), "edits of both kinds"


def test_all_texts_of_a_small_language():
    texts = [" ".join(t) for n in range(8) for t in itertools.product(SMALL.words, repeat=n)]
    accepted = {text for text in texts if SMALL.accepts(text)}
    assert accepted == {text for text in texts if parses(SMALL, text)}
    rng = random.Random(0)
    assert {SMALL.sample(rng) for _ in range(5000)} == accepted
    assert SMALL.lengths["S"] == (0, 7)
    assert SMALL.derivations() == 3 * 4 + 4 + 3 + 1 >= len(accepted)


@pytest.mark.parametrize(
    "text", ["", "the", "it .", "the plot was great", "the plot was great . .", "<unk> ."]
)
def test_what_is_no_review(text):
    assert not REVIEWS.accepts(text)


def test_blanks_do_not_matter():
    assert REVIEWS.accepts("  the plot\nwas  great . ")
    assert not REVIEWS.accepts("the plot was great.")


def test_agreement_is_part_of_the_language():
    assert REVIEWS.accepts("the songs were great .")
    assert not REVIEWS.accepts("the songs was great .")
    assert KEYWORDS.accepts("an old farmer sells a red hat .")
    assert not KEYWORDS.accepts("a old farmer sells a red hat .")


def test_choices_are_drawn_by_weight():
    rng = random.Random(0)
    drawn = [Grammar({"S": "3 a | b"}).sample(rng) for _ in range(4000)]
    assert drawn.count("a") / len(drawn) == pytest.approx(0.75, abs=0.02)


def test_a_sentence_that_is_not_wanted_takes_the_same_numbers():
    """So that what comes after it is what came after it when it was written out."""
    wanted = {"the plot was", "its songs were"}
    drawn, sampled = random.Random(0), random.Random(0)
    kept = [REVIEWS.sample_from(wanted, 3, drawn) for _ in range(2000)]
    whole = [REVIEWS.sample(sampled).split() for _ in range(2000)]
    cut = [(" ".join(words[:3]), " ".join(words[3:])) for words in whole]
    assert kept == [row if row[0] in wanted else None for row in cut]
    assert drawn.getstate() == sampled.getstate()
    assert 10 < len(kept) - kept.count(None) < 200


def test_recursion_is_refused():
    with pytest.raises(ValueError, match="S is made of itself"):
        Grammar({"S": "a T", "T": "b S"}).derivations()
