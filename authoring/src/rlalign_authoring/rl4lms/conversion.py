"""A configuration of RL4LMs as a pipeline, with comments.

What each value becomes, and why, stands in docs/guides/from-rl4lms.md; `recipes/grue` has the same conversions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlalign_authoring import layout
from rlalign_authoring.rl4lms import learning, models, scores, tasks
from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.sampling import Sampling
from rlalign_authoring.rl4lms.source import Part, Source

EVALUATED = 512
"""Examples of an evaluation; the original's are all of the split."""
NAMES = {"ppo": "PPO", "nlpo": "NLPO", "a2c": "A2C", "trpo": "TRPO", "supervised": "SFT"}


def migrated(text: str, name: str) -> str:
    """The pipeline for a file that is called `name` in messages; ConfigError lists all that is wrong with it."""
    source, made = Source(text, name), Made()
    top = source.top
    alg = top.part("alg")
    method = alg.need("id", f"the algorithm: {', '.join(NAMES)}")
    if method and method not in NAMES:
        alg.wrong("id", f"there is no algorithm `{method}` here (there are: {', '.join(NAMES)})")
    if method in NAMES:
        (_supervised if method == "supervised" else _online)(made, top, alg)
    source.refuse_what_is_wrong()
    for line, key, others in source.swept:
        if others:
            made.left.append(
                f"`{key}` (line {line}) tries {len(others) + 1} values, of which the first stands here; `rlalign "
                f"study` tries several; the others: {', '.join(map(layout.flow, others))}"
            )
    return made.text(_header(made, method, name))


def _header(made: Made, method: str, name: str) -> Iterator[str]:
    (policy,) = made.sections["policy"].values()
    (task,) = made.sections["task"]
    what = f"{NAMES[method]}: {policy['path'].rpartition('/')[2]} on {task}"
    yield f"{what}. Made of RL4LMs' {name} by `rlalign migrate rl4lms`."
    yield "Values are that file's but for what is noted; lines are its lines. docs/guides/from-rl4lms.md says why."


def _online(made: Made, top: Part, alg: Part) -> None:
    said, evaluation, env = alg.part("policy"), top.part("train_evaluation"), top.part("env")
    args, inside = said.part("args"), env.part("args")
    policy = said.need("id", "the policy, such as `causal_lm_actor_critic_policy`")
    model = models.model(
        made, args, top.part("tokenizer"), "seq2seq-lm" if "seq2seq" in policy else "causal-lm"
    )
    task = tasks.task(made, top.part("datapool"), supervised=False)
    learned = scores.rewards(made, top.part("reward_fn"), task)
    made.leave(top.part("tokenizer"), "RL4LMs reads it in supervised learning only", "max_length")
    length = inside.take("max_prompt_length", int, 0) or None
    side = inside.take("prompt_truncation_side", str, "left")
    options = tasks.cut(made, task, model, length, side, args.take("prompt_truncation_side", str, "left"))
    made.sections["policy"] = {model.kind: options}
    made.sections["models"] = {"value": {"value-head": {"trunk": "own"}}}
    longest = inside.take("max_episode_length", int, 512) or 512
    generation = Sampling(made, args.part("generation_kwargs"), task, "generation", longest).rollout()
    _leave_the_rest(made, env, inside, args, model.kind)
    learning.online(
        made,
        alg,
        alg.take("id", str, ""),
        env.take("n_envs", int, 1),
        generation["max_new_tokens"],
        evaluation.take("n_iters", int, 1),
    )
    if not evaluation.has("n_iters"):
        evaluation.wrong("n_iters", "is missing: how many iterations")
    made.sections["rewards"] = [*learned, {"kl": _kl(made, alg.part("kl_div"))}]
    made.sections["generation"] = generation
    decoding = generation
    if evaluation.has("generation_kwargs"):
        decoding = Sampling(made, evaluation.part("generation_kwargs"), task, "evaluate", longest).decoding()
    else:
        evaluation.take("generation_kwargs", dict, {})
    metrics = scores.measured(made, evaluation.each("metrics"), task, learned, kl=decoding == generation)
    made.sections["task"] = {task.name: task.options}
    _evaluate(made, evaluation, task, evaluation.take("eval_every", int, 0), decoding, metrics)


def _leave_the_rest(made: Made, env: Part, inside: Part, policy: Part, kind: str) -> None:
    """What nothing here corresponds to."""
    if not inside.take("terminate_on_eos", bool, False):
        made.note(
            "generation",
            "`terminate_on_eos` is off: RL4LMs went on beyond the end token; here a response ends with it.",
        )
    if kind == "causal-lm":
        made.leave(
            inside,
            "a decoder-only model has none; it put a stray token behind each prompt",
            "context_start_token",
        )
    else:
        inside.take("context_start_token", int, 0)  # the model's own configuration says it
    if inside.take("priority_scale", float, 0.0):
        made.leave(
            inside, "every sample weighs 1 in RL4LMs' pools, so that it changes nothing", "priority_scale"
        )
    if policy.take("apply_model_parallel", bool, True) and policy.has("apply_model_parallel"):
        made.leave(
            policy, "`distributed: {shard: true}` cuts weights over `--processes N`", "apply_model_parallel"
        )
    made.leave(policy, "is not used in RL4LMs", "use_sde")
    made.leave(policy, "the optimiser is AdamW", "optimizer_class")


def _kl(made: Made, said: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"coef": said.take("coeff", float, 0.0)}
    if not said.has("coeff"):
        said.wrong("coeff", "is missing: the coefficient of the KL")
    if said.has("target_kl"):
        found["target"] = said.take("target_kl", float, 0.0)
    said.asked["target_kl"] = None
    return found


def _supervised(made: Made, top: Part, alg: Part) -> None:
    evaluation, tokenizer = top.part("train_evaluation"), top.part("tokenizer")
    kind = alg.take("model_type", str, "causal")
    model = models.model(made, alg, tokenizer, "seq2seq-lm" if kind == "seq2seq" else "causal-lm")
    task = tasks.task(made, top.part("datapool"), supervised=True)
    length = tokenizer.take("max_length", int, 0) or None
    side = tasks.LIMITS.get(task.name, (0, "left"))[1]
    policy = tasks.cut(made, task, model, length, side, side)
    if task.name == "imdb" and kind == "causal":
        policy["too_long"] = "drop"
        made.note("policy", "Reviews that do not fit the model's positions are left out; RL4LMs cuts them.")
    made.note(
        "task",
        "RL4LMs' supervised causal models saw no end and no space before the reference, and learned from the prompt as "
        "well; here from the response alone."
        if kind == "causal"
        else "A prompt is cut once, for learning and evaluation.",
    )
    made.sections["policy"] = {model.kind: policy}
    made.sections["task"] = {task.name: task.options}
    every = learning.supervised(made, alg, task.name)
    for section, why in (("reward_fn", "nothing is rewarded"), ("env", "nothing is sampled to learn from")):
        top.asked[section] = None
        if section in top.data:
            made.left.append(f"`{section}` ({top.line(section)}): {why} in supervised learning")
    decoding = Sampling(made, alg.part("generation_kwargs"), task, "evaluate", None).decoding()
    metrics = scores.measured(made, evaluation.each("metrics"), task, (), kl=False)
    why = "of RL4LMs' trainers of policies, not of this one"
    made.leave(evaluation, why, "n_iters", "eval_every", "generation_kwargs")
    _evaluate(made, evaluation, task, every, decoding, metrics)


def _evaluate(
    made: Made, said: Part, task: tasks.Task, every: int | None, decoding: dict[str, Any], use: list[Any]
) -> None:
    made.leave(said, "batches are found from the memory there is", "eval_batch_size")
    made.leave(
        said,
        "a checkpoint is written as often as that is cheap; `checkpoints: {every: N}` sets it",
        "save_every",
    )
    if task.rows is None:
        made.note(
            "evaluate",
            f"The first {EVALUATED} examples of `val`; RL4LMs reads all, and `test` before and after: `rlalign eval "
            "RUN --split test`.",
        )
    made.sections["evaluate"] = {
        **({"every": every} if every else {}),
        "split": "val",
        "examples": min(EVALUATED, task.rows or EVALUATED),
        "generation": decoding,
        "use": use,
    }
