"""Runs with vLLM servers that stand-ins play: what they sample, what goes wrong, what is never learned from."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rlalign import ConfigError, RLAlignError, Sampling
from rlalign.running.loop import Session
from rlalign.testing import Bench, PolicyGradient, SamplerTests, run, session
from rlalign.testing.bench import logged, stopped_and_resumed
from rlalign.testing.text import Bytes
from rlalign_plugin_vllm import VLLM

from .standin import StandIn


class Gain(PolicyGradient):
    """Plain policy gradient of sampled responses."""

    responses = "sampled"


COMPONENTS = {"gain": Gain}
LONG: dict[str, Any] = {"samples": 3, "max_new_tokens": 12}
NARROWED: dict[str, Any] = {"top_p": 0.8, "min_new_tokens": 2, "temperature": 0.9, "stop": ("l", "N")}


@contextmanager
def servers(count: int, **faults: int) -> Iterator[list[StandIn]]:
    """Some that run; the first has the faults."""
    with ExitStack() as stack:
        made = [StandIn(None) for _ in range(count)]
        for server in made:
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            stack.callback(server.released.set)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        made[0].faults |= faults
        yield made


def pipeline(options: dict[str, Any], **said: Any) -> dict[str, Any]:
    return {
        "task": {"numbers": {"size": 24}},
        "policy": {"bytes": {"seed": 1}},
        "rewards": ["length"],
        "algorithm": "gain",
        "models": {"sampler": {"vllm": {"exact": True, **options}}},
        "generation": {"samples": 3, "max_new_tokens": 5},
        "train": {"iterations": 3, "prompts": 4, "lr": 0.5},
        **said,
    }


def urls(made: list[StandIn]) -> dict[str, Any]:
    return {"urls": [server.url for server in made]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The logs of a run in which nothing went wrong."""
    with servers(1) as made:
        _, done = run(tmp_path_factory.mktemp("whole"), pipeline(urls(made)), COMPONENTS)
    return logged(done.dir.path)


class TestIt(SamplerTests):
    component = "vllm"
    pipeline: ClassVar[Mapping[str, Any]] = {"task": {"numbers": {"size": 24}}}

    @pytest.fixture(autouse=True)
    def served(self) -> Iterator[None]:
        with servers(1) as made:
            type(self).options = {"exact": True, **urls(made)}
            yield


# -- what is sampled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.05, "top_k": 20},
        {"min_new_tokens": 3},
        {"stop": ("l", "N", "D")},
        {"greedy": True},
        NARROWED,
    ],
    ids=lambda how: "-".join(how) or "plain",
)
def test_log_probs_and_what_was_left_are_those_of_a_rescoring(how: dict[str, Any], tmp_path: Path) -> None:
    with servers(2) as made:
        bench = Bench(tmp_path, pipeline({**urls(made), "listed": 200}), COMPONENTS)
        (sampler,) = bench.session.samplers
        assert isinstance(sampler, VLLM)
        policy, asked = bench.phase.models.policy, Sampling(samples=4, max_new_tokens=8, **how)
        for server in made:
            server.longest_list = 200
        sampler.take(policy)
        seeds = bench.session.seeds.numbers("x", positions=range(6), samples=4)
        rollout = sampler.sample(policy, bench.phase.draw.next(6), asked, seeds)
        exact = bench.engine.score("policy", rollout, ["logprobs"]).logprobs_NT
        mask_NT = rollout.mask_NT
        torch.testing.assert_close(rollout.logprobs_NT[mask_NT], exact[mask_NT], atol=1e-4, rtol=0)
        assert rollout.flaw() is None and (rollout.allowed is not None) == asked.narrows
        if rollout.allowed is not None:
            logits_MV = policy.head(policy.features(rollout)).detach()
            kept_MV = left(logits_MV, rollout, policy.ends)
            assert torch.equal(rollout.allowed.mask(*rollout.chosen), kept_MV)
        assert {server.answered for server in made} == {12}  # in turn
        sampler.close()


def left(logits_MV: torch.Tensor, rollout: Any, ends: Any) -> torch.Tensor:
    """[M,V]: what top-k, top-p and min-p leave, by the core's own truncation."""
    from rlalign.decoding.truncation import truncate

    (how,) = rollout.settings
    logits_MV = logits_MV / how.temperature
    logits_MV[rollout.chosen[1] < how.min_new_tokens, list(ends)] = -torch.inf
    return truncate(logits_MV, how)


def test_the_same_responses_of_one_server_or_two_and_in_evaluations(tmp_path: Path) -> None:
    evaluate = {"split": "val", "examples": 4}
    found = []
    for count in (1, 2):
        with servers(count) as made:
            _, done = run(tmp_path, pipeline(urls(made), evaluate=evaluate), COMPONENTS, name=f"of-{count}")
            assert made[0].asked[0]["temperature"] == 0 and len(made[0].asked[0]["prompt"]) > 1
            assert made[0].paths[:3] == ["/health", "/collective_rpc", "/reset_prefix_cache"]
        found.append(logged(done.dir.path))
    assert found[0] == found[1]
    versions = [row["sampler/version"] for row in found[0]["metrics.jsonl"] if "sampler/version" in row]
    assert versions == [0, 1, 2]


class Adapted(Bytes):
    """One that says that it has an adapter, and writes it."""

    shares = True
    save_adapter = Bytes.save


def test_an_adapter_is_taken_in_place(whole: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    with servers(1) as made:
        said = pipeline({**urls(made), "weights": "adapter"}, policy={"adapted": {"seed": 1}})
        _, done = run(tmp_path, said, {**COMPONENTS, "adapted": Adapted})
        taken = [path for path in made[0].paths if path != "/v1/completions"]
        assert taken == ["/health", "/v1/load_lora_adapter", "/reset_prefix_cache"] * 3
        assert made[0].loaded == {"lora_name": "policy", "load_inplace": True}
    assert logged(done.dir.path) == whole


def test_asked_ahead_the_draws_are_the_same_and_faults_change_nothing(tmp_path: Path) -> None:
    """Prompts and seeds as without; a run that is stopped and resumed, or met with faults, repeats what it was."""
    found, asked = {}, {}
    for name, ahead, faults in (
        ("now", 0, {}),
        ("ahead", 1, {}),
        ("faulty", 1, {"dies": 1, "late": 1, "short": 1}),
    ):
        with servers(2, **faults) as made:
            options = {**urls(made), "ahead": ahead, "seconds": 1.0, "at_once": 4}
            said = pipeline(options, generation=LONG)
            _, done = run(tmp_path, said, COMPONENTS, name=name)
            bodies = [body for server in made for body in server.asked]
        found[name] = logged(done.dir.path)
        asked[name] = sorted((body["seed"], body["prompt"]) for body in bodies if body["max_tokens"] == 12)
    assert asked["now"] == asked["ahead"] and len(asked["now"]) == 36
    assert found["now"] != found["ahead"] == found["faulty"]
    behind = [row["sampler/behind"] for row in found["ahead"]["metrics.jsonl"] if "sampler/behind" in row]
    assert behind == [0, 1, 1]
    with servers(1) as made:
        said = pipeline({**urls(made), "ahead": 1}, generation=LONG)
        again = stopped_and_resumed(tmp_path, said, COMPONENTS)
    assert logged(again.dir.path) == found["ahead"]


def fails_once_asked_ahead(started: Session, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning fails when the first of the next iteration's prompts is with the server; 12 are this one's."""
    last = server.answered + 12

    def loss(*given: Any) -> Any:
        until = time.monotonic() + 30
        while server.answered <= last and time.monotonic() < until:
            time.sleep(0.01)
        return 1 / 0

    monkeypatch.setattr(started.plans[0].training, "loss", loss)
    with pytest.raises(ZeroDivisionError):
        started.run()


def test_what_nobody_wants_any_more_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers(1) as made:
        options = {**urls(made), "ahead": 1, "at_once": 1}
        monkeypatch.setattr(made[0], "fault", lambda name: name == "late" and made[0].answered > 12)
        fails_once_asked_ahead(session(tmp_path, pipeline(options), COMPONENTS), made[0], monkeypatch)
        answered = made[0].answered
        assert 12 < answered < 24
        monkeypatch.setattr(
            made[0], "fault", lambda name: name == "hangs" and made[0].answered > answered + 12
        )
        again = session(tmp_path / "again", pipeline(options), COMPONENTS)
        began = time.monotonic()
        fails_once_asked_ahead(again, made[0], monkeypatch)
        assert time.monotonic() - began < 15, "nobody waits for a request on its way"
        assert made[0].answered == answered + 13


def test_what_nobody_wants_any_more_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning fails while the sampler still makes its requests."""
    begun, given_up = threading.Event(), threading.Event()
    with servers(1) as made:
        started = session(tmp_path, pipeline({**urls(made), "ahead": 1, "at_once": 1}), COMPONENTS)
        policy, sampler = started.models.opened(), started.plans[0].sampler
        assert isinstance(sampler, VLLM)
        prompts, give_up = policy.prompts, sampler.give_up

        def waiting(examples: Any) -> Any:
            if threading.current_thread().name.startswith("asks-ahead"):
                begun.set()
                assert given_up.wait(30)
            return prompts(examples)

        def loss(*given: Any) -> Any:
            assert begun.wait(30)
            return 1 / 0

        def told() -> None:
            give_up()
            given_up.set()

        monkeypatch.setattr(policy, "prompts", waiting)
        monkeypatch.setattr(sampler, "give_up", told)
        monkeypatch.setattr(started.plans[0].training, "loss", loss)
        with pytest.raises(ZeroDivisionError):
            started.run()
        assert given_up.is_set() and made[0].answered == 12


def test_half_of_the_weights_asked_ahead_are_not_learned_from(tmp_path: Path) -> None:
    with servers(1) as made:
        started = session(tmp_path, pipeline({**urls(made), "ahead": 1}), COMPONENTS)
        started.display.iteration = lambda *_: made[0].faults.update(half=1)  # type: ignore[method-assign]
        with pytest.raises(RLAlignError, match=r"given the weights of version 1 and samples with others"):
            started.run()
    assert started.models.policy.version == 1


# -- what goes wrong, and the run goes on with the same tokens --------------------------------------------------------


@pytest.mark.parametrize("fault", ["dies", "hangs", "late", "short", "twice", "cut"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_run_goes_on_with_the_same_tokens(
    fault: str, count: int, whole: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    with servers(count, **{fault: 1}) as made:
        options = {**urls(made), "seconds": 1.0, "at_once": 4}
        _, done = run(tmp_path, pipeline(options), COMPONENTS, name="faulty")
        assert made[0].faults[fault] == 0
    assert logged(done.dir.path) == whole


def test_a_server_that_was_away_takes_the_weights_before_it_is_asked_again(tmp_path: Path) -> None:
    with servers(1, dies=1) as made:
        run(tmp_path, pipeline({**urls(made), "at_once": 1}), COMPONENTS)
        first = made[0].paths.index("/v1/completions")
        assert made[0].paths[first : first + 5] == [
            "/v1/completions",
            "/health",
            "/collective_rpc",
            "/reset_prefix_cache",
            "/v1/completions",
        ]


def test_one_that_is_away_when_weights_are_given_is_left_out(
    whole: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    with servers(2, unhealthy=3) as made:
        _, done = run(tmp_path, pipeline({**urls(made), "retries": 0}), COMPONENTS, name="alone")
        assert made[0].answered == 0 and made[1].answered == 36
    assert logged(done.dir.path) == whole


def test_a_key_goes_to_the_servers_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a secret of ours")
    with servers(2, moves=1) as made:
        made[0].elsewhere = made[1].url
        run(tmp_path, pipeline({**urls(made[:1]), "at_once": 1}), COMPONENTS)
        assert made[0].keys == {"Bearer a secret of ours"} and made[0].faults["moves"] == 0
        assert made[1].paths == []


# -- or it stops with one sentence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"dies": 99}, r"a response failed 2 times.*http://127.0.0.1"),
        ({"hangs": 99}, r"a response failed 2 times.*timed out"),
        ({"short": 99}, r"a response failed 2 times.*4 log-probs for 5 tokens|\d log-probs for \d tokens"),
        ({"twice": 99}, r"no single completion"),
        ({"unhealthy": 99}, r"no server took the weights: http://127.0.0.1:\d+: /health: 503"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_it_stops_where_nobody_answers(faults: dict[str, int], said: str, tmp_path: Path) -> None:
    with servers(1, **faults) as made:
        options = {**urls(made), "seconds": 0.3, "retries": 1, "at_once": 1}
        started = session(tmp_path, pipeline(options), COMPONENTS)
        with pytest.raises(RLAlignError, match=rf"sampler `vllm`: .*({said})"):
            started.run()
    assert started.models.policy.version == 0


def test_a_process_that_fails_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    said = [sys.executable, "-c", FAILS, str(tmp_path)]
    with servers(2, hangs=1) as made:
        made[1].longest_list = -1  # it refuses all
        options = json.dumps(pipeline({**urls(made), "seconds": 600.0}))
        done = subprocess.run(
            [*said, options], capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1]
        )
    assert "refuses /v1/completions: 400" in done.stdout, done.stderr


FAILS = """
import json, sys
from pathlib import Path
from rlalign import RLAlignError
from rlalign.testing import run
from tests.test_vllm import COMPONENTS
try:
    run(Path(sys.argv[1]), json.loads(sys.argv[2]), COMPONENTS)
except RLAlignError as error:
    print(error)
"""


@pytest.mark.parametrize("fault", ["old", "half"])
def test_old_weights_and_half_of_them_are_not_learned_from(fault: str, tmp_path: Path) -> None:
    """The server says that it took them."""
    with servers(1) as made:
        started = session(tmp_path, pipeline(urls(made)), COMPONENTS)
        made[0].faults[fault] = 1
        with pytest.raises(RLAlignError, match=r"given the weights of version 0 and samples with others"):
            started.run()
    assert started.models.policy.version == 0


def test_a_nucleus_beyond_the_list(tmp_path: Path) -> None:
    with servers(1) as made:
        wide = {"samples": 2, "max_new_tokens": 3, "top_p": 0.95, "temperature": 5.0}
        started = session(tmp_path, pipeline({**urls(made), "listed": 20}, generation=wide), COMPONENTS)
        with pytest.raises(RLAlignError, match=r"top_p: 0.95.*than the 20 that a server lists"):
            started.run()


def test_a_request_that_is_refused_is_not_asked_again(tmp_path: Path) -> None:
    with servers(1) as made:
        made[0].longest_list = 20
        narrow = {"samples": 2, "max_new_tokens": 3, "top_k": 3}
        started = session(tmp_path, pipeline({**urls(made), "at_once": 1}, generation=narrow), COMPONENTS)
        with pytest.raises(RLAlignError, match=r"refuses /v1/completions: 400: .*greater than max allowed"):
            started.run()
        assert made[0].answered < 6


# -- servers that the run starts ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_started_dies_and_is_started_again(
    python: str, whole: dict[str, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_DIES_AT", "15")
    folder = tmp_path / "weights"
    options = {"python": python, "at_once": 4, "folder": str(folder)}
    _, done = run(tmp_path, pipeline(options), COMPONENTS, name="started")
    assert (tmp_path / "died").exists()
    assert logged(done.dir.path) == whole
    (sampler,) = done.samplers
    assert isinstance(sampler, VLLM) and sampler._servers == [] and not list(folder.iterdir())


def test_a_server_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho No module named vllm >&2\nexit 3\n")
    script.chmod(0o755)
    started = session(tmp_path, pipeline({"python": str(script)}), COMPONENTS)
    with pytest.raises(RLAlignError, match=r"(?s)sampler `vllm`.* ended with code 3 .*No module named vllm"):
        started.run()


# -- resumed ------------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_to_the_bit(whole: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Where servers give equal tokens to equal seeds; `lock.json` says so."""
    with servers(2) as made:
        again = stopped_and_resumed(tmp_path, pipeline({**urls(made), "at_once": 3}), COMPONENTS)
    assert logged(again.dir.path) == whole
    lock = json.loads(again.dir.lock.read_text())
    assert lock["samplers"]["vllm"].startswith("a resumed run repeats its responses")


# -- before the run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "how", "told"),
    [
        ({}, {"temperature": 0.001}, "generation.temperature: `vllm` takes lower ones than 0.01 for that"),
        ({}, {"min_p": 0.1, "top_p": 0.9}, "generation.min_p: `vllm` removes by min_p before top_p"),
        ({}, {"top_k": 64}, "generation.top_k: `vllm` has servers list 64 tokens"),
        ({"urls": []}, {}, "say `urls` of servers that run, or the `python` that starts some"),
        ({"python": "python"}, {}, "say `urls` of servers that run, or the `python` that starts some"),
        ({"urls": ["localhost:8000"]}, {}, "expected `http://host:port`, found 'localhost:8000'"),
        ({"weights": "adapter"}, {}, "weights: adapter: the policy has none; say `lora` of it"),
    ],
)
def test_refused_before_the_run(
    options: dict[str, Any], how: dict[str, Any], told: str, tmp_path: Path
) -> None:
    said = pipeline({"urls": ["http://127.0.0.1:1"], **options}, generation={"max_new_tokens": 4, **how})
    with pytest.raises(ConfigError) as error:
        session(tmp_path, said, COMPONENTS)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("how", "told"),
    [({"beams": 2}, "beams: `vllm` has no beam search"), ({"greedy": True, "top_p": 0.9}, "greedy")],
)
def test_an_evaluation_it_cannot_sample(how: dict[str, Any], told: str, tmp_path: Path) -> None:
    said = pipeline({"urls": ["http://127.0.0.1:1"]}, evaluate={"split": "val", "generation": how})
    with pytest.raises(ConfigError, match=f"evaluate.generation.{told}"):
        session(tmp_path, said, COMPONENTS)
