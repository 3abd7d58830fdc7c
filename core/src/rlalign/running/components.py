"""The life of components: set up once, and given back the state they had at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rlalign.errors import attributed_to
from rlalign.interface.component import Component
from rlalign.interface.kept import settings_kept
from rlalign.interface.run import Run
from rlalign.randomness import Seeds
from rlalign.running.plan import PhasePlan


class Components:
    """Every component of a pipeline, once. States go by where a component stands first: `PHASE/ROLE/NAME`."""

    def __init__(
        self,
        plans: Sequence[PhasePlan],
        seeds: Seeds,
        note: Callable[[str, str, str], None],
    ) -> None:
        self._places = {
            id(m.component): m.item.place
            for p in reversed(plans)
            for m in reversed((*p.members, *p.evaluators))
        }
        self.keyed = keyed(plans)
        self._seeds = seeds
        self._note = note
        self._set_up: set[int] = set()
        self._dismissed: set[int] = set()
        self.saved: dict[str, Any] = {}
        """States from the checkpoint, of components that were not set up yet."""

    def set_up(self, component: Component, run: Run) -> None:
        """`setup`, once in the life of a component."""
        if id(component) not in self._set_up:
            self._set_up.add(id(component))
            self._seeds.seed_all("setup", component.name)
            what, place = f"`setup` of `{component.name}`", self._places[id(component)]
            with attributed_to(f"{place}: {what}", component.name), settings_kept(partial(self._note, what)):
                component.setup(run)

    def dismiss(self, component: Component) -> bool:
        """Whether it was set up, and is yet to be told that the run is over."""
        if id(component) not in self._set_up or id(component) in self._dismissed:
            return False
        self._dismissed.add(id(component))
        return True

    def restore(self) -> None:
        """Give the components that are set up by now the state they had at the checkpoint."""
        for key, component in self.keyed.items():
            if id(component) in self._set_up and key in self.saved:
                what = f"{self._places[id(component)]}: `load_state_dict` of `{component.name}`"
                with attributed_to(what, component.name):
                    component.load_state_dict(self.saved.pop(key))

    def states(self) -> Mapping[str, Any]:
        """Of every component that was ever set up; whose phase is yet to come in this process keeps its old one."""
        found = dict(self.saved)
        for key, component in self.keyed.items():
            if id(component) in self._set_up:
                with attributed_to(f"`state_dict` of `{component.name}`", component.name):
                    found[key] = component.state_dict()
        return found


def keyed(plans: Sequence[PhasePlan]) -> dict[str, Component]:
    """The components by their first place, which does not move when the options of another one change."""
    found: dict[str, Component] = {}
    for plan in plans:
        for member in (*plan.members, *plan.evaluators):
            if all(member.component is not known for known in found.values()):
                found[f"{plan.settings.name}/{member.role}/{member.name}"] = member.component
    return found
