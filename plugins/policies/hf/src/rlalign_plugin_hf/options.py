"""Where a model comes from, and what is asked of it: the options that policies and scorers share."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlalign import Options, RunsCode
from rlalign_plugin_hf import gguf
from rlalign_plugin_hf.folders import lacking, local
from rlalign_plugin_hf.rendering import TODAY

Kind = Literal["causal", "seq2seq", "classifier", "encoder"]


class LoRA(Options):
    """`lora`: train low-rank adapters instead of all weights (Hu et al. 2021)."""

    r: int = Field(16, gt=0, description="rank of each adapter")
    alpha: float | None = Field(
        None, gt=0, description="the adapter is scaled by alpha / r; null: r, so by 1 as in the paper"
    )
    targets: tuple[str, ...] | str = Field(
        "all-linear",
        description="modules that get an adapter, by (ending of their) name; `all-linear`: all but the head",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="before each adapter, where `train.dropout` is on")


class Source(Options):
    """Where a model comes from."""

    path: str | Path = Field(
        description="a model folder or a GGUF file (`./…`, relative to the pipeline's), or a model's name on the hub"
    )
    tokenizer: str | Path | None = Field(
        None, description="folder, GGUF file or name of the tokenizer; null: the model's own"
    )
    attention: Literal["eager", "sdpa"] | None = Field(
        None,
        description="attention kernel; null: the model's own choice. `eager` where second derivatives count",
    )
    remote_code: Annotated[bool, RunsCode] = Field(
        False, description="run Python code that comes with the model; only if you have read it"
    )

    @field_validator("path", "tokenizer")
    @classmethod
    def _is_there(cls, source: str | Path | None) -> str | Path | None:
        if source is not None and (said := lacking(str(source))):
            raise ValueError(said)
        return source


class ModelOptions(Source):
    """Options of `causal-lm` and `seq2seq-lm`."""

    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="load the weights, or make random ones from `config.json` alone"
    )
    seed: int = Field(0, description="of random weights: all of them (`init: random`), or the adapters'")
    lora: LoRA | None = Field(None, description="train adapters only (needs the extra `lora`)")
    engine: Literal["graphs", "slots", "loop"] | None = Field(
        None,
        description="what samples: CUDA graphs of a step over slots, the same step without graphs, or the sampling "
        "loop; null: graphs on a GPU, the loop on a CPU",
    )
    max_prompt_tokens: int | None = Field(
        None,
        gt=0,
        description="the longest prompt; null: what the model's positions leave beside the longest response",
    )
    too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="what becomes of an example whose prompt is longer"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="which end `truncate` cuts; null: left of a causal model's, right of an encoder's"
    )
    template: Literal["exact", "as-said"] = Field(
        "exact",
        description="in episodes of several turns, a chat template that writes earlier answers anew: refuse it, or go "
        "on with what was said",
    )
    today: str = Field(
        TODAY,
        description="the date that a chat template reads which writes one (Llama 3's do); not the clock's, so that "
        "prompts are the same on any day",
    )

    @field_validator("today")
    @classmethod
    def _is_a_day(cls, today: str) -> str:
        try:
            return date.fromisoformat(today).isoformat()
        except ValueError:
            raise ValueError(f"a date like {TODAY}") from None


def is_here(options: Source) -> bool:
    """Whether model and tokenizer are paths, be it to nothing, rather than names on the hub."""
    sources = (str(source) for source in (options.path, options.tokenizer) if source is not None)
    return all(
        gguf.named(source) or Path(local(source)).is_dir() or lacking(source) is not None
        for source in sources
    )


def where(options: Source) -> str:
    """The model's folder, file or name, for messages."""
    return str(options.path)


def source_of_weights(options: ModelOptions) -> str | None:
    """The folder, file or name that the first weights come from; None where they are random."""
    return None if options.init == "random" else local(str(options.path))
