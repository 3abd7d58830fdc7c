"""What a model reads: the same tokens in rollouts and in evaluation, cut once, at the end that the task says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign import Component, Rollout, Score, hookimpl
from rlalign.testing import run
from rlalign_plugin_grue_tasks import GSM8K, WMT16, DailyDialog, NarrativeQA
from rlalign_plugin_grue_tasks.grue import GrueTask

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


def model(folder: Path, texts: list[str], *, causal: bool) -> Path:
    """A tiny model's configuration, and a tokenizer whose tokens are the words of these texts."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = dict.fromkeys([*SPECIALS, *(word for text in texts for word in text.split())])
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    named = [(word, i) for i, word in enumerate(SPECIALS)]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A" if causal else "$A </s>", special_tokens=named
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = (
        transformers.GPT2Config(
            vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=256,
            architectures=["GPT2LMHeadModel"], **ids,
        )
        if causal
        else transformers.T5Config(
            vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
            decoder_start_token_id=0, architectures=["T5ForConditionalGeneration"], **ids,
        )
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


class Recorded(Component):
    """Notes what each prompt was, as text and as tokens, wherever responses are scored."""

    seen: ClassVar[dict[str, list[tuple[str, tuple[int, ...]]]]] = {}

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        for example, tokens in zip(rollout.examples, rollout.inputs, strict=True):
            self.seen.setdefault(self.name, []).append((str(example.prompt), tuple(tokens.tolist())))
        return Score(torch.zeros(len(rollout.texts)))


@pytest.mark.parametrize(
    ("name", "cls", "causal", "most", "first"),
    [
        ("wmt16", WMT16, False, 9, "translate English to German: The city council will"),
        ("narrative-qa", NarrativeQA, False, 12, "where does ilse make lamps? \\n ilse makes lamps in a"),
        (
            "narrative-qa",
            NarrativeQA,
            True,
            12,
            "where does ilse make lamps? \\n ilse makes lamps in a village",
        ),
        ("daily-dialog", DailyDialog, True, 6, "are ! Thank you . <EOU>"),
        ("gsm8k", GSM8K, True, 8, "many rolls does he sell that day? Answer:"),
    ],
)
def test_rollouts_and_evaluation_read_the_same(tmp_path, name, cls: type[GrueTask], causal, most, first):
    whole = cls(cls.Config(sample=True)).examples("train")  # type: ignore[call-arg]
    folder = model(tmp_path / "model", [str(e.prompt) for e in whole], causal=causal)
    Recorded.seen.clear()
    few = {"max_new_tokens": 2, "min_new_tokens": 0}
    run(
        tmp_path,
        {
            "task": {name: {"sample": True, "tokenizer": str(folder), "max_prompt_tokens": most}},
            "policy": {"causal-lm" if causal else "seq2seq-lm": {"path": str(folder), "init": "random"}},
            "rewards": ["recorded"],
            "algorithm": "policy-gradient",
            "generation": {"samples": 1, **few},
            "train": {"iterations": 1, "prompts": len(whole)},
            "evaluate": {
                "split": "train",
                "use": [{"recorded": {}, "as": "again"}],
                "generation": {"beams": 1, **few},
            },
        },
        {"recorded": Recorded},
    )
    sampled, evaluated = Recorded.seen["recorded"], Recorded.seen["again"]
    assert set(sampled) == set(evaluated) and len(set(sampled)) == len(whole)
    assert max(len(tokens) for _, tokens in sampled) == most
    assert first in [" ".join(text.split()) for text, _ in sampled]


def test_what_is_cut_of_a_chat(tmp_path):
    """Of a summary its end, of a dialogue its first turns: the question and the last turn stay."""
    folder = model(tmp_path, ["x"], causal=False)
    task = NarrativeQA(NarrativeQA.Config(sample=True, style="chat", tokenizer=folder, max_prompt_tokens=5))
    (message,) = task.examples("train")[0].prompt
    assert isinstance(message, dict) and message["content"].endswith(
        "Question: Where does Ilse make lamps?\n\nSummary: Ilse makes lamps in"
    )
    dialog = DailyDialog(
        DailyDialog.Config(sample=True, style="chat", tokenizer=folder, max_prompt_tokens=20)
    )
    assert [turn["content"] for turn in dialog.examples("train")[0].prompt] == [  # type: ignore[index]
        "I have looked there twice .",
        "Then look under the newspaper .",
        "Here they are ! Thank you .",
    ]
