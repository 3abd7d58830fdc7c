"""`alg`: the algorithm, and how much is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.source import Part

Options = dict[str, Any]
WEIGHT_DECAY = 1.0e-6
"""RL4LMs' default."""
SB3 = (
    "verbose", "tensorboard_log", "create_eval_env", "device", "_init_setup_model", "use_sde", "sde_sample_freq",
    "tracker",
)  # fmt: skip
"""Arguments of stable-baselines3 that are about its own workings."""


@dataclass
class Amounts:
    """How much an iteration is."""

    tokens: int
    """That the original collects."""
    longest: int
    """Tokens of the longest response."""
    batch: int
    """Tokens of an optimiser step; 0: all there are."""

    @property
    def step(self) -> int:
        """Responses of a step that, at their longest, have its tokens."""
        return min(math.ceil(self.batch / self.longest), self._least) if self.batch else 1

    @property
    def responses(self) -> int:
        """Those of an iteration, in whole steps."""
        return self.step * math.ceil(self._least / self.step)

    @property
    def _least(self) -> int:
        return max(1, math.ceil(self.tokens / self.longest))


# -- policy gradients with a value ----------------------------------------------------------------------------------


def online(made: Made, alg: Part, name: str, steps: int, longest: int, iterations: int) -> None:
    """The sections `algorithm` and `train`. `steps` is `n_envs`."""
    args = alg.part("args")
    made.leave(args, "the run shows itself", *SB3)
    made.leave(args, "says what the policy's section says", "policy_kwargs")
    n_steps = args.take("n_steps", int, 5 if name == "a2c" else 2048)
    batch = 0 if name == "a2c" else args.take("batch_size", int, 128 if name == "trpo" else 64)
    if name == "a2c":
        made.leave(args, "an iteration is one step", "batch_size", "n_epochs")
    much = Amounts(n_steps * steps, longest, batch)
    algorithm, train = ALGORITHMS[name](made, args, much)
    policy = alg.part("policy").part("args")
    if name == "nlpo":
        algorithm |= _mask(made, policy)
    else:
        masks = ("mask_type", "top_mask", "min_tokens_to_keep", "target_update_iterations")
        made.leave(policy, f"`{name}` has no mask", *masks)
    whole = alg.part("kl_div")
    if whole.take("norm_reward", bool, False):
        if name == "trpo":
            made.leave(whole, "`normalise` above `kl` brings rewards to a common scale", "norm_reward")
        else:
            algorithm["whiten_rewards"] = True
            made.note("algorithm", f"{whole.said('norm_reward')}: `whiten_rewards`, which leaves their mean.")
    lr = args.take("learning_rate", float, {"a2c": 7.0e-4, "trpo": 1.0e-3}.get(name, 3.0e-4))
    seed = args.take("seed", int, 0)
    if seed:
        made.sections["seed"] = seed
    train = {
        "iterations": iterations,
        "prompts": much.responses,
        **train,
        "lr": lr,
        **_optimiser(made, policy, name),
    }
    made.sections["algorithm"] = {name: algorithm} if algorithm else name
    made.sections["train"] = train
    step = f"; of a step, {batch} tokens, {much.step}" if batch else ""
    made.note(
        "train",
        f"{n_steps} steps of {steps} environment{'s' * (steps != 1)} are {much.tokens} tokens: as many responses of "
        f"{longest} tokens, the longest, make up `prompts`{step}.",
    )


def _optimiser(made: Made, policy: Part, name: str) -> Options:
    found: Options = {}
    decay = policy.take("weight_decay", float, WEIGHT_DECAY)
    if name in ("a2c", "trpo") or decay != WEIGHT_DECAY:
        found["weight_decay"] = decay
    adam = policy.part("optimizer_kwargs")
    if adam.has("betas"):
        found["betas"] = adam.take("betas", list, [])
    if adam.has("eps"):
        found["eps"] = adam.take("eps", float, 1.0e-8)
    made.leave(adam, "`learning_rate` goes before it", "lr")
    made.leave_rest(adam, "the optimiser is AdamW")
    return found


def _actor_critic(made: Made, args: Part, usual: Options) -> Options:
    """What PPO and A2C say alike, where it is not as usual."""
    named = {"gamma": "gamma", "gae_lambda": "lam", "ent_coef": "entropy"}
    found = {ours: args.take(theirs, float, usual[ours]) for theirs, ours in named.items()}
    value = args.take("vf_coef", float, 0.5)
    found["value"] = 2 * value
    if value != 0.5:
        made.note("algorithm", f"{args.said('vf_coef')} of (V − R)² is `value: {2 * value:g}` of ½(V − R)².")
    return {key: each for key, each in found.items() if each != usual[key]}


def _ppo(made: Made, args: Part, much: Amounts) -> tuple[Options, Options]:
    preset = {"gamma": 0.99, "lam": 0.95, "entropy": 0.0, "value": 1.0}
    algorithm: Options = {"preset": "rl4lms", "whiten": "batch", **_actor_critic(made, args, preset)}
    if not args.take("normalize_advantage", bool, True):
        algorithm["whiten"] = "none"
    if (clip := args.take("clip_range", float, 0.2)) != 0.2:
        algorithm["clip"] = clip
    if args.has("clip_range_vf"):
        algorithm["value_clip"] = args.take("clip_range_vf", float, 0.0)
        made.note(
            "algorithm",
            f"{args.said('clip_range_vf')}: here the larger of the clipped and the plain loss counts.",
        )
    if args.has("target_kl"):
        algorithm["target_kl"] = args.take("target_kl", float, 0.0)
    train: Options = {"minibatch": much.step}
    if (epochs := args.take("n_epochs", int, 10)) != 5:
        train["epochs"] = epochs
    if (norm := args.take("max_grad_norm", float, 0.5)) != 0.5:
        train["clip"] = norm
    made.note(
        "algorithm",
        "`preset: rl4lms` is γ 0.99, λ 0.95, clip 0.2, 5 epochs, gradients up to 0.5. Tokens of one response are "
        "alike, so advantages are whitened over the iteration, not within a step.",
    )
    return algorithm, train


def _mask(made: Made, policy: Part) -> Options:
    """NLPO's mask, as in the paper."""
    kind, top = policy.take("mask_type", str, "learned_top_p"), policy.take("top_mask", float, 0.9)
    refresh = policy.take("target_update_iterations", int, 1000)
    keep = policy.take("min_tokens_to_keep", int, 100)
    made.note(
        "algorithm",
        f"The mask is the paper's; the first release never refreshed it, and always kept {keep} tokens: `mode: rl4lms` "
        "computes that.",
    )
    if kind == "learned_top_p":
        return {"top_p": top, "refresh": refresh}
    if kind == "learned_top_k":
        return {"top_p": 1.0, "top_k": int(top), "refresh": refresh}
    made.note("algorithm", f"{policy.said('mask_type')}: the policy's own {int(top)} most probable tokens.")
    return {"top_p": 1.0, "top_k": int(top), "refresh": 1}


def _a2c(made: Made, args: Part, much: Amounts) -> tuple[Options, Options]:
    own = {"gamma": 1.0, "lam": 0.95, "entropy": 0.0, "value": 0.1}
    theirs = {"gamma": 0.99, "lam": 1.0, "entropy": 0.0, "value": 1.0}
    algorithm = {**{key: each for key, each in theirs.items() if each != own[key]}, "truncated": "terminal"}
    algorithm |= _actor_critic(made, args, theirs)
    if args.take("normalize_advantage", bool, False):
        algorithm["whiten"] = "batch"
    if args.take("use_rms_prop", bool, True):
        made.note("train", "The optimiser is AdamW; RL4LMs' A2C has RMSprop.")
    made.leave(args, "the optimiser is AdamW", "rms_prop_eps")
    return algorithm, {"clip": args.take("max_grad_norm", float, 0.5)}


TRPO: dict[str, tuple[str, type[int] | type[float]]] = {
    "target_kl": ("delta", float),
    "cg_damping": ("damping", float),
    "cg_max_steps": ("cg_steps", int),
    "line_search_max_iter": ("tries", int),
    "line_search_shrinking_factor": ("shrink", float),
    "gamma": ("gamma", float),
    "gae_lambda": ("lam", float),
    "n_critic_updates": ("passes", int),
    "sub_sampling_factor": ("sub_sampling", int),
}
"""RL4LMs' name → ours; all defaults are the same."""


def _trpo(made: Made, args: Part, much: Amounts) -> tuple[Options, Options]:
    algorithm = {
        ours: args.take(theirs, kind, kind()) for theirs, (ours, kind) in TRPO.items() if args.has(theirs)
    }
    for theirs in TRPO:
        args.asked[theirs] = None
    made.leave(args, "advantages are whitened over the batch", "normalize_advantage")
    made.leave(
        args, "the policy's step has no entropy bonus and no clip", "ent_coef", "max_grad_norm", "n_epochs"
    )
    made.note("train", "`lr` is that of the value; the step of the policy follows from `delta`.")
    return algorithm, {"minibatch": much.step, "clip": None}


ALGORITHMS: dict[str, Callable[[Made, Part, Amounts], tuple[Options, Options]]] = {
    "ppo": _ppo,
    "nlpo": _ppo,
    "a2c": _a2c,
    "trpo": _trpo,
}


# -- imitation ------------------------------------------------------------------------------------------------------

SHAPES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
"""transformers' `lr_scheduler_type` → the shape."""


def supervised(made: Made, alg: Part, task: str) -> int | None:
    """The sections `algorithm` and `train`, from `training_args`; after how many steps it is evaluated."""
    args = alg.part("training_args")
    size = args.take("per_device_train_batch_size", int, 8) * args.take("gradient_accumulation_steps", int, 1)
    if task == "common-gen":
        size = math.ceil(size / 2)
        made.note("train", f"{size} sets of words have about {2 * size} sentences, which was the batch.")
    train: Options = {"passes": args.take("num_train_epochs", float, 3.0), "prompts": size}
    if train["passes"] == int(train["passes"]):
        train["passes"] = int(train["passes"])
    if (steps := args.take("max_steps", int, -1)) > 0:
        del train["passes"]
        train = {"iterations": steps, **train}
    train["lr"] = args.take("learning_rate", float, 5.0e-5)
    if decay := args.take("weight_decay", float, 0.0):
        train["weight_decay"] = decay
    if (norm := args.take("max_grad_norm", float, 1.0)) != 1.0:
        train["clip"] = norm
    first, second = args.take("adam_beta1", float, 0.9), args.take("adam_beta2", float, 0.999)
    if (first, second) != (0.9, 0.999):
        train["betas"] = [first, second]
    if (eps := args.take("adam_epsilon", float, 1.0e-8)) != 1.0e-8:
        train["eps"] = eps
    if schedule := _schedule(made, args):
        train["schedule"] = schedule
    train["dropout"] = True
    made.note("train", "`dropout: true`: it is on in transformers' trainer, which RL4LMs uses.")
    if args.take("bf16", bool, False) or args.take("fp16", bool, False):
        train["dtype"] = "bfloat16"
    if args.take("gradient_checkpointing", bool, False):
        train["recompute"] = True
    made.leave(args, "RL4LMs draws one at random instead; `seed` at the top is 0 if unsaid", "seed")
    made.leave(
        args,
        "`distributed: {shard: true}` cuts weights over `--processes N`",
        "fsdp",
        "fsdp_config",
        "deepspeed",
    )
    made.leave(
        args,
        "a checkpoint is written as often as that is cheap",
        "save_total_limit",
        "save_steps",
        "save_strategy",
    )
    every = args.take("logging_steps", int, 500)
    made.leave_rest(args, "`train` has no such key")
    made.sections["algorithm"], made.sections["train"] = "sft", train
    return every


def _schedule(made: Made, args: Part) -> Options:
    said = args.take("lr_scheduler_type", str, "linear")
    shape = SHAPES.get(said, "linear")
    if said not in SHAPES:
        made.note("train", f"{args.said('lr_scheduler_type')}: there are constant, linear and cosine.")
    elif not args.has("lr_scheduler_type"):
        made.note("train", "`lr_scheduler_type` is unsaid, which to transformers means linear.")
    found: Options = {} if shape == "constant" else {"shape": shape}
    if share := args.take("warmup_ratio", float, 0.0):
        found["warmup"] = share
    made.leave(args, "`schedule.warmup` is a share of the phase", "warmup_steps")
    return found
