"""A file of RL4LMs becomes a pipeline that passes the check, says what changed, and agrees with recipes/grue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import rlalign
from rlalign.config.load import load_pipeline
from rlalign.errors import ConfigError
from rlalign_authoring.command import migrate
from rlalign_authoring.rl4lms import tasks
from rlalign_authoring.rl4lms.conversion import migrated
from rlalign_plugin_text_metrics import wordnet

RECIPES = Path(__file__).resolve().parents[2] / "recipes/grue"

ONLINE = """
tokenizer: {model_name: gpt2, padding_side: left, pad_token_as_eos_token: true}
reward_fn: {id: chrf}
datapool: {id: daily_dialog, args: {context_size: 5}}
env:
  n_envs: 10
  args: {max_prompt_length: 128, max_episode_length: 20, terminate_on_eos: true}
alg:
  id: ppo
  args: {n_steps: 128, batch_size: 64, verbose: 1, learning_rate: 0.000001, n_epochs: 5}
  kl_div: {coeff: 0.2, target_kl: 0.5}
  policy:
    id: causal_lm_actor_critic_policy
    args:
      model_name: gpt2
      apply_model_parallel: true
      generation_kwargs: {do_sample: true, top_k: 20, min_length: 2, max_new_tokens: 20}
train_evaluation:
  eval_batch_size: 32
  n_iters: 50
  eval_every: 5
  save_every: 10
  metrics: [{id: chrf}, {id: diversity, args: {}}]
"""
SUPERVISED = """
tokenizer: {model_name: t5-base, truncation_side: right}
datapool: {id: cnn_daily_mail, args: {prompt_prefix: "Summarize: "}}
alg:
  id: supervised
  model_type: seq2seq
  model_name: t5-base
  training_args: {per_device_train_batch_size: 16, logging_steps: 500, num_train_epochs: 2, save_total_limit: 1}
  generation_kwargs: {num_beams: 4, max_new_tokens: 100, post_processing_fn: null}
train_evaluation: {eval_batch_size: 100, metrics: [{id: rouge}]}
"""


@pytest.fixture(scope="module", autouse=True)
def some_wordnet(tmp_path_factory) -> Iterator[None]:
    """A WordNet without words: METEOR is refused without one."""
    folder = tmp_path_factory.mktemp("dict")
    for file in wordnet.FILES:
        (folder / file).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WNSEARCHDIR", str(folder))
        yield


def changed(text: str, **changes: Any) -> str:
    """The file with other values: `alg__args={"gamma": 1.0}` is added to what is there; None takes a key out."""
    data = yaml.safe_load(text)
    for path, value in changes.items():
        *above, last = path.split("__")
        node = data
        for key in above:
            node = node.setdefault(key, {})
        if value is None:
            del node[last]
        elif isinstance(value, dict) and isinstance(node.get(last), dict) and "id" not in value:
            node[last] = {**node[last], **value}
        else:
            node[last] = value
    return yaml.safe_dump(data, sort_keys=False)


def made(text: str = ONLINE, **changes: Any) -> tuple[dict[str, Any], str]:
    """What the pipeline says, and its comments, each in a line."""
    written = migrated(changed(text, **changes), "theirs.yml")
    lines = [line.removeprefix("# ") for line in written.splitlines() if line.startswith("#")]
    return yaml.safe_load(written), "\n".join(lines).replace("\n  ", " ")


def checks(folder: Path, **changes: Any) -> None:
    """`rlalign check` passes its form, where functions and checkpoints that it names are there."""
    for name in ("politeness", "score"):
        (folder / ("my_spice.py" if name == "score" else "my_rewards.py")).write_text(
            f"def {name}(texts, bonus=0):\n    return [0.0 for _ in texts]\n"
        )
    text = changes.pop("text", ONLINE)
    path = folder / "mine.yaml"
    path.write_text(migrated(changed(text, **changes), "theirs.yml"))
    assert rlalign.load(path).check().startswith("mine: ")


# -- whole files ----------------------------------------------------------------------------------------------------

MASK = {"mask_type": "learned_top_p", "top_mask": 0.9, "target_update_iterations": 20}
INTENT = {"id": "intent_accuracy", "args": {"intent_coeff": 0.75, "auto_coeff": 0.25}}
DIALOGUE = [
    {"id": "intent_accuracy"},
    {"id": "rouge"},
    {"id": "bleu", "args": {}},
    {"id": "sacre_bleu", "args": {"tokenize": "intl"}},
    {"id": "bert_score", "args": {"language": "en"}},
    {"id": "causal_perplexity", "args": {"tokenizer_id": "gpt2", "stride": 128, "model_type": "causal"}},
    {"id": "diversity"},
    {"id": "meteor"},
]
IMDB = {
    "datapool": {"id": "imdb", "args": {"seed": 42}},
    "env__args": {"max_prompt_length": 64, "max_episode_length": 48},
    "alg__kl_div": {"coeff": 0.1, "target_kl": 0.1},
    "alg__policy__args": {
        "model_name": "lvwerra/gpt2-imdb",
        "generation_kwargs": {"do_sample": True, "min_length": 48, "max_new_tokens": 48},
    },
    "tokenizer": {"model_name": "lvwerra/gpt2-imdb"},
    "reward_fn": {"id": "learned_reward", "args": {"model_name": "lvwerra/distilbert-imdb", "label_ix": 1}},
    "train_evaluation": {
        "eval_every": 10,
        "metrics": [
            {"id": "learned_reward", "args": {"model_name": "lvwerra/distilbert-imdb", "label_ix": 1}},
            {"id": "causal_perplexity", "args": {"stride": 512, "tokenizer_id": "gpt2"}},
            {"id": "diversity"},
        ],
    },
}
TRANSLATION = {
    "tokenizer": {"model_name": "t5-base"},
    "datapool": {"id": "iwslt2017en_de", "args": {"prompt_prefix": "translate English to German: "}},
    "env__args": {
        "max_prompt_length": 128,
        "max_episode_length": 128,
        "prompt_truncation_side": "right",
        "context_start_token": 0,
    },
    "alg__args": {"n_steps": 512, "learning_rate": 1e-06, "ent_coef": 0.0},
    "alg__kl_div": {"coeff": 0.001, "target_kl": 0.2},
    "alg__policy__id": "maskable_seq2seq_lm_actor_critic_policy",
    "alg__policy__args": {
        "model_name": "t5-base",
        "prompt_truncation_side": "right",
        "generation_kwargs": {"do_sample": True, "top_k": 10, "max_new_tokens": 128},
        **MASK,
        "top_mask": 0.5,
    },
    "alg__id": "nlpo",
    "reward_fn": {"id": "ter"},
    "train_evaluation": {
        "eval_every": 10,
        "generation_kwargs": {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 128},
        "metrics": [
            *({"id": name} for name in ("sacre_bleu", "chrf", "bleu", "rouge", "meteor", "bleu", "ter")),
            {"id": "bert_score", "args": {"language": "de"}},
            {"id": "diversity"},
        ],
    },
}
TRANSLATION["train_evaluation"]["metrics"][0]["args"] = {"tokenize": "intl"}


@pytest.mark.parametrize(
    "recipe, changes",
    [
        ("daily-dialog/ppo", {"reward_fn": INTENT, "train_evaluation": {"metrics": DIALOGUE}}),
        (
            "daily-dialog/nlpo",
            {
                "reward_fn": INTENT,
                "train_evaluation": {"metrics": DIALOGUE},
                "alg__id": "nlpo",
                "alg__policy__id": "maskable_causal_lm_actor_critic_policy",
                "alg__policy__args": MASK,
            },
        ),
        ("imdb/ppo", IMDB),
        ("iwslt17/nlpo", TRANSLATION),
    ],
)
def test_it_says_what_the_recipe_says(recipe, changes):
    """Files as RL4LMs publishes them, whose values the recipes took over."""
    theirs = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    ours, _ = made(**changes)
    for pipeline in (ours, theirs):  # what is measured beside the rewards may stand in any order
        pipeline["evaluate"]["use"].sort(key=str)
    assert ours == theirs


def test_supervised_learning_is_sft(tmp_path):
    data, told = made(SUPERVISED)
    assert data == {
        "task": {"cnn-daily-mail": {"tokenizer": "${policy.seq2seq-lm.path}"}},
        "policy": {"seq2seq-lm": {"path": "google-t5/t5-base"}},
        "algorithm": "sft",
        "train": {
            **{"passes": 2, "prompts": 16, "lr": 5e-05, "dropout": True},
            "schedule": {"shape": "linear"},
        },
        "evaluate": {
            **{"every": 500, "split": "val", "examples": 512, "use": ["rouge"]},
            "generation": {"beams": 4, "max_new_tokens": 100},
        },
    }
    assert "`lr_scheduler_type` is unsaid, which to transformers means linear." in told
    checks(tmp_path, text=SUPERVISED)


def test_what_was_changed_or_left_out_is_said_with_its_line():
    written = migrated(ONLINE, "theirs.yml")
    assert written.startswith(
        "# PPO: gpt2 on daily-dialog. Made of RL4LMs' theirs.yml by `rlalign migrate rl4lms`.\n"
    )
    assert "# `gpt2` is called `openai-community/gpt2` on the hub now.\npolicy: " in written
    left = written.partition("\n# Left out:\n")[2]
    assert "# - `apply_model_parallel: true` (line 16): `distributed: {shard: true}`" in left
    assert "# - `save_every: 10` (line 22): " in left


# -- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool, args, name, options, told",
    [
        ("imdb", {"seed": 7}, "imdb", {"seed": 7, "max_prompt_tokens": 128}, ""),
        ("commongen", {}, "common-gen", {}, "it was `summarize: dog run `"),
        ("cnn_daily_mail", {"max_size": 9, "truncate_article": 5}, "cnn-daily-mail", {"limit": 9}, "`truncate_art"),
        ("totto", {"representation": "fulltable"}, "totto", {"max_prompt_tokens": 128}, "`representation: fullt"),
        ("narrative_qa", {}, "narrative-qa", {}, "rlalign data fetch narrative-qa"),
        ("daily_dialog", {"context_size": 3}, "daily-dialog", {"turns": 3}, ""),
        ("wmt16", {"source_language": "ro", "target_language": "en"}, "wmt16", {"source": "ro", "target": "en"},
         "it was `…`"),
        ("wmt16newsonly", {"prompt_prefix": "translate English to German: "}, "wmt16", {}, "News Commentary alone"),
    ],
)  # fmt: skip
def test_a_pool_is_a_task(pool, args, name, options, told, tmp_path):
    changes = {"datapool": {"id": pool, "args": args}}
    data, comments = made(**changes)
    assert data["task"] == {name: {**options, "tokenizer": "${policy.causal-lm.path}"}}
    assert told in comments
    checks(tmp_path, **changes)


def test_pools_without_a_task_are_data_of_ones_own(tmp_path):
    changes = {"datapool": {"id": "my pool", "args": {"size": 3}}}
    data, comments = made(**changes)
    assert data["task"] == {"dataset": {"path": "my-pool.jsonl", "splits": {"train": 0.9, "val": 0.1}}}
    assert data["policy"]["causal-lm"]["max_prompt_tokens"] == 128
    assert "`my pool` (size: 3) is no pool of RL4LMs' own" in comments
    assert "`crd3` has no task here" in made(datapool={"id": "crd3"})[1]
    data, _ = made(
        datapool={
            "id": "wmt16",
            "args": {"wmt_id": "wmt14", "source_language": "fr", "target_language": "en"},
        }
    )
    assert data["task"]["dataset"] == {
        **{"hub": "wmt/wmt14", "subset": "fr-en", "prompt": "{translation.fr}"},
        **{"responses": "translation.en", "references": "translation.en"},
    }
    data, _ = made(datapool={"id": "wmt14_processed_en_de", "args": {"prompt_prefix": "{x} "}})
    assert data["task"]["dataset"]["prompt"] == "{{x}} {translation.en}"


def test_prompts_are_cut_on_one_side():
    """Where the original's sides agree with the task's, its length is taken; else the task's own, and said."""
    shorter = {"max_prompt_length": 100}
    assert made(env__args=shorter)[0]["task"]["daily-dialog"]["max_prompt_tokens"] == 100
    data, told = made(env__args={**shorter, "prompt_truncation_side": "right"})
    assert "max_prompt_tokens" not in data["task"]["daily-dialog"]
    assert "at most 100 tokens, cut on the right (in evaluation on the left); here they have 128" in told
    for name, (tokens, side) in tasks.LIMITS.items():
        parts = {"policy": {"table": {"actions": 2}}, "algorithm": "rloo", "train": {"iterations": 1}}
        task = (
            load_pipeline("any.yaml", text={"task": {name: {"sample": True}}, **parts}).phases[0].task.peek()
        )
        assert (task.config.max_prompt_tokens, task.side) == (tokens, side), name


def test_numbers_and_dates(tmp_path):
    numbers = {"id": "increasing_numbers", "args": {"min_tokens": 30}}
    pool = {"id": "dummy_pool", "args": {"n_samples": 20, "prompt": "<|endoftext|>"}}
    changes = {"reward_fn": numbers, "datapool": pool, "env__args": {"max_prompt_length": 5}}
    data, _ = made(**changes)
    assert data["task"] == {"toy-numbers": {"prompt": "<|endoftext|>", "size": 20}}
    assert data["rewards"][0] == {"increasing-numbers": {"min_tokens": 30}}
    assert data["evaluate"]["examples"] == 20
    assert data["policy"]["causal-lm"]["truncation_side"] == "left"
    data, _ = made(**{**changes, "reward_fn": {"id": "sentences_with_dates"}})
    assert (next(iter(data["task"])), data["rewards"][0]) == ("toy-dates", "dates")
    checks(tmp_path, **changes)


PENALTY = {"shaping_fn": "common_gen_repeat_penalty"}
SENTIMENT = {"path": "lvwerra/distilbert-imdb", "label": 1, "context": None}
CLASSIFIER = {"model_name": "lvwerra/distilbert-imdb", "label_ix": 1, "include_prompt_for_eval": False}


@pytest.mark.parametrize(
    "name, args, items, told",
    [
        ("meteor", PENALTY, ["meteor", "commongen-penalty"], "a reward of its own, as their sum was"),
        ("rouge", {"rouge_type": "rouge1", **PENALTY}, [{"rouge": {"type": "rouge1"}}, "commongen-penalty"], ""),
        ("rouge_combined", {}, ["rouge"], "took the first"),
        ("ter", {}, [{"ter": {"clip": True}}], "one long response outweighed many"),
        ("rouge_l_max", {"length_limit": 50, "alpha": 0.7, "apply_best": "True,"}, [{"rouge-l-max": {"words": 50}}],
         "`alpha: 0.7`"),
        ("sacre_bleu", {"tokenize": "intl", "smooth_method": "add-k"}, [{"sacrebleu": {"tokenize": "intl"}}],
         "`smooth_method: add-k`"),
        ("learned_batched_reward", CLASSIFIER, [{"classifier": SENTIMENT, "as": "sentiment"}], ""),
        ("bert_score", {"language": "de"}, [{"bert-score": {"path": "google-bert/bert-base-multilingual-cased"}}], ""),
        ("spider", {"spice_coeff": 0.5, "cider_coeff": 0.5},
         [{"cider": {}, "weight": 0.5}, {"function": {"path": "my_spice.py:score"}, "as": "spice", "weight": 0.5}],
         "SPICE needs Java"),
        ("common_gen_preference_model", {"model_type": "11b", "device": "cpu"}, ["meteor"], "11 billion weights"),
        ("intent_accuracy", {"shape": False}, None, ""),
        ("parent", {}, ["parent"], ""),
        ("bleu", {}, ["bleu"], ""),
        ("politeness", {"bonus": 2}, [{"function": {"path": "my_rewards.py:politeness", "arguments": {"bonus": 2}},
                                       "as": "politeness"}], "is not RL4LMs' own"),
    ],
)  # fmt: skip
def test_a_reward_is_a_reward(name, args, items, told, tmp_path):
    changes = {"reward_fn": {"id": name, "args": args}, "datapool": {"id": "commongen"}}
    data, comments = made(**changes)
    *found, kl = data["rewards"]
    assert kl == {"kl": {"coef": 0.2, "target": 0.5}}
    assert found == items or (items is None and [one["as"] for one in found] == ["intent"])
    assert told in comments
    checks(tmp_path, **changes)


def test_bleurt_is_a_checkpoint_of_yours():
    data, _ = made(reward_fn={"id": "bleurt", "args": {"checkpoint": "bleurt-large-512"}})
    assert data["rewards"][0] == {"bleurt": {"path": "./bleurt-large-512"}}


def test_metrics(tmp_path):
    listed = [
        {"id": "bleu_totto"},
        {"id": "parent_totto"},
        {"id": "cider"},
        {"id": "spice"},
        {"id": "summaCZS", "args": {"granularity": "paragraph", "use_con": False}},
        {"id": "summaCConv", "args": {"granularity": "sentence"}},
        {"id": "bleurt", "args": {"config_name": "bleurt-base-128"}},
        {"id": "causal_perplexity", "args": {"model_type": "seq2seq"}},
        {"id": "diversity", "args": {"window_size": 50}},
        {"id": "cider"},
        {"id": "learned_reward", "args": {"model_name": "mine/one", "label_ix": 0}},
        {"id": "learned_reward", "args": {"model_name": "mine/two", "label_ix": 0}},
    ]
    changes = {"train_evaluation": {"metrics": listed}, "datapool": {"id": "commongen"}}
    data, told = made(**changes)
    assert data["evaluate"]["use"] == [
        "chrf",
        "kl",
        {"sacrebleu": {"lowercase": True}},
        "parent",
        "cider",
        "coverage",
        {"summac-zs": {"path": "FacebookAI/roberta-large-mnli", "contradiction": False}},
        {"bleurt": {"path": "./bleurt-base-128"}},
        "held-out",
        {"diversity": {"window": 50}},
        {"classifier": {"path": "mine/one", "label": 0}},
        {"classifier": {"path": "mine/two", "label": 0}, "as": "classifier-11"},
    ]
    assert re.search(r"`id: cider` \(line \d+\): is there already", told)
    assert "its scores are random" in told and "`coverage`, which the paper lists" in told
    del listed[6]
    checks(tmp_path, **changes)
    assert "and is not here." in made(train_evaluation={"metrics": [{"id": "spice"}]})[1]


def test_an_english_metric_of_german_is_made_multilingual():
    metrics = [{"id": "bert_score", "args": {"language": "en"}}]
    data, told = made(**{**TRANSLATION, "train_evaluation": {"metrics": metrics}})
    assert {"bert-score": {"path": "google-bert/bert-base-multilingual-cased"}} in data["evaluate"]["use"]
    assert "the responses are not English, so the model is multilingual here" in told


# -- sampling and decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, found, told",
    [
        ({"do_sample": True, "max_new_tokens": 20}, {"max_new_tokens": 20, "top_k": 50}, "`top_k` is unsaid"),
        ({"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.5, "max_new_tokens": 20},
         {"max_new_tokens": 20, "top_p": 0.9, "temperature": 0.5}, ""),
        ({"do_sample": True, "top_k": 9, "min_new_tokens": 3, "max_new_tokens": 40},
         {"min_new_tokens": 3, "max_new_tokens": 20, "top_k": 9}, "the environment ended an episode at 20"),
        ({"do_sample": True, "top_k": 9, "max_new_tokens": 10}, {"max_new_tokens": 10, "top_k": 9},
         "what had not ended by then earned nothing"),
        ({"do_sample": True, "top_k": 9}, {"max_new_tokens": 20, "top_k": 9}, "default length of 20 tokens"),
        ({"num_beams": 4, "max_new_tokens": 20}, {"max_new_tokens": 20}, "here it is sampled"),
        ({"max_new_tokens": 20, "repetition_penalty": 1.2, "max_length": 60}, {"max_new_tokens": 20},
         "`generation` has no such key"),
    ],
)  # fmt: skip
def test_how_responses_are_sampled(said, found, told):
    data, comments = made(changed(ONLINE, alg__policy__args__generation_kwargs=None), **{
        "alg__policy__args": {"generation_kwargs": said}
    })  # fmt: skip
    assert data["generation"] == {**found, "stop": ["<EOU>"]}
    assert told in comments
    assert data["evaluate"]["generation"] == data["generation"], (
        "RL4LMs evaluates as it rolls out, unless it is said"
    )


@pytest.mark.parametrize(
    "said, found, told",
    [
        ({"num_beams": 10, "do_sample": True, "top_k": 5}, {"beams": 10, "max_new_tokens": 20},
         "the beam search alone"),
        ({"do_sample": True, "top_k": 0, "temperature": 0.7}, {"temperature": 0.7, "max_new_tokens": 20}, ""),
        ({"min_length": 5}, {"greedy": True, "min_new_tokens": 5, "max_new_tokens": 20}, ""),
    ],
)  # fmt: skip
def test_how_evaluation_decodes(said, found, told):
    data, comments = made(train_evaluation__generation_kwargs=said)
    assert data["evaluate"]["generation"] == {**found, "stop": ["<EOU>"]}
    assert "kl" not in data["evaluate"]["use"], "what is decoded otherwise than it was sampled has none"
    assert told in comments


# -- algorithms -----------------------------------------------------------------------------------------------------


def test_ppo_s_options(tmp_path):
    args = {
        **{"gamma": 1.0, "gae_lambda": 0.9, "ent_coef": 0.01, "vf_coef": 0.1, "clip_range": 0.1},
        **{"clip_range_vf": 0.2, "target_kl": 0.03, "max_grad_norm": 1.0, "normalize_advantage": False},
        **{"n_epochs": 2, "seed": 3, "batch_size": 128, "n_steps": 100},
    }
    policy = {"weight_decay": 0.01, "optimizer_kwargs": {"betas": [0.9, 0.99], "eps": 1e-5, "amsgrad": True}}
    changes = {"alg__args": args, "alg__policy__args": policy, "alg__kl_div": {"norm_reward": True}}
    data, told = made(**changes)
    assert data["algorithm"]["ppo"] == {
        **{"preset": "rl4lms", "whiten": "none", "gamma": 1.0, "lam": 0.9, "entropy": 0.01, "value": 0.2},
        **{"clip": 0.1, "value_clip": 0.2, "target_kl": 0.03, "whiten_rewards": True},
    }
    assert data["train"] == {
        **{"iterations": 50, "prompts": 56, "minibatch": 7, "epochs": 2, "clip": 1.0, "lr": 1e-6},
        **{"weight_decay": 0.01, "betas": [0.9, 0.99], "eps": 1e-5},
    }
    assert data["seed"] == 3
    assert "100 steps of 10 environments are 1000 tokens" in told and "`amsgrad: true`" in told
    checks(tmp_path, **changes)


def test_what_is_unsaid_is_stable_baselines_default():
    data, _ = made(changed(ONLINE, alg__args={"n_steps": 128, "verbose": 1}, **{
        f"alg__args__{key}": None for key in ("learning_rate", "n_epochs", "batch_size")
    }))  # fmt: skip
    assert (data["train"]["lr"], data["train"]["epochs"], data["train"]["minibatch"]) == (3e-4, 10, 4)


@pytest.mark.parametrize(
    "policy, found",
    [
        ({}, {"top_p": 0.9, "refresh": 1000}),
        ({"mask_type": "learned_top_k", "top_mask": 40, "target_update_iterations": 5},
         {"top_p": 1.0, "top_k": 40, "refresh": 5}),
        ({"mask_type": "topk", "top_mask": 30}, {"top_p": 1.0, "top_k": 30, "refresh": 1}),
    ],
)  # fmt: skip
def test_nlpo_s_masks(policy, found, tmp_path):
    changes = {"alg__id": "nlpo", "alg__policy__args": {**policy, "min_tokens_to_keep": 10}}
    data, told = made(**changes)
    assert data["algorithm"] == {"nlpo": {"preset": "rl4lms", "whiten": "batch", **found}}
    assert "always kept 10 tokens: `mode: rl4lms` computes that" in told
    checks(tmp_path, **changes)


def test_a2c_and_trpo(tmp_path):
    text = changed(ONLINE, alg__args__n_epochs=None, alg__args__batch_size=None)
    a2c = {
        "alg__id": "a2c",
        "alg__args": {"ent_coef": 0.001, "normalize_advantage": True, "rms_prop_eps": 1e-5},
    }
    data, told = made(text, **a2c)
    own = {
        "gamma": 0.99,
        "lam": 1.0,
        "value": 1.0,
        "truncated": "terminal",
        "entropy": 0.001,
        "whiten": "batch",
    }
    assert data["algorithm"] == {"a2c": own}
    assert data["train"] == {
        **{"iterations": 50, "prompts": 64, "clip": 0.5, "lr": 1e-6, "weight_decay": 1e-6},
    }
    assert "RL4LMs' A2C has RMSprop" in told
    checks(tmp_path, text=text, **a2c)
    trpo = {
        "alg__id": "trpo",
        "alg__args": {"n_steps": 4, "target_kl": 0.02, "cg_max_steps": 8, "ent_coef": 0.1},
    }
    data, told = made(text, **trpo)
    assert data["algorithm"] == {"trpo": {"delta": 0.02, "cg_steps": 8}}
    assert data["train"] == {
        **{"iterations": 50, "prompts": 2, "minibatch": 2, "clip": None, "lr": 1e-6, "weight_decay": 1e-6},
    }
    assert "`ent_coef: 0.1`" in told
    checks(tmp_path, text=text, **trpo)
    assert made(text, alg__id="trpo")[0]["algorithm"] == "trpo"


def test_training_arguments(tmp_path):
    args = {
        **{
            "gradient_accumulation_steps": 2,
            "max_steps": 70,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "seed": 4,
        },
        **{
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "adam_beta1": 0.8,
            "adam_epsilon": 1e-6,
            "bf16": True,
        },
        **{
            "gradient_checkpointing": True,
            "fsdp": "full_shard",
            "dataloader_num_workers": 2,
            "warmup_steps": 5,
        },
    }
    changes = {"alg__training_args": args, "datapool": {"id": "commongen"}}
    data, told = made(SUPERVISED, **changes)
    assert data["train"] == {
        **{
            "iterations": 70,
            "prompts": 16,
            "lr": 5e-5,
            "weight_decay": 0.1,
            "clip": 0.5,
            "betas": [0.8, 0.999],
        },
        **{"eps": 1e-6, "schedule": {"shape": "cosine", "warmup": 0.1}, "dropout": True, "dtype": "bfloat16"},
        "recompute": True,
    }
    for word in ("seed: 4", "fsdp: full_shard", "dataloader_num_workers: 2", "warmup_steps: 5"):
        assert f"`{word}`" in told
    assert "16 sets of words have about 32 sentences" in told
    checks(tmp_path, text=SUPERVISED, **changes)
    _, told = made(SUPERVISED, alg__training_args={"lr_scheduler_type": "polynomial"})
    assert "there are constant, linear and cosine" in told


def test_supervised_imdb(tmp_path):
    gpt = {"alg__model_type": "causal", "alg__model_name": "mine/gpt", "tokenizer": {"max_length": 100}}
    pool = {"id": "imdb_seq2seq", "args": {"positive_ratio": 0.5}}
    changes = {
        **gpt,
        "datapool": pool,
        "reward_fn": {"id": "chrf"},
        "env": {"n_envs": 2},
        "train_evaluation": {"n_iters": 3},
    }
    data, told = made(SUPERVISED, **changes)
    assert data["task"]["imdb"] == {
        "train": "positive",
        "max_prompt_tokens": 100,
        "tokenizer": "${policy.causal-lm.tokenizer}",
    }
    model = {"path": "mine/gpt", "tokenizer": "google-t5/t5-base", "too_long": "drop"}
    assert data["policy"] == {"causal-lm": model}
    for word in (
        "`positive_ratio: 0.5`",
        "nothing is rewarded in",
        "nothing is sampled to learn from",
        "`n_iters: 3`",
        "saw no end and no space",
    ):
        assert word in told
    checks(tmp_path, text=SUPERVISED, **changes)
    assert "references are whole reviews" in made(SUPERVISED, datapool={"id": "imdb"})[1]


def test_paths_stay_paths():
    paths = {"models/a/b": "./models/a/b", "/data/llama": "/data/llama", "./mine": "./mine", "a/b": "a/b"}
    for said, path in paths.items():
        data, _ = made(alg__policy__args={"model_name": said}, tokenizer={"model_name": said})
        assert data["policy"]["causal-lm"] == {"path": path}


def test_of_several_values_the_first_stands():
    values = [{"id": "chrf"}, {"id": "bleu", "args": {}}]
    text = changed(ONLINE, alg__args={"learning_rate": {"expand": True, "values": [1e-5]}})
    data, told = made(text, reward_fn={"expand": True, "values": values} | {"id": None})
    assert data["rewards"][0] == "chrf" and data["train"]["lr"] == 1e-5
    assert (
        "`reward_fn` (line 5) tries 2 values, of which the first stands here; `rlalign study` tries" in told
    )
    assert "learning_rate" not in told


def test_small_things_are_said():
    inside = {"terminate_on_eos": False, "context_start_token": 0, "priority_scale": 0.5}
    _, told = made(env__args=inside, tokenizer={"max_length": 64})
    for word in (
        "`max_length: 64`",
        "`terminate_on_eos` is off",
        "`context_start_token: 0`",
        "`priority_scale: 0.5`",
    ):
        assert word in told


# -- errors -----------------------------------------------------------------------------------------------------------


def refused(text: str = ONLINE, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        migrated(changed(text, **changes), "theirs.yml")
    return str(caught.value)


def test_unknown_keys_are_named_with_their_lines():
    wrong = {"alg__args": {"n_step": 3}, "reward_fn": {"id": "chrf", "args": {"beta": 2}}, "sweeps": 1}
    told = refused(**wrong)
    lines = changed(ONLINE, **wrong).splitlines()
    for line, message in (
        ("    n_step: 3", "alg.args.n_step: unknown key; did you mean `n_steps`?"),
        ("    beta: 2", "reward_fn.args.beta: unknown key (keys: shaping_fn)"),
    ):
        assert f"theirs.yml:{lines.index(line) + 1}: {message}" in told
    assert "sweeps: unknown key" in told
    told = refused(SUPERVISED, alg__policy={"id": "x"})
    assert "alg.policy: unknown key" in told


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"alg__args": {"n_steps": "many"}},
            "alg.args.n_steps: expected a whole number, found 'many' (text)",
        ),
        (
            {"alg__args": {"learning_rate": float("nan")}},
            "alg.args.learning_rate: expected a number, found nan",
        ),
        (
            {"alg__id": "sac"},
            "alg.id: there is no algorithm `sac` here (there are: ppo, nlpo, a2c, trpo, supervised)",
        ),
        ({"alg__id": None}, "alg.id: is missing"),
        ({"reward_fn": None}, "reward_fn.id: is missing"),
        ({"datapool__id": None}, "datapool.id: is missing"),
        ({"alg__policy__args__model_name": None}, "alg.policy.args.model_name: is missing"),
        ({"train_evaluation__n_iters": None}, "train_evaluation.n_iters: is missing"),
        ({"alg__kl_div__coeff": None}, "alg.kl_div.coeff: is missing"),
        ({"train_evaluation": {"metrics": ["bleu"]}}, "train_evaluation.metrics[0]: expected a mapping"),
        ({"env__args": {"terminate_on_eos": 1}}, "env.args.terminate_on_eos: expected true or false"),
    ],
)
def test_what_is_wrong_is_said(changes, told):
    assert told in refused(**changes)


def test_no_file_of_rl4lms(tmp_path):
    def call(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(migrate, ["rl4lms", *map(str, words)])
        return done.exit_code, done.output

    theirs = tmp_path / "theirs.yml"
    theirs.write_text(ONLINE)
    code, text = call(theirs)
    assert code == 0 and text == migrated(ONLINE, str(theirs))
    out = tmp_path / "mine.yaml"
    assert call(theirs, "-o", out) == (0, f"pipeline: {out}\nNext: rlalign check {out}\n")
    assert out.read_text() == text
    code, told = call(theirs, "-o", out)
    assert code == 2 and "exists" in told and out.read_text() == text
    theirs.write_text("")
    assert call(theirs)[0] == 2 and "the file is empty" in call(theirs)[1]
    theirs.write_text("alg: [")
    assert "not valid YAML" in call(theirs)[1]
    assert "no such file" in call(tmp_path / "none.yml")[1]
