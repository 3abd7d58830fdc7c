"""What a hook leaves as it was: what it is handed, the weights, and where the run stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import ne
from typing import Any

import torch
from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.errors import Altered
from rlalign.interface.kept import settings_kept
from rlalign.interface.policy import Model
from rlalign.randomness import Seeds
from rlalign.running.models import Models
from rlalign.running.printed import shortened
from rlalign.running.seal import Ledger, Seal, held_by
from rlalign.world.sharding import is_cut, local

SAMPLED = 1024
"""How many numbers of a weight tensor are looked at, evenly spaced; of a smaller one all."""
_GONE = torch.empty(0)
CLONE = "what a hook is given is not its own: `.clone()` it first"
_LEARNING = ("loss", "step_started", "step_ready", "update", "reward")
_OFTEN = ("loss", "step_started", "step_ready")
"""Asked for every step, or every piece of it: looked at once an iteration, and together at the end of its update."""


class Untouched:
    """Watches over the hooks of one phase."""

    def __init__(
        self,
        models: Models,
        seeds: Seeds,
        note: Callable[[str, str, str], None],
        where: Callable[[], dict[str, Any]],
    ) -> None:
        self._models = models
        self._seeds = seeds
        self._note = note
        self._where = where
        """Where the run stands, by name."""
        self._weights: Weights | None = None
        self._stood: dict[str, Any] = {}
        self._calls: dict[tuple[str, str], int] = {}
        self._ledger = Ledger()
        self._inside: list[tuple[str, str, Seal] | None] = []
        """The hooks that have not returned yet; None: what one of them asked of the core."""
        self._often: str | None = None
        """The hook that is called once more, and not looked at."""

    @contextmanager
    def hook(self, hook: str, name: str, stage: str, given: Mapping[str, Any]) -> Iterator[None]:
        """One call of a hook."""
        if self._inside and (wrapper := self._inside[-1]):
            self._check(*wrapper)
        count = self._calls[hook, name] = self._calls.get((hook, name), -1) + 1
        kept = settings_kept(partial(self._note, f"`{hook}` of `{name}`"))
        if hook in _OFTEN and count:
            self._often = hook
            if hook != "loss":  # called for pieces, of which each process has others
                self._seed(stage, hook, name, count)
            try:
                with kept:
                    yield
            finally:
                self._often = None
            return
        short = shortened(partial(self._note, f"`{hook}` of `{name}`"))
        self._seed(stage, hook, name, count)
        seal = Seal(given, self._ledger)
        self._mark()
        self._inside.append((hook, name, seal))
        try:
            with kept, short:
                yield
        except Exception:
            self._check(hook, name, seal)  # what it left behind is worse than that it failed
            raise
        finally:
            self._inside.pop()
        self._check(hook, name, seal)
        if hook == "phase_started":
            self._calls.clear()

    def _seed(self, stage: str, hook: str, name: str, count: int) -> None:
        stands = self._where()
        at = -1 if hook == "phase_started" else stands["iteration"]
        self._seeds.seed_all("hook", stage, hook, name, stands["repeat"], stands["place"], at, count)

    @contextmanager
    def core(self) -> Iterator[None]:
        """What the core does for a hook that asked it to; it may train."""
        if not self._inside or (asking := self._inside[-1]) is None:
            yield
            return
        self._check(*asking)
        self._inside.append(None)
        try:
            yield
        finally:
            self._inside.pop()
        self._mark()

    @contextmanager
    def learning(self, batch: Batch) -> Iterator[None]:
        """All hooks of an iteration's learning together."""
        seal = Seal({"batch": batch}, self._ledger)
        yield
        if (what := seal.broken()) is not None:
            acted = [f"`{hook}` of `{name}`" for hook, name in self._calls if hook in _LEARNING]
            raise Altered(f"{' or '.join(acted)} changed `{what}` in place; {CLONE}")

    def evaluation_started(self) -> None:
        """Hooks get the same random numbers whatever was called before."""
        self._calls.clear()

    def iteration_started(self) -> None:
        """A hook that is called again gets the same random numbers as after a resume."""
        self._calls.clear()
        self._ledger.forget()
        if self._weights is not None:
            self._weights.forget()

    @property
    def hook_now(self) -> str | None:
        """The hook that is called at present."""
        return self._often or (self._inside[-1][0] if self._inside and self._inside[-1] else None)

    # -- weights and counters --------------------------------------------------------------------------------

    def _all_weights(self) -> Weights:
        """Of every model but the lagging ones, which components may write to."""
        models = self._models
        found: dict[int, Weight] = {}
        for name, model in models.items():
            if models.recipes[name]["role"] != "lagging":
                for weight in weights_of(model):
                    found.setdefault(id(weight.tensor), weight)
        return Weights(list(found.values()))

    def _mark(self) -> None:
        """Remember where the run stands, and the weights."""
        if self._weights is None:
            self._weights = self._all_weights()
        self._weights.mark()
        self._stood = self._where()

    def _check(self, hook: str, name: str, seal: Seal) -> None:
        """Stop where something is not as it was marked."""
        whose = f"`{hook}` of `{name}` "
        if (what := seal.broken()) is not None:
            raise Altered(f"{whose}changed `{what}` in place; {CLONE}")
        if (now := self._where()) != self._stood:
            what = next(key for key, value in now.items() if value != self._stood[key])
            raise Altered(f"{whose}changed the run's {what} from {self._stood[what]} to {now[what]}")
        if self._weights is not None and (changed := self._weights.changed()) is not None:
            raise Altered(
                f"{whose}changed the weights `{changed.key}` of the model `{changed.model.name}`; weights are "
                "learned through a loss, or written in an `update` hook with `learner.assign`"
            )


class Weight:
    """A tensor of a model's state, in its place."""

    def __init__(self, model: Model, key: str, holder: Mapping[str, Any], leaf: str) -> None:
        self.model = model
        self.key = key
        self._holder = holder
        self._leaf = leaf

    @property
    def tensor(self) -> Tensor:
        """Of one that is cut over processes this one's piece."""
        found: Tensor | None = self._holder.get(self._leaf)
        return _GONE if found is None else local(found)

    @property
    def is_cut(self) -> bool:
        return is_cut(self._holder[self._leaf])


class Weights:
    """Many of them, as they were when they were marked."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights
        self._stamps: list[tuple[Any, ...]] = []
        self._places: list[tuple[int, int]] = []
        self._some: list[Some] = []

    def mark(self) -> None:
        if (stamps := self._stamp()) == self._stamps:
            return
        self._stamps = stamps
        if (places := [stamp[:2] for stamp in stamps]) != self._places:
            self._places = places
            kinds: dict[object, list[Weight]] = {}
            for w in self._weights:
                kinds.setdefault((w.tensor.device, w.tensor.dtype), []).append(w)
            self._some = [Some(each) for each in kinds.values()]
        for some in self._some:
            some.mark()

    def forget(self) -> None:
        self._stamps = []

    def changed(self) -> Weight | None:
        """One that is not as it was."""
        now = self._stamp()
        if now != self._stamps:
            return next(w for w, *pair in zip(self._weights, now, self._stamps, strict=True) if ne(*pair))
        return next((w for some in self._some if (w := some.changed()) is not None), None)

    def _stamp(self) -> list[tuple[Any, ...]]:
        # The model's version too: a fused AdamW moves none of the tensor's.
        return [
            (id(x := w.tensor), x.data_ptr(), x._version, x.requires_grad, w.model.version)
            for w in self._weights
        ]


class Some:
    """Some numbers of weights of one kind, read all at once: one after the other would take longer than a hook does."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights
        self._views = [some_of(w.tensor) if w.tensor.is_contiguous() else None for w in weights]
        self.mark()

    def mark(self) -> None:
        self._held = self._read()

    def _read(self) -> Tensor:
        pairs = zip(self._views, self._weights, strict=True)
        return torch.cat([some_of(w.tensor) if view is None else view for view, w in pairs]).cpu()

    def changed(self) -> Weight | None:
        now = self._read()
        if held_by(now) == held_by(self._held):
            return None
        sizes = [some_of(w.tensor).numel() for w in self._weights]
        pieces = zip(self._weights, now.split(sizes), self._held.split(sizes), strict=True)
        return next(w for w, one, other in pieces if held_by(one) != held_by(other))


def some_of(x: Tensor) -> Tensor:
    """Numbers of a tensor, evenly spaced: of a contiguous one a view."""
    return x.detach().flatten()[:: max(1, x.numel() // SAMPLED)]


def weights_of(model: Model) -> Iterator[Weight]:
    """Parameters, and what else a model keeps with them."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for leaf, x in module._parameters.items():
            if x is not None:
                yield Weight(model, prefix + leaf, module._parameters, leaf)
        for leaf, x in module._buffers.items():
            if x is not None and leaf not in module._non_persistent_buffers_set:
                yield Weight(model, prefix + leaf, module._buffers, leaf)
