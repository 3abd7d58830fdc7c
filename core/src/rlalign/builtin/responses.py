"""Where responses come from: `sampled`, `logged`, or a `mix` of both in one group; what environments pay for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import EPISODE, SUMS, TO_GO, TRANSCRIPT, TURN, Rollout, concat
from rlalign.data.settings import Options
from rlalign.data.turn import Transcript
from rlalign.errors import ComponentError, ConfigError
from rlalign.interface.component import Component
from rlalign.interface.hooks import hookimpl
from rlalign.interface.run import Run


class Source(Protocol):
    """What `mix` can draw on: `count` responses to each example, or None for as many as there are.

    One that remembers may have fewer, or none: it says `sure = False`.
    """

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout: ...


class Sampled(Component):
    """Responses of the policy as it is now."""

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout:
        return run.sample(examples, count)

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        return self.respond(run, examples, None)


class Logged(Component):
    """The examples' logged responses; as a reward, the scores stored with them."""

    def respond(self, run: Run, examples: Sequence[Example], count: int | None) -> Rollout:
        for example in examples:
            if len(example.responses) < (count or 1):
                raise ComponentError(
                    f"example `{example.id}` has {len(example.responses)} logged responses, {count or 1} are needed"
                )
        rollout = run.logged(examples)
        return rollout if count is None else rollout.take(self._some(run, rollout, count))

    def _some(self, run: Run, rollout: Rollout, count: int) -> Tensor:
        """`count` rows of every group, at random."""
        rows = []
        for g in range(len(rollout.examples)):
            group = (rollout.group_N == g).nonzero()[:, 0]
            order = torch.randperm(len(group), generator=run.rng("logged", run.iteration, run.position + g))
            rows.append(group[order[:count].to(group.device)])
        return torch.cat(rows).sort().values

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        return self.respond(run, examples, None)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        score_N = rollout.columns.get("score")
        if score_N is None:
            raise ComponentError(
                "`logged` is the reward of logged responses; these were sampled and have no score"
            )
        unscored = score_N.isnan().nonzero()[:, 0].tolist()
        if unscored:
            example = rollout.examples[int(rollout.group_N[unscored[0]])]
            raise ComponentError(f"example `{example.id}` has responses without a stored score; add a reward")
        return Score(score_N)


class Played(Component):
    """What the environment paid, each turn's reward at the end of the response it answers."""

    by_one = True  # what one turn alone tells of is 0 of all others

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        paid_NT = rollout.columns.get("played")
        if paid_NT is None:
            raise ComponentError(
                "`played` is what an environment pays, and these responses were not sampled in one; it goes with a "
                "task that is an environment"
            )
        rewritten = EPISODE in rollout.columns
        # Of rows that are turns the first says what its episode came to: they may be scored apart from each other.
        summed = rollout.columns[SUMS] if rewritten else [_sums(row) for row in rollout.columns[TRANSCRIPT]]
        names = dict.fromkeys(name for each in summed for name in each)
        metrics = {name: paid_NT.new_tensor([each.get(name, 0.0) for each in summed]) for name in names}
        metrics = {"turns": rollout.columns["turns"].to(paid_NT), **metrics}
        if rewritten:
            first_N = rollout.columns[TURN][:, 0] == 0
            metrics = {"return": rollout.columns[TO_GO], **metrics}
            metrics = {name: x_N.where(first_N, torch.nan) for name, x_N in metrics.items()}
        return Score(paid_NT, metrics=metrics)


def _sums(transcript: Transcript) -> dict[str, float]:
    """Of each metric of the turns."""
    found: dict[str, float] = {}
    for _, turn in transcript:
        for name, x in turn.metrics.items():
            found[name] = found.get(name, 0.0) + x
    return found


class ToGo(Component):
    """What the environment paid from each turn on, where it rewrites history and a response is one turn."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if TO_GO not in rollout.columns:
            raise ComponentError(
                "`togo` is what came from a turn on, of responses that are single turns; it goes with an environment "
                "that rewrites history, and `played` with others"
            )
        return Score(rollout.columns[TO_GO])


class Mix(Component):
    """All of an example's responses, from several sources, as one group; `columns["source"]` names them."""

    class Config(Options):
        """Responses a prompt, by source; with options of the source as `{samples: 2, …}`."""

        model_config = ConfigDict(extra="allow")
        __pydantic_extra__: dict[str, Any] = Field(init=False)

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        said = config.__pydantic_extra__ or {}
        if not said:
            raise ConfigError("name at least one source, for example `mix: {logged: 1, sampled: 3}`")
        self.sources, self.source_options = {}, {}
        for name, one in said.items():
            count, options = (one.get("samples"), one) if isinstance(one, dict) else (one, {})
            if type(count) is not int or count < 1:
                raise ConfigError(
                    f"{name}: expected a positive number of responses per prompt, got {one!r}; with options: "
                    f"`{name}: {{samples: 2, …}}`"
                )
            self.sources[name] = count
            self.source_options[name] = {key: value for key, value in options.items() if key != "samples"}

    def fewest(self, samples: int) -> int:
        sure = {name for name, one in self.source_components.items() if one.sure}
        return sum(count for name, count in self.sources.items() if name in sure)

    @hookimpl
    def rollout(self, run: Run, examples: Sequence[Example]) -> Rollout:
        answered = []
        for name, count in self.sources.items():
            source = cast(Source, self.source_components[name])
            part = source.respond(run, examples, count)
            answered.append(part.with_columns(source=(name,) * len(part)))
        return concat(answered, same_examples=True, fill=True)
