"""A language model behind a chat endpoint as judge of responses. Legend: N responses, K of a group."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from rlalign import Component, ComponentError, ConfigError, Example, Options, Rollout, Run, Score, hookimpl
from rlalign.errors import hide, shown
from rlalign.interface.code import ADD_TRUST
from rlalign_plugin_model_rewards.chat_endpoint import ChatEndpoint, Failed, Messages, Remembered
from rlalign_plugin_model_rewards.judging import PAIRWISE, POINTWISE, filled, grade, places, verdict
from rlalign_plugin_model_rewards.texts import as_text

RUBRIC = "You judge how helpful, correct and clear an answer is. Length alone is no merit."


class LLMJudge(Component):
    """What a language model says of a response: a grade, or how often it prefers it to others of the group.

    It is asked at an OpenAI-compatible chat endpoint. Comparisons are asked in both orders and averaged. An answer that
    cannot be read, or does not come after all tries, is a NaN, and `train.on_bad_reward` decides. A response can try to
    persuade its judge; fences keep it from ending its own quotation and no more.
    """

    paper = "Lianmin Zheng et al., Judging LLM-as-a-judge with MT-Bench and Chatbot Arena, 2023"
    bounds = (0.0, 1.0)
    by_one = True  # `most_requests` are those of the run

    class Config(Options):
        """Options of `llm-judge`."""

        url: str = Field(description="the endpoint, without `/chat/completions`: `http://localhost:8000/v1`")
        model: str = Field(min_length=1, description="the model's name at the endpoint")
        key_from: str | None = Field(
            None, description="environment variable that holds the key; null: none is sent"
        )
        mode: Literal["pointwise", "pairwise"] = Field(
            "pointwise",
            description="`pointwise`: a number for each response; `pairwise`: the share of comparisons it wins, a tie "
            "counted half",
        )
        against: Literal["group", "reference"] = Field(
            "group",
            description="`pairwise`: each other response of the group, K(K−1) requests a prompt; or the example's "
            "first reference, two requests a response",
        )
        rubric: str = Field(RUBRIC, description="what is asked of a good answer")
        template: str | None = Field(
            None,
            description="the whole question, with {rubric}, {prompt}, {reference}, {response}, {low} and {high}, or "
            "{first} and {second}; null: a plain one",
        )
        scale: tuple[float, float] = Field(
            (1.0, 10.0), description="`pointwise`: the least and the largest grade, which become 0 and 1"
        )
        temperature: float | None = Field(0.0, ge=0, description="of the judge; null: none is sent")
        max_tokens: int | None = Field(512, gt=0, description="of an answer; null: none is sent")
        timeout: float = Field(60.0, gt=0, description="seconds until a request counts as lost")
        retries: int = Field(
            5, ge=0, description="further tries after 429, 5xx, a time-out or a lost connection"
        )
        wait: float = Field(
            1.0,
            ge=0,
            description="seconds before the second try, doubled each time; a `Retry-After` goes first; 60 at most",
        )
        at_once: int = Field(8, gt=0, le=256, description="requests at the same time")
        most_requests: int | None = Field(
            None, gt=0, description="tries in a run, retries included; then it stops; null: no bound"
        )
        most_tokens: int | None = Field(
            None, gt=0, description="tokens in a run, of questions and answers; then it stops; null: no bound"
        )
        remember: int = Field(100_000, gt=0, description="answers that are kept, and not asked for again")
        cache: Path | None = Field(
            None,
            strict=False,
            description="file that keeps them from run to run (SQLite); null: in memory only",
        )

        @field_validator("url")
        @classmethod
        def _is_an_address(cls, url: str, info: ValidationInfo) -> str:
            if info.context and not info.context["trust"]:
                # Of a run that somebody else may have written: it could name any variable, and any address.
                raise ValueError(
                    f"{url} would be sent texts, and the variable that `key_from` names; {ADD_TRUST}"
                )
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("expected an address that begins with http:// or https://")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError("an address without name, password or `?…`; a key belongs into `key_from`")
            return url

        @field_validator("key_from")
        @classmethod
        def _is_a_name(cls, name: str | None) -> str | None:
            if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError("expected the name of an environment variable, not the key itself")
            return name

        @model_validator(mode="after")
        def _fits(self) -> LLMJudge.Config:
            if not self.scale[0] < self.scale[1]:
                raise ValueError("`scale` goes from the least to the largest")
            if self.template is not None:
                needed = {"response"} if self.mode == "pointwise" else {"first", "second"}
                if lacking := sorted(needed - places(self.template)):
                    raise ValueError(f"`template` has no {{{lacking[0]}}}")
            return self

    config: Config

    def __init__(self, config: BaseModel) -> None:
        super().__init__(config)
        self._endpoint: ChatEndpoint | None = None
        self._spent = {"requests": 0, "tokens": 0}
        c = self.config
        self._template = c.template or (POINTWISE if c.mode == "pointwise" else PAIRWISE)
        if c.mode == "pairwise" and c.against == "group":
            self.min_samples = 2

    def signature(self) -> str:
        c = self.config
        against = f"|against:{c.against}" if c.mode == "pairwise" else f"|scale:{c.scale[0]:g}-{c.scale[1]:g}"
        return f"model:{c.model}|mode:{c.mode}{against}"

    def setup(self, run: Run) -> None:
        c = self.config
        key = None
        if c.key_from is not None:
            key = os.environ.get(c.key_from, "").strip()
            if not key:
                raise ConfigError(
                    f"`{self.name}`: the environment variable {c.key_from} (`key_from`) is not set"
                )
            if not key.isascii() or not key.isprintable():
                raise ConfigError(
                    f"`{self.name}`: {c.key_from} holds what no key does: line breaks or other letters"
                )
            hide(key, f"${{oc.env:{c.key_from}}}")
        asked = {"model": c.model, "max_tokens": c.max_tokens, "temperature": c.temperature}
        self._endpoint = ChatEndpoint(
            url=c.url,
            key=key,
            body={name: value for name, value in asked.items() if value is not None},
            timeout=c.timeout,
            retries=c.retries,
            wait=c.wait,
            at_once=c.at_once,
            most_requests=c.most_requests,
            most_tokens=c.most_tokens,
            remembered=Remembered(c.remember, c.cache),
        )
        self.load_state_dict(self._spent)

    # -- the reward -----------------------------------------------------------------------------------------

    @hookimpl
    def reward(self, run: Run, rollout: Rollout) -> Score:
        c, answered = self.config, rollout.answered
        if c.mode == "pointwise":
            grades = self._grades(run, answered, rollout.texts)
            bad = torch.tensor([math.isnan(x) for x in grades], dtype=torch.float64)
            return Score(torch.tensor(grades, dtype=torch.float64), metrics={"unreadable": bad})
        return self._compared(run, rollout)

    def _grades(self, run: Run, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        asked = [self._question(e, {"response": text}) for e, text in zip(examples, texts, strict=True)]
        low, high = self.config.scale
        return self._read(run, asked, lambda answer: grade(answer, low, high))

    def _compared(self, run: Run, rollout: Rollout) -> Score:
        """The share of comparisons each response wins; NaN where one of them cannot be read."""
        meetings = self._meetings(rollout)
        asked = [
            self._question(rollout.examples[g], {"first": first, "second": second})
            for g, _, _, one, other in meetings
            for first, second in ((one, other), (other, one))
            if one != other
        ]
        verdicts = iter(self._read(run, asked, verdict))
        won: list[list[float]] = [[] for _ in range(len(rollout))]
        agreed: list[list[float]] = [[] for _ in range(len(rollout))]
        for _, row, against, one, other in meetings:
            there, back = (next(verdicts), 1 - next(verdicts)) if one != other else (0.5, 0.5)
            for place, score in ((row, (there + back) / 2), (against, 1 - (there + back) / 2)):
                if place is not None:
                    won[place].append(score)
                    agreed[place].append(float(there == back))
        value = torch.tensor([math.fsum(x) / len(x) for x in won], dtype=torch.float64)
        steady = torch.tensor([math.fsum(x) / len(x) for x in agreed], dtype=torch.float64)
        return Score(value, metrics={"unreadable": value.isnan().double(), "consistent": steady})

    def _meetings(self, rollout: Rollout) -> list[tuple[int, int, int | None, str, str]]:
        """(group, row, the row it meets or None for a reference, both texts)."""
        groups, texts = rollout.group_N.tolist(), rollout.texts
        if self.config.against == "reference":
            return [
                (g, row, None, texts[row], self._reference(rollout.examples[g]))
                for row, g in enumerate(groups)
            ]
        rows: dict[int, list[int]] = {}
        for row, g in enumerate(groups):
            rows.setdefault(g, []).append(row)
        alone = next((g for g, members in rows.items() if len(members) < 2), None)
        if alone is not None:
            raise ComponentError(
                f"`{self.name}` compares the responses of a group, and example `{rollout.examples[alone].id}` has one; "
                "say `against: reference`, or `samples: 2` or more under `generation`, of `evaluate` too"
            )
        return [
            (g, row, other, texts[row], texts[other])
            for g, members in rows.items()
            for i, row in enumerate(members)
            for other in members[i + 1 :]
        ]

    def _reference(self, example: Example) -> str:
        if not example.references:
            raise ComponentError(f"references are compared with, and {example.without_references}")
        return example.references[0]

    # -- asking -----------------------------------------------------------------------------------------------

    def _question(self, example: Example, answers: Mapping[str, str]) -> Messages:
        low, high = self.config.scale
        said = {"rubric": self.config.rubric, "low": f"{low:g}", "high": f"{high:g}"}
        data = {"prompt": as_text(example.prompt), **answers}
        if "reference" in places(self._template):
            data["reference"] = self._reference(example)
        return [{"role": "user", "content": filled(self._template, said, data)}]

    def _read(self, run: Run, asked: Sequence[Messages], read: Any) -> list[float]:
        """What each answer says, NaN where it says nothing."""
        assert self._endpoint is not None
        try:
            answers = self._endpoint.ask(asked)
        except ComponentError as error:
            raise type(error)(f"`{self.name}`: {error}") from None
        found = [None if isinstance(answer, Failed) else read(answer) for answer in answers]
        bad = [answer for answer, number in zip(answers, found, strict=True) if number is None]
        if bad:
            first = str(bad[0]) if isinstance(bad[0], Failed) else f"it reads {shown(bad[0][-200:])!r}"
            run.note(f"`{self.name}`: {len(bad)} of {len(answers)} answers are no use; the first: {first}")
        return [math.nan if number is None else float(number) for number in found]

    # -- what was spent -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._endpoint is not None:
            self._spent = {"requests": self._endpoint.spent.requests, "tokens": self._endpoint.spent.tokens}
        return dict(self._spent)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._spent = {"requests": int(state["requests"]), "tokens": int(state["tokens"])}
        if self._endpoint is not None:
            self._endpoint.spent.requests = self._spent["requests"]
            self._endpoint.spent.tokens = self._spent["tokens"]

    @hookimpl
    def run_ended(self, run: Run) -> None:
        if self._endpoint is not None:
            spent = self._endpoint.spent
            run.note(
                f"`{self.name}`: {spent.requests:,} requests and {spent.tokens:,} tokens in all; "
                f"{spent.remembered:,} answers were remembered"
            )
            self._endpoint.close()
