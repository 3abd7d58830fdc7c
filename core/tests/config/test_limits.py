"""Pipelines that would never end, or fill the memory, are refused in one sentence; what is large and real is read."""

from __future__ import annotations

import os
import time

import pytest

from rlalign.config import places
from rlalign.config.load import load_pipeline
from rlalign.config.overrides import interpolate, override
from rlalign.data import limits
from rlalign.errors import ConfigError


def laugh(first: str, each: str, times: int = 60) -> str:
    return f"a0: {first}\n" + "".join(each.format(i=i, j=i - 1) + "\n" for i in range(1, times))


LARGE = {
    "aliases": (laugh("&a0 [1, 1]", "a{i}: &a{i} [*a{j}, *a{j}]"), "keys and values"),
    "merges": (laugh("&a0 {x: 1}", "a{i}: &a{i} {{<<: [*a{j}, *a{j}]}}"), "keys and values"),
    "aliases of long text": (f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 20_000}]\n", "characters"),
    "a long list": (f"a: [{'1,' * 500_000}]\n", "keys and values"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(100_000)), "keys and values"),
    "a long file": ("# nothing\n" * 300_000, "is longer than 2 MiB"),
    "deep lists": (f"a: {'[' * 100_000}", "more than 50 lists and mappings within each other"),
    "deep mappings": (f"a: {'{a: ' * 10_000}", "within each other"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(1_000)), "within each other"),
    "depth by aliases": (laugh("&a0 [1]", "a{i}: &a{i} [*a{j}]"), "within each other"),
    "text that doubles": (laugh("xx", "a{i}: ${{a{j}}}${{a{j}}}"), "stand for too much"),
    "lists that double": (laugh("[1]", "a{i}: ['${{a{j}}}', '${{a{j}}}']"), "stand for too much"),
    "decoded text that doubles": (
        laugh("xx", "a{i}: ${{oc.decode:${{a{j}}}${{a{j}}}}}"),
        "stand for too much",
    ),
    "made lists that double": (
        laugh("xx", "a{i}: '${{oc.create:[${{a{j}}},${{a{j}}}]}}'"),
        "stand for too much",
    ),
    "much of a long text": (f"a: {'x' * 100_000}\nb: {'${a}' * 10_000}\n", "stand for too much"),
    "long text many times": ("a: " + "x" * 100_000 + "\nb: [" + "'${a}', " * 50 + "]\n", "characters"),
    "interpolations in each other": (f"a: {'${' * 20_000}b{'}' * 20_000}\n", "stand for too much"),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_is_too_large_is_refused_before_it_grows(tmp_path, case):
    text, said = LARGE[case]
    path = tmp_path / "p.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError) as error:
        load_pipeline(path)
    assert time.process_time() - began < 10
    message = str(error.value)
    assert message.startswith(str(path)) and said in message and len(message.splitlines()) == 1
    assert len(message) < 500


ODD = {
    "digits": "train: {prompts: " + "9" * 100_000 + "}",
    "hexadecimal digits": "train: {prompts: 0x" + "f" * 100_000 + "}",
    "digits of a fraction": "train: {lr: " + "9" * 100_000 + ".5}",
}


@pytest.mark.parametrize("case", ODD)
def test_a_number_of_very_many_digits(tmp_path, case):
    path = tmp_path / "p.yaml"
    path.write_text(f"seed: 1\n{ODD[case]}\n")
    with pytest.raises(
        ConfigError, match=r"p.yaml:2: train.\w+: a number of 100,00\d digits; the longest"
    ) as error:
        load_pipeline(path)
    assert len(str(error.value)) < 1_000


def test_a_key_of_a_million_characters(tmp_path):
    (tmp_path / "p.yaml").write_text("? " + "x" * 1_000_000 + "\n: 1\n")
    with pytest.raises(ConfigError, match=r"p.yaml:1: a key of 1,000,000 characters"):
        load_pipeline(tmp_path / "p.yaml")


def test_no_more_faults_are_looked_for_than_anybody_reads(tmp_path):
    (tmp_path / "p.yaml").write_text("".join(f"k{i}: 1\n" for i in range(20_000)))
    began = time.process_time()
    with pytest.raises(ConfigError, match="… and") as error:
        load_pipeline(tmp_path / "p.yaml")
    assert time.process_time() - began < 15 and len(str(error.value).splitlines()) <= 22


def test_a_character_that_does_not_exist(tmp_path):
    (tmp_path / "p.yaml").write_text('a: "\\UFFFFFFFF"\n')
    with pytest.raises(ConfigError, match=r"p.yaml: not valid YAML"):
        load_pipeline(tmp_path / "p.yaml")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "p.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"p.yaml: is no regular file but a pipe or a device; write"):
        load_pipeline(path)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("train.lr=[" + "1," * 60_000 + "]", "more than 50,000 keys and values"),
        ("train.lr=" + "[" * 60_000, "within each other"),
        ("train.lr=" + "9" * 100_000, "a number of 100,000 digits"),
        (".".join(["a"] * 60_000) + "=1", "leads nowhere"),
    ],
)
def test_overrides_and_values_of_the_command_line(said, why):
    tree = places.read("train: {lr: 1}", "p.yaml")
    with pytest.raises(ConfigError, match=why) as error:
        override(tree, said)
    assert len(str(error.value)) < 1_000


def test_500_phases_are_read_with_their_aliases_and_interpolations(tmp_path):
    phases = "".join(
        f"  - name: p{i}\n    <<: *same\n    train: {{lr: '${{rate}}', iterations: {i + 1}, prompts: 64}}\n"
        for i in range(500)
    )
    same = (
        "{task: t, algorithm: [a, {b: {x: 1, y: [1, 2, 3]}}], generation: {samples: 4, max_new_tokens: 32}}"
    )
    tree = places.read(f"rate: 1e-5\nsame: &same {same}\nphases:\n{phases}", "p.yaml")
    interpolate(tree)
    assert [phase["train"]["lr"] for phase in tree.data["phases"]] == [1e-5] * 500


def test_what_a_run_writes_of_a_large_pipeline_is_read_again():
    data = {"a": "x" * (limits.PIPELINE_TEXT - 100), "b": list(range(1_000))}
    assert places.read(places.dump(data), "p.yaml").data == data


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (f"phases: [{', '.join(f'{{name: a{i}}}' for i in range(2_000))}]", "2,000 phases, more than 1,000"),
        (f"rewards: [{', '.join(['kl'] * 2_000)}]", "2,000 components, more than 1,000"),
    ],
)
def test_a_list_without_end(tmp_path, said, message):
    file = tmp_path / "p.yaml"
    file.write_text(f"task: bandit\npolicy: {{table: {{actions: 3}}}}\nalgorithm: rloo\n{said}\n")
    with pytest.raises(ConfigError, match=message):
        load_pipeline(file)
