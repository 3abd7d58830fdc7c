"""`sft` and `references`: by hand, on a table, and by the tests every component must pass."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rlalign import (
    Batch,
    ComponentError,
    ConfigError,
    Example,
    Options,
    Outputs,
    Reward,
    Rollout,
    Sampling,
    Task,
)
from rlalign.testing import Bench, ComponentTests, run
from rlalign_plugin_imitation import SFT, References, joined, references_of


class Demonstrations(Task):
    """Four prompts; the answer to `p` is `a b`, to `q` it is `b`, with more than one way to say it."""

    class Config(Options):
        """Options of `demonstrations`."""

        logged: bool = Field(True, description="as logged responses, else as references")
        scores: bool = Field(False, description="with scores")
        cut: bool = Field(False, description="the responses were cut, not finished")

    config: Config

    def examples(self, split: str) -> list[Example]:
        c = self.config
        texts = {"p": ("a b",), "q": ("b", "b a")}
        return [
            Example(
                id=f"{split}-{i}-{prompt}",
                prompt=prompt,
                responses=texts[prompt] if c.logged else (),
                scores=(1.0, 0.0)[: len(texts[prompt])] if c.logged and c.scores else (),
                finished=(False,) * len(texts[prompt]) if c.logged and c.cut else (),
                meta={} if c.logged else {"references": list(texts[prompt])},
            )
            for i in range(2)
            for prompt in texts
        ]


COMPONENTS: dict[str, type[Any]] = {"demonstrations": Demonstrations}
TABLE = {
    "table": {"actions": ["a", "b", "end"], "end": "end", "steps": 3, "state": "step", "prompts": ["p", "q"]}
}


def pipeline(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "task": {"demonstrations": {}},
        "policy": TABLE,
        "algorithm": "sft",
        "train": {"passes": 1, "prompts": 4, "lr": 0.1, "dtype": "float64"},
        "generation": {"max_new_tokens": 3},
    }
    return {**base, **changes}


def batch(mask: list[list[int]], advantage: list[float]) -> Batch:
    """Rows with the given chosen steps, each a group of its own."""
    mask_NT = torch.tensor(mask, dtype=torch.bool)
    n = len(mask)
    rollout = Rollout(
        examples=tuple(Example(str(i), "") for i in range(n)),
        inputs=(torch.zeros(1),) * n,
        group_N=torch.arange(n),
        actions_NT=torch.zeros_like(mask_NT, dtype=torch.long),
        mask_NT=mask_NT,
        finished_N=torch.ones(n, dtype=torch.bool),
        settings=(Sampling(),),
        setting_N=torch.zeros(n, dtype=torch.long),
        logprobs_NT=torch.zeros(mask_NT.shape),
        full_logprobs_NT=torch.zeros(mask_NT.shape),
        texts=("",) * n,
    )
    return Batch.of(rollout, Reward(torch.zeros(mask_NT.shape), {}), torch.tensor(advantage))


# -- the formula ------------------------------------------------------------------------------------------

LOGPROBS = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -5.0, -6.0]])
MASK = [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1 + 2 + 4 + 5 + 6) / 5),
        ({"mean": "responses"}, (3 / 2 + 15 / 3) / 2),
        ({"mean": "sums"}, (3 + 15) / 2),
    ],
)
def test_loss_by_hand(options, expected):
    sft = SFT(SFT.Config(**options))
    loss = sft.loss(
        batch=batch(MASK, [2.0, -1.0]), now=Outputs(logprobs_NT=LOGPROBS.clone().requires_grad_())
    )
    assert float(loss.value.detach()) == pytest.approx(expected)
    assert float(loss.metrics["nll"]) == pytest.approx(18 / 5)
    assert not loss.metrics["nll"].requires_grad


def test_given_steps_are_no_part_of_the_loss():
    """A step inside the length that the policy did not choose (mask 0) is not imitated."""
    sft = SFT(SFT.Config(mean="responses"))
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = sft.loss(batch=batch([[1, 0, 1], [0, 1, 1]], [1.0, 1.0]), now=Outputs(logprobs_NT=logprobs))
    assert float(loss.value.detach()) == pytest.approx(((1 + 9) / 2 + (5 + 6) / 2) / 2)
    loss.value.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 1] == 0 and logprobs.grad[1, 0] == 0


# -- on a table -------------------------------------------------------------------------------------------


def test_maximum_likelihood_of_a_table(tmp_path):
    """π(token | prompt, step) tends to the counts in the data, the end among them; nothing needs scores."""
    changes = {
        "train": {"iterations": 300, "prompts": 4, "lr": 0.2, "schedule": {"shape": "cosine"}},
        "checkpoints": {"every": 1000},
    }
    _, session = run(tmp_path, pipeline(**changes), COMPONENTS)
    table = session.models.policy.table.detach().softmax(1).view(2, 4, 3)
    # Rows of the table: prompt, step; columns: a, b, end.
    torch.testing.assert_close(table[0, 0], torch.tensor([1.0, 0, 0]), atol=0.01, rtol=0)
    torch.testing.assert_close(table[0, 1], torch.tensor([0, 1.0, 0]), atol=0.01, rtol=0)
    torch.testing.assert_close(table[0, 2], torch.tensor([0, 0, 1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(table[1, 0], torch.tensor([0, 1.0, 0]), atol=0.01, rtol=0)
    torch.testing.assert_close(table[1, 1], torch.tensor([0.5, 0, 0.5]), atol=0.01, rtol=0)


def test_the_end_is_learned_of_finished_responses_only(tmp_path):
    for cut in (False, True):
        bench = Bench(tmp_path, pipeline(task={"demonstrations": {"cut": cut}}), COMPONENTS)
        rollout, _ = bench.rollout()
        ends = (rollout.actions_NT == 2) & rollout.mask_NT
        assert ends.sum(1).tolist() == [0 if cut else 1] * len(rollout)
        _, gradients = bench.gradient(bench.batch())
        assert bool((gradients["policy/table"][:, 2] < 0).any()) is not cut


def test_one_update_moves_along_the_mean_of_tokens(tmp_path):
    """The gradient by hand: over 2·(3 + 2 + 3) tokens, of a uniform table, (1/3 − 1[y])."""
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    metrics, gradients = bench.gradient(bench.batch())
    assert metrics["loss"] == pytest.approx(math.log(3))
    assert metrics["sft/nll"] == pytest.approx(math.log(3))
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    for prompt, text in ((0, "abe"), (1, "be"), (1, "bae")):
        for step, token in enumerate(text):
            expected[prompt, step] += 1 / 3
            expected[prompt, step, "abe".index(token)] -= 1
    torch.testing.assert_close(gradients["policy/table"].view(2, 4, 3), 2 * expected / 16)


def test_best_of_reads_stored_scores(tmp_path):
    """A wrapper that reads rewards makes stored scores the reward: of `b` (1) and `b a` (0) only `b` is learned."""
    changes = {
        "task": {"demonstrations": {"scores": True}},
        "algorithm": ["sft", {"best-of": {"n": 1}}],
    }
    bench = Bench(tmp_path, pipeline(**changes), COMPONENTS)
    assert sorted(bench.batch().rollout.texts) == ["a b", "a b", "b", "b"]


def test_weights_need_stored_scores(tmp_path):
    weighted = pipeline(algorithm="wbc")
    with pytest.raises(ConfigError, match="the stored scores are the reward here"):
        Bench(tmp_path / "1", weighted, COMPONENTS).batch()
    bench = Bench(tmp_path / "2", {**weighted, "task": {"demonstrations": {"scores": True}}}, COMPONENTS)
    metrics, _ = bench.gradient(bench.batch())
    assert metrics["wbc/loss"] == pytest.approx(math.log(3) * (3 + 2) / 3)  # `a b` and `b`, with their ends


def test_raft_is_sft_on_the_best_of_sampled_responses(tmp_path):
    changes = {
        "algorithm": ["sft", {"best-of": {"n": 1}}],
        "responses": "sampled",
        "rewards": ["length"],
        "generation": {"samples": 4, "max_new_tokens": 3},
        "train": {"iterations": 60, "prompts": 4, "lr": 0.1},
    }
    finished, session = run(tmp_path, pipeline(**changes), COMPONENTS)
    assert finished.metrics["length"] > 2.9
    assert session.models.policy.table.detach()[0, 2] < 0  # ends later


def test_perplexity_of_what_was_logged(tmp_path):
    """exp of the mean −log π per token over logged responses, or references where there are none."""
    for logged in (True, False):
        changes = {
            "task": {"demonstrations": {"logged": logged}},
            "responses": "logged" if logged else {"references": {"join": ""}},
            "train": {"passes": 50, "prompts": 4, "lr": 0.3},
            "evaluate": {"split": "val", "use": ["held-out"]},
        }
        finished, session = run(tmp_path / str(logged), pipeline(**changes), COMPONENTS)
        lines = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
        first = next(line for line in lines if "eval/held-out/nll" in line)
        assert first["eval/held-out/perplexity"] == pytest.approx(3.0)
        table = session.models.policy.table.detach().double().log_softmax(1).view(2, 4, 3)
        nll = 0.0
        for prompt, text in ((0, "abe"), (1, "be"), (1, "bae")):
            nll -= sum(float(table[prompt, step, "abe".index(token)]) for step, token in enumerate(text)) / 8
        assert finished.metrics["eval/held-out/nll"] == pytest.approx(nll, rel=1e-6)
        assert finished.metrics["eval/held-out/perplexity"] == pytest.approx(math.exp(nll), rel=1e-6)
        assert finished.metrics["eval/held-out/perplexity"] < 1.5


# -- references -------------------------------------------------------------------------------------------


def referenced(**options: Any) -> dict[str, Any]:
    return pipeline(
        task={"demonstrations": {"logged": False}}, responses={"references": {"join": "", **options}}
    )


def test_each_reference_is_a_response(tmp_path):
    rollout, reward = Bench(tmp_path, referenced(), COMPONENTS).rollout()
    assert sorted(rollout.texts) == ["a b", "a b", "b", "b", "b a", "b a"]
    assert bool(rollout.finished_N.all()) and reward.parts == {}
    assert all(example.responses == () for example in rollout.examples)


def test_one_reference_at_random_another_time_another(tmp_path):
    changes = {**referenced(pick="one"), "train": {"iterations": 30, "prompts": 4}}
    bench = Bench(tmp_path, changes, COMPONENTS)
    seen = []
    for iteration in range(30):
        bench.phase.iteration = iteration
        rollout, _ = bench.rollout()
        assert len(rollout) == 4
        seen.append(tuple(sorted(zip((e.id for e in rollout.examples), rollout.texts, strict=True))))
    of_q = [text for drawn in seen for name, text in drawn if name == "train-0-q"]
    assert 5 < of_q.count("b") < 25 and set(of_q) == {"b", "b a"}
    again = Bench(tmp_path / "again", changes, COMPONENTS)
    again.phase.iteration = 7
    rollout, _ = again.rollout()
    assert tuple(sorted(zip((e.id for e in rollout.examples), rollout.texts, strict=True))) == seen[7]


@pytest.mark.filterwarnings("ignore:.*without a space")
def test_references_in_a_mix(tmp_path):
    changes = {**referenced(), "responses": {"mix": {"references": 1, "sampled": 2}}, "rewards": ["length"]}
    rollout, _ = Bench(tmp_path, changes, COMPONENTS).rollout()
    assert rollout.columns["source"].count("references") == 4
    assert rollout.columns["source"].count("sampled") == 8
    changes["responses"] = {"mix": {"references": 2}}
    with pytest.raises(ComponentError, match="has 1 references, 2 are needed"):
        Bench(tmp_path / "two", changes, COMPONENTS).rollout()


def test_without_references(tmp_path):
    with pytest.raises(
        ComponentError, match=r"example `train-.*` has nothing to learn from.*it holds: nothing"
    ):
        Bench(tmp_path, pipeline(responses="references"), COMPONENTS).rollout()
    for meta in ({"references": []}, {"references": [1]}, {"reference": ["x"]}):
        with pytest.raises(ComponentError, match="nothing to learn from"):
            references_of(Example("1", "p", meta=meta))
    assert references_of(Example("1", "p", meta={"references": "one"})) == ("one",)


class Referenced(Task):
    """Prompts of the testing kit with three references each."""

    def examples(self, split: str) -> list[Example]:
        texts = ["1 2", "3", "4 5 6"]
        return [Example(str(i), str(i), meta={"references": texts}) for i in range(6)]


# -- what is joined (RL4LMs joined "to the" and "cinema" to "to thecinema", and never ended) ------------------


def test_nothing_is_joined_but_what_join_says(tmp_path):
    assert joined("to the", "cinema", " ") == " cinema"
    assert joined("to the ", "cinema", " ") == "cinema"
    assert joined("to the", " cinema", " ") == " cinema"
    assert joined("", "cinema", " ") == "cinema"
    assert joined("to the", "", " ") == ""
    assert joined("A:\n", "cinema", " ") == "cinema"


@given(st.text("ab .\n", max_size=6), st.text("ab .\n", max_size=6))
def test_joined_text_keeps_both_words_apart(prompt, response):
    whole = prompt + joined(prompt, response, " ")
    assert whole.split() == [*prompt.split(), *response.split()]
    assert whole in (prompt + response, f"{prompt} {response}")


class Spy(Task):
    """A text prompt and a reference without the space between them."""

    def examples(self, split: str) -> list[Example]:
        return [
            Example("1", "p", meta={"references": ["a b"]}),
            Example("2", [{"role": "user", "content": "p"}], meta={"references": ["b"]}),
        ]


def answered(join: str | None) -> list[str]:
    source = References(References.Config(join=join))
    examples = Spy(Spy.Config()).examples("train")

    class Models:
        class policy:
            @staticmethod
            def encode(given: list[Example]) -> Rollout:
                seen.extend(text for example in given for text in example.responses)
                return batch([[1]], [0.0]).rollout

    class Given:
        models = Models

    seen: list[str] = []
    source.respond(Given(), examples, None)  # type: ignore[arg-type]
    return seen


def test_references_are_joined_as_said_and_chats_never():
    with pytest.warns(UserWarning, match=r"without a space.*…pa b….*`join: ' '`"):
        assert answered(None) == ["a b", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answered("") == ["a b", "b"]
        assert answered(" ") == [" a b", "b"]


def test_the_prompt_is_no_part_of_the_loss(tmp_path):
    """Other prompts with the same answers: the same loss, and only the answers' steps have log-probs."""
    bench = Bench(tmp_path, pipeline(), COMPONENTS)
    made = bench.batch()
    assert made.rollout.actions_NT.shape[1] == 3
    assert [int(n) for n in made.rollout.length_N] == [len(t.split()) + 1 for t in made.rollout.texts]
    moved = replace(made.rollout, inputs=tuple(reversed(made.rollout.inputs)))
    one, other = bench.gradient(made)[0], bench.gradient(replace(made, rollout=moved))[0]
    assert one["loss"] == pytest.approx(other["loss"])


def test_what_a_causal_policy_reads(tmp_path):
    """Prompt and response as one row of tokens, read back as text: one space, and the end, which is learned."""
    hf = pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("transformers")
    folder = tiny_gpt2(tmp_path)
    policy = hf.CausalLM(hf.CausalLM.Config(path=folder))
    policy.setup()
    example = Example("1", "I went to the", meta={"references": ["cinema.", " park."]})

    class Given:
        class models:
            pass

        iteration = 0

    Given.models.policy = policy  # type: ignore[attr-defined]
    source = References(References.Config(join=" "))
    rollout = source.respond(Given(), [example], None)  # type: ignore[arg-type]
    for row, expected in enumerate(("I went to the cinema.", "I went to the park.")):
        response = rollout.actions_NT[row][rollout.mask_NT[row]]
        assert int(response[-1]) in policy.ends and bool(rollout.finished_N[row])
        assert policy.tokenizer.decode([*rollout.inputs[0].tolist(), *response[:-1].tolist()]) == expected
    # The loss has one term a token of the response and its end, none of the prompt.
    assert rollout.mask_NT.sum(1).tolist() == [len(" cinema.") + 1, len(" park.") + 1]
    assert len(policy.features(rollout)) == int(rollout.mask_NT.sum())


@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq-lm"])
def test_language_models_learn_the_answers_and_to_end(tmp_path, kind):
    """Data in a file, a random network: perplexity falls, and greedy answers become the logged ones."""
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_dataset")
    pytest.importorskip("transformers")
    folder = tiny_gpt2(tmp_path) if kind == "causal-lm" else tiny_t5(tmp_path)
    rows = [{"prompt": "to the", "responses": ["cinema"]}, {"prompt": "to a", "responses": ["park"]}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = {
        "task": {"dataset": {"path": "d.jsonl", "join": " "}},
        "policy": {kind: {"path": f"./{folder.name}"}},
        "algorithm": "sft",
        "train": {"passes": 60, "prompts": 2, "lr": 0.02},
        "generation": {"max_new_tokens": 10},
        "evaluate": {"split": "train", "use": ["held-out"]},
        "checkpoints": {"every": 1000},
    }
    finished, _ = run(tmp_path, pipeline)
    assert finished.metrics["eval/held-out/perplexity"] < 1.2
    assert finished.metrics["eval/finished"] == 1.0
    samples = [json.loads(line) for line in (finished.path / "samples.jsonl").read_text().splitlines()]
    last = {sample["prompt"]: sample["response"] for sample in samples[-2:]}
    assert {p: r.strip() for p, r in last.items()} == {"to the": "cinema", "to a": "park"}
    if kind == "causal-lm":
        assert "to the" + last["to the"] == "to the cinema"


WEIGHTED: dict[str, Any] = {
    "wbc": "wbc",
    "p": {"gold": {"returns": "p", "refresh": 1}},
    "s": {"gold": {"returns": "s", "look_ahead": 2, "past_end": True}},
    "reward": {"gold": {"returns": "reward", "refresh": None}},
}


def of_one_response(kind: str, logp: list[float], mle: list[float], reward: float) -> float:
    """−Σ w·Q·log π of one response by a plain loop; π̃ is the policy itself before its first update."""
    loss = 0.0
    for t, x in enumerate(logp):
        later = mle[t : t + 6] if kind == "p" else mle[t : t + 3]
        weight = 1.0 if kind == "wbc" else math.exp(x) if kind == "p" else max(0.1, math.exp(x))
        if kind == "p":
            value = sum(max(1.0, m + 10.0) for m in later)
        elif kind == "s":
            value = sum(math.exp(m) for m in later) + (3 - len(later))
        else:
            value = reward
        loss -= weight * value * x
    return loss


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("kind", ["causal-lm", "seq2seq-lm"])
def test_language_models_weigh_each_response_as_if_it_were_alone(tmp_path, kind, weighted):
    """Prompts and responses of different lengths in one batch; log-probs from transformers' own forward pass."""
    pytest.importorskip("rlalign_plugin_hf")
    pytest.importorskip("rlalign_plugin_dataset")
    pytest.importorskip("transformers")
    folder = tiny_gpt2(tmp_path) if kind == "causal-lm" else tiny_t5(tmp_path)
    rows = [
        {
            "prompt": "to the",
            "responses": [" cinema", " sea"],
            "scores": [0.9, 0.25],
            "finished": [True, True],
        },
        {"prompt": "and", "responses": [" a longer answer"], "scores": [0.5], "finished": [False]},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    say = {
        "task": {"dataset": {"path": "d.jsonl"}},
        "policy": {kind: {"path": f"./{folder.name}"}},
        "algorithm": WEIGHTED[weighted],
        "rewards": ["logged"],
        "train": {"iterations": 2, "prompts": 2, "lr": 0.01, "dtype": "float64"},
    }
    bench = Bench(tmp_path, say)
    made = bench.batch()
    policy, rollout = bench.run.models.policy, made.rollout
    total = 0.0
    for i, g in enumerate(rollout.group_N.tolist()):
        prompt, tokens = rollout.inputs[g], rollout.actions_NT[i, : int(rollout.length_N[i])]
        with torch.no_grad():
            if kind == "causal-lm":
                logits = policy.model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
            else:
                given = torch.cat([torch.tensor([policy.model.config.decoder_start_token_id]), tokens[:-1]])
                logits = policy.model(input_ids=prompt[None], decoder_input_ids=given[None]).logits[0]
        logp = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        total += of_one_response(weighted, logp, logp, float(made.reward.total_N[i]))
    metrics, _ = bench.gradient(made)
    assert metrics["loss"] == pytest.approx(total / 3, rel=1e-9)
    # What falls is −log π; −p·log π itself rises with p while p is small.
    nll = "wbc/nll" if weighted == "wbc" else "gold/nll"
    assert bench.iterate()[nll] > bench.iterate()[nll]


def tiny_gpt2(parent: Path) -> Path:
    """A random GPT-2 whose tokens are bytes."""
    import transformers

    end, size = byte_tokenizer(parent / "tiny")
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=end, bos_token_id=end
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(parent / "tiny")
    return parent / "tiny"


def tiny_t5(parent: Path) -> Path:
    """A random T5 with the same tokens."""
    import transformers

    end, size = byte_tokenizer(parent / "tiny")
    ids = {"eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end}
    config = transformers.T5Config(
        vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0, **ids
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(parent / "tiny")
    return parent / "tiny"


def byte_tokenizer(folder: Path) -> tuple[int, int]:
    """(the token that ends, how many there are) of a tokenizer of bytes, saved."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "<end>"])}
    made = Tokenizer(models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    return vocabulary["<end>"], len(vocabulary)


# -- what every component must do -------------------------------------------------------------------------


class TestSFT(ComponentTests):
    component = "sft"


class TestSFTOfSums(ComponentTests):
    component = "sft"
    options = {"mean": "sums"}


class TestReferences(ComponentTests):
    component = "references"
    options = {"pick": "one"}

    def whole_pipeline(self) -> dict[str, Any]:
        return {
            "task": "under",
            "policy": {"logits": {"hidden": 5}},
            "algorithm": "sft",
            "responses": {"references": {"join": "", **self.options}},
            "train": {"iterations": 3, "prompts": 4, "dtype": "float64", "lr": 0.01, "minibatches": 2},
        }

    @property
    def extra(self) -> dict[str, type[Any]]:
        return {"under": Referenced}


class TestHeldOut(ComponentTests):
    component = "held-out"
    pipeline = {"algorithm": "sft", "evaluate": {"use": ["held-out"]}}
