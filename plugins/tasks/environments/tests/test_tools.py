"""Tools: what the policy is told, what it may call, what goes wrong and is told, and what its answer is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from rlalign import ComponentError, ConfigError, Example, Rollout, Sampling, Turn
from rlalign.decoding.play import started
from rlalign.randomness import Seeds
from rlalign.records.result import Result
from rlalign.running.playing import Playing
from rlalign.testing import EnvironmentTests, run
from rlalign_plugin_environments.tools import Tools
from rlalign_plugin_hf import CausalLM

FUNCTIONS = Path(__file__).parent / "functions.py"


def offered(*names: str) -> tuple[Path, ...]:
    return tuple(Path(f"{FUNCTIONS}:{name}") for name in names)


def tools(path: Path, **options: Any) -> Tools:
    return Tools(Tools.Config(**{"path": path, "use": offered("multiply", "broken"), **options}))


def said(environment: Tools, *texts: str, example: int = 0) -> list[Turn]:
    """What comes back in an episode."""
    examples = [environment.examples("train")[example]]
    game = Playing(environment, examples, 1, Seeds(0).rng)
    with started(game, slice(0, 1)) as (_, firsts):
        return [*firsts, *(game.step([0], [text])[0] for text in texts)]


def call(name: str, **arguments: Any) -> str:
    return f"Let me see. <tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class TestTools(EnvironmentTests):
    component = "tools"
    sayings = (call("multiply", a=3, b=4), "#### 12", call("broken", text="y"), "", '{"name": "multiply')
    options = {
        "path": str(Path(__file__).parent / "sums.jsonl"),
        "use": [str(path) for path in offered("multiply", "broken")],
        "splits": {"train": 0.6, "val": 0.4},
    }
    other_options = {"splits": {"train": 0.5, "val": 0.5}}


@pytest.mark.parametrize("option", ["use", "parse", "judge"])
def test_other_code_is_another_environment(tmp_path: Path, option: str) -> None:
    mine = tmp_path / "mine.py"

    def digest() -> str:
        path = Path(f"{mine}:double")
        return tools(FUNCTIONS, **{option: (path,) if option == "use" else path}).config.digest

    mine.write_text("def double(x: int) -> int:\n    return 2 * x\n")
    before = digest()
    assert digest() == before
    mine.write_text("def double(x: int) -> int:\n    return 3 * x\n")
    assert digest() != before


# -- what is said ---------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_an_answer_is_judged(sums: Path) -> None:
    first, told, last = said(tools(sums), call("multiply", a=11, b=18), "It is #### 198")
    assert [m["role"] for m in first.say] == ["user"] and not first.over
    assert told.say == ({"role": "tool", "name": "multiply", "content": "198.0"},) or told.say == [
        {"role": "tool", "name": "multiply", "content": "198.0"}
    ]
    assert told.metrics == {"calls": 1.0} and told.reward == 0
    assert last.done and last.reward == 1 and last.metrics == {"answered": 1.0}
    assert said(tools(sums), "197")[-1].reward == 0
    assert said(tools(sums), "198 apples")[-1].reward == 1


@pytest.mark.parametrize(
    ("text", "told", "fault"),
    (
        ('<tool_call>{"name": "multiply", "arguments": {"a": 2}}</tool_call>', "4.0", None),
        ('{"name": "multiply", "parameters": {"a": "2.5", "b": 2}}', "5.0", None),
        ('[{"name": "multiply", "arguments": "{\\"a\\": 3}"}]', "6.0", None),
        ('<tool_call>{"name": "divide", "arguments": {}}</tool_call>', "Error: there is no tool `divide`", "unknown"),
        ('<tool_call>{"name": "multiply", "arguments": {"a": 2', "Error: this is no JSON", "unreadable"),
        ('{"name": "multiply", "arguments": ', "Error: this is no JSON", "unreadable"),
        ("<tool_call>multiply(2)</tool_call>", "Error: this is no JSON", "unreadable"),
        ("<tool_call>[1]</tool_call>", "Error: a call is {", "unreadable"),
        ('<tool_call>{"name": "multiply", "arguments": [2]}</tool_call>', 'Error: the "arguments" of', "unreadable"),
        (call("multiply", a="two"), "Error: a: Input should be a valid number", "failed"),
        (call("multiply", b=2), "Error: a: Missing required argument", "failed"),
        (call("broken", text="y"), "Error: LookupError: nothing for y", "failed"),
        (call("leaves"), "Error: SystemExit: 3", "failed"),
    ),
)  # fmt: skip
def test_whatever_goes_wrong_is_told(sums: Path, text: str, told: str, fault: str | None) -> None:
    environment = tools(sums, use=offered("multiply", "broken", "leaves"))
    turn = said(environment, text)[-1]
    assert not turn.over and turn.say[0]["content"].startswith(told)
    assert turn.metrics == {"calls": 1.0} | ({fault: 1.0} if fault else {})


@pytest.mark.parametrize("text", ("no idea", "", '{"answer": 3}', "{", "[1, 2]"))
def test_what_is_no_call_is_the_answer(sums: Path, text: str) -> None:
    assert said(tools(sums), text)[-1].done


def test_several_calls_at_once_and_long_results(sums: Path) -> None:
    environment = tools(sums, use=offered("multiply", "long"), told=10)
    turn = said(environment, call("multiply", a=1) + call("long", size=50) + call("none"))[-1]
    assert [m["content"] for m in turn.say] == [
        "2.0",
        f"{'x' * 10}… (the first 10 of 50 characters)",
        "Error: there is no tool `none`; there are multiply, long",
    ]
    assert turn.metrics == {"calls": 3.0, "unknown": 1.0}


@pytest.mark.parametrize(
    "text",
    (
        r'{"name": "\ud800", "arguments": {}}',
        r'{"name": "multiply", "arguments": {"\ud800": 1}}',
        r'{"name": "broken", "arguments": {"text": "\ud83d"}}',
        '{"name": "half", "arguments": {}}',
    ),
)
def test_half_of_a_surrogate_pair_is_told_as_a_tokenizer_can_read_it(sums: Path, text: str) -> None:
    (message,) = said(tools(sums, use=offered("multiply", "broken", "half")), text)[-1].say
    assert f"{message['name']}{message['content']}".encode()


def test_own_parser_and_judge(sums: Path) -> None:
    environment = tools(sums, parse=offered("every_text")[0], judge=offered("by_length")[0])
    _, told, asked, last = said(environment, "four", "what?", "x")
    assert told.say[0]["content"] == "12.0"
    assert asked.say[0]["content"] == "Error: no question marks, please" and asked.metrics["unreadable"] == 1
    assert last.done and last.reward == pytest.approx(1 / len("11 times 18?"))


def test_references_that_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text('{"prompt": "A colour?", "references": ["Red", "blue"]}\n')
    assert said(tools(path), " red\n")[-1].reward == 1
    assert said(tools(path), "It is red")[-1].reward == 0


def test_schemas_come_from_signatures(sums: Path) -> None:
    environment = tools(sums, use=offered("multiply", "pick"))
    multiply, pick = (schema["function"] for schema in said(environment)[0].say[0]["tools"])
    assert (multiply["name"], multiply["description"]) == ("multiply", "Multiply two numbers.")
    assert multiply["parameters"]["properties"] == {
        "a": {"type": "number"},
        "b": {"type": "number", "default": 2, "description": "the second factor"},
    }
    assert multiply["parameters"]["required"] == ["a"]
    assert pick["parameters"]["properties"]["colour"] == {"type": "string", "enum": ["red", "green"]}
    assert pick["parameters"]["properties"]["many"] == {"type": "array", "items": {"type": "integer"}}


def test_what_is_wrong_with_tools_is_said_at_once(sums: Path) -> None:
    with pytest.raises(ConfigError, match="does not say of which type `a` is"):
        said(tools(sums, use=offered("untyped")))
    with pytest.raises(ConfigError, match="two tools are called `multiply`"):
        said(tools(sums, use=offered("multiply", "multiply")))
    with pytest.raises(ValidationError, match=r"has no function `multipl`; did you mean `multiply`"):
        tools(sums, use=offered("multipl"))
    with pytest.raises(ValidationError, match="there is nothing to call"):
        tools(sums, use=())


# -- Python ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    (
        ("print(11 * 18)", "198"),
        ("x = 3", ""),
        ("print('before')\n1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("while True: pass", "stopped after 1 seconds"),
        ("import time; time.sleep(60)", "stopped after 1 seconds"),
        ("x = bytearray(10**9)", "MemoryError"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; print(os.environ.get('SECRET'))", "None"),
        ("open('large', 'w').write('x' * 10**6)", "File too large"),
        ("import os\nif os.fork() == 0:\n while True: pass", ""),
    ),
)
def test_python_is_run_with_limits(sums: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    monkeypatch.setenv("SECRET", "of the run")
    environment = tools(sums, use=(), python={"seconds": 1.0, "output": 1000})
    (message,) = said(environment, call("python", code=code))[-1].say
    assert told in message["content"] and "of the run" not in message["content"]
    if told in ("198", "", "None"):
        assert message["content"] == told


def test_what_python_prints_is_limited(sums: Path) -> None:
    environment = tools(sums, use=(), python={"output": 1000}, told=10**6)
    (message,) = said(environment, call("python", code="print('y' * 10**8)"))[-1].say
    assert 900 < message["content"].count("y") <= 1000


# -- a chat model ---------------------------------------------------------------------------------------------


def policy_at(path: Path) -> CausalLM:
    policy = CausalLM(CausalLM.Config(path=str(path)))
    policy.setup()
    return policy.eval()


def played(policy: CausalLM, environment: Tools, samples: int = 6, most: int = 8) -> Rollout:
    examples, seeds = [environment.examples("train")[i] for i in range(2)], Seeds(0)
    uniforms = seeds.uniforms("u", positions=range(2), samples=samples, steps=environment.tokens)
    how = Sampling(samples=samples, max_new_tokens=most)
    with torch.no_grad():
        return policy.play(examples, how, uniforms, Playing(environment, examples, samples, seeds.rng))


@pytest.mark.parametrize("schemas", ("template", "message"))
def test_a_row_is_what_the_template_makes_of_the_conversation(
    chat_models: Mapping[str, Path], sums: Path, schemas: str
) -> None:
    """Token for token: schemas, calls, and what tools answered in the role `tool`."""
    where = chat_models["tools" if schemas == "template" else "none"]
    environment = tools(sums, parse=offered("every_text")[0], schemas=schemas, turns=3, tokens=400)
    policy, tokenizer = policy_at(where), AutoTokenizer.from_pretrained(where)
    rollout = played(policy, environment)
    turns = 0
    for i, row in enumerate(rollout.columns["transcript"]):
        (*chat,) = ({k: v for k, v in m.items() if k != "tools"} for m in rollout.answered[i].prompt)
        for text, turn in row[:-1]:
            chat += [{"role": "assistant", "content": text}, *turn.say]
            turns += 1
        length = int(rollout.length_N[i])
        last_T = (rollout.columns["turn"][i, :length] == len(row) - 1) & rollout.mask_NT[i, :length]
        given = rollout.inputs[int(rollout.group_N[i])].tolist()
        ours = [*given, *rollout.actions_NT[i, :length][~last_T].tolist()]
        schema = [tool.schema for tool in environment.tools.values()] if schemas == "template" else None
        whole = tokenizer.apply_chat_template(
            chat, tools=schema, add_generation_prompt=True, return_dict=False
        )
        if any("\ufffd" in text for text, _ in row[:-1]):
            continue  # bytes that are no text are not what a text of them is
        assert ours == whole
        assert "multiply" in tokenizer.decode(given)
    assert turns > 6


def test_a_template_that_leaves_tools_out_is_refused(chat_models: Mapping[str, Path], sums: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not write what may be called.*schemas: message"):
        played(policy_at(chat_models["none"]), tools(sums))


def test_a_chat_model_learns_with_tools(chat_models: Mapping[str, Path], sums: Path, tmp_path: Path) -> None:
    """A whole run: samples show calls and what came back, metrics count them."""
    options = {"path": str(sums), "use": [str(p) for p in offered("multiply")], "turns": 3, "tokens": 300}
    options |= {"parse": str(offered("every_text")[0]), "splits": {"train": 0.6, "val": 0.4}}
    _, ended = run(
        tmp_path,
        {
            "task": {"tools": {**options, "judge": str(offered("by_length")[0])}},
            "policy": {"causal-lm": {"path": str(chat_models["tools"])}},
            "algorithm": "rloo",
            "generation": {"samples": 4, "max_new_tokens": 6},
            "train": {"iterations": 2, "prompts": 2, "lr": 0.001},
            "evaluate": {"examples": 4, "generation": {"temperature": 1.0}},
        },
        {},
    )
    result = Result(ended.dir.path)
    assert any(m["role"] == "tool" for sample in result.samples for m in sample["transcript"])
    assert result.metrics[-1]["played/calls"] > 0.5


def test_a_question_of_a_chat_keeps_its_system_message(sums: Path) -> None:
    chat = Example("q", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 × 3?"}])
    (system, user) = tools(sums, schemas="message").told(chat)
    assert system["content"].startswith("Be brief.\n\nYou may call") and '"multiply"' in system["content"]
    assert user == {"role": "user", "content": "2 × 3?"}
    (system, user) = tools(sums).told(chat)
    assert [tool["function"]["name"] for tool in system["tools"]] == ["multiply", "broken"]


def test_the_example_with_a_calculator_runs(chat_models: Mapping[str, Path], tmp_path: Path) -> None:
    """One iteration, with another model and three questions as GSM8K writes them."""
    from rlalign import load
    from rlalign import run as run_pipeline

    row = {"question": "Ann has 3 pens and buys 4.\nHow many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        rows = (json.dumps({**row, "question": f"{name} {i}: {row['question']}"}) + "\n" for i in range(3))
        (tmp_path / f"gsm8k/{name}.jsonl").write_text("".join(rows))
    changes = {
        "task.tools.path": str(tmp_path / "gsm8k"),
        "task.tools.tokens": 60,
        "policy": {"causal-lm": {"path": str(chat_models["none"])}},
        "generation": {"samples": 2, "max_new_tokens": 4},
        "train": {"iterations": 1, "prompts": 2, "lr": 0.001},
        "evaluate": {"examples": 2},
    }
    example = Path(__file__).parents[4] / "examples/tools/gsm8k.yaml"
    result = run_pipeline(load(example, changes), root=tmp_path / "runs")
    system, user = result.samples[-2]["prompt"]
    assert system["content"].startswith("Solve the problem") and '"calculate"' in system["content"]
    assert user["content"] == "test 0: Ann has 3 pens and buys 4.\nHow many?"
    assert result.evaluations[-1]["eval/played"] == 0


@pytest.mark.parametrize(
    ("text", "told"),
    (
        ("(3 + 4) * 2", "14.0"),
        ("-0.1 + 0.3", "0.2"),
        ("1 / 0", "Error: ZeroDivisionError"),
        ("__import__('os')", "Error: ValueError: only numbers"),
        ("9 ** 9 ** 9", "Error: ValueError: only numbers"),
    ),
)
def test_the_calculator(sums: Path, text: str, told: str) -> None:
    calculator = Path(__file__).parents[4] / "examples/tools/calculator.py"
    environment = tools(sums, use=(Path(f"{calculator}:calculate"),))
    (message,) = said(environment, call("calculate", expression=text))[-1].say
    assert message["content"].startswith(told)


@pytest.mark.slow
def test_a_tool_that_hangs_ends_an_isolated_run(
    chat_models: Mapping[str, Path], sums: Path, tmp_path: Path
) -> None:
    use, parse = (str(path) for path in offered("hangs", "calls_hangs"))
    options = {"path": str(sums), "use": [use], "parse": parse, "python": {"memory": "64 MiB"}, "tokens": 100}
    whole = {
        "task": {"tools": options, "isolate": {"seconds": 3}},
        "policy": {"causal-lm": {"path": str(chat_models["tools"])}},
        "algorithm": "rloo",
        "generation": {"samples": 2, "max_new_tokens": 3},
        "train": {"iterations": 1, "prompts": 1, "lr": 0.001},
    }
    with pytest.raises(
        ComponentError, match=r"`tools` \(isolated\).* did not answer within 3 seconds \(as it did"
    ):
        run(tmp_path, whole, {})
    assert (tmp_path / "runs").exists()
