"""The judge against a chat endpoint on this machine: real sockets, right values, and all that goes wrong."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import rlalign
from rlalign import ComponentError, ConfigError, Example, Rollout, logged_rollout
from rlalign.testing import RewardTests, session
from rlalign_plugin_model_rewards.llm_judge import LLMJudge

from .chat_server import Reply, Server, serving


class Noted:
    """What a reward needs of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def quoted(question: str) -> list[str]:
    """The texts between marks."""
    return re.findall(r"<<<[0-9a-f]{16}>>>\n(.*?)\n<<<end [0-9a-f]{16}>>>", question, re.DOTALL)


def by_length(question: str, number: int = 0) -> str:
    """A judge that likes long answers: of two, the longer; of one, a point a letter."""
    texts = quoted(question)
    if len(texts) == 2:
        return f"Let me think.\nScore: {min(10, max(1, len(texts[1])))}"
    first, second = map(len, texts[1:])
    return f"Better: {'first' if first > second else 'second' if second > first else 'tie'}"


def rollout(*groups: tuple[str, ...], references: tuple[str, ...] = ()) -> Rollout:
    meta = {"references": references} if references else {}
    examples = [
        Example(id=str(i), prompt=f"question {i}", responses=group, meta=meta)
        for i, group in enumerate(groups)
    ]
    rows = [([0], True) for group in groups for _ in group]
    inputs = [torch.tensor([0]) for _ in examples]
    return logged_rollout(examples, inputs, rows, like=torch.zeros(()))


def judge(server: Server, **options: Any) -> LLMJudge:
    made = LLMJudge(
        LLMJudge.Config(url=server.url, model="judge", **{"wait": 0.01, "timeout": 5.0, **options})
    )
    made.name = "llm-judge"
    made.setup(Noted())  # type: ignore[arg-type]
    return made


def scores(made: LLMJudge, responses: Rollout, run: Noted | None = None) -> list[float]:
    found = made.reward(run=run or Noted(), rollout=responses)  # type: ignore[arg-type]
    return list(found.value.tolist())


def test_grades_are_mapped_to_the_unit_interval() -> None:
    with serving(by_length) as server:
        assert scores(judge(server), rollout(("a", "1234567890"), ("5five",))) == pytest.approx([0, 1, 4 / 9])
        assert server.bodies[0]["model"] == "judge" and server.bodies[0]["temperature"] == 0
        assert "Authorization" not in server.headers[0]
        assert sorted(map(len, map(quoted, server.asked))) == [2, 2, 2]


def test_a_group_is_compared_in_both_orders() -> None:
    with serving(by_length) as server:
        found = judge(server, mode="pairwise").reward(
            run=Noted(), rollout=rollout(("a", "bbb", "cc", "bbb"), ("x", "yy"))
        )
        assert found.value.tolist() == pytest.approx([0, 5 / 6, 1 / 3, 5 / 6, 0, 1])
        assert found.metrics["consistent"].tolist() == [1.0] * 6
        pairs = {tuple(quoted(q)[1:]) for q in server.asked}
        assert ("a", "cc") in pairs and ("cc", "a") in pairs
        assert not any(one == other for one, other in pairs)  # equal texts are a tie unasked
        assert len(server.asked) == 3 * 2 + 2  # the pairs with either `bbb` are asked once


def test_a_judge_that_likes_the_first_place_says_nothing() -> None:
    with serving(lambda question, number: "Better: first") as server:
        found = judge(server, mode="pairwise").reward(run=Noted(), rollout=rollout(("a", "bbb")))
        assert found.value.tolist() == [0.5, 0.5] and found.metrics["consistent"].tolist() == [0, 0]


def test_responses_are_compared_with_the_reference() -> None:
    with serving(by_length) as server:
        made = judge(server, mode="pairwise", against="reference")
        assert scores(made, rollout(("a", "bbbb", "cc"), references=("xx",))) == [0, 1, 0.5]
        with pytest.raises(ComponentError, match=r"example `0` has none: `references` is missing"):
            scores(made, rollout(("a",)))


def test_one_response_cannot_be_compared_with_its_group() -> None:
    with serving(by_length) as server, pytest.raises(ComponentError, match="has one"):
        scores(judge(server, mode="pairwise"), rollout(("a",)))


def test_429_and_500_are_tried_again() -> None:
    replies = {
        0: Reply(status=429, headers={"Retry-After": "0"}),
        1: Reply(status=503),
        2: Reply(raw=b"<html>"),
    }
    with serving(lambda question, number: replies.get(number, by_length(question))) as server:
        made = judge(server, at_once=1)
        assert scores(made, rollout(("1234567890",))) == [1.0]
        assert len(server.asked) == 4 and made.state_dict()["requests"] == 4


def test_retry_after_is_obeyed() -> None:
    first = Reply(status=429, headers={"Retry-After": "1"})
    with serving(lambda question, number: first if number == 0 else by_length(question)) as server:
        started = time.monotonic()
        scores(judge(server), rollout(("a",)))
        assert time.monotonic() - started >= 1


def test_a_server_that_hangs_is_a_bad_reward_and_does_not_stall() -> None:
    release = threading.Event()
    hang = Reply(before=lambda: release.wait(20))
    with serving(lambda question, number: hang if "hang" in question else by_length(question)) as server:
        run, started = Noted(), time.monotonic()
        found = scores(judge(server, timeout=0.3, retries=1), rollout(("hang", "1234567890")), run)
        assert time.monotonic() - started < 5
        release.set()
        assert math.isnan(found[0]) and found[1] == 1.0
        assert "no answer in 2 tries" in run.notes[0] and "timed out" in run.notes[0]


def test_nobody_there_is_a_bad_reward() -> None:
    with serving(by_length) as server:
        made = judge(server, retries=1)
    run = Noted()
    assert all(map(math.isnan, scores(made, rollout(("a",)), run)))
    assert "refused" in run.notes[0]


def test_where_nobody_answers_the_run_stops_before_every_request_is_lost() -> None:
    with serving(lambda question, number: Reply(status=500)) as server:
        with pytest.raises(ComponentError, match="does not answer: 4 requests in a row were lost"):
            scores(judge(server, retries=1, at_once=1), rollout(tuple("x" * i for i in range(1, 20))))
        assert len(server.asked) == 8


def test_garbage_is_counted_and_told() -> None:
    with serving(
        lambda question, number: "I would rather not" if "bad" in question else by_length(question)
    ) as server:
        run = Noted()
        found = judge(server).reward(run=run, rollout=rollout(("bad", "1234567890")))  # type: ignore[arg-type]
        assert math.isnan(found.value[0]) and found.value[1] == 1
        assert found.metrics["unreadable"].tolist() == [1, 0]
        assert "1 of 2 answers are no use" in run.notes[0] and "rather not" in run.notes[0]


def test_one_unread_comparison_spoils_those_who_met() -> None:
    def answer(question: str, number: int) -> str:
        return "hm" if quoted(question)[1:] == ["a", "bb"] else by_length(question)

    with serving(answer) as server:
        found = scores(judge(server, mode="pairwise"), rollout(("a", "bb"), ("c", "dd")))
        assert math.isnan(found[0]) and math.isnan(found[1]) and found[2:] == [0, 1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_what_will_not_change_stops_at_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-key-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)
    body = json.dumps({"error": f"Incorrect API key provided: {key}"}).encode()
    reply = Reply(
        status=status, raw=body, headers={"Location": "http://127.0.0.1:9/"} if status == 302 else {}
    )
    with serving(lambda question, number: reply) as server:
        with pytest.raises(ComponentError, match=f"HTTP {status}") as caught:
            scores(judge(server, key_from="JUDGE_KEY", at_once=1), rollout(("a",)))
        assert key not in str(caught.value) and len(server.asked) == 1
        assert server.headers[0]["Authorization"] == f"Bearer {key}"


def test_a_spent_budget_stops_and_answers_are_kept(tmp_path: Path) -> None:
    cache = tmp_path / "answers.sqlite"
    three = rollout(("a", "bb", "ccc"))
    with serving(by_length) as server:
        made = judge(server, most_requests=2, at_once=1, cache=cache)
        with pytest.raises(ComponentError, match=r"2 of 2 requests; raise `most_requests`"):
            scores(made, three)
        state = made.state_dict()
        assert state["requests"] == 2 == len(server.asked)
        again = judge(server, most_requests=3, at_once=1, cache=cache)
        again.load_state_dict(state)
        assert scores(again, three) == pytest.approx([0, 1 / 9, 2 / 9])
        assert len(server.asked) == 3


def test_a_budget_of_tokens() -> None:
    with serving(by_length) as server:
        with pytest.raises(ComponentError, match=r"20 of 15 tokens"):
            scores(judge(server, most_tokens=15, at_once=1), rollout(("a", "bb", "ccc")))
        assert len(server.asked) == 2
    with serving(lambda question, number: Reply(by_length(question), tokens=None)) as server:
        made = judge(server)
        scores(made, rollout(("a",)))
        assert 50 < made.state_dict()["tokens"] < 500  # estimated


def test_answers_are_remembered_and_forgotten() -> None:
    with serving(by_length) as server:
        made = judge(server, remember=2, at_once=1)
        scores(made, rollout(("a", "bb")))
        scores(made, rollout(("bb", "a", "a")))
        assert len(server.asked) == 2
        scores(made, rollout(("ccc", "a")))
        assert len(server.asked) == 4  # `a` gave way to `ccc`
        other = judge(server, rubric="Be strict.")
        scores(other, rollout(("a",)))
        assert len(server.asked) == 5 and "Be strict." in server.asked[-1]


def test_a_file_of_answers_is_bounded(tmp_path: Path) -> None:
    import sqlite3

    with serving(by_length) as server:
        made = judge(server, remember=3, cache=tmp_path / "answers.sqlite")
        scores(made, rollout(tuple("x" * i for i in range(1, 9))))
        with sqlite3.connect(tmp_path / "answers.sqlite") as file:
            assert file.execute("SELECT COUNT(*) FROM answers").fetchone() == (3,)


def test_no_more_requests_at_once_than_said() -> None:
    slow = threading.Event()
    with serving(
        lambda question, number: Reply(by_length(question), before=lambda: slow.wait(0.05))
    ) as server:
        scores(judge(server, at_once=3), rollout(tuple("x" * i for i in range(1, 13))))
        assert 1 < server.most_at_once <= 3


def test_an_endless_reply_is_cut_off() -> None:
    with serving(lambda question, number: Reply(raw=b"x" * (2**20 + 1))) as server:
        run = Noted()
        assert math.isnan(scores(judge(server, retries=0), rollout(("a",)), run)[0])
        assert "more than 1,048,576 bytes" in run.notes[0]


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    good: dict[str, Any] = {"url": "http://localhost:1/v1", "model": "m"}
    for wrong, said in (
        ({"url": "localhost:1"}, "begins with http"),
        ({"url": "http://me:secret@localhost/v1"}, "without name"),
        ({"key_from": "sk-123456789012"}, "not the key itself"),
        ({"scale": (5, 1)}, "least to the largest"),
        ({"template": "Grade it."}, r"no \{response\}"),
        ({"template": "{response}", "mode": "pairwise"}, r"no \{first\}"),
    ):
        with pytest.raises(ValueError, match=said):
            LLMJudge.Config(**{**good, **wrong})
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        LLMJudge(LLMJudge.Config(**good, key_from="JUDGE_KEY")).setup(Noted())  # type: ignore[arg-type]
    assert LLMJudge(LLMJudge.Config(**good, mode="pairwise")).min_samples == 2


def test_a_strangers_run_asks_nobody_and_is_sent_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-key-0123456789")
    with serving(by_length) as server:
        pipeline = {
            "task": "bandit",
            "policy": {"table": {"actions": ["left", "right"]}},
            "rewards": [{"llm-judge": {"url": server.url, "model": "m", "key_from": "JUDGE_KEY"}}],
            "algorithm": "reinforce",
            "train": {"iterations": 1, "prompts": 2},
        }
        run = session(tmp_path, pipeline, {}, name="run")
        run.run()
        asked = len(server.asked)
        with pytest.raises(ConfigError, match=r"would be sent texts.*--trust"):
            rlalign.open(run.dir.path)
        assert len(server.asked) == asked > 0


def test_what_is_null_is_not_sent() -> None:
    with serving(by_length) as server:
        scores(judge(server, temperature=None, max_tokens=None), rollout(("a",)))
        assert set(server.bodies[0]) == {"model", "messages"}


ANSWERING = serving(by_length)


@pytest.fixture(scope="module", autouse=True)
def _endpoint() -> Iterator[None]:
    with ANSWERING as server:
        TestPointwise.options = {"url": server.url, "model": "m"}
        TestPairwise.options = {"url": server.url, "model": "m", "mode": "pairwise"}
        yield


class TestPointwise(RewardTests):
    component = "llm-judge"
    options: Mapping[str, Any] = {}


class TestPairwise(RewardTests):
    component = "llm-judge"
    options: Mapping[str, Any] = {}
    reads_group = True


def test_bad_rewards_go_the_way_of_all_and_the_key_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-very-secret-key-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)
    said: dict[str, Any] = {
        "task": {"numbers": {"size": 400}},
        "policy": {"logits": {"hidden": 5}},
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 12},
        "train": {"iterations": 2, "prompts": 40, "on_bad_reward": "drop"},
    }

    spoilt: list[str] = []

    def answer(question: str, number: int) -> str:
        # A long response is one prompt's alone; a short one several prompts get, and one answer serves them all.
        if len(quoted(question)[1]) >= 8 and spoilt[:1] in ([], [question]):
            spoilt.append(question)
            return key
        return by_length(question)

    with serving(answer) as server:
        judged = {"llm-judge": {"url": server.url, "model": "m", "key_from": "JUDGE_KEY", "remember": 1}}
        run = session(tmp_path, {**said, "rewards": [judged]}, {}, name="run")
        run.run()
        assert all(headers["Authorization"] == f"Bearer {key}" for headers in server.headers)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert key.encode() not in written and b"dropped" in written
    out = capsys.readouterr()
    assert key not in out.out + out.err
