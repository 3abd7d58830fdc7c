"""What is sampled, step by step, until it is a rollout.

Steps are put down as they come. Where responses ended is looked up every few of them, so that no step waits for the
device; what was sampled behind an end is left out when a rollout is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlalign.data.allowed import Allowed, pack
from rlalign.data.example import Example
from rlalign.data.rollout import Rollout
from rlalign.data.settings import Sampling
from rlalign.decoding.choosing import Chosen
from rlalign.decoding.interfaces import Decodable
from rlalign.decoding.stopping import Stops


class Trace:
    """The responses in progress: all N of them, of which n are being computed."""

    notes_bans = False
    """Whether it puts down what is banned too, which settings tell of where a response is one turn."""

    def __init__(
        self,
        policy: Decodable,
        examples: Sequence[Example],
        inputs: Sequence[Tensor],
        how: Sampling,
        steps: int,
        *,
        like_nV: Tensor,
    ) -> None:
        self.policy, self.examples, self.inputs, self.how = policy, examples, inputs, how
        count, device = len(examples) * how.samples, like_nV.device
        self.vocabulary = like_nV.shape[1]
        self.actions_NT = torch.zeros(count, steps, dtype=torch.long, device=device)
        self.logprobs_NT = like_nV.new_zeros(count, steps)
        self.full_logprobs_NT = like_nV.new_zeros(count, steps)
        self.length_N = torch.zeros(count, dtype=torch.long, device=device)
        self.finished_N = torch.zeros(count, dtype=torch.bool, device=device)
        self.rows_n = torch.arange(count, device=device)
        """Which responses are being computed; some of them have ended."""
        self.alive_n = torch.ones(count, dtype=torch.bool, device=device)
        self._going = count
        self.ends = torch.tensor(policy.ends, dtype=torch.long, device=device)
        self._no_ends_nV = torch.ones(0, self.vocabulary, dtype=torch.bool, device=device)
        self._stops = Stops(how.stop, policy.text, how.min_new_tokens)
        self._new: list[Chosen] = []
        """The steps that are not written yet."""
        self._written = self._seen = 0
        self._narrowed: list[Tensor] = []
        """Of each step, packed [n,B]: what each row computed could choose from."""
        self._spans = [(0, self.rows_n)]
        """From which step which rows were computed."""
        self._scattered: list[tuple[Tensor, Tensor, Tensor]] = []
        """The same of single steps of single rows: (row, step, packed)."""
        self._texts: dict[int, str] = {}
        """Of responses that have ended."""

    # -- while sampling -------------------------------------------------------------------------------

    def may(self, step: int, like_nV: Tensor) -> Tensor | None:
        """[n,V] bool: what is not banned at this step, not to be written to; None: nothing is."""
        if step >= self.how.min_new_tokens or not len(self.ends):
            return None
        if len(self._no_ends_nV) != len(self.rows_n):
            self._no_ends_nV = self._no_ends_nV.new_ones(len(self.rows_n), self.vocabulary)
            self._no_ends_nV[:, self.ends] = False
        return self._no_ends_nV

    def add(self, chosen: Chosen, kept_nV: Tensor | None) -> Tensor:
        """Put a step down; returns the tokens that rows go on with."""
        self._new.append(chosen)
        if kept_nV is not None:
            self._narrowed.append(pack(kept_nV))
        return chosen.token_n

    def look(self) -> int:
        """Find out which responses have ended since the last look; returns how many go on."""
        start, self._seen = self._seen, self._written + len(self._new)
        for step in range(start, len(self._narrowed)):
            self._narrowed[step] = self._narrowed[step].cpu()
        token_sn = torch.stack([step.token_n for step in self._new[start - self._written :]])
        ended_sn = (token_sn[..., None] == self.ends).any(-1)  # `torch.isin` would take ten times as long
        if bool(ended_sn.any()) or self.how.stop:
            self._end(start, ended_sn)
        return self._going

    def _end(self, start: int, ended_sn: Tensor) -> None:
        """End what met an end in the steps since `start`, or a stop string before that."""
        end_n = torch.where(ended_sn.any(0), start + 1 + ended_sn.byte().argmax(0), 0)
        if self.how.stop:
            self._stop(start, end_n)
        ended_n = self.alive_n & (end_n > 0)
        rows_m = self.rows_n[ended_n]
        self.length_N[rows_m] = end_n[ended_n]
        self.finished_N[rows_m] = True
        self.alive_n = self.alive_n & ~ended_n
        self._going -= len(rows_m)
        self._settle(rows_m)

    def _stop(self, start: int, end_n: Tensor) -> None:
        """Ends by a stop string, where they come before those by a token."""
        self.write()
        places = self.alive_n.nonzero()[:, 0]
        actions_mT = self.actions_NT[self.rows_n[places], : self._seen].cpu()
        ends = [
            self._stops.length(actions_T[: end or None], start) or end
            for actions_T, end in zip(actions_mT, end_n[places].tolist(), strict=True)
        ]
        end_n[places] = torch.tensor(ends, dtype=end_n.dtype, device=end_n.device)

    def _settle(self, rows_m: Tensor) -> None:
        """Make the texts of responses that have ended, and see that they did not end too late."""
        if not self.how.stop:
            return
        for row in rows_m.tolist():
            actions_T = self.actions_NT[row, : int(self.length_N[row])]
            text = self.policy.text(actions_T)
            if (earlier := self._stops.earlier(actions_T, text)) is not None:
                self.length_N[row], self.finished_N[row] = earlier, True
                text = self.policy.text(actions_T[:earlier])
            self._texts[row] = self._stops.cut(text)

    def keep(self, places: Tensor) -> None:
        """Go on with these of the rows being computed."""
        self.write()
        self.rows_n, self.alive_n = self.rows_n[places], self.alive_n[places]
        self._spans.append((self._written, self.rows_n))

    def write(self) -> None:
        """Move the steps put down to their columns."""
        if self._new:
            columns = slice(self._written, self._written + len(self._new))
            token_sn, logp_sn, full_sn = (torch.stack(part) for part in zip(*self._new, strict=True))
            self.actions_NT[self.rows_n, columns] = token_sn.T
            self.logprobs_NT[self.rows_n, columns] = logp_sn.T
            self.full_logprobs_NT[self.rows_n, columns] = full_sn.T
            self._written += len(self._new)
            self._new = []

    def close(self) -> None:
        """Nothing comes any more: what has not ended is cut."""
        self.write()
        cut_m = self.rows_n[self.alive_n]
        self.length_N[cut_m] = self._written
        self._settle(cut_m)

    # -- whole responses, from who does not sample all of them step by step ----------------------------

    def stopped(self, actions_T: Tensor, seen: int) -> int | None:
        """The length past `seen` at which the text of these tokens first holds a stop string."""
        return self._stops.length(actions_T, seen) if self.how.stop else None

    def narrow(self, rows_m: Tensor, step_m: Tensor, bits_mB: Tensor) -> None:
        """Put down what some responses could choose from, packed, at a step of each; all on the CPU."""
        self._scattered.append((rows_m, step_m, bits_mB))

    def put(
        self, rows_m: Tensor, chosen_mT: tuple[Tensor, ...], length_m: Tensor, finished_m: Tensor
    ) -> None:
        """Put down responses that have ended: tokens, log-probs and full log-probs [m,T], whatever stands behind."""
        for held_NT, found_mT in zip(
            (self.actions_NT, self.logprobs_NT, self.full_logprobs_NT), chosen_mT, strict=True
        ):
            held_NT[rows_m] = found_mT
        self.length_N[rows_m], self.finished_N[rows_m] = length_m, finished_m
        self.alive_n[rows_m] = False
        self._settle(rows_m)

    # -- rollouts ---------------------------------------------------------------------------------------

    def going(self) -> Tensor:
        """[G]: how many responses of each group go on."""
        going_n = self.rows_n[self.alive_n]
        return torch.bincount(going_n // self.how.samples, minlength=len(self.examples))

    def rollout(self, groups: Tensor | None = None) -> Rollout:
        """All responses, or those of these groups; all of them have ended."""
        self.write()
        k, device = self.how.samples, self.actions_NT.device
        which = list(range(len(self.examples))) if groups is None else groups.tolist()
        rows = self.rows_of(groups)
        length_N = self.length_N[rows]
        longest = int(length_N.max())
        mask_NT = torch.arange(longest, device=device) < length_N[:, None]

        def kept(x_NT: Tensor) -> Tensor:
            return torch.where(mask_NT, x_NT[rows, :longest], 0)

        return Rollout(
            examples=tuple(self.examples[g] for g in which),
            inputs=tuple(self.inputs[g] for g in which),
            group_N=torch.arange(len(which), device=device).repeat_interleave(k),
            actions_NT=kept(self.actions_NT),
            mask_NT=mask_NT,
            finished_N=self.finished_N[rows],
            settings=(neutral_if_greedy(self.how),),
            setting_N=torch.zeros_like(length_N),
            logprobs_NT=kept(self.logprobs_NT),
            full_logprobs_NT=kept(self.full_logprobs_NT),
            texts=tuple(self._text(row) for row in rows.tolist()),
            allowed=self._allowed(rows.cpu()),
        )

    def rows_of(self, groups: Tensor | None) -> Tensor:
        """The responses of these groups, or all."""
        k, device = self.how.samples, self.actions_NT.device
        which_G = torch.arange(len(self.examples), device=device) if groups is None else groups
        return (which_G[:, None] * k + torch.arange(k, device=device)).flatten()

    def _text(self, row: int) -> str:
        if row not in self._texts:
            self._texts[row] = self.policy.text(self.actions_NT[row, : int(self.length_N[row])])
        return self._texts[row]

    def _allowed(self, rows: Tensor) -> Allowed | None:
        """What was narrowed, response by response; None if nothing was."""
        if not self._narrowed and not self._scattered:
            return None
        length_N = torch.zeros_like(self.length_N, device="cpu")
        length_N[rows] = self.length_N.cpu()[rows]
        start_N = length_N.cumsum(0) - length_N
        like_nB = self._narrowed[0] if self._narrowed else self._scattered[0][2]
        bits_MB = like_nB.new_empty(int(length_N.sum()), like_nB.shape[1])
        for rows_m, step_m, bits_mB in self._scattered:
            real_m = step_m < length_N[rows_m]
            bits_MB[start_N[rows_m[real_m]] + step_m[real_m]] = bits_mB[real_m]
        lasts = [first for first, _ in self._spans[1:]] + [len(self._narrowed)]
        for (first, rows_n), last in zip(self._spans if self._narrowed else (), lasts, strict=False):
            rows_n = rows_n.cpu()
            for step in range(first, last):
                real_n = step < length_N[rows_n]
                bits_MB[start_N[rows_n[real_n]] + step] = self._narrowed[step][real_n]
        allowed = Allowed.of(self.vocabulary, bits_MB.split(length_N[rows].tolist()))
        return allowed if any(row is not None for row in allowed.rows) else None


def neutral_if_greedy(how: Sampling) -> Sampling:
    """Greedy responses carry log-probs at temperature 1."""
    return how.model_copy(update={"temperature": 1.0}) if how.greedy else how
