"""Scores: google's own, transformers' on equal weights, and that nothing but the pair counts."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign_plugin_bleurt_reward import Scorer, open_checkpoint
from rlalign_plugin_bleurt_reward.model import Bleurt, Sizes
from rlalign_plugin_bleurt_reward.testing import random_weights, tiny_checkpoint
from rlalign_plugin_bleurt_reward.weights import of_official

DATA = Path(__file__).with_name("data")


def rows(kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / kind / "pairs.jsonl").read_text().splitlines()]


ROWS = rows("wordpiece")
REFERENCES, CANDIDATES = [r["reference"] for r in ROWS], [r["candidate"] for r in ROWS]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(open_checkpoint(DATA / "wordpiece"))


def worst(found: list[float], key: str, expected: list[dict[str, Any]] = ROWS) -> float:
    return max(abs(score - row[key]) for score, row in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_google_s_scores(batch_size):
    checkpoint = open_checkpoint(DATA / "wordpiece")
    found = Scorer(checkpoint, batch_size=batch_size).score(REFERENCES, CANDIDATES)
    assert worst(found, "score") < 1e-5 and worst(found, "score_length_batching") < 1e-5
    other = Scorer(checkpoint, gelu="erf", batch_size=batch_size).score(REFERENCES, CANDIDATES)
    assert worst(other, "score_erf") < 1e-5
    assert worst(other, "score") > 1e-4  # the forms are told apart


@pytest.mark.parametrize(("gelu", "key"), [("tanh", "score"), ("erf", "score_erf")])
def test_google_s_scores_with_narrow_embeddings(gelu, key):
    """From the numbers of the tokens, one pair at a time."""
    folder = DATA / "sentencepiece"
    said = json.loads((folder / "bert_config.json").read_text())
    names = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "type_vocab_size",
    ]
    sizes = Sizes(*(said[name] for name in names), said["max_position_embeddings"])
    weights = of_official(folder / "variables/variables.index", sizes)
    assert weights["encoder.embedding_projection.weight"].shape == (36, 12)
    model = Bleurt(weights, sizes, gelu)
    found = []
    for row in rows("sentencepiece"):
        ids, segments = torch.tensor([row["input_ids"]]), torch.tensor([row["segment_ids"]])
        found.append(float(model(ids, segments, torch.ones_like(ids).bool())))
    assert worst(found, key, rows("sentencepiece")) < 1e-5


@pytest.mark.parametrize("act", ["gelu_new", "gelu"])
@pytest.mark.parametrize("embedding", [24, 8])
def test_transformers_with_equal_weights(act, embedding):
    """The same graph as its classifiers of BERT and, with narrow embeddings, of RemBERT."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        RemBertConfig,
        RemBertForSequenceClassification,
    )

    sizes = Sizes(hidden=24, layers=3, heads=4, intermediate=40, vocabulary=50, types=2, positions=20)
    weights = random_weights(sizes, embedding, seed=3, scale=0.5)
    common: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
        "layer_norm_eps": 1e-12,
        "hidden_act": act,
        "num_labels": 1,
    }
    theirs: Any
    if embedding == 24:
        theirs, prefix = BertForSequenceClassification(BertConfig(**common)), "bert"
    else:
        narrow = {"input_embedding_size": 8, "output_embedding_size": 8}
        theirs, prefix = RemBertForSequenceClassification(RemBertConfig(**common, **narrow)), "rembert"
    renamed = {
        (name if name.startswith("classifier") else f"{prefix}.{name}").replace(
            "embedding_projection", "embedding_hidden_mapping_in"
        ): tensor
        for name, tensor in weights.items()
    }
    assert not any(theirs.load_state_dict(renamed, strict=False))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (6, 20), generator=generator)
    mask = torch.arange(20) < torch.tensor([20, 3, 7, 1, 19, 12])[:, None]
    segments = torch.randint(0, 2, (6, 20), generator=generator)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments).logits[
            :, 0
        ]
        found = Bleurt(weights, sizes, "tanh" if act == "gelu_new" else "erf")(ids, segments, mask)
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_golden_numbers():
    """Every weight 1/8 and every normalisation 1 and 0: what is left is arithmetic that fits on paper.

    A normalised vector of equal numbers is zero. So [CLS] is zero throughout, the pooler's output is tanh(1/8) in each
    of four units, and the score is 4 · 1/8 · tanh(1/8) + 1/8.
    """
    sizes = Sizes(hidden=4, layers=2, heads=2, intermediate=8, vocabulary=5, types=2, positions=6)
    weights = {
        name: torch.full(shape, float("LayerNorm.weight" in name) if "LayerNorm" in name else 0.125)
        for name, shape in sizes.shapes(4).items()
    }
    ids = torch.tensor([[2, 4, 3, 3]])
    found = Bleurt(weights, sizes, "tanh")(ids, torch.tensor([[0, 0, 0, 1]]), torch.ones(1, 4).bool())
    assert float(found) == pytest.approx(0.5 * 0.1243530017715962 + 0.125, abs=1e-7)


def test_neither_order_nor_company_counts(scorer):
    alone = [scorer.score([r], [c])[0] for r, c in zip(REFERENCES, CANDIDATES, strict=True)]
    order = list(range(len(ROWS)))
    random.Random(0).shuffle(order)
    shuffled = scorer.score([REFERENCES[i] for i in order], [CANDIDATES[i] for i in order])
    for place, i in enumerate(order):
        assert shuffled[place] == pytest.approx(alone[i], abs=1e-5)


def test_equal_pairs_score_the_same_to_the_bit(scorer):
    found = scorer.score(["a b", "c", "a b"] * 20, ["a", "longer than a", "a"] * 20)
    assert len(set(found)) == 2 and found[0] == found[2] and len(found) == 60


def test_the_sides_are_not_exchangeable(scorer):
    assert scorer.score(["a bird sings"], ["the dog"]) != scorer.score(["the dog"], ["a bird sings"])


def test_nothing_and_empty_texts(scorer):
    assert scorer.score([], []) == []
    found = scorer.score(["", "", "a"], ["", "a", ""])
    assert len(set(found)) == 3
    with pytest.raises(ValueError):
        scorer.score(["a"], [])


def test_threads_share_a_scorer(scorer):
    expected = scorer.score(REFERENCES, CANDIDATES)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scorer.score(REFERENCES, CANDIDATES), range(8)))
    assert all(each == pytest.approx(expected, abs=1e-6) for each in found)


def test_bfloat16_is_near(scorer):
    checkpoint = open_checkpoint(DATA / "wordpiece")
    found = Scorer(checkpoint, dtype=torch.bfloat16).score(REFERENCES, CANDIDATES)
    assert 1e-5 < worst(found, "score") < 2e-2


def test_where_memory_runs_out_fewer_pairs_are_read_at_a_time():
    scorer = Scorer(open_checkpoint(DATA / "wordpiece"))
    whole, most, asked = scorer.model, 5, []

    def small(*given: torch.Tensor) -> torch.Tensor:
        asked.append(len(given[0]))
        if len(given[0]) > most:
            raise torch.OutOfMemoryError
        return whole(*given)

    scorer.model = small  # type: ignore[assignment]
    assert worst(scorer.score(REFERENCES, CANDIDATES), "score") < 1e-5
    assert asked[:4] == [30, 15, 7, 3] and max(asked[4:]) == 3
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(REFERENCES, CANDIDATES)


def test_no_gradient_and_no_autocast(scorer):
    expected = scorer.score(REFERENCES, CANDIDATES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.score(REFERENCES, CANDIDATES) == expected
    assert not any(x.requires_grad for x in scorer.model.weights.values())


def test_a_shorter_length_cuts(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "tiny", max_length=64))
    long, short = Scorer(checkpoint), Scorer(checkpoint, max_length=7)
    assert long.score(["abc"], ["abcdef"]) != short.score(["abc"], ["abcdef"])
    assert short.score(["abc"], ["abcdef"]) == short.score(["ab"], ["ab"])  # four places for both


@pytest.mark.gpu
def test_on_an_accelerator():
    checkpoint = open_checkpoint(DATA / "wordpiece")
    found = Scorer(checkpoint, device="cuda").score(REFERENCES, CANDIDATES)
    assert worst(found, "score") < 1e-4
    assert replace(checkpoint, name="x").digest == checkpoint.digest
