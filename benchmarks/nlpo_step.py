"""What NLPO's sampling costs: within the top-p set of a lagging copy, against sampling without it.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.nlpo_step
    … --models tiny llama --rounds 5 --json benchmarks/results/nlpo-step.json

Random models of the shapes that `rlalign-plugin-hf` loads, made in a temporary folder: nothing is downloaded.
They are nearly flat, the worst case of a nucleus; `peaked` ones have a larger head. 32 responses of 48 tokens
to 8 prompts of 16, nothing ends early. The ways alternate in one process, each measured once a round after
one round that does not count. Seconds are this process's own (CPU time), which other work disturbs least; a ratio
is taken within its round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.machine import about
from benchmarks.common.shapes import FIRST, write_tokenizer
from torch import Tensor

from rlalign import Example
from rlalign.builtin.nucleus import Nucleus
from rlalign.data.settings import Sampling
from rlalign.decoding.nucleus import nucleus
from rlalign.randomness import Seeds

PROMPTS, SAMPLES, PROMPT, STEPS = 8, 4, 16, 48
SHAPES = {
    "tiny": ("gpt2", {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 1000}),
    "llama": (
        "llama",
        {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "vocab_size": 8000},
    ),
    "small": ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}),
}
PEAKED = 12.0
"""Factor of the head of a peaked model."""


def policy_of(shape: str, *, peaked: bool) -> Any:
    """A policy with random weights and a tokenizer of numbered words."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlalign_plugin_hf import CausalLM

    kind, size = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        untied = {"tie_word_embeddings": False}
        config = AutoConfig.for_model(kind, **size, **untied, bos_token_id=0, eos_token_id=1)
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
        if peaked:
            network.get_output_embeddings().weight.data *= PEAKED
        network.save_pretrained(folder)
        write_tokenizer(Path(folder) / "tokenizer", config.vocab_size)
        policy = CausalLM(CausalLM.Config(path=folder, tokenizer=f"{folder}/tokenizer"))
        policy.setup()
    policy.ends = ()  # every response has all its steps
    return policy.eval()


def measured(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU seconds, wall seconds) of each way in each round, alternating."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            found[name] += [spent] if count else []
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def sampling(shape: str, *, peaked: bool, rounds: int, top_p: float, halves: bool) -> dict[str, Any]:
    """Plain sampling, and sampling within a mask, of one model."""
    policy = policy_of(shape, peaked=peaked)
    masks = {"nlpo": policy.copy("lagging")}
    if halves:
        from rlalign.records.weights import hold

        masks["nlpo, bfloat16 mask"] = hold(policy.copy("lagging"), torch.bfloat16)
    prompts = [" ".join(f"w{FIRST + 7 * i + j}" for j in range(PROMPT)) for i in range(PROMPTS)]
    examples = [Example(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]
    how = Sampling(samples=SAMPLES, max_new_tokens=STEPS)
    uniforms = Seeds(0).uniforms("bench", positions=range(PROMPTS), samples=SAMPLES, steps=STEPS)
    held: dict[str, float] = {}

    def within(name: str) -> None:
        constraint = Nucleus("mask", top_p=top_p)
        masks[name].ends = ()
        constraint.resolve({"mask": masks[name]})
        rollout = policy.sample(examples, how, uniforms, constraint)
        allowed = rollout.allowed
        rows = [] if allowed is None else [row for row in allowed.rows if row is not None]
        tensors = [x for row in rows for x in (row.bits_TB, row.ids, row.ends_T) if x is not None]
        held[name] = sum(x.numel() * x.element_size() for x in tensors) / 2**20

    ways: dict[str, Callable[[], Any]] = {"plain": partial(policy.sample, examples, how, uniforms)}
    ways |= {name: partial(within, name) for name in masks}
    found = measured(ways, rounds)
    seconds = {name: summary([cpu for cpu, _ in spent]) for name, spent in found.items()}
    ratios = {
        name: {
            clock: summary([x[at] / y[at] for x, y in zip(found[name], found["plain"], strict=True)])
            for at, clock in enumerate(("cpu", "wall"))
        }
        for name in masks
    }
    return {"model": shape, "peaked": peaked, "seconds": seconds, "ratio": ratios, "allowed MiB": held}


def by_sorting(logits_nV: Tensor, top_p: float) -> Tensor:
    """A nucleus the plain way."""
    sorted_nV, order_nV = torch.sort(logits_nV, dim=1, descending=True, stable=True)
    probs_nV = sorted_nV.softmax(1)
    keep_nV = probs_nV.cumsum(1) - probs_nV < top_p
    return torch.zeros_like(keep_nV).scatter_(1, order_nV, keep_nV)


def kernel(vocabulary: int, scale: float, *, rounds: int, top_p: float) -> dict[str, Any]:
    """One nucleus of 32 rows, ours and by sorting."""
    x_nV = scale * torch.randn(32, vocabulary, generator=torch.Generator().manual_seed(0))
    found = measured({"ours": lambda: nucleus(x_nV, top_p), "sort": lambda: by_sorting(x_nV, top_p)}, rounds)
    differ = int((nucleus(x_nV, top_p) != by_sorting(x_nV, top_p)).sum())
    milliseconds = {name: summary([1e3 * cpu for cpu, _ in spent]) for name, spent in found.items()}
    return {"vocabulary": vocabulary, "scale": scale, "milliseconds": milliseconds, "differ": differ}


def shown(x: dict[str, float], digits: int = 2) -> str:
    return f"{x['median']:.{digits}f} [{x['least']:.{digits}f}, {x['most']:.{digits}f}]"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--top-p", type=float, default=0.9)
    ask.add_argument("--no-bfloat16", action="store_true", help="leave the mask in half precision out")
    ask.add_argument("--no-kernels", action="store_true", help="leave the table of a single nucleus out")
    ask.add_argument("--json", type=Path, help="where the figures are written")
    said = ask.parse_args()
    report: dict[str, Any] = {
        "machine": about() | {"threads": torch.get_num_threads()},
        "top_p": said.top_p,
        "rounds": said.rounds,
    }
    print(report["machine"])
    report["nucleus"] = []
    if not said.no_kernels:
        print(
            "\n| 32 rows, V | scale | nucleus ms | by sorting ms | entries that differ |\n|---|---|---|---|---|"
        )
        for vocabulary in (1000, 8000, 50257):
            for scale in (0.3, 4.0):
                one = kernel(vocabulary, scale, rounds=max(7, said.rounds), top_p=said.top_p)
                report["nucleus"].append(one)
                ms = one["milliseconds"]
                print(
                    f"| {vocabulary} | {scale:g} | {shown(ms['ours'])} | {shown(ms['sort'])} | {one['differ']} |"
                )
    print("\n| model | way | s | ratio (CPU) | ratio (wall) | allowed MiB |\n|---|---|---|---|---|---|")
    report["sampling"] = []
    for shape in said.models:
        for peaked in (False, True) if shape != "small" else (False,):
            rounds = said.rounds if shape == "small" else 3 * said.rounds
            halves = not said.no_bfloat16
            one = sampling(shape, peaked=peaked, rounds=rounds, top_p=said.top_p, halves=halves)
            report["sampling"].append(one)
            for way, seconds in one["seconds"].items():
                ratio = one["ratio"].get(way)
                ratios = f"{shown(ratio['cpu'])} | {shown(ratio['wall'])}" if ratio else "1 | 1"
                size = one["allowed MiB"].get(way, 0.0)
                label = f"{shape}{', peaked' if peaked else ''}"
                print(f"| {label} | {way} | {shown(seconds, 3)} | {ratios} | {size:.2f} |", flush=True)
    report["machine"]["load after"] = os.getloadavg()[0]
    print(f"\nload {report['machine']['load']:.1f} before, {report['machine']['load after']:.1f} after")
    if said.json:
        said.json.parent.mkdir(parents=True, exist_ok=True)
        said.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
