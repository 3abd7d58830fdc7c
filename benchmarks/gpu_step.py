"""What a GPU makes of it: sampling beside transformers' `generate`, whole iterations by parts, and where time goes.

    python -m benchmarks.gpu_step                                   # everything, some minutes on an H100
    … --only sampling --models gpt2 --json benchmarks/results/gpu.json

Random models of real shapes, made in a temporary folder: nothing is downloaded, and speed does not depend on what the
weights say. Nothing ends early, so that everybody does the same work. What is compared alternates within the process;
a ratio is taken within its round, and medians are shown with the least and the most.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.common.machine import about
from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers

from rlalign import Example, Nucleus, Options, Score, Task, hookimpl
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.interface.component import Component
from rlalign.randomness import Seeds
from rlalign.records import logs
from rlalign.testing import bench

PROMPT, STEPS, SAMPLES = 64, 64, 8
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1000}),
    "gpt2": ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}),
    "qwen-0.5b": (
        "qwen2",
        {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 4096},
    ),
}
PEAKED = 12.0
"""Factor of the head of a peaked model: flat logits are the worst case of a nucleus."""


# -- models and pipelines ---------------------------------------------------------------------------


def folder_of(shape: str, root: Path) -> Path:
    """A model folder with random weights and a tokenizer of numbered words."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = root / shape
    if folder.exists():
        return folder
    kind, size = SHAPES[shape]
    config = AutoConfig.for_model(kind, **size, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Apart from the model's: a `config.json` beside it, and transformers would take the tokenizer of that family.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def prompt(i: int) -> str:
    return " ".join(f"w{2 + (7 * i + j) % 900}" for j in range(PROMPT))


class Words(Task):
    """Prompts of equal length, with two logged responses of equal length."""

    class Config(Options):
        """Options of `words`."""

        size: int = Field(4096, description="examples")

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        def response(i: int) -> str:
            return " ".join(f"w{2 + (11 * i + j) % 900}" for j in range(STEPS))

        return [
            Example(id=str(i), prompt=prompt(i), responses=(response(i), response(i + 1)), scores=(1.0, 0.0))
            for i in range(self.config.size)
        ]


class Odd(Component):
    """The share of words with an odd number."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor([sum(w[-1] in "13579" for w in t.split()) / STEPS for t in rollout.texts]))


COMPONENTS = {"words": Words, "odd": Odd}
METHODS: dict[str, dict[str, Any]] = {
    "rloo": {"algorithm": "rloo", "rewards": ["odd", {"kl": {"coef": 0.05}}]},
    "ppo": {
        "algorithm": "ppo",
        "rewards": ["odd", {"kl": {"coef": 0.05}}],
        "models": {"value": {"value-head": {"trunk": "own"}}},
        "train": {"epochs": 4},
    },
    "nlpo": {
        "algorithm": {"nlpo": {"top_p": 0.9}},
        "rewards": ["odd", {"kl": {"coef": 0.05}}],
        "models": {"value": {"value-head": {"trunk": "own"}}},
        "train": {"epochs": 4},
    },
    "dpo": {"algorithm": "dpo", "responses": "logged"},
}


def pipeline_of(folder: Path, device: str, dtype: str, method: str, *, prompts: int, iterations: int) -> Any:
    chosen = METHODS[method]
    return {
        "task": "words",
        "policy": {"causal-lm": {"path": str(folder), "tokenizer": str(folder / "tokenizer")}},
        **chosen,
        "device": device,
        "generation": {"samples": SAMPLES, "min_new_tokens": STEPS, "max_new_tokens": STEPS},
        "train": {"iterations": iterations, "prompts": prompts, "lr": 1e-6, "dtype": dtype}
        | chosen.get("train", {}),
        "checkpoints": {"every": 1000},
    }


# -- measuring --------------------------------------------------------------------------------------


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(way: Callable[[], Any]) -> float:
    wait()
    started = time.perf_counter()
    way()
    wait()
    return time.perf_counter() - started


def alternating(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; one round more before them does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            seconds = timed(way)
            found[name] += [seconds] if count else []
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


@contextmanager
def peak(into: dict[str, Any]) -> Iterator[None]:
    """The most memory allocated meanwhile, in GiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        into["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30


def ceilings(device: str) -> dict[str, float]:
    """What this card does at best: matrix products, and copies counting bytes read and written."""
    found: dict[str, float] = {}
    size = 8192 if device != "cpu" else 512
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = statistics.median(alternating({"gemm": lambda a=a, b=b: a @ b}, 5)["gemm"])
        found[f"{name} TFLOP/s"] = 2 * size**3 / seconds / 1e12
    x = torch.empty(size * size * 8, device=device, dtype=torch.bfloat16)
    y = torch.empty_like(x)
    seconds = statistics.median(alternating({"copy": lambda: y.copy_(x)}, 5)["copy"])
    found["copy TB/s"] = 2 * x.numel() * x.element_size() / seconds / 1e12
    return found


# -- sampling ---------------------------------------------------------------------------------------


def open_policy(folder: Path, device: str) -> Any:
    from rlalign_plugin_hf import CausalLM

    policy = CausalLM(CausalLM.Config(path=str(folder), tokenizer=str(folder / "tokenizer")))
    policy.setup()
    policy.to(device)
    policy.ends = ()  # every response has all its steps
    return policy.eval()


def floor(policy: Any, rows: int, prompts: int, dtype: str, copy_rate: float) -> float:
    """Seconds that reading the weights and the cache takes at the rate of a copy, if nothing else took any."""
    config = policy.network.config
    wide = 2 if dtype == "bfloat16" else 4
    weights = sum(p.numel() for p in policy.network.parameters()) * wide
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    per_token = (
        2 * config.num_hidden_layers * heads * (config.hidden_size // config.num_attention_heads) * wide
    )
    cache = sum(rows * (PROMPT + t) * per_token for t in range(STEPS))
    return (STEPS * weights + cache) / (copy_rate * 1e12)


def sampling(folder: Path, device: str, rows: int, rounds: int, copy_rate: float) -> list[dict[str, Any]]:
    """Ours and transformers' `generate`, in the same precision, on the same prompts."""
    from transformers.cache_utils import DynamicLayer

    policy, found = open_policy(folder, device), []
    examples = [Example(id=str(i), prompt=prompt(i)) for i in range(rows // SAMPLES)]
    how = Sampling(samples=SAMPLES, max_new_tokens=STEPS)
    uniforms = (
        Seeds(0).uniforms("bench", positions=range(len(examples)), samples=SAMPLES, steps=STEPS).to(device)
    )
    ids = torch.stack(list(policy.prompts(examples))).repeat_interleave(SAMPLES, 0)
    mask = policy.copy("lagging")
    mask.ends = ()

    def ours(dtype: str, within: Any = None) -> Any:
        with torch.no_grad(), cast(device, dtype):
            return policy.sample(examples, how, uniforms, within)

    def nucleus(dtype: str) -> Any:
        constraint = Nucleus("mask", top_p=0.9)
        constraint.resolve({"mask": mask})
        return ours(dtype, constraint)

    for dtype in ("bfloat16", "float32"):
        network = copy.deepcopy(policy.network).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)

        @torch.no_grad()
        def theirs(network: Any = network) -> Any:
            return network.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
                min_new_tokens=STEPS, max_new_tokens=STEPS, pad_token_id=1,
            )  # fmt: skip

        def copying(dtype: str = dtype) -> Any:
            with patch("rlalign_plugin_hf.cache.GrowingLayer", DynamicLayer):
                return ours(dtype)

        ways = {
            "ours": partial(ours, dtype),
            "generate": theirs,
            "nucleus": partial(nucleus, dtype),
            "cache by concatenation": copying,
        }
        one: dict[str, Any] = {"dtype": dtype, "rows": rows}
        with peak(one):
            seconds = alternating(ways, rounds)
        one["seconds"] = {name: summary(values) for name, values in seconds.items()}
        one["tokens/s"] = {n: rows * STEPS / statistics.median(v) for n, v in seconds.items()}
        one["times as fast as generate"] = summary(
            [b / a for a, b in zip(seconds["ours"], seconds["generate"], strict=True)]
        )
        one["nucleus costs"] = summary(
            [b / a for a, b in zip(seconds["ours"], seconds["nucleus"], strict=True)]
        )
        one["share of the floor"] = floor(policy, rows, len(examples), dtype, copy_rate) / statistics.median(
            seconds["ours"]
        )
        rollout = ours(dtype)
        again = rescored(policy, rollout, dtype)
        off = (rollout.logprobs_NT - again)[rollout.mask_NT].abs()
        one["sampled against rescored"] = {"mean": float(off.mean()), "most": float(off.max())}
        found.append(one)
        print(f"  sampling {folder.name} {dtype} {rows} rows:", brief(one), flush=True)
    return found


def cast(device: str, dtype: str) -> Any:
    return torch.autocast(device, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def rescored(policy: Any, rollout: Rollout, dtype: str) -> torch.Tensor:
    from rlalign.learning.engine import Engine

    engine = Engine({"policy": policy}, dtype=dtype, budget=65536, head_chunk=2048)
    return engine.score("policy", rollout, ["logprobs"]).logprobs_NT


def brief(one: Mapping[str, Any]) -> str:
    tokens = ", ".join(f"{name} {value:,.0f}" for name, value in one["tokens/s"].items())
    return (
        f"tokens/s {tokens}; {one['times as fast as generate']['median']:.2f} × generate; "
        f"{one['share of the floor']:.1%} of the floor; off by {one['sampled against rescored']['most']:.4f}"
    )


# -- whole iterations -------------------------------------------------------------------------------


def iterations(
    folder: Path, device: str, dtype: str, method: str, prompts: int, count: int
) -> dict[str, Any]:
    """Seconds of an iteration by parts; the first is left out."""
    found: dict[str, Any] = {"method": method, "dtype": dtype, "prompts": prompts, "model": folder.name}
    with tempfile.TemporaryDirectory() as root, peak(found):
        pipeline = pipeline_of(folder, device, dtype, method, prompts=prompts, iterations=count)
        finished, session = bench.run(Path(root), pipeline, COMPONENTS)
        rows = [r for r in logs.read(finished.path / "metrics.jsonl") if "time/iteration" in r][1:]
        for key in sorted({key for row in rows for key in row if key.startswith("time/")}):
            found[key] = summary([row[key] for row in rows if key in row])
        network = session.models.policy.network
        trained = 2 * prompts if method == "dpo" else SAMPLES * prompts
        epochs = METHODS[method].get("train", {}).get("epochs", 1)
        weights = sum(p.numel() for p in network.parameters())
        work = 6 * weights * trained * (PROMPT + STEPS) * epochs
        found["update TFLOP/s, at 6 a weight and token"] = work / found["time/update"]["median"] / 1e12
        found["responses"] = trained
        found["budget"], found["head_chunk"] = session.budget, session.head_chunk
    parts = ", ".join(
        f"{k.removeprefix('time/')} {v['median']:.3f}" for k, v in found.items() if "time/" in k
    )
    print(
        f"  {method} {folder.name} {dtype} {trained} responses: {parts}; {found.get('peak GiB', 0):.1f} GiB",
        flush=True,
    )
    return found


# -- a peer ------------------------------------------------------------------------------------------


def trl(folder: Path, device: str, dtype: str, prompts: int, count: int) -> dict[str, Any]:
    """TRL's RLOO on the same prompts, lengths, batch and model; needs `trl`. The first step is left out."""
    import trl as peer
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    steps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait()
            steps.append(-time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            steps[-1] += time.perf_counter()

    def odd(completions: Sequence[str], **kwargs: Any) -> list[float]:
        return [sum(w[-1] in "13579" for w in text.split()) / STEPS for text in completions]

    found: dict[str, Any] = {"method": "trl rloo", "dtype": dtype, "prompts": prompts, "model": folder.name}
    with tempfile.TemporaryDirectory() as root, peak(found):
        trainer = peer.RLOOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=tokenizer,
            reward_funcs=odd,
            train_dataset=Dataset.from_list([{"prompt": prompt(i)} for i in range(4 * count * prompts)]),
            args=peer.RLOOConfig(
                output_dir=root, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
                max_steps=count, per_device_train_batch_size=SAMPLES * prompts, num_generations=SAMPLES,
                steps_per_generation=1, max_completion_length=STEPS, beta=0.05, learning_rate=1e-6,
                bf16=dtype == "bfloat16", gradient_checkpointing=False, use_cpu=device == "cpu",
                generation_kwargs={"min_new_tokens": STEPS},
            ),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
        found["version"] = peer.__version__
        # Its step holds generation, scoring and update alike.
        found["time/iteration"] = summary(steps[1:])
    print(
        f"  trl rloo {folder.name} {dtype}: {found['time/iteration']}; {found.get('peak GiB', 0):.1f} GiB",
        flush=True,
    )
    return found


# -- where time goes --------------------------------------------------------------------------------


def profile(folder: Path, device: str, dtype: str, method: str, prompts: int) -> dict[str, Any]:
    """The most costly kernels of one iteration's parts, and how often the host waits for the card."""
    from torch.profiler import ProfilerActivity

    acts = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    found: dict[str, Any] = {"method": method, "dtype": dtype, "model": folder.name}
    with tempfile.TemporaryDirectory() as root:
        held = bench.Bench(
            Path(root), pipeline_of(folder, device, dtype, method, prompts=prompts, iterations=1), COMPONENTS
        )
        held.batch()
        for part in ("rollout", "gradient"):
            batch = held.batch() if part == "gradient" else None
            way = held.rollout if batch is None else partial(held.gradient, batch)
            way()
            with torch.profiler.profile(activities=acts) as seen:
                seconds = timed(way)
            events = seen.key_averages()
            key = "self_device_time_total" if device != "cpu" else "self_cpu_time_total"
            top = sorted(events, key=lambda e: -getattr(e, key))[:14]
            waits = sum(
                e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize")
            )
            launches = sum(e.count for e in events if e.key in ("cudaLaunchKernel", "cudaLaunchKernelExC"))
            busy = sum(e.self_device_time_total for e in events if e.device_type.name == "CUDA") / 1e6
            found[part] = {
                "seconds": seconds,
                "waits": waits,
                "launches": launches,
                "card busy": busy,
                "top": [{"name": e.key[:90], "ms": getattr(e, key) / 1e3, "count": e.count} for e in top],
            }
            print(
                f"  profile {method} {part}: {seconds:.3f} s, busy {busy:.3f}, {launches} launches, {waits} waits"
            )
            for e in found[part]["top"]:
                print(f"    {e['ms']:9.2f} ms {e['count']:6d} × {e['name']}", flush=True)
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--models", nargs="*", default=["gpt2", "qwen-0.5b"], choices=list(SHAPES))
    ask.add_argument("--only", nargs="*", default=["sampling", "iterations", "profile"], help="also `trl`")
    ask.add_argument("--rows", nargs="*", type=int, default=[64, 512])
    ask.add_argument("--prompts", type=int, default=64)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--count", type=int, default=4, help="iterations of each whole run")
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ask.add_argument("--json", type=Path, help="where the figures are written")
    said = ask.parse_args()
    device = said.device
    report: dict[str, Any] = {
        "machine": about() | {"card": torch.cuda.get_device_name() if device == "cuda" else "none"},
        "shape": {"prompt": PROMPT, "steps": STEPS, "samples": SAMPLES, "rounds": said.rounds},
    }
    print(report["machine"])

    def attempt(name: str, way: Callable[[], Any]) -> None:
        """A part that fails is told, and the others go on."""
        started = time.perf_counter()
        try:
            report.setdefault(name, []).append(way())
        except Exception as error:
            traceback.print_exc()
            report.setdefault("failed", []).append(
                {"part": name, "error": f"{type(error).__name__}: {error}"}
            )
        print(f"  ({name}: {time.perf_counter() - started:.1f} s)", flush=True)
        if said.json:
            said.json.parent.mkdir(parents=True, exist_ok=True)
            said.json.write_text(json.dumps(report, indent=1) + "\n")
        if device == "cuda":
            torch.cuda.empty_cache()

    attempt("ceilings", lambda: ceilings(device))
    rate = report["ceilings"][0]["copy TB/s"] if "ceilings" in report else math.nan
    print("  ", report.get("ceilings"))
    with tempfile.TemporaryDirectory() as root:
        for shape in said.models:
            folder = folder_of(shape, Path(root))
            if "sampling" in said.only:
                for rows in said.rows:
                    attempt("sampling", lambda f=folder, r=rows: sampling(f, device, r, said.rounds, rate))
            if "iterations" in said.only:
                for method in METHODS:
                    for dtype in ("bfloat16", "float32") if method == "rloo" else ("bfloat16",):
                        attempt(
                            "iterations",
                            lambda f=folder, d=dtype, m=method: iterations(
                                f, device, d, m, said.prompts, said.count
                            ),
                        )
            if "trl" in said.only:
                for dtype in ("bfloat16", "float32"):
                    attempt(
                        "iterations", lambda f=folder, d=dtype: trl(f, device, d, said.prompts, said.count)
                    )
            if "profile" in said.only:
                for method in ("rloo", "nlpo"):
                    attempt(
                        "profile", lambda f=folder, m=method: profile(f, device, "bfloat16", m, said.prompts)
                    )


if __name__ == "__main__":
    main()
