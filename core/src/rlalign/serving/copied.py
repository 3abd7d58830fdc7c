"""A copy of the policy in a process of its own: that process's side. It takes weights, and samples with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from rlalign.config.pipeline import Item
from rlalign.data.packed import bare, pack
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.interface.policy import Policy
from rlalign.randomness import Draws, Seeds
from rlalign.records.tensors import load_tensors
from rlalign.records.weights import hold, load_weights
from rlalign.serving.host import Answering
from rlalign.serving.questions import example_of


class Copied(Answering):
    """The copy. Each question says which weights it shall have."""

    def __init__(self, item: Item, seed: int) -> None:
        super().__init__()
        self._item, self._seeds = item, Seeds(seed)
        self._policy: Policy | None = None
        self._device = torch.device("cpu")
        self._has: tuple[str, str] = ("", "")
        """The files that its weights are of."""

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            policy = self._policy or self._made(message["model"])
            self._take(policy, message["frozen"], message["learned"])
            rollout = self._sampled(policy, message)
        Path(message["answer"]).write_bytes(pack(bare(rollout)))
        return {"responses": len(rollout)}

    def _made(self, said: Mapping[str, Any]) -> Policy:
        """As the run makes it, with weights that others will take the place of."""
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(found if said["device"] == "auto" else said["device"])
        half = said["dtype"] == "bfloat16"
        made: Any = self._item.build()
        assert isinstance(made, Policy)
        made.name, made.new_tokens = "policy", said["new_tokens"]
        self._seeds.seed_forward("model", made.name)
        made.open()
        made.setup()
        made.to(device=self._device, dtype=torch.float32 if half else getattr(torch, said["dtype"]))
        if half:
            hold(made, torch.bfloat16)
        made.eval().requires_grad_(False)
        self._policy = made
        return made

    def _take(self, policy: Policy, frozen: str, learned: str) -> None:
        had, self._has = self._has, ("", "")  # while it takes others, none
        if (frozen, learned) != had:
            state = load_tensors(learned)
            if frozen != had[0]:
                load_weights(policy, load_tensors(frozen) | state)
            else:
                own = policy.state_dict()
                for name, value in state.items():
                    own[name].copy_(value)
            policy.version += 1
        self._has = frozen, learned

    def _sampled(self, policy: Policy, asked: Mapping[str, Any]) -> Rollout:
        how = Sampling.model_validate_json(json.dumps(asked["how"]))
        said = asked["draws"]
        draws = Draws(said["seed"], tuple(said["key"]), range(*said["positions"]), how.samples)
        uniforms = draws.uniforms(min(how.max_new_tokens, policy.horizon or how.max_new_tokens))
        examples = [example_of(one) for one in asked["examples"]]
        dtype = asked["autocast"]
        with torch.autocast(self._device.type, getattr(torch, dtype)) if dtype else nullcontext():
            return policy.sample(examples, how, uniforms.to(self._device))
