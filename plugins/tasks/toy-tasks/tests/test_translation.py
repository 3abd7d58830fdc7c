"""toy-translation: agreement and order, how far a translation is off, and a translator who misreads."""

from __future__ import annotations

import pytest

from rlalign import ComponentError
from rlalign.testing import ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyTranslation
from rlalign_plugin_toy_tasks.translation import (
    ADJECTIVES,
    ADVERBS,
    ENGLISH,
    NOUNS,
    TRANSLATIONS,
    VERBS,
    Meaning,
    Nouns,
    closeness,
    edits,
)

TABLE = {"table": {"actions": [*TRANSLATIONS.words, "end"], "end": "end", "steps": 10, "state": "previous"}}
WORLD = {"task": {"toy-translation": {"size": 8, "held_out": 8}}, "policy": TABLE}


@pytest.mark.parametrize(
    "meaning, english, translations",
    [
        (
            Meaning(Nouns("farmer", False, True, "old"), "sell", Nouns("hat", False, False, "red"), None),
            "the old farmer sells a red hat .",
            ["lo belo veto una kapa ruba vendi ."],
        ),
        (
            Meaning(Nouns("dancer", True, False, None), "carry", Nouns("boat", True, True, "old"), "today"),
            "dancers carry the old boats today .",
            ["odi tinas los navos vetos portin .", "tinas los navos vetos odi portin ."],
        ),
        (
            Meaning(Nouns("singer", False, False, "old"), "carry", Nouns("boat", True, False, None), None),
            "an old singer carries boats .",
            ["una vosa veta navos porti ."],
        ),
    ],
)
def test_sentences_in_both_languages(meaning, english, translations):
    assert meaning.english() == english
    assert meaning.translations() == translations
    assert all(map(TRANSLATIONS.accepts, translations))


@pytest.mark.parametrize(
    "text",
    [
        "la belo veto una kapa ruba vendi .",  # the article agrees
        "lo belo veta una kapa ruba vendi .",  # the adjective agrees
        "los belos veto una kapa ruba vendin .",  # in number too
        "los belos vetos una kapa ruba vendi .",  # the verb with its subject
        "lo belo veto vendi una kapa ruba .",  # the verb stands last
        "lo veto belo una kapa ruba vendi .",  # the adjective behind its noun
        "lo belo odi una kapa vendi .",  # an adverb first or before the verb
        "odi lo belo una kapa odi vendi .",  # and once
        "la kapa una kapa vendi .",  # hats sell nothing
    ],
)
def test_what_the_language_does_not_allow(text):
    assert not TRANSLATIONS.accepts(text)


def test_the_grammar_says_all_that_can_be_meant_and_nothing_else():
    """Articles, numbers, adjectives, nouns; a verb; no adverb, or one in either place."""
    phrases = 8 * 2 * 2 * (1 + len(ADJECTIVES))
    assert TRANSLATIONS.derivations() == phrases**2 * len(VERBS) * (1 + 2 * len(ADVERBS))


def test_words_mean_one_thing():
    for words in (NOUNS, VERBS, ADJECTIVES, ADVERBS):
        assert len(set(words.values())) == len(words)
    assert not set(ENGLISH) - {"."} & set(TRANSLATIONS.words)


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ("", "", 0),
        ("a b", "", 2),
        ("", "a", 1),
        ("a b c", "a c", 1),
        ("a b c", "c b a", 2),
        ("k i t", "s i t s", 2),
    ],
)
def test_edits(one, other, expected):
    assert edits(one.split(), other.split()) == expected
    assert edits(other.split(), one.split()) == expected


def test_closeness_is_to_the_nearest_reference():
    references = ["a b c d", "d a b c"]
    assert closeness(references, "d a b c") == 1
    assert closeness(references, "d a b") == 3 / 4
    assert closeness(references, "x") == 0
    assert closeness(references, "a b c d " * 3) == 0  # no less than nothing


def test_examples():
    examples = ToyTranslation(ToyTranslation.Config(size=300)).examples("train")
    for example in examples:
        references = example.meta["references"]
        assert set(str(example.prompt).split()) <= set(ENGLISH)
        assert len(references) == 1 + bool(set(str(example.prompt).split()) & set(ADVERBS))
        assert example.scores == tuple(closeness(references, r) for r in example.responses)
        assert all(map(TRANSLATIONS.accepts, [*example.responses, *references]))
    scores = [s for e in examples for s in e.scores]
    assert 0.55 < sum(scores) / len(scores) < 0.8


def test_a_careful_translator_makes_no_mistake():
    examples = ToyTranslation(ToyTranslation.Config(size=40, forgets=0.0, mistakes=0.0)).examples("train")
    assert {s for e in examples for s in e.scores} == {1.0}


class TestCloseness(ComponentTests):
    component = "toy-closeness"
    pipeline = {**WORLD, "rewards": ["length", "toy-closeness"]}


LOGGED = {
    **WORLD,
    "rewards": ["toy-closeness", "toy-grammar", "logged"],
    "algorithm": "reinforce",
    "responses": "logged",
    "train": {"iterations": 1, "prompts": 8},
}


def test_logged_responses_earn_what_they_are_stored_with(tmp_path):
    finished, _ = run(tmp_path, LOGGED)
    assert finished.metrics["reward/toy-closeness"] == pytest.approx(finished.metrics["reward/logged"])
    assert finished.metrics["reward/toy-grammar"] == 1


def test_the_reward_says_which_task_it_goes_with(tmp_path):
    with pytest.raises(ComponentError, match="`toy-closeness` goes with `task: toy-translation`"):
        run(
            tmp_path,
            {
                **LOGGED,
                "task": "toy-numbers",
                "policy": {"table": {"actions": 3}},
                "responses": "sampled",
                "rewards": ["toy-closeness"],
            },
        )


class TestToyTranslation(TaskTests):
    component = "toy-translation"
    options = {"size": 40, "held_out": 20}
    any_split = True
    other_options = {"seed": 1}
