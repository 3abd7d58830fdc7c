"""AdamW with a learning rate per model, schedules of progress, and float32 masters of weights in half precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlalign.data.settings import Schedule, Train
from rlalign.world.ranks import here
from rlalign.world.sharding import cut_like, is_cut, local, with_others


def factor(schedule: Schedule, progress: float) -> float:
    """What the learning rate is multiplied by when `progress` of the phase, in [0,1], is done."""
    if progress < schedule.warmup:
        return progress / schedule.warmup
    left = 1 - (progress - schedule.warmup) / (1 - schedule.warmup)
    shape = {"constant": 1.0, "linear": left, "cosine": (1 + math.cos(math.pi * (1 - left))) / 2}[
        schedule.shape
    ]
    return schedule.floor + (1 - schedule.floor) * shape if schedule.shape != "constant" else 1.0


class Optimiser:
    """AdamW over the models a phase trains. Its state goes by parameter names, not by order.

    Where weights are held in half precision a step would often be less than they can move. So AdamW works on float32
    masters of them, in float32 gradients, and they are the masters rounded to the nearest. Of weights that are cut over
    processes each steps its piece, by a master that lies where the piece does.
    """

    def __init__(self, models: Mapping[str, nn.Module], train: Train) -> None:
        self.train = train
        self.parameters: dict[str, nn.Parameter] = {}
        """What the models compute with."""
        self.masters: dict[str, nn.Parameter] = {}
        """What is optimised: the same, but for weights in half precision."""
        groups: list[dict[str, Any]] = []
        for name, model in models.items():
            lr = train.lrs.get(name, train.lr)
            named = [(f"{name}/{key}", p) for key, p in model.named_parameters() if p.requires_grad]
            named = [(key, p) for key, p in named if all(p is not q for q in self.parameters.values())]
            self.parameters |= dict(named)
            named = [(key, master_of(p)) for key, p in named]
            self.masters |= dict(named)
            for decay, matrices in ((train.weight_decay, True), (0.0, False)):
                chosen = [p for _, p in named if (p.ndim > 1) == matrices]
                if chosen:
                    groups.append(
                        {"params": chosen, "base": lr, "lr": lr, "weight_decay": decay, "model": name}
                    )
        if not groups:
            raise ValueError("nothing to optimise")
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self.masters.values())
        self.adam = torch.optim.AdamW(groups, betas=train.betas, eps=train.eps, fused=fused)

    def step(self, progress: float, norm: Tensor) -> float:
        """Clip a gradient of this norm, then one step at the learning rate of this progress, which it returns."""
        for key, master in self.masters.items():
            grad = self.parameters[key].grad
            master.grad = None if grad is None else local(grad)
        if self.train.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self.train.clip, norm)
        times = factor(self.train.schedule, progress)
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * times
        self.adam.step()
        self.round()
        return self.train.lr * times

    @torch.no_grad()
    def round(self) -> None:
        """Give the models what their masters are now."""
        pairs = [(self.parameters[key], master) for key, master in self.masters.items()]
        apart = [(held, master) for held, master in pairs if held is not master]
        rounded = [(held, master) for held, master in apart if not is_cut(held)]
        if rounded:
            torch._foreach_copy_([held for held, _ in rounded], [master for _, master in rounded])
        for _, master in apart:
            master.grad = None

    def gradient_norm(self) -> Tensor:
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        grads = [grad for grad in found if not is_cut(grad)]
        if not found:
            return torch.zeros(())
        if len(grads) < len(found):  # every rank has a piece of the others
            pieces = torch.nn.utils.get_total_norm([local(grad) for grad in found if is_cut(grad)])
            told = here().gather(lambda: pieces, "the norm of the gradient")
            grads += [piece.to(pieces.device) for piece in told]
        return torch.nn.utils.get_total_norm(grads)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        found: dict[str, dict[str, Tensor]] = {}
        for name, master in self.masters.items():
            held = self.parameters[name]
            own = {} if master is held or is_cut(held) else {"master": master.detach()}
            if kept := {**self.adam.state.get(master, {}), **own}:
                found[name] = {key: with_others(x, held) if x.ndim else x for key, x in kept.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up a state; what stands in it as an empty tensor is yet to come, into the tensors of `state_dict`."""
        for name, held in state.items():
            master, like = self.masters[name], self.parameters[name]
            if "master" in held:
                with torch.no_grad():
                    master.copy_(held["master"])
            moments = {key: value for key, value in held.items() if key != "master"}
            for key, value in moments.items():
                if value.shape == (0,) != like.shape:
                    moments[key] = torch.zeros_like(master)
                elif key != "step" or self._fused():
                    moments[key] = local(cut_like(value, like) if value.ndim else value).to(master.device)
            if moments:
                self.adam.state[master] = moments

    def _fused(self) -> bool:
        return bool(self.adam.defaults.get("fused"))


def master_of(parameter: nn.Parameter) -> nn.Parameter:
    """A float32 copy of a weight in half precision, whose gradients are float32 from now on; any other itself.

    Of one that is cut this rank's piece, not copied.
    """
    if is_cut(parameter):
        return nn.Parameter(local(parameter).detach())
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    parameter.grad_dtype = torch.float32
    return nn.Parameter(parameter.detach().float())
