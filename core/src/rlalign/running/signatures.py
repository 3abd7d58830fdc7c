"""What the numbers of a phase's scores depend on, in a component's own words; and from which iteration on."""

from __future__ import annotations

from collections.abc import Sequence

from rlalign.errors import ComponentError, attributed_to
from rlalign.records.result import SIGNATURES, signatures_in
from rlalign.running.members import Member, who
from rlalign.running.phase import RunningPhase
from rlalign.world.ranks import here


def signatures_of(members: Sequence[Member]) -> dict[str, str]:
    """The signature of each component that has one, by its name. Some know theirs only once they are set up."""
    found = {}
    for member in members:
        with attributed_to(f"`signature` of {who(member)}"):
            said = member.component.signature()
        if not isinstance(said, str) or "\n" in said:
            raise ComponentError(f"`signature` of {who(member)} returned {said!r}; it is one line of text")
        if said:
            found[member.name] = said
    return found


def note(phase: RunningPhase) -> None:
    """Write down those of a phase, unless they stand there as they are."""
    if not here().leads:
        return
    signatures = signatures_of(phase.plan.everybody)
    if signatures != signatures_in(phase.workspace.dir.path).get(phase.settings.name, {}):
        phase.workspace.logs.append(SIGNATURES, {**phase.where, "signatures": signatures})
