"""A process among those of its run; nobody else talks to the others.

Every rank holds all data and every hook sees all of it; only model passes and plain rewards are dealt out. So draws,
advantages, denominators and the state of components are the same everywhere, and no plugin knows of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rlalign import errors
from rlalign.errors import RankLost, RanksDisagree, describe_error

if TYPE_CHECKING:  # whoever only reads a run's files needs no torch
    from torch import Tensor

X = TypeVar("X")
BUCKET = 2**24
"""How many numbers of gradients are added up at once, one parameter's at least."""
SAME = (
    "Every process must come to the same: a hook may not read the clock, the order of a set, or random numbers other "
    "than those of `run.rng` and of the global generators"
)


class World:
    """Alone, all is done here, and `torch.distributed` stays unused."""

    def __init__(self, rank: int = 0, count: int = 1, lost: Callable[[Exception], str] = str) -> None:
        self.own, self.count, self.backend = rank, count, ""
        self.names: list[str] = []
        """Every rank in words: `rank 3 of 8 on b`."""
        self.beside = 1
        """How many processes share this machine's memory."""
        self._lost = lost
        """Says who was lost, after an error in talking."""
        self.apart = False
        """Whether this rank works on its share."""

    @property
    def size(self) -> int:
        """How many share the work at hand."""
        return 1 if self.apart else self.count

    @property
    def rank(self) -> int:
        return 0 if self.apart else self.own

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files, and talks."""
        return self.own == 0

    def share(self, count: int) -> range:
        """This rank's run of `count` places."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, make: Callable[[], X], what: str, together: bool = False) -> list[X]:
        """What every rank makes, in order of rank; the first rank's error is that of all.

        Inside, each works on its share and therefore alone: what it asks for there, it computes by itself.
        `together`: each needs the others all the while, so that its error is its end.
        """
        if self.size == 1:
            return [make()]
        from rlalign import nested

        made, error = b"", None
        self.apart = True
        try:
            made = nested.to_bytes(make())
        except Exception as caught:
            if together:
                raise self._met(caught) from caught
            error = caught
        finally:
            self.apart = False
        said = error and [type(error).__name__, str(error), describe_error(error)]
        found = [nested.of_bytes(data) for data in self._exchanged(nested.to_bytes([what, made, said]))]
        for name, (other, _, _) in zip(self.names, found, strict=False):  # they have none at the start
            if other != found[0][0]:
                raise RanksDisagree(f"{self.names[0]} is at {found[0][0]}, and {name} at {other}. {SAME}")
        for rank, (_, _, wrong) in enumerate(found):
            if wrong is not None:
                raise error if error and rank == self.own else self._its(rank, *wrong)
        return [nested.of_bytes(one) for _, one, _ in found]

    def lead(self, make: Callable[[], X], what: str) -> X:
        """What rank 0 makes, or its error, on every rank."""
        return self.gather(make if self.leads else lambda: None, what)[0]  # type: ignore[return-value]

    def summed(
        self, work: Callable[[], X], weights: Sequence[Tensor], what: str, together: bool = False
    ) -> list[X]:
        """What every rank's work gives; the gradients that it leaves are added up. One that no rank has stays None."""
        if self.size == 1:
            return [work()]
        import torch

        found = self.gather(lambda: (work(), [w.grad is not None for w in weights]), what, together)
        there = [any(flags) for flags in zip(*(flags for _, flags in found), strict=True)]
        for grads in _buckets(_gradient(w) for w, some in zip(weights, there, strict=True) if some):
            flat = torch.cat([g.reshape(-1) for g in grads])
            self._talk("all_reduce", flat)
            for g, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(piece.view_as(g))
        return [one for one, _ in found]

    def same(self, values: Callable[[], Any], what: str) -> None:
        """Stop where values differ: numbers by more than rounding, anything else at all."""
        if self.size == 1:
            return
        from rlalign.world.comparing import alike, digest

        first, *others = self.gather(lambda: digest(values()), what)
        for rank, other in enumerate(others, 1):
            for name in {**first, **other}:
                if not alike(first.get(name), other.get(name)):
                    raise RanksDisagree(
                        f"{what}, `{name}` is not the same on {self.names[0]} and on {self.names[rank]}. {SAME}"
                    )

    def _met(self, error: Exception) -> Exception:
        """An error amid passes that all ranks make together; one in talking means that somebody is lost."""
        import torch.distributed as dist

        talking = isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
        return RankLost(self._lost(error)) if talking else error

    def _its(self, rank: int, kind: str, text: str, described: str) -> Exception:
        """Another rank's error."""
        import torch

        known: Any = {"OutOfMemoryError": torch.OutOfMemoryError}.get(kind) or getattr(errors, kind, None)
        return known(text) if known else RankLost(f"{self.names[rank]}: {described}")

    def _exchanged(self, data: bytes) -> list[bytes]:
        """Every rank's bytes."""
        import torch

        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        self._talk("all_gather", sizes, torch.tensor([len(data)]))
        whole = [torch.empty(int(size), dtype=torch.uint8) for size in sizes]
        whole[self.own] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for rank, one in enumerate(whole):
            self._talk("broadcast", one, rank)
        return [one.numpy().tobytes() for one in whole]

    def _talk(self, how: str, *given: Any) -> None:
        import torch.distributed as dist

        try:
            getattr(dist, how)(*given)
        except RuntimeError as error:
            raise RankLost(self._lost(error)) from error


def _gradient(weight: Tensor) -> Tensor:
    """A weight's gradient, zero where it has none."""
    import torch

    if weight.grad is None:
        weight.grad = torch.zeros_like(weight, dtype=getattr(weight, "grad_dtype", None))
    return weight.grad


def _buckets(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Runs of gradients of one kind, none too large."""
    buckets: list[list[Tensor]] = []
    kind, room = None, 0
    for g in gradients:
        if (g.dtype, g.device) != kind or g.numel() > room:
            buckets.append([])
            kind, room = (g.dtype, g.device), BUCKET
        buckets[-1].append(g)
        room -= g.numel()
    return buckets


_here = World()


def here() -> World:
    """This process among those of its run."""
    return _here


def become(world: World) -> None:
    """Be a rank from now on."""
    global _here
    _here = world
