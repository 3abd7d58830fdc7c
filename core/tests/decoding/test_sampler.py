"""The sampling loop: tokens depend on the uniforms alone, and log-probs are those of what was sampled from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlalign import Batch, Component, Loss, Outputs, RLAlignError, Rollout, hookimpl
from rlalign.builtin import nucleus
from rlalign.builtin.nucleus import Nucleus
from rlalign.data.example import Example
from rlalign.data.settings import Sampling
from rlalign.decoding import sampler
from rlalign.decoding.sampler import sample
from rlalign.learning.engine import Engine
from rlalign.randomness import Seeds
from rlalign.running.responses import sample as bench_sample
from rlalign.testing import Bench, Logits, Numbers

from .sampled_plainly import by_walking, reference

V = 11


# -- sampling ---------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Sampling] = {
    "plain": Sampling(samples=4, max_new_tokens=7),
    "tempered": Sampling(samples=4, max_new_tokens=7, temperature=0.6, min_new_tokens=3),
    "greedy": Sampling(samples=4, max_new_tokens=7, greedy=True),
    "greedy-narrowed": Sampling(samples=4, max_new_tokens=7, greedy=True, top_k=3, temperature=0.3),
    "top-k": Sampling(samples=4, max_new_tokens=7, top_k=3, min_new_tokens=2),
    "top-p": Sampling(samples=4, max_new_tokens=7, top_p=0.7, temperature=1.5),
    "min-p": Sampling(samples=4, max_new_tokens=7, min_p=0.2),
    "all": Sampling(samples=4, max_new_tokens=6, top_k=6, top_p=0.9, min_p=0.05, temperature=1.2, min_new_tokens=2),
    "stop": Sampling(samples=4, max_new_tokens=7, stop=("3", "7 1")),
    "stop-late": Sampling(samples=4, max_new_tokens=7, stop=("3",), min_new_tokens=4, top_p=0.9),
}  # fmt: skip


def policies(*, hidden: int | None = 5) -> tuple[Logits, Logits]:
    """A policy with an end that comes now and then, and another to constrain it."""
    made = []
    for seed in (0, 4):
        policy = Logits(
            Logits.Config(prompts=16, responses=4, steps=7, vocabulary=V, hidden=hidden, seed=seed)
        )
        policy.setup()
        made.append(policy.double().eval())
    return made[0], made[1]


def examples(count: int) -> list[Example]:
    return [Example(id=str(i), prompt=str(i % 16)) for i in range(count)]


def draw(
    policy: Logits,
    how: Sampling,
    positions: range = range(16),
    mask: Logits | None = None,
    compact: bool = True,
) -> Rollout:
    u = Seeds(1).uniforms("sample", positions=positions, samples=how.samples, steps=how.max_new_tokens)
    within = None
    if mask is not None:
        within = Nucleus("mask", top_p=0.6, min_keep=2, always=(0,))
        within.resolve({"mask": mask})
    asked = [Example(id=str(i), prompt=str(i % 16)) for i in positions]
    rollout = sample(policy, asked, how, u, within, compact=compact)
    slots = torch.arange(how.samples).repeat(len(asked))
    return rollout.with_columns(slot=slots)


def responses(rollout: Rollout) -> list[tuple[Any, ...]]:
    """Everything that was sampled, without padding; log-probs to 1e-12."""
    found = []
    for i, length in enumerate(rollout.length_N.tolist()):
        steps = torch.arange(length)
        kept = (
            None
            if rollout.allowed is None
            else rollout.allowed.mask(torch.full((length,), i), steps).tolist()
        )
        example = rollout.examples[int(rollout.group_N[i])].id
        logp_T = [round(x, 11) for x in rollout.logprobs_NT[i, :length].tolist()]
        full_T = [round(x, 11) for x in rollout.full_logprobs_NT[i, :length].tolist()]
        tokens, finished = rollout.actions_NT[i, :length].tolist(), bool(rollout.finished_N[i])
        found.append((example, tokens, finished, rollout.texts[i], kept, logp_T, full_T))
    return found


@pytest.mark.thin(1)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_batch_size_order_and_compaction_never_change_a_token(name: str, constrained: bool) -> None:
    how = SETTINGS[name]
    policy, other = policies()
    mask = other if constrained else None
    whole = responses(draw(policy, how, mask=mask))
    assert len({tuple(r[1]) for r in whole}) > 10
    assert len({len(r[1]) for r in whole}) > 2 or name in ("greedy", "greedy-narrowed")
    assert responses(draw(policy, how, mask=mask, compact=False)) == whole
    for size in (1, 4):
        parts = [responses(draw(policy, how, range(at, at + size), mask)) for at in range(0, 16, size)]
        assert [r for part in parts for r in part] == whole
    fewer = responses(draw(policy, how.model_copy(update={"samples": 2}), mask=mask))
    assert fewer == [r for i, r in enumerate(whole) if i % 4 < 2]


@pytest.mark.parametrize("every", [3, 8])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_looking_less_often_for_ends_changes_nothing(
    name: str, constrained: bool, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where what is sampled behind an end is left out afterwards."""
    policy, other = policies()
    mask = other if constrained else None
    whole = draw(policy, SETTINGS[name], mask=mask)
    for module in (sampler, nucleus):
        monkeypatch.setattr(module, "steps_between_looks", lambda device: every)
    late = draw(policy, SETTINGS[name], mask=mask)
    assert responses(late) == responses(whole)
    for column in ("actions_NT", "logprobs_NT", "full_logprobs_NT", "mask_NT"):
        assert torch.equal(getattr(late, column)[~whole.mask_NT], getattr(whole, column)[~whole.mask_NT])


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_sampled_are_what_a_loop_over_tokens_samples(name: str, constrained: bool) -> None:
    """One response at a time, in plain Python, with the constraint's logits beside it."""
    how = SETTINGS[name]
    policy, other = policies()
    found = draw(policy, how, mask=other if constrained else None)
    uniforms = Seeds(1).uniforms("sample", positions=range(16), samples=4, steps=how.max_new_tokens)
    with torch.no_grad():
        grid = [p.head(p.trunk(p.free)) for p in (policy, other)]
    for i in range(len(found)):
        prompt, slot = divmod(i, 4)
        tokens: list[int] = []
        finished = False
        for t in range(how.max_new_tokens):
            temperature = 1.0 if how.greedy else how.temperature
            z = grid[0][prompt * 4 + slot, t] / temperature
            banned: set[int] = set()
            if constrained:
                best = reference(grid[1][prompt * 4 + slot, t].tolist(), Sampling(top_p=0.6))
                best |= set(grid[1][prompt * 4 + slot, t].topk(2).indices.tolist()) | {0, V - 1}
                banned |= set(range(V)) - best
            if t < how.min_new_tokens:
                banned.add(V - 1)
            left = [-math.inf if v in banned else x for v, x in enumerate(z.tolist())]
            kept = sorted(reference(left, how))
            p = torch.zeros(V, dtype=torch.float64)
            p[kept] = z[kept].softmax(0)
            u = float(uniforms[prompt, slot, t])
            token = int(p.argmax()) if how.greedy else by_walking(p.tolist(), u)
            assert int(found.actions_NT[i, t]) == token, (i, t)
            assert float(found.logprobs_NT[i, t]) == pytest.approx(math.log(float(p[token])), abs=1e-12)
            full = float(z.log_softmax(0)[token])
            assert float(found.full_logprobs_NT[i, t]) == pytest.approx(full, abs=1e-12)
            if found.allowed is not None:
                row = found.allowed.mask(torch.tensor([i]), torch.tensor([t]))[0]
                assert row.nonzero()[:, 0].tolist() == kept
            tokens.append(token)
            text = policy.text(torch.tensor(tokens))
            stopped = t + 1 >= how.min_new_tokens and any(s in text for s in how.stop)
            if token == V - 1 or stopped:
                finished = True
                break
        assert int(found.length_N[i]) == len(tokens)
        assert bool(found.finished_N[i]) == finished
        assert found.mask_NT[i].tolist() == [t < len(tokens) for t in range(found.steps)]


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_log_probs_equal_a_rescoring(name: str, constrained: bool) -> None:
    policy, other = policies()
    rollout = draw(policy, SETTINGS[name], mask=other if constrained else None)
    for budget, chunk in ((10**9, 10**9), (30, 7), (1, 1)):
        engine = Engine({"policy": policy}, budget=budget, head_chunk=chunk)
        found = engine.score("policy", rollout, ["logprobs", "full_logprobs"])
        torch.testing.assert_close(found.logprobs_NT, rollout.logprobs_NT, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.full_logprobs_NT, rollout.full_logprobs_NT, rtol=0, atol=1e-12)
    assert (rollout.logprobs_NT[rollout.mask_NT] <= 1e-12).all()
    assert (rollout.logprobs_NT >= rollout.full_logprobs_NT - 1e-12).all()


def test_nothing_narrowed_stores_nothing() -> None:
    policy, other = policies()
    assert draw(policy, SETTINGS["tempered"]).allowed is None  # bans are worked out again, not stored
    assert draw(policy, SETTINGS["top-p"]).allowed is not None
    assert draw(policy, SETTINGS["plain"], mask=other).allowed is not None


def test_a_response_ends_as_it_should() -> None:
    policy, _ = policies()
    rollout = draw(policy, SETTINGS["stop-late"])
    assert int(rollout.length_N.min()) >= 4
    ended = rollout.actions_NT[torch.arange(64), rollout.length_N - 1] == V - 1
    assert (~rollout.finished_N | ended | torch.tensor([r[1].count(3) > 0 for r in responses(rollout)])).all()
    assert any(rollout.finished_N & ~ended)
    stop = draw(policy, SETTINGS["stop"])
    assert all("3" not in text and "7 1" not in text for text in stop.texts)
    short = draw(policy, Sampling(samples=2, max_new_tokens=2))
    assert short.steps == 2
    cut = (short.length_N == 2) & (short.actions_NT[:, 1] != V - 1)
    assert cut.any() and not short.finished_N[cut].any()


def test_a_stop_string_ends_a_response_as_soon_as_it_may_end() -> None:
    """Seen before the least length it ends the response there; the text goes up to where it stands."""
    policy, _ = policies()
    rollout = draw(policy, Sampling(samples=4, max_new_tokens=7, stop=("3",), min_new_tokens=4))
    early = [i for i in range(64) if 3 in rollout.actions_NT[i, :3].tolist()]
    assert len(early) > 5
    for i in early:
        before = rollout.actions_NT[i].tolist().index(3)
        assert int(rollout.length_N[i]) == 4
        assert bool(rollout.finished_N[i])
        assert len(rollout.texts[i].split()) == before


def test_more_steps_than_the_policy_has_are_not_asked_of_it() -> None:
    policy, _ = policies()
    rollout = draw(policy, Sampling(samples=2, max_new_tokens=50))
    assert rollout.steps <= 7


def test_a_constraint_and_a_ban_that_leave_nothing_are_an_error() -> None:
    policy, _ = policies()

    class OnlyTheEnd:
        def start(self, inputs: Any, k: int) -> None:
            self.n = len(inputs) * k

        def allowed(self) -> Tensor:
            kept = torch.zeros(self.n, V, dtype=torch.bool)
            kept[:, V - 1] = True
            return kept

        def advance(self, tokens_n: Tensor) -> None: ...

        def select(self, rows: Tensor) -> None: ...

    how = Sampling(max_new_tokens=3, min_new_tokens=1)
    with pytest.raises(
        RLAlignError,
        match="example `0`, response 1, step 1: nothing is left to choose: what the OnlyTheEnd allows",
    ):
        sample(policy, examples(2), how, torch.full((2, 1, 3), 0.5), OnlyTheEnd())


def test_uniforms_of_another_shape_are_refused() -> None:
    policy, _ = policies()
    with pytest.raises((ValueError, RuntimeError)):
        sample(policy, examples(2), Sampling(samples=2, max_new_tokens=3), torch.zeros(2, 1, 3))


# -- in a phase -------------------------------------------------------------------------------------------------


class Ratio(Component):
    """PPO's ratio and nothing else."""

    needs = ("logprobs", "old_logprobs")
    trains = ("policy",)
    unit = "response"
    models: dict[str, Any] = {"mask": "lagging"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.constraint = Nucleus("mask", top_p=0.6, min_keep=2)

    @hookimpl
    def loss(self, batch: Batch, now: Outputs) -> Loss:
        ratio_NT = (now.logprobs_NT - batch.old_logprobs_NT).exp()
        off = torch.where(batch.rollout.mask_NT, (ratio_NT - 1).abs(), 0.0).detach().sum()
        gain = batch.mean_over_tokens(ratio_NT * batch.advantage_NT)
        return Loss(-gain, {"off": off, "ratio": batch.mean_over_tokens(ratio_NT.detach())})


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"temperature": 0.5, "min_new_tokens": 3},
        {"top_p": 0.7, "top_k": 5},
        {"stop": ["3"], "min_p": 0.1},
    ],
)
def test_the_first_ratio_is_one(generation: dict[str, Any], tmp_path: Path) -> None:
    say = {
        "task": "numbers",
        "policy": {"logits": {"hidden": 5}},
        "models": {"mask": {"logits": {"hidden": 5, "seed": 8}}},
        "rewards": ["token-sum"],
        "algorithm": "ratio",
        "responses": "sampled",
        "generation": {"samples": 4, "max_new_tokens": 7, **generation},
        "train": {"iterations": 2, "prompts": 6, "dtype": "float64", "lr": 0.05},
    }
    bench = Bench(tmp_path, say, {"ratio": Ratio})
    for _ in range(2):
        metrics = bench.iterate()
        assert metrics["ratio/ratio"] == pytest.approx(1, abs=1e-12)
        assert metrics["ratio/off"] < 1e-11


class NeverTwice:
    """A constraint of one's own: no token may follow itself."""

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        self.allowed_nV = torch.ones(len(inputs) * k, 6, dtype=torch.bool)

    def allowed(self) -> Tensor:
        return self.allowed_nV

    def advance(self, tokens_n: Tensor) -> None:
        self.allowed_nV = torch.ones_like(self.allowed_nV).scatter(1, tokens_n[:, None], False)

    def select(self, rows: Tensor) -> None:
        self.allowed_nV = self.allowed_nV[rows]


def test_a_constraint_may_be_anybodys(tmp_path: Path) -> None:
    class Careful(Ratio):
        models: dict[str, Any] = {}

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.constraint = NeverTwice()  # type: ignore[assignment]

    say = {
        "task": "numbers",
        "policy": {"logits": {"vocabulary": 6}},
        "rewards": ["token-sum"],
        "algorithm": "careful",
        "responses": "sampled",
        "generation": {"samples": 8, "max_new_tokens": 7},
        "train": {"iterations": 1, "prompts": 6, "dtype": "float64"},
    }
    bench = Bench(tmp_path, say, {"careful": Careful})
    rollout, _ = bench.rollout()
    assert max(len(text.split()) for text in rollout.texts) > 2
    assert all(a != b for text in rollout.texts for a, b in pairwise(text.split()))
    assert rollout.allowed is not None
    allowed_MV = rollout.allowed.mask(*rollout.chosen)
    assert torch.equal(allowed_MV.all(1), rollout.chosen[1] == 0)
    assert bench.iterate()["careful/ratio"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("prompts", [(4, 64), (16, 64)])
def test_the_draws_size_does_not_move_a_positions_tokens(prompts: tuple[int, int], tmp_path: Path) -> None:
    """`generation` at 4 and at 64 prompts per iteration: position p of a draw meets the same uniforms."""
    task = Numbers(Numbers.Config(size=64, prompts=16))
    data = task.examples("train")
    made: list[list[str]] = []
    for count in prompts:
        say = {
            "task": {"numbers": {"size": 64, "prompts": 16}},
            "policy": {"logits": {"prompts": 16}},
            "rewards": ["token-sum"],
            "algorithm": "ratio",
            "responses": "sampled",
            "generation": {"samples": 4, "max_new_tokens": 7},
            "train": {"iterations": 2, "prompts": count, "dtype": "float64"},
        }
        bench = Bench(tmp_path, say, {"ratio": Ratio})
        key = ("sample", 0, bench.phase.settings.name, 0)
        texts: list[str] = []
        for at in range(0, 64, count):
            part = data[at : at + count]
            texts += bench_sample(bench.phase, part, bench.phase.settings.generation, key, at).texts
        made.append(texts)
    assert made[0] == made[1]
