"""Slots against the core's sampling loop: the same uniforms, the same tokens, whoever comes in where and when."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rlalign import Example, Nucleus, Rollout, Sampling
from rlalign.config.load import load_pipeline
from rlalign.errors import BadLogits
from rlalign.randomness import Seeds
from rlalign.running.checked import check
from rlalign.testing.bench import registry
from rlalign_plugin_hf.engine.engines import KEPT_SHARE, Engine
from rlalign_plugin_hf.engine.graphs import Graphs
from rlalign_plugin_hf.engine.slots import Slots

FAMILIES = ("gpt2", "llama", "t5", "bart")
EXAMPLES = [Example(str(i), " ".join(f"w{(7 * i + j) % 60}" for j in range(1 + 5 * i % 9))) for i in range(7)]
"""Prompts of 1 to 9 words."""
SETTINGS = {
    "plain": Sampling(samples=3, max_new_tokens=14, temperature=1.5),
    "greedy": Sampling(greedy=True, max_new_tokens=9),
    "truncated": Sampling(
        samples=3, max_new_tokens=12, temperature=2.0, top_k=40, top_p=0.95, min_new_tokens=3
    ),
    "min-p": Sampling(samples=2, max_new_tokens=9, temperature=2.0, min_p=0.01, min_new_tokens=2),
    "stop": Sampling(
        samples=3, max_new_tokens=14, temperature=3.0, stop=("w7", "w21 w", "w3"), min_new_tokens=2
    ),
}
NUMBERS = ("logprobs_NT", "full_logprobs_NT")
EXACT = ("group_N", "actions_NT", "mask_NT", "finished_N")


def sampled(
    policy: Any, how: Sampling, kind: Any, within: Any = None, told: list[Rollout] | None = None
) -> Rollout:
    """In four slots of which two are left in the end, looked at every third step."""
    policy.engine = Engine(kind)
    policy.engine.buckets, policy.engine.looks = (1, 2, 4), 3
    uniforms = Seeds(3).uniforms(
        "slots", positions=range(len(EXAMPLES)), samples=how.samples, steps=how.max_new_tokens
    )
    finished = None if told is None else told.append
    rollout: Rollout = policy.sample(EXAMPLES, how, uniforms.to(policy.device), within, finished)
    assert bool(policy.engine._held) == (kind != "loop"), "what was asked for has sampled"
    return rollout


def last(policy: Any) -> Any:
    """What stepped in the last rollout."""
    return [*policy.engine._held.values()][-1][0]


def require_same(found: Rollout, expected: Rollout, atol: float = 1e-10) -> None:
    for name in EXACT:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in NUMBERS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)
    assert found.texts == expected.texts and found.settings == expected.settings
    assert (found.allowed is None) == (expected.allowed is None)
    if found.allowed is not None and expected.allowed is not None:
        row_M, step_M = expected.chosen
        assert torch.equal(found.allowed.mask(row_M, step_M), expected.allowed.mask(row_M, step_M))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_sample_what_the_loop_samples(
    exact_policy_of: Callable[..., Any], family: str, setting: str
) -> None:
    policy, how = exact_policy_of(family), SETTINGS[setting]
    expected = sampled(policy, how, "loop")
    assert how.greedy or len(set(expected.length_N.tolist())) > 2, "rows that leave at different times"
    require_same(sampled(policy, how, "slots"), expected)


@pytest.mark.parametrize("more", ({}, {"min_new_tokens": 4}, {"top_p": 0.9, "min_new_tokens": 2}))
@pytest.mark.parametrize("family", ("llama", "t5"))
def test_two_models_in_one_step(
    exact_policy_of: Callable[..., Any], family: str, more: dict[str, Any]
) -> None:
    """NLPO: the nucleus of another model, which reads the same rows."""
    policy, how = exact_policy_of(family), Sampling(samples=3, max_new_tokens=10, temperature=2.0, **more)
    other = policy.copy("lagging")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.9)
    found = []
    for kind in ("loop", "slots"):
        within = Nucleus("mask", top_p=0.6, min_keep=2)
        within.resolve({"mask": other})
        found.append(sampled(policy, how, kind, within))
    assert len(set(found[0].length_N.tolist())) > 2
    require_same(found[1], found[0])


def test_groups_are_told_of_as_they_end(exact_policy_of: Callable[..., Any]) -> None:
    policy, how = exact_policy_of("gpt2"), SETTINGS["truncated"]
    told: list[Rollout] = []
    whole = sampled(policy, how, "slots", told=told)
    assert len(told) > 1
    assert sorted(int(e.id) for part in told for e in part.examples) == list(range(len(EXAMPLES)))
    for part in told:
        mine = whole.take(torch.cat([(whole.group_N == int(e.id)).nonzero()[:, 0] for e in part.examples]))
        order = part.row_order()
        assert mine.texts == tuple(part.texts[i] for i in order.tolist())
        assert torch.equal(mine.logprobs_NT[mine.mask_NT], part.logprobs_NT[part.mask_NT])
        assert mine.allowed is not None and part.allowed is not None
        assert torch.equal(mine.allowed.mask(*mine.chosen), part.allowed.mask(*part.chosen))


@pytest.mark.parametrize("lora", ({}, {"lora": {"r": 3}}), ids=("full", "lora"))
def test_buffers_stay_and_weights_are_the_present_ones(policy_of: Callable[..., Any], lora: Any) -> None:
    """What an optimiser changes in place is what the next rollout samples from, at the same addresses."""
    policy, how = policy_of("llama", **lora), SETTINGS["plain"]
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    generator, held = torch.Generator().manual_seed(1), []
    sampled(policy, how, "slots")
    for _ in range(3):
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        policy.version += 1
        again = policy.sample(EXAMPLES, how, uniforms)
        held.append(last(policy))
    assert held[1] is held[2], "an adapter is left out until it has learned"
    require_same(again, sampled(policy, how, "loop"), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(policy_of: Callable[..., Any], family: str) -> None:
    """Near the loop, under autocast and with weights in half precision; log-probs are float32."""
    from rlalign.records.weights import hold

    how = Sampling(samples=2, max_new_tokens=1, temperature=1.5)
    for held in (False, True):
        policy = policy_of(family)
        if held:
            hold(policy, torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not held):
            found, expected = (sampled(policy, how, kind) for kind in ("slots", "loop"))
        assert found.logprobs_NT.dtype == torch.float32
        same = found.actions_NT == expected.actions_NT
        assert float((found.logprobs_NT - expected.logprobs_NT)[same].abs().max()) < 0.1


def test_logits_that_are_none(policy_of: Callable[..., Any]) -> None:
    policy, how = policy_of("gpt2"), SETTINGS["plain"]
    with torch.no_grad():
        policy.network.transformer.ln_f.bias[0] = math.nan
    with pytest.raises(BadLogits, match="example `0`, response 1, step 1"):
        sampled(policy, how, "slots")
    good, within = policy_of("gpt2"), Nucleus("mask")
    within.resolve({"mask": policy})
    with pytest.raises(BadLogits):
        sampled(good, how, "slots", within)


class Scarce(Slots):
    """Runs out of memory in a step with more than two slots."""

    alive: ClassVar[weakref.WeakSet[Scarce]] = weakref.WeakSet()
    beside: ClassVar[list[int]] = []
    """How many others there were when each was made."""

    def __init__(self, *args: Any) -> None:
        self.beside.append(len(self.alive))
        self.alive.add(self)
        super().__init__(*args)

    def step(self, n: int) -> None:
        if n > 2 and int(self.tick_) == 1:
            raise torch.OutOfMemoryError("scarce")
        super().step(n)


def test_out_of_memory_fewer_slots_take_more_turns(
    exact_policy_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, how = exact_policy_of("gpt2"), SETTINGS["plain"]
    expected = sampled(policy, how, "loop")
    monkeypatch.setattr("rlalign_plugin_hf.engine.engines.Slots", Scarce)
    told: list[Rollout] = []
    require_same(sampled(policy, how, "slots", told=told), expected)
    assert last(policy).slots.shape.slots == 2
    assert len(Scarce.beside) > 1 and not any(Scarce.beside)
    assert sorted(int(e.id) for part in told for e in part.examples) == list(range(len(EXAMPLES)))


def test_training_and_evaluation_in_turn_keep_their_buffers(
    exact_policy_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, how = exact_policy_of("llama"), SETTINGS["plain"]
    greedy = Sampling(greedy=True, max_new_tokens=how.max_new_tokens)
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    policy.engine = Engine("slots")
    first = [policy.sample(EXAMPLES, each, uniforms[:, : each.samples]) for each in (how, greedy)]
    monkeypatch.setattr("rlalign_plugin_hf.engine.engines.Slots", None)  # no others are made
    for _ in range(2):
        for each, expected in zip((how, greedy), first, strict=True):
            require_same(policy.sample(EXAMPLES, each, uniforms[:, : each.samples]), expected)


def test_few_buffers_are_kept_and_little_memory(
    exact_policy_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, how = exact_policy_of("llama"), SETTINGS["plain"]
    policy.engine = Engine("slots")
    kept, sizes = [], []
    for count in range(1, 7):
        uniforms = Seeds(3).uniforms("slots", positions=range(2), samples=count, steps=how.max_new_tokens)
        policy.sample(EXAMPLES[:2], how.model_copy(update={"samples": count}), uniforms)
        kept.append(len(policy.engine._held))
        sizes.append(last(policy).slots.nbytes)
    assert kept == [1, 2, 3, 4, 4, 4]
    room = sum(sizes[-2:])
    monkeypatch.setattr("rlalign_plugin_hf.engine.engines._memory", lambda device: room / KEPT_SHARE)
    policy.sample(EXAMPLES[:2], how.model_copy(update={"samples": 6}), uniforms)
    assert 1 <= sum(made.slots.nbytes for made, _ in policy.engine._held.values()) <= room


def test_a_capture_that_runs_out_of_memory_takes_fewer_slots(
    exact_policy_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a step that cannot be captured: with less memory it can."""
    policy, how = exact_policy_of("gpt2"), SETTINGS["plain"]
    expected = sampled(policy, how, "loop")

    class Captured:
        def __init__(self, graphs: Graphs, n: int) -> None:
            self.replay = lambda: graphs.slots.step(n)

    def captured(graphs: Graphs, n: int) -> Captured:
        if n > 2:
            raise torch.OutOfMemoryError("scarce")
        return Captured(graphs, n)

    monkeypatch.setattr(Graphs, "_captured", captured)
    monkeypatch.setattr(Engine, "kind", lambda engine, device: "graphs")
    require_same(sampled(policy, how, "graphs"), expected)
    assert last(policy).failed is None and last(policy).slots.shape.slots == 2


class Odd:
    """A constraint with steps of its own: everything is allowed."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        self.rows = len(inputs) * k

    def allowed(self) -> Tensor:
        return torch.ones(self.rows, self.vocabulary, dtype=torch.bool)

    def advance(self, tokens_n: Tensor) -> None:
        pass

    def select(self, rows: Tensor) -> None:
        self.rows = len(rows)


def test_what_slots_cannot_do_the_loop_does_and_says_so(
    policy_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy, how = policy_of("gpt2", engine="slots"), SETTINGS["plain"]
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    for _ in range(2):
        policy.sample(EXAMPLES, how, uniforms, Odd(policy.vocabulary))
    (record,) = [r.getMessage() for r in caplog.records if "samples by" in r.getMessage()]
    assert "the sampling loop: a Odd takes steps of its own" in record
    assert not policy.engine._held
    assert "a step over slots, without graphs, by the native GPT2 step" in policy.engine.said(
        policy, policy.device
    )
    assert "CUDA graphs" in Engine().said(policy, torch.device("cuda"))
    assert Engine().said(policy, policy.device) == "the sampling loop, by the native GPT2 step"


def test_check_says_what_samples(folders: Mapping[str, Path], tmp_path: Path, components: Any) -> None:
    for engine, expected in (
        (None, "the sampling loop, by"),
        ("slots", "a step over slots, without graphs, by"),
    ):
        pipeline = {
            "task": "sentences",
            "policy": {"causal-lm": {"path": str(folders["gpt2"]), "engine": engine}},
            "rewards": ["evens"],
            "algorithm": "rloo",
            "generation": {"samples": 2, "max_new_tokens": 4},
            "train": {"iterations": 1, "prompts": 2},
            "device": "cpu",
        }
        known = registry(components)
        loaded = load_pipeline(tmp_path / "p.yaml", registry=known, text=json.dumps(pipeline))
        assert f"\nsampling: {expected} the native GPT2 step" in check(loaded, known)


def test_a_step_that_cannot_be_captured_is_taken_without_a_graph(exact_policy_of: Callable[..., Any]) -> None:
    """Here nothing can: there is no CUDA."""
    if torch.cuda.is_available():
        pytest.skip("a machine without a GPU")
    policy, how = exact_policy_of("gpt2"), SETTINGS["plain"]
    expected = sampled(policy, how, "slots")
    ((key, (engine, models)),) = policy.engine._held.items()
    graphs = Graphs(engine.slots)
    policy.engine._held[key] = graphs, models
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    require_same(policy.sample(EXAMPLES, how, uniforms), expected)
    assert graphs.failed


def test_a_step_with_nothing_to_do_leaves_no_trace(exact_policy_of: Callable[..., Any]) -> None:
    """As before a capture: rows in progress go on as if it had not been."""
    policy, how = exact_policy_of("llama"), SETTINGS["truncated"]
    expected = sampled(policy, how, "slots")
    slots: Slots = last(policy).slots
    own, T = slots.step, slots.shape.steps

    def step(n: int) -> None:
        time_B, tick_ = slots.time_B.clone(), slots.tick_.clone()
        if int(tick_) == 0:
            slots.time_B.fill_(T)
            own(n)
            slots.time_B.copy_(time_B)
            slots.tick_.copy_(tick_)
        own(n)

    slots.step = step  # type: ignore[method-assign]
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    require_same(policy.sample(EXAMPLES, how, uniforms), expected)


# -- on a GPU ------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(policy: Any, how: Sampling, kind: Any, within: Any = None) -> Rollout:
    rollout = sampled(policy, how, kind, within)
    if kind == "graphs":
        engine = last(policy)
        assert isinstance(engine, Graphs) and engine.failed is None and engine._graphs, engine.failed
    return rollout


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_sample_what_the_step_without_samples(
    exact_policy_of: Callable[..., Any], family: str, setting: str
) -> None:
    """In float64, where no rounding moves a token: graphs, slots and loop, there and on the CPU."""
    policy, how = exact_policy_of(family), SETTINGS[setting]
    expected = sampled(policy, how, "loop")
    policy.cuda()
    for kind in ("loop", "slots", "graphs"):
        require_same(on_gpu(policy, how, kind).to("cpu"), expected)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("family", ("llama", "t5"))
def test_two_models_in_one_graph(exact_policy_of: Callable[..., Any], family: str) -> None:
    policy, how = exact_policy_of(family).cuda(), Sampling(samples=3, max_new_tokens=10, temperature=2.0)
    other = policy.copy("lagging")
    found = []
    for kind in ("loop", "slots", "graphs"):
        within = Nucleus("mask", top_p=0.6, min_keep=2)
        within.resolve({"mask": other})
        found.append(on_gpu(policy, how, kind, within))
    require_same(found[1], found[0])
    require_same(found[2], found[0])


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("half", ("float32", "autocast", "weights"))
@pytest.mark.parametrize("lora", ({}, {"lora": {"r": 3}}), ids=("full", "lora"))
def test_a_graph_stays_good_when_weights_change(policy_of: Callable[..., Any], lora: Any, half: str) -> None:
    """What an optimiser changes in place: the graph of before samples from it, as a fresh one would."""
    from rlalign.records.weights import hold

    policy, how = policy_of("llama", **lora).cuda(), SETTINGS["plain"]
    if half == "weights":
        hold(policy, torch.bfloat16)
    uniforms = Seeds(3).uniforms("slots", positions=range(len(EXAMPLES)), samples=3, steps=how.max_new_tokens)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half == "autocast"):
        on_gpu(policy, how, "graphs")
        held = []
        for _ in range(2):
            with torch.no_grad():
                for weight in policy.parameters():
                    weight.mul_(1.1)
            policy.version += 1
            again = policy.sample(EXAMPLES, how, uniforms.cuda())
            held.append(last(policy))
        assert held[0] is held[1]
        for kind in ("graphs", "slots"):
            fresh = on_gpu(policy, how, kind)
            first = slice(None), slice(0, 1)  # from there on rounding may move a token
            same_N1 = again.actions_NT[first] == fresh.actions_NT[first]
            assert bool(same_N1.all()) or half != "float32"
            off_N1 = (again.logprobs_NT[first] - fresh.logprobs_NT[first])[same_N1].abs()
            assert float(off_N1.max()) < (1e-5 if half == "float32" else 0.05)


@pytest.mark.gpu
@gpu
def test_log_probs_on_a_gpu_are_those_of_scoring(policy_of: Callable[..., Any]) -> None:
    from rlalign.learning.engine import Engine as Learning

    policy, how = policy_of("gpt2").cuda(), SETTINGS["truncated"]
    rollout = on_gpu(policy, how, "graphs")
    again = Learning({"policy": policy}).score("policy", rollout, ("logprobs",))
    torch.testing.assert_close(rollout.logprobs_NT, again.logprobs_NT, rtol=0, atol=1e-5)
