"""A beam search ends responses where sampling would: at stop strings, and at limits that count what is chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import Example, Rollout, Sampling
from rlalign_plugin_hf import Seq2SeqLM

FAMILIES = ("gpt2", "llama", "t5", "bart", "bert2bert")
TWO_DIGITS = {f"w{i}" for i in range(10, 60)}
"""Words that are no part of others."""
MakePolicy = Callable[..., Any]


def sampled(policy: Any, examples: Sequence[Example], how: Sampling) -> Rollout:
    rollout: Rollout = policy.sample(
        examples, how, torch.rand(len(examples), how.samples, how.max_new_tokens)
    )
    assert rollout.flaw() is None
    return rollout


def responses(rollout: Rollout) -> list[list[int]]:
    return [
        row[:length]
        for row, length in zip(rollout.actions_NT.tolist(), rollout.length_N.tolist(), strict=True)
    ]


@pytest.mark.parametrize("least", (0, 4))
@pytest.mark.parametrize("family", FAMILIES)
def test_responses_end_with_the_first_stop_string(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str, least: int
) -> None:
    policy = exact_policy_of(family)
    how = Sampling(samples=2, beams=3, max_new_tokens=10, min_new_tokens=least)
    freely = " ".join(sampled(policy, examples, how).texts).split()
    how = how.model_copy(update={"stop": (max(freely, key=freely.count), "3 w1")})
    rollout = sampled(policy, examples, how)
    stopped = 0
    for row, tokens in enumerate(responses(rollout)):
        holds = [
            any(stop in policy.text(torch.tensor(tokens[:n])) for stop in how.stop)
            for n in range(max(1, least), len(tokens) + 1)
        ]
        assert not any(holds[:-1])
        ended = tokens[-1] in policy.ends or bool(holds and holds[-1])
        assert bool(rollout.finished_N[row]) == ended
        assert ended or len(tokens) == how.max_new_tokens
        assert not any(stop in rollout.texts[row] for stop in how.stop)
        assert policy.text(torch.tensor(tokens)).startswith(rollout.texts[row])
        stopped += bool(holds and holds[-1])
    assert stopped


@pytest.mark.parametrize("family", FAMILIES)
def test_to_the_search_a_stop_string_is_an_end(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str
) -> None:
    """It finds what it finds if the same word is a token that ends responses."""
    policy, how = exact_policy_of(family), Sampling(samples=2, beams=4, max_new_tokens=10)
    found = responses(sampled(policy, examples, how))
    words = [t for tokens in found for t in tokens if t not in policy.ends]
    word = max((t for t in words if policy.text(torch.tensor([t])) in TWO_DIGITS), key=words.count)
    stop = policy.text(torch.tensor([word]))
    rollout = sampled(policy, examples, how.model_copy(update={"stop": (stop,)}))
    policy.ends = (*policy.ends, word)
    expected = sampled(policy, examples, how)
    assert responses(rollout) == responses(expected) != found
    assert rollout.finished_N.tolist() == expected.finished_N.tolist()


PENALTIES = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "forced_eos_token_id": 2,
    "bad_words_ids": [[5], [6], [7], [8], [9]],
    "stop_strings": ["w3"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_s_own_file_adds_no_penalties(
    exact_policy_of: MakePolicy, examples: Sequence[Example], family: str
) -> None:
    """It may say any: neither sampling nor scoring knows them."""
    policy, how = exact_policy_of(family), Sampling(samples=2, beams=4, max_new_tokens=8)
    found = sampled(policy, examples, how)
    own = policy.network.generation_config
    own.update(**PENALTIES)
    again = sampled(policy, examples, how)
    assert responses(again) == responses(found) and again.finished_N.tolist() == found.finished_N.tolist()
    assert policy.network.generation_config is own and own.repetition_penalty == 5.0


@pytest.fixture
def forced(folders: Mapping[str, Path], tmp_path: Path) -> Any:
    """A BART whose first token is forced, and that would end at once."""
    folder = Path(shutil.copytree(folders["bart"], tmp_path / "model"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "forced_bos_token_id": 9}))
    policy = Seq2SeqLM(Seq2SeqLM.Config(path=str(folder)))
    policy.setup()
    with torch.no_grad():
        policy.network.final_logits_bias[:, list(policy.ends)] += 50.0
    return policy


@pytest.mark.parametrize(("least", "most"), ((0, 1), (0, 6), (3, 6), (6, 6)))
def test_a_forced_first_token_counts_as_given(
    forced: Any, examples: Sequence[Example], least: int, most: int
) -> None:
    """Beams are as long as greedy responses; each of these ends as soon as it may."""
    how = Sampling(max_new_tokens=most, min_new_tokens=least)
    greedily = sampled(forced, examples, how.model_copy(update={"greedy": True}))
    searched = sampled(forced, examples, how.model_copy(update={"beams": 3}))
    assert set(greedily.length_N.tolist()) == {min(least + 1, most)}
    assert searched.length_N.tolist() == greedily.length_N.tolist()
    assert 9 not in searched.actions_NT[:, 0].tolist()
