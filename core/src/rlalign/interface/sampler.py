"""What the core asks of a sampler elsewhere: who samples in the policy's place, in another process or library."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rlalign.data.allowed import Allowed
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Options, Sampling
from rlalign.decoding.trace import Trace
from rlalign.errors import RLAlignError
from rlalign.interface.policy import Policy
from rlalign.randomness import Draws


class Response(NamedTuple):
    """One response as a sampler gives it, token by token."""

    tokens: Sequence[int]
    """With the one that ends it."""
    logprobs: Sequence[float]
    """Under the distribution that each was really sampled from."""
    finished: bool
    """Ended by itself rather than cut."""
    allowed: Sequence[Collection[int]] | None = None
    """Where top-k, top-p or min-p removed tokens: those that were left at each step."""


class Sampler:
    """Samples the policy's responses with weights of its own, which it takes from the policy.

    It never decides what is learned: the policy scores again whatever it samples, and those are the log-probs that
    ratios are taken to. `__init__` opens nothing.
    """

    class Config(Options):
        """What every sampler can be told."""

        tolerance: float = Field(
            0.1,
            gt=0,
            description="the run stops where the log-probs of the sampled tokens lie further than this from the "
            "policy's own, in the mean",
        )
        ahead: int = Field(
            0,
            ge=0,
            le=1,
            description="1: the next iteration's prompts are answered while the policy learns from this one's, so that "
            "responses are of weights one iteration old; 0: of the weights of now, and each waits for the other",
        )

    name: str = ""
    """Its name in the pipeline; set by the core."""
    paper: str = ""
    """Where its method was published, for `rlalign plugins NAME`."""
    repeats: str = "what it samples may be other tokens"
    """What a run repeats that is resumed, in words, for `rlalign check` and `lock.json`."""
    concurrent: bool = False
    """Whether `sample` may work in a thread while the policy learns (`ahead`): then it reads none of the policy's
    weights, and moves no global random numbers."""
    alike: bool = False
    """Whether it computes as the policy does, up to rounding: then `ahead` alone is a reason for `train.mismatch`."""
    device: torch.device = torch.device("cpu")
    """The policy's; set by the core before `open`."""
    beside: int = 1
    """How many processes of the run are on this machine, each with a device of its own, the first ones, if there is
    more than one; set by the core before `open`."""
    widths: Sequence[int] = (1,)
    """How many devices each of its processes has, beside the policy's own; what `rlalign check` reckons with."""
    version: int | None = None
    """The version of the policy's weights that it holds, None before it has any; set by the core."""
    before: int | None = None
    """The version that it held before; set by the core."""

    def __init__(self, config: BaseModel) -> None:
        self.config: Any = config

    def lacks(self, how: Sampling) -> Iterator[str]:
        """What it cannot honour of `generation`, each beginning with the option's name; asked before anything is open.

        A constraint (NLPO's) needs a second model at every step: it is refused beside any sampler.
        """
        yield from ()

    def open(self, policy: Policy) -> None:
        """Refuse a policy that it cannot sample; asked after the policy's `open`, before there are weights."""

    @abstractmethod
    def take(self, policy: Policy) -> None:
        """Take the policy's present weights. Called before `sample` wherever its version is another."""

    @abstractmethod
    def sample(self, policy: Policy, examples: Sequence[Example], how: Sampling, seeds: Draws) -> Rollout:
        """`how.samples` responses to each example, group by group, each from its seed (63 bits).

        `seeds` reads as a list of lists of them. `sampled_rollout` makes the rollout. A seed belongs to a place of the
        draw: where equal seeds give equal tokens, however requests are batched, a resumed run repeats its responses.
        """

    def give_up(self) -> None:
        """The run ends, and nobody wants what `sample` is at in another thread, or about to begin: it may raise."""

    def close(self) -> None:
        """The run is over; it may never have begun."""


def sampled_rollout(
    policy: Policy, examples: Sequence[Example], how: Sampling, responses: Sequence[Response]
) -> Rollout:
    """Responses, `how.samples` to each example and group by group, as a rollout.

    Stop strings are looked for again, so that a response ends where the policy's own would.
    """
    inputs = policy.prompts(examples)
    device = inputs[0].device
    steps = max((len(response.tokens) for response in responses), default=0)
    trace = Trace(policy, examples, inputs, how, steps, like_nV=torch.empty(0, 0, device=device))
    ended = [_until_stop(trace, response) for response in responses]
    length_N = torch.tensor([len(response.tokens) for response in ended], device=device)
    finished_N = torch.tensor([response.finished for response in ended], device=device)
    actions_NT = _padded([response.tokens for response in ended], steps, torch.long, device)
    logprobs_NT = _padded([response.logprobs for response in ended], steps, torch.float32, device)
    narrowed = how.narrows or how.min_new_tokens > 0
    full_NT = torch.full_like(logprobs_NT, torch.nan) if narrowed else logprobs_NT
    rows_N = torch.arange(len(ended), device=device)
    trace.put(rows_N, (actions_NT, logprobs_NT, full_NT), length_N, finished_N)
    allowed = None
    if any(response.allowed is not None for response in ended):
        matrix = policy.head_matrix()
        vocabulary = policy.decoder(inputs[:1], 1).logits().shape[1] if matrix is None else len(matrix)
        allowed = _allowed([response.allowed for response in ended], vocabulary)
    return replace(trace.rollout(), allowed=allowed)


def _until_stop(trace: Trace, response: Response) -> Response:
    """A response as far as its text holds no stop string, and the token that completes one."""
    length = trace.stopped(torch.tensor(response.tokens), 0)
    if length is None:
        _require_end(trace, response)
        return response
    allowed = response.allowed and response.allowed[:length]
    return Response(response.tokens[:length], response.logprobs[:length], True, allowed)


def _require_end(trace: Trace, response: Response) -> None:
    """Refuse one that ended by itself at what does not end the policy's own, such as a server's other end token."""
    last, ends = response.tokens[-1], list(trace.policy.ends)
    if trace.how.stop and response.finished and ends and last not in ends:
        raise RLAlignError(
            f"a response of {len(response.tokens)} tokens ended by itself at token {last}, which ends none of the "
            f"policy's ({', '.join(map(str, ends))}) and completes none of the strings in `generation.stop`"
        )


def _padded(rows: Sequence[Sequence[Any]], steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[0] * (steps - len(row))] for row in rows], dtype=dtype, device=device)


def _allowed(rows: Sequence[Sequence[Collection[int]] | None], vocabulary: int) -> Allowed:
    tensors: dict[str, Tensor] = {}
    for i, row in enumerate(rows):
        if row is not None:
            tensors[f"{i}.ids"] = torch.tensor([t for step in row for t in sorted(step)], dtype=torch.int32)
            tensors[f"{i}.ends"] = torch.tensor(list(accumulate(map(len, row))))
    return Allowed.of_tensors(vocabulary, len(rows), tensors)
