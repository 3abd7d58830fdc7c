"""`datapool`: the task; and how long its prompts are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.models import Model
from rlalign_authoring.rl4lms.source import Part

Options = dict[str, Any]
LIMITS = {
    "imdb": (64, "left"),
    "common-gen": (20, "right"),
    "cnn-daily-mail": (512, "right"),
    "totto": (512, "left"),
    "wmt16": (128, "right"),
    "iwslt17": (128, "right"),
    "narrative-qa": (512, "right"),
    "daily-dialog": (128, "left"),
}
"""Tokens of a prompt, and the end at which it is cut, unless a pipeline says otherwise."""
WMT16 = {"en", "cs", "de", "fi", "ro", "ru", "tr"}
"""Languages of `wmt16`."""


@dataclass
class Task:
    """The task's component and its options."""

    name: str
    options: Options
    language: str = "en"
    """That of the responses."""
    rows: int | None = None
    """How many examples there are, where it is known and few."""


def task(made: Made, said: Part, supervised: bool) -> Task:
    """Which task a pool is."""
    pool, args = said.need("id", "the pool that prompts come from, such as `imdb`"), said.part("args")
    if pool in POOLS:
        return POOLS[pool](made, args)
    if pool in ("imdb", "imdb_seq2seq"):
        return _imdb(made, args, pool, supervised)
    return _own(made, args, pool)


# -- pools ------------------------------------------------------------------------------------------------------------


def _imdb(made: Made, args: Part, pool: str, supervised: bool) -> Task:
    options: Options = {}
    seed = args.take("seed", int, 42)
    if seed != 42:
        options["seed"] = seed
    if pool == "imdb_seq2seq":
        options["train"] = "positive"
        share = args.take("positive_ratio", float, 1.0)
        if share != 1.0:
            why = f"all positive reviews are learned from, not {share:g} of them"
            made.leave(args, f"{why}; `limit` takes a number of the first examples", "positive_ratio")
    elif supervised:
        made.note(
            "task",
            "This pool's references are whole reviews, so the original learned to repeat the prompt; here the second "
            "half is learned.",
        )
    return Task("imdb", options)


def _common_gen(made: Made, args: Part) -> Task:
    ours = "generate a sentence with: dog run."
    prefix = args.take("prefix", str, "summarize: ")
    parts = args.take("concept_separator_token", str, " "), args.take("concept_end_token", str, " ")
    theirs = f"{prefix}dog{parts[0]}run{parts[1]}"
    if theirs != ours:
        made.note("task", f"A prompt is `{ours}` here; it was `{theirs}`.")
    return Task("common-gen", {})


def _summaries(made: Made, args: Part) -> Task:
    prefix, suffix = args.take("prompt_prefix", str, ""), args.take("prompt_suffix", str, "")
    if (prefix, suffix) != ("Summarize: ", ""):
        made.note("task", f"A prompt is `Summarize: ` and the article here; it was `{prefix}…{suffix}`.")
    options: Options = {}
    if args.has("max_size"):
        options["limit"] = args.take("max_size", int, 1)
    made.leave(args, "`max_prompt_tokens` cuts articles, in tokens", "truncate_article", "max_size")
    return Task("cnn-daily-mail", options)


def _totto(made: Made, args: Part) -> Task:
    if args.take("representation", str, "subtable") != "subtable":
        made.leave(args, "prompts are of the highlighted cells, `subtable`, only", "representation")
    return Task("totto", {})


def _narrative_qa(made: Made, args: Part) -> Task:
    made.note(
        "task", "The data are fetched once: `rlalign data fetch narrative-qa --summaries`; then say `path`."
    )
    return Task("narrative-qa", {})


def _daily_dialog(made: Made, args: Part) -> Task:
    turns = args.take("context_size", int, 5)
    return Task("daily-dialog", {} if turns == 5 else {"turns": turns})


def _translated(made: Made, args: Part, name: str, source: str, target: str) -> Task:
    languages = {"source": source, "target": target}
    options: Options = {
        key: each for key, each in languages.items() if each != {"source": "en", "target": "de"}[key]
    }
    prefix, suffix = args.take("prompt_prefix", str, ""), args.take("prompt_suffix", str, "")
    if not re.fullmatch(r"translate \w+ to \w+: ", prefix) or suffix:
        made.note(
            "task",
            f"A prompt is `translate English to German: ` (or the languages there are) and the sentence here; it was "
            f"`{prefix}…{suffix}`.",
        )
    return Task(name, options, language=target)


def _wmt(made: Made, args: Part) -> Task:
    source, target = args.take("source_language", str, "en"), args.take("target_language", str, "de")
    year = args.take("wmt_id", str, "wmt16")
    if year != "wmt16" or not {source, target} <= WMT16:
        other = target if source == "en" else source
        return _pairs(args, {"hub": f"wmt/{year}", "subset": f"{other}-en"}, source, target)
    return _translated(made, args, "wmt16", source, target)


def _news_only(made: Made, args: Part) -> Task:
    made.note(
        "task",
        "The original learns from News Commentary alone: `path` to a folder with these two files and WMT16's test sets "
        "is that.",
    )
    return _translated(made, args, "wmt16", "en", "de")


def _processed(made: Made, args: Part) -> Task:
    return _pairs(args, {"hub": "stas/wmt14-en-de-pre-processed"}, "en", "de")


def _pairs(args: Part, where: Options, source: str, target: str) -> Task:
    """Pairs on the hub that no task reads."""
    prefix, suffix = args.take("prompt_prefix", str, ""), args.take("prompt_suffix", str, "")
    prefix, suffix = (re.sub(r"[{}]", r"\g<0>\g<0>", text) for text in (prefix, suffix))
    theirs = f"translation.{target}"
    columns = {
        "prompt": f"{prefix}{{translation.{source}}}{suffix}",
        "responses": theirs,
        "references": theirs,
    }
    return Task("dataset", {**where, **columns}, language=target)


def _dummy(made: Made, args: Part) -> Task:
    rows = args.take("n_samples", int, 50)
    options: Options = {"prompt": args.take("prompt", str, "")}
    return Task("toy-numbers", {**options, **({} if rows == 50 else {"size": rows})}, rows=rows)


def _own(made: Made, args: Part, pool: str) -> Task:
    """A pool that has no task: data of the user's own."""
    file = re.sub(r"\W+", "-", pool).strip("-") or "mine"
    about = f" ({', '.join(f'{key}: {each}' for key, each in args.rest().items())})" if args.data else ""
    what = "has no task here" if pool == "crd3" else "is no pool of RL4LMs' own"
    made.note(
        "task",
        f"`{pool}`{about} {what}: write its samples as lines of JSON, with `prompt`, `references`, and `responses` to "
        "learn from where it imitates; what its `meta_data` holds may be further columns. Or write a task "
        "(docs/tasks.md).",
    )
    splits = {"train": 0.9, "val": 0.1}
    return Task("dataset", {"path": f"{file}.jsonl", "splits": splits})


POOLS: dict[str, Callable[[Made, Part], Task]] = {
    "commongen": _common_gen,
    "cnn_daily_mail": _summaries,
    "totto": _totto,
    "narrative_qa": _narrative_qa,
    "daily_dialog": _daily_dialog,
    "iwslt2017en_de": lambda made, args: _translated(made, args, "iwslt17", "en", "de"),
    "wmt16": _wmt,
    "wmt16newsonly": _news_only,
    "wmt14_processed_en_de": _processed,
    "dummy_pool": _dummy,
}
"""RL4LMs' name → the task."""


# -- how long prompts are -------------------------------------------------------------------------------------------


def cut(made: Made, task: Task, model: Model, longest: int | None, side: str, later: str) -> Options:
    """Options of the policy. `side` is where the original cut prompts in rollouts, `later` in evaluation."""
    policy: Options = {"path": model.path, **({"tokenizer": model.tokenizer} if model.tokenizer else {})}
    if task.name not in LIMITS:
        if longest is not None:
            policy |= {"max_prompt_tokens": longest, "too_long": "truncate", "truncation_side": side}
        return policy
    usual, ours = LIMITS[task.name]
    if side == later == ours:
        if longest not in (None, usual):
            task.options["max_prompt_tokens"] = longest
    elif longest is not None:
        ends = side if side == later else f"{side} (in evaluation on the {later})"
        if side == ours and longest != usual:
            task.options["max_prompt_tokens"] = longest
        made.note(
            "task",
            f"Prompts had at most {longest} tokens, cut on the {ends}; here they have "
            f"{task.options.get('max_prompt_tokens', usual)}, cut on the {ours}, where rollouts and evaluation agree.",
        )
    task.options["tokenizer"] = model.reads
    return policy
