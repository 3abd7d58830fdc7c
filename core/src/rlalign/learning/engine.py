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

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rlalign.data.batch import Batch, Outputs
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Mismatch
from rlalign.interface.policy import Model
from rlalign.learning import batching
from rlalign.learning.batching import Block
from rlalign.learning.forward import Forward, Metrics, gathered, lay_out
from rlalign.world.ranks import here
from rlalign.world.sharding import is_cut, rest

Losses = Callable[[Batch, Outputs], tuple[Tensor, Mapping[str, Tensor]]]
"""(piece of a step, leaves) → (weighted sum of all losses, metrics that add over pieces)."""
Route = Literal["A", "B", "T"]
CHOSEN = ("logprobs", "full_logprobs")
"""Outputs that depend on which token was chosen."""


def add(total: Metrics, more: Mapping[str, Tensor]) -> None:
    """Add the metrics of one more piece."""
    for name, value in more.items():
        total[name] = total[name] + value.detach() if name in total else value.detach()


class Engine(Forward):
    """Forward and backward passes over the models of one phase."""

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        trains: Collection[str] = (),
        unit: str = "group",
        route: Route | None = None,
        mismatch: Mismatch | None = None,
        **forward: Any,
    ) -> None:
        super().__init__(models, trains=trains, **forward)
        self.unit = unit
        self.route = route
        self.mismatch = mismatch
        # Of all that train, also while some of it is kept still. Looked up once: the walk over all modules is
        # something small models would feel at every step.
        self._parameters = [p for name in self.trains for p in models[name].parameters()]
        self._uncut = [p for p in self._parameters if not is_cut(p)]
        self._cut = any(model.sharded for model in models.values())
        """Whether passes are made by all ranks together, and none may leave one out."""
        self._reached: set[str] = set()
        """Outputs of which this rank's losses have had a gradient in the present step."""

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
            except torch.OutOfMemoryError as error:
                self.halve(batch.rollout, error)

    def clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _step(self, batch: Batch, losses: Losses) -> Metrics:
        world = here()
        cuts = self.cut(batch.rollout, self.unit, world.size)
        what, cut = f"the gradient of {len(batch)} responses", self._cut
        how = self._in_rounds if cut else self._some
        work = partial(how, batch, losses, cuts, world.rank, world.size)
        self._reached = set()

        def done() -> tuple[Metrics, list[str]]:
            return work(), sorted(self._reached)

        self.amid = cut
        try:
            found = world.summed(done, self._uncut, what, together=cut)
        finally:
            self.amid = False
        rest(self.models.values())
        if cut:
            self._clear_unreached({name for _, names in found for name in names})
        total: Metrics = {}
        for more, _ in found:
            add(total, more)
        return total

    def _clear_unreached(self, reached: Collection[str]) -> None:
        """Take away the zeros that passes made together leave in models of which no rank's loss says anything.

        A gradient of zero is not none: the optimiser would decay the weights, and move them by what it remembers.
        """
        names: set[str | None] = {"policy"} if any(name in reached for name in self.want) else set()
        if "values" in reached:
            names |= {"value", self._value("value").trunk}
        kept = {p for name in self.trains if name in names for p in self.models[name].parameters()}
        for parameter in self._parameters:
            if parameter not in kept:
                parameter.grad = None

    def _some(self, batch: Batch, losses: Losses, cuts: Sequence[Block], rank: int, ranks: int) -> Metrics:
        """A rank's micro-batches of the step."""
        total: Metrics = {}
        for micro, block in list(enumerate(cuts))[rank::ranks]:
            piece = self._piece(batch, cuts, block)
            if self._turns(piece, block):
                self._in_turns(piece, losses, total, micro)
            else:
                self._together(piece, losses, total, micro)
        return total

    def _in_rounds(
        self, batch: Batch, losses: Losses, cuts: Sequence[Block], rank: int, ranks: int
    ) -> Metrics:
        """The same where weights are cut: all ranks make as many passes, of which some count for nothing."""
        total: Metrics = {}
        for first in range(0, len(cuts), ranks):
            blocks = cuts[first : first + ranks]
            pieces = [self._piece(batch, cuts, block) for block in blocks]
            turns = max(self._turns(piece, block) for piece, block in zip(pieces, blocks, strict=True))
            works = rank < len(blocks)
            own, at = (losses, rank) if works else (_nothing, 0)
            metrics = total if works else {}
            if turns:
                self._in_turns(pieces[at], own, metrics, first + at, turns)
            else:
                self._together(pieces[at], own, metrics, first + at)
        return total

    def _piece(self, batch: Batch, cuts: Sequence[Block], block: Block) -> Batch:
        return batch if len(cuts) == 1 else batch.take(batching.index(block.rows, batch.rollout))

    def _turns(self, piece: Batch, block: Block) -> int:
        """In how many forwards route T takes a piece; 0: another route takes it."""
        fits = block.cost <= self.budget or len(block.rows) == 1
        return 0 if fits and self.route != "T" else len(self.cut(piece.rollout))

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
        row_M, learns = piece.rollout.chosen[0], self._policy_learns()
        dh: Tensor | None = None
        dv: Tensor | None = None
        for rows in runs:
            at: Tensor | slice = slice(None)
            part = piece
            if len(runs) > 1:
                part, at = piece.take(rows), batching.places_of(rows, row_M, len(piece))
            head = self._opened(h[at], part.rollout, part.rollout.chosen, learns=learns)
            v_part = v.detach()[at] if v is not None else None
            cotangents = self._cotangents(part, head.outputs, v_part, losses, total)
            g_chunk = head.backward({name: cotangents[name] for name in self.want if name in cotangents})
            dh = _with(dh, at, g_chunk, h)
            dv = _with(dv, at, cotangents.get("values"), v)
            del head
        self._backward([h, v], [dh, dv])

    def _in_turns(self, piece: Batch, losses: Losses, total: Metrics, micro: int, turns: int = 0) -> None:
        """Route T: look at the whole piece first, then forward and backward part by part; in `turns` at least."""
        parts = [batching.index(block.rows, piece.rollout) for block in self.cut(piece.rollout)]
        rollouts = [piece.rollout.take(rows) for rows in parts]
        row_M = piece.rollout.chosen[0]
        steps = [batching.places_of(rows, row_M, len(piece)) for rows in parts]
        looks: list[Metrics] = []
        values: list[Tensor] = []
        with torch.no_grad():
            for i, rollout in enumerate(rollouts):
                h, v = self._forward(rollout, micro, i)
                looks.append(self._look(h, rollout))
                values += [] if v is None else [v]
            for _ in range(len(parts), turns):
                self._forward(rollouts[0], micro)
        outputs = {name: gathered([look[name] for look in looks], steps) for name in self.want}
        v = gathered(values, steps) if values else None
        cotangents = self._cotangents(piece, outputs, v, losses, total)
        del looks, values, outputs
        for i, rollout in enumerate(rollouts):
            h, v = self._forward(rollout, micro, i)
            self._push(h, v, rollout, {name: g[steps[i]] for name, g in cotangents.items()})
        for _ in range(len(parts), turns):
            h, v = self._forward(rollouts[0], micro)
            self._push(h, v, rollouts[0], {})

    def _whole_unit_runs(self, rollout: Rollout) -> list[Tensor] | None:
        """Row sets of whole units that fit a head chunk each; None where a unit does not (route B)."""
        unit_N = batching.unit_of(rollout, self.unit).cpu()  # copied once; a wait for each run would be more
        steps_N = rollout.mask_NT.sum(1).cpu()
        sizes = steps_N.new_zeros(int(unit_N.max()) + 1 if len(rollout) else 0).index_add(0, unit_N, steps_N)
        runs = batching.runs(sizes.tolist(), self.head_chunk)
        if runs is None:
            return None
        rows = [((run.start <= unit_N) & (unit_N < run.stop)).nonzero()[:, 0] for run in runs]
        return [some.to(rollout.group_N.device) for some in rows]

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
        self._reached |= cotangents.keys()
        chosen = [name for name in CHOSEN if name in cotangents]
        if self.mismatch is not None and chosen:
            weight_M = importance(outputs, piece, self.mismatch)
            cotangents |= {name: cotangents[name] * weight_M for name in chosen}
        return cotangents

    def _push(self, h: Tensor | None, v: Tensor | None, rollout: Rollout, cotangents: Metrics) -> None:
        """Carry the cotangents through head and trunk, recomputing the head chunk by chunk."""
        dh: Tensor | None = None
        live = [name for name in self.want if name in cotangents]
        if h is not None and live and self._policy_learns():
            row_M, step_M = rollout.chosen
            for at in torch.arange(len(row_M), device=row_M.device).split(self.head_chunk):
                head = self._opened(h[at], rollout, (row_M[at], step_M[at]), want=live, learns=True)
                dh = _with(dh, at, head.backward({name: cotangents[name][at] for name in live}), h)
        self._backward([h, v], [dh, cotangents.get("values")])

    def _backward(self, outputs: list[Tensor | None], cotangents: list[Tensor | None]) -> None:
        """Back through the trunks that have a cotangent; of weights that are cut through all, since others may."""
        pairs = [
            (y, torch.zeros_like(y) if g is None else g.to(y.dtype))
            for y, g in zip(outputs, cotangents, strict=True)
            if y is not None and y.requires_grad and (g is not None or self._cut)
        ]
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])

    def _policy_learns(self) -> bool:
        return "policy" in self.trains and torch.is_grad_enabled()


def importance(outputs: Mapping[str, Tensor], piece: Batch, how: Mismatch) -> Tensor:
    """[M]: by what the gradient of each chosen token's log-prob counts, for who sampled it; 1 where it is not new.

    The learner's probability over the sampler's: as it is now, or in a loss that takes the ratio of now to then itself
    (`old_logprobs`), as it was then. Truncated: Ionides (2008), equation 3; on tokens, for samplers that round
    otherwise than the learner, Yao et al. (2025), *Your efficient RL framework secretly brings you off-policy RL
    training*; masked: Liu et al. (2025), *When speed kills stability*.
    """
    rollout = piece.rollout
    name = next(name for name in CHOSEN if name in outputs) if piece.old is None else "logprobs"
    sampled_M = getattr(rollout, f"{name}_NT")[rollout.mask_NT]
    learner_M = outputs[name].detach() if piece.old is None else piece.old[rollout.mask_NT]
    new_M = rollout.new_N[rollout.chosen[0]] & ~sampled_M.isnan()
    log_M = torch.where(new_M, learner_M - sampled_M, 0.0)
    if how.by == "response":
        log_M = lay_out(log_M, rollout).sum(1)[rollout.chosen[0]]
    ratio_M = log_M.exp()
    if how.mode == "truncate":
        return ratio_M.clamp_max(how.cap)
    return torch.where((ratio_M * how.cap >= 1) & (ratio_M <= how.cap), ratio_M, 0.0)


def _nothing(piece: Batch, now: Outputs) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The losses of a rank without a micro-batch, which makes the passes that the others make."""
    return torch.zeros(()), {}


def _with(
    total: Tensor | None, at: Tensor | slice, piece: Tensor | None, like: Tensor | None
) -> Tensor | None:
    """A gradient of `like` with one more piece of it; it is none as long as no piece is."""
    if piece is None or like is None:
        return total
    total = torch.zeros_like(like) if total is None else total
    total[at] = piece
    return total
