"""On a GPU everything is as on a CPU: the examples run, runs agree, resume to the bit, and survive a full memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlalign.config.load import load_pipeline
from rlalign.config.pipeline import Pipeline
from rlalign.records import logs
from rlalign.running import loop
from rlalign.testing.bench import Bench, Silence, run_until
from rlalign.testing.kit import require_near

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"real", "learned-reward", "sentiment-reward", "gsm8k.yaml"}
"""Whose models and data are not in this repository."""
EXAMPLES = sorted(
    p for p in ROOT.glob("examples/**/*.yaml") if not {"runs", "gpu", *ELSEWHERE} & set(p.parts)
)
EXAMPLES.remove(ROOT / "examples/algorithms/logged.yaml")  # reads what another run left
LANGUAGE = ("toy-keywords", "algorithms/nlpo-seq2seq", "algorithms/dpo", "algorithms/trpo")
"""Examples with language models: two online, one offline, one with an update of its own."""


def shortened(pipeline: Pipeline, iterations: int) -> Pipeline:
    """Every phase with this many iterations, once."""

    def cut(train: Any) -> Any:
        return train.model_copy(update={"iterations": iterations, "passes": None})

    phases = tuple(p.model_copy(update={"train": cut(p.train)}) for p in pipeline.phases)
    return pipeline.model_copy(update={"repeat": 1, "phases": phases})


def loaded(name: str, *overrides: str, iterations: int = 3) -> Pipeline:
    return shortened(load_pipeline(ROOT / "examples" / f"{name}.yaml", overrides), iterations)


def rows(path: Path) -> list[dict[str, Any]]:
    """What a run logged, but for how long it took."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in logs.read(path / "metrics.jsonl")
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.relative_to(ROOT / "examples").as_posix())
def test_every_example_runs(path: Path, tmp_path: Path, with_example_plugins: Any) -> None:
    session = loop.start(shortened(load_pipeline(path, ["device=cuda"]), 2), root=tmp_path, display=Silence())
    session.run()
    assert {p.device.type for model in session.models.values() for p in model.parameters()} == {"cuda"}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_run_is_what_it_is_on_a_cpu(name: str, tmp_path: Path) -> None:
    """The same seed draws the same tokens and gives the same numbers, but for rounding.

    In float64, though transformers' T5 norms in float32: Adam makes as much of the smallest gradients as of large ones,
    and so a token may become another one later.
    """
    on_cpu, on_gpu = (
        rows(loop.start(loaded(name, *how), root=tmp_path / how[0], display=Silence()).run().path)
        for how in (("device=cpu", "train.dtype=float64"), ("device=cuda", "train.dtype=float64"))
    )
    assert len(on_cpu) == len(on_gpu)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        later = one["iteration"] > 1
        same = {k: v for k, v in one.items() if not later or k.startswith(("reward", "length", "eval/"))}
        require_near({k: other[k] for k in same}, same, 0.02 if later else 1e-3)


@pytest.mark.parametrize("name", LANGUAGE)
def test_stopped_and_resumed_is_never_stopped(name: str, tmp_path: Path) -> None:
    """Under `deterministic`, to the bit."""
    how = ("device=cuda", "deterministic=true", "checkpoints.every=1")
    whole = (
        loop.start(loaded(name, *how, iterations=4), root=tmp_path / "whole", display=Silence()).run().path
    )
    pipeline = loaded(name, *how, iterations=4)
    first = loop.start(pipeline, root=tmp_path / "halves", display=Silence())
    run_until(first, 2)
    again = loop.Session(pipeline, first.registry, Silence())
    again.reopen(type(first.dir).open(first.dir.path), inexact=False, previous=False)
    halves = again.run().path
    assert rows(halves) == rows(whole)
    for file in sorted((whole / "model").rglob("*.safetensors")):
        ours, theirs = load_file(halves / "model" / file.relative_to(whole / "model")), load_file(file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_full_memory_gives_the_same_gradient(tmp_path: Path) -> None:
    """What is computed at once halves until it fits, and the gradient is the same to rounding."""
    bench = Bench(
        tmp_path,
        {
            "task": {"numbers": {"size": 64, "prompts": 64, "longest": 128, "vocabulary": 1000}},
            "policy": {"logits": {"prompts": 64, "steps": 129, "hidden": 256, "vocabulary": 100_000}},
            "responses": "logged",
            "rewards": ["logged"],
            "algorithm": "policy-gradient",
            "device": "cuda",
            "train": {"iterations": 1, "prompts": 64},
        },
    )
    batch = bench.batch()
    _, expected = bench.gradient(batch)
    before = bench.engine.head_chunk
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    # Enough for the weights' gradient, and not for the logits of a whole chunk.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600 * 2**20) / total)
    try:
        _, found = bench.gradient(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert bench.engine.head_chunk < before
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
