"""What is not exact is refused when it is loaded, and all of transformers was tried."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlalign import Example, RLAlignError, Sampling
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign_plugin_hf.positions import Positions


def _architectures() -> Any:
    spec = importlib.util.spec_from_file_location(
        "architectures", Path(__file__).with_name("architectures.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures = _architectures()
KNOWN: dict[str, Any] = json.loads(architectures.KNOWN.read_text())


def test_many_architectures_are_exact_and_nothing_is_wrong() -> None:
    outcomes = [outcome for kind in ("causal", "seq2seq") for outcome, _ in KNOWN[kind].values()]
    assert set(outcomes) == {"exact", "refused", "not built"}
    assert outcomes.count("exact") >= 140
    assert all(
        why for kind in ("causal", "seq2seq") for what, why in KNOWN[kind].values() if what == "refused"
    )


def test_padding_that_moves_positions_is_never_chosen(tmp_path: Path) -> None:
    """M2M100 counts positions by what is no padding: its own sampler goes wrong after a padding token."""
    policy = architectures.build("seq2seq", "m2m_100", tmp_path)
    policy.setup()
    assert policy.never == 0
    how = Sampling(samples=32, max_new_tokens=12)
    examples = [Example("a", "w3 w4"), Example("b", "w5 <pad> w6 w7 w8")]
    u = Seeds(0).uniforms("test", positions=range(2), samples=32, steps=12)
    rollout = policy.sample(examples, how, u)
    assert not bool((rollout.actions_NT[rollout.mask_NT] == 0).any())
    assert bool((policy.copy("frozen").head(torch.zeros(1, policy.width))[:, 0] == -torch.inf).all())
    again = Engine({"policy": policy}).score("policy", rollout, ["logprobs", "entropy"])
    torch.testing.assert_close(again.logprobs_NT, rollout.logprobs_NT, rtol=0, atol=1e-5)
    assert bool(again.entropy_NT.isfinite().all())
    for row in range(len(rollout)):
        length = int(rollout.length_N[row])
        prompt = rollout.inputs[int(rollout.group_N[row])]
        own = architectures.own_logprobs(policy, prompt, rollout.actions_NT[row, :length])
        torch.testing.assert_close(rollout.logprobs_NT[row, :length], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "model_type", "why"),
    [
        ("causal", "roberta", "token by token, beside a longer prompt, its logits differ by"),
        ("causal", "xlnet", "where trunk and head run apart, its logits differ by"),
        ("seq2seq", "switch_transformers", "where trunk and head run apart it raises AttributeError"),
        ("seq2seq", "voxtral", "has no encoder and decoder that run apart on text"),
    ],
)
def test_what_is_not_exact_is_refused_with_what_differs(
    kind: str, model_type: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(RLAlignError, match=why):
        architectures.build(kind, model_type, tmp_path).setup()


def test_rows_are_no_longer_than_sparse_attention_sees_whole(tmp_path: Path) -> None:
    policy = architectures.build("causal", "deepseek_v32", tmp_path)
    policy.setup()
    policy.model.config.index_topk = 8
    assert Positions(policy.model.config, "causal").room(3) == 5


@pytest.mark.slow
def test_every_architecture_of_transformers_is_exact_or_refused() -> None:
    """As written down, if it was written down with this version of transformers."""
    found: dict[str, dict[str, list[str]]] = {"causal": {}, "seq2seq": {}}
    for kind, model_type, what, why in architectures.examined():
        assert what in ("exact", "refused", "not built"), (kind, model_type, what, why)
        found[kind][model_type] = [what, why]
    assert sum(what == "exact" for kind in found.values() for what, _ in kind.values()) >= 50
    if KNOWN["transformers"] == transformers.__version__:
        said = {kind: {name: what for name, (what, _) in KNOWN[kind].items()} for kind in found}
        assert {kind: {name: what for name, (what, _) in of.items()} for kind, of in found.items()} == said
