"""The life of models: built when a phase first needs their name, kept, renewed, trained, frozen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlalign.config.pipeline import Item, ModelSpec
from rlalign.data.settings import Role
from rlalign.errors import RLAlignError, attributed_to
from rlalign.interface.policy import Model, ModelMap, NoRoom, Policy, Value
from rlalign.records.weights import fingerprint, hold, kept, load_weights
from rlalign.running.plan import NewTokens
from rlalign.world.sharding import shard

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class NoModel(RLAlignError, KeyError):
    """A `KeyError` too, so that `in` and `get` work on the models as on any mapping."""

    __str__ = Exception.__str__


class Models(ModelMap):
    """The run's models by name. `policy` is built first; the others as phases ask for them."""

    def __init__(
        self,
        policy: Item,
        device: torch.device,
        dtype: str,
        seed: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.item = policy
        self.device = device
        self.dtype = _DTYPES[dtype]
        """What the weights are held in, unless a model's recipe says otherwise."""
        self._seed = seed
        self.cut = False
        """Whether weights are cut over the processes."""
        self.offload = False
        """Whether what is cut lies in the machine's memory between passes."""
        self.begun: str | None = None
        """The fingerprint of the policy's first weights, where they have been cut since."""
        self._models: dict[str, Model] = {}
        self.recipes: dict[str, dict[str, str | None]] = {}
        self.whole: Policy | None = None
        """The policy put together where it is cut, for who reads it from outside the run."""
        self._start: Policy | None = None
        self._opened: Policy | None = None
        self.new_tokens = NewTokens()
        self.small = False
        """Whether models are made as small as they can be, for a trial."""
        self.guarded: dict[str, str] = {}
        """Fingerprints of what must not change in the present phase."""

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            raise NoModel(f"there is no model `{name}`; a component that reads one declares it in `models`")
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def policy(self) -> Policy:
        policy = self._models["policy"]
        assert isinstance(policy, Policy)
        return policy

    # -- building ---------------------------------------------------------------------------------

    def opened(self) -> Policy:
        """The policy before it has weights: it can read prompts."""
        if self._opened is None:
            policy = self._made(self.item)
            assert isinstance(policy, Policy)
            policy.new_tokens = self.new_tokens.tokens
            with self.naming():
                policy.open()
            self._opened = policy
        return self._opened

    @contextmanager
    def naming(self, place: str = "", doing: str = "") -> Iterator[None]:
        """Say where the policy is named, or a model like it, when it is not as it should be."""
        who = f"policy `{self.item.name}`"
        with attributed_to(f"{place or self.item.place}: {who}{doing}", self.item.name):
            try:
                yield
            except NoRoom as error:
                raise NoRoom(f"{self.new_tokens.said}: {who}: {error}") from None

    def build_policy(self, *, keep_start: bool) -> None:
        """The policy, with its first weights; `keep_start` keeps a frozen copy of those."""
        policy = self.opened()
        self._seed("policy")
        with self.naming():
            policy.setup()
        recipe = {"role": "policy", "of": None, "by": None, "with": None, "dtype": None}
        self._put("policy", policy, None, recipe)
        if keep_start:
            start = self.policy.copy("frozen")
            assert isinstance(start, Policy)
            _settle(self, start, None, self.policy)
            self._start = start

    def prepare(self, roles: Mapping[str, Role], specs: Mapping[str, ModelSpec]) -> dict[str, str]:
        """Make every model a phase needs; says of each whether it was built, kept or renewed."""
        said = {}
        for name, role in roles.items():
            spec = specs.get(name, ModelSpec())
            of = spec.of or ("phase" if name == "reference" and spec.item is None else None)
            made_by = spec.item.identity if spec.item else None
            recipe = {
                "role": role,
                "of": of,
                "by": spec.item.component if spec.item else None,
                "with": made_by,
                "dtype": spec.dtype,
            }
            unsaid = name not in specs and name != "reference"  # then a model of this name lives on
            known = name in self._models and (
                self.recipes[name]["role"] == role if unsaid else self.recipes[name] == recipe
            )
            if known and (unsaid or of not in ("phase", "iteration")):
                said[name] = "kept"
                continue
            said[name] = "renewed" if known else "built"
            version = self._models[name].version + 1 if name in self._models else 0
            self._put(name, *self._make(name, role, of, spec.item, spec.dtype), recipe)
            self._models[name].version = version
        values = [model for name in roles if isinstance(model := self._models[name], Value)]
        trunks: dict[str, Role] = {
            str(v.trunk): "frozen" for v in values if v.trunk not in (None, "policy", *roles)
        }
        return {**said, **self.prepare(trunks, specs)} if trunks else said

    def _make(
        self, name: str, role: Role, of: str | None, item: Item | None, dtype: str | None
    ) -> tuple[Model, Policy | None]:
        """A model, and what it is a copy of."""
        self._seed(name)
        if item is not None:
            made = self._made(item)
            if isinstance(made, Value):
                made.setup(self.policy)
            elif isinstance(made, Policy):
                made.setup()
            return made, None
        if of == "start":
            if self._start is None:
                raise RLAlignError("the first policy was not kept")
            own = role != "frozen" or dtype is not None  # what changes, or is held otherwise, is not shared
            return (self._start.copy(role), self._start) if own else (self._start, None)
        if of is not None and of not in ("phase", "iteration"):
            policy = self.at(of)
            policy.setup()
            return policy, None
        return self.policy.copy(role), self.policy

    def at(self, path: str) -> Policy:
        """The policy's own kind, to be loaded from another folder."""
        policy = self.item.cls(self.item.options.model_copy(update={"path": path}))
        assert isinstance(policy, Policy)
        if self.small:
            policy.shrink()
        return policy

    def _made(self, item: Item) -> Model:
        """A model that nobody else has, not yet opened."""
        made: Any = item.build()
        assert isinstance(made, Model)
        if self.small:
            made.shrink()
        return made

    def _put(self, name: str, model: Model, source: Policy | None, recipe: dict[str, str | None]) -> None:
        model.name = name
        _settle(self, model, recipe["dtype"], source)
        self._models[name] = model
        self.recipes[name] = recipe
        every = model.named_parameters(remove_duplicate=False)
        model.learnable = frozenset(key for key, p in every if p.requires_grad)

    def iteration_started(self) -> None:
        """Renew what is `of: iteration`."""
        for name, recipe in self.recipes.items():
            model = self._models[name]
            if recipe["of"] == "iteration" and isinstance(model, Policy):
                model.sync(self.policy)

    def renew(self, lagging: Mapping[str, int], iteration: int) -> None:
        """Give these copies the policy's weights, each after as many iterations of the phase as it says."""
        for name, every in lagging.items():
            if iteration % every == 0:
                self._models[name].sync(self.policy)

    def iteration_done(self) -> None:
        """A component may have written to a lagging copy without a word: its weights count as new."""
        for name, recipe in self.recipes.items():
            if recipe["role"] == "lagging":
                self._models[name].version += 1

    # -- training and freezing ----------------------------------------------------------------------

    def train_only(self, trains: Collection[str]) -> None:
        """Let these learn; freeze all others."""
        for name, model in self._models.items():
            learns = name in trains
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(learns and key in model.learnable)

    def guard(self, trains: Collection[str]) -> None:
        """Remember what must not change in this phase. Lagging copies may."""
        self.guarded = {
            name: fingerprint(model)
            for name, model in self._models.items()
            if name not in trains
            and self.recipes[name]["role"] != "lagging"
            and self.recipes[name]["of"] != "iteration"
        }

    def check_guard(self) -> None:
        """Whatever did not train is as it was, to the bit."""
        for name, before in self.guarded.items():
            if fingerprint(self._models[name]) != before:
                raise RLAlignError(
                    f"the model `{name}` changed in a phase that does not train it; "
                    "a component wrote to its weights or let a gradient reach them"
                )

    # -- state --------------------------------------------------------------------------------------

    def state(self) -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
        """(version, tensors) of every model, as a checkpoint keeps them."""
        held = dict(self._models)
        if self._start is not None and self._start not in held.values():
            held["start.policy"] = self._start
        return {name: (model.version, kept(model)) for name, model in held.items()}

    def load_state(
        self,
        recipes: Mapping[str, dict[str, Any]],
        items: Mapping[str, Item | None],
        states: Mapping[str, dict[str, torch.Tensor]],
        versions: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Build every model of a checkpoint and give it the weights it had; those that were cut lie in the folder."""
        if "start.policy" in states and self._start is not None:
            load_weights(self._start, states["start.policy"], folder / "start.policy")
        recipes = {name: {"dtype": None, **recipe} for name, recipe in recipes.items()}  # older ones lack it
        for name, recipe in recipes.items():
            if name not in self._models:
                made = self._make(name, recipe["role"], recipe["of"], items.get(name), recipe["dtype"])
                self._put(name, *made, recipe)
        for name, recipe in recipes.items():
            model = self._models[name]
            load_weights(model, states[name], folder / name)
            model.version = versions[name]
            self.recipes[name] = recipe


def _settle(models: Models, model: Model, dtype: str | None, source: Policy | None) -> None:
    """Bring a model to where, and into the precision in which, it is held; `source` is what it is a copy of."""
    if model.sharded:  # it computes with weights that are cut already
        return
    half = models.dtype == torch.bfloat16
    cut = isinstance(model, Policy) and model.divisible and models.cut
    # Cut, its blocks come to the device one after the other.
    model.to(device=None if cut else models.device, dtype=torch.float32 if half else models.dtype)
    if dtype is not None or half:
        hold(model, _DTYPES[dtype] if dtype else models.dtype)
    model.eval()
    if not cut:
        model.sharded = any(part.sharded for part in model.modules() if isinstance(part, Model))
        return
    assert isinstance(model, Policy)
    if "policy" not in models:
        models.begun = fingerprint(model)
    model.sharded = True
    shard(model, model.parts(), models.device, models.offload)
    model.let_go()
    if source is not None:
        model.sync(source)
