"""Models in GGUF files: what is loaded, learned and written of one, and what is refused with which words."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

import rlalign
from rlalign import Component, ConfigError, Example, RLAlignError, Sampling, Score, hookimpl, load
from rlalign.data.rollout import Rollout
from rlalign_plugin_hf import CausalLM, gguf

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = [*bytes_to_unicode().values(), "es", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]
END = WORDS.index("<|end|>")
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
needs_packages = pytest.mark.skipif(
    any(find_spec(name) is None for name in gguf.NEEDED),
    reason="the packages gguf and accelerate are not installed (the extra `gguf`)",
)


def network() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
            rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=END, eos_token_id=END, pad_token_id=END,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Any:
    return network()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, made: Any) -> Path:
    """The network in a GGUF file: most weights as they are, one matrix packed into 8 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer, config = GGUFWriter(file, "qwen2"), made.config
    writer.add_name("Tiny")
    writer.add_string("general.license", "apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(WORDS)
    kinds = [TokenType.CONTROL if word.startswith("<|") else TokenType.NORMAL for word in WORDS]
    writer.add_token_types(kinds)
    writer.add_token_merges(["e s"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(END)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor.numpy()
        if name == "model.layers.1.mlp.down_proj.weight":
            packed = quants.quantize(value, GGMLQuantizationType.Q8_0)
            writer.add_tensor(called(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(called(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def called(name: str) -> str:
    """A weight's name in GGUF."""
    name = name.removeprefix("model.")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        module, _, kind = rest.rpartition(".")
        return f"blk.{number}.{NAMES[module]}.{kind}"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


class EarlyBytes(Component):
    """How many of a response's bytes are early ones."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(((rollout.actions_NT < 100) & rollout.mask_NT).sum(1).float())


def policy_of(file: Path, **options: Any) -> CausalLM:
    policy = CausalLM(CausalLM.Config.model_validate_json(json.dumps({"path": str(file), **options})))
    policy.setup()
    return policy


def pipeline_of(file: Path | str, **policy: Any) -> dict[str, Any]:
    return {
        "task": "sentences",
        "policy": {"causal-lm": {"path": str(file), **policy}},
        "rewards": ["early-bytes"],
        "algorithm": "rloo",
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 1, "prompts": 2, "lr": 1e-2},
    }


def header(**said: str) -> bytes:
    """The beginning of a file, with texts of its own."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in said.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(said)) + pairs


LIST = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x" + struct.pack("<II", 9, 0)


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"not at all",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        header(name="a model")[:-1],
        header(name="a model").replace(struct.pack("<I", 8), struct.pack("<I", 77)),
        LIST + struct.pack("<Q", 2**60) + bytes(1000),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**40),
    ),
)
def test_a_damaged_file_is_refused_at_once(content: bytes, tmp_path: Path) -> None:
    """Also where it says of itself that it holds more than any file."""
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(RLAlignError, match=r"model\.gguf: is no GGUF file, or a damaged one \(.+\)"):
        policy_of(file)


def test_a_header_says_texts_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    listed = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, 4, 3) + bytes(12)
    number = struct.pack("<Q", 1) + b"n" + struct.pack("<Id", 12, 0.5)
    whole = header(name="größer", other="")
    file.write_bytes(
        whole.replace(struct.pack("<IQQ", 3, 0, 2), struct.pack("<IQQ", 3, 0, 4)) + listed + number
    )
    assert gguf.header(file) == {"name": "größer", "other": "", "n": 0.5}


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told with its place, before anything is loaded; a bare name is a file beside the pipeline, not one on the hub."""
    file, lines = tmp_path / "p.yaml", "algorithm: rloo\npolicy:\n  causal-lm: {path: %s}\n"
    for path in ("./model.gguf", "model.gguf", "there/model.gguf"):
        file.write_text(lines % path)
        with pytest.raises(
            ConfigError, match=r"p.yaml:3: policy.causal-lm.path: .*model.gguf: there is no such file"
        ):
            load(file)


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header())
    monkeypatch.setattr(gguf, "NEEDED", ("torch", "no-such-package"))
    with pytest.raises(RLAlignError, match=r"no-such-package is not installed: `pip install gguf accel"):
        policy_of(file)


@needs_packages
def test_what_is_no_language_model(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header(**{"general.architecture": "clip", "general.name": "eyes"}))
    with pytest.raises(RLAlignError, match=r"holds a `clip`, and transformers reads no language model"):
        policy_of(file)


@needs_packages
def test_weights_are_the_file_s(model: Path, made: Any) -> None:
    """Those that are packed are what they unpack to; the network that holds them is an ordinary one."""
    policy = policy_of(model)
    off = {
        name: float((found - made.state_dict()[name]).abs().max())
        for name, found in policy.network.state_dict().items()
    }
    packed = off.pop("model.layers.1.mlp.down_proj.weight")
    assert set(off.values()) == {0.0}
    assert 0 < packed < 0.01
    assert policy.ends == (END,)
    assert not hasattr(policy.network.config, "quantization_config")
    torch.testing.assert_close(policy.network.lm_head.weight, policy.network.model.embed_tokens.weight)


@needs_packages
def test_its_template_and_its_end(model: Path) -> None:
    policy = policy_of(model)
    assert policy.chats
    chat = Example("1", [{"role": "user", "content": "Hi<|end|>"}])
    plain = [WORDS.index(letter) for letter in "Hi<|end|>"]
    tokens = [WORDS.index("<|user|>"), *plain, END, WORDS.index("<|assistant|>")]
    assert policy.prompts([chat])[0].tolist() == tokens


@needs_packages
def test_without_a_template_chats_are_refused(model: Path, tmp_path: Path) -> None:
    """The same file with another name for what holds its template."""
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(model.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_tempIate"))
    policy = policy_of(bare)
    with pytest.raises(RLAlignError, match=r"bare.gguf has no chat template"):
        policy.prompts([Example("1", [{"role": "user", "content": "Hi"}])])


@needs_packages
@pytest.mark.parametrize("adapters", ({}, {"lora": {"r": 4}}))
def test_it_learns_and_becomes_an_ordinary_folder(
    model: Path, made: Any, adapters: Mapping[str, Any], components: Mapping[str, type[Any]], tmp_path: Path
) -> None:
    """Which plain transformers loads, and which is what the run ended with."""
    components = {**components, "early-bytes": EarlyBytes}
    pipeline = load(pipeline_of(model, **adapters), components=components)
    assert "plain text, though the model has a chat template" in pipeline.check()
    run = rlalign.run(pipeline, root=tmp_path, display=False)
    folder = run.folder / "model"
    opened = rlalign.open(run.folder, components=components)
    policy: Any = opened.models.policy
    prompt = policy.prompts([Example("1", "w2")])[0]
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        ours = policy.own_logits(prompt, torch.tensor([5, 6]))
        theirs = plain(torch.cat([prompt, torch.tensor([5])])[None]).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    before, after = (each.state_dict()["model.layers.0.mlp.up_proj.weight"] for each in (made, plain))
    assert float((after - before).abs().max()) > 1e-4
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    assert "license: apache-2.0" in (folder / "README.md").read_text()


@needs_packages
def test_a_file_can_be_asked_by_itself(model: Path) -> None:
    opened = rlalign.open(model)
    row = opened.sample(["w1"], max_new_tokens=4, greedy=True)[0]
    policy = policy_of(model)
    chat = Example("1", [{"role": "user", "content": "w1"}])
    expected = policy.sample([chat], Sampling(max_new_tokens=4, greedy=True), torch.rand(1, 1, 4)).texts[0]
    assert row["response"] == expected
