"""A model of half precision is trained in float32 and comes back in half precision, rounded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import rlalign
from rlalign.testing import run
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign_plugin_hf import CausalLM
from rlalign_plugin_hf.adapter import merged
from rlalign_plugin_hf.precision import half_of

Pipeline = Callable[..., dict[str, Any]]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def auto(family: str) -> Any:
    return AutoModelForCausalLM if family in ("gpt2", "llama") else AutoModelForSeq2SeqLM


@pytest.fixture
def halved(folders: Mapping[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """halved("gpt2", "bfloat16"): that family's folder in this precision."""

    def make(family: str, dtype: str, **how: Any) -> Path:
        from transformers import AutoTokenizer

        folder = tmp_path / f"{family}-{dtype}"
        auto(family).from_pretrained(folders[family]).to(DTYPES[dtype]).save_pretrained(folder, **how)
        AutoTokenizer.from_pretrained(folders[family]).save_pretrained(folder)
        return folder

    return make


def pretrained(folder: Path) -> Any:
    options = CausalLM.Config.model_validate_json(json.dumps({"path": str(folder)}))
    policy = CausalLM(options)
    policy.setup()
    return policy


@pytest.mark.parametrize("lora", ({}, {"lora": {"r": 3}}), ids=("full", "lora"))
@pytest.mark.parametrize("family, dtype", [("gpt2", "bfloat16"), ("llama", "float16"), ("t5", "bfloat16")])
def test_a_model_comes_back_in_the_precision_it_came_in(
    tmp_path: Path,
    pipeline_of: Pipeline,
    components: Any,
    halved: Callable[..., Path],
    family: str,
    dtype: str,
    lora: Any,
) -> None:
    pipeline = pipeline_of(family, {"path": str(halved(family, dtype)), **lora})
    pipeline["train"] = {**pipeline["train"], "lr": 1e-2}
    finished, done = run(tmp_path, pipeline, components)
    network: Any = done.models.policy.network  # type: ignore[attr-defined]
    assert {p.dtype for p in done.models.policy.parameters()} == {torch.float32}
    expected = (merged(network) if lora else network).state_dict()
    exported = tmp_path / "exported"
    opened = rlalign.open(finished.path, components=components, trust=True)
    opened.export(tmp_path / "float32", float32=True)
    for name, weight in auto(family).from_pretrained(tmp_path / "float32").state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, expected[name])
    opened.export(exported)
    for folder in (finished.path / "model", exported):
        plain = auto(family).from_pretrained(folder)
        assert plain.dtype == DTYPES[dtype]
        found = plain.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(found[name].dtype)), name
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {DTYPES[dtype]}
        card = (folder / "README.md").read_text()
        assert f"The weights are {dtype}, as those of the base model are." in card
        assert ("The adapters are in float32" if lora else "They are in float32") in card
    assert any((expected[name].to(DTYPES[dtype]).float() != expected[name]).any() for name in expected)


@pytest.mark.parametrize("lora", ({}, {"lora": {"r": 3}}), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "llama", "t5", "bart"))
def test_weights_in_half_precision(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, family: str, lora: Any
) -> None:
    """With a reference and a value: exact resuming, and the folder holds what the run sampled from."""
    pipeline = pipeline_of(family, lora, algorithm="ppo", rewards=["evens", {"kl": {"coef": 0.1}}])
    pipeline["models"] = {"value": {"value-head": {"trunk": "own"}}}
    pipeline["train"] = {**pipeline["train"], "lr": 1e-3, "dtype": "bfloat16", "weights": "bfloat16"}
    finished, whole = run(tmp_path, pipeline, components, name="whole")
    assert {p.dtype for model in whole.models.values() for p in model.parameters()} == {torch.bfloat16}
    assert finished.metrics["sampler/gap"] < 0.1 and finished.metrics["grad_norm"] > 0
    resumed = stopped_and_resumed(tmp_path, pipeline, components)
    assert logged(whole.dir.path) == logged(resumed.dir.path)
    for name, model in whole.models.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, resumed.models[name].state_dict()[key]), f"{name}/{key}"
    network: Any = whole.models.policy.network  # type: ignore[attr-defined]
    expected = (merged(network) if lora else network).state_dict()
    plain = auto(family).from_pretrained(finished.path / "model")
    assert plain.dtype == torch.bfloat16
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in expected.items())
    assert "The weights are bfloat16, as the run held them" in (finished.path / "model/README.md").read_text()
    opened = rlalign.open(finished.path, components=components, trust=True)
    opened.export(tmp_path / "float32", float32=True)
    assert auto(family).from_pretrained(tmp_path / "float32").dtype == torch.float32


def test_what_is_float32_stays_as_it_was(
    tmp_path: Path, pipeline_of: Pipeline, components: Any, halved: Callable[..., Path]
) -> None:
    """Also random weights in the shape of a model of half precision."""
    for path, how in (("gpt2", {}), ("gpt2", {"path": str(halved("gpt2", "bfloat16")), "init": "random"})):
        finished, done = run(tmp_path, pipeline_of(path, how), components, name=str(len(how)))
        found = load_file(finished.path / "model" / "model.safetensors")
        assert {t.dtype for t in found.values()} == {torch.float32}
        own = done.models.policy.network.state_dict()  # type: ignore[attr-defined]
        assert all(torch.equal(own[name], tensor) for name, tensor in found.items())
        assert "rounded" not in (finished.path / "model/README.md").read_text()


def test_saving_leaves_the_model_as_it_was(halved: Callable[..., Path], tmp_path: Path) -> None:
    policy = pretrained(halved("gpt2", "bfloat16"))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(1e-4)
    before = {name: (t.data_ptr(), t.clone()) for name, t in policy.state_dict().items()}
    policy.save(tmp_path / "saved")
    for name, tensor in policy.state_dict().items():
        place, value = before[name]
        assert tensor.data_ptr() == place and torch.equal(tensor, value), name
    assert policy.network.lm_head.weight is policy.network.get_input_embeddings().weight


def test_shards_and_what_a_config_says_wrongly(halved: Callable[..., Path]) -> None:
    folder = halved("gpt2", "bfloat16", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    found = half_of(str(folder))
    assert found is not None and found.dtype == torch.bfloat16 and not found.full


def test_a_part_that_was_float32_stays_so(halved: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = halved("llama", "bfloat16")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained(folder).save(tmp_path / "saved")
    again = load_file(tmp_path / "saved/model.safetensors")
    assert {name: t.dtype for name, t in again.items()} == {name: t.dtype for name, t in weights.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_what_float16_cannot_hold_is_written_in_float32(halved: Callable[..., Path], tmp_path: Path) -> None:
    policy = pretrained(halved("gpt2", "float16"))
    with torch.no_grad():
        policy.network.get_input_embeddings().weight[0, 0] = 70_000
    assert "too large for float16" in policy.save(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert plain.dtype == torch.float32 and plain.get_input_embeddings().weight[0, 0] == 70_000


@pytest.mark.slow
@pytest.mark.parametrize("shards", (False, True))
def test_a_model_of_the_hub_as_its_cache_holds_it(
    halved: Callable[..., Path], tmp_path: Path, shards: bool
) -> None:
    """There files are links, and a model of several has no single one."""
    model = tmp_path / "cache/models--org--tiny"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0" * 40)
    (model / "blobs").mkdir()
    folder = halved("gpt2", "bfloat16", **({"max_shard_size": "20KB"} if shards else {}))
    for file in folder.iterdir():
        file.rename(model / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    code = (
        "import sys, torch\n"
        "from rlalign_plugin_hf import CausalLM\n"
        'policy = CausalLM(CausalLM.Config.model_validate_json(\'{"path": "org/tiny"}\'))\n'
        "policy.setup()\n"
        "assert policy.base == 'org/tiny' and policy._half.dtype == torch.bfloat16\n"
        "policy.save(__import__('pathlib').Path(sys.argv[1]))\n"
    )
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "saved").mkdir()
    subprocess.run([sys.executable, "-c", code, tmp_path / "saved"], env=env, check=True)
    assert {t.dtype for t in load_file(tmp_path / "saved/model.safetensors").values()} == {torch.bfloat16}


def _as_saved(policy: Any, folder: Path) -> None:
    """What it says that it saves is what it saves: names, precisions, bits."""
    policy.save(folder)
    files = {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}
    said = policy.saved_tensors()
    assert set(said) == set(files)
    for name, (tensor, dtype) in said.items():
        assert dtype == files[name].dtype and torch.equal(tensor.to(dtype), files[name]), name
    assert all(not tensor.requires_grad for tensor, _ in said.values())


@pytest.mark.parametrize("family, dtype", [("gpt2", None), ("llama", None), ("gpt2", "bfloat16")])
def test_the_tensors_that_are_saved_are_known_without_files(
    folders: Mapping[str, Path], halved: Callable[..., Path], tmp_path: Path, family: str, dtype: str | None
) -> None:
    """gpt2's head is its embedding, which is saved once."""
    policy = pretrained(folders[family] if dtype is None else halved(family, dtype))
    _as_saved(policy, tmp_path / "saved")
    with torch.no_grad():
        next(policy.parameters())[1, 0] = 3.4e38  # no half precision holds it
    _as_saved(policy, tmp_path / "large")


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_experts_are_saved_one_by_one_as_their_files_have_them(architecture: str, tmp_path: Path) -> None:
    from .test_architectures import architectures

    policy = architectures.build("causal", architecture, tmp_path)
    policy.setup()
    _as_saved(policy, tmp_path / "saved")
    assert any(".experts.1." in name for name in policy.saved_tensors())
