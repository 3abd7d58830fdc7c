"""A rollout over slots: rows wait, come into a slot, are looked at every few steps, and leave it when they have ended.

Uniforms belong to (prompt, sample, step), so whichever slot a row comes into, and when, changes none of its tokens.
Whoever waits comes in where others have left; once nobody waits, those that are left move together, and fewer slots
are computed.

Legend: N responses, G groups, k responses a group, B slots, n of them in use, T steps, m some of them, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlalign import Constraint, Example, Rollout
from rlalign.data.allowed import Allowed
from rlalign.decoding import sampler
from rlalign.decoding.logits import bad_logits
from rlalign.decoding.sampler import Finished
from rlalign.progress import report
from rlalign_plugin_hf.batches import distinct
from rlalign_plugin_hf.engine.graphs import Eager
from rlalign_plugin_hf.engine.prompts import Prompts

if TYPE_CHECKING:
    from rlalign_plugin_hf.model import LanguageModel

LOOKS = 8
"""Steps from one look at who has ended to the next."""
FREE_SHARE = 1 / 8
"""Who waits comes in once this share of the slots is free."""


class Machine:
    """One rollout in progress."""

    def __init__(
        self,
        policy: LanguageModel,
        engine: Eager,
        prompts: Sequence[Prompts],
        buckets: Sequence[int],
        looks: int = LOOKS,
    ) -> None:
        """`prompts` reads them for each model; `buckets` are the numbers of slots that may be in use, ascending."""
        self._policy, self._engine, self._slots, self._prompts = policy, engine, engine.slots, prompts
        self._buckets, self._looks = tuple(buckets), looks

    @torch.no_grad()
    def sample(
        self,
        examples: Sequence[Example],
        inputs: tuple[Tensor, ...],
        uniforms: Tensor,
        within: Constraint | None = None,
        finished: Finished | None = None,
    ) -> Rollout:
        """As `rlalign.decoding.sampler.sample`."""
        self._begin(examples, inputs, uniforms, within)
        told_G = torch.zeros(len(examples), dtype=torch.bool, device=self._trace.length_N.device)
        self._come_in()
        while self._rows:
            self._run()
            self._look()
            if finished is not None and (rows := self._worth_telling(told_G)) is not None:
                finished(self._rollout(rows))
            self._come_in()
            self._move_together()
        sampler._refuse_nan(self._policy, examples, self._how, within, self._trace)
        rollout = self._rollout()
        if finished is not None:
            finished(rollout.take(~told_G[rollout.group_N]) if bool(told_G.any()) else rollout)
        return rollout

    def _begin(
        self,
        examples: Sequence[Example],
        inputs: tuple[Tensor, ...],
        uniforms: Tensor,
        within: Constraint | None,
    ) -> None:
        slots, self._how = self._slots, self._slots.rules.how
        self._examples, self._inputs, self._within, self._k = examples, inputs, within, self._how.samples
        count, steps = len(examples) * self._k, slots.shape.steps
        self._uniform_NT = uniforms[:, : self._k, :steps].reshape(count, steps)
        like = slots.logprob_BT
        self._trace = sampler._Trace(
            actions_NT=torch.zeros(count, steps, dtype=torch.long, device=like.device),
            logprobs_NT=like.new_zeros(count, steps),
            full_logprobs_NT=like.new_zeros(count, steps),
            length_N=torch.zeros(count, dtype=torch.long, device=like.device),
            finished_N=torch.zeros(count, dtype=torch.bool, device=like.device),
            narrowed=None,
            vocabulary=0,
        )
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        """(row, time, what could be chosen from, packed) of steps that were narrowed."""
        distinct_prompts, self._prompt_G = distinct(inputs)
        for reader in self._prompts:
            reader.open(distinct_prompts)
        self._waiting = deque(range(count))
        self._rows: dict[int, int] = {}
        """The row in each slot that has one."""
        self._times: dict[int, int] = {}
        """How far each was at the last look."""
        self._n = next((b for b in self._buckets if b >= count), self._buckets[-1])
        slots.stop(torch.arange(slots.shape.slots, device=like.device))
        slots.tick_.zero_()
        slots.bad_.zero_()

    # -- steps and looks ----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Some steps, until somebody may have ended."""
        left = self._slots.shape.steps - min(self._times.values())
        self._ticks = min(self._looks, left)
        for _ in range(self._ticks):
            self._engine.step(self._n)

    def _look(self) -> None:
        """The one wait for the device: see who has ended, take it down, and free the slots."""
        slots, steps = self._slots, self._slots.shape.steps
        *times, bad = torch.cat([slots.time_B[: self._n], slots.bad_.long()]).tolist()
        if bad:
            raise bad_logits(slots.rules.beside.policy, "a step of a response")
        self._take_down_kept()
        slots.tick_.zero_()
        over = {slot: steps for slot in self._rows if times[slot] == steps}
        stopped = self._stopped(times)
        self._leave(sorted({*over, *stopped}), stopped)
        self._times = {slot: times[slot] for slot in self._rows}
        report(
            "response",
            len(self._trace.length_N) - len(self._waiting) - len(self._rows),
            len(self._trace.length_N),
        )

    def _take_down_kept(self) -> None:
        """What could be chosen from since the last look."""
        slots = self._slots
        if len(slots.kept_tBb) == 0 or not self._rows:
            return
        n, ticks = self._n, self._ticks
        time_tn = slots.kept_time_tB[:ticks, :n].cpu()
        row_n = torch.tensor([self._rows.get(slot, -1) for slot in range(n)])
        mine_tn = (time_tn < slots.shape.steps) & (row_n >= 0)
        kept_tnb = slots.kept_tBb[:ticks, :n].cpu()
        self._kept.append((row_n.expand_as(time_tn)[mine_tn], time_tn[mine_tn], kept_tnb[mine_tn]))

    def _stopped(self, times: Sequence[int]) -> dict[int, int]:
        """The slots whose text holds a stop string by now, and after how many tokens it first did."""
        how, found = self._how, {}
        if not how.stop:
            return {}
        length_B, action_BT = self._slots.length_B.tolist(), self._slots.action_BT.cpu()
        for slot in self._rows:
            for length in range(max(self._times[slot], how.min_new_tokens - 1) + 1, length_B[slot] + 1):
                text = self._policy.text(action_BT[slot, :length])
                if any(stop in text for stop in how.stop):
                    found[slot] = length
                    break
        return found

    def _leave(self, over: list[int], stopped: dict[int, int]) -> None:
        """Take down the rows in these slots; they end where they were stopped, or where they did by themselves."""
        if not over:
            return
        slots, trace = self._slots, self._trace
        slot_m = torch.tensor(over, device=trace.length_N.device)
        row_m = torch.tensor([self._rows.pop(slot) for slot in over], device=slot_m.device)
        length_m, finished_m = slots.length_B[slot_m], slots.finished_B[slot_m]
        if stopped:
            cut_m = torch.tensor([stopped.get(slot, 0) for slot in over], device=slot_m.device)
            length_m = torch.where(cut_m > 0, cut_m, length_m)
            finished_m |= cut_m > 0
        real_mT = torch.arange(slots.shape.steps, device=slot_m.device) < length_m[:, None]
        for held_NT, buffer_BT in (
            (trace.actions_NT, slots.action_BT),
            (trace.logprobs_NT, slots.logprob_BT),
            (trace.full_logprobs_NT, slots.full_logprob_BT),
        ):
            found_mT = buffer_BT[slot_m, :-1]
            held_NT[row_m] = torch.where(real_mT, found_mT, found_mT.new_zeros(()))
        trace.length_N[row_m], trace.finished_N[row_m] = length_m, finished_m
        slots.stop(slot_m)

    # -- coming in, moving together -------------------------------------------------------------------------

    def _come_in(self) -> None:
        """Give free slots to those that wait."""
        free = [slot for slot in range(self._n) if slot not in self._rows]
        if not self._waiting or (self._rows and len(free) < FREE_SHARE * self._n):
            return
        free = free[: len(self._waiting)]
        rows = [self._waiting.popleft() for _ in free]
        prompts = [int(self._prompt_G[row // self._k]) for row in rows]
        still = {int(self._prompt_G[row // self._k]) for row in self._waiting}
        device = self._trace.length_N.device
        slot_m, row_m = torch.tensor(free, device=device), torch.tensor(rows, device=device)
        for reader in self._prompts:
            reader.place(slot_m, prompts, still)
        token_m, column_m = self._prompts[0].starts(prompts)
        self._slots.begin(slot_m, token_m, column_m, self._uniform_NT[row_m])
        self._rows |= dict(zip(free, rows, strict=True))
        self._times |= dict.fromkeys(free, 0)

    def _move_together(self) -> None:
        """Compute fewer slots, once nobody waits."""
        fewer = next((b for b in self._buckets if b >= len(self._rows)), self._n)
        if self._waiting or not self._rows or fewer >= self._n:
            return
        source = [slot for slot in self._rows if slot >= fewer]
        target = [slot for slot in range(fewer) if slot not in self._rows][: len(source)]
        device = self._trace.length_N.device
        if source:
            self._slots.move(torch.tensor(source, device=device), torch.tensor(target, device=device))
        for old, new in zip(source, target, strict=True):
            self._rows[new], self._times[new] = self._rows.pop(old), self._times.pop(old)
        self._n = fewer

    # -- what came of it ------------------------------------------------------------------------------------

    def _worth_telling(self, told_G: Tensor) -> Tensor | None:
        """The rows of whole groups that have ended, once these are worth telling of."""
        going = [*self._waiting, *self._rows.values()]
        if not going:
            return None
        going_n = torch.tensor(going, device=told_G.device)
        return sampler._newly_ended(self._trace, going_n, told_G, self._k)

    def _rollout(self, rows: Tensor | None = None) -> Rollout:
        """All responses, or those in these rows."""
        found = sampler._rollout(self._policy, self._examples, self._inputs, self._how, self._trace, rows)
        if not self._kept:
            return found
        wanted = torch.arange(len(self._trace.length_N)) if rows is None else rows.cpu()
        length_N = torch.zeros_like(self._trace.length_N, device="cpu")
        length_N[wanted] = self._trace.length_N.cpu()[wanted]
        row_M, time_M, kept_Mb = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        mine_M = time_M < length_N[row_M]
        row_M, time_M, kept_Mb = row_M[mine_M], time_M[mine_M], kept_Mb[mine_M]
        kept_Mb = kept_Mb[(row_M * self._slots.shape.steps + time_M).argsort()]
        allowed = Allowed.of(self._slots.vocabulary, kept_Mb.split(length_N[wanted].tolist()))
        return replace(found, allowed=allowed) if any(row is not None for row in allowed.rows) else found
