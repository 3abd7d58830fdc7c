"""Record what TRL computes of the cases: `python tests/beside_trl/record.py`, in an environment with trl==1.16.0.

TRL's own code runs throughout: its trainers are built, score the given responses (`_generate_and_score_completions`,
of which only the sampling is replaced), and compute their loss; then the gradient is taken. With `--check` nothing
is written: the numbers are compared with those of `recorded.json`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
import trl
from safetensors.torch import load_file
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.trainer.utils import split_tensor_dict
from trl_cases import (
    CASES,
    MAX_NEW,
    PAIRS,
    PROMPTS,
    RESPONSES,
    REWARDS,
    SCORED,
    SPREAD,
    Case,
    fingerprint,
    sampler_logprobs,
    tokenizer,
    tokens,
    write_gpt2,
    write_model,
)

RECORDED = Path(__file__).parent / "recorded.json"
CLASSES: dict[str, tuple[Any, Any]] = {
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig),
    "cpo": (CPOTrainer, CPOConfig),
}
PLAIN: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
    "disable_tqdm": True,
}  # fmt: skip


def main() -> None:
    if trl.__version__ != "1.16.0":
        sys.exit(f"this is TRL {trl.__version__}; the numbers are those of trl==1.16.0")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {which: write_model(Path(folder) / which, which) for which in SPREAD}
        cases = {name: computed(case, models, Path(folder)) for name, case in CASES.items()}
        gpt2 = {**models, "reference": write_gpt2(Path(folder) / "gpt2")}
        padding = {
            "llama": moved_by_padding(models, Path(folder)),
            "gpt2": moved_by_padding(gpt2, Path(folder)),
        }
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    found = {**versions, "cases": cases, "moved_by_padding": padding}
    if "--check" in sys.argv:
        known = json.loads(RECORDED.read_text())["cases"]
        worst = max(furthest(cases[name], known[name]) for name in CASES)
        print(f"{len(cases)} cases, at most {worst:.1e} from the recorded numbers")
        sys.exit(worst > 1e-5)
    RECORDED.write_text(written(found))


def computed(case: Case, models: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """What TRL makes of a case: loss, gradient, and the numbers on the way there."""
    return (scored if case.trainer in SCORED else compared)(case, models, folder)


def trainer_of(
    case: Case, models: Mapping[str, Path], folder: Path, data: datasets.Dataset, **options: Any
) -> Any:
    trainer, config = CLASSES[case.trainer]
    args = config(output_dir=str(folder / "out"), **PLAIN, **options, **case.trl)
    model = transformers.AutoModelForCausalLM.from_pretrained(models["reference"], dtype=torch.float32)
    further: dict[str, Any] = {}
    if case.trainer in SCORED:
        further["reward_funcs"] = lambda completions, **_: [r for group in REWARDS for r in group]
    made = trainer(model=model, args=args, train_dataset=data, processing_class=tokenizer(), **further)
    made.model.train()
    made.current_gradient_accumulation_steps = case.pieces
    return made


def become(trainer: Any, folder: Path) -> None:
    """Give the policy other weights, as optimiser steps would."""
    trainer.model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)


def given(case: Case, models: Mapping[str, Path], folder: Path) -> tuple[Any, list[dict[str, str]]]:
    """A trainer that is given the responses where it would sample, and the rows that ask for them."""
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in RESPONSES[0]]
    sizes = {
        "num_generations": len(RESPONSES[0]),
        "max_completion_length": MAX_NEW,
        "per_device_train_batch_size": len(rows) // case.pieces,
        "gradient_accumulation_steps": case.pieces,
        "num_iterations": 2,  # more than one, so that TRL keeps the log-probs of `old`
    }
    trainer = trainer_of(case, models, folder, datasets.Dataset.from_list(rows), **sizes)
    ids = [tokens(response) for group in RESPONSES for response in group]
    trainer._generate_single_turn = lambda *_: (ids, None) if case.trainer == "grpo" else ids
    return trainer, rows


def scored(case: Case, models: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """GRPO and RLOO: the policy of `old` is given the responses, that of `now` learns from them."""
    trainer, rows = given(case, models, folder)
    become(trainer, models["old"])
    if case.sampler:  # vLLM itself is not needed for what TRL does with its log-probs
        said = sampler_logprobs(alone(trainer))
        ids, _ = trainer._generate_single_turn()
        trainer.use_vllm, trainer._generate_single_turn = True, lambda *_: (ids, said)
    batch = trainer._generate_and_score_completions(rows)
    become(trainer, models["now"])
    loss = 0.0
    for piece in split_tensor_dict(batch, case.pieces):
        part = trainer.compute_loss(trainer.model, piece)
        part.backward()
        loss += float(part.detach())
    return {"loss": loss, "advantages": batch["advantages"].tolist(), **gradient(trainer)}


def alone(trainer: Any) -> list[list[float]]:
    """TRL's log-probs of the responses, each by itself, so that nothing is padded."""
    found = []
    for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
        for response in responses:
            ids = torch.tensor([tokenizer()(prompt)["input_ids"] + tokens(response)])
            with torch.no_grad():
                logps, _, _ = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, torch.ones_like(ids), len(tokens(response))
                )
            found.append(logps[0].tolist())
    return found


def moved_by_padding(models: Mapping[str, Path], folder: Path) -> float:
    """The largest difference between a token's log-prob in the batch and alone: 0 but for rounding if all is well."""
    trainer, rows = given(Case("grpo"), models, folder)
    together = trainer._generate_and_score_completions(rows)["old_per_token_logps"].tolist()
    pairs = zip(together, alone(trainer), strict=True)
    return max(abs(a - b) for row, known in pairs for a, b in zip(row, known, strict=False))


def compared(case: Case, models: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """DPO and its relatives: a pair to each prompt."""
    if case.trainer != "kto":
        rows = [
            {"prompt": prompt, "chosen": f" {said[better]}", "rejected": f" {said[worse]}"}
            for prompt, said, (better, worse) in zip(PROMPTS, RESPONSES, PAIRS, strict=True)
        ]
    else:
        rows = [
            {"prompt": prompt, "completion": f" {said[pair[side]]}", "label": side == 0}
            for side in (0, 1)
            for prompt, said, pair in zip(PROMPTS, RESPONSES, PAIRS, strict=True)
        ]
    trainer = trainer_of(
        case, models, folder, datasets.Dataset.from_list(rows), per_device_train_batch_size=len(rows)
    )
    become(trainer, models["now"])
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return {"loss": float(loss.detach()), **gradient(trainer)}


def gradient(trainer: Any) -> dict[str, Any]:
    found = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    return {"gradient": fingerprint(found)}


def furthest(found: Any, known: Any) -> float:
    """The largest difference, relative to a weight's gradient, or to a number and at least 0.1."""
    if isinstance(found, Mapping):
        return max(furthest(found[key], known[key]) for key in {*found, *known})
    if isinstance(found, Sequence):
        scale = max(map(abs, known)) or 1.0
        return max(abs(a - b) / scale for a, b in zip(found, known, strict=True))
    return float(abs(found - known) / max(abs(known), 0.1))


def written(found: Any, indent: str = "") -> str:
    """JSON with one line a list, eight digits a number."""
    if isinstance(found, Mapping):
        inner = ",\n".join(f'{indent} "{key}": {written(x, indent + " ")}' for key, x in found.items())
        return "{\n" + inner + "\n" + indent + "}" + ("" if indent else "\n")
    if isinstance(found, float):
        return f"{found:.8g}"
    return "[" + ", ".join(written(x) for x in found) + "]" if isinstance(found, list) else json.dumps(found)


if __name__ == "__main__":
    main()
