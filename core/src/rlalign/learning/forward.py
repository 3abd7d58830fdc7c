"""What models say of responses, in forward passes that fit the memory.

A policy is a trunk and a head: the trunk's features are of chosen steps only, and the head reads them chunk by chunk,
so that nobody holds [N,T,V].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from rlalign.data.batch import Outputs, field_of
from rlalign.data.rollout import Rollout
from rlalign.decoding.logits import LIVE, bad_logits, full_precision
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Model, Policy, Value
from rlalign.learning import batching
from rlalign.learning.batching import Block
from rlalign.learning.heads import Head, opened
from rlalign.progress import report
from rlalign.world.ranks import here
from rlalign.world.sharding import rest

Metrics = dict[str, Tensor]


def lay_out(x_M: Tensor, rollout: Rollout) -> Tensor:
    """[M] at the chosen steps → [N,T], zero elsewhere."""
    return x_M.new_zeros(rollout.mask_NT.shape).masked_scatter(rollout.mask_NT, x_M)


class Forward:
    """Forward passes over the models of one phase."""

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        trains: Collection[str] = (),
        needs: Collection[str] = (),
        budget: int = 16384,
        head_chunk: int = 256,
        dtype: str = "float32",
        dropout: bool = False,
        recompute: bool = False,
        before_forward: Callable[[int, int], None] = lambda micro, part: None,
    ) -> None:
        self.models = models
        self.trains = tuple(trains)
        self.want = tuple(name for name in LIVE if name in needs)
        self.wants_values = "values" in needs
        self.budget = budget
        self.head_chunk = head_chunk
        self.dtype = dtype
        self.dropout = dropout
        self.before_forward = before_forward
        for model in models.values():
            model.recomputes = recompute
        self.amid = False
        """Whether weights that are cut are put together for a pass."""
        self.forwards = 0
        """Trunk forwards of `policy` since the start; tests count them."""

    # -- without a gradient -----------------------------------------------------------------------

    @torch.no_grad()
    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Outputs of any model for a whole rollout, cut by the budget."""
        held = self.budget, self.head_chunk
        try:
            while True:
                try:
                    with self._dropping(False):
                        return self._score(model, rollout, want)
                except torch.OutOfMemoryError as error:
                    self.halve(rollout, error)
        finally:
            if here().apart:  # the other ranks know nothing of it, and all must cut alike
                self.budget, self.head_chunk = held

    def _score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        if len(rollout) == 0:
            none_NT1 = rollout.logprobs_NT.new_zeros(0, rollout.steps + 1)
            return Outputs(**{field_of(name): none_NT1[:, name != "state_values" :] for name in want})
        world = here()
        parts = [batching.index(block.rows, rollout) for block in self.cut(rollout, ranks=world.size)]
        mine = parts[world.rank :: world.size]
        what = f"the scoring of {len(rollout)} responses by `{model}`"
        together = self._is_cut(model)
        if together and (world.apart or self.amid):
            raise RLAlignError(
                f"the model `{model}` is cut, and cannot be asked in the middle of a pass, or by a process that works "
                "on its share (in a loss or a reward). What a loss needs of it, ask when the step begins "
                "(`step_started`); or leave out `distributed: {shard: …}`"
            )

        waited_for = together and len(mine) * world.size < len(parts)

        def work() -> dict[str, list[Tensor]]:
            found = self._scored(model, [rollout.take(rows) for rows in mine], want)
            if waited_for:
                self._scored(model, [rollout.take(parts[0])], want)  # the others wait for it
            return found

        found = world.gather(work, what, together)
        rest(self.models.values())
        places = [rows for rank in range(world.size) for rows in parts[rank :: world.size]]
        device, outputs = rollout.group_N.device, {}
        for name in found[0]:
            pieces = [x.to(device) for one in found for x in one.get(name, ())]
            outputs[name] = gathered(pieces, places)
        self._refuse_nan(model, rollout, outputs)
        return Outputs(**outputs)

    def _scored(
        self, model: str, rollouts: Sequence[Rollout], want: Collection[str]
    ) -> dict[str, list[Tensor]]:
        """Outputs of some of the passes."""
        live = [name for name in LIVE if name in want]
        found: dict[str, list[Tensor]] = {}
        for i, part in enumerate(rollouts, 1):
            report("part", i, len(rollouts))
            if live:
                with self.autocast():
                    h = self._features(model, part)
                for name, x_M in self._look(h, part, model, live).items():
                    found.setdefault(f"{name}_NT", []).append(lay_out(x_M, part))
            if "values" in want or "state_values" in want:
                values_NT1 = self._state_values(model, part)
                values_NT = torch.where(part.mask_NT, values_NT1[:, :-1], 0.0)
                for name, x in (("values", values_NT), ("state_values", values_NT1)):
                    if name in want:
                        found.setdefault(field_of(name), []).append(x)
        return found

    def _refuse_nan(self, model: str, rollout: Rollout, outputs: Mapping[str, Tensor]) -> None:
        """One look for all that was asked for: a NaN ends here, and not in whatever is made of it."""
        bad_N = torch.stack([x_NT.isnan().any(1) for x_NT in outputs.values()]).any(0)
        if not bool(bad_N.any()):
            return
        row = int(bad_N.nonzero()[0, 0])
        step = min(
            int(x[row].isnan().nonzero()[0, 0]) for x in outputs.values() if bool(x[row].isnan().any())
        )
        where = f"example `{rollout.examples[int(rollout.group_N[row])].id}`, row {row + 1} of those scored"
        raise bad_logits(self.models[model], f"{where}, step {step + 1}")

    def _is_cut(self, name: str) -> bool:
        """Whether a pass of this model is one of all ranks."""
        model = self.models[name]
        if isinstance(model, Value) and model.trunk is not None:
            model = self.models[model.trunk]
        return model.sharded

    def _state_values(self, model: str, rollout: Rollout) -> Tensor:
        value = self._value(model)
        row_M, step_M = rollout.chosen
        with self.autocast():
            last = not value.per_prompt
            v = full_precision(value.values(rollout, self._read(value, rollout, last), last=last))
        steps_v, ends_v = (v[row_M], v) if value.per_prompt else (v[: len(row_M)], v[len(row_M) :])
        values_NT1 = v.new_zeros(len(rollout), rollout.steps + 1)
        values_NT1[row_M, step_M] = steps_v
        rows_N = torch.arange(len(rollout), device=v.device)
        values_NT1[rows_N, rollout.length_N] = ends_v.masked_fill(rollout.finished_N, 0.0)
        return values_NT1

    # -- the passes ---------------------------------------------------------------------------------

    def _forward(self, rollout: Rollout, micro: int, part: int = 0) -> tuple[Tensor | None, Tensor | None]:
        """(policy features with graph if it trains, values), each None if no loss needs it."""
        self.before_forward(micro, part)
        trunks: dict[str, Tensor] = {}
        with self.autocast():
            if self.want:
                trunks["policy"] = self._features("policy", rollout)
            if not self.wants_values:
                return trunks.get("policy"), None
            h = trunks.get("policy")
            value = self._value("value")
            read = self._read(value, rollout, known=trunks)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._flows_to_value(value)):
                v = full_precision(value.values(rollout, read))
                # One value a prompt is spread to its chosen steps here, so that autograd adds its gradients up.
                v = v[rollout.chosen[0]] if value.per_prompt else v
        return h, v

    def _read(
        self, value: Value, rollout: Rollout, last: bool = False, known: Mapping[str, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """What a value reads of its trunk."""
        if value.trunk is None:
            return None
        if value.reads == "prompts":
            with torch.set_grad_enabled(torch.is_grad_enabled() and value.trunk in self.trains):
                return self.policy(value.trunk).prompt_states(rollout)
        if known and value.trunk in known:
            return known[value.trunk]
        return self._features(value.trunk, rollout, last)

    def _flows_to_value(self, value: Value) -> bool:
        return "value" in self.trains or value.trunk in self.trains

    def _features(self, name: str, rollout: Rollout, last: bool = False) -> Tensor:
        if name == "policy":
            self.forwards += 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and name in self.trains):
            return self.policy(name).features(rollout, last=last)

    def policy(self, name: str) -> Policy:
        model = self.models[name]
        if not isinstance(model, Policy):
            raise RLAlignError(f"the model `{name}` is a {type(model).__name__}, not a policy")
        return model

    def _value(self, name: str) -> Value:
        model = self.models[name]
        if not isinstance(model, Value):
            raise RLAlignError(f"the model `{name}` is a {type(model).__name__}, not a value")
        return model

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype != "bfloat16":
            return nullcontext()
        device = next((m.device for m in self.models.values() if any(True for _ in m.parameters())), None)
        return torch.autocast("cpu" if device is None else device.type, dtype=torch.bfloat16)

    def _opened(
        self,
        h: Tensor,
        rollout: Rollout,
        chosen_M: tuple[Tensor, Tensor],
        model: str = "policy",
        want: Collection[str] | None = None,
        learns: bool = False,
    ) -> Head:
        want = self.want if want is None else want
        return opened(self.policy(model), h, rollout, chosen_M, want, learns=learns, autocast=self.autocast)

    @torch.no_grad()
    def _look(
        self, h: Tensor | None, rollout: Rollout, model: str = "policy", want: Collection[str] | None = None
    ) -> Metrics:
        """The outputs [M] of all chosen steps, chunk by chunk, without a graph."""
        if h is None:
            return {}
        row_M, step_M = rollout.chosen
        pieces = [
            self._opened(h[at], rollout, (row_M[at], step_M[at]), model, want).outputs
            for at in torch.arange(len(row_M), device=row_M.device).split(self.head_chunk)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}

    def cut(self, rollout: Rollout, unit: str = "response", ranks: int = 1) -> list[Block]:
        """The rows of each forward pass."""
        policies = [model for model in self.models.values() if isinstance(model, Policy)]
        once = bool(policies) and all(policy.prompts_once for policy in policies)
        return batching.dealt(rollout, self.budget, unit, once=once, ranks=ranks)

    # -- memory and dropout -------------------------------------------------------------------------

    @contextmanager
    def _dropping(self, on: bool) -> Iterator[None]:
        """Dropout, where it was asked for, acts in the models that train and while they learn, nowhere else."""
        wanted = on and self.dropout
        # Only where it changes something: each call walks all modules, which small models would feel.
        others = [name for name in self.trains if self.models[name].training != wanted]
        try:
            for name in others:
                self.models[name].train(wanted)
            yield
        finally:
            for name in others:
                self.models[name].train(not wanted)

    def halve(self, rollout: Rollout, error: Exception, known: bool = False) -> None:
        """Compute half as much at once, memory having run out; not less than one response and a few steps.

        `known`: whether all ranks have been told. Else, where weights are cut, others wait for this one.
        """
        cut = any(model.sharded for model in self.models.values())
        if cut and here().count > 1 and not known:
            raise RLAlignError(
                "out of memory, and the other processes wait in the middle of a pass: go on from the last checkpoint "
                f"with `train.budget: {self.budget // 2}`"
            ) from error
        if self.budget <= int(rollout.cost_N.max()) and self.head_chunk <= 16:
            raise RLAlignError(
                f"out of memory on one response of {int(rollout.cost_N.max())} tokens; shorten prompts or "
                "`generation.max_new_tokens`, or use a smaller model"
            )
        if cut:  # what it left in the weights that were put together
            for model in self.models.values():
                for parameter in model.parameters():
                    parameter.grad = None
            rest(self.models.values())
        self.budget = max(1, self.budget // 2)
        self.head_chunk = max(min(16, self.head_chunk), self.head_chunk // 2)


def gathered(pieces: list[Tensor], places: list[Tensor]) -> Tensor:
    """Pieces that stand at `places` of a whole, as that whole: a loss may count on the order of rows."""
    return torch.cat(pieces)[torch.cat(places).argsort()]
