"""What a hook leaves as it was: what it is handed, the weights, and where the run stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from rlalign.data.batch import Batch
from rlalign.errors import Altered
from rlalign.interface.kept import settings_kept
from rlalign.interface.policy import Model
from rlalign.randomness import Seeds
from rlalign.running.models import Models
from rlalign.running.printed import shortened
from rlalign.running.seal import Ledger, Seal, held_by

SAMPLED = 1024
"""How many numbers of a weight tensor are looked at, evenly spaced; of a smaller one all."""
CLONE = "what a hook is given is not its own: `.clone()` it first"
_LEARNING = ("loss", "step_ready", "update", "reward")
_OFTEN = ("loss", "step_ready")
"""Asked for every piece of every step: looked at once an iteration, and together at the end of its update."""


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
        self._weights: list[Weight] = []
        self._stamp: list[Any] = []
        self._some: list[bytes] | None = None
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
            try:
                with kept:
                    yield
            finally:
                self._often = None
            return
        short = shortened(partial(self._note, f"`{hook}` of `{name}`"))
        stands = self._where()
        at = -1 if hook == "phase_started" else stands["iteration"]
        self._seeds.seed_all("hook", stage, hook, name, stands["repeat"], stands["place"], at, count)
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

    def iteration_started(self) -> None:
        """A hook that is called again gets the same random numbers as after a resume."""
        self._calls.clear()
        self._ledger.forget()
        self._stamp = []

    @property
    def hook_now(self) -> str | None:
        """The hook that is called at present."""
        return self._often or (self._inside[-1][0] if self._inside and self._inside[-1] else None)

    # -- weights and counters --------------------------------------------------------------------------------

    def _all_weights(self) -> list[Weight]:
        """Of every model but the lagging ones, which components may write to."""
        models = self._models
        found: dict[int, Weight] = {}
        for name, model in models.items():
            if models.recipes[name]["role"] != "lagging":
                for weight in weights_of(model):
                    found.setdefault(id(weight.tensor), weight)
        return list(found.values())

    def _mark(self) -> None:
        """Remember where the run stands, and the weights."""
        if not self._weights:
            self._weights = self._all_weights()
        stamp = [w.stamp() for w in self._weights]
        if stamp != self._stamp:
            self._stamp, self._some = stamp, None
        if self._some is None:
            self._some = [w.some() for w in self._weights]
        self._stood = self._where()

    def _check(self, hook: str, name: str, seal: Seal) -> None:
        """Stop where something is not as it was marked."""
        whose = f"`{hook}` of `{name}` "
        if (what := seal.broken()) is not None:
            raise Altered(f"{whose}changed `{what}` in place; {CLONE}")
        if (now := self._where()) != self._stood:
            what = next(key for key, value in now.items() if value != self._stood[key])
            raise Altered(f"{whose}changed the run's {what} from {self._stood[what]} to {now[what]}")
        changed = [w for w, was in zip(self._weights, self._stamp, strict=True) if w.stamp() != was]
        if not changed and self._some is not None:
            pairs = zip(self._weights, self._some, strict=True)
            changed = [w for w, was in pairs if w.some() != was]
        if changed:
            raise Altered(
                f"{whose}changed the weights `{changed[0].key}` of the model `{changed[0].model.name}`; weights are "
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
        found: Tensor = self._holder[self._leaf]
        return found

    def stamp(self) -> tuple[Any, ...]:
        x = self._holder.get(self._leaf)
        if x is None:
            return ()
        # Its model's version too: a fused AdamW moves none of the tensor's.
        return self.model.version, id(x), x._version, x.data_ptr(), x.requires_grad

    def some(self) -> bytes:
        """Some of its numbers."""
        x = self.tensor.detach()
        if x.numel() > SAMPLED:
            x = x.flatten()[:: x.numel() // SAMPLED]
        return held_by(x.cpu())


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
