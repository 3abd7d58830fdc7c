"""A component: a class with a nested `Config`, some declarations, and any subset of the hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from rlalign.data.settings import Options, Role, Unit

if TYPE_CHECKING:
    from rlalign.data.example import Example
    from rlalign.interface.run import Run


@dataclass(frozen=True)
class Lagging:
    """A copy of the policy that takes the policy's weights after every `every` iterations of a phase.

    As a declaration: `models = {"mask": Lagging(every=5)}`. The core renews it before `iteration_done`.
    """

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Lagging(every={self.every}): a copy is renewed after 1 iteration or more")

    def __str__(self) -> str:
        return f"lagging, renewed after every {self.every} iterations"


class Component:
    """Base of everything a pipeline names. `__init__` is cheap and opens nothing; `setup` may load.

    The declarations are class attributes or, where they depend on the options, plain attributes set
    in `__init__` (never properties: pluggy 1.6 evaluates those when a component is registered).
    """

    class Config(Options):
        """No options."""

    name: str = ""
    """The item's name in the pipeline (`as`, or the component's own name); set by the core."""
    models: Mapping[str, Role | Lagging] = {}
    """Models it reads beside `policy`, by name, and the role each plays."""
    trains: Sequence[str] = ()
    """The models its loss optimises. All others stay frozen, to the bit."""
    needs: Sequence[str] = ()
    """Live outputs (`logprobs`, `full_logprobs`, `entropy`, `values`), `old_logprobs`, or
    `model.output` columns taken once after the rollout (`reference.full_logprobs`, `value.state_values`)."""
    unit: Unit = "group"
    """The smallest set of responses its loss may be evaluated on alone, given the step's totals."""
    responses: str | None = None
    """Where its responses come from unless the pipeline says so: `sampled` or `logged`."""
    min_samples: int = 1
    """Responses a prompt that it cannot do without."""
    scored: bool = True
    """It reads rewards. Where nothing in `algorithm` does, logged responses need no stored scores."""
    regularises: bool = False
    """Its loss holds a KL to the reference already."""
    weighs: bool = False
    """Its loss weighs responses by what they were sampled with, so `train.mismatch` does not."""
    adds_turns: bool = False
    """Where rows are single turns of episodes, it adds up what later ones earned itself."""
    estimates: bool = False
    """Its score says something of sampled responses only: an evaluation that decodes otherwise leaves it out."""
    by_one: bool = False
    """Its `reward` asks somebody outside, or counts what it is asked: of several processes one asks it for all."""
    constraint: Any = None
    """A `rlalign.Nucleus` that narrows what the policy may sample."""
    defaults: Mapping[str, Mapping[str, Any]] = {}
    """What it sets in the pipeline's `train` and `generation` unless the file does; a task or an algorithm may."""
    sources: Mapping[str, int] = {}
    """Components that it asks for responses, with the number a prompt that it wants of each; 0: as many as
    `generation.samples` says."""
    source_options: Mapping[str, Mapping[str, Any]] = {}
    """Options of those components, where they are not their defaults."""
    sure: bool = True
    """As a source of responses: it has some for every prompt, from the first iteration on."""
    source_components: Mapping[str, Component] = {}
    """Those components, built; set by the core."""
    higher_is_better: bool = True
    """Whether a larger score is a better response; if not, it is a reward under a negative `weight` only."""
    bounds: tuple[float | None, float | None] = (None, None)
    """The least and the largest that a response can score; None: no bound."""
    equation: str = ""
    """What its method makes small, or how it steps, in one line, for cards of what it trained."""
    paper: str = ""
    """Where its method was published, for `rlalign plugins NAME`."""

    config: BaseModel

    def __init__(self, config: BaseModel) -> None:
        self.config = config

    def fewest(self, samples: int) -> int:
        """As a source of responses: how many of a prompt's `samples` it gives at least."""
        return samples

    def signature(self) -> str:
        """What its numbers depend on beside the texts: `key:value` joined by `|`, as sacreBLEU prints it."""
        return ""

    def shrink(self) -> None:
        """Load little in `setup`: the same kind of model, small and at random; asked by `rlalign check --smoke`.

        A component that loads nothing large leaves this out.
        """

    def setup(self, run: Run) -> None:
        """Load what is heavy. Called once, before the first `phase_started` it takes part in."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run must know: tensors and plain JSON values, nested in dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Task(Component):
    """Where examples come from, and how a response to them reads."""

    most: int | None = None
    """How many examples of a split will be looked at, the first ones: a task that reads large files need not read
    on. Set by the core for `rlalign check`; None: all of them."""
    licence: str = ""
    """The licence of its data, for cards of what learned from it."""
    here: bool = True
    """Whether its data lies on this machine; `rlalign check` reads no other."""
    generation: ClassVar[Mapping[str, Any]] = {}
    """How `evaluate` decodes unless the pipeline says otherwise; without it greedily, once."""

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split, in a fixed order.

        A sequence that loads them when they are asked for derives from `LazyExamples`.
        """
        raise NotImplementedError

    def postprocess(self, text: str) -> str:
        """What rewards and metrics read of a response."""
        return text

    def fingerprint(self, split: str) -> str | None:
        """A short string that changes with the data; None: the core reads all examples to make one."""
        return None
