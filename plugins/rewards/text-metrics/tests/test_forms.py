"""What a response looks like: patterns, JSON, lengths, repetition, readability."""

from __future__ import annotations

import json
import time

import pytest
import torch
from pydantic import ValidationError

from rlalign import ConfigError, Example, logged_rollout
from rlalign_plugin_text_metrics.json_valid import JsonValid, checker, fenced, json_valid, parsed
from rlalign_plugin_text_metrics.length import TextLength, nearness
from rlalign_plugin_text_metrics.pattern import Regex, matches
from rlalign_plugin_text_metrics.readability import Readability, reading_ease, syllables
from rlalign_plugin_text_metrics.repetition import repetition
from rlalign_plugin_text_metrics.words import sentences, words


def rollout_of(*texts: str):
    example = Example("x", "", responses=texts)
    actions = [(list(range(1, 2 + len(text))), True) for text in texts]
    return logged_rollout([example], [torch.ones(1)], actions, like=torch.zeros(1))


# -- patterns -------------------------------------------------------------------------------------------


def test_patterns():
    assert matches(r"\d{4}", "in 1999") and not matches(r"\d{4}", "in 99")
    assert matches("a.c", "abc", whole=True) and not matches("b", "abc", whole=True)
    assert matches("(?i)CAFÉ", "café")


def test_a_pattern_that_never_ends_is_given_up():
    metric = Regex(Regex.Config(pattern=r"(a|aa)+$", seconds=0.02))
    start = time.process_time()
    score = metric.reward(rollout_of("aaa", "a" * 80 + "b", "b"))
    assert time.process_time() - start < 2
    assert score.value.tolist() == [1, 0, 0]
    assert score.metrics["given_up"].tolist() == [0, 1, 0]


def test_a_pattern_that_is_none():
    with pytest.raises(ValidationError, match=r"no regular expression: missing \) at position 2"):
        Regex.Config(pattern="(a")


# -- JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null, "ü"]}', 1),
        (" 3 ", 1),
        ("", 0),
        ("{'a': 1}", 0),
        ('{"a": 1} done', 0),
        ("NaN", 0),
        ('{"a": -Infinity}', 0),
        ("[" * 100_000, 0),
        ("[" * 100_000 + "]" * 100_000, 0),
        ("9" * 100_000, 0),
    ],
)
def test_json(text, valid):
    assert json_valid(text) == valid


def test_required_keys():
    assert json_valid('{"a": 1, "b": 2}', ["a", "b"]) == 1
    assert json_valid('{"a": 1}', ["a", "b"]) == json_valid("[1]", ["a"]) == json_valid('"ab"', ["a"]) == 0


def test_fences():
    text = 'Here:\n```json\n{"a": 1}\n```\nand\n```\nx\n```'
    assert fenced(text) == '{"a": 1}\n'
    assert json_valid(text, ["a"], fences=True) == 1 and json_valid(text) == 0
    assert json_valid('{"a": 1}', fences=True) == 1
    assert json_valid("```json\n{", fences=True) == 0
    assert parsed(fenced("~~~\n3\n~~~")) == (3,)
    assert parsed(fenced("````\n3\n```\n````")) is None
    start = time.process_time()
    assert fenced("```a\n" * 20_000) == "```a\n" * 20_000
    assert time.process_time() - start < 1


def schema_file(folder, schema):
    path = folder / "schema.json"
    path.write_text(json.dumps(schema))
    return path


def test_a_schema(tmp_path):
    schema = {
        "type": "object",
        "properties": {"age": {"$ref": "#/$defs/age"}, "name": {"type": "string", "pattern": "^(x|xx)+$"}},
        "required": ["age"],
        "$defs": {"age": {"type": "integer", "minimum": 0}},
    }
    path = schema_file(tmp_path, schema)
    metric = JsonValid(JsonValid.Config(schema_file=path))
    metric.setup(None)
    texts = ['{"age": 3}', '{"age": -3}', "{}", "3", '{"age": 3, "name": "xxx"}', '{"age": 3, "name": "y"}']
    slow = json.dumps({"age": 3, "name": "x" * 80 + "y"})
    start = time.process_time()
    assert metric.values([*texts, slow], [Example("x", "")] * 7) == [1, 0, 0, 0, 1, 0, 0]
    assert time.process_time() - start < 5
    before = metric.config.digest
    assert before and before[:12] in metric.signature()
    schema_file(tmp_path, {"type": "array"})
    with pytest.raises(ConfigError, match="the file has changed since the run was prepared"):
        metric.setup(None)
    assert JsonValid.Config(schema_file=path).digest != before


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, r"schema\.json: no JSON schema: 'objekt' is not valid .* at \$\.type"),
        ({"items": [{"$ref": "http://x.example/y"}]}, "lies outside; put it under"),
        ({"patternProperties": {"a": {}}}, "`patternProperties` is not supported"),
    ],
)
def test_a_schema_that_will_not_do(tmp_path, schema, message):
    with pytest.raises(ValidationError, match=message):
        JsonValid.Config(schema_file=schema_file(tmp_path, schema))


def test_a_schema_that_is_not_there(tmp_path):
    with pytest.raises(ValidationError, match="there is no such file"):
        JsonValid.Config(schema_file=tmp_path / "no.json")


def test_a_value_deeper_than_a_schema_can_follow():
    check = checker(
        {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}}
    )
    assert json_valid("[[[]]]", check=check) == 1
    assert json_valid("[" * 900 + "]" * 900, check=check) == 0


# -- lengths --------------------------------------------------------------------------------------------


def test_lengths():
    rollout = rollout_of("", "one", "one two\n three")
    counts = {"words": [0, 1, 3], "characters": [0, 3, 14], "tokens": [1, 4, 15]}
    for unit, expected in counts.items():
        metric = TextLength(TextLength.Config(unit=unit))
        assert metric.reward(rollout).value.tolist() == expected
        assert metric.bounds == (0, None)
    metric = TextLength(TextLength.Config(least=2, most=2))
    score = metric.reward(rollout)
    assert metric.bounds == (0, 1) and score.value.tolist() == [0, 0.5, 0.5]
    assert score.metrics["words"].tolist() == [0, 1, 3]


def test_nearness():
    assert [nearness(x, 10, 20) for x in (0, 5, 10, 20, 25, 40, 99)] == [0, 0.5, 1, 1, 0.75, 0, 0]
    assert nearness(99, 10, None) == nearness(0, None, 20) == 1
    with pytest.raises(ValidationError, match="`least` is above `most`"):
        TextLength.Config(least=3, most=2)


# -- repetition and readability -------------------------------------------------------------------------


def test_repetition():
    assert repetition("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert repetition("A a a a a", 4) == pytest.approx(1 - 1 / 2)
    assert repetition("a b c", 4) == repetition("", 1) == repetition("a b c d e", 4) == 0


def test_sentences_and_words():
    text = "Dr. Smith paid $3.50. J. R. left! “Why?” he asked.\nNo end"
    expected = ["Dr. Smith paid $3.50.", "J. R. left!", "“Why?” he asked.", "No end"]
    assert sentences(text) == expected
    assert sentences("") == sentences(" \n ") == []
    assert words("It's an ice-cream, n'est-ce pas? 3.5") == (
        "it's",
        "an",
        "ice-cream",
        "n'est-ce",
        "pas",
        "3",
        "5",
    )
    assert words("हिन्दी") == ("हिन्दी",)


COUNTS = {
    1: "cat made walked called times the through don't queue league's",
    2: "table houses lion flying doesn't something TV lovely being every",
    3: "beautiful idea radio banana holiday area CNN already",
    4: "variety information reality mother-in-law",
    5: "university association",
}


def test_syllables():
    for count, found in COUNTS.items():
        assert {word: syllables(word) for word in found.split()} == dict.fromkeys(found.split(), count)


def test_reading_ease():
    # 6 words, 1 sentence, 6 syllables; 7 words, 2 sentences, 11 syllables
    assert reading_ease("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    text = "Universities educate. The cats sat on mats."
    assert reading_ease(text) == pytest.approx(206.835 - 1.015 * 3.5 - 84.6 * (5 + 3 + 5) / 7)
    assert reading_ease("") == reading_ease("…!") == 0
    assert reading_ease("a") == pytest.approx(Readability.bounds[1])
