"""Tests to inherit: what every component must do, whatever it is for."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from rlalign import nested
from rlalign.config.pipeline import Item
from rlalign.config.registry import Registry
from rlalign.data.batch import Batch, Outputs
from rlalign.interface.component import Component
from rlalign.interface.policy import Model
from rlalign.learning.engine import Route
from rlalign.records.tensors import split_state
from rlalign.running.checks import hooks_of
from rlalign.running.members import HOOKS, Member, implements
from rlalign.testing.bench import (
    Bench,
    logged,
    plain_gradient,
    plain_outputs,
    run,
    session,
    stopped_and_resumed,
)

OTHERWISE = (
    "a run that was stopped and resumed went on otherwise: `state_dict` must give all that the component changes as it "
    "runs, and `load_state_dict` take it back; and random numbers come from the generators of the run"
)


class ComponentTests:
    """Inherit, name the component, and pytest does the rest.

    `component` is its name or class, `options` what the pipeline gives it, `pipeline` whatever else the
    pipeline needs to say (a policy, rewards, `generation`). Capabilities are declared, not guessed:
    `deterministic = False` for a reward that answers differently each time, `exact_gradient = False` for a loss
    that detaches part of its value on purpose.
    """

    component: ClassVar[str | type[Component] | type[Model]]
    options: ClassVar[Mapping[str, Any]] = {}
    pipeline: ClassVar[Mapping[str, Any]] = {}
    deterministic: ClassVar[bool] = True
    exact_gradient: ClassVar[bool] = True
    near: ClassVar[float] = 1e-3
    """How far, as a share, what it logs on a GPU may be from what it logs on a CPU."""

    # -- what it is ---------------------------------------------------------------------------------

    @cached_property
    def cls(self) -> type[Component]:
        named: Any = self.component
        found: type[Component] = Registry(trust=True).load(named).cls if isinstance(named, str) else named
        return found

    @property
    def named(self) -> str:
        return self.component if isinstance(self.component, str) else "under-test"

    @property
    def extra(self) -> dict[str, type[Any]]:
        return {} if isinstance(self.component, str) else {"under-test": self.component}

    @property
    def config(self) -> Any:
        """The options, read as those of a pipeline are."""
        return self.cls.Config.model_validate_json(json.dumps(dict(self.options), default=str))

    def hooks(self) -> dict[str, str]:
        """The hooks it implements, each `plain` or `wrapper`."""
        component = self.cls(self.config)
        return {hook: kind for hook in HOOKS if (kind := implements(component, hook))}

    def whole_pipeline(self) -> dict[str, Any]:
        """A small pipeline with the component in its place."""
        item = {self.named: dict(self.options)}
        hooks = self.hooks()
        base: dict[str, Any] = {
            "task": "numbers",
            "policy": {"logits": {"hidden": 5}},
            "rewards": ["token-sum"],
            "algorithm": "policy-gradient",
            "generation": {"samples": 4, "max_new_tokens": 7},
            "train": {"iterations": 3, "prompts": 4, "dtype": "float64", "lr": 0.01, "minibatches": 2},
        }
        if "reward" in hooks:
            base["rewards"] = [*base["rewards"], item]
        elif "rollout" in hooks:
            base["responses"] = item
        elif hooks:
            base["algorithm"] = item if "loss" in hooks or "update" in hooks else ["policy-gradient", item]
        return {**base, **self.pipeline}

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return Bench(tmp_path, self.whole_pipeline(), self.extra)

    @pytest.fixture
    def has_reward(self) -> None:
        if "reward" not in self.hooks() or not self.deterministic:
            pytest.skip(f"`{self.named}` has no reward that answers the same each time")

    @pytest.fixture
    def has_loss(self) -> None:
        if "loss" not in self.hooks():
            pytest.skip(f"`{self.named}` has no loss")

    # -- what it must do ----------------------------------------------------------------------------

    def test_every_option_is_described(self) -> None:
        for name, field in self.cls.Config.model_fields.items():
            assert field.description, f"option `{name}` has no description"

    def test_hooks_are_marked(self) -> None:
        item = Item(name=self.named, component=self.named, options=self.config, cls=self.cls)
        member = Member(item, self.cls(self.config), "alone")
        assert not list(hooks_of([member]))

    def test_state_survives_a_round_trip(self, bench: Bench, tmp_path: Path) -> None:
        for component in bench.phase.plan.components:
            state = component.state_dict()
            tensors, tree = split_state(state)
            again = nested.join(tensors, json.loads(json.dumps(tree)))
            component.load_state_dict(again)
            assert _equal(component.state_dict(), state)

    @pytest.mark.usefixtures("has_reward")
    def test_reward_depends_on_its_group_only(self, bench: Bench) -> None:
        rollout, reward = bench.rollout()
        rows = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
        shuffled = bench.stages.reward(bench.run, rollout.take(rows))
        groups = torch.arange(len(rollout.examples)).flip(0)
        split = [rollout.take(rollout.group_N == g) for g in groups.tolist()]
        alone = {
            g: bench.stages.reward(bench.run, part) for g, part in zip(groups.tolist(), split, strict=True)
        }
        for name, part in reward.parts.items():
            torch.testing.assert_close(
                shuffled.parts[name], part[rows], msg=f"`{name}` depends on the order of rows"
            )
            for g, result in alone.items():
                torch.testing.assert_close(
                    result.parts[name], part[rollout.group_N == g], msg=f"`{name}` depends on other groups"
                )

    @pytest.mark.usefixtures("has_loss")
    def test_padding_is_never_read(self, bench: Bench) -> None:
        """Neither log-probs nor what a column or an advantage holds beyond a response's end may move anything."""
        batch = bench.batch()
        rollout = batch.rollout
        noise = torch.where(rollout.mask_NT, 0.0, 7.0)

        def spoil(columns: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: x + noise if isinstance(x, torch.Tensor) and x.shape == noise.shape else x
                for name, x in columns.items()
            }

        spoiled = replace(
            batch,
            rollout=replace(
                rollout,
                actions_NT=torch.where(rollout.mask_NT, rollout.actions_NT, 1),
                logprobs_NT=rollout.logprobs_NT + noise,
                full_logprobs_NT=rollout.full_logprobs_NT + noise,
                columns=spoil(rollout.columns),
            ),
            advantage_NT=batch.advantage_NT + noise,
            columns=spoil(batch.columns),
        )
        torch.testing.assert_close(*[bench.gradient(b)[1] for b in (batch, spoiled)])

    @pytest.mark.usefixtures("has_loss")
    def test_loss_is_a_sum_over_units(self, bench: Bench) -> None:
        """loss(step) = Σ loss(units), in every route and however the step is cut."""
        self.move(bench, 0)  # a value that starts at zero and a policy that is its own reference hide faults
        batch = bench.batch()
        self.move(bench, 1)  # and so does a ratio of one
        self.check_routes(bench, batch)

    @pytest.mark.usefixtures("has_loss")
    def test_gradient_is_that_of_finite_differences(self, bench: Bench) -> None:
        """With regard to all that the loss reads live: nothing is detached that should not be."""
        if not self.exact_gradient:
            pytest.skip(f"`{self.named}` has no loss whose gradient is that of its value")
        self.move(bench, 0)
        batch = bench.batch()
        self.move(bench, 1)
        bench.stages.step_started(bench.run, batch)
        read = plain_outputs(bench, batch).items()
        leaves = [x.detach().requires_grad_() for x in read.values()]

        def loss(*live: torch.Tensor) -> torch.Tensor:
            now = Outputs(**dict(zip(read, live, strict=True)))
            return bench.phase.losses(batch, now)[0]

        try:
            gradcheck(loss, leaves, eps=1e-6, atol=1e-7, rtol=1e-4, fast_mode=True)
        except GradcheckError as error:
            raise AssertionError(
                "the gradient of the loss is not that of its value; where something is detached on purpose, say "
                f"`exact_gradient = False`: {str(error).partition(chr(10) * 2)[0]}"
            ) from None

    def move(self, bench: Bench, seed: int) -> None:
        """Put all weights that train a little elsewhere."""
        start = bench.learner.parameters()
        noise = torch.randn(len(start), generator=torch.Generator().manual_seed(seed), dtype=start.dtype)
        bench.learner.assign(start + 0.3 * noise)

    def check_routes(self, bench: Bench, batch: Batch) -> None:
        """Every route and budget gives the plain graph's loss, metrics and gradients."""
        metrics, gradients = plain_gradient(bench, batch)
        whole, row = 10**9, 1
        cuts: tuple[tuple[Route | None, int, int], ...] = (
            *(("A", whole, whole), ("A", whole, 12), ("B", whole, 3)),
            *(("T", whole, 3), ("T", 16, 3), (None, 24, 12), (None, row, 4)),
        )
        for route, budget, chunk in cuts:
            found, grads = bench.gradient(batch, route=route, budget=budget, head_chunk=chunk)
            where = (
                f"the loss is not the sum of its pieces (route {route}, budget {budget}, head chunk {chunk}): "
                "take every mean by `batch.mean_over_…`, and read nothing of other units than the class's `unit`"
            )
            assert found == pytest.approx(metrics, rel=1e-12, abs=1e-12), where
            for name, expected in gradients.items():
                scale = float(expected.abs().max().clamp_min(1.0))
                assert float((grads[name] - expected).abs().max()) <= 1e-12 * scale, f"{name}: {where}"

    def test_resume_is_exact(self, tmp_path: Path) -> None:
        """Stopped after one iteration and resumed: the same weights and metrics, to the bit."""
        whole = session(tmp_path, self.whole_pipeline(), self.extra, name="whole")
        whole.run()
        resumed = stopped_and_resumed(tmp_path, self.whole_pipeline(), self.extra)
        for name, model in whole.models.items():
            for key, tensor in model.state_dict().items():
                assert torch.equal(tensor, resumed.models[name].state_dict()[key]), (
                    f"`{key}` of {name}: {OTHERWISE}"
                )
        assert logged(whole.dir.path) == logged(resumed.dir.path), OTHERWISE

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_a_gpu_gives_what_a_cpu_gives(self, tmp_path: Path) -> None:
        """The same tokens and numbers from the same seed, but for rounding."""
        cpu, gpu = (self._logged_on(device, tmp_path) for device in ("cpu", "cuda"))
        assert len(cpu) == len(gpu)
        for one, other in zip(cpu, gpu, strict=True):
            require_near(other, one, self.near)

    def _logged_on(self, device: str, folder: Path) -> list[dict[str, Any]]:
        pipeline = {**self.whole_pipeline(), "device": device}
        finished, _ = run(folder / device, pipeline, self.extra)
        return logged(finished.path)["metrics.jsonl"]


def require_near(found: Mapping[str, Any], expected: Mapping[str, Any], near: float) -> None:
    """What a run logged in an iteration, computed elsewhere: the same but for rounding, a share `near`."""
    assert found.keys() == expected.keys()
    numbers = {key: value for key, value in expected.items() if isinstance(value, float)}
    # A policy is its own reference at first, and rounding says which response is more likely.
    if expected.get("iteration") == 1:
        numbers = {key: value for key, value in numbers.items() if not key.endswith("/accuracy")}
    far = {
        key: (found[key], value)
        for key, value in numbers.items()
        if found[key] != pytest.approx(value, rel=near, abs=near / 100, nan_ok=True)
    }
    assert not far, f"found and expected: {far}"


def json_options(options: Any) -> dict[str, Any]:
    """Options as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in dict(options).items()}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == copy.copy(other))
