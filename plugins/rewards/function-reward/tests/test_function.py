"""A user's function as a reward: what it is given, what it may return, and all that can be wrong with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import rlalign
from rlalign import ComponentError, ConfigError, Example, Rollout, Sampling, Score
from rlalign.running import loop
from rlalign.testing import COMPONENTS, ComponentTests, registry, run, session
from rlalign.testing.bench import Silence, stop_early
from rlalign_plugin_function_reward import Function, numbers

TESTS = Path(__file__).parent


def rollout(examples: Sequence[Example], group: Sequence[int], texts: Sequence[str]) -> Rollout:
    n = len(group)
    mask = torch.arange(4) < torch.tensor([min(4, max(1, len(t))) for t in texts])[:, None]
    return Rollout(
        examples=tuple(examples),
        inputs=(torch.zeros(1),) * len(examples),
        group_N=torch.tensor(group, dtype=torch.long),
        actions_NT=torch.arange(4).repeat(n, 1),
        mask_NT=mask,
        finished_N=torch.ones(n, dtype=torch.bool),
        settings=(Sampling(),),
        setting_N=torch.zeros(n, dtype=torch.long),
        logprobs_NT=torch.zeros(n, 4),
        full_logprobs_NT=torch.zeros(n, 4),
        texts=tuple(texts),
    )


EXAMPLES = (
    Example("e0", "one?", meta={"references": ["uno", "un"], "answer": "1", "level": 3}),
    Example("e1", "two?", meta={"references": "due", "answer": "2"}),
)
THREE = rollout(EXAMPLES, [1, 0, 1], ["x", "yy", "zzz"])


class Written:
    """Writes a function into a file, loads it, and calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, code: str, name: str = "score", **options: Any) -> Function:
        (self.folder / "mine.py").write_text(dedent(code))
        function = Function(Function.Config(path=self.folder / f"mine.py:{name}", **options))
        function.name = "function"
        function.setup(None)  # type: ignore[arg-type]
        return function


@pytest.fixture
def write(tmp_path: Path) -> Written:
    return Written(tmp_path)


def scored(function: Function, responses: Rollout = THREE) -> list[float]:
    score: Score = function.reward(rollout=responses)
    return score.value.tolist()


# -- what it is given -----------------------------------------------------------------------------------------


def test_only_what_it_asks_for(write):
    assert scored(write("def score(texts): return [len(t) for t in texts]")) == [1, 2, 3]
    assert scored(write("def score(*, meta): return [m.get('level', 0) for m in meta]")) == [0, 3, 0]
    code = """
        def score(prompts, references, examples, bonus=0.5):
            assert prompts == ["two?", "one?", "two?"]
            assert references == [["due"], ["uno", "un"], ["due"]]
            return [bonus + float(e.meta["answer"]) for e in examples]
    """
    assert scored(write(code)) == [2.5, 1.5, 2.5]
    assert scored(write(code, arguments={"bonus": 1})) == [3, 2, 3]
    code = "def score(**given): return [float(len(given))] * len(given['texts'])"
    assert scored(write(code)) == [5, 5, 5]
    assert scored(write(code, arguments={"more": [1, {"deep": None}]})) == [6, 6, 6]


def test_references(write):
    bare = rollout([Example("e9", "p", meta={"answer": 1})], [0], ["x"])
    asks = write("def score(references): return [len(r) for r in references]")
    assert scored(asks) == [1, 2, 1]
    with pytest.raises(
        ComponentError, match=r"asks for references, and example `e9` has none.*which holds: answer"
    ):
        scored(asks, bare)
    assert scored(write("def score(texts, references=()): return [len(r) for r in references]"), bare) == [0]
    empty = rollout([Example("e9", "p", meta={"references": []})], [0], ["x"])
    assert scored(asks, empty) == [0]
    kept = rollout([Example("e9", "p", meta={"references": [], "blind": "they are kept"})], [0], ["x"])
    with pytest.raises(ComponentError, match="asks for references, and example `e9` has none: they are kept"):
        scored(asks, kept)
    column = rollout([Example("e9", "p", meta={"references": ["a"], "blind": True})], [0], ["x"])
    assert scored(asks, column) == [1]


def test_data_cannot_be_changed_by_it(write):
    write("def score(meta):\n    meta[0]['answer'] = 'changed'\n    return [0.0] * len(meta)").reward(
        rollout=THREE
    )
    assert EXAMPLES[1].meta["answer"] == "2"


def test_partials_methods_and_objects(write):
    code = """
        from functools import partial

        def lengths(texts, factor):
            return [factor * len(t) for t in texts]

        score = partial(lengths, factor=2)

        class ModelOutputs:
            def __call__(self, texts):
                return [len(t) for t in texts]

            def method(self, texts):
                return [-len(t) for t in texts]

        scorer = ModelOutputs()
        method = scorer.method
        if True:
            conditional = lambda texts: [0 for t in texts]
    """
    assert scored(write(code)) == [2, 4, 6]
    assert scored(write(code, "scorer")) == [1, 2, 3]
    assert scored(write(code, "method")) == [-1, -2, -3]
    assert scored(write(code, "conditional")) == [0, 0, 0]
    with pytest.raises(ConfigError, match=r"mine\.py:ModelOutputs: is a class; name a function"):
        write(code, "ModelOutputs")


# -- as TRL calls it ------------------------------------------------------------------------------------------


def test_trl(write):
    code = """
        def score(prompts, completions, answer, **kwargs):
            assert kwargs["completion_ids"] == [[0], [0, 1], [0, 1, 2]], kwargs
            assert kwargs["level"] == [None, 3, None] and kwargs["references"] == ["due", ["uno", "un"], "due"]
            return [float(a) + len(c) for a, c in zip(answer, completions)]
    """
    assert scored(write(code, style="trl")) == [3, 3, 5]
    assert scored(write("def score(completions): return [len(c) for c in completions]", style="trl")) == [
        1,
        2,
        3,
    ]
    with pytest.raises(
        ComponentError, match=r"asks for `solution`, and the data has no such column \(columns: ref"
    ):
        scored(write("def score(completions, solution): return []", style="trl"))


def test_trl_chats(write):
    chats = [replace(e, prompt=[{"role": "user", "content": e.prompt}]) for e in EXAMPLES]
    code = """
        def score(prompts, completions):
            assert prompts[0][-1]["content"] == "two?"
            return [len(c[0]["content"]) if c[0]["role"] == "assistant" else -1 for c in completions]
    """
    assert scored(write(code, style="trl"), replace(THREE, examples=tuple(chats))) == [1, 2, 3]


def test_what_trl_has_and_we_have_not(write):
    code = "def score(prompts, completions, trainer_state, **kwargs): return [0.0] * len(prompts)"
    with pytest.raises(ValidationError, match="asks for `trainer_state`, which only TRL's trainer has"):
        write(code, style="trl")
    with pytest.raises(ValidationError, match="as TRL's rewards do\\? Say `style: trl`"):
        write("def score(prompts, completions, **kwargs): return []")


# -- what it returns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, True],
        (1, 2.5, 1),
        numpy.array([1, 2.5, 1]),
        numpy.array([1, 2.5, 1], dtype=numpy.float32),
        torch.tensor([1, 2.5, 1], requires_grad=True),
        [numpy.float32(1), torch.tensor(2.5), numpy.bool_(True)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers(value):
    assert numbers(value, 3) == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "returned 2 numbers for 3 responses"),
        ([1.0] * 4, "returned 4 numbers for 3 responses"),
        (numpy.zeros((3, 1)), r"returned an array of \(3, 1\) for 3 responses; expected \(3,\)"),
        (torch.zeros(3, 4), r"returned an array of \(3, 4\)"),
        (torch.tensor(1.0), r"returned an array of \(\) for 3"),
        (0.5, "returned a float, expected a list of 3 numbers"),
        (None, "returned nothing; is a `return` missing"),
        ({"a": 1}, "returned a dict"),
        ("abc", "returned a str"),
        ((x for x in [1, 2, 3]), "yields its values; it must return them as a list"),
        ([1.0, "0.5", 2.0], r"returned '0\.5' as number 2; expected a float"),
        ([1.0, [2.0], 3.0], r"returned \[2\.0\] as number 2"),
        ([1.0, 2j, 3.0], "as number 2; expected a float"),
        ([1.0, torch.zeros(2), 3.0], "as number 2"),
        (range(2), "returned 2 numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_numbers(value, message):
    with pytest.raises(ValueError, match=message):
        numbers(value, 3)


@given(st.lists(st.floats(allow_nan=False) | st.integers(-9, 9) | st.booleans() | st.none()))
def test_numbers_stay_what_they_are(values):
    expected = [None if value is None else float(value) for value in values]
    assert numbers(values, len(values)) == expected
    assert numbers(tuple(values), len(values)) == expected
    if None not in values:
        assert numbers(numpy.array(values, dtype=float), len(values)) == expected


def test_no_opinion(write):
    code = "def score(texts): return [None if t == 'yy' else 2.0 for t in texts]"
    with pytest.raises(
        ComponentError, match=r"gave None for 1 of 3 .*the first to example `e0` \(row 2\): 'yy'"
    ):
        scored(write(code))
    score = write(code, none=-1.0).reward(rollout=THREE)
    assert score.value.tolist() == [2, -1, 2]
    assert score.metrics["answered"].tolist() == [1, 0, 1]
    with pytest.raises(ComponentError, match="is a `return` missing"):
        scored(write("def score(texts): return [None for t in texts]"))


# -- asynchronous -----------------------------------------------------------------------------------------------

ASYNC = """
    import asyncio

    async def one(text):
        await asyncio.sleep(0.01)
        if text == "yy" and FAILS:
            raise TimeoutError("no answer")
        return float(len(text))

    async def score(texts):
        return await asyncio.gather(*(one(text) for text in texts))

    FAILS = False
"""


def test_asynchronous_functions(write):
    assert scored(write(ASYNC)) == [1, 2, 3]

    async def notebook() -> list[float]:
        return scored(write(ASYNC))

    assert asyncio.run(notebook()) == [1, 2, 3]
    with pytest.raises(
        ComponentError, match=r"TimeoutError: no answer at mine\.py:.*response to example `e0` \(row 2\)"
    ):
        scored(write(ASYNC.replace("FAILS = False", "FAILS = True")))
    with pytest.raises(ComponentError, match="yields its values"):
        scored(write("async def score(texts):\n    yield 1.0"))


# -- errors before anything runs ----------------------------------------------------------------------------------


def refused(path: Path | str, message: str, **options: Any) -> None:
    with pytest.raises(ValidationError, match=message):
        Function.Config(path=Path(path), **options)


def test_what_can_be_wrong_with_the_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os\ndef score(texts): return []\ndef scale(): ...\n_hidden = 1\n"
    )
    refused(tmp_path / "mine.py", r"say which function \(it has os, score, scale, _hidden\)")
    refused(
        tmp_path / "mine.py:scor",
        r"mine\.py has no function `scor`; did you mean `score`\? \(it has os, score, sc",
    )
    refused(tmp_path / "mind.py:score", r"mind\.py: there is no such file; did you mean `mine\.py`")
    refused(tmp_path / "no/mine.py:score", "there is no such file, nor its folder")
    refused(
        tmp_path / "mein:score",
        r"`mein` is no module that Python finds, nor in .*for a file write `mein\.py:score`",
    )
    refused(tmp_path / "torch.nothing.here:score", r"`torch\.nothing\.here` is no module that Python finds")
    refused(tmp_path / "mine.py:score", "w.txt: there is no such file", files=(tmp_path / "w.txt",))
    (tmp_path / "broken.py").write_text("x = 1\ndef score(texts:\n")
    refused(tmp_path / "broken.py:score", r"broken\.py:2: not valid Python")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (
            "def score(texts, answers): ...",
            {},
            "asks for `answers`; it may ask for prompts, texts, references, meta, ex",
        ),
        ("def score(texts, /): ...", {}, "takes `texts` by position only"),
        ("def score(): ...", {}, "takes no arguments; it may ask for"),
        (
            "def score(texts): ...",
            {"arguments": {"k": 1}},
            r"takes no `k`, which `arguments` holds \(it takes texts\)",
        ),
        ("def score(texts): ...", {"arguments": {"texts": 1}}, "is given `texts` anyway"),
        ("def score(texts, *, k): ...", {}, "asks for `k`"),
        ("async def score(text): ...", {}, "asks for `text`"),
    ],
)
def test_what_can_be_wrong_with_its_parameters(tmp_path, code, options, message):
    """Found in the file as it is written: nothing of it runs."""
    (tmp_path / "mine.py").write_text(f"{code}\nraise SystemExit('must not run')\n")
    refused(tmp_path / "mine.py:score", message, **options)


def test_what_only_running_it_tells(write, tmp_path):
    hidden = "import functools\n@functools.cache\ndef score(answers): ..."
    with pytest.raises(ConfigError, match="asks for `answers`"):
        write(hidden)
    with pytest.raises(
        ConfigError, match=r"mine\.py:score: importing it raised ZeroDivisionError: .* at mine\.py:2"
    ):
        write("def score(texts): ...\n1 / 0")
    with pytest.raises(
        ConfigError, match="importing it raised ModuleNotFoundError: No module named 'no_such'"
    ):
        write("import no_such\ndef score(texts): ...")
    with pytest.raises(ConfigError, match="is a int; name a function"):
        write("score = 3")
    with pytest.raises(ConfigError, match="has no function `score`"):
        write("from os.path import *")


# -- errors while it runs -------------------------------------------------------------------------------------------


def test_the_line_and_the_response_are_named(write):
    code = """
        import json

        def score(texts):
            return [check(text) for text in texts]

        def check(text):
            return float(json.loads("1" if text != "zzz" else text))
    """
    with pytest.raises(ComponentError) as caught:
        scored(write(code))
    said = str(caught.value)
    assert "mine.py:score raised JSONDecodeError: Expecting value" in said
    assert 'at mine.py:8, in check: `return float(json.loads("1" if text != "zzz" else text))`' in said
    assert "as it does for the response to example `e1` (row 3): 'zzz' alone" in said
    with pytest.raises(ComponentError, match=r"KeyError: 'x' at mine\.py:2.*though for no response alone"):
        scored(write("def score(texts):\n    if len(texts) > 1: raise KeyError('x')\n    return [1.0]"))
    with pytest.raises(ComponentError, match="returned 1 numbers for 3 responses"):
        scored(write("def score(texts): return [1.0]"))


def test_the_search_for_the_response_ends(write, monkeypatch):
    monkeypatch.setattr("rlalign_plugin_function_reward.SEARCH_SECONDS", 0.0)
    with pytest.raises(ComponentError, match=r"raised ValueError: x at mine\.py:1, in score: `def score.*`$"):
        scored(write("def score(texts): raise ValueError('x')"))


# -- files and modules ----------------------------------------------------------------------------------------------


def test_a_module(tmp_path, monkeypatch):
    package = tmp_path / "some_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('looking must not import')")
    (package / "inner.py").write_text("def score(texts): return [7.0 for _ in texts]")
    config = Function.Config(path=tmp_path / "some_rewards.inner:score")
    assert "some_rewards" not in sys.modules and config.source.file == package / "inner.py"
    (package / "__init__.py").write_text("")
    function = Function(config)
    function.setup(None)  # type: ignore[arg-type]
    assert scored(function) == [7, 7, 7]
    assert str(tmp_path) not in sys.path
    sys.modules.pop("some_rewards.inner")
    sys.modules.pop("some_rewards")
    other = tmp_path / "other"
    other.mkdir()
    (other / "json.py").write_text("def loads(texts): ...")
    clash = Function(Function.Config(path=other / "json:loads"))
    with pytest.raises(ConfigError, match=r"Python has `json` from .* already; rename"):
        clash.setup(None)  # type: ignore[arg-type]


def test_a_module_without_source():
    function = Function(Function.Config(path=Path("math:fsum"), arguments={}))
    with pytest.raises(ConfigError, match="math:fsum"):
        function.setup(None)  # type: ignore[arg-type]


def test_it_may_import_what_lies_beside_it(write, tmp_path):
    (tmp_path / "word_list_for_tests.py").write_text("GOOD = {'x'}")
    code = "from word_list_for_tests import GOOD\ndef score(texts): return [t in GOOD for t in texts]"
    assert scored(write(code)) == [1, 0, 0]
    sys.modules.pop("word_list_for_tests")


def test_the_code_is_part_of_the_options(tmp_path):
    file, words = tmp_path / "mine.py", tmp_path / "words.txt"
    file.write_text("def score(texts): return [1.0 for _ in texts]")
    words.write_text("a")

    def key() -> str:
        return Function.Config(path=file.with_name("mine.py:score"), files=(words,)).model_dump_json()

    first = key()
    assert first == key()
    words.write_text("b")
    second = key()
    file.write_text("def score(texts): return [2.0 for _ in texts]")
    assert len({first, second, key()}) == 3
    config = Function.Config(path=file.with_name("mine.py:score"))
    assert config.digest  # taken when the pipeline is read
    file.write_text("def score(texts): return [3.0 for _ in texts]")
    with pytest.raises(ConfigError, match="the file has changed since the run was prepared"):
        Function(config).setup(None)  # type: ignore[arg-type]


def pipeline(**function: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": {"logits": {"hidden": 3}},
        "rewards": [{"function": {"path": "mine.py:score", **function}}],
        "algorithm": "rloo",
        "generation": {"samples": 4, "max_new_tokens": 6},
        "train": {"iterations": 4, "prompts": 6, "lr": 0.05},
        "evaluate": {"examples": 3, "use": ["function"]},
    }


def test_a_run(tmp_path):
    (tmp_path / "mine.py").write_text("def score(texts): return [len(t.split()) for t in texts]")
    finished, _ = run(tmp_path, pipeline())
    ended = finished.metrics["eval/finished"]  # `length` counts the token that ends a response
    assert finished.metrics["eval/function"] == pytest.approx(finished.metrics["eval/length"] - ended)
    lock = json.loads((finished.path / "lock.json").read_text())
    assert len(lock["data"]["function.digest"]) == 64


@pytest.mark.parametrize("path", ["mine.py:score", "mine:score"])
def test_a_function_of_somebody_else_is_not_run(tmp_path, monkeypatch, path):
    """Neither a run nor a request that names one runs it, unless whoever wrote it is trusted."""
    mark = tmp_path / "MARK"
    mine = tmp_path / "mine.py"
    mine.write_text(f"open({str(mark)!r}, 'w')\ndef score(texts): return [len(t) for t in texts]")
    described = pipeline()
    described["rewards"][0]["function"] = {"path": path}
    run(tmp_path, described, COMPONENTS, name="theirs")
    mark.unlink()
    for name in [name for name in sys.modules if name == "mine" or name.startswith("rlalign_file_mine")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    place = r"rewards\[0\]\.function\.path: .*mine.*:score would run code that no installed package offers; add --trust"
    with pytest.raises(ConfigError, match=place):
        rlalign.open("runs/theirs", components=COMPONENTS)
    assert not mark.exists()
    assert rlalign.open("runs/theirs", components=COMPONENTS, trust=True).evaluate() and mark.exists()


def test_a_changed_function_is_not_resumed(tmp_path):
    (tmp_path / "mine.py").write_text("def score(texts): return [len(t) for t in texts]")
    stop_early(session(tmp_path, pipeline(), {}, name="broken"))
    (tmp_path / "mine.py").write_text("def score(texts): return [-len(t) for t in texts]")
    with pytest.raises(ConfigError, match=r"data\.function\.digest: .* then, .* now"):
        loop.resume(tmp_path / "runs/broken", registry(), display=Silence())
    loop.resume(tmp_path / "runs/broken", registry(), display=Silence(), inexact=True).run()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return [float('nan')] * len(texts)", "the reward `function` is not finite for 24 of 24 responses"),
        ("return [1.0]", r"`reward` of `function` \(.*\): mine.py:score returned 1 numbers for 24 responses"),
        ("return texts[0].bad", r"mine.py:score raised AttributeError: .*at mine.py:1, in score"),
    ],
)
def test_errors_name_the_item(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(f"def score(texts): {code}")
    with pytest.raises(ComponentError, match=message):
        run(tmp_path, {**pipeline(), "evaluate": None})


STOPS = {
    "too few": "return [1.0]",
    "too many": "return [1.0] * 999",
    "none at all": "return []",
    "no return": "pass",
    "a number": "return 1.0",
    "a text": "return 'x'",
    "bytes": "return b'x' * len(texts)",
    "texts": "return texts",
    "a set": "return {1.0}",
    "a dict": "return dict.fromkeys(texts, 1.0)",
    "None among them": "return [None] * len(texts)",
    "nested lists": "return [[1.0]] * len(texts)",
    "lists of nothing": "return [[]] * len(texts)",
    "complex": "return [1j] * len(texts)",
    "objects": "return [object()] * len(texts)",
    "huge texts": "return ['x' * 10**7] * len(texts)",
    "huge integers": "return [10 ** 400] * len(texts)",
    "an array of another shape": "import numpy; return numpy.zeros((len(texts), 1))",
    "an array without a shape": "import numpy; return numpy.float64(1)",
    "an array of texts": "import numpy; return numpy.array(texts)",
    "an array of objects": "import numpy; return numpy.array([None] * len(texts), dtype=object)",
    "a tensor of another shape": "import torch; return torch.zeros(len(texts), 2)",
    "a complex tensor": "import torch; return torch.zeros(len(texts), dtype=torch.complex64)",
    "a meta tensor": "import torch; return torch.zeros(len(texts), device='meta')",
    "a generator": "yield from [1.0] * len(texts)",
    "a generator expression": "return (1.0 for _ in texts)",
    "a function": "return score",
    "a class": "return int",
    "a shape that is none": "return type('Odd', (), {'shape': 3})()",
    "a list that cannot be read": "return type('Odd', (list,), {'__len__': lambda self: 1 / 0})()",
    "a list that exits": "return type('Odd', (list,), {'__iter__': lambda self: exit(0)})([1.0] * len(texts))",
    "numbers that exit": "return [type('Odd', (), {'__float__': lambda self: exit(0)})()] * len(texts)",
    "numbers that cannot be shown": "return [type('Odd', (), {'__repr__': lambda self: 1 / 0})()] * len(texts)",
    "an error": "raise ValueError('x')",
    "an error without words": "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "an error with many words": "raise ValueError('x' * 10**7)",
    "an error of many lines": "raise ValueError('x\\n' * 10**4)",
    "SystemExit": "raise SystemExit(0)",
    "exit": "exit()",
    "os._exit": "import os; os._exit(0)",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "raise BaseException('x')",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "a BaseException of its own": "raise type('Mine', (BaseException,), {})('x')",
    "BaseExceptionGroup": "raise BaseExceptionGroup('x', [SystemExit(0)])",
    "StopIteration": "next(iter(()))",
    "recursion": "return score(texts)",
    "MemoryError": "raise MemoryError",
    "assert": "assert not texts",
    "an error of ours": "import rlalign; raise rlalign.ConfigError('x')",
    "division": "return [1 / 0 for _ in texts]",
    "a key": "return {}[texts[0]]",
    "unicode": "return [float(t.encode('ascii') + b'\\xff') for t in texts]",
    "an import": "import no_such_module",
    "importing SystemExit": "return [1.0] * len(texts)\n\nraise SystemExit(0)",
    "importing os._exit": "return [1.0] * len(texts)\n\nimport os; os._exit(0)",
}


@pytest.mark.parametrize("name", STOPS)
def test_every_stop_names_the_reward_and_the_function(tmp_path, name):
    (tmp_path / "mine.py").write_text(f"def score(texts):\n    {STOPS[name]}\n")
    said = {"rewards": [{"function": {"path": str(tmp_path / "mine.py:score")}, "as": "taste"}]}
    with pytest.raises((ComponentError, ConfigError)) as caught:
        run(tmp_path, {**pipeline(), **said, "evaluate": None})
    message = str(caught.value)
    assert "`taste`" in message and "mine.py:score" in message
    assert len(message) < 6000


def test_errors_of_the_pipeline_have_a_place(tmp_path):
    (tmp_path / "mine.py").write_text("def scores(texts): ...")
    with pytest.raises(
        ConfigError, match=r"rewards\[0\]\.function\.path: mine\.py has no function `score`; did you"
    ):
        session(tmp_path, pipeline(), {})
    (tmp_path / "mine.py").write_text("def score(answer): ...")
    with pytest.raises(ConfigError, match=r"rewards\[0\]\.function: mine\.py:score asks for `answer`"):
        session(tmp_path, pipeline(), {})


def test_two_functions_of_one_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def a(texts): return [1.0] * len(texts)\ndef b(texts): return [2.0] * len(texts)"
    )
    items = [{"function": {"path": f"mine.py:{n}"}, "as": n} for n in "ab"]
    finished, _ = run(tmp_path, {**pipeline(), "rewards": items, "evaluate": {"use": ["a", "b"]}})
    assert (finished.metrics["eval/a"], finished.metrics["eval/b"]) == (1, 2)


class TestFunction(ComponentTests):
    component = "function"
    options = {"path": str(TESTS / "rewards_for_tests.py:words")}


class TestEverything(ComponentTests):
    component = "function"
    options = {"path": str(TESTS / "rewards_for_tests.py:everything"), "arguments": {"scale": 0.5}}


class TestPatient(ComponentTests):
    component = "function"
    options = {"path": str(TESTS / "rewards_for_tests.py:patient")}


class TestGroups(ComponentTests):
    component = "function"
    options = {"path": str(TESTS / "rewards_for_tests.py:best_of_its_group")}
    pipeline = {"task": {"numbers": {"size": 6}}}
