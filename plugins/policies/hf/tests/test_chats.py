"""What somebody asks of a chat model is put to it as the task puts its own prompts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rlalign
from rlalign import ConfigError, Example, Options, Task
from rlalign.cli import inspection
from rlalign.cli.commands import program
from rlalign_plugin_hf.options import ModelOptions
from rlalign_plugin_hf.prompts import PromptReader

PLAIN = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}w0"
OWN = (
    "{% if messages[0]['role'] != 'system' %}{{ 'system w7 w8 end ' }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' end ' }}{% endfor %}w0"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
SHORT = {"evaluate.generation.max_new_tokens": 6}
BRIEF = {"role": "system", "content": "w9 w9"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


class Chats(Task):
    """Chats behind a system message."""

    class Config(Options):
        """No options."""

    def examples(self, split: str) -> Sequence[Example]:
        if split != "train":
            raise ConfigError(f"has no split `{split}`")
        turns = [user("w3"), {"role": "assistant", "content": "w4"}, user("w5")]
        return [Example(str(i), [BRIEF, *turns]) for i in range(4)]


class Bare(Chats):
    """Chats without a system message."""

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("0", [user("w3")])]


class Option(Chats):
    """Whose system message is an option."""

    class Config(Options):
        """Options of `Option`."""

        brief: str = "w9 w9"


class Gone(Task):
    """Whose data is not there."""

    class Config(Options):
        """No options."""

    def examples(self, split: str) -> Sequence[Example]:
        raise ConfigError("data.jsonl: no such file")


@pytest.fixture
def chat(folders: Mapping[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A model folder whose tokenizer has this chat template."""

    def make(template: str) -> Path:
        folder = tmp_path / "chat"
        shutil.copytree(folders["llama"], folder)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def prompts(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [row["prompt"] for row in rows]


def test_a_chat_model_gets_a_text_as_a_user_s_message(chat: Callable[[str], Path]) -> None:
    opened = rlalign.open(chat(PLAIN), SHORT)
    rows = opened.sample(["w1 w2"])
    assert prompts(rows) == [[user("w1 w2")]]
    assert rows == opened.sample([[user("w1 w2")]])
    assert (
        rows != opened.sample([Example("raw", "w1 w2")])
        and opened.sample([Example("raw", "w1 w2")])[0]["prompt"] == "w1 w2"
    )
    assert prompts(opened.sample(["w1"], system="w6")) == [[{"role": "system", "content": "w6"}, user("w1")]]
    scored = opened.score(["w1 w2"], [rows[0]["response"]], rewards=False)
    assert prompts(scored) == [[user("w1 w2")]]
    with pytest.raises(ConfigError, match="goes with prompts of plain text"):
        opened.sample([[user("w1")]], system="w6")
    with pytest.raises(ConfigError, match="a system message goes with prompts"):
        opened.sample(system="w6")


def test_a_model_without_a_template_gets_it_as_it_is(folders: Mapping[str, Path]) -> None:
    opened = rlalign.open(folders["llama"], SHORT)
    assert prompts(opened.sample(["w1 w2"])) == ["w1 w2"]
    with pytest.raises(
        ConfigError, match="the model has no chat template, so that there is no system message"
    ):
        opened.sample(["w1"], system="w6")


def test_the_task_says_how_a_run_is_asked(
    chat: Callable[[str], Path],
    pipeline_of: Callable[..., Any],
    components: dict[str, type[Any]],
    tmp_path: Path,
) -> None:
    folder, known = chat(PLAIN), {**components, "chats": Chats, "gone": Gone}

    def opened(task: str) -> Any:
        return rlalign.open(folder, SHORT, task=task, split="train", components=known)

    assert prompts(opened("chats").sample(["w1"])) == [[BRIEF, user("w1")]]
    other = {"role": "system", "content": "w6"}
    assert prompts(opened("chats").sample(["w1"], system="w6")) == [[other, user("w1")]]
    assert prompts(opened("sentences").sample(["w1"])) == ["w1"]
    with pytest.raises(ConfigError, match="the task `sentences` asks in plain text"):
        opened("sentences").sample(["w1"], system="w6")
    with pytest.raises(
        ConfigError, match=r"task `gone`, which tells by its data how it asks: data.jsonl: no such"
    ):
        opened("gone").sample(["w1"])

    said = pipeline_of("llama", task="chats", policy={"path": str(folder)})
    said["train"]["iterations"] = 1
    run = rlalign.run(rlalign.load(said, components=known), root=tmp_path, name="run", display=False)
    again = rlalign.open(run, SHORT, examples=2, components=known)
    assert prompts(again.sample(["w1"])) == [[BRIEF, user("w1")]]
    assert prompts(rlalign.open(run.model, SHORT).sample(["w1"])) == [[user("w1")]]


@pytest.mark.parametrize(
    "task, template, said",
    [
        ("chats", OWN, "chats; the system message is of the task `chats`: 'w9 w9'"),
        ("bare", OWN, "chats; the system message is of the tokenizer's chat template: 'w7 w8'"),
        ("bare", PLAIN, "chats without a system message"),
        ("option", PLAIN, "chats; the system message is of the pipeline (pipeline: option.brief): 'w9 w9'"),
        ("sentences", PLAIN, "plain text, though the model has a chat template: no role, no system message"),
    ],
)
def test_check_says_whose_the_system_message_is(
    task: str,
    template: str,
    said: str,
    chat: Callable[[str], Path],
    pipeline_of: Callable[..., Any],
    components: dict[str, type[Any]],
) -> None:
    known = {**components, "chats": Chats, "bare": Bare, "option": Option}
    pipeline = pipeline_of("llama", task=task, policy={"path": str(chat(template))})
    text = rlalign.load(pipeline, components=known).check()
    assert text.endswith(f"\n\nprompts:\n  rloo  {said}\n")


@pytest.mark.parametrize("template, own", [(PLAIN, None), (OWN, "w7 w8"), (STRICT, None)])
def test_the_system_message_of_a_template(
    template: str, own: str | None, policy_of: Callable[..., Any], folders: Mapping[str, Path]
) -> None:
    policy = policy_of("llama")
    policy.tokenizer.chat_template = template
    reader = PromptReader(policy.tokenizer, ModelOptions(path=str(folders["llama"])))
    assert reader.own_system() == own


def test_sample_from_a_model_on_the_command_line(chat: Callable[[str], Path]) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(program, ["sample", str(folder), *arguments])

    folder = chat(PLAIN)
    shown = call("--prompt", "w1", "--prompt", "w2", "--system", "w6", "evaluate.generation.max_new_tokens=3")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(f"{folder}\n\nprompt    system: w6\n          user: w1\nresponse  ")
    assert "user: w2" in shown.stdout
    refused = call()
    assert refused.exit_code == 2 and "has logged nothing: give it a --prompt, or a --task" in refused.stderr
    refused = call("--system", "w6")
    assert refused.exit_code == 2 and "--system goes with --prompt" in refused.stderr


def test_an_empty_response_is_said_to_be_empty() -> None:
    shown = inspection.listed([{"model": "m", "prompt": "w1", "response": ""}])
    assert shown == "m\n\nprompt    w1\nresponse  (empty)"
