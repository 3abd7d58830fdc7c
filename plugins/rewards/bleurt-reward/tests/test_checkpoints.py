"""Checkpoints in every layout, those that are refused, the command that rewrites them, and the hub's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlalign import ConfigError
from rlalign_plugin_bleurt_reward import CheckpointError, Scorer, convert, open_checkpoint
from rlalign_plugin_bleurt_reward.model import Sizes
from rlalign_plugin_bleurt_reward.testing import (
    official,
    random_weights,
    tiny_checkpoint,
    write_bundle,
    write_official,
)
from rlalign_plugin_bleurt_reward.weights import canonical

DATA = Path(__file__).with_name("data")
ROWS = [json.loads(line) for line in (DATA / "wordpiece/pairs.jsonl").read_text().splitlines()]


def scores(folder: Path, **options: Any) -> list[float]:
    scorer = Scorer(open_checkpoint(folder), **options)
    return scorer.score([r["reference"] for r in ROWS], [r["candidate"] for r in ROWS])


def edit(path: Path, **said: Any) -> None:
    """Change what a JSON file says; None takes a key out."""
    found = {**json.loads(path.read_text()), **said}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.fixture
def tf(tmp_path) -> Path:
    """Google's layout, as TensorFlow wrote it."""
    folder = tmp_path / "bleurt-tiny-48"
    shutil.copytree(DATA / "wordpiece", folder)
    return folder


@pytest.fixture
def port(tmp_path) -> Path:
    """The layout of Elron's ports: BERT's names, 48 positions stated."""
    folder = tmp_path / "port"
    folder.mkdir()
    shutil.copy(DATA / "wordpiece/vocab.txt", folder)
    weights = open_checkpoint(DATA / "wordpiece").weights()
    named = {name if name.startswith("classifier") else f"bert.{name}": x for name, x in weights.items()}
    named["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(named, folder / "model.safetensors")
    said = json.loads((DATA / "wordpiece/bert_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 48}))
    return folder


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_what_an_official_checkpoint_says(tf):
    found = open_checkpoint(tf)
    assert (found.name, found.gelu, found.max_length, found.lower) == ("own_wordpiece_tiny", "tanh", 48, True)
    data = (tf / "variables/variables.data-00000-of-00001").read_bytes()
    assert found.digest == hashlib.sha256(data).hexdigest()


def test_the_exported_graph_says_which_gelu_it_computes(tf):
    graph = tf / "saved_model.pb"
    graph.write_bytes(b"...Tanh...")
    assert open_checkpoint(tf).gelu == "tanh"
    graph.write_bytes(b"...Erf...Tanh...")
    assert open_checkpoint(tf).gelu == "erf"
    graph.write_bytes(b"")
    assert open_checkpoint(tf).gelu == "tanh"


def test_a_port_says_its_gelu_and_its_length(port):
    found = open_checkpoint(port)
    assert (found.name, found.gelu, found.max_length) == ("port", "erf", 48)
    assert max(abs(s - r["score_erf"]) for s, r in zip(scores(port), ROWS, strict=True)) < 1e-5
    assert max(abs(s - r["score"]) for s, r in zip(scores(port), ROWS, strict=True)) < 1e-3
    assert max(abs(s - r["score"]) for s, r in zip(scores(port, gelu="tanh"), ROWS, strict=True)) < 1e-5
    edit(port / "config.json", hidden_act="gelu_new")
    assert open_checkpoint(port).gelu == "tanh"
    for stated, expected in ((None, 64), (1e30, 64), (512, 64), (7, 7), ("x", 64), (0, 64)):
        edit(port / "tokenizer_config.json", model_max_length=stated)
        assert open_checkpoint(port).max_length == expected
    (port / "tokenizer_config.json").unlink()
    assert open_checkpoint(port).max_length == 64


def test_the_end_of_a_port_s_name_says_its_length(port):
    edit(port / "config.json", max_position_embeddings=512)
    named = port.with_name("bleurt-tiny-128")
    port.rename(named)
    assert open_checkpoint(named).max_length == 128


@pytest.mark.parametrize("prefix", ["", "bleurt.", "rembert."])
def test_prefixes_of_ports(port, prefix):
    expected = scores(port)
    tensors = load_file(port / "model.safetensors")
    save_file({name.replace("bert.", prefix): x for name, x in tensors.items()}, port / "model.safetensors")
    edit(port / "config.json", model_type=prefix.rstrip(".") or "bert")
    assert scores(port) == expected


@pytest.mark.parametrize("model_type", ["bleurt", "rembert"])
def test_a_port_with_narrow_embeddings(tmp_path, model_type):
    sizes = Sizes(hidden=12, layers=2, heads=3, intermediate=20, vocabulary=508, types=2, positions=64)
    weights = random_weights(sizes, 8, seed=1)
    write_official(tmp_path / "tf", sizes, weights, 48)
    shutil.copy(DATA / "wordpiece/vocab.txt", tmp_path / "tf")
    port = tmp_path / "port"
    port.mkdir()
    shutil.copy(DATA / "wordpiece/vocab.txt", port)
    edit_from = json.loads((tmp_path / "tf/bert_config.json").read_text())
    (port / "config.json").write_text(
        json.dumps({**edit_from, "model_type": model_type, "hidden_act": "gelu_new"})
    )
    theirs = {"bleurt": "embedding_projection", "rembert": "embedding_hidden_mapping_in"}[model_type]
    save_file(
        {
            name
            if name.startswith("classifier")
            else f"{model_type}.{name.replace('embedding_projection', theirs)}": x
            for name, x in weights.items()
        },
        port / "model.safetensors",
    )
    assert scores(port, max_length=48) == scores(tmp_path / "tf")


def test_pickled_weights_are_refused_and_converted_without_being_run(port, tmp_path, monkeypatch, capsys):
    expected = scores(port)
    tensors = load_file(port / "model.safetensors")
    torch.save(tensors, port / "pytorch_model.bin")
    assert scores(port) == expected  # those that are not pickled are there too
    (port / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"pickled \(pytorch_model\.bin\).*`rlalign-bleurt convert .*port NEW"
    ):
        open_checkpoint(port)
    assert command(monkeypatch, "convert", port, tmp_path / "new") == 0
    assert scores(tmp_path / "new") == expected
    found = open_checkpoint(tmp_path / "new")
    assert (found.name, found.gelu, found.max_length) == ("port", "erf", 48)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for evil in ({**tensors, "evil": Evil()}, Evil(), [1], {"a": 1}):
        torch.save(evil, port / "pytorch_model.bin")
        assert command(monkeypatch, "convert", port, tmp_path / "other") == 2
        said = capsys.readouterr().err
        assert "pytorch_model.bin: cannot be read" in said or "something else than tensors" in said
    assert not (tmp_path / "ran").exists() and not (tmp_path / "other").exists()


def test_names_of_official_variables():
    sizes = Sizes(hidden=12, layers=2, heads=3, intermediate=20, vocabulary=9, types=2, positions=8)
    weights = random_weights(sizes, 8, seed=0)
    theirs = official(weights)
    assert {canonical(name) for name in theirs if name != "global_step"} == weights.keys()
    assert canonical("bert/encoder/layer_11/attention/output/dense/kernel") == (
        "encoder.layer.11.attention.output.dense.weight"
    )


# -- what is refused --------------------------------------------------------------------------------------------------

FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "bleurt_config.json").unlink(), "is no checkpoint of BLEURT.*neither.*nor"),
    "config is a list": (lambda f: (f / "bleurt_config.json").write_text("[]"), "no JSON object"),
    "config is no JSON": (
        lambda f: (f / "bert_config.json").write_text("{"),
        "bert_config.json: cannot be read as JSON",
    ),
    "config is deep": (lambda f: (f / "bert_config.json").write_text("[" * 10**5), "cannot be read as JSON"),
    "config is bytes": (
        lambda f: (f / "bert_config.json").write_bytes(b"\xff\xfe"),
        "cannot be read as JSON",
    ),
    "no vocabulary": (
        lambda f: (f / "vocab.txt").unlink(),
        r"vocab\.txt: there is no such file, and bleurt_config",
    ),
    "elsewhere": (
        lambda f: edit(f / "bleurt_config.json", vocab_file="../x"),
        "`vocab_file` is '../x'; expected a file",
    ),
    "absolute": (
        lambda f: edit(f / "bleurt_config.json", bert_config_file="/etc/passwd"),
        "expected a file beside",
    ),
    "no tokenizer": (lambda f: edit(f / "bleurt_config.json", vocab_file=None), "`sp_model` is 'None'"),
    "no length": (lambda f: edit(f / "bleurt_config.json", max_seq_length=None), "`max_seq_length` is None"),
    "too long": (lambda f: edit(f / "bleurt_config.json", max_seq_length=65), "a whole number from 1 to 64"),
    "no layers": (lambda f: edit(f / "bert_config.json", num_hidden_layers=0), "`num_hidden_layers` is 0"),
    "many layers": (lambda f: edit(f / "bert_config.json", num_hidden_layers=10**9), "from 1 to 1000"),
    "half a layer": (
        lambda f: edit(f / "bert_config.json", num_hidden_layers=1.5),
        "`num_hidden_layers` is 1.5",
    ),
    "true": (lambda f: edit(f / "bert_config.json", hidden_size=True), "`hidden_size` is True"),
    "wide": (lambda f: edit(f / "bert_config.json", hidden_size=10**30), "`hidden_size` is 1000"),
    "heads": (lambda f: edit(f / "bert_config.json", num_attention_heads=5), "5 heads do not share 32"),
    "types": (lambda f: edit(f / "bert_config.json", type_vocab_size=1), "needs 2 types"),
    "no data": (
        lambda f: next((f / "variables").glob("*.data*")).unlink(),
        "data-00000-of-00001: there is no such file",
    ),
    "no index": (
        lambda f: (f / "variables/variables.index").unlink(),
        "variables.index: there is no such file",
    ),
    "another width": (
        lambda f: edit(f / "bert_config.json", intermediate_size=65),
        r"of shape \[64, 32\]; .* \[65, 32\]",
    ),
    "more layers": (
        lambda f: edit(f / "bert_config.json", num_hidden_layers=3),
        r"16 of the model's 57 .*layer\.2",
    ),
    "fewer layers": (
        lambda f: edit(f / "bert_config.json", num_hidden_layers=1),
        r"BLEURT has not, .*encoder\.layer\.1",
    ),
    "fewer words": (
        lambda f: edit(f / "bert_config.json", vocab_size=100),
        "numbers 508 tokens, and the model knows 100",
    ),
    "words": (lambda f: (f / "vocab.txt").write_text("a\nb\n"), r"vocab\.txt: has no \[CLS\]"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_official_folder_that_is_none(tf, name):
    spoil, words = FOLDERS[name]
    spoil(tf)
    with pytest.raises(CheckpointError, match=words) as caught:
        Scorer(open_checkpoint(tf))
    assert str(tf) in str(caught.value)


PORTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another model": (lambda f: edit(f / "config.json", model_type="gpt2"), "`model_type` is 'gpt2'"),
    "another activation": (lambda f: edit(f / "config.json", hidden_act="relu"), "`hidden_act` is 'relu'"),
    "an activation of no name": (
        lambda f: edit(f / "config.json", hidden_act=["gelu"]),
        r"`hidden_act` is \['gelu'\]",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "no tokenizer": (lambda f: (f / "vocab.txt").unlink(), "holds no tokenizer"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "cannot be read",
    ),
    "long header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 40), "cannot be read"),
}


@pytest.mark.parametrize("name", PORTS)
def test_a_port_that_is_none(port, name):
    spoil, words = PORTS[name]
    spoil(port)
    with pytest.raises(CheckpointError, match=words) as caught:
        Scorer(open_checkpoint(port))
    assert str(port) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("bert.pooler.dense.bias", torch.full((32,), float("nan")), "NaN"),
        ("bert.pooler.dense.bias", torch.full((32,), float("inf")), "infinite"),
        ("bert.pooler.dense.bias", torch.zeros(32, dtype=torch.int32), "floating-point"),
        ("bert.pooler.dense.bias", torch.zeros(33), r"of shape \[33\]"),
        ("bert.pooler.dense.extra", torch.zeros(1), "BLEURT has not, the first `pooler.dense.extra`"),
        ("bleurt.pooler.dense.bias", torch.zeros(32), "twice"),
        ("bert.embeddings.word_embeddings.weight", torch.zeros(508), "missing|shape"),
    ],
)
def test_weights_of_a_port_that_are_wrong(port, name, tensor, words):
    save_file({**load_file(port / "model.safetensors"), name: tensor}, port / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(port).weights()


def test_a_tensor_that_repeats_itself_takes_no_memory(port):
    """A pickle of a few bytes may say that it holds terabytes."""
    edit(port / "config.json", vocab_size=10**8, hidden_size=10**7, num_attention_heads=1)
    names = Sizes(10**7, 2, 1, 64, 10**8, 2, 64).shapes(10**7)
    torch.save(
        {name: torch.zeros(1).expand(shape) for name, shape in names.items()}, port / "pytorch_model.bin"
    )
    (port / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"the model needs .* of memory"):
        open_checkpoint(port, pickled=True).weights()


def bundle_with(folder: Path, **changed: torch.Tensor | None) -> None:
    """Write the weights anew, some of them changed, added or (None) left out."""
    tensors = official(open_checkpoint(DATA / "wordpiece").weights())
    put = {name.replace("__", "/"): tensor for name, tensor in changed.items()}
    write_bundle(
        folder / "variables/variables",
        {name: tensor for name, tensor in {**tensors, **put}.items() if tensor is not None},
    )


def test_weights_written_anew_score_the_same(tf):
    expected = scores(tf)
    bundle_with(tf)
    assert scores(tf) == expected
    bundle_with(tf, bert__pooler__dense__kernel__adam_m=torch.ones(3), beta1_power=torch.ones(1))
    assert scores(tf) == expected


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dense__kernel": None}, r"1 of the model's 41 weights are missing, the first `classifier\.weight`"),
        ({"dense_1__kernel": torch.ones(3, 3)}, "layers between encoder and score are not supported"),
        ({"other": torch.ones(3)}, "BLEURT has not, the first `other`"),
        ({"dense__bias": torch.ones(1).int()}, "`dense/bias` is of torch.int32"),
        ({"dense__bias": torch.tensor([float("nan")])}, "`dense/bias` holds numbers that are none"),
        ({"dense__gamma": torch.ones(32, 1)}, "BLEURT has not|the same weight"),
        ({"dense__kernel": torch.ones(1, 32)}, r"`classifier\.weight` is of shape \[32, 1\]"),
        ({"dense__.ATTRIBUTES__VARIABLE_VALUE": torch.ones(1)}, "written by tf.train.Checkpoint"),
    ],
)
def test_weights_of_an_official_folder_that_are_wrong(tf, changed, words):
    bundle_with(tf, **changed)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tf).weights()


def test_weights_in_half_precision_are_widened(tf):
    bundle_with(tf, dense__bias=torch.tensor([0.25]).half(), dense__kernel=torch.ones(32, 1).bfloat16())
    weights = open_checkpoint(tf).weights()
    assert {x.dtype for x in weights.values()} == {torch.float32}
    assert float(weights["classifier.bias"]) == 0.25


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_in_a_process_of_its_own(tf, tmp_path):
    """It rewrites a checkpoint, and imports neither TensorFlow nor what only other checkpoints need."""
    out = tmp_path / "new/port"
    code = (
        "import atexit, sys; from rlalign_plugin_bleurt_reward.convert import main\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "convert", str(tf), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, imported = done.stdout.splitlines()
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert said == f"{out}: own_wordpiece_tiny, gelu tanh, up to 48 tokens, sha256 {digest}"
    assert "torch" in imported.split()
    assert not {"tensorflow", "transformers", "huggingface_hub", "sentencepiece"} & set(imported.split())
    files = sorted(path.name for path in out.iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert set(load_file(out / "model.safetensors")) >= {"bleurt.pooler.dense.weight", "classifier.bias"}
    assert scores(out) == scores(tf)


def command(monkeypatch, *arguments: object) -> Any:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["rlalign-bleurt", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        convert.main()
    return ended.value.code


def test_the_command_tells_what_is_wrong(tf, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "convert", tf, tf) == 1
    assert f"rlalign-bleurt: {tf}: exists already" in capsys.readouterr().err
    assert command(monkeypatch, "convert", tmp_path / "nothing", tmp_path / "new") == 2
    (tf / "variables/variables.data-00000-of-00001").write_bytes(b"short")
    assert command(monkeypatch, "convert", tf, tmp_path / "new") == 2
    assert "it is cut short" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [tf.name]


def test_a_checkpoint_with_sentencepiece(trained, tmp_path, monkeypatch):
    """BLEURT-20's type from folder to scores, as google lays it out and rewritten."""
    sizes = Sizes(hidden=12, layers=2, heads=3, intermediate=20, vocabulary=60, types=2, positions=64)
    tf = tmp_path / "tf"
    write_official(tf, sizes, random_weights(sizes, 8, seed=1), 48)
    shutil.copy(trained(), tf / "sent_piece.model")
    edit(tf / "bleurt_config.json", vocab_file=None, do_lower_case=None, sp_model="sent_piece")
    found = scores(tf)
    assert len(set(found)) > 20
    assert command(monkeypatch, "convert", tf, tmp_path / "new") == 0
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["config.json", "model.safetensors", "spm.model", "tokenizer_config.json"]
    assert scores(tmp_path / "new") == found
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        ConfigError, match=r"sent_piece\.model: to read it the package sentencepiece is needed"
    ):
        open_checkpoint(tf)


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and a hub that nobody may ask."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def cached(cache: Path, folder: Path, name: str) -> None:
    home = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs/main").write_text("0" * 40)


def test_a_name_whose_files_are_in_the_cache(cache, port):
    edit(port / "config.json", max_position_embeddings=512)
    cached(cache, port, "somebody/bleurt-tiny-128")
    found = open_checkpoint("somebody/bleurt-tiny-128")
    assert (found.name, found.max_length) == ("somebody/bleurt-tiny-128", 128)


def test_a_name_whose_files_are_not_there_is_refused_and_not_fetched(cache):
    with pytest.raises(ConfigError, match=r"the hub's cache .*does not hold it.*hf download somebody/bleurt"):
        open_checkpoint("somebody/bleurt")


@pytest.mark.parametrize("source", ["./nothing", "/nothing/here", "nothing", "a/b/c", "../x"])
def test_a_path_to_nothing(source):
    with pytest.raises(ConfigError, match="there is no such folder; give a checkpoint's folder, or its name"):
        open_checkpoint(source)


def test_a_tiny_checkpoint_reads_any_text(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "tiny"))
    scorer = Scorer(checkpoint)
    found = scorer.score(["one", "two", ""], ["one", "Two!", "3"])
    assert len(set(found)) == 3 and checkpoint.name == "tiny"
    assert 1 not in scorer.pairs("any text", "of {letters}")[0]
