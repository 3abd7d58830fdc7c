"""`generation_kwargs`: how responses are sampled, and decoded in evaluation."""

from __future__ import annotations

from typing import Any

from rlalign_authoring.rl4lms.made import Made
from rlalign_authoring.rl4lms.source import Part
from rlalign_authoring.rl4lms.tasks import Task

TOP_K = 50
"""What transformers takes where nothing is said."""
ENDS = {"daily-dialog": ["<EOU>"]}
"""What ends a response, beside the end token."""


class Sampling:
    """What one `generation_kwargs` says, for one section of the pipeline."""

    def __init__(self, made: Made, said: Part, task: Task, section: str, longest: int | None) -> None:
        self.made, self.said, self.task, self.section = made, said, task, section
        self.longest = longest
        """Tokens at which the environment ends an episode; None: nobody says."""

    def note(self, text: str) -> None:
        self.made.note(self.section, text)

    def rollout(self) -> dict[str, Any]:
        """How learning samples."""
        said = self.said
        beams, samples = said.take("num_beams", int, 1), said.take("do_sample", bool, False)
        if beams > 1:
            self.note(
                f"{said.said('num_beams')}: no policy gradient is that of a beam search; here it is sampled."
            )
        elif not samples:
            self.note("Greedy rollouts are all alike, and RL4LMs fails at them; here responses are sampled.")
        found = {**self.lengths(), **self.distribution(samples), **self.ends()}
        said.take("length_penalty", float, 1.0)
        self.others()
        return found

    def decoding(self) -> dict[str, Any]:
        """How evaluation decodes."""
        said = self.said
        beams, samples = said.take("num_beams", int, 1), said.take("do_sample", bool, False)
        penalty = said.take("length_penalty", float, 1.0)
        found: dict[str, Any] = {}
        if beams > 1:
            found = {"beams": beams, **({} if penalty == 1.0 else {"length_penalty": penalty})}
            if samples:
                self.note(
                    f"{said.said('do_sample')} beside {said.said('num_beams')}: here the beam search alone."
                )
            self.made.leave(said, "a beam search samples nothing", "top_k", "top_p", "temperature")
        elif samples:
            found = self.distribution(samples)
        else:
            found = {"greedy": True}
        found = {**found, **self.lengths(), **self.ends()}
        self.others()
        return found

    def lengths(self) -> dict[str, int]:
        """The fewest and the most tokens."""
        said, found = self.said, {}
        least = said.take("min_new_tokens", int, 0)
        least = said.take("min_length", int, least)
        if least:
            found["min_new_tokens"] = least
        most = said.take("max_new_tokens", int, 0)
        if most and self.longest and most > self.longest:
            self.note(
                f"{said.said('max_new_tokens')}: the environment ended an episode at {self.longest} tokens, so that "
                "is the most here."
            )
            most = self.longest
        elif most and self.longest and most < self.longest and self.section == "generation":
            self.note(
                f"{said.said('max_new_tokens')} is less than `max_episode_length: {self.longest}`: what had not ended "
                "by then earned nothing; here it earns what it is worth."
            )
        elif not most and self.longest:
            self.note(
                "`max_new_tokens` is unsaid, so RL4LMs stops at transformers' default length of 20 tokens, and what "
                f"has not ended by then earns nothing; here it is `max_episode_length: {self.longest}`."
            )
            most = self.longest
        if most:
            found["max_new_tokens"] = most
        return found

    def distribution(self, samples: bool) -> dict[str, Any]:
        """What is sampled from."""
        said, found = self.said, {}
        heat, mass = said.take("temperature", float, 1.0), said.take("top_p", float, 1.0)
        if heat != 1.0:
            found["temperature"] = heat
        top = said.take("top_k", int, -1)
        if top < 0 and samples:
            self.note(f"`top_k` is unsaid, which to transformers means {TOP_K}.")
            top = TOP_K
        if top > 0:
            found["top_k"] = top
        if mass != 1.0:
            found["top_p"] = mass
        return found

    def ends(self) -> dict[str, list[str]]:
        stop = ENDS.get(self.task.name)
        if stop and self.section == "generation":
            self.note("Without `stop` RL4LMs' responses go on with the next turn.")
        return {"stop": stop} if stop else {}

    def others(self) -> None:
        """What else transformers' `generate` takes."""
        made, said = self.made, self.said
        made.leave(said, "a task's `postprocess` does such things", "post_processing_fn")
        made.leave(said, "a response and its prompt have limits of their own here", "max_length")
        made.leave(said, "how many responses a prompt has is `generation.samples`", "num_return_sequences")
        made.leave_rest(said, "`generation` has no such key")
