"""What `rlalign check --machine` says: as somebody reads it who knows the pipeline and not the code."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ConfigError, Example
from rlalign.config.load import load_pipeline
from rlalign.costs.machines import GIB, Device, Machine, parse
from rlalign.costs.seconds import HOST, NETWORK, PCIE
from rlalign.costs.shape import Shape
from rlalign.interface.sampler import Sampler
from rlalign.running import costs_told
from rlalign.running.checked import check
from rlalign.running.costing import Layout, Lengths, Model, copied, in_shards, model_of, whole, work_of
from rlalign.running.display import NoDisplay
from rlalign.running.this_machine import _least
from rlalign.running.workspace import Workspace
from rlalign.testing import PolicyGradient, registry
from rlalign.testing.logits import Logits

SEVEN = Shape(
    weights=7_615_616_512, learned=7_615_616_512, adapters=40_370_176, prompt=6_525_288_448, response=6_525_288_448,
    head=544_997_376, layers=28, width=3584, vocabulary=152_064, cache=28_672, block=233_057_792, kept=18_751_488,
    attention=100_352, once=True,
)  # fmt: skip


class Seven(Logits):
    """A small policy that says it is Qwen2.5-7B."""

    def shape(self) -> Shape | None:
        return SEVEN

    def lengths(self, examples: Sequence[Example]) -> Sequence[tuple[int, Sequence[int]]]:
        return [(300, [5])] * len(examples)


class Adapted(Seven):
    """The same, with adapters."""

    shares = True

    def shape(self) -> Shape | None:
        return Shape(**{**vars(SEVEN), "learned": SEVEN.adapters})


class Broken(Seven):
    """One that this machine cannot load."""

    def open(self) -> None:
        raise ConfigError("too large for this machine")


class Groups(PolicyGradient):
    """A loss that compares the responses to a prompt."""

    unit = "group"


class Apart(Sampler):
    """Samplers of two devices and one."""

    widths = (2, 1)
    concurrent = True

    def take(self, policy: Any) -> None: ...

    def sample(self, policy: Any, examples: Any, how: Any, seeds: Any) -> Any: ...


GIVEN: Mapping[str, Any] = {
    "learns": PolicyGradient,
    "groups": Groups,
    "seven": Seven,
    "adapted": Adapted,
    "silent": Logits,
    "broken": Broken,
    "apart": Apart,
}


def pipeline(policy: str = "seven", **train: Any) -> dict[str, Any]:
    return {
        "task": "numbers",
        "policy": policy,
        "rewards": ["token-sum", {"kl": {"coef": 0.05}}],
        "algorithm": "learns",
        "train": {"iterations": 400, "prompts": 128, "dtype": "bfloat16", **train},
        "generation": {"samples": 8, "max_new_tokens": 1024},
    }


def said(machine: str | None = "8xH100", policy: str = "seven", **train: Any) -> str:
    return checked(pipeline(policy, **train), machine)


def checked(data: Mapping[str, Any], machine: str | None) -> str:
    known = registry(GIVEN)
    return check(load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(data)), known, machine)


def row(text: str, name: str) -> list[str]:
    """The cells of a row of a table."""
    told = text.partition("\nmachine: ")[2]
    found = re.search(rf"^ *{re.escape(name)}  +(.*)$", told, re.MULTILINE)
    assert found is not None, text
    return re.split(r"  +", found[1].strip())


def test_what_does_not_fit_is_told_with_what_would() -> None:
    text = said()
    assert "machine: 8 × H100 (each 79.1 GiB, 989 TFLOP/s in bfloat16, 3.35 TB/s)" in text
    assert row(text, "GiB a device") == ["as it is", "with lora", "in 8 shards", "offloaded"]
    assert row(text, "weights") == ["28.4", "28.4", "3.5", "–"]
    assert row(text, "other models") == ["28.4", "–", "3.5", "–"]
    assert row(text, "optimiser") == ["56.7", "0.3", "7.1", "–"]
    assert row(text, "of the machine's memory") == ["–", "–", "–", "17.7"]
    assert row(text, "fits in 71.2 GiB") == ["no", "yes", "yes", "yes"]
    assert re.search(
        r"^    offloaded \(.*\): [0-9.]+ GiB, and 17.7 GiB of the machine's memory$", text, re.MULTILINE
    )
    assert "does not fit as it is, all of it on each device. What would:\n" in text
    assert re.search(r"^    lora: \{r: 16\} in the policy: [0-9.]+ GiB$", text, re.MULTILINE)
    assert "single devices that are enough: as it is none; with lora A100-80, H100, H200, B200" in text


def test_models_beside_the_policy_have_their_names() -> None:
    assert "  beside it: reference, each as large as the policy\n" in said()
    assert "  beside it: reference, on the policy's own network\n" in said(policy="adapted")
    assert "masks" not in said()
    narrowed = {**pipeline(), "generation": {"samples": 8, "max_new_tokens": 1024, "top_p": 0.9}}
    size = 1024 * 512 * 152_064 / 8 / GIB
    assert f"masks: what truncation left to choose from, at most {size:.3g} GiB of" in checked(
        narrowed, "H100"
    )


def test_what_an_update_does_beside_losses_is_not_counted_and_told() -> None:
    assert "; rewards and evaluation come on top; " in said()
    told = "; rewards and evaluation, and all that `trpo` does but epochs of losses, come on top; "
    assert told in checked({**pipeline(), "algorithm": "trpo"}, "H100")


def test_the_batch_is_spelled_out() -> None:
    text = said()
    assert "128 prompts × 8 responses = 1,024 responses; 1 optimiser step of 128 groups" in text
    assert "\n    16 prompts a device\n" in text
    assert "prompts of 300 tokens, as the first prompts have; responses of 512, half of" in text


def test_seconds_have_their_shares_and_add_up() -> None:
    text = said()
    parts = [" ".join(row(text, part)) for part in ("rollout", "score", "update", "exchange")]
    shares = [[int(share) for share in re.findall(r"([0-9]+)%", cells)] for cells in parts]
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100] * 3, abs=2)
    assert len(row(text, "400 iterations")) == 3
    assert len(row(text, "iterations, for 5%")) == 3
    assert (
        "in shards: `distributed: {shard: true}` with `train: {recompute: true}`, transformers models only"
        in text
    )


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (2, "6 of 8 devices have no prompt and stand idle: `train.prompts` of 8, or a multiple of it"),
        (20, "some devices get 3 prompts and some 2: 17% of the time is waited; `train.prompts: 24` costs"),
    ],
)
def test_idle_devices_are_told(prompts: int, told: str) -> None:
    assert told in said(prompts=prompts)


def test_more_optimiser_steps_than_what_can_be_dealt_out() -> None:
    """A loss of single responses is dealt out by responses."""
    assert "learn nothing" not in said(minibatches=32)
    by_group = {**pipeline(minibatches=32), "algorithm": "groups"}
    assert (
        "an optimiser step has 4 groups for 8 devices: some learn nothing; `train.minibatches` of at most 16"
        in checked(by_group, "8xH100")
    )
    few = {**pipeline(minibatches=2, prompts=4), "algorithm": "groups"}
    assert "`train.minibatches` of at most" not in checked(few, "8xH100"), "no number of steps would do"


def test_what_fits_one_micro_batch_is_one() -> None:
    """23 prompts for 8 devices: a device's share of the tokens is no whole number."""
    assert "each 1 micro-batch of up to" in said("8xH200", prompts=23, budget=1_000_000)


def test_an_iteration_too_large_for_each_rank_is_told() -> None:
    assert "data: each rank holds" not in said()
    assert "data: each rank holds an iteration and the places of all rows, 29.3 GiB" in said(
        prompts=128 * 840
    )


def test_adapters_fit_on_one_device_and_are_not_offered_again() -> None:
    text = said("H100", "adapted")
    assert row(text, "GiB a device") == ["as it is", "offloaded"]
    assert row(text, "fits in 71.2 GiB") == ["yes", "yes"]
    assert "other models" not in text
    assert "does not fit" not in text
    assert "40.4 million learn" in text


def test_full_precision_on_a_gpu_is_told_what_half_would_take() -> None:
    assert "`train.dtype: bfloat16` would make" in said("B200", "adapted", dtype="float32")


def test_a_policy_that_says_nothing_is_told() -> None:
    assert "policy `silent` does not say its shape, so nothing can be said of memory and time" in said(
        policy="silent"
    )
    assert "machine" not in said(None, policy="silent")


def test_this_machine_is_told_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Device("this CPU", 64 * GIB, 5e10, 1e11, 2e10, 1e9, cpu=True, launch=1e-4)
    monkeypatch.setattr(costs_told, "this_device", lambda device: mine)
    text = said(None).partition("\nmachine: ")[2]
    assert text.startswith(
        "this CPU (64 GiB, 100 GFLOP/s in float32, 20 GB/s, as measured just now)\n  learns: "
    )
    assert text.count("\n") == 2
    assert "more than 57.6 GiB" in text
    assert row(said("here"), "copy for checkpoints")


def test_what_is_offloaded_on_this_machine_is_told_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = Device("H100", 80 * GIB, 1e15, 7e13, 3e12, 4e11)
    monkeypatch.setattr(costs_told, "this_device", lambda device: mine)
    assert "more than 72 GiB" in said(None)
    asked = {**pipeline(), "distributed": {"shard": "auto", "offload": True}}
    assert "more than 72 GiB" in checked(asked, None), "such a policy cannot be cut, and stays whole"
    monkeypatch.setattr(Seven, "divisible", True)
    text = checked(asked, None)
    assert re.search(
        r"about [0-9.]+ GiB of 80 GiB and 142 GiB of the machine's memory; an iteration about", text
    )
    assert ", exchange " in text
    large = replace(mine, memory=400 * GIB)
    monkeypatch.setattr(costs_told, "this_device", lambda device: large)
    assert "of the machine's memory" not in checked(asked, None), "it fits, and stays whole"
    always = {**asked, "distributed": {"shard": True, "offload": True}}
    assert "of the machine's memory" in checked(always, None)


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--machine 8xH10: .*A100-80.*8x80GB,990TF,3\.35TB/s"):
        said("8xH10")


def test_a_fault_here_does_not_keep_another_machine_from_being_told() -> None:
    with pytest.raises(ConfigError, match="too large for this machine"):
        said(None, "broken")
    text = said(policy="broken")
    assert "machine: 8 × H100" in text
    assert "prompts of 256 tokens, a guess: no prompt could be read" in text
    assert re.search(r"on this machine it cannot run: .*policy `broken`: too large for this machine\n$", text)


def test_how_slow_this_processor_is_does_not_matter_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("rlalign.running.preflight.note_if_slow", asked.append)
    said()
    assert not asked
    said(None)
    assert asked


# -- the numbers behind it -----------------------------------------------------------------------------


def model(policy: str = "seven", **train: Any) -> Model:
    known = registry(GIVEN)
    loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(pipeline(policy, **train)))
    (plan,) = Workspace(loaded, known, NoDisplay()).plans
    work = work_of(plan, Lengths())
    return Model(SEVEN, work, copies=copied([plan], work, shares=False))


def test_work_follows_from_the_pipeline() -> None:
    work = model(minibatch=50, epochs=2).work
    assert (work.prompts, work.samples, work.longest, work.response) == (128, 8, 1024, 512)
    assert (work.steps, work.epochs, work.passes, work.held) == (3, 2, 1, 4)
    assert model(weights="bfloat16").work.held == 2


def test_half_precision_halves_copies_and_shards_are_put_together_in_float32_to_sample() -> None:
    one = model()
    assert (one.copies, one.in_half().copies) == (4, 2)
    large = Machine(Device("large", 80 * GIB, 1e15, 7e13, 3e12, 4e11), 8)
    held = [in_shards(each, large) for each in (one, one.in_half())]
    assert held[0].bytes == held[1].bytes
    assert held[0].bytes.sampler == (4 + 2) * one.shape.weights  # bfloat16 is computed with copies
    assert held[0].fits and not whole(one, large).fits
    small = Machine(Device("small", 28 * GIB, 1e15, 7e13, 3e12, 4e11), 8)
    assert not in_shards(one, small).fits


def test_where_layers_are_computed_again_micro_batches_are_larger() -> None:
    on = Machine(Device("large", 800 * GIB, 1e15, 7e13, 3e12, 4e11))
    kept, again = (whole(model(prompts=4096, recompute=recompute), on) for recompute in (False, True))
    assert again.tokens >= 4 * kept.tokens
    assert again.bytes.activations < kept.bytes.activations


def test_time_that_others_had_is_not_in_a_processors_rate() -> None:
    assert _least(lambda: time.sleep(0.03), torch.device("cpu")) < 0.01


def test_weights_in_shards_travel_in_each_pass() -> None:
    one, on = model(), Machine(Device("large", 80 * GIB, 1e15, 7e13, 3e12, 4e11), 8)
    found = in_shards(one, on)
    gathered = 4 * one.shape.weights / 4e11
    passes = found.seconds.exchange / gathered
    assert passes == pytest.approx(1 + round((passes - 1) / (one.work.passes + 3)) * (one.work.passes + 3))
    assert in_shards(replace(one, budget=2048), on).seconds.exchange > found.seconds.exchange


def test_what_is_offloaded_leaves_the_device_to_what_is_put_together() -> None:
    """A model of 7B, whose optimiser one device does not hold, learns on it: 20 bytes a weight lie elsewhere."""
    one, on = model(), Machine(Device("large", 80 * GIB, 1e15, 7e13, 3e12, 4e11))
    lying = in_shards(one, on, offload=True)
    assert lying.fits and not whole(one, on).fits
    assert lying.bytes.offloaded == (16 + one.copies) * one.shape.weights
    assert lying.bytes.stays == 0
    assert lying.bytes.block >= 2 * 4 * (one.shape.block + one.shape.head)  # the head with its gradient
    held = in_shards(one, on.with_count(8), offload=True)
    assert held.bytes.offloaded == lying.bytes.offloaded / 8
    assert held.bytes.sampler == in_shards(one, on.with_count(8)).bytes.sampler
    adapted = in_shards(one.with_lora(), on, offload=True).bytes  # adapters stay on the device
    assert adapted.optimiser == 8 * one.shape.adapters and adapted.offloaded == 4 * one.shape.weights
    cpu = replace(on, device=replace(on.device, cpu=True))
    assert in_shards(one, cpu, offload=True).bytes.offloaded == 0


def test_what_is_offloaded_comes_and_goes_over_the_bus() -> None:
    one, on = model(), Machine(Device("large", 800 * GIB, 1e15, 7e13, 3e12, 4e11))
    of, work = one.shape, one.work
    found = in_shards(replace(one, budget=10**9), on, offload=True)  # one micro-batch an optimiser step
    passes, weights = work.steps, 4 * of.weights
    brought = (1 + passes * (work.passes + 2 * work.epochs) + passes * work.epochs) * weights / PCIE
    stepped = work.epochs * work.steps * (12 + 28) * of.weights / HOST
    assert found.seconds.exchange == pytest.approx(brought + stepped)
    adapted = in_shards(replace(one.with_lora(), budget=10**9), on, offload=True).seconds.exchange
    assert adapted == pytest.approx((1 + passes * (work.passes + 2 * work.epochs)) * weights / PCIE)
    several = in_shards(replace(one, budget=10**9), on.with_count(8), offload=True)
    travel = in_shards(replace(one, budget=10**9), on.with_count(8)).seconds.exchange
    assert several.seconds.exchange == pytest.approx(travel + brought / 8 + stepped)


def apart(**options: Any) -> dict[str, Any]:
    return {**pipeline(), "models": {"sampler": {"apart": options}}}


def test_a_sampler_elsewhere_has_devices_of_its_own() -> None:
    text = checked(apart(), "8xH100")
    assert "sampler: apart, 2 processes on 3 devices beside those that are named, of their kind\n" in text
    assert len(row(text, "GiB a device")) == len(row(text, "each that samples")) == 4
    assert "keys and values, sampling" not in text and "weights, sampling" not in text
    assert "\n    64 prompts a process\n" in text


def test_sampled_ahead_an_iteration_takes_what_is_longer() -> None:
    def laid(data: Mapping[str, Any], machine: str = "8x999GB,989TF,4.8TB/s") -> Layout:
        known = registry(GIVEN)
        loaded = load_pipeline(Path("p.yaml"), registry=known, text=json.dumps(data))
        (plan,) = Workspace(loaded, known, NoDisplay()).plans
        policy = loaded.policy.peek()
        assert isinstance(policy, Seven)
        return whole(model_of(plan, policy, SEVEN, Lengths()), parse(machine))

    plain, turns, ahead = laid(pipeline()), laid(apart()), laid(apart(ahead=1))
    took = turns.seconds
    learning = took.score + took.update + took.exchange
    assert turns.total == pytest.approx(took.rollout + learning)
    assert ahead.seconds.rollout == took.rollout
    assert ahead.total == pytest.approx(max(took.rollout, learning))
    assert took.score == pytest.approx(2 * plain.seconds.score)  # the policy's own, beside the reference's
    assert took.exchange - plain.seconds.exchange == pytest.approx(4 * SEVEN.weights / NETWORK)
    assert turns.devices == 11
    assert turns.bytes.cache == 0 < plain.bytes.cache
    small = laid(apart(), "8x24GB,990TF,3TB/s")
    assert small.sampling is not None and not small.fits
