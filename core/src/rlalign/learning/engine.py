"""Losses are functions of leaves: the engine owns the forward and backward passes.

A loss sees log-probs, entropies and values as leaf tensors and returns a scalar. The engine takes its
gradient with regard to the leaves (the cotangents) and carries them through head and trunk itself, so
that every model runs once per micro-batch for all losses together and nobody holds [N,T,V].

Route A: the unit fits a head chunk: logits, leaves, loss and backward chunk by chunk.
Route B: the unit fits a micro-batch: all chunks without graph, the loss, all chunks again with graph.
Route T: neither: as B, but the first pass goes over the whole unit in several forwards without graph.
All three give the same gradient up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs, field_of
from rlalign.data.rollout import Rollout
from rlalign.decoding.logits import LIVE, full_precision, steps_outputs
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Model, Policy, Value
from rlalign.learning import batching

Losses = Callable[[Batch, Outputs], tuple[Tensor, Mapping[str, Tensor]]]
"""(piece of a step, leaves) → (weighted sum of all losses, metrics that add over pieces)."""
Route = Literal["A", "B", "T"]
Metrics = dict[str, Tensor]


def lay_out(x_M: Tensor, rollout: Rollout) -> Tensor:
    """[M] at the chosen steps → [N,T], zero elsewhere."""
    return x_M.new_zeros(rollout.mask_NT.shape).masked_scatter(rollout.mask_NT, x_M)


def add(total: Metrics, more: Mapping[str, Tensor]) -> None:
    """Add the metrics of one more piece."""
    for name, value in more.items():
        total[name] = total[name] + value.detach() if name in total else value.detach()


class Engine:
    """Forward and backward passes over the models of one phase."""

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        trains: Collection[str] = (),
        needs: Collection[str] = (),
        unit: str = "group",
        budget: int = 16384,
        head_chunk: int = 256,
        dtype: str = "float32",
        route: Route | None = None,
        dropout: bool = False,
        before_forward: Callable[[int, int], None] = lambda micro, part: None,
    ) -> None:
        self.models = models
        self.trains = tuple(trains)
        self.want = tuple(name for name in LIVE if name in needs)
        self.wants_values = "values" in needs
        self.unit = unit
        self.budget = budget
        self.head_chunk = head_chunk
        self.dtype = dtype
        self.route = route
        self.dropout = dropout
        self.before_forward = before_forward
        # Of all that train, also while some of it is kept still. Looked up once: the walk over all modules is
        # something small models would feel at every step.
        self._parameters = [p for name in self.trains for p in models[name].parameters()]
        self.forwards = 0
        """Trunk forwards of `policy` since the start; tests count them."""

    # -- one optimiser step ---------------------------------------------------------------------

    def step(self, batch: Batch, losses: Losses) -> Metrics:
        """Leave the gradient of the step in the parameters' `.grad`; returns `loss` and all metrics.

        Out of memory, the step starts over with half the budget; that moves rounding, nothing else.
        """
        while True:
            self.clear_gradients()
            try:
                with self._dropping(True):
                    return self._step(batch, losses)
            except torch.OutOfMemoryError:
                self._halve(batch.rollout)

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

    def clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _halve(self, rollout: Rollout) -> None:
        if self.budget <= int(rollout.cost_N.max()) and self.head_chunk <= 16:
            raise RLAlignError(
                f"out of memory on one response of {int(rollout.cost_N.max())} tokens; shorten prompts or "
                "`generation.max_new_tokens`, or use a smaller model"
            )
        self.budget = max(1, self.budget // 2)
        self.head_chunk = max(min(16, self.head_chunk), self.head_chunk // 2)

    def _step(self, batch: Batch, losses: Losses) -> Metrics:
        total: Metrics = {}
        cost_N = batch.rollout.cost_N.tolist()
        cuts = batching.micro_batches(batch.rollout, self.budget, self.unit)
        for micro, rows in enumerate(cuts):
            piece = batch if len(cuts) == 1 else batch.take(batching.index(rows, batch.rollout))
            fits = batching.padded_cost(cost_N, rows) <= self.budget or len(rows) == 1
            if self.route == "T" or not fits:
                self._in_turns(piece, losses, total, micro)
            else:
                self._together(piece, losses, total, micro)
        return total

    def _together(self, piece: Batch, losses: Losses, total: Metrics, micro: int) -> None:
        """Routes A and B: the piece fits one forward."""
        h, v = self._forward(piece.rollout, micro)
        runs = self._whole_unit_runs(piece.rollout) if self.route != "B" and h is not None else None
        if runs is None:
            outputs = self._look(h, piece.rollout)
            cotangents = self._cotangents(piece, outputs, v, losses, total)
            self._push(h, v, piece.rollout, cotangents)
            return
        assert h is not None
        row_M = piece.rollout.chosen[0]
        dh = torch.zeros_like(h) if h.requires_grad else None
        dv = torch.zeros_like(v) if v is not None and v.requires_grad else None
        for rows in runs:
            at: Tensor | slice = slice(None)
            part = piece
            if len(runs) > 1:
                part, at = piece.take(rows), torch.isin(row_M, rows).nonzero()[:, 0]
            h_chunk = h.detach()[at].requires_grad_(h.requires_grad)
            outputs = self._head(h_chunk, part.rollout, part.rollout.chosen)
            v_part = v.detach()[at] if v is not None else None
            leaves = {name: x.detach() for name, x in outputs.items()}
            cotangents = self._cotangents(part, leaves, v_part, losses, total)
            _backward([outputs[name] for name in self.want], [cotangents.get(name) for name in self.want])
            if dh is not None and h_chunk.grad is not None:
                dh[at] = h_chunk.grad
            if dv is not None and "values" in cotangents:
                dv[at] = cotangents["values"]
        _backward([h, v], [dh, dv])

    def _in_turns(self, piece: Batch, losses: Losses, total: Metrics, micro: int) -> None:
        """Route T: look at the whole piece first, then forward and backward part by part."""
        parts = [
            batching.index(rows, piece.rollout) for rows in batching.micro_batches(piece.rollout, self.budget)
        ]
        rollouts = [piece.rollout.take(rows) for rows in parts]
        row_M = piece.rollout.chosen[0]
        steps = [torch.isin(row_M, rows).nonzero()[:, 0] for rows in parts]
        looks: list[Metrics] = []
        values: list[Tensor] = []
        with torch.no_grad():
            for i, rollout in enumerate(rollouts):
                h, v = self._forward(rollout, micro, i)
                looks.append(self._look(h, rollout))
                values += [] if v is None else [v]
        outputs = {name: _gathered([look[name] for look in looks], steps) for name in self.want}
        v = _gathered(values, steps) if values else None
        cotangents = self._cotangents(piece, outputs, v, losses, total)
        del looks, values, outputs
        for i, rollout in enumerate(rollouts):
            h, v = self._forward(rollout, micro, i)
            self._push(h, v, rollout, {name: g[steps[i]] for name, g in cotangents.items()})

    def _whole_unit_runs(self, rollout: Rollout) -> list[Tensor] | None:
        """Row sets of whole units that fit a head chunk each; None where a unit does not (route B)."""
        units = batching.units(rollout, self.unit)
        steps_N = rollout.mask_NT.sum(1).tolist()
        runs = batching.runs([sum(steps_N[row] for row in unit) for unit in units], self.head_chunk)
        if runs is None:
            return None
        return [batching.index(sorted(row for i in run for row in units[i]), rollout) for run in runs]

    # -- forward ----------------------------------------------------------------------------------

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
        device = next((p.device.type for m in self.models.values() for p in m.parameters()), "cpu")
        return torch.autocast(device, dtype=torch.bfloat16)

    def _head(
        self,
        h: Tensor,
        rollout: Rollout,
        chosen_M: tuple[Tensor, Tensor],
        model: str = "policy",
        want: Collection[str] | None = None,
    ) -> Metrics:
        policy = self.policy(model)
        with self.autocast():
            logits = policy.head(h)
        return steps_outputs(logits, rollout, chosen_M, policy.ends, self.want if want is None else want)

    @torch.no_grad()
    def _look(
        self, h: Tensor | None, rollout: Rollout, model: str = "policy", want: Collection[str] | None = None
    ) -> Metrics:
        """The outputs [M] of all chosen steps, chunk by chunk, without a graph."""
        if h is None:
            return {}
        row_M, step_M = rollout.chosen
        pieces = [
            self._head(h[at], rollout, (row_M[at], step_M[at]), model, want)
            for at in torch.arange(len(row_M), device=row_M.device).split(self.head_chunk)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}

    # -- backward ---------------------------------------------------------------------------------

    def _cotangents(
        self, piece: Batch, outputs: Mapping[str, Tensor], v: Tensor | None, losses: Losses, total: Metrics
    ) -> Metrics:
        """d loss / d output at the chosen steps; the losses see leaves only."""
        rollout = piece.rollout
        leaves = {name: lay_out(outputs[name], rollout).requires_grad_() for name in self.want}
        if v is not None:
            leaves["values"] = lay_out(v.detach(), rollout).requires_grad_()
        with torch.enable_grad():
            value, metrics = losses(piece, Outputs(**{f"{name}_NT": x for name, x in leaves.items()}))
        add(total, {"loss": value, **metrics})
        if not value.requires_grad:
            return {}
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        cotangents = {
            name: g_NT[rollout.mask_NT] for name, g_NT in zip(leaves, grads, strict=True) if g_NT is not None
        }
        return cotangents

    def _push(self, h: Tensor | None, v: Tensor | None, rollout: Rollout, cotangents: Metrics) -> None:
        """Carry the cotangents through head and trunk, recomputing the head chunk by chunk."""
        dh = None
        live = [name for name in self.want if name in cotangents]
        if h is not None and live and "policy" in self.trains and torch.is_grad_enabled():
            dh = torch.zeros_like(h) if h.requires_grad else None
            row_M, step_M = rollout.chosen
            for at in torch.arange(len(row_M), device=row_M.device).split(self.head_chunk):
                h_chunk = h.detach()[at].requires_grad_(h.requires_grad)
                outputs = self._head(h_chunk, rollout, (row_M[at], step_M[at]))
                _backward([outputs[name] for name in live], [cotangents[name][at] for name in live])
                if dh is not None and h_chunk.grad is not None:
                    dh[at] = h_chunk.grad
        _backward([h, v], [dh, cotangents.get("values")])

    # -- without a gradient -----------------------------------------------------------------------

    @torch.no_grad()
    def score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        """Outputs of any model for a whole rollout, cut by the budget."""
        while True:
            try:
                with self._dropping(False):
                    return self._score(model, rollout, want)
            except torch.OutOfMemoryError:
                self._halve(rollout)

    def _score(self, model: str, rollout: Rollout, want: Collection[str]) -> Outputs:
        if len(rollout) == 0:
            none_NT1 = rollout.logprobs_NT.new_zeros(0, rollout.steps + 1)
            return Outputs(**{field_of(name): none_NT1[:, name != "state_values" :] for name in want})
        live = [name for name in LIVE if name in want]
        parts = [batching.index(rows, rollout) for rows in batching.micro_batches(rollout, self.budget)]
        rollouts = [rollout.take(rows) for rows in parts]
        found: dict[str, list[Tensor]] = {}
        for part in rollouts:
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
        return Outputs(**{name: _gathered(pieces, parts) for name, pieces in found.items()})

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


def _gathered(pieces: list[Tensor], places: list[Tensor]) -> Tensor:
    """Pieces that stand at `places` of a whole, as that whole: a loss may count on the order of rows."""
    return torch.cat(pieces)[torch.cat(places).argsort()]


def _backward(outputs: list[Tensor | None] | list[Tensor], cotangents: list[Tensor | None]) -> None:
    pairs = [
        (y, g)
        for y, g in zip(outputs, cotangents, strict=True)
        if y is not None and g is not None and y.requires_grad
    ]
    if pairs:
        torch.autograd.backward([y for y, _ in pairs], [g.to(y.dtype) for y, g in pairs])
