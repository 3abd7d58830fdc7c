"""What is refused, and with which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlalign import ConfigError, Example, LazyExamples, RLAlignError, Sampling, load
from rlalign.config.validate import check
from rlalign.errors import BadLogits
from rlalign.learning.engine import Engine
from rlalign_plugin_hf import CausalLM, Seq2SeqLM
from rlalign_plugin_hf.heads import own_head

MakePolicy = Callable[..., Any]


@pytest.fixture
def copied(folders: Mapping[str, Path], tmp_path: Path) -> Path:
    """A GPT-2 folder to spoil."""
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))


def made(path: Path | str, cls: type[Any] = CausalLM, **options: Any) -> Any:
    policy = cls(cls.Config.model_validate_json(json.dumps({"path": str(path), **options})))
    policy.setup()
    return policy


def edit(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps(content))


def test_no_such_folder(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded, with its place; and what went away since then."""
    file, lines = tmp_path / "p.yaml", "algorithm: rloo\npolicy:\n  causal-lm: {path: %s}\n"
    monkeypatch.chdir(tmp_path)
    for path in ("./nowhere", "../nowhere", str(tmp_path / "nowhere"), "model/nowhere"):
        file.write_text(lines % path)
        with pytest.raises(ConfigError, match=r"p.yaml:3: policy.causal-lm.path: .*there is no such folder"):
            load(file)
    for path in ("org/nowhere", "gpt2", "./model", "./model/config.json"):
        file.write_text(lines % path)
        with pytest.raises(ConfigError) as error:
            load(file)
        assert "no such folder" not in str(error.value)
    options = CausalLM.Config.model_validate_json(json.dumps({"path": str(copied)}))
    shutil.rmtree(copied)
    with pytest.raises(RLAlignError, match=r"path: .*: there is no such folder"):
        CausalLM(options).setup()


@pytest.mark.parametrize("family", ("gpt2", "t5"))
def test_a_beam_search_of_nan_is_an_error(policy_of: MakePolicy, family: str) -> None:
    policy = policy_of(family)
    with torch.no_grad():
        policy.network.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(BadLogits, match=r"beam search .*it has diverged"):
        policy.sample([SHORT], Sampling(beams=3, max_new_tokens=4), torch.rand(1, 1, 4))


def test_no_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(RLAlignError, match=r"holds no weights.*init: random"):
        made(copied)
    again, other = made(copied, init="random"), made(copied, init="random", seed=1)
    same = made(copied, init="random")
    first = [next(p.network.parameters()) for p in (again, same, other)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_pickled_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    with pytest.raises(RLAlignError, match="pickled"):
        made(copied)


def test_an_adapter_is_no_model(copied: Path) -> None:
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(RLAlignError, match="merge it"):
        made(copied)


def test_remote_code_is_refused(copied: Path, tmp_path: Path) -> None:
    edit(
        copied / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.M"},
    )
    (copied / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(RLAlignError, match="remote_code: true"):
        made(copied)
    assert not (tmp_path / "ran").exists()


def evil(mark: Path) -> bytes:
    """A pickle that makes a file."""

    class Mark:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    return pickle.dumps(Mark())


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("config", "remote_code: true"),
        ("tokenizer", ""),
        ("both, of a known family", ""),  # whose own classes will do
        ("shards", r"its weights are pickled \(evil\.bin\)"),
        ("kernel", "the attention kernel theirs/kernel, which may be code"),
        ("kernel of a part", "the attention kernel theirs/kernel, which may be code"),
        ("fast kernel", "the attention kernel flash_attention_2, which may be code"),
    ],
)
def test_a_model_folder_runs_nothing(named: str, message: str, copied: Path, tmp_path: Path) -> None:
    """Whatever it names: code of its own, a tokenizer, pickled shards, an attention kernel of the hub."""
    mark = tmp_path / "ran"
    (copied / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Thing: ...\n")
    (copied / "evil.bin").write_bytes(evil(mark))
    classes = {f"Auto{name}": "theirs.Thing" for name in ("Config", "ModelForCausalLM", "Model")}
    if named == "config":
        edit(copied / "config.json", model_type="theirs", auto_map=classes)
    if named == "tokenizer":
        tokenizer = {"AutoTokenizer": ["theirs.Thing", "theirs.Thing"]}
        edit(copied / "tokenizer_config.json", tokenizer_class="Thing", auto_map=tokenizer)
    if named.startswith("both"):
        edit(copied / "config.json", auto_map=classes)
        edit(copied / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Thing", "theirs.Thing"]})
    if named == "shards":
        keys = load_file(copied / "model.safetensors")
        (copied / "model.safetensors").rename(copied / "other.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, "evil.bin")}
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    if named == "kernel":
        edit(copied / "config.json", attn_implementation="theirs/kernel")
    if named == "kernel of a part":
        edit(copied / "config.json", _attn_implementation={"text_config": "theirs/kernel", "": "eager"})
    if named == "fast kernel":
        edit(copied / "config.json", _attn_implementation="flash_attention_2")
    with pytest.raises(RLAlignError, match=message) if message else nullcontext():
        made(copied)
    assert not mark.exists() and "theirs" not in sys.modules


def test_code_of_a_model_needs_trust(copied: Path) -> None:
    """`remote_code: true` in somebody else's pipeline is not the user's word."""
    options = {"path": str(copied), "remote_code": True}
    found: list[str] = []
    for trust in (True, False):
        check(CausalLM.Config, options, copied, lambda keys, text: found.append(text), trust=trust)
    assert len(found) == 1 and found[0].startswith(
        "true would run code that no installed package offers; add --trust"
    )


@pytest.mark.parametrize(
    "family, cls, other", (("t5", CausalLM, "seq2seq-lm"), ("gpt2", Seq2SeqLM, "causal-lm"))
)
def test_the_wrong_kind(folders: Mapping[str, Path], family: str, cls: Any, other: str) -> None:
    with pytest.raises(RLAlignError, match=other):
        made(folders[family], cls)


def test_no_tokenizer(copied: Path, folders: Mapping[str, Path]) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(RLAlignError, match="tokenizer:"):
        made(copied)
    assert made(copied, tokenizer=str(folders["gpt2"])).text(torch.tensor([5, 6])) == "w1 w2"


def test_no_end_token(copied: Path) -> None:
    edit(copied / "config.json", eos_token_id=None)
    edit(copied / "generation_config.json", eos_token_id=None)
    edit(copied / "tokenizer_config.json", eos_token=None)
    with pytest.raises(RLAlignError, match="no token ends a response"):
        made(copied)


def test_several_ends(policy_of: MakePolicy) -> None:
    policy = policy_of("gpt2")
    assert policy.ends == (2, 23, 33, 43, 53)
    assert policy.end == 2
    assert policy.text(torch.tensor([5, 6, 23])) == "w1 w2"
    assert policy.text(torch.tensor([5, 6, 2])) == "w1 w2"


def test_chat_needs_a_template(copied: Path) -> None:
    example = Example("7", [{"role": "user", "content": "w1 w2"}])
    with pytest.raises(RLAlignError, match=r"example `7`.*chat template"):
        made(copied).prompts([example])
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.chat_template = (
        "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w9{% endif %}"
    )
    tokenizer.save_pretrained(copied)
    (tokens,) = made(copied).prompts([example])
    assert tokens.tolist() == [1, 5, 6, 13]


def test_a_prompt_without_a_token_is_refused(policy_of: MakePolicy) -> None:
    """Where the tokenizer adds none of its own."""

    class Later(LazyExamples):
        def __len__(self) -> int:
            return 1

        def example(self, index: int) -> Example:
            return empty

    empty, blank = Example("empty", ""), Example("blank", " \n")
    policy = policy_of("gpt2")
    refused = policy.refuse([SHORT, empty, blank])
    assert list(refused) == [1, 2]
    assert refused[1] == (
        "its prompt becomes no tokens at all, and there is nothing to go on from; write the token that begins a text, "
        "`<s>`, to have a text from its beginning"
    )
    assert list(policy.refuse(Later())) == [0]
    for example in (empty, blank):
        with pytest.raises(
            RLAlignError, match=f"example `{example.id}`: its prompt becomes no tokens at all"
        ):
            policy.prompts([example])
    assert policy.prompts([Example("0", "<s>")])[0].tolist() == [1]
    for family, tokens in (("llama", [1]), ("t5", [2]), ("bart", [1, 2])):
        assert policy_of(family).refuse([empty, blank]) == {}
        assert policy_of(family).prompts([empty])[0].tolist() == tokens


LONG = Example("long", " ".join(f"w{i}" for i in range(9)))
SHORT = Example("short", "w1 w2")


def test_long_prompts(folders: Mapping[str, Path]) -> None:
    stop = made(folders["gpt2"], max_prompt_tokens=5)
    with pytest.raises(RLAlignError, match=r"example `long`.*9 tokens.*5"):
        stop.prompts([LONG])
    with pytest.raises(RLAlignError, match="example `long`"):
        stop.refuse([SHORT, LONG])
    drop = made(folders["gpt2"], max_prompt_tokens=5, too_long="drop")
    assert drop.refuse([SHORT, LONG, SHORT]) == {
        1: "its prompt's 9 tokens are more than `max_prompt_tokens: 5`"
    }
    cut = made(folders["gpt2"], max_prompt_tokens=5, too_long="truncate")
    assert cut.refuse([SHORT, LONG]) == {}
    assert cut.text(cut.prompts([LONG])[0]) == "w4 w5 w6 w7 w8"
    right = made(folders["gpt2"], max_prompt_tokens=5, too_long="truncate", truncation_side="right")
    assert right.text(right.prompts([LONG])[0]) == "w0 w1 w2 w3 w4"
    bart = made(folders["bart"], Seq2SeqLM, max_prompt_tokens=5, too_long="truncate")
    assert bart.prompts([LONG])[0].tolist() == [1, 4, 5, 6, 2], "the tokenizer's own marks stay"


def test_more_positions_than_there_are(policy_of: MakePolicy) -> None:
    policy = policy_of("gpt2")
    with pytest.raises(RLAlignError, match=r"example `long`.*reads 48"):
        policy.sample([LONG], Sampling(max_new_tokens=40), torch.rand(1, 1, 40))
    with pytest.raises(RLAlignError, match=r"example `long`.*reads 48"):
        policy_of("bart").sample([LONG], Sampling(max_new_tokens=49), torch.rand(1, 1, 49))
    policy_of("t5").sample([LONG], Sampling(max_new_tokens=60), torch.rand(1, 1, 60))
    long = Example("0", "w1", responses=(" ".join(["w2"] * 60),))
    with pytest.raises(RLAlignError, match=r"example `0`.*reads 48"):
        policy.encode([long])


@pytest.mark.parametrize("setting", ({"lora": {"r": 4, "targets": ["nothing"]}},))
def test_adapters_that_fit_nowhere(folders: Mapping[str, Path], setting: Any) -> None:
    with pytest.raises(RLAlignError, match="nothing"):
        made(folders["gpt2"], **setting)


@pytest.mark.parametrize(
    "model, extra",
    (
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
        ("gpt_neox", {}),
        ("phi3", {"pad_token_id": 0}),
        ("mistral", {"sliding_window": 4}),
        ("bloom", {}),
        ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    ),
)
def test_heads_and_trunks_of_other_families(
    tmp_path: Path, folders: Mapping[str, Path], model: str, extra: Mapping[str, Any]
) -> None:
    """Softcaps, scales, projections, sliding windows: `setup` compares with the model's own logits."""
    from transformers import AutoConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "initializer_range": 0.3,
    }
    if model not in ("opt", "gpt_neox", "bloom"):
        sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(model, **{**sizes, **extra})
    config.save_pretrained(tmp_path)
    policy = made(tmp_path, init="random", tokenizer=str(folders["llama"]))
    capped = model in ("gemma2", "granite", "cohere")
    assert policy._bare_head == (not capped)
    features = 30 * torch.randn(3, policy.width)
    with torch.no_grad():
        torch.testing.assert_close(policy.head(features), own_head(policy, features))
        if model == "gemma2":
            assert float(policy.head(features).abs().max()) <= 5


def test_another_architecture_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = CausalLM.head
    monkeypatch.setattr(CausalLM, "head", lambda self, features: own(self, features) * 1.1)
    with pytest.raises(RLAlignError, match="where trunk and head run apart, its logits differ by"):
        made(copied)


def test_plain_transformers_agrees(folders: Mapping[str, Path], examples: Sequence[Example]) -> None:
    """The loaded network is the folder's."""
    own = AutoModelForCausalLM.from_pretrained(folders["llama"])
    policy = made(folders["llama"])
    for one, other in zip(own.parameters(), policy.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_lora_without_peft(folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    made(folders["gpt2"])
    with pytest.raises(RLAlignError, match=r"needs peft, which is not installed: `pip install peft`"):
        made(folders["gpt2"], lora={"r": 2})


def test_a_tokenizer_of_another_model(copied: Path, folders: Mapping[str, Path]) -> None:
    edit(copied / "config.json", vocab_size=30)
    policy = made(copied, init="random", tokenizer=str(folders["gpt2"]))
    with pytest.raises(RLAlignError, match=r"token 54 .* knows 30"):
        policy.prompts([Example("0", "w50")])


def test_t5_scales_what_a_tied_head_reads(copied: Path, folders: Mapping[str, Path]) -> None:
    """d_model ** -0.5, which only the older T5 checkpoints (tied weights) ask for."""
    folder = folders["t5"]
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings
    policy = made(folder, Seq2SeqLM)
    scaled = policy.network.config.scale_decoder_outputs
    features = torch.randn(3, policy.width)
    with torch.no_grad():
        plain = policy.network.get_output_embeddings()(features)
        expected = plain * policy.width**-0.5 if scaled else plain
        torch.testing.assert_close(policy.head(features), expected)
    assert policy._bare_head == (not scaled)


@pytest.mark.parametrize("bias", (0.0, 1e-6))
def test_a_bias_of_the_head_counts_however_small(
    tmp_path: Path, folders: Mapping[str, Path], bias: float
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    network: Any = AutoModelForSeq2SeqLM.from_pretrained(folders["bart"])
    with torch.no_grad():
        network.final_logits_bias.zero_()[:, 7] = bias
    network.save_pretrained(shutil.copytree(folders["bart"], tmp_path / "model", dirs_exist_ok=True))
    policy = Seq2SeqLM(Seq2SeqLM.Config(path=str(tmp_path / "model")))
    policy.setup()
    assert policy._bare_head == (bias == 0)


def test_a_forced_first_token_is_given_not_chosen(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    folder = Path(shutil.copytree(folders["bart"], tmp_path / "bart"))
    edit(folder / "generation_config.json", forced_bos_token_id=7)
    policy = made(folder, Seq2SeqLM).double()
    assert policy._begin == (2, 7)
    how = Sampling(greedy=True, max_new_tokens=8)
    rollout = policy.sample([SHORT], how, torch.full((1, 1, 8), 0.5))
    (prompt,) = rollout.inputs
    found = policy.network.generate(
        input_ids=prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        max_new_tokens=9,
    )[0]
    assert found[:2].tolist() == [2, 7]
    assert found[2:].tolist() == rollout.actions_NT[0, : int(rollout.length_N[0])].tolist()
    outputs = Engine({"policy": policy}).score("policy", rollout, ["logprobs"])
    torch.testing.assert_close(outputs.logprobs_NT, rollout.logprobs_NT, atol=1e-10, rtol=0)


def test_odd_generation_settings_do_not_lose_the_model(copied: Path, tmp_path: Path) -> None:
    edit(copied / "generation_config.json", temperature=0.3, do_sample=False)
    made(copied).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_a_chosen_padding_token_is_no_reason_for_a_warning(
    policy_of: Any, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama's padding token is an action like any other, where a row begins and where it ends."""
    from transformers import PreTrainedModel

    def warn(*args: Any) -> None:
        raise AssertionError("looked for padding")

    monkeypatch.setattr(PreTrainedModel, "warn_if_padding_and_no_attention_mask", warn)
    policy = policy_of("llama")
    rollout = policy.encode(examples)
    padded = replace(rollout, actions_NT=torch.zeros_like(rollout.actions_NT))
    with torch.no_grad():
        assert policy.features(padded, last=True).isfinite().all()
        assert policy.twin().features(padded).isfinite().all()


@pytest.mark.parametrize("harm", ["missing", "renamed", "of another shape"])
def test_no_part_of_a_model_is_made_at_random(harm: str, copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = sorted(name for name, x in weights.items() if x.ndim == 2)[0]
    taken = weights.pop(name)
    if harm == "renamed":
        weights[f"{name}x"] = taken
    elif harm == "of another shape":
        weights[name] = taken[:, :-1].contiguous()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RLAlignError, match="cannot be loaded" if "shape" in harm else f"no weights for `{name}`"
    ):
        made(copied)


def test_a_pipe_in_a_model_folder_is_refused(copied: Path) -> None:
    (copied / "config.json").unlink()
    os.mkfifo(copied / "config.json")
    with pytest.raises(RLAlignError, match="is no file but a folder, a pipe or a device"):
        made(copied)


def test_a_folder_without_a_model_says_what_is_missing(folders: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RLAlignError) as caught:
        made(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is no model's folder: it is empty, and lacks config.json, weights (*.safetensors) and a "
        "tokenizer (tokenizer.json); give the folder that `save_pretrained` wrote, or the `model` folder of a run"
    )
    folder = tmp_path / "part"
    shutil.copytree(folders["gpt2"], folder)
    (folder / "config.json").unlink()
    with pytest.raises(RLAlignError, match=r"it holds .*model.safetensors.*, and lacks config.json; give"):
        made(folder)
