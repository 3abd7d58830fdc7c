"""Models and chat templates that would hang a run or fill the memory; ordinary ones read as transformers reads them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from rlalign import ConfigError, Example, RLAlignError
from rlalign_plugin_hf import CausalLM, Seq2SeqLM
from rlalign_plugin_hf.prompts import PromptReader
from rlalign_plugin_hf.rendering import ChatTemplate

CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "1 + 1 < 3, „ä“?", "name": None},
    {"role": "assistant", "content": "Yes.", "reasoning": "2 < 3"},
    {"role": "user", "content": "And 2 + 2?"},
]
TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system != false %}{% set "
    "content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = "
    "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + "
    "' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "a namespace, a macro and a break": "{%- macro show(m) -%}[{{ m.role | upper }}|{{ m.content | trim }}]"
    "{%- endmacro -%}\n{%- set ns = namespace(last=-1) -%}\n{%- for m in messages -%}\n{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}\n{%- endfor -%}\n{%- for m in messages -%}\n"
    "{%- if loop.index0 > ns.last -%}{%- break -%}{%- endif -%}\n{{- show(m) }}{{ m | tojson }}\n{%- endfor -%}",
    "generation and reasoning": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.reasoning_content }}/{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{{ m.name is defined }}"
    "{% endif %}{% endfor %}",
    "functions": "{{ strftime_now is defined }}{{ range(3) | list }}{{ dict(a=1) }}",
}
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a gigabyte": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "macros that call themselves": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(40) }}",
    "a product": "{{ 'a' * 10**10 }}",
    "a width": "{{ '%100000000000d' | format(1) }}",
    "lists in lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
}


@pytest.fixture
def copied(folders: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))


@pytest.fixture(scope="module")
def tokenizer(folders: Mapping[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(folders["llama"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_ordinary_templates_read_as_transformers_reads_them(tokenizer, name):
    theirs = tokenizer.apply_chat_template(
        CHAT, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate(TEMPLATES[name], tokenizer.special_tokens_map)
    assert ours.render(CHAT) == theirs
    assert ours.render(CHAT[1:2]) == tokenizer.apply_chat_template(
        CHAT[1:2], chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )


DATED = "{{ strftime_now('%d %b %Y, %H:%M') }}"


def test_a_template_that_writes_the_date_writes_the_same_one_on_any_day(copied: Path) -> None:
    assert ChatTemplate(DATED, {}).render(CHAT) == "26 Jul 2024, 00:00"
    for options, day in ({}, "26 Jul 2024"), ({"today": "2026-02-01"}, "01 Feb 2026"):
        config = CausalLM.Config(path=str(copied), **options)
        tokenizer = AutoTokenizer.from_pretrained(copied)
        tokenizer.chat_template = DATED
        assert PromptReader(tokenizer, config).rendered(CHAT) == f"{day}, 00:00"
    with pytest.raises(ValidationError, match="a date like 2024-07-26"):
        CausalLM.Config(path=str(copied), today="yesterday")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name):
    began = time.monotonic()
    template = ChatTemplate(ENDLESS[name], {})
    with pytest.raises(
        ValueError, match="takes more than 2 seconds or 512 MiB for one prompt, or breaks down"
    ):
        template.render(CHAT)
    assert time.monotonic() - began < 30
    assert ChatTemplate("{{ messages | length }}", {}).render(CHAT) == "4"


def prompts(folder: Path, template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return PromptReader(tokenizer, CausalLM.Config(path=str(folder)))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 'a' * 10**10 }}", "it takes more than 2 seconds or 512 MiB"),
        ("{{ raise_exception('no system') }}", "TemplateError: no system"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "RecursionError"),
        ("x" * 2_000_000, "it has 2,000,000 characters"),
    ],
)
def test_a_template_that_cannot_be_used_names_the_example(copied, template, why):
    reader = prompts(copied, template)
    with pytest.raises(
        ConfigError, match=rf"example `7`: the chat template of .*model cannot be used: {why}"
    ):
        reader.tokens(Example("7", CHAT))
    assert reader.tokens(Example("8", "w1 w2"))


def test_a_text_of_five_million_characters_does_not_reach_the_tokenizer(copied):
    reader = prompts(copied, "")
    with pytest.raises(ConfigError, match="example `7`: a text of 5,000,000 characters"):
        reader.tokens(Example("7", "x" * 5_000_000))
    assert len(reader.tokens(Example("8", "w1 " * 300_000))) == 300_000


SIZES = [
    ("gpt2", {"n_layer": 10**7}, "says `n_layer: 1e[+]07`, and no model has more than 2,000"),
    ("llama", {"num_hidden_layers": 10**9}, "says `num_hidden_layers"),
    ("gpt2", {"vocab_size": 10**12}, "says `vocab_size"),
    ("gpt2", {"n_positions": 10**12}, "says `n_positions"),
    (
        "llama",
        {"hidden_size": 10**7, "num_attention_heads": 1, "head_dim": 10**7},
        "needs .* of memory, this machine",
    ),
    (
        "gpt2",
        {"n_embd": 10**6, "n_head": 1},
        r"a model of [\d,]+ weights needs .* of memory, this machine has",
    ),
    ("t5", {"d_ff": 10**8, "d_model": 10**5}, "of memory, this machine has"),
    ("bart", {"encoder_layers": 10**6}, "says `encoder_layers"),
]


@pytest.mark.parametrize(("family", "change", "why"), SIZES)
@pytest.mark.parametrize("init", ["random", "pretrained"])
def test_a_model_larger_than_any_machine(folders, tmp_path, family, change, why, init):
    folder = Path(shutil.copytree(folders[family], tmp_path / "model"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **change}))
    cls: Any = Seq2SeqLM if family in ("t5", "bart") else CausalLM
    with pytest.raises(ConfigError, match=why):
        cls(cls.Config(path=str(folder), init=init)).setup()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"n_layer": ' + "9" * 100_000 + "}"])
def test_a_config_that_is_no_config(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(RLAlignError, match=r"its config\.json cannot be used"):
        CausalLM(CausalLM.Config(path=str(copied))).setup()
