"""BLEURT for rlalign in pure torch: official checkpoints and ports, without TensorFlow."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, computed_field, field_validator, model_validator

from rlalign import Component, ComponentError, ConfigError, Example, Options, Rollout, Run, Score, hookimpl
from rlalign_plugin_bleurt_reward.bundle import CheckpointError
from rlalign_plugin_bleurt_reward.checkpoint import Checkpoint, find
from rlalign_plugin_bleurt_reward.hub import folder_of
from rlalign_plugin_bleurt_reward.scorer import Scorer

__all__ = ["Bleurt", "Checkpoint", "CheckpointError", "Scorer", "open_checkpoint"]


def open_checkpoint(source: str | Path, *, pickled: bool = False) -> Checkpoint:
    """What lies in a folder, or under a name in the hub's cache. Its weights are read when a `Scorer` is made of it.

    One whose weights are pickled is refused unless you say otherwise.
    """
    folder = folder_of(str(source))
    found = find(folder, str(source) if folder != Path(source) else folder.absolute().name)
    if found.pickled and not pickled:
        raise CheckpointError(
            f"{source}: its weights are pickled ({found.weights_in[0].name}), and a run unpickles nothing. "
            f"`rlalign-bleurt convert {source} NEW_FOLDER` rewrites them as safetensors, once"
        )
    return found


class Bleurt(Component):
    """What a model trained on human ratings says of a response beside its references: BLEURT."""

    class Config(Options):
        """Options of `bleurt`."""

        path: str | Path = Field(
            description="a checkpoint's folder (`./…`, relative to the pipeline's), or its name on the hub where the "
            "hub's cache holds it"
        )
        aggregate: Literal["max", "mean", "first"] = Field(
            "max",
            description="what several references come to: the best score, the mean, or the first reference alone",
        )
        gelu: Literal["auto", "tanh", "erf"] = Field(
            "auto",
            description="form of the activation; auto: as the checkpoint says. "
            "`tanh` makes a port score as google's code does",
        )
        max_length: int | None = Field(
            None,
            ge=4,
            description="tokens of a reference and a response together; null: as the checkpoint says",
        )
        batch_size: int = Field(32, gt=0, le=65536, description="pairs that the model reads at a time")
        dtype: Literal["float32", "bfloat16"] = Field(
            "float32", description="bfloat16 takes half the memory and moves scores by about a hundredth"
        )
        device: str | None = Field(
            None, description="where the model computes: cpu, cuda:1, …; null: where the policy does"
        )

        @field_validator("device")
        @classmethod
        def _is_a_device(cls, device: str | None) -> str | None:
            try:
                torch.empty(0, device=device).cpu()  # `meta` holds no numbers
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"{device}: no such device here ({str(error).splitlines()[0]})") from None
            return device

        @model_validator(mode="after")
        def _can_be_read(self) -> Bleurt.Config:
            try:
                found = self.checkpoint
            except ConfigError as error:
                raise ValueError(str(error)) from None
            if self.max_length is not None and self.max_length > found.sizes.positions:
                raise ValueError(
                    f"`max_length` is {self.max_length}; {found.name} has {found.sizes.positions} positions"
                )
            return self

        @cached_property
        def checkpoint(self) -> Checkpoint:
            """What is known of the checkpoint before its weights are read."""
            return open_checkpoint(self.path)

        @computed_field(  # type: ignore[prop-decorator]
            description="a hash of the checkpoint: another one is another reward"
        )
        @cached_property
        def digest(self) -> str:
            return self.checkpoint.identity

    config: Config
    paper = "Sellam, Das and Parikh 2020, BLEURT: Learning Robust Metrics for Text Generation"

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self._scorer: Scorer | None = None

    def signature(self) -> str:
        c, found = self.config, self.config.checkpoint
        said = {
            "checkpoint": found.name,
            "weights": found.digest[:12],
            "gelu": found.gelu if c.gelu == "auto" else c.gelu,
            "length": c.max_length or found.max_length,
            "refs": c.aggregate,
            "dtype": c.dtype,
        }
        return "|".join(f"{key}:{value}" for key, value in said.items())

    def setup(self, run: Run) -> None:
        c = self.config
        if open_checkpoint(c.path).identity != c.digest:
            raise ConfigError(f"{c.path}: the checkpoint has changed since the run was prepared; start again")
        device: str | torch.device | None = c.device  # in a process of its own there is no policy to look at
        if device is None:
            device = next(run.models.policy.parameters(), torch.empty(0)).device
        self._scorer = Scorer(
            c.checkpoint,
            gelu=None if c.gelu == "auto" else c.gelu,
            max_length=c.max_length,
            batch_size=c.batch_size,
            device=device,
            dtype=getattr(torch, c.dtype),
        )

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        assert self._scorer is not None
        asked = [self._references(example) for example in rollout.answered]
        texts = [text for text, references in zip(rollout.texts, asked, strict=True) for _ in references]
        scores = self._scorer.score([reference for references in asked for reference in references], texts)
        each = iter(scores)
        return Score(
            torch.tensor(
                [aggregated([next(each) for _ in references], self.config.aggregate) for references in asked],
                dtype=torch.float64,
            )
        )

    def _references(self, example: Example) -> tuple[str, ...]:
        if not example.references:
            raise ComponentError(f"`{self.name}` compares with references, and {example.without_references}")
        return example.references[:1] if self.config.aggregate == "first" else example.references


def aggregated(scores: list[float], how: Literal["max", "mean", "first"]) -> float:
    """One score of several, one a reference."""
    if how == "mean":
        return sum(scores) / len(scores)
    return max(scores) if how == "max" else scores[0]
