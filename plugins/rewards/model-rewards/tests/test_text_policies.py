"""A classifier and a reward model as policies: their contract, and that transformers reads what they write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlalign import ConfigError, Example, Policy, RLAlignError, Sampling
from rlalign.learning.forward import Forward
from rlalign_plugin_model_rewards.classifier_policy import ClassifierPolicy
from rlalign_plugin_model_rewards.scorer_policy import OwnScore, ScorerPolicy

from .small_models import TEMPLATE, folder

KINDS = ("bert", "roberta", "gpt2")
TEXTS = ("w1", "good w2 w3 w4 w5", "w6 bad", "w7 w8 w9 w10 great w11 w12 w13")


def classifier(kind: str = "bert", **options: Any) -> ClassifierPolicy:
    policy = ClassifierPolicy(
        ClassifierPolicy.Config(path=folder(kind), **{"labels": ("neg", "pos", "none"), **options})
    )
    policy.setup()
    return policy


def scorer(kind: str = "bert", template: str | None = None, **options: Any) -> ScorerPolicy:
    policy = ScorerPolicy(ScorerPolicy.Config(path=folder(kind, template), **options))
    policy.setup()
    return policy


def texts() -> list[Example]:
    return [Example(id=str(i), prompt=text, responses=("pos", "neg")) for i, text in enumerate(TEXTS)]


def candidates() -> list[Example]:
    answers = [("good w1",), ("bad", "great w2 w3"), ("w5 w6", "w7", "w8 good")]
    return [
        Example(id=str(i), prompt=text, responses=found, scores=tuple(map(float, range(len(found)))))
        for i, (text, found) in enumerate(zip(TEXTS, answers, strict=False))
    ]


def score(policy: Policy, examples: list[Example], want: list[str]) -> Any:
    models = {"policy": policy, "value": policy.copy("value")}
    return Forward(models).score("value" if "values" in want else "policy", policy.encode(examples), want)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", ["all", "head"])
def test_logprobs_are_those_of_transformers(kind: str, train: str, tmp_path: Path) -> None:
    policy = classifier(kind, train=train)
    found = score(policy, texts(), ["full_logprobs"]).full_logprobs_NT[:, 0].reshape(-1, 2)
    policy.save(tmp_path)
    network: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert network.config.id2label == {0: "neg", 1: "pos", 2: "none"}
    for row, text in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            expected = network(**tokenizer(text, return_tensors="pt")).logits[0].log_softmax(0)
        torch.testing.assert_close(row, expected[[1, 0]], atol=1e-5, rtol=0)


def test_a_saved_classifier_is_taken_up_with_its_labels(tmp_path: Path) -> None:
    policy = classifier()
    policy.save(tmp_path)
    again = ClassifierPolicy(ClassifierPolicy.Config(path=tmp_path))
    again.setup()
    assert again.labels == ("neg", "pos", "none")
    torch.testing.assert_close(
        *[score(p, texts(), ["full_logprobs"]).full_logprobs_NT for p in (policy, again)]
    )
    with pytest.raises(ConfigError, match="knows the labels neg, pos, none"):
        ClassifierPolicy(ClassifierPolicy.Config(path=tmp_path, labels=("no", "yes"))).open()


def test_labels_are_needed_and_known() -> None:
    with pytest.raises(ConfigError, match="name them"):
        ClassifierPolicy(ClassifierPolicy.Config(path=folder("bert"))).open()
    with pytest.raises(ConfigError, match="'perhaps' is none of the labels"):
        classifier().refuse([Example(id="a", prompt="w1", responses=("perhaps",))], ("logged",))
    with pytest.raises(ValueError, match="named twice"):
        ClassifierPolicy.Config(path=folder("bert"), labels=("a", "a"))


def test_a_response_is_one_label_drawn_by_its_probability() -> None:
    policy, count = classifier(), 4000
    uniforms = torch.rand(1, count, 8, generator=torch.Generator().manual_seed(0))
    rollout = policy.sample(texts()[:1], Sampling(samples=count, max_new_tokens=8), uniforms)
    assert bool(rollout.finished_N.all()) and rollout.steps == 1
    three = Example(id="a", prompt=TEXTS[0], responses=policy.labels)
    probs = score(policy, [three], ["full_logprobs"]).full_logprobs_NT[:, 0].exp()
    for label, prob in zip(policy.labels, probs.tolist(), strict=True):
        assert rollout.texts.count(label) / count == pytest.approx(prob, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_whatever_stands_beside_it(kind: str) -> None:
    policy = classifier(kind)
    together = policy.features(policy.encode(texts()))
    alone = torch.cat([policy.features(policy.encode([example])) for example in texts()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_frozen_trunk_has_no_gradient_and_only_the_head_is_kept() -> None:
    policy = classifier(train="head")
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == {
        "network.classifier.weight",
        "network.classifier.bias",
    }
    rollout = policy.encode(texts())
    first, again = policy.features(rollout), policy.features(rollout)
    assert torch.equal(first, again) and not first.requires_grad
    kept = set(policy.state_dict()) - set(policy.ephemeral)
    assert kept == {"network.classifier.weight", "network.classifier.bias", "frozen"}
    twin = policy.copy("frozen")
    assert isinstance(twin, Policy)
    torch.testing.assert_close(twin.features(rollout), first)


def test_remembered_states_are_forgotten_with_the_weights() -> None:
    policy, other = classifier(train="head"), classifier(train="head")
    rollout = policy.encode(texts())
    before = policy.features(rollout)
    with torch.no_grad():
        other.network.bert.embeddings.word_embeddings.weight.mul_(2)
    policy.load_state_dict(other.state_dict())
    assert not torch.equal(policy.features(rollout), before)
    assert policy.double().features(rollout).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    policy = scorer(kind, reads="joined" if kind == "gpt2" else "pair", separator=" ")
    values = score(policy, candidates(), ["values"]).values_NT[:, 0]
    policy.save(tmp_path)
    network: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert network.config.num_labels == 1
    expected = []
    for example in candidates():
        for response in example.responses:
            read = (f"{example.prompt} {response}",) if kind == "gpt2" else (example.prompt, response)
            with torch.no_grad():
                expected.append(network(**tokenizer(*read, return_tensors="pt")).logits[0, 0])
    torch.testing.assert_close(values, torch.stack(expected), atol=1e-5, rtol=0)


def test_log_probs_differ_as_scores_do() -> None:
    policy = scorer()
    logprobs = score(policy, candidates(), ["full_logprobs"]).full_logprobs_NT[:, 0]
    values = score(policy, candidates(), ["values"]).values_NT[:, 0]
    assert logprobs[0] == 0  # alone
    torch.testing.assert_close(logprobs[1] - logprobs[2], values[1] - values[2])
    assert float(logprobs[3:].exp().sum()) == pytest.approx(1)


def test_it_chooses_among_the_responses_of_an_example() -> None:
    policy = scorer()
    uniforms = torch.rand(3, 1, 4, generator=torch.Generator().manual_seed(0))
    rollout = policy.sample(candidates(), Sampling(greedy=True, max_new_tokens=4), uniforms)
    value = policy.copy("value")
    assert isinstance(value, OwnScore)
    values = score(policy, candidates(), ["values"]).values_NT[:, 0]
    best = [
        candidates()[1].responses[int(values[1:3].argmax())],
        candidates()[2].responses[int(values[3:].argmax())],
    ]
    assert rollout.texts == ("good w1", *best)
    assert bool(rollout.finished_N.all())


def test_a_chat_is_read_by_its_template() -> None:
    policy = scorer("bert", TEMPLATE)
    (rows,) = policy.prompts([Example(id="a", prompt="w1", responses=("good",))])
    words = policy.tokenizer.convert_ids_to_tokens(rows[0, 0].tolist())
    assert words == ["<unk>", "w1", "<unk>", "good"]  # user …, assistant …


def test_examples_without_responses_are_refused() -> None:
    assert list(scorer().refuse([Example(id="a", prompt="w1")])) == [0]


def test_a_network_with_labels_is_no_reward_model(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    with pytest.raises(ConfigError, match="has 3 labels"):
        ScorerPolicy(ScorerPolicy.Config(path=tmp_path)).open()


def test_there_must_be_a_folder() -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        ScorerPolicy.Config(path="./nowhere")


def test_one_step_only() -> None:
    policy = scorer()
    decoder = policy.decoder(policy.prompts(candidates()), 1)
    assert math.isinf(float(decoder.logits()[0, 2].detach()))
    with pytest.raises(RLAlignError):
        decoder.advance(torch.zeros(3, dtype=torch.long))
