"""`reward_fn` and `train_evaluation.metrics`: rewards and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rlalign_authoring.rl4lms import models
from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.source import Part
from rlalign_authoring.rl4lms.tasks import Task

Item = str | dict[str, Any]
INTENT = "rajkumarrrk/roberta-daily-dialog-intent-classifier"
SENTIMENT = "lvwerra/distilbert-imdb"
BERT = {"en": "FacebookAI/roberta-large"}
"""Language → BERTScore's model; of others the multilingual one."""
PY_ROUGE = {
    "max_n": 4,
    "length_limit_type": "words",
    "apply_avg": True,
    "apply_best": True,
    "alpha": 0.5,
    "weight_factor": 1.2,
    "stemming": True,
}
"""`rouge_l_max` in all of RL4LMs' files."""
MULTILINGUAL = "google-bert/bert-base-multilingual-cased"


class Scores:
    """What a section says of scores, as items."""

    def __init__(self, made: Made, task: Task, section: str) -> None:
        self.made, self.task, self.section = made, task, section

    def note(self, text: str) -> None:
        self.made.note(self.section, text)

    def items(self, said: Part) -> list[Item]:
        """Those of one entry."""
        name, args = said.need("id", "the name of a reward or a metric"), said.part("args")
        if name in LEFT:
            self.made.leave(said, LEFT[name], "id")
            args.rest()
            return []
        return self.named(name, args) if name else []

    def named(self, name: str, args: Part) -> list[Item]:
        if name in ITEMS:
            found = ITEMS[name](self, args)
        else:
            found = [self.own(name, args)]
        shaping = args.take("shaping_fn", str, "")
        if shaping:
            self.note(f"{args.said('shaping_fn')} is a reward of its own, as their sum was.")
            found += self.named(shaping, args.source.part((*args.keys, "shaping_fn"), {}))
        return found

    # -- of texts -----------------------------------------------------------------------------------------------------

    def meteor(self, args: Part) -> list[Item]:
        self.note(
            "METEOR compares with each reference, and the best counts; RL4LMs compared with all of them written out as "
            "one text, which `meteor: {compat: rl4lms}` does."
        )
        return ["meteor"]

    def rouge(self, args: Part) -> list[Item]:
        options: dict[str, Any] = {}
        if args.has("rouge_type"):
            options["type"] = args.take("rouge_type", str, "rouge1")
        if self.task.language != "en":
            options |= {"tokens": "unicode", "stemmer": False}
        args.take("use_single_ref", bool, True)
        self.note(
            "ROUGE compares with each reference; RL4LMs took the first, or all of them as one text (`use_single_ref`)."
        )
        return [{"rouge": options} if options else "rouge"]

    def sacrebleu(self, args: Part) -> list[Item]:
        said = {"tokenize": args.take("tokenize", str, ""), "lowercase": args.take("lowercase", bool, False)}
        options = {key: each for key, each in said.items() if each}
        self.made.leave_rest(args, "sacreBLEU's own default is taken")
        return [{"sacrebleu": options} if options else "sacrebleu"]

    def ter(self, args: Part) -> list[Item]:
        if self.section != "rewards":
            return ["ter"]
        self.note("`clip`: nothing below 0, which RL4LMs had not, so that one long response outweighed many.")
        return [{"ter": {"clip": True}}]

    def rouge_l_max(self, args: Part) -> list[Item]:
        words = args.take("length_limit", int, 100)
        if args.take("limit_length", bool, True) is False:
            self.note(f"{args.said('limit_length')}: the first {words} words are read all the same.")
        for key, usual in PY_ROUGE.items():
            if str(args.data.get(key, usual)).removesuffix(",") == str(
                usual
            ):  # `apply_best: True,` is in RL4LMs' files
                args.asked[key] = None
        self.made.leave_rest(args, "`rouge-l-max` computes as RL4LMs' own files say")
        return ["rouge-l-max" if words == 100 else {"rouge-l-max": {"words": words}}]

    def spider(self, args: Part) -> list[Item]:
        spice, cider = args.take("spice_coeff", float, 0.0), args.take("cider_coeff", float, 0.0)
        found: list[Item] = [{"cider": {}, "weight": cider}] if cider else []
        if spice:
            self.note(
                "SPICE needs Java and is not here: write a function that calls it, in my_spice.py beside this."
            )
            found.append({"function": {"path": "my_spice.py:score"}, "as": "spice", "weight": spice})
        self.note(
            "CIDEr counts n-grams in the references of `train`; RL4LMs in those of the responses' own batch."
        )
        return found

    def spice(self, args: Part) -> list[Item]:
        if self.task.name == "common-gen":
            self.note(
                "SPICE needs Java and is not here; `coverage`, which the paper lists, stands in its place."
            )
            return ["coverage"]
        self.note("SPICE needs Java and is not here.")
        return []

    def numbers(self, args: Part) -> list[Item]:
        least = args.take("min_tokens", int, 20)
        return ["increasing-numbers" if least == 20 else {"increasing-numbers": {"min_tokens": least}}]

    def dates(self, args: Part) -> list[Item]:
        if self.task.name == "toy-numbers":
            self.task.name = "toy-dates"
        return ["dates"]

    # -- of models ----------------------------------------------------------------------------------------------------

    def classifier(self, args: Part) -> list[Item]:
        said = args.need("model_name", "the classifier, a folder or a name on the hub")
        options: dict[str, Any] = {"path": models.name(self.made, self.section, said) if said else ""}
        options["label"] = args.take("label_ix", int, 0)
        if not args.take("include_prompt_for_eval", bool, True):
            options["context"] = None
        self.made.leave(args, "batches are found (`batch_tokens`)", "batch_size")
        return [{"classifier": options, **({"as": "sentiment"} if said == SENTIMENT else {})}]

    def intent(self, args: Part) -> list[Item]:
        options = {"path": INTENT, "label_from": "label", "value": "largest", "context": "last_turn"}
        item: dict[str, Any] = {"classifier": options, "as": "intent"}
        self.note(
            "The classifier reads the last turn, `<EOU>` and the response; RL4LMs left out that `<EOU>`."
        )
        if self.section != "rewards":
            return [item]
        intent, shaped = args.take("intent_coeff", float, 1.0), args.take("shape", bool, True)
        text = args.take("auto_coeff", float, 1.0) if shaped else 0.0
        if text:
            self.note("METEOR is that of each response; RL4LMs' was a mean over all that came before it.")
        args.take("auto_coeff", float, 1.0)
        return [_weighed(item, intent), *([_weighed({"meteor": {}}, text)] if text else [])]

    def bert_score(self, args: Part) -> list[Item]:
        language = args.take("language", str, "en")
        if language == "en" != self.task.language and args.has("language"):
            self.note(
                f"{args.said('language')}: the responses are not English, so the model is multilingual here."
            )
            language = self.task.language
        return [{"bert-score": {"path": BERT.get(language, MULTILINGUAL)}}]

    def bleurt(self, args: Part) -> list[Item]:
        name = args.take("config_name", str, "") or args.take("checkpoint", str, "") or "bleurt-base-128"
        args.take("checkpoint", str, "")
        self.note("`bleurt` reads a checkpoint from a folder of yours.")
        return [{"bleurt": {"path": f"./{name}"}}]

    def perplexity(self, args: Part) -> list[Item]:
        stride = args.take("stride", int, 512)
        args.take("use_text_from_meta_data", bool, False)
        args.take("tokenizer_id", str, "")
        if args.take("model_type", str, "causal") != "causal":
            self.note("The perplexity of an encoder–decoder is that of references as answers, `held-out`.")
            return ["held-out"]
        return [{"reference-perplexity": {"stride": stride}}]

    def summac(self, args: Part) -> list[Item]:
        grain = args.take("granularity", str, "paragraph")
        entails, contradicts = args.take("use_ent", bool, True), args.take("use_con", bool, True)
        kind = args.take("model_name", str, "mnli")
        path = "FacebookAI/roberta-large-mnli" if kind == "mnli" else "tals/albert-xlarge-vitaminc-mnli"
        self.made.leave_rest(args, "`summac-zs` has no such option")
        if grain != "sentence" or not entails:
            self.note("SummaC goes sentence by sentence here, and always counts entailment.")
        return [{"summac-zs": {"path": path, **({} if contradicts else {"contradiction": False})}}]

    def preference(self, args: Part) -> list[Item]:
        self.note(
            "The preference model, T5 with 11 billion weights in a file of its own, is not read here: METEOR, which "
            "stood there until 2022, stands in its place."
        )
        args.rest()
        return self.meteor(args)

    def own(self, name: str, args: Part) -> Item:
        """A reward that RL4LMs has not, or of this project's that it may mean."""
        function = re.sub(r"\W+", "_", name)
        self.note(
            f"`{name}` is not RL4LMs' own: write it as a function `{function}` of `texts`, `references`, `meta`, in "
            "my_rewards.py beside this."
        )
        arguments = {key: value for key, value in args.rest().items() if key != "shaping_fn"}
        options = {"path": f"my_rewards.py:{function}", **({"arguments": arguments} if arguments else {})}
        return {"function": options, "as": re.sub(r"[^\w-]+", "-", name)}


def _weighed(item: dict[str, Any], weight: float) -> dict[str, Any]:
    return item if weight == 1.0 else {**item, "weight": weight}


def _plainly(name: str) -> Callable[[Scores, Part], list[Item]]:
    return lambda scores, args: [name]


LEFT = {
    "summaCConv": "RL4LMs loads no trained weights for it, so its scores are random; `summac-zs` measures the same",
}
"""Names that have no counterpart: why."""
ITEMS: dict[str, Callable[[Scores, Part], list[Item]]] = {
    "learned_reward": Scores.classifier,
    "learned_batched_reward": Scores.classifier,
    "meteor": Scores.meteor,
    "rouge": Scores.rouge,
    "rouge_combined": Scores.rouge,
    "rouge_l_max": Scores.rouge_l_max,
    "bleu": _plainly("bleu"),
    "sacre_bleu": Scores.sacrebleu,
    "ter": Scores.ter,
    "chrf": _plainly("chrf"),
    "bert_score": Scores.bert_score,
    "bleurt": Scores.bleurt,
    "cider": _plainly("cider"),
    "spice": Scores.spice,
    "spider": Scores.spider,
    "parent": _plainly("parent"),
    "parent_totto": _plainly("parent"),
    "bleu_totto": lambda scores, args: [{"sacrebleu": {"lowercase": True}}],
    "common_gen_repeat_penalty": _plainly("commongen-penalty"),
    "common_gen_repeat_penalty_batched": _plainly("commongen-penalty"),
    "common_gen_preference_model": Scores.preference,
    "intent_accuracy": Scores.intent,
    "causal_perplexity": Scores.perplexity,
    "diversity": lambda scores, args: [
        {"diversity": {"window": args.take("window_size", int, 100)}}
        if args.take("window_size", int, 100) != 100
        else "diversity"
    ],
    "summaCZS": Scores.summac,
    "increasing_numbers": Scores.numbers,
    "sentences_with_dates": Scores.dates,
    "dates": Scores.dates,
}
"""RL4LMs' name → what it is here."""


def rewards(made: Made, said: Part, task: Task) -> list[Item]:
    """The rewards, without the KL."""
    return Scores(made, task, "rewards").items(said)


def measured(made: Made, listed: Sequence[Part], task: Task, learned: Sequence[Item], kl: bool) -> list[Item]:
    """`evaluate.use`: the rewards by their names, and what is measured beside."""
    scores = Scores(made, task, "evaluate")
    found: list[Item] = [called(one) for one in learned]
    if kl:
        found.append("kl")
    known = {called(one): component(one) for one in learned}
    for part in listed:
        for item in scores.items(part):
            name = called(item)
            if name not in known:
                known[name] = component(item)
                found.append(item)
            elif known[name] != component(item) and name not in BY_NAME:
                rest = {item: {}} if isinstance(item, str) else item
                found.append({**rest, "as": f"{name}-{len(found)}"})
            elif name not in map(called, learned):
                made.left.append(f"{part.said('id')}: is there already")
    return found


BY_NAME = ("rouge", "ter", "meteor")
"""Measured by the reward of that name, whatever its options."""


def called(item: Item) -> str:
    """What an item is called."""
    return item if isinstance(item, str) else str(item.get("as") or next(iter(item)))


def component(item: Item) -> tuple[str, Any]:
    """Its component and options."""
    return (item, {}) if isinstance(item, str) else next(iter(item.items()))
