"""A rollout over slots: rows wait, come into a slot, are looked at every few steps, and leave it when they have ended.

Uniforms belong to (prompt, sample, step), so whichever slot a row comes into, and when, changes none of its tokens.
Whoever waits comes in where others have left; once nobody waits, those that are left move together, and fewer slots
are computed.

Legend: N responses, G groups, k responses a group, B slots, n of them in use, T steps, m some of them, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlalign import Constraint, Example, Rollout
from rlalign.decoding.logits import bad_logits
from rlalign.decoding.sampler import Teller, refuse_nan
from rlalign.decoding.trace import Trace
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
        teller: Teller | None = None,
    ) -> Rollout:
        """`how.samples` responses to each example, from `uniforms` [examples, samples, steps]."""
        self._begin(examples, inputs, uniforms)
        self._come_in()
        while self._rows:
            self._run()
            self._look()
            if teller is not None and self._rows:
                teller.tell(self._trace)
            self._come_in()
            self._move_together()
        rollout = self._trace.rollout()
        refuse_nan(self._policy, within, rollout)
        if teller is not None:
            teller.tell_rest(rollout)
        return rollout

    def _begin(self, examples: Sequence[Example], inputs: tuple[Tensor, ...], uniforms: Tensor) -> None:
        slots, how = self._slots, self._slots.rules.how
        self._k = how.samples
        count, steps = len(examples) * self._k, slots.shape.steps
        self._uniform_NT = uniforms[:, : self._k, :steps].reshape(count, steps)
        like_nV = slots.logprob_BT.new_empty(0, slots.vocabulary)
        self._trace = Trace(self._policy, examples, inputs, how, steps, like_nV=like_nV)
        prompts, which_G = distinct(inputs)
        self._prompt_N = which_G.repeat_interleave(self._k).tolist()
        for reader in self._prompts:
            reader.open(prompts)
        self._waiting = deque(range(count))
        self._rows: dict[int, int] = {}
        """The row in each slot that has one."""
        self._times: dict[int, int] = {}
        """How far each was at the last look."""
        self._n = next((b for b in self._buckets if b >= count), self._buckets[-1])
        slots.stop(torch.arange(slots.shape.slots, device=uniforms.device))
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
        self._trace.narrow(row_n.expand_as(time_tn)[mine_tn], time_tn[mine_tn], kept_tnb[mine_tn])

    def _stopped(self, times: Sequence[int]) -> dict[int, int]:
        """The slots whose text holds a stop string by now, and after how many tokens it first did."""
        if not self._slots.rules.how.stop:
            return {}
        found: dict[int, int] = {}
        length_B, action_BT = self._slots.length_B.tolist(), self._slots.action_BT.cpu()
        for slot in self._rows:
            at = self._trace.stopped(action_BT[slot, : length_B[slot]], self._times[slot])
            if at is not None:
                found[slot] = at
        return found

    def _leave(self, over: list[int], stopped: dict[int, int]) -> None:
        """Take down the rows in these slots; they end where they were stopped, or where they did by themselves."""
        if not over:
            return
        slots = self._slots
        slot_m = torch.tensor(over, device=slots.token_B.device)
        row_m = torch.tensor([self._rows.pop(slot) for slot in over], device=slot_m.device)
        length_m, finished_m = slots.length_B[slot_m], slots.finished_B[slot_m]
        if stopped:
            cut_m = torch.tensor([stopped.get(slot, 0) for slot in over], device=slot_m.device)
            length_m = torch.where(cut_m > 0, cut_m, length_m)
            finished_m |= cut_m > 0
        buffers = slots.action_BT, slots.logprob_BT, slots.full_logprob_BT
        self._trace.put(row_m, tuple(buffer[slot_m, :-1] for buffer in buffers), length_m, finished_m)
        slots.stop(slot_m)

    # -- coming in, moving together -------------------------------------------------------------------------

    def _come_in(self) -> None:
        """Give free slots to those that wait."""
        free = [slot for slot in range(self._n) if slot not in self._rows]
        if not self._waiting or (self._rows and len(free) < FREE_SHARE * self._n):
            return
        free = free[: len(self._waiting)]
        rows = [self._waiting.popleft() for _ in free]
        prompts = [self._prompt_N[row] for row in rows]
        still = {self._prompt_N[row] for row in self._waiting}
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
