"""What the core asks of a model: a policy or a value."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rlalign.costs.shape import Shape
from rlalign.data.example import Example, Prompt
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options, Sampling
from rlalign.decoding import sampler
from rlalign.decoding.interfaces import Constraint, Decoder, Finished
from rlalign.decoding.play import Game
from rlalign.errors import ConfigError, RLAlignError
from rlalign.world.sharding import Parts, is_cut

X = TypeVar("X")


class Model(nn.Module):
    """What policies and values share. `__init__` opens nothing; `setup` makes or loads the weights."""

    class Config(Options):
        """No options."""

    name: str = ""
    """Its name among the run's models; set by the core."""
    paper: str = ""
    """Where its method was published, for `rlalign plugins NAME`."""
    version: int = 0
    """Raised whenever the weights change; set by the core."""
    learnable: Collection[str] = frozenset()
    """The parameters that learn in phases in which it does, by any of their names; no other ever changes. Set by the
    core."""
    recomputes: bool = False
    """Whether the activations of its layers are computed again in the backward pass, not kept; set by the core."""
    sharded: bool = False
    """Whether the weights that it computes with are cut over the processes of the run; set by the core."""
    saves_float32: bool = False
    """`save` writes the weights as they were trained, not in the precision they came in."""
    ephemeral: tuple[str, ...] = ()
    """State a checkpoint leaves out because `setup` or `copy` makes it again."""

    def __init__(self, config: BaseModel) -> None:
        super().__init__()
        self.config: Any = config

    @property
    def device(self) -> torch.device:
        """Where it computes: between passes its weights may lie in the machine's memory."""
        if (weight := next(self.parameters(), None)) is None:
            return torch.device("cpu")
        found: Any = weight
        return torch.device(found.device_mesh.device_type) if is_cut(weight) else weight.device

    def shrink(self) -> None:
        """Be a small model of the same architecture, with the same tokenizer and random weights: asked once, before it
        is opened or set up, by `rlalign check --smoke`. A model that is small already leaves this out.
        """

    def sync(self, source: Model) -> None:
        """Take the weights of a model of the same kind."""
        with torch.no_grad():
            for mine, theirs in zip(self.state_dict().values(), source.state_dict().values(), strict=True):
                mine.copy_(theirs)
        self.version += 1

    def save(self, folder: Path) -> str | None:
        """Write an ordinary model folder that the field's tools load; returns what its card should add, if anything."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved as a model folder")


class NoRoom(ConfigError):
    """A response may not be as long as the pipeline asks: whatever the prompt, a policy cannot give so many tokens."""


class Footprint(NamedTuple):
    """About how much memory a policy takes, in bytes."""

    weights: int
    learned: int
    """Of the weights that learn: a gradient and two moments come to each."""
    token: int
    """What each token of a row leaves behind for the backward pass."""
    logits: int
    """Of one row."""
    again: int | None = None
    """As `token`, where layers are computed again in the backward pass; None: as much."""
    half: float = 1.0
    """The share of that which is left behind where weights are held in half precision."""


class Reading(NamedTuple):
    """How a policy reads some prompts, for `rlalign check`."""

    tokens: Sequence[int]
    """Of each, before anything is cut."""
    limit: int | None
    """The most that it takes."""
    said: str
    """What sets the limit."""
    becomes: str
    """What becomes of a longer one: it is cut, left out or refused."""
    first: str
    """The first as the model reads it: cut, its special tokens in sight."""


class Policy(Model):
    """A distribution over responses. Prompt and response are its own business; logits are the core's."""

    ends: tuple[int, ...] = ()
    """Tokens that end a response."""
    specials: tuple[int, ...] = ()
    """Tokens a constraint always allows, `ends` apart."""
    shares: bool = False
    """Whether its copies compute with its own weights, as those of adapters on one network do."""
    base: str | None = None
    """The model folder, or the name on the hub, that its first weights come from; cards of what is saved name it."""
    licence: str | None = None
    """Its base's licence, where that is one file and not a folder with a card that says so."""
    divisible: bool = False
    """Whether its weights can be cut over several processes: it has `parts`."""
    loaded_by: str | None = None
    """The library that loads what it saves, as model cards name it."""
    loading: str = ""
    """Lines of Python that load what it saves without rlalign, from the folder `here`; cards show them."""
    prompts_once: bool = False
    """Whether `features` computes a prompt once for all its responses; then micro-batches hold more of them."""
    horizon: int | None = None
    """The longest response it can give; None: no limit of its own."""
    at_once: int | None = None
    """How many responses it gives at once, where memory did not hold more; set by the core."""
    chats: bool = False
    """Whether it reads lists of messages; known once it is open."""
    speaks: bool = True
    """Whether it reads and writes any text, so that somebody can talk with it."""

    new_tokens: int = 0
    """The most tokens of a response that it will be asked for; set by the core before `open`."""
    here: bool = True
    """Whether all that `open` reads lies on this machine; `rlalign check` opens no other."""

    def open(self) -> None:
        """Get ready to read prompts, without weights; refuse what cannot be loaded, `NoRoom` for `new_tokens`.

        The run's policy is opened before its data is looked at.
        """

    def footprint(self) -> Footprint | None:
        """The memory it takes, asked after `open`; micro-batches follow from it. None: too little to matter."""
        return None

    def row_bytes(self, tokens: int) -> float | None:
        """About what a row of so many tokens takes while it is sampled: a CPU samples as many at once as fit.

        None: too little to matter.
        """
        return None

    def shape(self) -> Shape | None:
        """Its shape for the cost model of `rlalign check`, from its configuration alone; None: it does not say.

        `open` may not have been called, and what it would refuse on this machine is no matter.
        """
        return None

    def lengths(self, examples: Sequence[Example]) -> Sequence[tuple[int, Sequence[int]]] | None:
        """Tokens of each example's prompt and of its logged responses, for the same; after `open`. None: unknown."""
        return None

    def reading(self, examples: Sequence[Example], sampled: bool) -> Reading | None:
        """How it reads these prompts, for the same; after `open`. `sampled`: responses of up to `new_tokens` follow."""
        return None

    def refuse(
        self, examples: Sequence[Example], responses: Collection[str] = ("sampled",)
    ) -> Mapping[int, str]:
        """Places of the examples it cannot read, and why; asked once a split, after `open`. They are left out.

        `responses` says which there will be: `sampled` ones, of up to `new_tokens`, and those that are `logged`.
        """
        return {}

    def own_system(self) -> str | None:
        """The system message that it puts before a chat without one; asked after `open`."""
        return None

    def sampling(self, device: torch.device) -> str | None:
        """What samples on a device, and why, in words, for `rlalign check`; asked after `open`."""
        return None

    def setup(self) -> None:
        """Make or load the weights; what `open` does, if that has not been called."""

    # -- cut over several processes -------------------------------------------------------------------

    def parts(self) -> Parts:
        """How its weights are cut, asked just before they are. From then on every pass makes as many rounds of its
        network as any other, and `copy` gives a copy whose weights are yet to come by `sync`."""
        raise RLAlignError(f"the weights of a {type(self).__name__} cannot be cut over several processes")

    def through(self, run: Callable[[], X]) -> X:
        """What `run` computes with this model's network, entered through this model."""
        return run()

    def let_go(self) -> None:
        """Keep nothing of whole weights: they are cut again."""

    @abstractmethod
    def prompts(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """Each example's prompt as this policy reads it."""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> Rollout:
        """The examples' logged responses, sampled neutrally (temperature 1, no bans), log-probs NaN."""

    @abstractmethod
    def text(self, actions_T: Tensor) -> str:
        """A response as text, without the token that ends it."""

    @abstractmethod
    def decoder(self, inputs: Sequence[Tensor], k: int) -> Decoder:
        """Begin k responses to each prompt, with a cache of its own."""

    def sample(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        """Responses from the core's sampling loop over `decoder`; a faster engine replaces this.

        One that gives all responses at once need not take `finished`, which would be told of whole groups early.
        """
        return sampler.sample(self, examples, how, uniforms, within, finished)

    # -- episodes of several turns --------------------------------------------------------------------

    def play(
        self,
        examples: Sequence[Example],
        how: Sampling,
        uniforms: Tensor,
        game: Game,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        """Episodes from the core's sampling loop over `decoder`; `how` is of each turn."""
        return sampler.sample(self, examples, how, uniforms, within, finished, game=game)

    def given(self, say: Prompt, closed: bool) -> Tensor:
        """The tokens between one response and the next: what is said to it, as it reads that.

        `closed`: the response before ended with an end token.
        """
        raise RLAlignError(
            f"a {type(self).__name__} policy plays no episodes of several turns: it has no `given`"
        )

    def words(self, choices: Sequence[str]) -> Sequence[Sequence[int]]:
        """The tokens of each of some responses, without an end."""
        raise RLAlignError(
            f"a {type(self).__name__} policy chooses no answers from a list: it has no `words`"
        )

    def check_turn(self, say: Prompt) -> None:
        """Refuse a kind of message that it could not be told in the middle of an episode; asked after `open`."""

    def check_row(self, example: Example, prompt: int, response: int, remedy: str) -> None:
        """Refuse a row of so many tokens of a prompt and of what follows, if it reads no such; and say the remedy."""

    # -- the network ------------------------------------------------------------------------------------

    @abstractmethod
    def features(self, rollout: Rollout, last: bool = False) -> Tensor:
        """[M,C]: the trunk at the M chosen steps; with `last`, N rows more: after each response."""

    def prompt_states(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """(states [G,S,C] of each group's prompt, mask [G,S]); for values that read prompts."""
        raise RLAlignError(f"a {type(self).__name__} has no states of a prompt's tokens")

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """[m,V]: logits of any of those rows (never of the `last` ones)."""

    def head_matrix(self) -> Tensor | None:
        """[V,C]: the weight whose product with the features is all that `head` does; None if it does more.

        The engine then computes log-probs and gradients in place, and calls no `head`.
        """
        return None

    @abstractmethod
    def copy(self, role: Literal["frozen", "lagging", "value"]) -> Policy | Value:
        """A model in another role, from the present weights; it may share what stays the same."""


class ModelMap(Mapping[str, Model]):
    """The run's models by name."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The model that is aligned."""


class Value(Model):
    """Expected reward to come: of every step, or of the prompt alone."""

    trunk: str | None = None
    """The model whose features it reads, by name; None: it has a trunk of its own."""
    per_prompt: bool = False
    """One value a response, of its prompt, instead of one a step."""
    reads: Literal["steps", "prompts"] = "steps"
    """What it reads of its trunk: the features of steps, or `prompt_states` (then it is `per_prompt`)."""

    def setup(self, policy: Policy) -> None:
        """Make the weights; `policy` tells the width of the trunk."""

    @abstractmethod
    def values(self, rollout: Rollout, features: Any = None, last: bool = False) -> Tensor:
        """[M] (with `last` [M+N]), one per feature row; [N] if `per_prompt`.

        `features` is what it reads of its trunk: a tensor, or (states, mask) of prompts.
        """
