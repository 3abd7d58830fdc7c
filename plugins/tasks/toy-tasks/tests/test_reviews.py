"""toy-reviews: what a text is worth, and that examples are what they are said to be."""

from __future__ import annotations

import pytest

from rlalign import ComponentError
from rlalign.testing import Bench, ComponentTests, TaskTests, run
from rlalign_plugin_toy_tasks import ToyReviews, sentiment
from rlalign_plugin_toy_tasks.reviews import NEGATIVE, POSITIVE, REVIEWS
from rlalign_plugin_toy_tasks.texts import distinct

TABLE = {"table": {"actions": [*REVIEWS.words, "end"], "end": "end", "steps": 9, "state": "previous"}}
WORLD = {"task": {"toy-reviews": {"size": 8, "held_out": 8, "references": 1}}, "policy": TABLE}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", 0.0),
        ("we saw the film .", 0.0),
        ("great", 1 / 1.5),
        ("awful", -1 / 1.5),
        ("great and awful", 0.0),
        ("not dull", 1 / 1.5),
        ("not very dull", 1 / 1.5),
        ("not very really great", -1 / 1.5),
        ("not dull and boring", 0.0),  # it turns the next word only
        ("not the great", 1 / 1.5),  # and only across words of degree
        ("not not great", -1 / 1.5),
        ("i never loved it . it was clever and fresh", 1 / 3.5),
        ("we would not avoid it", 1 / 1.5),
        ("great " * 31, 31 / 31.5),
    ],
)
def test_sentiment(text, expected):
    assert sentiment(text) == pytest.approx(expected)


def test_given_words_are_read_and_not_counted():
    assert sentiment("we hated the plot", given=3) == 0.0
    assert sentiment("the plot was not dull", given=4) == sentiment("not dull")


def test_the_lexicon_is_even_and_known():
    assert len(POSITIVE) == len(NEGATIVE)
    assert set(REVIEWS.words) > POSITIVE | NEGATIVE


def test_examples():
    task = ToyReviews(ToyReviews.Config(size=64, held_out=32, responses=3, references=2))
    train, val, test = (task.examples(split) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [64, 32, 32]
    again = task.examples("train")
    assert [(e.prompt, e.responses) for e in train] == [(e.prompt, e.responses) for e in again]
    for example in train:
        assert len(str(example.prompt).split()) == 3
        assert (len(example.responses), len(example.meta["references"])) == (3, 2)
        for response, score in zip(example.responses, example.scores, strict=True):
            assert REVIEWS.accepts(f"{example.prompt} {response}")
            assert score == sentiment(f"{example.prompt} {response}", 3)
        assert all(REVIEWS.accepts(f"{example.prompt} {r}") for r in example.meta["references"])
    assert [e.prompt for e in val] != [e.prompt for e in test]
    assert [e.responses for e in val] != [e.responses for e in train[:32]]
    other = ToyReviews(ToyReviews.Config(size=64, seed=1)).examples("train")
    assert [e.prompt for e in other] != [e.prompt for e in train]
    assert task.fingerprint("train") != task.fingerprint("val")


def test_the_language_is_as_large_as_said():
    examples = ToyReviews(ToyReviews.Config(size=2000)).examples("train")
    texts = [f"{e.prompt} {r}".split() for e in examples for r in e.responses]
    assert len(REVIEWS.words) == 96
    assert REVIEWS.lengths["REVIEW"][1] <= 31  # and an end: 32 tokens
    assert 12 < sum(map(len, texts)) / len(texts) < 16
    assert len({" ".join(t) for t in texts}) > 0.95 * len(texts)
    scores = [s for e in examples for s in e.scores]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    "texts, expected", [((), 0.0), (("a",), 0.0), (("a b c", "a b"), 2 / 3), (("a b", "c d"), 1.0)]
)
def test_distinct(texts, expected):
    assert distinct(texts, 2) == pytest.approx(expected)


class TestSentiment(ComponentTests):
    component = "toy-sentiment"
    pipeline = {**WORLD, "rewards": ["length", "toy-sentiment"]}


class TestGrammar(ComponentTests):
    component = "toy-grammar"
    pipeline = {**WORLD, "rewards": ["length", "toy-grammar"]}


def test_rewards_read_prompt_and_response(tmp_path):
    """Logged texts are grammatical and earn the scores they are stored with."""
    pipeline = {
        **WORLD,
        "policy": {"table": {**TABLE["table"], "steps": 32}},
        "rewards": ["toy-sentiment", "toy-grammar", "logged"],
        "algorithm": "reinforce",
        "responses": "logged",
        "train": {"iterations": 1, "prompts": 8},
    }
    _, reward = Bench(tmp_path, pipeline).rollout()
    assert reward.parts["toy-grammar"].eq(1).all()
    assert reward.parts["toy-sentiment"].tolist() == pytest.approx(reward.parts["logged"].tolist())


def test_metrics_of_the_task(tmp_path):
    pipeline = {
        **WORLD,
        "rewards": ["toy-sentiment"],
        "algorithm": "rloo",
        "generation": {"samples": 2, "max_new_tokens": 9},
        "train": {"iterations": 1, "prompts": 2},
        "evaluate": {"use": ["toy-grammar"]},
    }
    finished, _ = run(tmp_path, pipeline)
    for name in ("toy-grammar", "toy-reviews/distinct-2", "toy-reviews/distinct", "finished"):
        assert 0 <= finished.metrics[f"eval/{name}"] <= 1


def test_grammar_says_which_tasks_it_goes_with(tmp_path):
    with pytest.raises(ComponentError, match="goes with `task: toy-reviews`, `task: toy-keywords`, "):
        run(
            tmp_path,
            {
                "task": "toy-numbers",
                "policy": {"table": {"actions": 3}},
                "rewards": ["toy-grammar"],
                "algorithm": "rloo",
                "generation": {"samples": 2},
                "train": {"iterations": 1},
            },
        )


class TestToyReviews(TaskTests):
    component = "toy-reviews"
    options = {"size": 40, "held_out": 20}
    shared = ("prompts",)  # beginnings of four words are few
    any_split = True
    other_options = {"seed": 1}
