"""TRL's side: its trainer as its users run it, with what they would switch off to make it fast switched off."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
import trl
from benchmarks.common.shapes import tokenizer_of
from benchmarks.common.timing import Span, Spent, now, since
from benchmarks.speed.work import BETA, EPOCHS, KL, LR, Row, odd, texts
from torch import Tensor, nn

for noisy in (transformers.logging.set_verbosity_error, transformers.logging.disable_progress_bar):
    noisy()
datasets.disable_progress_bars()


class Clock(transformers.TrainerCallback):
    """Times each step from the end of what was done after the one before: data, sampling, update, log."""

    def __init__(self, after: Callable[[], None]) -> None:
        self.steps: list[Spent] = []
        self.rollouts: list[Spent] = []
        self.sampling: Span | None = None
        self._after = after

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        self._then = now()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self.steps.append(since(self._then))
        self.rollouts.append((0.0, 0.0) if self.sampling is None else self.sampling.taken())
        self._after()
        self._then = now()


def trainer(row: Row, folder: Path, place: Path, steps: int, clock: Clock) -> Any:
    """A trainer that does the row's work `steps` times."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tokenizer_of(folder))
    tokenizer.padding_side = "left"
    common: dict[str, Any] = {
        "output_dir": str(place / "trl"), "report_to": [], "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "bf16": row.dtype == "bfloat16", "gradient_checkpointing": False,
        "learning_rate": LR, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "seed": 0,
    }  # fmt: skip
    made = {"rloo": _grouped, "grpo": _grouped, "dpo": _pairs, "ppo": _ppo}[row.algorithm]
    return made(row, folder, tokenizer, steps, clock, common)


def _network(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _prompts(row: Row, folder: Path, steps: int) -> list[str]:
    s = row.shape
    return texts(folder, steps * s.prompts, s.prompt, s.new, s.mixed)[0]


def _grouped(row: Row, folder: Path, tokenizer: Any, steps: int, clock: Clock, common: dict[str, Any]) -> Any:
    s = row.shape
    classes = (
        (trl.RLOOTrainer, trl.RLOOConfig) if row.algorithm == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)
    )
    own = {"beta": KL} if row.algorithm == "rloo" else {"beta": 0.0, "loss_type": "grpo"}
    args = classes[1](
        **common, **own, max_steps=steps, max_grad_norm=1.0, disable_dropout=True,
        per_device_train_batch_size=row.responses, steps_per_generation=1, num_iterations=1,
        num_generations=s.samples, max_completion_length=s.new, temperature=1.0, top_p=1.0, top_k=0,
        generation_kwargs={} if s.mixed else {"min_new_tokens": s.new},
    )  # fmt: skip
    made = classes[0](
        model=_network(folder),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [odd(text) for text in completions],
        train_dataset=datasets.Dataset.from_dict({"prompt": _prompts(row, folder, steps)}),
        args=args,
        callbacks=[clock],
    )
    clock.sampling = made._generate_single_turn = Span(made._generate_single_turn)
    return made


def _pairs(row: Row, folder: Path, tokenizer: Any, steps: int, clock: Clock, common: dict[str, Any]) -> Any:
    s = row.shape
    prompts, pairs = texts(folder, steps * s.prompts, s.prompt, s.new)
    data = [
        {"prompt": p, "chosen": f" {a}", "rejected": f" {b}"}
        for p, (a, b) in zip(prompts, pairs, strict=True)
    ]
    args = trl.DPOConfig(
        **common, max_steps=steps, max_grad_norm=1.0, disable_dropout=True, beta=BETA, max_length=None,
        per_device_train_batch_size=s.prompts,
    )  # fmt: skip
    return trl.DPOTrainer(
        model=_network(folder),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(data),
        args=args,
        callbacks=[clock],
    )


class OddAtEnd(nn.Module):
    """What TRL's PPO takes for a reward: a model. This one is a table, so that it costs nothing."""

    base_model_prefix = "backbone"

    def backbone(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, ids: Tensor) -> Tensor:
        return ids % 2


def _ppo(row: Row, folder: Path, tokenizer: Any, steps: int, clock: Clock, common: dict[str, Any]) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    s = row.shape
    value: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    ids = [tokenizer(prompt)["input_ids"] for prompt in _prompts(row, folder, steps)]
    args = PPOConfig(
        **common, total_episodes=steps * row.responses, per_device_train_batch_size=row.responses,
        num_mini_batches=1, num_ppo_epochs=EPOCHS, local_rollout_forward_batch_size=row.responses,
        response_length=s.new, temperature=1.0, stop_token=None, kl_coef=KL, num_sample_generations=0,
    )  # fmt: skip
    made = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=_network(folder),
        ref_model=_network(folder),
        reward_model=OddAtEnd(),
        value_model=value,
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
        callbacks=[clock],
    )
    clock.sampling = ppo_trainer.batch_generation = Span(
        getattr(ppo_trainer.batch_generation, "function", ppo_trainer.batch_generation)
    )
    return made
