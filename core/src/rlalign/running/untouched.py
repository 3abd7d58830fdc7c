"""What a hook leaves as it was: the process's settings, the tensors it is handed, the weights, where the run stands.

A tensor's version tells of every change in place; a checksum of what versions do not see, `.data` and `.numpy()`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.batch import Batch, Outputs, Reward
from rlalign.data.rollout import Rollout
from rlalign.errors import ComponentError
from rlalign.interface.policy import Model

if TYPE_CHECKING:
    from rlalign.running.phase import RunningPhase

SAMPLED = 1024
"""How many numbers of a weight tensor are summed up, evenly spaced; of a smaller one all."""
CLONE = "what a hook is given is not its own: `.clone()` it first"
_LEARNING = ("loss", "step_ready", "update", "reward")


class Untouched:
    """Watches over the hooks of one phase."""

    def __init__(self, phase: RunningPhase) -> None:
        self._phase = phase
        self._weights: list[Weight] = []
        self._stamp: list[Any] = []
        self._sums: list[int] | None = None
        self._counters: list[Any] = []
        self._calls: dict[tuple[str, str], int] = {}
        self._seal: Seal | None = None
        """The last hook's, whose checksums need not be made again."""
        self._inside: list[tuple[str, str, Seal] | None] = []
        """The hooks that have not returned yet; None: what one of them asked of the core."""

    @contextmanager
    def hook(self, hook: str, name: str, stage: str, given: Mapping[str, Any]) -> Iterator[None]:
        """One call of a hook."""
        phase = self._phase
        if self._inside and (wrapper := self._inside[-1]):
            self._check(*wrapper, deep=True)
        count = self._calls[hook, name] = self._calls.get((hook, name), -1) + 1
        at = -1 if hook == "phase_started" else phase.iteration
        phase.workspace.seeds.seed_all("hook", stage, hook, name, phase.repeat, phase.place, at, count)
        # A loss is asked for every piece of every step: its piece is looked at closely when the update is over,
        # the weights at the first time.
        deep = hook != "loss"
        seal = Seal(given, deep, self._seal)
        self._mark(deep or count == 0)
        self._inside.append((hook, name, seal))
        try:
            with settings_kept(
                lambda what, said: phase.workspace.note_once(f"`{hook}` of `{name}`", what, said)
            ):
                yield
        finally:
            self._inside.pop()
        self._check(hook, name, seal, deep=deep or count == 0)
        self._seal = seal
        if hook == "phase_started":
            self._calls.clear()

    @contextmanager
    def core(self) -> Iterator[None]:
        """What the core does for a hook that asked it to; it may train."""
        if not self._inside or (asking := self._inside[-1]) is None:
            yield
            return
        self._check(*asking, deep=True)
        self._inside.append(None)
        try:
            yield
        finally:
            self._inside.pop()
        self._mark(deep=True)

    @contextmanager
    def learning(self, batch: Batch) -> Iterator[None]:
        """All hooks of an iteration's learning together."""
        seal = Seal({"batch": batch}, deep=True)
        yield
        if (what := seal.broken()) is not None:
            acted = [f"`{hook}` of `{name}`" for hook, name in self._calls if hook in _LEARNING]
            raise ComponentError(f"{' or '.join(acted)} changed `{what}` in place; {CLONE}")

    def iteration_started(self) -> None:
        """A hook that is called again gets the same random numbers as after a resume; nobody put in other weights."""
        self._calls.clear()
        self._seal, self._stamp = None, []
        before = {(id(w.model), w.key): w.tensor for w in self._weights}
        self._weights = self._all_weights()
        for w in self._weights:
            if before.get((id(w.model), w.key), w.tensor) is not w.tensor:
                raise ComponentError(
                    f"a component replaced the weights `{w.key}` of the model `{w.model.name}`"
                )

    @property
    def hook_now(self) -> str | None:
        """The hook that is called at present."""
        return self._inside[-1][0] if self._inside and self._inside[-1] else None

    # -- weights and counters --------------------------------------------------------------------------------

    def _all_weights(self) -> list[Weight]:
        """Of every model but the lagging ones, which components may write to."""
        models = self._phase.models
        found: dict[int, Weight] = {}
        for name, model in models.items():
            if models.recipes[name]["role"] != "lagging":
                for key, tensor in model.state_dict(keep_vars=True).items():
                    found.setdefault(id(tensor), Weight(model, key, tensor))
        return list(found.values())

    def _where(self) -> list[Any]:
        phase = self._phase
        return [
            phase.step,
            phase.iteration,
            phase.iterations,
            phase.position,
            phase.share,
            phase.draw.position,
        ]

    def _mark(self, deep: bool) -> None:
        """Remember where the run stands, and the weights."""
        if not self._weights:
            self._weights = self._all_weights()
        stamp = [w.stamp() for w in self._weights]
        if stamp != self._stamp:
            self._stamp, self._sums = stamp, None
        if deep and self._sums is None:
            self._sums = [_sampled(w.tensor) for w in self._weights]
        self._counters = self._where()

    def _check(self, hook: str, name: str, seal: Seal, *, deep: bool) -> None:
        """Stop where something is not as it was marked."""
        whose = f"`{hook}` of `{name}` "
        if (what := seal.broken()) is not None:
            raise ComponentError(f"{whose}changed `{what}` in place; {CLONE}")
        if (now := self._where()) != self._counters:
            raise ComponentError(f"{whose}changed where the run stands, from {self._counters} to {now}")
        changed = [w for w, was in zip(self._weights, self._stamp, strict=True) if w.stamp() != was]
        if not changed and deep and self._sums is not None:
            pairs = zip(self._weights, self._sums, strict=True)
            changed = [w for w, was in pairs if _sampled(w.tensor) != was]
        if changed:
            raise ComponentError(
                f"{whose}changed the weights `{changed[0].key}` of the model `{changed[0].model.name}`; weights are "
                "learned through a loss, or written in an `update` hook with `learner.assign`"
            )


class Weight(NamedTuple):
    """A tensor of a model's state."""

    model: Model
    key: str
    tensor: Tensor

    def stamp(self) -> tuple[int, int, int, bool]:
        x = self.tensor
        return self.model.version, _version(x), x.data_ptr(), x.requires_grad  # a fused AdamW moves no version


def _sampled(x: Tensor) -> int:
    flat = x.detach().reshape(-1) if x.is_contiguous() else x.detach().flatten()
    return _sum(flat[:: max(1, flat.numel() // SAMPLED)].cpu())


# -- the process's settings -----------------------------------------------------------------------------


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


_SETTINGS: Sequence[tuple[str, Callable[[], Any], Callable[[Any], object] | None]] = (
    ("the working directory", _directory, lambda path: path and os.chdir(path)),
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's default device", lambda: torch.empty(0).device, _set_default_device),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    ("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("torch's inference mode", torch.is_inference_mode_enabled, None),
    (
        "torch's autocast",
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    (
        "torch's deterministic mode",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    (
        "torch's precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
)


@contextmanager
def settings_kept(told: Callable[[str, str], None]) -> Iterator[None]:
    """Set back whatever setting of the process is changed inside, and say so."""
    before = [get() for _, get, _ in _SETTINGS]
    try:
        yield
    finally:
        for (what, get, put), was in zip(_SETTINGS, before, strict=True):
            if (now := get()) != was:
                if put is None:
                    raise ComponentError(f"left {what} {'on' if now else 'off'}")
                put(was)
                told(what, f"changed {what} from {was} to {now}; it is {was} again")


# -- the tensors it is handed ----------------------------------------------------------------------------


class Seal:
    """Tensors and records as they are now. `deep` looks at the numbers too, of tensors on the CPU."""

    def __init__(self, given: Mapping[str, Any], deep: bool, known: Seal | None = None) -> None:
        self._given = given
        self._records: list[tuple[Any, dict[str, Any]]] = []
        self._tensors: list[Tensor] = []
        for value in given.values():
            self._reach(value)
        self._versions = [_version(x) for x in self._tensors]
        sums = known.sums() if known is not None else {}
        self._sums = [sums[id(x)] if id(x) in sums else _sum(x) for x in self._tensors] if deep else None

    def _reach(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors.append(value)
        elif isinstance(value, Rollout | Reward | Batch | Outputs):
            held = dict(vars(value))
            self._records.append((value, held))
            for each in held.values():
                self._reach(each)
        elif isinstance(value, tuple):
            if value and isinstance(value[0], Tensor | Rollout):
                for each in value:
                    self._reach(each)
        elif isinstance(value, Mapping):
            for each in value.values():
                self._reach(each)
        elif isinstance(value, Allowed):
            rows = [row for row in value.rows if row is not None]
            self._tensors += [x for row in rows for x in vars(row).values() if x is not None]

    def sums(self) -> dict[int, int]:
        """The checksums, by tensor; for what is sealed again and stays alive meanwhile."""
        return {id(x): s for x, s in zip(self._tensors, self._sums or (), strict=False)}

    def broken(self) -> str | None:
        """What is not as it was."""
        for record, held in self._records:
            now = vars(record)
            for name, value in held.items():
                if now.get(name) is not value:
                    return f"{type(record).__name__.lower()}.{name}"
        for i, x in enumerate(self._tensors):
            if _version(x) != self._versions[i] or (self._sums is not None and _sum(x) != self._sums[i]):
                return _path(self._given, x) or "a tensor it was given"
        for record, held in self._records:  # made and kept by the hook's own asking: new, so never changed
            for name, value in vars(record).items():
                made = value if isinstance(value, tuple) else (value,)
                if name not in held and any(isinstance(x, Tensor) and _version(x) for x in made):
                    return f"{type(record).__name__.lower()}.{name}"
        return None


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _sum(x: Tensor) -> int:
    """A checksum of what a tensor holds, where one is cheap."""
    if x.device.type != "cpu" or x.layout != torch.strided:
        return 0
    plain = x.detach()
    plain = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
    plain = plain if plain.is_contiguous() else plain.contiguous()
    return zlib.crc32(plain.numpy())


def _path(given: Mapping[str, Any], x: Tensor) -> str | None:
    """`batch.rollout.mask_NT`."""
    todo = list(given.items())
    while todo:
        path, value = todo.pop(0)
        if value is x:
            return path
        if isinstance(value, Rollout | Reward | Batch | Outputs | Allowed):
            todo += [(f"{path}.{name}", each) for name, each in vars(value).items() if name != "examples"]
        elif isinstance(value, Mapping):
            todo += [(f"{path}[{name!r}]", each) for name, each in value.items()]
        elif isinstance(value, tuple) and value and not isinstance(value[0], str):
            todo += [(f"{path}[{i}]", each) for i, each in enumerate(value)]
        elif type(value).__name__ == "_Row":
            todo += [(path, each) for each in vars(value).values()]
    return None
