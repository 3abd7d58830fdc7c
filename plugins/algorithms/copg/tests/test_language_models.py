"""What holds of the loss holds of it on language models: a random GPT-2 and a random T5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Batch, Example, Task
from rlalign.testing import Bench, ComponentTests, plain_gradient


class Worded(Task):
    """Prompts of 1 to 5 words with two to four responses of 1 to 4."""

    def examples(self, split: str) -> Sequence[Example]:
        found = []
        for g in range(5):
            prompt = " ".join(f"w{i}" for i in range(g + 1))
            texts = (f"w{g} w7 w8 w9", f"w{g + 10}", "w1 w2", "w3")[: 2 + g % 3]
            found.append(Example(str(g), prompt, texts, (1.0, -0.5, 0.25, -0.5)[: len(texts)]))
        return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    testing = pytest.importorskip("rlalign_plugin_hf.testing")
    root = tmp_path_factory.mktemp("tiny")
    return {kind: str(testing.tiny_model(root / kind, kind)) for kind in ("causal-lm", "seq2seq-lm")}


def pipeline(kind: str, path: str, responses: Any, rewards: list[Any]) -> dict[str, Any]:
    return {
        "task": "worded",
        "policy": {kind: {"path": path}},
        "responses": responses,
        "rewards": rewards,
        "generation": {"samples": 3, "max_new_tokens": 4},
        "train": {"iterations": 3, "prompts": 5, "minibatches": 2, "dtype": "float64", "lr": 0.01},
    }


@contextmanager
def exact() -> Iterator[None]:
    """T5's attention and norms would round to float32, whatever the weights are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        yield


MIX = {"mix": {"logged": 2, "sampled": 2}}


class OnLanguageModel(ComponentTests):
    """The kit's tests of a component, for a model that reads prompts."""

    component = "copg"
    options = {"beta": 0.3}
    extra = {"worded": Worded}
    kind = ""

    @pytest.fixture(autouse=True)
    def _model(self, tiny: Mapping[str, str]) -> None:
        self.pipeline = pipeline(self.kind, tiny[self.kind], MIX, ["length"])

    def check_routes(self, bench: Bench, batch: Batch) -> None:
        with exact():
            metrics, gradients = plain_gradient(bench, batch)
            cuts = (("B", 10**9, 3), ("T", 16, 3), (None, 1, 4))
            each = [bench.gradient(batch, route=r, budget=b, head_chunk=c) for r, b, c in cuts]
        size = max(float(g.abs().max()) for g in gradients.values())
        for found, grads in each:
            assert found == pytest.approx(metrics, rel=1e-9, abs=1e-9)
            for key, gradient in gradients.items():
                torch.testing.assert_close(grads[key], gradient, rtol=0, atol=1e-9 * size)


class TestDecoder(OnLanguageModel):
    kind = "causal-lm"


class TestEncoderDecoder(OnLanguageModel):
    kind = "seq2seq-lm"


@pytest.mark.parametrize("responses", ["logged", "sampled", MIX], ids=["logged", "sampled", "mix"])
@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq-lm"])
def test_it_is_rloo_on_regularised_rewards(
    kind: str, responses: Any, tiny: Mapping[str, str], tmp_path: Path
) -> None:
    """And a small step down its gradient lowers the loss."""
    rewards: list[Any] = ["logged" if responses == "logged" else "length"]
    said = pipeline(kind, tiny[kind], responses, rewards)
    copg = Bench(tmp_path / "copg", {**said, "algorithm": {"copg": {"beta": 0.3}}}, {"worded": Worded})
    said["rewards"] = [*rewards, {"kl": {"coef": 0.3}}]
    rloo = Bench(tmp_path / "rloo", {**said, "algorithm": "rloo"}, {"worded": Worded})
    found = []
    for bench in (copg, rloo):
        start = bench.learner.parameters()
        noise = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=start.dtype)
        bench.learner.assign(start + 0.1 * noise)
        with exact():
            found.append(bench.gradient(bench.batch()))
    (_, gradients), (_, expected) = found
    size = max(float(g.abs().max()) for g in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=0, atol=1e-9 * size)
    batch, down = copg.batch(), copg.learner.parameters()
    before, gradients = copg.gradient(batch)
    steep = torch.cat([gradient.flatten() for gradient in gradients.values()])
    copg.learner.assign(down - 1e-4 / size * steep)
    assert copg.gradient(batch)[0]["loss"] < before["loss"]
