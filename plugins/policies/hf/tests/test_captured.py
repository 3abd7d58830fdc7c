"""What a CUDA graph asks of a step, asked without a GPU, of tensors that have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlalign import Nucleus, Sampling
from rlalign_plugin_hf.engine.slots import Model, Rules, Shape, Slots
from rlalign_plugin_hf.native.decoder import refresh

FAMILIES = ("gpt2", "llama", "t5", "bart")
SETTINGS = {
    "plain": Sampling(samples=2, max_new_tokens=8),
    "greedy": Sampling(greedy=True, max_new_tokens=8),
    "truncated": Sampling(
        samples=2, max_new_tokens=8, temperature=0.7, top_k=30, top_p=0.9, min_p=0.01, min_new_tokens=2
    ),
}


class AllOnTheDevice(TorchDispatchMode):
    """Nothing is made on the host: to bring it over, a stream has to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, found)):
            there = not isinstance(x, Tensor) or x.device.type == "meta" or x.ndim == 0
            assert there, f"{func}: {tuple(x.shape)} on the host"
        return found


def without_numbers(x: Any) -> Any:
    """Tensors of the same shapes that hold nothing, on a device that is none: not the host, so taken as a GPU is."""
    if isinstance(x, Tensor):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(without_numbers, x))
    return [without_numbers(y) for y in x] if isinstance(x, list) else x


@contextmanager
def on_no_device(policy: Any) -> Iterator[Any]:
    """The family of a policy, its weights without numbers."""
    family = policy.decoding._family
    refresh(family, policy)
    before = dict(vars(family))
    try:
        vars(family).update({name: without_numbers(x) for name, x in before.items() if name != "_weights"})
        family.device = torch.device("meta")
        yield family
    finally:
        vars(family).update(before)


@pytest.mark.thin(2)
@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize("beside", (False, True))
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_looks_at_no_number(
    policy_of: Callable[..., Any], family: str, setting: str, beside: bool, half: bool
) -> None:
    policy = policy_of(family)
    within = Nucleus("mask", top_p=0.8, min_keep=2, top_k=20) if beside else None
    if within is not None:
        within.resolve({"mask": policy})
    vocabulary = policy.vocabulary
    shape = Shape(slots=4, columns=64, steps=8, prompt=64 if policy.kind == "seq2seq" else 0)
    if half:
        policy.bfloat16()
    with on_no_device(policy) as native:
        rules = Rules(SETTINGS[setting], policy.ends, policy.never, within)
        models = [Model(native, shape, policy.never) for _ in range(1 + beside)]
        slots = Slots(models, rules, shape, vocabulary, 3)
        slots.step(2)  # as before a capture: what a constraint makes ready, it may
        with AllOnTheDevice():
            slots.step(2)


def test_what_looks_at_a_number_is_found(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("gpt2")

    class Looks(Nucleus):
        def keeps(self, logits_nV: Tensor) -> Tensor:
            if bool((logits_nV > 0).any()):
                raise ValueError
            return super().keeps(logits_nV)

    class Brings(Nucleus):
        def keeps(self, logits_nV: Tensor) -> Tensor:
            kept_nV = super().keeps(logits_nV)
            kept_nV[:, torch.tensor([1, 2])] = True
            return kept_nV

    shape = Shape(slots=4, columns=64, steps=8)
    constraints: Sequence[Nucleus] = (Looks("mask"), Brings("mask"))
    for within in constraints:
        within.resolve({"mask": policy})
        with on_no_device(policy) as native:
            rules = Rules(SETTINGS["plain"], policy.ends, policy.never, within)
            slots = Slots([Model(native, shape, None)] * 2, rules, shape, policy.vocabulary, 3)
            with pytest.raises(Exception, match=r"on the host|meta tensor"), AllOnTheDevice():
                slots.step(2)
