"""Sampling: ours by every engine there is, transformers' `generate` and its continuous batching; share of the floor."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.common import shapes
from benchmarks.common.sampling import generated, ours, prompts
from benchmarks.common.timing import summary
from benchmarks.gpu.roofline import Rates, rollout_seconds, sizes, timed

from rlalign.data.rollout import Rollout
from rlalign.records.weights import hold

LONGEST = 40.0
"""Seconds of one rollout, whatever makes it."""
ALL = (
    "ours",
    "engine: graphs",
    "engine: slots",
    "engine: loop",
    "transformers' forward",
    "generate",
    "generate_batch",
)


def lay(shape: str, root: Path) -> Path:
    """A model folder without weights: they are made at random where they are needed."""
    folder = root / shape
    if not (folder / "tokenizer").exists():
        config = shapes.config_of(shape)
        config.save_pretrained(folder)
        shapes.write_tokenizer(folder / "tokenizer", config.vocab_size)
    return folder


def open_policy(folder: Path, device: str) -> Any:
    """A policy with weights in bfloat16, made on the device: a large model would take a minute on the host."""
    from rlalign_plugin_hf import CausalLM

    policy: Any = CausalLM(
        CausalLM.Config(path=str(folder), tokenizer=str(folder / "tokenizer"), init="random")
    )
    with torch.device(device):
        policy.setup()
    policy.to(device)
    policy.ends = ()  # every response has all its steps
    return hold(policy, torch.bfloat16)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A way that hangs is broken off, and the others go on."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not over after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def peak(into: dict[str, Any], name: str = "peak GiB") -> Iterator[None]:
    """The most memory allocated meanwhile."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        into[name] = torch.cuda.max_memory_allocated() / 2**30


def engines(policy: Any, run: Callable[[], Rollout]) -> dict[str, Callable[[], Any]]:
    """Ours as a user gets it, by each engine that can be asked for, and by transformers' forward."""
    ways: dict[str, Callable[[], Any]] = {"ours": run}
    if hasattr(policy, "engine"):
        kinds = ("graphs", "slots", "loop") if policy.device.type == "cuda" else ("slots", "loop")
        # One engine for all rounds: what it holds, a user's holds too.
        ways |= {
            f"engine: {kind}": partial(_by_engine, policy, type(policy.engine)(kind), run) for kind in kinds
        }

    def by_forward() -> Any:
        with patch.object(policy, "decoder", policy._by_forward):
            return run()

    loop = (
        partial(_by_engine, policy, type(policy.engine)("loop"), by_forward) if len(ways) > 1 else by_forward
    )
    return {**ways, "transformers' forward": loop}


def _by_engine(policy: Any, engine: Any, run: Callable[[], Rollout]) -> Any:
    with patch.object(policy, "engine", engine):
        return run()


def continuous(policy: Any, rows: int, k: int, prompt: int, new: int) -> Callable[[], Any]:
    """transformers' own engine for many requests, which may begin alike; called as TRL calls it."""
    from transformers import GenerationConfig

    # Each prompt for each of its responses: several of one request are not returned.
    ids = [row for row in prompts(policy, rows // k, prompt).tolist() for _ in range(k)]
    # An end that never comes: nothing ends early.
    how = GenerationConfig(
        max_new_tokens=new, do_sample=True, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=shapes.PAD
    )

    def batch() -> Any:
        found = policy.network.generate_batch(ids, generation_config=how, progress_bar=False)
        # It logs what goes wrong, and gives what it has.
        if (tokens := sum(len(each.generated_tokens) for each in found.values())) != rows * new:
            raise RuntimeError(f"generate_batch gave {tokens} of {rows * new} tokens")
        return found

    return batch


def sampling(
    policy: Any,
    rows: int,
    k: int,
    prompt: int,
    new: int,
    rounds: int,
    rates: Rates,
    only: Collection[str] = ALL,
) -> dict[str, Any]:
    """Tokens a second of each way in turn, its peak memory, and its share of the floor."""
    run = ours(policy, rows, k, prompt, new)
    ways: dict[str, Callable[[], Any]] = {
        **engines(policy, run),
        "generate": generated(policy, rows, k, prompt, new),
    }
    found: dict[str, Any] = {"rows": rows, "samples": k, "prompt": prompt, "new": new, "ways": {}}
    found["ours is"] = policy.sampling(policy.device) if hasattr(policy, "sampling") else str(policy.decoding)
    if not hasattr(policy, "engine"):
        found["ways"]["engine: graphs"] = {"left out": "this policy has no engine but the sampling loop"}
    if policy.device.type == "cuda":
        ways["generate_batch"] = continuous(policy, rows, k, prompt, new)
    else:
        found["ways"]["generate_batch"] = {"left out": "it is no engine for a CPU"}
    ways = {name: way for name, way in ways.items() if name in only}
    floor = rollout_seconds(sizes(policy.network), rows, k, prompt, new, rates)
    seconds: dict[str, list[float]] = {}
    for count in range(rounds + 1):
        for name, way in ways.items():
            one: dict[str, Any] = found["ways"].setdefault(name, {})
            if "failed" in one:
                continue
            try:
                with peak(one), at_most(LONGEST):
                    took = timed(way)
            except Exception as error:
                one["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            seconds.setdefault(name, []).extend([took] if count else [])
    for name, values in seconds.items():
        if "failed" not in found["ways"][name]:
            middle = statistics.median(values)
            found["ways"][name] |= {
                "seconds": summary(values),
                "tokens/s": rows * new / middle,
                "share of the floor": floor / middle,
            }
    found["floor tokens/s"] = rows * new / floor
    return found | {"times as fast": beside(seconds)}


def beside(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as long the others took, round by round."""
    return {
        name: summary([b / a for a, b in zip(seconds["ours"], values, strict=True)])
        for name, values in seconds.items()
        if name != "ours" and len(values) == len(seconds.get("ours", ())) > 0
    }


def brief(one: Mapping[str, Any]) -> str:
    told = []
    for name, way in one["ways"].items():
        speed = f"{way['tokens/s']:,.0f} ({way['share of the floor']:.0%})" if "tokens/s" in way else "—"
        told.append(f"{name} {speed}")
    return f"{one['rows']} rows, tokens/s (of the floor): {'; '.join(told)}"
