"""Weights that are cut over processes learn what whole ones learn, and their checkpoints fit any number of processes.

`world/together.py` runs many pipelines in one process group. All over gloo, on one machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent / "world"))
from commands import SHORT, Command, bits, wait_for
from comparing import (
    EXAMPLES,
    REWARD_MODEL,
    algorithms,
    apart,
    job,
    learners,
    lines,
    metrics,
    put_together,
    run,
    tensors,
    tiny_encoder,
)

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.costs.machines import Device
from rlalign.errors import ConfigError
from rlalign.running.cutting import cut_or_whole
from rlalign.running.planning import plan_phases

WORLD = Path(__file__).parent / "world"
METRICS, WEIGHTS = 1e-12, 1e-11
BOUNDS = {"t5": (1e-5, 1e-5), "float32": (2e-6, 5e-6)}
"""Of metrics and of weights. T5: transformers computes parts of it in float32. A KL is summed over a response."""
OWN = "models.value={'value-head':{'trunk':'own'}}"
UNEVEN = ("train.prompts=7", "train.minibatches=3", "train.epochs=2", "train.budget=300")
FEW = {
    "lora": ("rloo", "policy.causal-lm.lora.r=2"),
    "uneven": ("rloo", *UNEVEN),
    **{f"{name}, float32": (name, "train.dtype=float32") for name in ("rloo", "ppo", "dpo")},
}
FOUR = {
    "rloo": ("rloo",),
    "uneven": FEW["uneven"],
    "lora": FEW["lora"],
    **{name: (name,) for name in ("ppo", "dpo", "nlpo", "trpo", "kto")},
}
HALF: dict[str, tuple[str, ...]] = {"half": (), "half, lora": ("policy.causal-lm.lora.r=2",)}
ASKS = ("rloo", f"folder={WORLD}", "algorithm=[rloo,'odd:Asks']")
MANY = {
    "own value": ("ppo", OWN),
    "a value alone": ("ppo", OWN, "algorithm={ppo: {warmup: 2}}", "train.weight_decay=0.5"),
    "lora, own value": ("ppo", OWN, "policy.causal-lm.lora.r=2"),
    "trpo, own value": ("trpo", OWN, *UNEVEN[1:]),
    "trpo, lora": ("trpo", "policy.causal-lm.lora.r=2"),
    "runs out": ("rloo", f"folder={WORLD}", "algorithm=['odd:RunsOutAdding']", "train.budget=300"),
    "of one source": (
        "copg-mixed",
        "responses={mix: {logged: 2, sampled: 2}}",
        "algorithm=[{kto: {beta: 0.1}, source: logged}]",
    ),
    "recomputed": ("rloo", "train.recompute=true", "models.reference={of: start}"),
    "t5": ("ppo-seq2seq",),
    "t5, trpo": ("trpo-seq2seq",),
    "t5, uneven": ("dpo-seq2seq", *UNEVEN[1:]),
}
# Those of the examples that learn on the small GPT-2; what they leave out learns on it here.
PARTS = 3
ALGORITHMS = {
    file.stem: (file.stem,)
    for file in sorted(EXAMPLES.glob("algorithms/*.yaml"))
    if "models/toy-reviews" in file.read_text()
} | {
    "gold": ("wbc", "algorithm={gold: {returns: s, refresh: 2}}"),
    "r-lol": ("wbc", "algorithm={r-lol: {clip: 0.9, pool: all}}"),
    "dr-grpo": ("rloo", "algorithm=dr-grpo"),
    "es": ("rloo", "algorithm=es"),
}
del ALGORITHMS["logged"]  # `wbc` on what another run kept
REFUSED = {
    "asks": (
        "the model `policy` is cut",
        "ask when the step begins (`step_started`)",
        "`distributed: {shard: …}`",
    ),
    "linvit": ("the weights of a `table` policy cannot be cut", "causal-lm"),
    "fit-reward-model": ("the weights of a `sequence-scorer` policy cannot be cut", "causal-lm"),
}

OFFLOADED = {
    "rloo": FEW["uneven"],
    "lora": FEW["lora"],
    **{name: (name,) for name in ("ppo", "dpo", "trpo", "kto")},
}


REFLECTING: dict[str, Any] = {
    "file": str(WORLD / "reflecting.yaml"),
    "overrides": [],
}


def sharded(name: str, *overrides: str) -> dict[str, Any]:
    return job(f"algorithms/{name}.yaml", "distributed.shard=true", *overrides)


def compare(
    folder: Path,
    jobs: dict[str, dict[str, Any]],
    beside: dict[str, dict[str, Any]] | None = None,
    processes: int = 2,
) -> None:
    """All as on one process; what is `beside` them runs on several only."""
    several = folder / str(processes)
    run(folder / "1", jobs, 1)
    run(several, {**jobs, **(beside or {})}, processes)
    for name in jobs:
        for rank in range(processes):
            outcome = json.loads((several / f"{name}-rank{rank}.json").read_text())
            assert not outcome["said"], f"{name}: {outcome['said']}"
            if rank:  # its pieces, and nothing else
                assert all("/checkpoints/.tmp-" in path for path in outcome["written"]), name
        bounds = next((one for kind, one in BOUNDS.items() if kind in name), (METRICS, WEIGHTS))
        close(folder / "1" / name, several / name, *bounds, key_biases="float32" not in name)


def test_weights_that_are_cut_learn_what_whole_ones_do(tmp_path: Path) -> None:
    compare(tmp_path, {"uneven": sharded(*FEW["uneven"])})


@pytest.mark.slow
def test_two_processes_with_a_part_each_learn_what_one_learns(tmp_path: Path) -> None:
    """Adapters, which stay whole, and a step whose micro-batches are of different kinds and do not come out even."""
    jobs = {name: sharded(*said) for name, said in FEW.items()}
    counted = {**sharded("rloo", "evaluate=null", "train.minibatches=2"), "counted": True}
    half = {name: sharded("rloo", "train.dtype=bfloat16", *said) for name, said in HALF.items()}
    compare(tmp_path, jobs, {**half, "counted": counted})
    for name in half:
        assert not json.loads((tmp_path / "2" / f"{name}-rank0.json").read_text())["said"], name
    # Two blocks and the rest, of two steps in each of three iterations, in however many chunks the head is taken.
    for rank in (0, 1):
        said = json.loads((tmp_path / "2" / f"counted-counted-rank{rank}.json").read_text())
        assert sum(count for name, count in said.items() if "reduce_scatter" in name) == 3 * 2 * (2 + 1), said
    (last, *_) = sorted((tmp_path / "2/uneven/checkpoints").glob("[0-9]*"), reverse=True)
    pieces = sorted((last / "models/policy").iterdir())
    assert [path.name for path in pieces] == [
        "shard-00001-of-00002.safetensors",
        "shard-00002-of-00002.safetensors",
    ]
    assert (last / "optimiser").is_dir() and not (
        tmp_path / "1/uneven/checkpoints" / last.name / "optimiser"
    ).exists()
    with safe_open(pieces[0], framework="pt") as one, safe_open(pieces[1], framework="pt") as other:
        sizes = [sum(file.get_tensor(name).numel() for name in file.keys()) for file in (one, other)]  # noqa: SIM118
    whole = sum(x.numel() for x in put_together(last / "models/policy").values())
    assert sum(sizes) == whole and max(sizes) < 0.6 * whole


@pytest.mark.slow
def test_four_processes_with_a_part_each_learn_what_one_learns(tmp_path: Path) -> None:
    """Of each kind of model one: a policy alone, with a value head, a reference, a mask, adapters."""
    compare(tmp_path, {name: sharded(*said) for name, said in FOUR.items()}, processes=4)


@pytest.mark.slow
def test_cut_only_where_whole_models_would_not_fit(tmp_path: Path) -> None:
    """Devices of a megabyte and of a hundred gigabytes; and a policy that cannot be cut."""
    script = WORLD / "deciding.py"
    files = [str(EXAMPLES / f"algorithms/{name}.yaml") for name in ("ppo", "linvit")]
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*begin, str(script), str(tmp_path), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    small, large, table = ranks[0]
    assert small == [
        True,
        "distributed.shard: auto: weights are cut over 2 processes: whole, `ppo` would not fit",
    ]
    assert large == [False, "distributed.shard: auto: weights are whole on each process: they fit"]
    assert table[0] is False and "the weights of a `table` policy cannot be cut" in table[1]


def test_on_one_process_only_offload_cuts() -> None:
    def decided(memory: float, *said: str) -> tuple[bool, str]:
        known = Registry(trust=True)
        pipeline = load_pipeline(EXAMPLES / "algorithms/ppo.yaml", said, registry=known)
        plans, _ = plan_phases(pipeline, known)
        device = Device("made up", memory, 1e12, 1e12, 1e12, 1e9)
        return cut_or_whole(pipeline, plans, torch.device("cpu"), lambda _: device)

    assert decided(1e6, "distributed.shard=true") == (False, "")
    assert decided(1e11, "distributed.shard=true", "distributed.offload=true") == (True, "")
    said = "distributed.shard: auto: weights lie in the machine's memory between passes: whole, `ppo` would not fit"
    assert decided(1e6, "distributed.shard=auto", "distributed.offload=true") == (True, said)
    assert decided(1e11, "distributed.shard=auto", "distributed.offload=true")[0] is False
    with pytest.raises(
        ConfigError, match="distributed: `offload: true` is of weights that are cut: say `shard: true`"
    ):
        decided(1e11, "distributed.offload=true")


def refused(*encoder: str) -> dict[str, dict[str, Any]]:
    return {
        "asks": sharded(*ASKS),
        "linvit": sharded("linvit"),
        "fit-reward-model": job(REWARD_MODEL, *encoder, "distributed.shard=true"),
    }


def test_every_algorithm_learns_here_or_is_refused() -> None:
    jobs = {**refused(), **{name: sharded(*said) for name, said in ALGORITHMS.items()}}
    assert learners() - algorithms([*jobs.values(), REFLECTING]) == set()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_algorithm(part: int, tmp_path: Path) -> None:
    names = [*ALGORITHMS][part::PARTS]
    jobs = {name: sharded(*ALGORITHMS[name]) for name in names if name not in REFUSED}
    others = refused(*tiny_encoder()) if part == 0 else {}
    compare(tmp_path, jobs, others)
    for name in others:
        for rank in (0, 1):
            said = json.loads((tmp_path / "2" / f"{name}-rank{rank}.json").read_text())["said"]
            assert all(one in said for one in REFUSED[name]), said


@pytest.mark.slow
def test_every_kind_of_pipeline(tmp_path: Path) -> None:
    jobs = {name: sharded(*said) for name, said in MANY.items()}
    compare(tmp_path, {**jobs, "reflecting": REFLECTING})


@pytest.mark.slow
def test_copies_elsewhere_sample_for_a_policy_that_is_cut(tmp_path: Path) -> None:
    """Rank 0 puts the weights together for them."""
    copies = "models.sampler={copies: {devices: [cpu], threads: 1, ahead: %d}}"
    late = (copies % 1, "train.mismatch={}")
    jobs = {
        "copies": sharded("rloo", copies % 0),
        "copies, lora": sharded("rloo", copies % 0, "policy.causal-lm.lora.r=2"),
        "copies, ahead": sharded("rloo", *late),
        "copies, ppo": sharded("ppo", copies % 0),
    }
    compare(tmp_path, jobs)
    # Those that sample for it have its weights: tokens are its own.
    alone = {
        name: job(f"algorithms/{name.partition(', ')[2] or 'rloo'}.yaml")
        for name in ("copies", "copies, ppo")
    }
    run(tmp_path / "plain", alone, 1)
    for name in alone:
        told, its = (lines(tmp_path / where / name, "tokens.jsonl") for where in ("plain", "2"))
        assert told == its != []


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("ninja")), reason="a device is compiled")
def test_no_tensor_meets_one_of_another_device(tmp_path: Path) -> None:
    """On a made-up device, whose operations refuse what lies in the machine's memory: pieces lie there, adapters and
    value heads do not, and one optimiser steps them all. Each run goes on from a checkpoint."""
    built = tmp_path / "built"
    built.mkdir()
    build = f"import pathlib, elsewhere; elsewhere.build(pathlib.Path({str(built)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=WORLD, check=True, capture_output=True)
    small = ("evaluate=null", "checkpoints.every=1")
    there = ("device=elsewhere", "train.iterations=1", "distributed.shard=true", "distributed.offload=true")
    files = {name: f"algorithms/{said[0]}.yaml" for name, said in OFFLOADED.items()}
    jobs = {name: job(files[name], *OFFLOADED[name][1:], *small, *there) for name in files}
    on_cpu = {name: job(files[name], *OFFLOADED[name][1:], *small, "train.iterations=2") for name in files}
    run(tmp_path / "cpu", on_cpu, 1)
    for processes, some in ((1, jobs), (2, {name: jobs[name] for name in ("lora", "ppo")})):
        run(tmp_path / f"{processes}", some, processes, "elsewhere.py", ELSEWHERE=str(built))
        for name in some:
            close(tmp_path / "cpu" / name, tmp_path / f"{processes}" / name)


@pytest.mark.slow
def test_resumed_to_the_bit_and_on_another_number_of_processes(tmp_path: Path) -> None:
    rloo = job("algorithms/rloo.yaml")["file"]
    begin = (rloo, *SHORT, "distributed.shard=true", "train.iterations=8")
    code, said = Command(*begin, "--processes", "2", "--name", "whole", runs=tmp_path).end()
    assert code == 0, said
    command = Command(*begin, "--processes", "2", "--name", "killed", runs=tmp_path)
    wait_for(tmp_path / "killed/checkpoints/00000003")
    os.kill(command.rank(1), signal.SIGKILL)
    code, said = command.end()
    assert code == 1 and "was ended by SIGKILL" in said
    assert not (tmp_path / "killed/model").exists()
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    for name, *processes in (("killed", "--processes", "2"), ("alone",)):
        code, said = Command("--resume", name, *processes, runs=tmp_path).end()
        assert code == 0, said
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    close(tmp_path / "whole", tmp_path / "alone")

    # Begun by one, gone on with by two.
    command = Command(*begin, "--name", "longer", runs=tmp_path)
    wait_for(tmp_path / "longer/checkpoints/00000003")
    command.signal(signal.SIGKILL)
    command.end()
    assert not (tmp_path / "longer/model").exists()
    code, said = Command("--resume", "longer", "--processes", "2", runs=tmp_path).end()
    assert code == 0, said
    close(tmp_path / "whole", tmp_path / "longer")

    # The exported folder is an ordinary one, in the precision of its base.
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "whole/model", dtype=torch.float64)
    held = {name: x for name, x in tensors(tmp_path / "whole").items() if name.startswith("models/policy.")}
    assert held and all(
        torch.equal(made.get_parameter(name.partition("/model.")[2]), x.half().double())
        for name, x in held.items()
    )


@pytest.mark.slow
def test_in_the_machines_memory_weights_learn_the_same_to_the_bit(tmp_path: Path) -> None:
    """Two processes with and without `offload`. On one process only that cuts them, over itself."""
    cut = {name: sharded(*said) for name, said in OFFLOADED.items()}
    lying = {
        f"{name}, offloaded": sharded(*said, "distributed.offload=true") for name, said in OFFLOADED.items()
    }
    run(tmp_path / "2", {**cut, **lying}, 2)
    for name in cut:
        one, other = tmp_path / "2" / name, tmp_path / "2" / f"{name}, offloaded"
        assert metrics(one) == metrics(other) and bits(one) == bits(other), name

    alone = {name: lying[f"{name}, offloaded"] for name in ("rloo", "lora", "trpo", "kto")}
    odd = (f"folder={WORLD}", "algorithm=[rloo,'odd:RunsOut']", "train.prompts=12", "evaluate=null")
    full = {
        "full": job("algorithms/rloo.yaml", *odd),
        "full, offloaded": sharded("rloo", *odd, "distributed.offload=true"),
    }
    run(tmp_path / "1", {**alone, **full, "asks": sharded(*ASKS, "distributed.offload=true")}, 1)
    for name in alone:
        close(tmp_path / "2" / name, tmp_path / "1" / name)
    close(tmp_path / "1/full", tmp_path / "1/full, offloaded")
    (last, *_) = sorted((tmp_path / "1/rloo/checkpoints").glob("[0-9]*"), reverse=True)
    assert (last / "optimiser/shard-00001-of-00001.safetensors").is_file()
    said = json.loads((tmp_path / "1/asks-rank0.json").read_text())["said"]
    assert all(part in said for part in REFUSED["asks"]), said


@pytest.mark.slow
def test_offload_is_switched_where_a_run_goes_on(tmp_path: Path) -> None:
    begin = (job("algorithms/rloo.yaml")["file"], *SHORT, "distributed.shard=true", "train.iterations=8")
    code, said = Command(*begin, "--processes", "2", "--name", "whole", runs=tmp_path).end()
    assert code == 0, said
    command = Command(
        *begin, "distributed.offload=true", "--processes", "2", "--name", "killed", runs=tmp_path
    )
    wait_for(tmp_path / "killed/checkpoints/00000003")
    os.kill(command.rank(1), signal.SIGKILL)
    assert command.end()[0] == 1
    shutil.copytree(tmp_path / "killed", tmp_path / "off")
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    for name, *more in (
        ("killed", "--processes", "2"),
        ("off", "distributed.offload=false", "--processes", "2"),
        ("alone",),
    ):
        code, said = Command("--resume", name, *more, runs=tmp_path).end()
        assert code == 0, said
    for name in ("killed", "off"):
        assert metrics(tmp_path / name) == metrics(tmp_path / "whole")
        assert bits(tmp_path / name) == bits(tmp_path / "whole")
    close(tmp_path / "whole", tmp_path / "alone")
    assert "offload changes after" in (tmp_path / "off/inexact.jsonl").read_text()
    assert not (tmp_path / "killed/inexact.jsonl").exists()
    assert (tmp_path / "alone/model").is_dir()


@pytest.mark.slow
def test_an_error_in_the_middle_of_a_pass_ends_all_with_its_rank(tmp_path: Path) -> None:
    odd = (
        f"folder={WORLD}",
        "algorithm=[rloo,'odd:Stumbles']",
        "train.iterations=4",
    )
    rloo = job("algorithms/rloo.yaml")["file"]
    begin = time.monotonic()
    code, said = Command(
        rloo, *SHORT, *odd, "distributed.shard=true", "--processes", "2", "--name", "odd", runs=tmp_path
    ).end()
    assert code == 1 and time.monotonic() - begin < 300
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert told and all("rank 1 of 2 on" in line for line in told), said
    assert "`Stumbles`" in told[0] and "raised ValueError: only here" in told[0]
    assert (tmp_path / "odd/checkpoints/00000001").is_dir()


def close(
    one: Path, other: Path, metrics: float = METRICS, weights: float = WEIGHTS, key_biases: bool = True
) -> None:
    figure, which, number, where = apart(one, other, key_biases)
    assert figure <= metrics, f"{one.name}: {which} by {figure}"
    assert number <= weights, f"{one.name}: {where} by {number}"
