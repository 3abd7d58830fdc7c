"""LINVIT: optimistic value iteration from counts, kept near what a language model would do.

Legend: H turns, S states, A actions; M actions taken, n rows being sampled, X = S × H rows of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel, Field, computed_field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from rlalign import (
    Batch,
    Component,
    ComponentError,
    Learner,
    Options,
    Rollout,
    Run,
    hookimpl,
)
from rlalign.data.limits import require_memory
from rlalign_plugin_function_reward.source import FunctionPath, digests, named
from rlalign_plugin_linvit.planning import Plan, count_bonus, plan
from rlalign_plugin_table import TURNS as OBSERVATION_AND_TURN
from rlalign_plugin_table import Table

NEVER = -1e9
"""The logit of an action that is not to be chosen, and can be if it is the only one."""


class LINVIT(Component):
    """KL-regularised optimistic value iteration: plans from counted transitions, near a prior, and writes the table."""

    equation = "π_h ∝ p exp(Q_h/λ), V_h = λ log Σ_a p(a|s) exp(Q_h/λ), Q_h = r_h + P_h V_{h+1} and a bonus"

    paper = "Shenao Zhang et al., How can LLM guide RL? A value-based approach, 2024"

    class Config(Options):
        """Options of `linvit`."""

        epsilon: float = Field(
            0.1, gt=0, description="ε: the phase ends where V̄ − V̲ of the starts is no larger in the mean"
        )
        lam: float | None = Field(
            None,
            ge=0,
            description="λ: the price of each nat of KL from the prior, which costs up to λ · KL(best ‖ prior) of the "
            "reward; null: ε / (2 · `kl`), so that this is no more than ε / 2; 0: plain optimism",
        )
        kl: float | None = Field(
            None,
            gt=0,
            description="how many nats the best policy may lie from the prior in a whole episode, for that rule: few "
            "where the prior is trusted; null: as many as from a uniform one, turns · log(actions)",
        )
        c: float = Field(0.5, ge=0, description="factor of the bonus")
        bonus: FunctionPath | None = Field(
            None,
            description="a function of (visits [H,S,A], c) in place of c (H − h) / √visits: `my_bonus.py:bonus`, or "
            "`package.module:bonus`",
        )
        reward: tuple[float, float] = Field(
            (0.0, 1.0),
            description="the least and the largest reward of a turn; bounds and bonus follow from them",
        )
        floor: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="share of a uniform distribution in the prior; above 0 no action is impossible",
        )

        @model_validator(mode="after")
        def _is_a_range(self) -> LINVIT.Config:
            if not self.reward[0] < self.reward[1]:
                raise ValueError(f"reward: {self.reward[0]:g} is not less than {self.reward[1]:g}")
            return self

        @computed_field(description="a hash of the code of the functions it names")  # type: ignore[prop-decorator]
        @cached_property
        def digest(self) -> str:
            return digests([self.bonus])

    config: Config
    models = {"prior": "frozen"}
    trains = ("policy",)
    responses = "sampled"
    defaults = {"train": {"prompts": 1}}

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self.constraint = OneTry(self)
        self._counted: dict[str, Tensor] = {}
        self._plan: Plan | None = None

    @hookimpl
    def phase_started(self, run: Run) -> None:
        self._require(run)
        self._run, self._plan = run, None  # another phase may play in another world
        turns, states, actions = self.shape
        require_memory(
            f"`{self.name}`: counts of {turns:,} turns × {states:,} × {states + 1:,} states × {actions:,} actions",
            *(turns, states, actions, states + 1, 4),
            remedy="lower the table's `turns`, or the number of its `prompts`",
        )
        self._counted = {
            "transitions": torch.zeros(turns, states, actions, states + 1, dtype=torch.int32),
            "rewards": torch.zeros(turns, states, actions, dtype=torch.float64),
            "starts": torch.zeros(states, dtype=torch.int64),
            # Which actions there are: known of a state once somebody stood there and chose freely.
            "there": torch.zeros(turns, states, actions, dtype=torch.bool),
        }

    def _require(self, run: Run) -> None:
        """Refuse what cannot be planned for."""
        policy, prior, how = run.models.policy, run.models["prior"], run.generation
        if not isinstance(policy, Table) or policy.config.state != OBSERVATION_AND_TURN:
            raise ComponentError(
                f"`{self.name}` plans for each observation and turn: it needs `policy: {{table: {{state: [observation, "
                "turn], turns: …}}`"
            )
        if (
            not isinstance(prior, Table)
            or (prior.names, prior.states, prior.config.prompts)
            != (policy.names, policy.states, policy.config.prompts)
        ):  # fmt: skip
            raise ComponentError(
                f"`{self.name}`: the model `prior` must be a table of the policy's actions, prompts and turns"
            )
        if how.narrows or how.temperature != 1:
            raise ComponentError(
                f"`{self.name}` samples from the policy that it plans: leave out `generation.temperature`, `top_k`, "
                "`top_p` and `min_p`"
            )
        if policy.horizon != 1:
            raise ComponentError(f"`{self.name}` plans over single actions: the table's `steps` must be 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, S, A)."""
        turns = self.table.config.turns
        return turns, self.table.states // turns, len(self.table.names)

    @property
    def table(self) -> Table:
        """The policy."""
        policy = self._run.models.policy
        assert isinstance(policy, Table)
        return policy

    # -- counting ---------------------------------------------------------------------------------------

    @hookimpl
    def update(self, run: Run, batch: Batch, learner: Learner) -> Mapping[str, float]:
        self._count(batch.rollout, batch.reward.tokens_NT)
        self._plan = None
        found, c = self.plan(), self.config
        weights, log_pi_SHA = learner.parameters(), found.log_pi_HSA.clamp_min(NEVER).transpose(0, 1)
        if len(weights) != log_pi_SHA.numel():
            raise ComponentError(f"`{self.name}` writes the whole policy; nothing else can train beside it")
        learner.assign(log_pi_SHA.reshape(-1).to(weights))
        start_S = self._counted["starts"].double()
        upper, lower = (float(v_hS[0] @ start_S / start_S.sum()) for v_hS in (found.upper_hS, found.lower_hS))
        if upper - lower <= c.epsilon:
            run.finish_phase(f"V̄ − V̲ is {upper - lower:.3g} at the start")
        tried = float((self._counted["transitions"].sum(3) > 0).double().mean())
        metrics = {"upper": upper, "lower": lower, "width": upper - lower, "tried": tried}
        return {f"{self.name}/{metric}": value for metric, value in metrics.items()}

    def _count(self, rollout: Rollout, reward_NT: Tensor) -> None:
        """Each transition but the last of an episode that was cut, of which nobody knows where it led."""
        turns, states, actions = self.shape
        row_M, step_M = rollout.chosen
        state_M = self.table.states_of(rollout).cpu()
        s_M, h_M = state_M // turns, state_M % turns
        a_M = rollout.actions_NT[row_M, step_M].cpu()
        r_M = reward_NT[row_M, step_M].double().cpu()
        self._check_rewards(r_M)
        row_M = row_M.cpu()
        last_M = torch.cat([row_M[1:] != row_M[:-1], torch.ones(1, dtype=torch.bool)])
        to_M = torch.cat([s_M[1:], s_M[:1]]).masked_fill(last_M, states)
        known_M = ~last_M | rollout.finished_N.cpu()[row_M]
        places = tuple(x[known_M] for x in (h_M, s_M, a_M))
        ones_m = torch.ones(int(known_M.sum()), dtype=torch.int32)
        self._counted["transitions"].index_put_((*places, to_M[known_M]), ones_m, accumulate=True)
        self._counted["rewards"].index_put_(places, r_M[known_M], accumulate=True)
        first_M = torch.cat([torch.ones(1, dtype=torch.bool), last_M[:-1]])
        self._counted["starts"] += torch.bincount(s_M[first_M], minlength=states)
        free_M = h_M != self.turn_tried()
        may_MA = torch.ones(len(h_M), actions, dtype=torch.bool)
        if rollout.allowed is not None:
            may_MA = rollout.allowed.mask(*rollout.chosen).cpu()
        for h, s, may_A in zip(h_M[free_M].tolist(), s_M[free_M].tolist(), may_MA[free_M], strict=True):
            self._counted["there"][h, s] |= may_A
        self._refuse_zeros()

    def _check_rewards(self, r_M: Tensor) -> None:
        low, high = self.config.reward
        wrong = r_M[(r_M < low - 1e-6) | (r_M > high + 1e-6)]
        if len(wrong):
            raise ComponentError(
                f"`{self.name}`: a turn earned {float(wrong[0]):g}, and `reward` says one earns {low:g} to {high:g}"
            )

    # -- the prior --------------------------------------------------------------------------------------

    def prior(self) -> Tensor:
        """[H,S,A]: of the actions that are there, as far as that is known."""
        there_HSA = self._counted["there"]
        unknown_HS1 = ~there_HSA.any(2, keepdim=True)
        prior_HSA = self._said().masked_fill(~(there_HSA | unknown_HS1), 0.0)
        return prior_HSA / prior_HSA.sum(2, keepdim=True)

    def _said(self) -> Tensor:
        """[H,S,A]: as the model `prior` says it."""
        prior, (turns, states, actions) = self._run.models["prior"], self.shape
        assert isinstance(prior, Table)
        p_XA = prior.table.detach().double().cpu().softmax(1)
        p_XA = (1 - self.config.floor) * p_XA + self.config.floor / actions
        return p_XA.view(states, turns, actions).transpose(0, 1)

    def _refuse_zeros(self) -> None:
        wrong = (self._counted["there"] & (self._said() == 0)).nonzero()
        if not len(wrong):
            return
        _, s, a = wrong[0].tolist()
        prompts = self.table.config.prompts
        where = repr(prompts[s]) if prompts else "every state"
        raise ComponentError(
            f"`{self.name}`: the prior of `{self.table.names[a]}` at {where} is 0, so that it is never tried, and it "
            "is possible there; say `floor: 0.01`, or give the prior other scores"
        )

    # -- planning -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The plan from what was counted up to now."""
        if self._plan is None:
            counts = self._counted["transitions"]
            bonus_HSA = self._bonus(counts.sum(3), self.config.c)
            self._plan = plan(
                counts, self._counted["rewards"], self.prior(), self.lam, bonus_HSA, self.config.reward
            )
        return self._plan

    @cached_property
    def _bonus(self) -> Callable[[Tensor, float], Tensor]:
        if self.config.bonus is None:
            return count_bonus
        found: Callable[[Tensor, float], Tensor] = named(self.config.bonus)
        return found

    @property
    def lam(self) -> float:
        """λ, by the rule where it is not said."""
        c, (turns, _, actions) = self.config, self.shape
        if c.lam is not None:
            return c.lam
        return c.epsilon / (2 * (c.kl or turns * math.log(actions)))

    def turn_tried(self) -> int:
        """The turn of this iteration's episodes at which the widest action is tried; H: none."""
        run = self._run
        return int(torch.randint(self.shape[0] + 1, (1,), generator=run.rng(self.name, "try", run.iteration)))

    def width(self) -> Tensor:
        """[X,A], as the table stands: Q̄ − Q̲."""
        return self.plan().width(self.prior()).transpose(0, 1).flatten(0, 1)

    # -- state ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return dict(self._counted)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counted, self._plan = dict(state), None


class OneTry:
    """A constraint: at one turn of the episode nothing but the action of which least is known."""

    def __init__(self, owner: LINVIT) -> None:
        self.owner = owner

    def start(self, inputs: Sequence[Tensor], k: int) -> None:
        self.decoder = self.owner.table.decoder(inputs, k)
        self.turn, self.width_XA = self.owner.turn_tried(), self.owner.width()

    def allowed(self) -> Tensor:
        state_n = self.decoder.states()
        tries_n = state_n % self.owner.shape[0] == self.turn
        return ~tries_n[:, None] | self._widest(self.width_XA[state_n.cpu()]).to(state_n.device)

    def instead(self, banned_nV: Tensor) -> Tensor:
        """Of those that the environment lets through."""
        width_nA = self.width_XA[self.decoder.states().cpu()].masked_fill(banned_nV.cpu(), -math.inf)
        return self._widest(width_nA).to(banned_nV.device)

    @staticmethod
    def _widest(width_nA: Tensor) -> Tensor:
        return one_hot(width_nA.argmax(1), width_nA.shape[1]).bool()

    def advance(self, tokens_n: Tensor) -> None:
        self.decoder.advance(tokens_n)

    def select(self, rows: Tensor) -> None:
        self.decoder.select(rows)
