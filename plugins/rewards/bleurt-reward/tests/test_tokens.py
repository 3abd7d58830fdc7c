"""Texts to numbers of tokens: as google's code does it, which is neither quite BERT's nor quite a library's."""

from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pytest

from rlalign_plugin_bleurt_reward.bundle import CheckpointError
from rlalign_plugin_bleurt_reward.tokens import (
    Pairs,
    Tokenizer,
    kept,
    read_vocabulary,
    sentencepiece,
    wordpiece,
)
from rlalign_plugin_bleurt_reward.wordpiece import WordPiece

DATA = Path(__file__).with_name("data")
ROWS = [json.loads(line) for line in (DATA / "wordpiece/pairs.jsonl").read_text().splitlines()]
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "ab", "##a", "##b", "##c", "##bc"),
    *("cafe", "e", "##e", "[", "]", "$", ".", "##.", "中", "ss", "##s"),
]
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}


def pieces(text: str, lower: bool = True) -> list[str]:
    return [PIECES[i] for i in WordPiece(VOCABULARY, lower).pieces(text)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["note"])
def test_google_s_numbers(row):
    pairs = Pairs(wordpiece(DATA / "wordpiece/vocab.txt", lower=True), 48)
    ids, first = pairs(row["reference"], row["candidate"])
    assert ids == row["input_ids"]
    assert [int(i >= first) for i in range(len(ids))] == row["segment_ids"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\r\n\u00a0\u3000", []),
        ("abc", ["ab", "##c"]),
        ("aabc", ["a", "##a", "##bc"]),
        ("ABC", ["ab", "##c"]),
        ("abx", ["[UNK]"]),  # one piece that is not there: the whole word is unknown
        ("xab ab", ["[UNK]", "ab"]),
        ("Café", ["cafe"]),
        ("Cafe\u0301", ["cafe"]),
        ("a.b", ["a", ".", "b"]),
        ("$a", ["$", "a"]),
        ("a中b", ["a", "中", "b"]),
        ("a\u2028b", ["a", "b"]),  # neither a blank nor a control to the cleaning, and split nevertheless
        ("a\u200bb", ["ab"]),  # format characters vanish
        ("a\x00b\ufffd", ["ab"]),
        ("a\x85b", ["ab"]),  # a control
        ("\u0301", []),  # nothing is left of it
        ("\u1e9e", ["[UNK]"]),
        ("[MASK]", ["[", "[UNK]", "]"]),
        ("[SEP]", ["[", "[UNK]", "]"]),
        ("a" * 200, ["a"] + ["##a"] * 199),
        ("a" * 201, ["[UNK]"]),
        ("\U0001f600", ["[UNK]"]),
    ],
)
def test_wordpiece(text, expected):
    assert pieces(text) == expected


def test_wordpiece_that_keeps_case_and_accents():
    assert pieces("abc ABC é", lower=False) == ["ab", "##c", "[UNK]", "[UNK]"]


def test_special_tokens_in_a_text_are_text():
    """A policy that prints [SEP] ends no segment: the model sees three words."""
    pairs = Pairs(wordpiece(DATA / "wordpiece/vocab.txt", lower=True), 48)
    special = [pairs.tokenizer.cls, pairs.tokenizer.sep]
    ids, first = pairs("[CLS] a [SEP] b", "[SEP] [CLS] [PAD] [MASK] [UNK]")
    assert [i for i, token in enumerate(ids) if token in special] == [0, first - 1, len(ids) - 1]
    assert 0 not in ids


def test_empty_texts_keep_both_separators():
    cls, sep = 2, 3
    pairs = Pairs(Tokenizer(WordPiece(VOCABULARY, True).pieces, cls, sep, len(PIECES)), 48)
    assert pairs("", "") == ([cls, sep, sep], 2)
    assert pairs("a", "") == ([cls, 5, sep, sep], 3)
    assert pairs("", "a") == ([cls, sep, 5, sep], 2)


def test_halves_of_characters_are_left_out():
    pairs = Pairs(Tokenizer(WordPiece(VOCABULARY, True).pieces, 2, 3, len(PIECES)), 48)
    assert pairs("a\ud800", "b") == pairs("a", "b")


def cut_by_one(first: int, second: int, most: int) -> tuple[int, int]:
    while first + second > most:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_truncation_is_that_of_one_token_after_the_other():
    for most in range(1, 12):
        for first in range(20):
            for second in range(20):
                assert kept(first, second, most) == cut_by_one(first, second, most), (first, second, most)
                # so that a text may be cut before the other is known
                early = cut_by_one(min(first, most + 3), min(second, most + 3), most)
                assert early == cut_by_one(first, second, most)


def test_a_long_text_takes_as_long_as_what_is_read_of_it():
    pairs = Pairs(wordpiece(DATA / "wordpiece/vocab.txt", lower=True), 512)
    for text in ("word " * 400_000, "a." * 500_000, "x" * 2_000_000, "中" * 500_000, "q" * 199 + " "):
        began = time.monotonic()
        ids, _ = pairs("short", text * (1 if len(text) > 1000 else 1000))
        assert len(ids) <= 512 and time.monotonic() - began < 5


def test_every_character_is_cleaned_as_its_category_says():
    clean = WordPiece(VOCABULARY, True)._clean
    for code in range(0x11000):
        char, kind = chr(code), unicodedata.category(chr(code))
        found = char.translate(clean)
        if kind == "Zs" or char in "\t\n\r":
            assert found == " "
        elif kind in ("Cc", "Cf") or char == "\ufffd":
            assert found == ""
        else:
            assert found.strip(" ") == char


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_vocabulary_numbers_distinct_lines(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[PAD]\na \r\nb\na\n\n中\u2028\nc".encode())
    assert read_vocabulary(tmp_path / "vocab.txt") == {"[PAD]": 0, "a": 1, "b": 2, "": 3, "中": 4, "c": 5}


def test_a_vocabulary_in_a_tokenizer_json(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": VOCABULARY}}))
    assert read_vocabulary(path) == VOCABULARY
    assert list(wordpiece(path, True).pieces("abc")) == [VOCABULARY["ab"], VOCABULARY["##c"]]


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "{}",
        '{"model": []}',
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": [["a", 1.5]], "type": "Unigram"}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": "1"}}}',
        '{"model": {"vocab": {"a": 99999999999}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 1}}}',
        "[" * 100_000,
    ],
)
def test_a_tokenizer_json_that_is_none(tmp_path, said):
    path = tmp_path / "tokenizer.json"
    path.write_text(said)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_vocabulary(path)


def test_a_vocabulary_without_what_is_needed(tmp_path):
    path = tmp_path / "vocab.txt"
    for text in (b"", b"a\nb\n", b"[CLS]\n[SEP]\n"):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match=r"vocab\.txt: has no \["):
            wordpiece(path, True)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: cannot be read"):
        wordpiece(path, True)


# -- SentencePiece ----------------------------------------------------------------------------------------------------


def test_sentencepiece(trained):
    tokenizer = sentencepiece(trained())
    ids, first = Pairs(tokenizer, 48)("the fox [SEP]", "sings [CLS]\u4e2d")
    assert [i for i, token in enumerate(ids) if token in (tokenizer.cls, tokenizer.sep)] == [
        0,
        first - 1,
        len(ids) - 1,
    ]
    assert max(ids) < tokenizer.size and 0 in ids
    assert Pairs(tokenizer, 48)("", "") == ([tokenizer.cls, tokenizer.sep, tokenizer.sep], 2)


def test_a_sentencepiece_model_that_is_none(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"no \[CLS\] or no \[SEP\]"):
        sentencepiece(trained(control_symbols=["[CLS]"]))
    whole = (tmp_path / "spm.model").read_bytes()
    for damaged in (b"", b"\xff" * 100, whole[: len(whole) // 2]):
        (tmp_path / "spm.model").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"spm\.model"):
            sentencepiece(tmp_path / "spm.model")
