"""The life of components: set up once, and given back the state they had at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.errors import attributed_to
from rlalign.interface.component import Component
from rlalign.interface.run import Run
from rlalign.randomness import Seeds
from rlalign.running.plan import PhasePlan


class Components:
    """Every component of a pipeline, once. States go by their number and name."""

    def __init__(self, plans: Sequence[PhasePlan], built: Sequence[Component], seeds: Seeds) -> None:
        self._places = {
            id(m.component): m.item.place
            for p in reversed(plans)
            for m in reversed((*p.members, *p.evaluators))
        }
        self.keyed = [(f"{i}:{component.name}", component) for i, component in enumerate(built)]
        self._seeds = seeds
        self._set_up: set[int] = set()
        self.saved: dict[str, Any] = {}
        """States from the checkpoint, of components that were not set up yet."""

    def set_up(self, component: Component, run: Run) -> None:
        """`setup`, once in the life of a component."""
        if id(component) not in self._set_up:
            self._set_up.add(id(component))
            self._seeds.seed_forward("setup", component.name)
            with attributed_to(f"{self._places[id(component)]}: `setup` of `{component.name}`"):
                component.setup(run)

    def restore(self) -> None:
        """Give the components that are set up by now the state they had at the checkpoint."""
        for key, component in self.keyed:
            if id(component) in self._set_up and key in self.saved:
                with attributed_to(f"{self._places[id(component)]}: `load_state_dict` of `{component.name}`"):
                    component.load_state_dict(self.saved.pop(key))

    def states(self) -> Mapping[str, Any]:
        """Of every component that was ever set up; whose phase is yet to come in this process keeps its old one."""
        ready = [(key, c) for key, c in self.keyed if id(c) in self._set_up]
        return {**self.saved, **{key: c.state_dict() for key, c in ready}}
