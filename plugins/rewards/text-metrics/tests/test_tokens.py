from __future__ import annotations

import json
from pathlib import Path

import pytest
from nltk.tokenize import NLTKWordTokenizer

from rlalign_plugin_text_metrics.tokens import penn, stem, words_of_any_language

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = sorted({text for said, references in PAIRS for text in (said, *references)})


@pytest.mark.parametrize("text", TEXTS)
def test_penn_gives_what_nltk_gives_of_a_sentence(text):
    assert list(penn(text)) == NLTKWordTokenizer().tokenize(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It ended. Then it began.", "It ended . Then it began ."),
        ("Mr. Smith met J. R. Jones.", "Mr. Smith met J. R. Jones ."),
        ("The U.S. Senate met. It voted.", "The U.S. Senate met . It voted ."),
        ("one ended .\nanother began .", "one ended . another began ."),
        ("It was e.g. small, ca. 5 m.", "It was e.g. small , ca. 5 m ."),
        ('He said "go." She went.', "He said `` go . '' She went ."),
        ("He left… “Why?” she asked.", "He left… “ Why ? ” she asked ."),
        ("cannot, gonna: 'tis Cannot", "can not , gon na : 't is Can not"),
        ("I'd've it's THEY'LL ain't O'Neil's", "I'd 've it 's THEY 'LL ai n't O'Neil 's"),
        ("wait.... no--yes", "wait .... no -- yes"),
    ],
)
def test_penn_on_literal_texts(text, found):
    assert " ".join(penn(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Der Café-Besitzer aß 3 Äpfel_hier.", "der café besitzer aß 3 äpfel hier"),
        ("Cafe\u0301", "caf\u00e9"),
        ("東京タワー and 2", "東 京 タ ワ ー and 2"),
        ("हिन्दी में", "हिन्दी में"),
        ("ภาษา", "ภ า ษ า"),
        ("🙂 …", ""),
    ],
)
def test_words_of_any_language(text, found):
    assert " ".join(words_of_any_language(text)) == found


def test_stems():
    assert [stem(word) for word in ("Running", "skies", "dying", "a", "")] == ["run", "sky", "die", "a", ""]


@pytest.mark.parametrize(
    "text", ["a" * 10**6, ". " * 10**5, "'" * 10**5, ".'" * 10**5, "a." * 10**5, " " * 10**6, "-" * 10**5]
)
def test_no_text_takes_long(text):
    penn(text)
    words_of_any_language(text)
