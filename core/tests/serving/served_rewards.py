"""A reward that does what the response says. It stands in a file of its own, which other processes import."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from rlalign import Component, ComponentError, Options, Rollout, Run, Score, hookimpl


class Misbehaves(Component):
    """The length of a response, unless the first one says otherwise."""

    class Config(Options):
        """Options."""

        once: Path | None = Field(None, description="misbehave only while this file is not there")
        always: str | None = Field(None, description="how it misbehaves, whatever the responses say")
        calls: Path | None = Field(None, description="a file that gets a dot each time")

    def setup(self, run: Run) -> None:
        torch.rand(1)
        self.was_set_up = True

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        assert self.was_set_up
        if calls := getattr(self.config, "calls", None):
            with calls.open("a") as file:
                file.write(".")
        once = getattr(self.config, "once", None)
        if once is None or not once.exists():
            if once is not None:
                once.write_text("did")
            what = getattr(self.config, "always", None) or rollout.texts[0]
            if (found := self.does(rollout, what)) is not None:
                return found
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))

    def does(self, rollout: Rollout, what: str) -> Score | None:
        count = len(rollout)
        if what == "raises":
            raise ValueError("no such word")
        if what == "raises ours":
            raise ComponentError("says that something is amiss")
        if what == "sys.exit":
            sys.exit(3)
        if what == "hangs":
            time.sleep(1000)
        if what == "hangs in C":
            print("hangs in C", flush=True)
            ctypes.PyDLL(None).sleep(1000)  # with Python's lock held
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exits":
            print("about to leave")
            os._exit(7)
        if what == "segfaults":
            ctypes.string_at(0)
        if what == "too few":
            return Score(torch.zeros(count + 1))
        if what == "a list":
            return [0.0] * count  # type: ignore[return-value]
        if what == "nothing":
            return Score(None)  # type: ignore[arg-type]
        if what == "complex":
            return Score(torch.zeros(count, dtype=torch.complex64))
        if what == "nan":
            return Score(torch.full((count,), torch.nan))
        if what == "infinite":
            return Score(torch.full((count,), -torch.inf, dtype=torch.float64))
        if what == "prints":
            for _ in range(4):
                sys.stdout.write("x" * 2**20)
                os.write(2, b"y\n" * 2**19)
        if what == "settings":
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(1 + torch.get_num_threads())
            os.chdir("/")
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
        if what == "mutates":
            rollout.actions_NT.zero_()
            rollout.mask_NT.fill_(True)
            rollout.__dict__["texts"] = ("",) * count
        if what == "allocates":
            held = []
            while True:
                held.append(np.ones(2**22))  # 32 MiB, each written to
        return None


class AsksTheRun(Component):
    """What it asks for is in the run's own process."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        return Score(run.rng("mine").get_state()[: len(rollout)])


class Sees(Component):
    """All that it is given, as numbers, at each step and in metrics, and as measures."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        value = rollout.actions_NT.double().exp().sin() * rollout.mask_NT + rollout.length_N[:, None] / 7
        meta = torch.tensor([float(example.meta["weight"]) for example in rollout.answered])
        refs = torch.tensor(
            [len(e.references) + rollout.finished_N[i] for i, e in enumerate(rollout.answered)]
        )
        assert all(type(e.meta["pair"]) is tuple for e in rollout.examples)
        return Score(value, metrics={"meta": meta.bfloat16(), "references": refs})

    @hookimpl
    def evaluate(self, rollout: Rollout) -> dict[str, float]:
        return {
            "words": float(sum(len(t.split()) for t in rollout.texts)),
            "worst": float("-inf"),
            "tenth": 0.1,
        }


class AtRandom(Component):
    """Something else whenever it is asked."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.tensor(np.frombuffer(os.urandom(2 * len(rollout)), dtype=np.uint16) / 65536.0))


class Recovers(Component):
    """Fails at one example, until somebody has mended it."""

    class Config(Options):
        """Options."""

        mended: Path = Field(description="there once it is mended")

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if any(example.id.endswith("-7") for example in rollout.examples) and not self.config.mended.exists():
            raise ValueError("cannot be reached")
        return Score(torch.tensor([float(len(set(text))) for text in rollout.texts]))


class Counts(Misbehaves):
    """Says what it was asked for."""

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        print("asked for", *rollout.texts, flush=True)
        return super().reward(run, rollout)


class Slow(Component):
    """Half a second for each batch, and says when it was asked."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        print("asked for", len(rollout), flush=True)
        time.sleep(0.5)
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))


class Unhurried(Component):
    """The length of a response, after a tenth of a second for each."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        if "raises" in rollout.texts:
            raise ValueError("no such word")
        time.sleep(0.1 * len(rollout))
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))


class Stateful(Component):
    """Keeps a state."""

    def state_dict(self) -> dict[str, int]:
        return {"a": 1}

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout)))


class Listens(Component):
    """Wants to be told of iterations too."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout)))

    @hookimpl
    def iteration_done(self, run: Run) -> None:
        pass


class Reads(Component):
    """Reads a model's column."""

    needs = ("reference.logprobs",)

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.zeros(len(rollout)))
